"""Workers: the same bits as one job after another, as many at a time as memory allows, and gone when the parent is."""

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.executors.bench import executor
from expunge.executors.machine import available_memory, usable_cores
from expunge.executors.queue import Queue
from expunge.executors.serial import Serial
from expunge.executors.workers import PRELOADED, PROCESS_BYTES, RESERVE, Workers
from expunge.jobs import EraseJob, Job, WantedJob, Workspace, in_order
from plans_of import jobs_of, tiny_plan
from small_jobs import Log, assert_alike, images, some_jobs


@pytest.fixture
def some(folder: Path) -> list[Job]:
    return some_jobs(folder)


def test_results_are_those_of_serial_with_one_thread_to_the_last_bit(some: list[Job], tmp_path: Path):
    assert torch.get_num_threads() == 1
    one, several = Workspace(store=tmp_path / "one"), Workspace(store=tmp_path / "several")
    Serial().run(some, one, Log())
    log = Log()
    Workers(count=2).run(some, several, log)
    assert log.most == 2
    assert_alike(some, one, several)


def test_what_more_work_waits_for_comes_first_and_nothing_before_what_it_stands_on(some: list[Job]):
    costly = replace(some[2], cost=Cost(forward=1000), seed=99)
    queue = Queue([*some, costly])
    first = [job.key for job in queue.ready()]
    assert first[0] == costly.key
    assert some[1].key not in first, "its erasure is not done"
    queue.begin(some[0])
    queue.end(some[0])
    assert some[1].key in [job.key for job in queue.ready()]


def test_no_more_run_at_once_than_fit_into_memory_and_what_is_too_large_runs_alone(folder: Path, tmp_path: Path):
    room = int(2.5 * PROCESS_BYTES / RESERVE)
    small = [images(folder, seed, memory=10_000) for seed in (1, 2)]
    large = [images(folder, seed, memory=5 * PROCESS_BYTES) for seed in (3, 4)]
    log = Log()
    Workers(count=3, memory=room).run(small, Workspace(store=tmp_path / "small"), log)
    assert log.most == 2
    log = Log()
    Workers(count=3, memory=room).run([*large, *small], Workspace(store=tmp_path / "large"), log)
    assert all({job.key} in log.together for job in large)
    assert not any(len(keys) > 1 and keys & {job.key for job in large} for keys in log.together), "they run alone"
    store = Workspace(store=tmp_path / "large")
    assert all(job.result(store) for job in [*large, *small])


def test_a_job_that_fails_ends_the_run_with_its_own_line(folder: Path, tmp_path: Path):
    wrong = images(folder, 1, model_sha256="0" * 64)
    with pytest.raises(ExpungeError, match="has changed since the job was planned: expected the same files"):
        Workers(count=2).run([wrong], Workspace(store=tmp_path), Log())
    assert not wrong.result(Workspace(store=tmp_path))


def test_a_worker_that_dies_is_told_of(folder: Path, tmp_path: Path):
    class Killer(Log):
        def started(self, job: Job):
            super().started(job)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(ExpungeError, match=r"a worker ended by signal 9 at job .* \(generate: .*\): expected enough"):
        Workers(count=1).run([images(folder, 1)], Workspace(store=tmp_path), Killer())


