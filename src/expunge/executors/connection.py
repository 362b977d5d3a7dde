"""The way to a Ray cluster: checked before Ray is asked, since Ray itself waits two minutes for what is not there."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from expunge.core.errors import ExpungeError, reason
from expunge.executors.cluster import Cluster
from expunge.executors.machine import usable_cores
from expunge.jobs.depots import Depot

PATIENCE = 5.0
"""Seconds in which the head of a cluster has to answer."""
STARTS = 3
"""How often it is tried to begin one here: Ray gives itself 30 seconds, which is short where all cores are busy."""
SLOW = "timed out during startup"
"""What it says then."""
OBJECTS = 100_000_000
"""Bytes for Ray's own store of objects in a cluster that is begun here: files take another way."""
SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # it prints what its processes say, even to standard output
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # it warns of what it will do one day
}
"""Ray's own settings, where the user has none; they are read when it is imported."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 begins with (RFC 9113, section 3.4), and empty settings; a server of Ray answers with its own."""
SETTINGS = 4
"""The type of the frame that it answers with, its fourth byte."""


@contextlib.contextmanager
def connected(address: str, depot: Depot, *, count: int | None = None, device: str = "cpu") -> Iterator[Cluster]:
    """A cluster for as long as the block lasts.

    Args:
        address: ``local`` begins one on this machine, ``auto`` looks for one that this machine is in, ``HOST:PORT`` names the
            head of one that this machine is in.
        depot: where jobs are put.
        count: jobs at a time, at most.
        device: where models are put; ``cpu``, or ``cuda`` for a GPU for each job that opens a model.

    Raises:
        ExpungeError: if Ray is not installed, nothing answers there, it is of another version, or has nothing to run jobs on.
    """
    if device not in ("cpu", "cuda"):
        raise ExpungeError(f"--device {device} with --ray: expected cpu, or cuda, as Ray chooses the GPU of each job")
    _check(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    ray = _ray()
    local = {"num_cpus": count or usable_cores(), "object_store_memory": OBJECTS, "include_dashboard": False}
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    for left in reversed(range(STARTS if address == "local" else 1)):
        try:
            with _own_signals():
                ray.init(address=address, **quiet, **(local if address == "local" else {}))
            break
        except (Exception, SystemExit) as error:  # it raises what it likes, and ends itself where it waited too long
            ray.shutdown()
            if not left or SLOW not in str(error):
                raise ExpungeError(f"--ray {address}: {_told(error, address)}") from error
    try:
        cluster = Cluster(ray=ray, depot=depot, count=count, device=device)
        lacks = cluster.lacks()
        if lacks:
            raise ExpungeError(f"--ray {address}: the cluster has no {lacks}: expected a machine with some")
        yield cluster
    finally:
        ray.shutdown()


def _ray() -> Any:
    """The package.

    Raises:
        ExpungeError: if it is not installed.
    """
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ExpungeError("--ray needs a package that is not installed: expected expunge[ray]") from error
    return ray


def _check(address: str) -> None:
    """Ask whether a server of the right kind listens.

    Raises:
        ExpungeError: if it does not.
    """
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ExpungeError(f"--ray {address}: expected local, auto, or HOST:PORT of a cluster's head")
    answer = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as head:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return  # it waits for a handshake first
            head.sendall(PREFACE)
            while len(answer) < 9 and (more := head.recv(9 - len(answer))):
                answer += more
        why = "" if len(answer) == 9 and answer[3] == SETTINGS else "what listens there is no head of Ray's"
    except OSError as error:
        why = f"nothing answers there ({error.strerror or error})"
    if why:
        raise ExpungeError(f"--ray {address}: {why}: expected a cluster that was begun with `ray start --head`")


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals, which Ray puts its own in place of."""
    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if ours else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(error: BaseException, address: str) -> str:
    """Why Ray does not connect, in one line."""
    if isinstance(error, SystemExit):
        return "no cluster answered: expected one that was begun with `ray start --head`"
    text = " ".join(str(error).split())
    if text.startswith("Version mismatch"):
        return f"{text}: expected the same Ray and Python everywhere"
    if address == "local":
        return f"{reason(error)}: expected Ray to start here"
    return f"{reason(error)}: expected this machine to be in the cluster (`ray start --address HOST:PORT`)"
