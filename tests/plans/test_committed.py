"""What was measured stays: every job of every committed plan keeps its key, and every committed table is told again."""

import gzip
import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.core.errors import ExpungeError
from expunge.executors import bench
from expunge.executors.asked import absent
from expunge.jobs import WantedJob, in_order
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan
from expunge.store import read_lines

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KEYS = BENCHMARKS / "keys.json.gz"
"""By plan: the first 16 digits of its jobs' keys, and a digest of what it measures, in order.

Images that methods want became jobs later, and stand apart: no key of the others has theirs in it.
`python tests/plans/test_committed.py` writes it anew, for a new plan or a deliberate new version."""
ALL = sorted(path.stem for path in BENCHMARKS.glob("*.toml"))
ABSENT = [name for name in ALL if absent(read_plan(BENCHMARKS / f"{name}.toml"))]
"""Plans with a model that is trained by the recipe, in hours, and is no part of the repository."""
PLANS = [name for name in ALL if name not in ABSENT]
TABLES = [name for name in PLANS if (BENCHMARKS / f"{name}.jsonl").exists()]
"""Plans that were run."""
ONE_SCREEN = 70
"""Lines."""


def keys_of(name: str) -> dict[str, object]:
    """The keys of a plan's jobs, and a digest of its measurements with their places in the table.

    Images are taken to be made in float32: what a plan calls fast is bfloat16 on some machines, which have other keys.
    """
    plan = read_plan(BENCHMARKS / f"{name}.toml")
    measured = expanded(checked(replace(plan, image_dtype="float32") if plan.image_dtype == "fast" else plan))
    jobs = in_order(m.job for m in measured)
    places = [[m.job.key, m.method, m.split, m.seed, str(m.group), m.variant, m.run] for m in measured]
    return {
        "jobs": sorted({job.key[:16] for job in jobs if not isinstance(job, WantedJob)}),
        "wanted": sorted({job.key[:16] for job in jobs if isinstance(job, WantedJob)}),
        "measurements": hashlib.sha256(json.dumps(places).encode()).hexdigest(),
    }


@pytest.mark.parametrize("name", PLANS)
def test_every_job_of_a_committed_plan_keeps_its_key(name: str):
    assert keys_of(name) == json.loads(gzip.decompress(KEYS.read_bytes()))[name]


def test_a_plan_whose_other_model_is_not_here_says_what_it_wants():
    assert set(ABSENT) <= {"erasers-retrained"}
    for name in ABSENT:
        with pytest.raises(ExpungeError, match="expected a model that is there"):
            checked(read_plan(BENCHMARKS / f"{name}.toml"))


@pytest.mark.parametrize("name", TABLES)
def test_a_committed_table_is_told_again_bit_for_bit(name: str, tmp_path: Path):
    bench.again(read_plan(BENCHMARKS / f"{name}.toml"), BENCHMARKS / f"{name}.jsonl", tmp_path / "again")
    assert (tmp_path / "again" / "table.md").read_text() == (BENCHMARKS / f"{name}.md").read_text()
    kept = [json.dumps(row) for row in read_lines(BENCHMARKS / f"{name}.jsonl") if "provenance" not in row]
    assert [json.dumps(row) for row in read_lines(tmp_path / "again" / "summary.jsonl")] == kept


def test_the_pages_of_claims_are_what_the_committed_results_say():
    spec = importlib.util.spec_from_file_location("claims", BENCHMARKS / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    claims = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(claims)
    for page, tell in claims.PAGES.items():
        assert claims.put(page.read_text(), tell) == page.read_text(), "python benchmarks/claims.py writes it anew"
    each, counted = (claims.RESULTS / name for name in ("claims.md", "README.md"))
    assert sum(each.read_text().count(f"| {verdict} |") for verdict in claims.VERDICTS) >= 50
    assert len(counted.read_text().splitlines()) <= ONE_SCREEN


if __name__ == "__main__":
    found = {name: keys_of(name) for name in PLANS}
    KEYS.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))
