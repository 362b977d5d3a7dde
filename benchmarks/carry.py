"""A long plan on machines that come and go: what it measured so far, as one small file that the next machine goes on from.

`python benchmarks/carry.py pack NAME` writes `carried/NAME.json.gz`: the results of the measurements of `NAME.toml` that the
store has, values by image among them, and none of the edits, keys, attacks and images that they stand on. `unpack NAME` puts
them into a store; `expunge bench benchmarks/NAME.toml` then runs what is missing. Costs of erasing are told of the runs that
the last store has.
"""

import argparse
import gzip
import json
from pathlib import Path

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
    """Write the results that ``store`` has of a plan's measurements; how many.

    Raises:
        ExpungeError: if it has none.
    """
    at = Workspace(store=store)
    found = {job.folder(at).name: job.result(at) for job in measurements(plan)}
    results = {name: result for name, result in sorted(found.items()) if result is not None}
    if not results:
        raise ExpungeError(f"'{store}' has no measurement of '{plan}': expected a store in which it was run")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(results, sort_keys=True, separators=(",", ":")).encode()
    file.write_bytes(gzip.compress(content, mtime=0))
    return len(results)


def unpack(plan: Path, store: Path, file: Path) -> int:
    """Put the results of ``file`` that the plan still asks for into ``store``, where it lacks them; how many.

    Raises:
        ExpungeError: if there is no such file.
    """
    if not file.is_file():
        raise ExpungeError(f"no file '{file}': expected one that `pack` wrote")
    results = json.loads(gzip.decompress(file.read_bytes()))
    at = Workspace(store=store)
    lacking = [job for job in measurements(plan) if job.folder(at).name in results and job.result(at) is None]
    for job in lacking:
        folder = job.folder(at)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT, results[folder.name], overwrite=True)
    return len(lacking)


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
