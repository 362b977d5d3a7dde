"""A real cluster of two machines, which are two raylets here: numbers of serial, kills in the middle, two runs that share."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.executors.cluster import Cluster
from expunge.executors.connection import SILENT, connected
from expunge.executors.machines import MAKING
from expunge.executors.serial import Serial
from expunge.jobs import Job, MeasureJob, Workspace, in_order
from expunge.jobs.depots import CLAIMS, Depot, ObjectStore, SharedFolder
from plans_of import bench_words, read_rows, tiny_plan, without_times
from s3 import Server, serving
from small_jobs import Log, an_erasure, assert_alike, images, some_jobs

os.environ.update(SILENT)
pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
ONE_CORE = {"num_cpus": 1, "object_store_memory": 80_000_000}


def patiently(begin: Callable[[], Any]) -> Any:
    """What ``begin`` gives: Ray gives a machine 30 seconds to start, which is short where all cores are busy."""
    for _ in range(5):
        try:
            return begin()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return begin()


class Machines:
    """A cluster: a head, and a machine that may be killed, both of one core."""

    def __init__(self, temporary: Path) -> None:
        from ray.cluster_utils import Cluster as Raylets

        self.temporary = temporary
        head = {**ONE_CORE, "include_dashboard": False}
        self.raylets = patiently(lambda: Raylets(initialize_head=True, head_node_args=head))
        self.address = "127.0.0.1:" + self.raylets.address.rpartition(":")[2]
        self.second: Any = None
        self.complete()
        self.connection = contextlib.ExitStack()

    def complete(self) -> None:
        """Have both there, and begun again where a test has killed one."""
        if self.second is None:
            here = self.raylets.head_node.node_ip_address  # which Ray looks for on the network if it is not told
            self.second = patiently(lambda: self.raylets.add_node(**ONE_CORE, node_ip_address=here))
            self.raylets.wait_for_nodes()

    def cluster(self, depot: Depot, **changes: Any) -> Cluster:
        """One over ``depot``; the connection stays, and with it processes that have imported what jobs need."""
        import ray

        if not ray.is_initialized():
            self.connection.enter_context(connected(self.address, depot))
        return Cluster(ray=ray, depot=depot, **changes)

    def busy(self) -> dict[int, str]:
        """Processes that are in the middle of a job, each with the job's folder."""
        found = self.temporary.glob(f"expunge-*/{MAKING}*/.*.partial")
        return {int(path.parent.name.split("-")[1]): path.name for path in found}

    def on_second(self, pid: int) -> bool:
        """Whether a process is of the second machine."""
        import psutil

        raylet = self.second.all_processes["raylet"][0].process.pid
        return raylet in [parent.pid for parent in psutil.Process(pid).parents()]


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    """Before the machines, so that they know the way to it."""
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def both(s3: Server) -> Iterator[Machines]:
    temporary = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # names of sockets must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setenv("RAY_TMPDIR", str(temporary))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]))
        machines = Machines(temporary)
        yield machines
        machines.connection.close()
        machines.raylets.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def machines(both: Machines) -> Machines:
    both.complete()
    return both


@pytest.fixture
def alone(machines: Machines) -> Machines:
    """Machines that this process is not connected to."""
    machines.connection.close()
    return machines


def serially(jobs: list[Job], folder: Path) -> Workspace:
    at = Workspace(store=folder / "serial")
    Serial().run(jobs, at, Log())
    return at


def in_the_middle(machines: Machines, do: Callable[[int], bool]) -> threading.Thread:
    """A thread that looks for processes in the middle of a job until ``do`` has done what it wants with one."""

    def look() -> None:
        end = time.monotonic() + 200
        while time.monotonic() < end:
            found: dict[int, str] = {}
            with contextlib.suppress(OSError):  # a folder may be gone
                found = machines.busy()
            for pid in found:
                with contextlib.suppress(Exception):  # it may have ended
                    if do(pid):
                        return
            time.sleep(0.005)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread


