"""`expunge bench` as a process of its own, which neither the page nor its server takes along when it goes.

One run at a time: a lock file says which, and the process inherits the open lock. The system gives it up when the process
ends, however that happens, so that nobody mistakes another process of the same number for it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

from expunge.core.errors import ExpungeError
from expunge.results.files import PROGRESS
from expunge.web.served import OURS, WRITTEN, Served

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

TOKEN = "EXPUNGE_TOKEN"
"""Where a server may find its token, which is none of a run's business."""
LOCK = ".running"
LOG = "log.txt"
"""What the process says on standard error: its warnings, and the line of an error."""
NOWHERE = "http://127.0.0.1:9"
"""A proxy that nobody is: what a run asks of the network while it may not."""
PATIENCE = 20.0
"""Seconds that a run has to put its things away before it is killed."""


@final
@dataclass(frozen=True, kw_only=True)
class Runner:
    """Starts and ends runs of a served folder."""

    served: Served
    device: str = "cpu"
    workers: int | None = None
    online: bool = False
    """Whether runs may fetch what they lack, such as the weights of a judge."""

    def check(self) -> None:
        """Refuse a system without file locks.

        Raises:
            ExpungeError: on such a one.
        """
        if fcntl is None:
            raise ExpungeError("this system has no file locks, by which runs are told: expected Linux or macOS")

    def running(self) -> str | None:
        """The run that is going on; None if there is none."""
        told = self._told()
        return None if told is None else str(told.get("run", ""))

    def unbegun(self, name: str) -> bool:
        """Whether a run was started, and ended before its first job: its plan was refused, or it was cancelled at once."""
        folder = self.served.run(name)
        return begun(folder) and self.running() != name and not (folder / PROGRESS).is_file()

    def start(self, name: str) -> None:
        """Begin a run, or go on with it.

        Raises:
            ExpungeError: if one is going on already.
        """
        folder = self.served.run(name)
        with self._lock() as lock:
            if not _waited(lambda: _taken(lock, exclusive=True), 1.0):  # a page that looks has it for a moment
                raise ExpungeError(
                    f"'{self.running() or 'another run'}' is going on: expected it to end, or to be cancelled"
                )
            _tell(lock, {"run": name, "pid": None})
            (folder / PROGRESS).unlink(missing_ok=True)
            with (folder / LOG).open("wb") as log:
                process = subprocess.Popen(
                    self._command(name),
                    cwd=self.served.root,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock.fileno()],
                )
            _tell(lock, {"run": name, "pid": process.pid})

    def cancel(self, name: str) -> None:
        """End a run; what is finished of it is kept.

        Raises:
            ExpungeError: if it is not going on.
        """
        told = self._told()
        if told is None or told.get("run") != name:
            raise ExpungeError(f"'{name}' is not going on: expected a run that is")
        if not isinstance(told.get("pid"), int):
            raise ExpungeError(f"'{name}' is just beginning: expected a second try")
        for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(told["pid"], number)
            if _waited(lambda: self.running() != name, patience):
                return
        raise ExpungeError(f"process {told['pid']} of '{name}' does not end: expected it to be killed by hand")

    def _command(self, name: str) -> list[str]:
        """What is run; ``-P``, so that no file of the served folder is taken for a module."""
        run = [sys.executable, "-P", "-m", "expunge", "bench", f"{name}/{WRITTEN}", "--store", str(self.served.store)]
        more = ["--out", name, "--device", self.device, "--watched", "--changed", "--quiet"]
        return [*run, *more, *([] if self.workers is None else ["--workers", str(self.workers)])]

    def _environment(self) -> dict[str, str]:
        ours = {key: value for key, value in os.environ.items() if key != TOKEN}
        if "PYTHONPATH" in ours:  # from where the server was begun; a run begins in the served folder
            ours["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, ours["PYTHONPATH"].split(os.pathsep)))
        if self.online:
            return ours
        direct = {key: value for key, value in ours.items() if key.lower() != "no_proxy"}
        proxies = {f"{kind}_proxy": NOWHERE for kind in ("http", "https", "ftp", "all")}
        upper = {key.upper(): value for key, value in proxies.items()}
        return {**direct, **proxies, **upper, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

    # the lock ---------------------------------------------------------------------------------------------------------
    def _lock(self) -> IO[str]:
        self.check()
        file = self.served.root / OURS / LOCK
        try:
            file.parent.mkdir(exist_ok=True)
            return os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
        except OSError as error:
            raise ExpungeError(f"'{file}' cannot be opened: {error.strerror}") from error

    def _told(self) -> dict[str, Any] | None:
        """What the lock file says of the process that has it; None if none has."""
        with self._lock() as lock:
            if _taken(lock, exclusive=False):
                return None
            try:
                told = json.loads(lock.read())
                return told if isinstance(told, dict) else {}
            except ValueError:  # it is being written
                return {}


def _taken(lock: IO[str], exclusive: bool) -> bool:
    """Whether the lock is ours now; those who only look take it together."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _tell(lock: IO[str], content: dict[str, Any]) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(json.dumps(content))
    lock.flush()


def _waited(over: Callable[[], bool], seconds: float) -> bool:
    """Whether something is over within so many seconds."""
    until = time.monotonic() + seconds
    while not over():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def begun(folder: Path) -> bool:
    """Whether a run was ever begun."""
    return (folder / LOG).is_file()


def last_words(folder: Path) -> str:
    """The last line that a run's process said: what `expunge` says for people or, if it broke, what Python says."""
    try:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [
        line.removeprefix("expunge: ") for line in lines if line.strip() and not line.startswith("expunge: warning: ")
    ]
    return said[-1][:500] if said else ""
