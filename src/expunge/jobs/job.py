"""The contract of a job, and the order in which jobs can be run."""

import dataclasses
import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from expunge.core.cost import Cost
from expunge.jobs import kept
from expunge.jobs.kept import BESIDE, RESULT
from expunge.jobs.workspace import Workspace, computed_with
from expunge.store import FORMAT, RESUME, awaited, new_folder, write_json

AnyJob = TypeVar("AnyJob", bound="Job")

UNSAID: Mapping[str, bool] = {"unsaid": True}
"""Metadata of a field that a job's JSON leaves out where it has its default, so that keys of stored jobs stay."""
APART: Mapping[str, bool] = {"apart": True}
"""Metadata of a field that is no part of a job's JSON: it says how to plan the job, not what it gives."""


def written_as(name: str) -> Mapping[str, str]:
    """Metadata of a field that JSON calls ``name``."""
    return {"json": name}


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """One piece of work, whose fields are its JSON: the room, all that the room needs, and keys of the jobs it reads.

    Subclasses are frozen keyword-only dataclasses. Any executor can run one with nothing else than a `Workspace`.
    """

    room: ClassVar[str]
    """What its folder in the store begins with."""
    goes_on: ClassVar[bool] = False
    """Whether it goes on with what a killed run of it has left in its unfinished folder."""
    opens_model: ClassVar[bool] = False
    """Whether it opens a model, on the device of its workspace."""

    upstream: tuple["Job", ...] = field(default=(), repr=False, compare=False, metadata=APART)
    """Jobs whose files it reads."""
    cost: Cost = field(default_factory=Cost, repr=False, compare=False, metadata=APART)
    """Evaluations of the denoiser that it should take."""
    memory: int = field(default=0, repr=False, compare=False, metadata=APART)
    """Bytes that it may take beside what any process takes; an estimate, from the size of the model."""

    @abstractmethod
    def run(self, at: Workspace, out: Path) -> dict[str, Any]:
        """Work, and write files into the folder ``out``; returns what its result says.

        The result's ``cost`` is what it took; that of a measurement has ``records`` and the ``values`` behind each.

        Raises:
            ExpungeError: for a missing upstream result, or bad settings.
        """

    @abstractmethod
    def describe(self) -> str:
        """The job in a few words, beside the name of its room."""

    def as_json(self) -> dict[str, Any]:
        """The job as JSON has it."""
        content: dict[str, Any] = {"room": self.room}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not f.metadata.get("apart") and not (f.metadata.get("unsaid") and value == f.default):
                content[f.metadata.get("json", f.name)] = value
        return json.loads(json.dumps(content))

    @classmethod
    def from_json(cls: type[AnyJob], content: Mapping[str, Any]) -> AnyJob:
        """The job that `as_json` wrote, without what it stands on."""
        names = {f.metadata.get("json", f.name): f.name for f in dataclasses.fields(cls)}
        return cls(**{names[name]: value for name, value in content.items() if name != "room"})

    def standing_on(self: AnyJob, *upstream: "Job") -> AnyJob:
        """The same job, planned on top of others."""
        return dataclasses.replace(self, upstream=upstream)

    @cached_property
    def key(self) -> str:
        """Its content key, 64 hexadecimal digits; what the model is called, or where a file lies, does not count."""
        return key_of(self.as_json())

    def folder(self, at: Workspace) -> Path:
        """Where its files are, or will be."""
        return at.folder(self.key, self.room)

    def result(self, at: Workspace) -> dict[str, Any] | None:
        """Its result if it is done, or None; a damaged one does not count."""
        return kept.whole(self.folder(at))

    def damage(self, at: Workspace) -> str:
        """What is wrong with the result that is there; nothing if it is whole, or there is none."""
        return kept.damage(self.folder(at))

    def finish(self, at: Workspace) -> dict[str, Any]:
        """Run it, if it is not done already, when all that it stands on is done; returns its result.

        A job that is killed leaves nothing that counts: its folder appears, whole, when it is finished. One that was damaged
        since is made again.

        Raises:
            ExpungeError: for a missing upstream result, or bad settings.
        """
        result = self.result(at)
        if result is not None:
            return result
        folder = self.folder(at)
        with awaited(folder):
            result = self.result(at)  # by another process, while this one waited
            if result is not None:
                return result
            kept.remove(folder)
            return self.make(at, folder)

    def make(self, at: Workspace, folder: Path) -> dict[str, Any]:
        """Run it into the new ``folder``, whether or not it is done elsewhere; returns its result.

        Raises:
            ExpungeError: as `finish`.
        """
        start = time.perf_counter()
        with new_folder(folder, marker=RESULT, resume=self.goes_on) as out:
            if self.goes_on:
                write_json(out / RESUME, {"format": FORMAT, "job": self.as_json()}, overwrite=True)
            gave = self.run(at, out)
            seconds = round(time.perf_counter() - start, 3)
            said = {"format": FORMAT, "job": self.as_json(), "seconds": seconds, **gave}
            result = {
                **said,
                "computed_with": computed_with(at.device if self.opens_model else "cpu"),
                BESIDE: kept.beside(out),
            }
            write_json(out / RESULT, result, overwrite=self.goes_on)  # a kill may have left one that was not taken
        return result


def seconds_of(result: Mapping[str, Any]) -> float:
    """Seconds behind a result's ``cost``: the job's own, and those of the images that its cost counts and another job made."""
    return result["seconds"] + result.get("seconds_of_images", 0.0)


def key_of(content: Mapping[str, Any]) -> str:
    """The content key of a job's JSON."""
    counted = {name: value for name, value in content.items() if name not in ("model", "file")}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def in_order(wanted: Iterable[Job], done: Callable[[Job], bool] = lambda _: False) -> list[Job]:
    """Jobs in an order that can be run, each once: what a job stands on comes before it.

    Jobs that are ``done`` are left out, and so is what nothing else stands on.
    """
    order: dict[str, Job] = {}

    def visit(job: Job) -> None:
        if job.key in order or done(job):
            return
        for upstream in job.upstream:
            visit(upstream)
        order[job.key] = job

    for job in wanted:
        visit(job)
    return list(order.values())