def killed(pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def left(store: Path) -> list[str]:
    """What lies about in a folder beside whole jobs, and claims that nobody needs."""
    return [
        str(path.relative_to(store)) for path in (*store.glob(".*"), *store.glob(f"{CLAIMS}/*")) if path.name != CLAIMS
    ]


def test_results_are_those_of_serial_on_two_machines_at_a_time(machines: Machines, folder: Path, tmp_path: Path):
    jobs = some_jobs(folder)
    store, log, on = tmp_path / "store", Log(), set()
    at = Workspace(store=store)
    before = signal.getsignal(signal.SIGTERM)
    cluster = machines.cluster(SharedFolder(store))
    assert signal.getsignal(signal.SIGTERM) is before, "Ray has left no handler of its own"
    assert cluster.at_once == 2
    watching = in_the_middle(machines, lambda pid: on.add(machines.on_second(pid)) or len(on) == 2)
    cluster.run(jobs, at, log)
    watching.join(1)
    assert on == {True, False}, "both machines have worked"
    cluster.run(jobs, at, Log())  # what is done is found, and not done again
    assert log.most == 2
    assert left(store) == []
    assert_alike(jobs, serially(jobs, tmp_path), at)


def test_a_job_whose_process_is_killed_in_the_middle_is_given_out_again(
    machines: Machines, folder: Path, tmp_path: Path
):
    jobs, store = some_jobs(folder), tmp_path / "store"
    at = Workspace(store=store)
    cluster = machines.cluster(SharedFolder(store))
    killing = in_the_middle(machines, killed)
    with pytest.warns(ExpungeWarning, match=r"^job .* \(.*\) was lost \(WorkerCrashedError: .*\): begun again$"):
        cluster.run(jobs, at, Log())
    killing.join(1)
    assert not killing.is_alive()
    assert left(store) == []
    assert_alike(jobs, serially(jobs, tmp_path), at)


def test_a_job_that_is_lost_too_often_ends_the_run_in_a_line(machines: Machines, folder: Path, tmp_path: Path):
    job = images(folder, 1, count=20)
    cluster = machines.cluster(SharedFolder(tmp_path), retries=0)
    in_the_middle(machines, killed)
    with pytest.raises(
        ExpungeError, match=r"was lost 1 times, at last so \(WorkerCrashedError: .*\): expected machines"
    ):
        cluster.run([job], Workspace(store=tmp_path), Log())
    assert left(tmp_path) == [f"{CLAIMS}/{job.folder(Workspace(store=tmp_path)).name}.1"]
    cluster = machines.cluster(SharedFolder(tmp_path))
    cluster.run([job], Workspace(store=tmp_path), Log())  # at once: who had claimed it has said goodbye
    assert left(tmp_path) == []


def test_a_machine_that_is_killed_in_the_middle_loses_no_job(
    machines: Machines, s3: Server, folder: Path, tmp_path: Path
):
    """Over an object store, too: what the dead machine had fetched or made is on no other."""
    jobs = in_order([images(folder, seed, (an_erasure(folder),), count=80) for seed in (1, 2, 3, 4)])
    at = Workspace(store=tmp_path / "store")

    def kill(pid: int) -> bool:
        if not machines.on_second(pid):
            return False
        machines.raylets.remove_node(machines.second, allow_graceful=False)
        machines.second = None
        return True

    cluster = machines.cluster(ObjectStore(f"s3://{s3.bucket}/killed"))
    killing = in_the_middle(machines, kill)
    with pytest.warns(ExpungeWarning, match=r"was lost \((NodeDiedError|WorkerCrashedError): .*\): begun again$"):
        cluster.run(jobs, at, Log())
    killing.join(30)
    assert machines.second is None, "it was killed while it worked"
    assert_alike(jobs, serially(jobs, tmp_path), at)


@contextlib.contextmanager
def a_third(machines: Machines, **has: int) -> Iterator[int]:
    """A machine that comes, and goes afterwards; the process number of its raylet."""
    here = machines.raylets.head_node.node_ip_address
    node = patiently(lambda: machines.raylets.add_node(**ONE_CORE, node_ip_address=here, **has))
    try:
        machines.raylets.wait_for_nodes()
        yield node.all_processes["raylet"][0].process.pid
    finally:
        machines.raylets.remove_node(node)


def test_a_machine_that_comes_while_a_plan_runs_is_used(machines: Machines, folder: Path, tmp_path: Path):
    import psutil

    class EnoughError(Exception):
        """The third machine has worked, and a job has ended since."""

    at, worked = Workspace(store=tmp_path / "store"), threading.Event()
    third: list[int] = []
    ended: list[BaseException | None] = []

    class Watching(Log):
        def finished(self, job: Job, result):
            super().finished(job, result)
            if worked.is_set():
                raise EnoughError

    def works_there(pid: int) -> bool:
        if third and third[0] in [parent.pid for parent in psutil.Process(pid).parents()]:
            worked.set()
        return worked.is_set()

    def run() -> None:
        try:
            cluster.run(jobs, at, log)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    jobs = in_order([images(folder, seed, count=10) for seed in range(300)])
    cluster, log = machines.cluster(SharedFolder(at.store)), Watching()
    assert cluster.at_once == 2
    running = threading.Thread(target=run, daemon=True)
    running.start()
    with a_third(machines) as raylet:
        third.append(raylet)
        in_the_middle(machines, works_there)
        running.join(300)
    assert isinstance(ended[0], EnoughError), "or all 300 were done without it"
    assert log.most == 3
    done = [job for job in jobs if job.result(at) is not None]
    assert 0 < len(done) < len(jobs)
    assert_alike(done[-4:], serially(done[-4:], tmp_path), at)


def test_only_jobs_that_open_a_model_wait_for_a_gpu(machines: Machines, folder: Path, tmp_path: Path):
    """A machine may call a GPU its own that it has not: what opens no model never looks for one."""
    made = images(folder, 1)
    at = serially([made], tmp_path)
    shape = {"metric": "esr-psr", "version": 1, "settings": {"judge": "testbed"}, "images": made.key, "retain": []}
    measures = [MeasureJob(**shape, targets=["church"], judge=str(number)) for number in range(4)]
    asked: list[dict[str, Any]] = []

    class Noting:
        """Ray, which says what each job asks of it; nothing else is changed."""

        def __init__(self, ray: Any) -> None:
            self.ray = ray

        def __getattr__(self, name: str) -> Any:
            return getattr(self.ray, name)

        def remote(self, done: Any) -> Any:
            task = self.ray.remote(done)

            def options(**resources: Any) -> Any:
                asked.append(resources)
                return task.options(**resources)

            return SimpleNamespace(options=options)

    with a_third(machines, num_gpus=1):
        cluster, log = machines.cluster(SharedFolder(at.store), device="cuda"), Log()
        assert cluster.at_once == 3
        assert cluster.lacks() == ""
        cluster.ray = Noting(cluster.ray)
        cluster.run(measures, at, log)
        assert log.most == 3, "as many as there are cores"
        assert ["num_gpus" in resources for resources in asked] == [False] * len(measures)
        assert {job.result(at)["computed_with"]["device"] for job in measures} == {"cpu"}
        asked.clear()
        wrong = [images(folder, seed, model_sha256="0" * 64) for seed in range(3)]  # refused before a GPU is touched
        with pytest.raises((ExpungeError, RuntimeError)):
            cluster.run(wrong, at, log := Log())
        assert log.most == 1, "one GPU"
        assert [resources["num_gpus"] for resources in asked] == [1]


def test_two_runs_share_the_work_and_nothing_is_done_twice(
    machines: Machines, s3: Server, folder: Path, tmp_path: Path
):
    jobs = in_order([images(folder, seed, (an_erasure(folder),)) for seed in range(5)])
    depot = ObjectStore(f"s3://{s3.bucket}/shared")
    stores = [Workspace(store=tmp_path / name) for name in ("one", "other")]
    failed: list[BaseException] = []
    clusters = [machines.cluster(depot, count=1) for _ in stores]

    def run(cluster: Cluster, at: Workspace) -> None:
        try:
            cluster.run(jobs, at, Log())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(clusters, stores, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not failed
    made = [path for path in s3.put(".tar") if "/shared/" in path]
    assert len(made) == len(jobs) == len({path.rpartition("/")[0] for path in made}), made
    assert_alike(jobs, stores[0], stores[1])
    assert_alike(jobs, serially(jobs, tmp_path), stores[0])


def test_a_store_that_turns_away_in_the_middle_ends_the_run_in_a_line_and_it_goes_on(
    machines: Machines, s3: Server, folder: Path, tmp_path: Path
):
    jobs, at = some_jobs(folder), Workspace(store=tmp_path / "store")
    depot = ObjectStore(f"s3://{s3.bucket}/turned-away")

    def turn_away(pid: int) -> bool:
        s3.refuses = True
        return True

    turning = in_the_middle(machines, turn_away)
    try:
        with pytest.raises(
            ExpungeError, match=r"/turned-away' cannot be used \(.*\): expected a place that answers"
        ) as told:
            machines.cluster(depot).run(jobs, at, Log())
    finally:
        s3.refuses = False
    turning.join(1)
    assert "\n" not in str(told.value)
    machines.cluster(depot, lease=2.0).run(jobs, at, Log())
    assert_alike(jobs, serially(jobs, tmp_path), at)


def test_a_job_that_fails_tells_its_line_or_its_traceback(machines: Machines, folder: Path, tmp_path: Path):
    cluster = machines.cluster(SharedFolder(tmp_path))
    wrong = images(folder, 1, model_sha256="0" * 64)
    with pytest.raises(ExpungeError, match="has changed since the job was planned: expected the same files"):
        cluster.run([wrong], Workspace(store=tmp_path), Log())
    odd = images(folder, 1, prompts=[["one", "two", "three"]])
    with pytest.raises(RuntimeError, match=r"failed in a worker:\nTraceback(.|\n)*too many values to unpack"):
        cluster.run([odd], Workspace(store=tmp_path), Log())


def test_a_plan_by_its_command_has_the_records_of_serial(alone: Machines, s3: Server, tmp_path: Path, capsys):
    plan = tiny_plan(tmp_path)
    assert main(bench_words(plan, "--quiet")) == 0
    words = ["--ray", alone.address, "--shared", f"s3://{s3.bucket}/plan", "--workers", "2", "--json"]
    here = ["--store", str(tmp_path / "copy"), "--out", str(tmp_path / "out2")]
    capsys.readouterr()
    assert main(["bench", str(plan), *words, *here]) == 0
    assert "summary" in json.loads(capsys.readouterr().out), "nothing of Ray's is printed beside it"
    first, second = (without_times(read_rows(tmp_path / out / "records.jsonl")) for out in ("out", "out2"))
    assert first == second
    shutil.rmtree(tmp_path / "copy")
    before = len(s3.put(".tar"))
    assert main(["bench", str(plan), *words, *here, "--quiet"]) == 0
    assert len(s3.put(".tar")) == before, "a machine that begins with nothing finds all of it there"


DRIVER = """
import json, signal, sys
from pathlib import Path
from expunge.cli import main
from expunge.executors import connection
from expunge.jobs import GenerateJob, Workspace
from expunge.jobs.depots import SharedFolder

class Tell:
    def started(self, job):
        print("started", flush=True)
    def finished(self, job, result):
        print("finished", flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do its children
    job, store = GenerateJob.from_json(json.loads(sys.argv[1])), Path(sys.argv[2])
    with connection.connected("local", SharedFolder(store), count=1) as cluster:
        cluster.run([job], Workspace(store=store), Tell())
"""


def test_an_interrupted_run_ends_its_own_cluster_and_leaves_nothing_half_written(folder: Path, tmp_path: Path):
    """Ctrl-C as a terminal sends it, to all processes of the group."""
    import psutil

    (tmp_path / "driver.py").write_text(DRIVER)
    store, short = tmp_path / "store", Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    job = images(folder, 1, steps=400, count=2000)
    words = [sys.executable, str(tmp_path / "driver.py"), json.dumps(job.as_json()), str(store)]
    environment = {**os.environ, "TMPDIR": str(short), "RAY_TMPDIR": str(short), "PYTHONPATH": str(ROOT / "src")}
    try:
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as driver:
            assert driver.stdout is not None
            try:
                assert driver.stdout.readline() == "started\n", driver.communicate()
                end = time.monotonic() + 200
                while not list(short.glob(f"expunge-*/{MAKING}*/.*.partial")):
                    assert time.monotonic() < end, "no job begins"
                    time.sleep(0.05)
                below = psutil.Process(driver.pid).children(recursive=True)
                assert below
                os.killpg(driver.pid, signal.SIGINT)
                out, told = driver.communicate(timeout=120)
            finally:
                driver.kill()  # else leaving the block waits for a job of hours
        assert "KeyboardInterrupt" in told  # Ray's processes may say more after it
        assert "finished" not in out
        _, alive = psutil.wait_procs(below, timeout=60)
        assert not alive
        claim = f"{CLAIMS}/{job.folder(Workspace(store=store)).name}.1"
        assert left(store) == [claim], "of an owner that has said goodbye"
    finally:
        shutil.rmtree(short, ignore_errors=True)


# the way there ----------------------------------------------------------------------------------------------------------
def told(address: str, tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ExpungeError) as caught, connected(address, SharedFolder(tmp_path), **changes):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "127.0.0.1:", "127.0.0.1:99999", ":6379"])
def test_what_is_no_address_is_one_line(address: str, tmp_path: Path):
    assert "expected local, auto, or HOST:PORT" in told(address, tmp_path)


