"""A machine's end of a cluster: one job, done in a folder of its own and put into the depot whole."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, final

from expunge import __version__
from expunge.core.errors import ExpungeError
from expunge.executors.answers import answer
from expunge.executors.workers import PRELOADED
from expunge.jobs import ROOMS, Workspace
from expunge.jobs.depots import Depot

MAKING = "making-"
"""What the folders begin with in which jobs are being made."""


@final
@dataclass(frozen=True, kw_only=True)
class Order:
    """All that a machine is told."""

    content: Mapping[str, Any]
    """The job's JSON."""
    name: str
    """Of its folder."""
    upstream: Sequence[str]
    """Names of the folders that it reads."""
    attempt: str
    """Tells this try from others."""
    depot: Depot
    device: str
    threads: int
    place: str = field(default_factory=os.getcwd)
    """The folder that the run was started in: names of files in jobs are relative to it."""
    version: str = __version__


def done(order: Order) -> dict[str, Any]:
    """Do a job; returns what the run needs to know of it."""
    return answer(_made, order)


def _made(order: Order) -> dict[str, Any]:
    """Fetch what the job stands on, make it, and put it into the depot.

    Raises:
        ExpungeError: as the job, or if another expunge is installed here.
    """
    if order.version != __version__:
        raise ExpungeError(f"a machine of the cluster has expunge {__version__}: expected {order.version}, as here")
    with contextlib.suppress(OSError):  # a machine need not have that folder
        os.chdir(order.place)
    import torch

    torch.set_num_threads(order.threads)
    import_module(PRELOADED)  # which is no part of the time that a job takes
    home = _home()
    at = Workspace(store=order.depot.reading(home), device=order.device)
    for name in order.upstream:
        order.depot.fetch(name, at.store)
    with _making(home) as folder:
        result = ROOMS[order.content["room"]].from_json(order.content).make(at, folder / order.name)
        order.depot.put(order.name, folder / order.name, order.attempt)
    return result


def _home() -> Path:
    """This machine's folder for what jobs make and fetch.

    Raises:
        ExpungeError: if it is somebody else's.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    home = Path(tempfile.gettempdir()) / f"expunge-{user}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or (hasattr(os, "getuid") and home.stat().st_uid != user):
        raise ExpungeError(f"'{home}' is somebody else's: expected a folder of yours")
    return home


@contextlib.contextmanager
def _making(home: Path) -> Iterator[Path]:
    """A folder to make a job in; those of processes that were killed are deleted."""
    for left in home.glob(f"{MAKING}*"):
        if not _runs(int(left.name.split("-")[1])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{MAKING}{os.getpid()}-", dir=home, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
