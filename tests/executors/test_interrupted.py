"""Plans that are killed, share a store with another process, go on elsewhere, or find the disk full."""

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kill_bench
import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.executors import bench
from expunge.plans.read import read_plan
from expunge.report.reading import read
from expunge.store import load_edit, reserved
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


def test_results_of_an_earlier_text_keep_their_plan_until_this_one_s_are_whole(tmp_path):
    out, store = tmp_path / "out", tmp_path / "store"
    plan = tiny_plan(tmp_path, grid__method=["original", "uce"], attacks=["rounding"])
    assert main(bench_words(plan, "--quiet")) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    assert "worst.jsonl" in before
    plan = tiny_plan(tmp_path, grid__method=["original", "uce"], count=2)

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(read_plan(plan), store, out, changed=True, on_progress=interrupted)
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    assert main(bench_words(plan, "--quiet")) == 2, "they are still another text's"
    assert main(bench_words(plan, "--quiet", "--changed")) == 0
    run = read(out, store)
    assert run.plan["count"] == 2
    assert {row["n"] for row in run.summary if row["metric"] == "esr@1"} == {4}, "two targets, two images each"
    assert not (out / "worst.jsonl").exists(), "the new text has no attack"


def test_a_run_has_its_results_to_itself(tmp_path, capsys):
    plan, out = tiny_plan(tmp_path), tmp_path / "out"
    with ThreadPoolExecutor() as others, reserved(out):
        again = ["bench", str(plan), "--results", str(tmp_path / "kept.jsonl"), "--out", str(out)]
        for words in (bench_words(plan, "--quiet"), bench_words(plan, "--quiet", "--changed"), again):
            assert others.submit(main, words).result() == 2
            error = capsys.readouterr().err
            assert f"'{out}' is being written by another run: expected another place" in error
            assert error.count("\n") == 1
    assert not out.exists()
    assert main(bench_words(plan, "--quiet")) == 0


def pictures(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.glob("generate-*/*/*.png")}


