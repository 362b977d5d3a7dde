"""A long plan on machines that come and go: what it measured so far, as one small file that the next machine goes on from.

`python benchmarks/carry.py pack NAME` writes `carried/NAME.json.gz`: the results of the measurements of `NAME.toml` that the
store has, values by image among them, and none of the edits, keys, attacks and images that they stand on. `unpack NAME` puts
them into a store; `expunge bench benchmarks/NAME.toml` then runs what is missing: analyses and counts of memory, too, with the
erasures behind them. Costs are told of the erasures, pairs and fresh keys that the last store has.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError
from expunge.jobs import Job, MeasureJob, Workspace, in_order
from expunge.jobs.kept import RESULT
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan
from expunge.store import write_json

HERE = Path(__file__).parent


def measurements(plan: Path) -> list[Job]:
    """The jobs of a plan that measure images, each once."""
    return [job for job in in_order(m.job for m in expanded(checked(read_plan(plan)))) if isinstance(job, MeasureJob)]


def pack(plan: Path, store: Path, file: Path) -> int:
    """Write the results that ``store`` has of a plan's measurements, beside those that ``file`` has already; how many are new.

    Raises:
        ExpungeError: if it has none.
    """
    at = Workspace(store=store)
    found = {job.folder(at).name: job.result(at) for job in measurements(plan)}
    results = {name: result for name, result in found.items() if result is not None}
    if not results:
        raise ExpungeError(f"'{store}' has no measurement of '{plan}': expected a store in which it was run")
    before = _read(file) if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**before, **results}, sort_keys=True, separators=(",", ":")).encode()
    file.write_bytes(gzip.compress(content, mtime=0))
    return len(results.keys() - before.keys())


def unpack(plan: Path, store: Path, file: Path) -> int:
    """Put the results of ``file`` that the plan still asks for into ``store``, where it lacks them; how many.

    Raises:
        ExpungeError: if there is no such file, or the plan asks for nothing of it: on a processor where images are made in
            another precision, of another model, or with another text.
    """
    if not file.is_file():
        raise ExpungeError(f"no file '{file}': expected one that `pack` wrote")
    results, at = _read(file), Workspace(store=store)
    asked = [job for job in measurements(plan) if job.folder(at).name in results]
    if not asked:
        raise ExpungeError(
            f"'{plan}' asks here for none of the {len(results)} measurements in '{file}': expected some on this machine"
        )
    lacking = [job for job in asked if job.result(at) is None]
    for job in lacking:
        folder = job.folder(at)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT, results[folder.name], overwrite=True)
    return len(lacking)


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(file.read_bytes())))


def main() -> None:
    """Pack or unpack, as asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("name", help="of a plan in this folder")
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    given = parser.parse_args()
    does = pack if given.what == "pack" else unpack
    plan, file = HERE / f"{given.name}.toml", HERE / "carried" / f"{given.name}.json.gz"
    count = does(plan, given.store, file)
    print(f"{file}: {count} measurements {'written' if given.what == 'pack' else f'put into {given.store}'}")


if __name__ == "__main__":
    main()
