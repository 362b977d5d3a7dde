"""Put a plan's results beside it: `python benchmarks/keep.py NAME` after `expunge bench benchmarks/NAME.toml`.

`runs/bench/NAME` becomes `NAME.jsonl` (records, then the summary), `NAME.md` (the table) and `figures/NAME-*.svg`. Some records
are left out, as `expunge submit` leaves them out. A file of more than a megabyte is refused.
"""

import shutil
import sys
from pathlib import Path

from expunge.core.errors import ExpungeError
from expunge.report.figures import draw
from expunge.results.files import FIGURES, RECORDS, SUMMARY, TABLE
from expunge.results.kept import kept
from expunge.store import new_file, read_lines, write_lines

HERE = Path(__file__).parent
LARGEST = 1_000_000
"""Bytes that a committed file may have."""


def keep(run: Path, name: str, out: Path) -> list[Path]:
    """Write what is kept of a run into ``out``; which files.

    Raises:
        ExpungeError: if the run has no results, or more than fit into a file; nothing is written then.
    """
    missing = [file for file in (RECORDS, SUMMARY, TABLE) if not (run / file).exists()]
    if missing:
        raise ExpungeError(
            f"'{run}' has no {', '.join(missing)}: expected a finished run, as `expunge bench` leaves it"
        )
    files = [out / f"{name}.jsonl", out / f"{name}.md"]
    with new_file(files[0], overwrite=True) as temporary:
        write_lines(temporary, kept(read_lines(run / RECORDS), read_lines(run / SUMMARY)), compact=True)
        size = temporary.stat().st_size
        if size > LARGEST:
            raise ExpungeError(f"'{files[0]}' would have {size:,} bytes: expected at most {LARGEST:,}")
    shutil.copy(run / TABLE, files[1])
    for figure in sorted((run / FIGURES).glob("*.json")):
        files.append(out / "figures" / f"{name}-{figure.stem}.svg")
        draw(figure, files[-1], overwrite=True)
    return files


def main(names: list[str]) -> int:
    """Keep each plan's results; 2 with a line where one cannot be kept, or none is named."""
    if not names:
        print("keep: no plan is named: expected NAME of benchmarks/NAME.toml", file=sys.stderr)
        return 2
    for name in names:
        try:
            print("\n".join(map(str, keep(HERE.parent / "runs" / "bench" / name, name, HERE))))
        except ExpungeError as error:
            print(f"keep: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
