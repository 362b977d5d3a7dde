"""Depots: stores of finished jobs that every machine of a cluster reaches, a folder that all mount or an object store.

Machines make a job's files in a folder of their own, and put them into the depot whole: the creation of one name decides, so a
job that was made twice is there once.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, final, runtime_checkable

from expunge.core.errors import DamagedError, ExpungeError
from expunge.jobs import kept
from expunge.jobs.job import Job, in_order
from expunge.jobs.kept import RESULT
from expunge.jobs.workspace import Workspace
from expunge.store import FORMAT, awaited, claimed, new_folder, parsed
from expunge.store.leases import SECONDS, Leases
from expunge.store.places import Place, place

CLAIMS = ".claims"
"""The folder of claims in a depot."""
DONE = "done.json"
"""The object that says which archive is a job's: what is created once."""
TRANSFERS = 8
"""Objects on their way at a time."""


@runtime_checkable
class Depot(Protocol):
    """A store of finished jobs; ``name`` is the name of a job's folder, ``attempt`` tells one try to make it from others."""

    def leases(self, seconds: float = SECONDS) -> Leases:
        """Claims on its jobs."""
        ...

    def guarded(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """Keep runs of this machine from a job, too, that know of no leases; gives whether it is ours."""
        ...

    def reading(self, own: Path) -> Path:
        """The folder in which jobs find those that they stand on; within ``own`` if it is a copy."""
        ...

    def has(self, name: str) -> bool:
        """Whether a job is done."""
        ...

    def fetch(self, name: str, store: Path) -> None:
        """Have a finished job's folder in ``store``.

        Raises:
            ExpungeError: if it is not there, or damaged.
        """

    def put(self, name: str, folder: Path, attempt: str) -> None:
        """Put a finished job's ``folder`` there, whole, unless another has.

        Raises:
            ExpungeError: if it cannot be written.
        """

    def discard(self, name: str, attempt: str) -> None:
        """Delete what a try that was killed has left."""

    def clear(self, name: str) -> None:
        """Delete what there is of a job that is not done, or damaged."""


@final
@dataclass(frozen=True)
class SharedFolder(Depot):
    """A folder that all machines mount under the same name; it is laid out as any store."""

    path: Path

    def leases(self, seconds: float = SECONDS) -> Leases:
        """Claims on its jobs."""
        claims = self.path / CLAIMS
        try:
            claims.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExpungeError(f"'{claims}' cannot be written: {error.strerror or error}") from error
        return Leases(place(str(claims)), seconds)

    def guarded(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """Hold the lock that `Job.finish` waits for."""
        return claimed(self.path / name, wait=False)

    def reading(self, own: Path) -> Path:
        """The folder itself."""
        return self.path

    def has(self, name: str) -> bool:
        """Whether its folder is there, and whole."""
        return kept.whole(self.path / name) is not None

    def fetch(self, name: str, store: Path) -> None:
        """Nothing is to be done: it is read where it is."""

    def put(self, name: str, folder: Path, attempt: str) -> None:
        """Copy it under another name, which is changed to its own once it is whole."""
        temporary = self._partial(name, attempt)
        try:
            shutil.copytree(folder, temporary)
            temporary.rename(self.path / name)  # refused where there is a folder with something in it
        except OSError as error:
            self.discard(name, attempt)
            if not self.has(name):
                raise ExpungeError(f"'{self.path / name}' cannot be written: {error.strerror or error}") from error
        for left in self.path.glob(f"{self._partial(name, '')}*".rpartition(os.sep)[2]):
            shutil.rmtree(left, ignore_errors=True)  # of tries that came too late, or were killed

    def discard(self, name: str, attempt: str) -> None:
        """Delete the copy that is not whole."""
        shutil.rmtree(self._partial(name, attempt), ignore_errors=True)

    def clear(self, name: str) -> None:
        """Delete its folder."""
        kept.remove(self.path / name)

    def _partial(self, name: str, attempt: str) -> Path:
        return self.path / f".{name}.partial-{attempt}"


class _Archive(NamedTuple):
    """What says that a job is done."""

    name: str
    sha256: str
    bytes: int


@final
@dataclass(frozen=True)
class ObjectStore(Depot):
    """A place that fsspec names, such as ``s3://bucket/path``: each job an archive, and an object that says it is the one."""

    url: str

    def leases(self, seconds: float = SECONDS) -> Leases:
        """Claims on its jobs."""
        return Leases(place(self.url).below(CLAIMS), seconds)

    def check(self) -> None:
        """Try it.

        Raises:
            ExpungeError: if it cannot be used, or cannot decide between two that put the same.
        """
        place(self.url).below(CLAIMS).check_creates_once()

    def guarded(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """It has no locks."""
        return contextlib.nullcontext(True)

    def reading(self, own: Path) -> Path:
        """A folder for what was fetched from this place."""
        return own / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def has(self, name: str) -> bool:
        """Whether an archive was said to be the one."""
        return self._archive(name) is not None

    def fetch(self, name: str, store: Path) -> None:
        """Copy and unpack it, unless it is here."""
        folder = store / name
        if kept.whole(folder) is not None:
            return
        archive = self._archive(name)
        if archive is None:
            raise ExpungeError(f"'{self.url}/{name}' has no result: expected its job to be done first")
        with awaited(folder):
            if kept.whole(folder) is not None:
                return
            kept.remove(folder)
            with new_folder(folder, marker=RESULT) as out, _temporary() as copy:
                self._copied(name, archive, copy)
                with tarfile.open(copy) as tar:
                    tar.extractall(out, filter="data")
                if not (out / RESULT).is_file():
                    raise self._damaged(name, "it has no result")

    def put(self, name: str, folder: Path, attempt: str) -> None:
        """Pack it, copy it there under a name of its own, and say that it is the one, if nobody has."""
        there = self._of(name)
        with _temporary() as packed:
            with tarfile.open(packed, "w") as tar:
                for file in sorted(folder.iterdir()):
                    tar.add(file, arcname=file.name)
            archive = _Archive(f"{attempt}.tar", _sha256(packed), packed.stat().st_size)
            there.put(archive.name, packed)
            said = json.dumps({"format": FORMAT, **archive._asdict()}, sort_keys=True).encode()
            ours = there.create(DONE, said)
        if not ours:
            self.discard(name, attempt)
            return
        if not there.has(archive.name):
            # given up meanwhile, by one who did not see that it was done
            there.delete(DONE)
            return
        for left in there.names():
            if left.endswith(".tar") and left != archive.name:
                there.delete(left)  # of tries that came too late, or were killed

    def discard(self, name: str, attempt: str) -> None:
        """Delete its archive, unless that is the one which the result is in: its answer was lost, not the job."""
        there = self._of(name)
        said = there.read(DONE)
        if said is not None and f'"{attempt}.tar"'.encode() in said:
            return
        there.delete(f"{attempt}.tar")

    def clear(self, name: str) -> None:
        """What is damaged here is told where it is fetched."""

    def _of(self, name: str) -> Place:
        """The folder of a job."""
        return place(self.url).below(name)

    def _archive(self, name: str) -> _Archive | None:
        said = self._of(name).read(DONE)
        if said is None:
            return None
        try:
            content = parsed(said.decode())
            return _Archive(*(content[field] for field in _Archive._fields))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(name, f"{DONE} holds something else") from error

    def _copied(self, name: str, archive: _Archive, to: Path) -> None:
        if not self._of(name).get(archive.name, to):
            raise self._damaged(name, f"{archive.name} is not there")
        if _sha256(to) != archive.sha256:
            raise self._damaged(name, f"{archive.name} holds other bytes than were put there")

    def _damaged(self, name: str, why: str) -> DamagedError:
        return DamagedError(f"'{self.url}/{name}' is damaged, as {why}: expected it whole, or deleted to be made again")


def levelled(jobs: Sequence[Job], at: Workspace, depot: ObjectStore) -> None:
    """Bring a store of this machine and a depot in line: what one of them has of ``jobs``, both have.

    Raises:
        ExpungeError: if something is damaged, or cannot be written.
    """

    def level(job: Job) -> None:
        folder = job.folder(at)
        if job.result(at) is None:
            if depot.has(folder.name):
                depot.fetch(folder.name, at.store)
        elif not depot.has(folder.name):
            depot.put(folder.name, folder, secrets.token_hex(8))

    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(level, in_order(jobs)))


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    """A path for a file that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="expunge-") as folder:
        yield Path(folder) / "archive.tar"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
