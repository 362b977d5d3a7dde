"""A run's folder, read for its report."""

from pathlib import Path

from expunge.core.errors import ExpungeError
from expunge.report import of_folder, of_plan
from expunge.report.run import Run
from expunge.results.files import PLAN


def read(folder: Path, store: Path) -> Run:
    """A bench folder with its images in ``store``, a demo, or a folder of what single commands wrote.

    Raises:
        ExpungeError: if there is nothing to report, or a file is damaged.
    """
    if not folder.is_dir():
        raise ExpungeError(f"no folder '{folder}': expected a run, such as runs/bench/NAME or runs/demo")
    return of_plan.read(folder, store) if (folder / PLAN).is_file() else of_folder.read(folder, store)