def struck(kill_bench, bench, what: str, draw: random.Random) -> int:
    """How a run ended of which the parent or a worker was killed at a random moment of its work."""
    run, begun = bench.start(), time.monotonic()
    while not (bench.writes() and kill_bench.workers(run.pid)):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() - begun < 200, "no job begins"
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 0.2))
    below, some = kill_bench.descendants(run.pid), kill_bench.workers(run.pid)
    kill_bench.kill_one(draw.choice(some) if what == "worker" and some else run.pid)
    _, told = run.communicate(timeout=200)
    assert kill_bench.gone(below), "workers outlive their parent"
    lines = told.strip().splitlines()
    assert len(lines) == (1 if run.returncode == 2 else 0), told
    if run.returncode == 2:
        assert "a worker ended by signal 9 at job" in told
    return run.returncode


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for workers in /proc")
def test_with_workers_killed_too_it_ends_with_the_same_numbers(tmp_path):
    """The parent and a worker, each at a random moment of its work; `benchmarks/kill_bench.py` does it thirty times."""
    plan = tiny_plan(tmp_path, grid__method=["original", "uce", "kpop"], steps=8)
    whole, torn = kill_bench.Bench(plan, "whole"), kill_bench.Bench(plan, "torn")
    assert whole.start().wait() == 0
    draw = random.Random(7)
    assert struck(kill_bench, torn, "parent", draw) == -signal.SIGKILL
    ended_by = [struck(kill_bench, torn, "worker", draw)]
    while ended_by[-1] != 2 and len(ended_by) < 8:  # the worker had no job, or was gone
        shutil.rmtree(torn.store.parent)
        ended_by.append(struck(kill_bench, torn, "worker", draw))
    assert ended_by[-1] == 2, "no worker that was killed had a job"
    assert torn.start().wait() == 0
    assert torn.made() == whole.made()
    assert not list(torn.store.glob(".*")), "nothing is left lying about"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 4 MB; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Take all of a disk but so many bytes."""
    free = os.statvfs(disk)
    taken = disk / "taken"
    taken.write_bytes(bytes(free.f_bavail * free.f_frsize - left))
    return taken


@pytest.mark.parametrize("left", [0, 12_000, 60_000, 600_000])
def test_a_plan_on_a_disk_that_fills_up_is_one_line_and_goes_on_once_there_is_space(tmp_path, small_disk, left):
    """Full from the start, at images, at an edit; then with the space that was freed, to the numbers of a disk with space."""
    plan = tiny_plan(tmp_path)
    command = ["bench", plan, "--quiet", "--workers", "2", "--store", small_disk / "store", "--out", small_disk / "out"]
    taken = fill(small_disk, left)
    assert ended(started(command, tmp_path / "err")) == 2
    error = (tmp_path / "err").read_text()
    assert len(error.strip().splitlines()) == 1, error
    assert "cannot be written: " in error
    assert "No space left on device" in error
    done = {p: p.stat().st_mtime_ns for p in (small_disk / "store").glob("*/result.json")}
    taken.unlink()
    assert ended(started(command, tmp_path / "err")) == 0, (tmp_path / "err").read_text()
    assert not (tmp_path / "err").read_text(), "nothing half-written was believed"
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert main(bench_words(plan, "--quiet")) == 0
    both = [without_times(read_rows(out / "records.jsonl")) for out in (small_disk / "out", tmp_path / "out")]
    assert both[0] == both[1]
    assert pictures(small_disk / "store") == pictures(tmp_path / "store")


def test_an_erasure_on_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, small_disk):
    words = ["erase", "uce", "--target", "church", "--no-check", "--quiet", "--out"]
    taken = fill(small_disk, 20_000)
    assert ended(started([*words, small_disk / "edit"], tmp_path / "err")) == 2
    error = (tmp_path / "err").read_text()
    assert len(error.strip().splitlines()) == 1, error
    assert "No space left on device" in error
    assert [p.name for p in small_disk.rglob("*")] == ["taken"]
    taken.unlink()
    assert main([str(w) for w in (*words, small_disk / "edit")]) == 0
    assert main([*words, str(tmp_path / "edit")]) == 0
    ids = [load_edit(place / "edit" / "edit.safetensors").id for place in (small_disk, tmp_path)]
    assert ids[0] == ids[1]


def test_a_plan_goes_on_from_what_was_carried_to_another_machine(tmp_path):
    """One training seed here, the other where the store is not: the numbers of one run, and nothing measured is made again."""
    script = Path(__file__).parents[2] / "benchmarks" / "carry.py"
    spec = importlib.util.spec_from_file_location("carry", script)
    carry = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(carry)
    both = {"grid__method": ["original", "kpop"], "grid__seed": [0, 1], "compare": [["kpop", "original"]]}
    plan, file = tiny_plan(tmp_path, **both), tmp_path / "carried" / "plan.json.gz"
    assert main([*bench_words(plan), "--quiet"]) == 0
    whole = without_times(read_rows(tmp_path / "out" / "records.jsonl"))
    differences = [r for r in read_rows(tmp_path / "out" / "summary.jsonl") if r["method"] == "kpop - original"]
    rooms = [path.name.partition("-")[0] for path in (tmp_path / "store").iterdir()]

    first = tiny_plan(tmp_path, **{**both, "grid__seed": [0]})
    count = carry.pack(first, tmp_path / "store", file)
    assert 0 < count < rooms.count("measure")
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ExpungeError, match="has no measurement of"):
        carry.pack(first, tmp_path / "store", file)
    plan = tiny_plan(tmp_path, **both)
    assert carry.unpack(plan, tmp_path / "store", file) == count
    assert carry.unpack(plan, tmp_path / "store", file) == 0
    assert main([*bench_words(plan), "--quiet"]) == 0
    assert without_times(read_rows(tmp_path / "out" / "records.jsonl")) == whole
    assert [r for r in read_rows(tmp_path / "out" / "summary.jsonl") if r["method"] == "kpop - original"] == differences
    assert len([path for path in (tmp_path / "store").iterdir() if path.name.startswith("erase")]) == 1
    assert carry.pack(plan, tmp_path / "store", file) > 0, "what the second seed added"
    assert carry.unpack(plan, tmp_path / "elsewhere", file) > count
    other = tiny_plan(tmp_path, **both, count=2, control_count=2)
    with pytest.raises(ExpungeError, match="asks here for none of the"):
        carry.unpack(other, tmp_path / "store", file)
    with pytest.raises(ExpungeError, match="expected one that `pack` wrote"):
        carry.unpack(plan, tmp_path / "store", tmp_path / "none")