PARENT = """
import sys
from pathlib import Path
import multiprocessing, json
from expunge.executors.workers import Workers
from expunge.jobs import GenerateJob, Workspace

class Tell:
    def started(self, job):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    def finished(self, job, result):
        print("finished", flush=True)

if __name__ == "__main__":
    job = GenerateJob.from_json(json.loads(sys.argv[1]))
    Workers(count=2).run([job], Workspace(store=Path(sys.argv[2])), Tell())
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_are_gone_when_their_parent_is(how: signal.Signals, folder: Path, tmp_path: Path):
    (tmp_path / "parent.py").write_text(PARENT)
    long = images(folder, 1, steps=1000, count=500)
    given = [json.dumps(long.as_json()), str(tmp_path / "store")]
    command = [sys.executable, str(tmp_path / "parent.py"), *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
        parent.send_signal(how)
        parent.wait(timeout=30)
    end = time.monotonic() + 20
    while alive := [pid for pid in workers if _runs(pid)]:
        assert time.monotonic() < end, f"{alive} still run"
        time.sleep(0.1)
    assert not long.result(Workspace(store=tmp_path / "store"))


def _runs(pid: int) -> bool:
    """Whether a process is there and is no corpse."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _own_bytes() -> int:
    """What a process has of the memory for itself, after its collector of cycles went through everything."""
    assert PRELOADED in sys.modules
    assert gc.get_freeze_count() > 100_000
    gc.collect()
    counts = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in counts.splitlines() if line.startswith("Private_Dirty:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux counts what processes share")
def test_what_workers_share_stays_shared():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with context.Pool(1) as pool:
        assert pool.apply(_own_bytes) < 80e6, "twice as much where the collector writes into all that was imported"


def test_what_the_machine_has():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert 100_000_000 < available_memory() < 2**62


@pytest.mark.parametrize(
    ("workers", "device", "count"), [(None, "cuda", 1), (1, "cpu", 1), (3, "cpu", 3), (2, "cuda", 2)]
)
def test_a_gpu_has_one_worker_unless_told_otherwise(workers: int | None, device: str, count: int):
    chosen = executor(workers, device)
    assert (chosen.count if isinstance(chosen, Workers) else 1) == count
    with pytest.raises(ExpungeError, match="--workers 0: expected 1 or more"):
        executor(0, device)


def test_images_that_a_later_step_wants_wait_for_the_edits_below(tmp_path: Path):
    """A sequential method's own images are made by the model that the steps before it left."""
    few = {"anchor": "cat", "anchor_images": 1, "iterations": 1, "batch": 1}
    rows = {"grid__method": ["ca"], "method__ca": {"eraser": "ca", "order": "sequential", "settings": few}}
    first, second = (job for job in jobs_of(tiny_plan(tmp_path, **rows)) if isinstance(job, EraseJob))
    (images,) = [job for job in second.upstream if isinstance(job, WantedJob)]
    assert images.on == [first.key] == [job.key for job in images.upstream]
    queue = Queue(in_order([second]))
    assert images.key not in [job.key for job in queue.ready()]


def test_a_worker_that_dies_with_nothing_to_do_is_told_of(folder: Path, tmp_path: Path):
    class KillerAfterwards(Log):
        def finished(self, job: Job, result):
            super().finished(job, result)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                child.join()

    two = [images(folder, seed, count=1, steps=1) for seed in (1, 2)]
    with pytest.raises(ExpungeError, match="a worker ended by signal 9 at job"):
        Workers(count=1).run(two, Workspace(store=tmp_path), KillerAfterwards())


def test_a_fault_of_a_worker_comes_with_its_traceback(folder: Path, tmp_path: Path):
    odd = images(folder, 1, prompts=[["one", "two", "three"]])
    with pytest.raises(RuntimeError, match=r"failed in a worker:\nTraceback(.|\n)*too many values to unpack"):
        Workers(count=1).run([odd], Workspace(store=tmp_path), Log())


def test_every_job_of_a_plan_that_opens_a_model_says_what_memory_it_needs(tmp_path: Path):
    rows = {"grid__method": ["original", "uce", "kpop"], "analyses": ["closeness"], "attacks": ["concept-inversion"]}
    needed: dict[str, int] = {}
    for job in jobs_of(tiny_plan(tmp_path, **rows, memory=True)):
        needed[job.room] = max(needed.get(job.room, 0), job.memory)
    assert needed.pop("measure") == 0
    assert all(20_000_000 < taken < 2_000_000_000 for taken in needed.values()), needed
    assert needed["erase"] > needed["generate"], "an optimizer's state"
