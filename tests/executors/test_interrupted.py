"""Plans that are killed, share a store with another process, or find the disk full."""

import random
import time

from expunge.cli import main
from forked import ended, started
from plans_of import bench_words, read_rows, tiny_plan, without_times


def test_a_job_that_another_process_does_is_waited_for(tmp_path):
    """Two runs of one plan at a time: each job is done once, and both end well."""
    plan = tiny_plan(tmp_path, grid__method=["original"])
    command = ["bench", plan, "--quiet", "--workers", "1", "--store", tmp_path / "store", "--out"]
    both = [started([*command, tmp_path / f"out{i}"], tmp_path / f"err{i}") for i in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    first, second = (without_times(read_rows(tmp_path / f"out{i}" / "records.jsonl")) for i in range(2))
    assert first == second
    assert not list((tmp_path / "store").glob(".*")), "nothing is left lying about"


def test_killed_at_random_moments_it_ends_with_the_same_numbers(tmp_path):
    plan = tiny_plan(tmp_path, grid__method=["original", "uce", "kpop"], steps=8)
    command = ["bench", str(plan), "--quiet", "--workers", "1"]
    whole, torn = ([*command, "--store", tmp_path / n, "--out", tmp_path / f"{n}-out"] for n in ("whole", "torn"))
    start = time.monotonic()
    assert ended(started(whole, tmp_path / "err")) == 0
    lasted = time.monotonic() - start
    draw = random.Random(5)
    for _ in range(3):
        process = started(torn, tmp_path / "err")
        time.sleep(lasted * draw.uniform(0.3, 0.7))
        process.kill()
        process.join()
    assert main([str(w) for w in torn]) == 0
    torn_records, records = (
        without_times(read_rows(tmp_path / f"{n}-out" / "records.jsonl")) for n in ("torn", "whole")
    )
    assert torn_records == records

    def pixels(store):
        return {
            str(p.relative_to(tmp_path / store)): p.read_bytes() for p in (tmp_path / store).glob("generate-*/*/*.png")
        }

    assert pixels("torn") == pixels("whole")


def test_a_full_disk_is_one_line_and_leaves_earlier_results(tmp_path):
    """A limit on file sizes stands in for the disk: an edit does not fit, a result does."""
    plan = tiny_plan(tmp_path)
    assert ended(started(bench_words(plan, "--quiet"), tmp_path / "err", largest=30_000)) == 2
    error = (tmp_path / "err").read_text()
    assert len(error.strip().splitlines()) == 1
    assert "cannot be written" in error
    assert "File too large" in error
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").glob("*/result.json")}
    assert before, "the original's images and their measurement were done"
    assert main(bench_words(plan, "--quiet")) == 0
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