def test_an_address_that_answers_nothing_is_one_line_in_seconds(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    assert "nothing answers there (Connection refused): expected a cluster" in told(f"127.0.0.1:{port}", tmp_path)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        assert "nothing answers there (timed out)" in told(f"127.0.0.1:{deaf.getsockname()[1]}", tmp_path)
    assert time.monotonic() - start < 20


def test_another_server_is_told_from_ray(tmp_path: Path):
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    assert "what listens there is no head of Ray's" in told(f"127.0.0.1:{server.server_port}", tmp_path)
    server.shutdown()
    server.server_close()


def test_without_the_package_a_line_names_the_extra(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "expected expunge[ray]" in told("local", tmp_path)


def test_a_cluster_of_another_version_is_told_by_ray_in_one_line(alone: Machines, tmp_path: Path):
    """The cluster says so itself, in the place where Ray keeps it."""
    from ray._common.usage import usage_constants, usage_lib
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import GcsClient

    head = GcsClient(address=alone.raylets.address)
    true = usage_lib.get_cluster_metadata(head)

    def says(metadata: dict[str, Any]) -> None:
        content = json.dumps(metadata).encode()
        head.internal_kv_put(usage_constants.CLUSTER_METADATA_KEY, content, True, KV_NAMESPACE_CLUSTER)

    says({**true, "ray_version": "2.1.0"})
    try:
        line = told(alone.address, tmp_path)
    finally:
        says(true)
    assert "Version mismatch: The cluster was started with: Ray: 2.1.0" in line
    assert line.endswith("expected the same Ray and Python everywhere")


def test_a_cluster_without_gpus_is_refused_for_cuda(alone: Machines, tmp_path: Path):
    assert "the cluster has no GPUs: expected a machine with some" in told(alone.address, tmp_path, device="cuda")
    assert "--device cuda:1 with --ray: expected cpu, or cuda" in told(alone.address, tmp_path, device="cuda:1")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--shared", "s3://bucket"], "--shared s3://bucket without --ray: expected both"),
        (["--ray", "local", "--shared", "/mnt/store"], "expected a URL such as s3://bucket/path; a folder"),
        (["--ray", "local", "--workers", "0"], "--workers 0: expected 1 or more"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(words: list[str], line: str, tmp_path: Path, capsys):
    assert (
        main(
            [
                "bench",
                str(tiny_plan(tmp_path)),
                "--quiet",
                *words,
                "--store",
                str(tmp_path),
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1
