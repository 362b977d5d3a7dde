"""An eraser: a frozen dataclass of settings that knows how to make an edit."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept, same_words
from expunge.core.cost import Cost
from expunge.core.digest import sha256
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Key
from expunge.core.knowledge import Kind, Knowledge, of_settings
from expunge.core.query import Shot


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """What an eraser is asked to do."""

    targets: Sequence[Concept]
    retain: Sequence[str] = ()
    """Words of concepts that should stay."""
    images: Mapping[str, Sequence[Shot]] = field(default_factory=dict)
    """Images of the model's size, for each role that the eraser named in `Eraser.needs`."""
    seed: int = 0
    salt: str = field(default="", repr=False)
    """A secret that a method with a key mixes into whatever it draws, so that the seed alone does not give the key away."""

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Random numbers for one purpose, on the CPU: the same for the same seed, salt and purpose."""
        return torch.Generator().manual_seed(self.number(*purpose))

    def number(self, *purpose: str | int) -> int:
        """A number below 2^63 for one purpose, for what takes a seed."""
        words = json.dumps([self.seed, self.salt, *purpose]).encode()
        return int.from_bytes(hashlib.sha256(words).digest()[:8], "big") >> 1


@final
@dataclass(frozen=True, kw_only=True)
class Step:
    """One update of an eraser's loop; a closed form yields one.

    What is costly to put together is a function, to be called before the next step is asked for.
    """

    index: int
    edit: Callable[[], Edit]
    """The edit so far."""
    losses: Mapping[str, float] = field(default_factory=dict)
    state: Callable[[], Mapping[str, Tensor]] = dict
    """What resuming after this step needs, bit for bit."""
    key: Callable[[Edit], Edit] | None = None
    """The private key to an edit just made, where the method has one."""
    warnings: Callable[[], Sequence[str]] = list
    """What the user should know, each in one line."""


class Redrawn(NamedTuple):
    """An image that an eraser wants made from another one, image to image."""

    prompt: str
    of: str
    """Role of the images it is made from: that with its own number."""
    strength: float
    negative: str = ""
    """What it is guided away from."""


class Marked(NamedTuple):
    """An image that an eraser wants with marks on it, which no model makes: the caller takes the user's own."""

    prompt: str
    marks: Literal["boxes", "mask"]
    """Where the concept is: boxes around it, or a mask of its pixels."""
    on: Literal["every", "some", "any"] = "every"
    """Which images must have marks: every one, some of them, or none need to; those without have nothing in them."""


Wish = str | Redrawn | Marked
"""One wanted image: by its prompt, made from another image, or with marks that say where something is."""


class Eraser(ABC):
    """A method. Subclasses are frozen keyword-only dataclasses; their fields are its settings, with the paper's defaults.

    A subclass is final and alone in its module, whose name is the method's name.
    """

    paper: ClassVar[Paper]
    knows: ClassVar[Mapping[str, Kind]]
    """Settings that tell the method something beside its targets' names, and what; empty if none does."""
    tuning: ClassVar[Sequence[str]]
    """The other settings, which only say how it works; those that are in `TUNING` need not be named."""
    version: ClassVar[int] = 1
    """Raised when the same settings begin to give another edit, so that stored results are not taken for its."""
    has_key: ClassVar[bool] = False
    """Whether the method makes a private key beside the edit."""
    scales: ClassVar[bool] = True
    """Whether its edit has weights, which can be attached more or less strongly."""
    needs_pair: ClassVar[bool] = False
    """Whether its edit does nothing where no pair of predictions is made: without guidance, and on a distilled model."""
    ignores_retain: ClassVar[bool] = False
    """Whether words to keep change nothing in its edit, whatever its settings."""
    requires: ClassVar[Sequence[str]] = ()
    """Capabilities that a model must have; see `Backbone.supports`."""
    files: ClassVar[Sequence[str]] = ()
    """Settings that name a file (or none, if empty) whose content its edit depends on; see `files_of`."""

    @property
    def shares_key(self) -> bool:
        """Whether all concepts share one part of the key, so that exchanging their parts would show nothing."""
        return False

    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[Wish]]:
        """Images it wants, by role (the target that they are for, or what they show): a wish for each.

        The caller makes them, as the model makes images, or takes the user's own.
        """
        return {}

    def keeps(self, targets: Sequence[Concept], retain: Sequence[str]) -> Mapping[str, Sequence[Wish]]:
        """Images it wants of what should stay, by role, as in `needs`."""
        return {}

    @final
    def wants(self, targets: Sequence[Concept], retain: Sequence[str]) -> Mapping[str, Sequence[Wish]]:
        """All images it wants: those that it `needs` for its targets, and those of what it `keeps`.

        Raises:
            ExpungeError: for a target that is called as a role of what is kept.
        """
        needs, keeps = self.needs(targets), self.keeps(targets, retain)
        for role in needs.keys() & keeps.keys():
            raise ExpungeError(
                f"a target '{role}', which is what its images of other things are called: expected other words"
            )
        return {**needs, **keeps}

    def knowledge(self) -> Knowledge:
        """What its settings told it: that of `knows`, unless other settings make it deaf to some of that."""
        return of_settings(self)

    @property
    def heeds_retain(self) -> bool:
        """Whether words to keep change its edit, at its settings."""
        return not self.ignores_retain

    @property
    def unaimed(self) -> str:
        """Why it would not heed anchors that targets name, to end a sentence on it; empty if it does."""
        return "" if "anchor" in self.knows.values() else "which aims at none"

    def derived(self) -> Mapping[str, float]:
        """Numbers that follow from the settings, and that an auditor should not have to work out; the provenance has them."""
        return {}

    def check_targets(self, targets: Sequence[Concept]) -> None:
        """Refuse targets that the settings contradict, before anything is made: one that should become itself.

        Raises:
            ExpungeError: naming the target.
        """
        for target in targets:
            anchor = self.knowledge().anchor if target.anchor is None else target.anchor
            if anchor and same_words(anchor, target.name):
                raise ExpungeError(
                    f"'{target.name}' should become '{anchor}', which is itself: expected another anchor"
                )

    def check(self, backbone: Backbone) -> None:
        """Refuse a model that lacks what the settings name, before anything is made.

        Raises:
            ExpungeError: naming the setting.
        """
        return

    def stronger(self, times: float) -> "Eraser | None":
        """The same method at ``times`` its strength (below 1: weaker); None if there is no such setting, or no more of it."""
        return None

    @abstractmethod
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        """Work on ``task``, yielding after every update; the backbone is left as it was found.

        ``resume`` is an earlier step's ``state()``: work goes on after that step, as if it had not been interrupted.
        """

    def cost(self, targets: int, retain: int) -> Cost:
        """What ``steps`` will cost for so many targets and retained words, in expectation; nothing for a closed form."""
        return Cost()

    def fresh_key(self, backbone: Backbone, task: Task, edits: Sequence[Edit]) -> Key:
        """A key to the model with ``edits``, whoever made them, learned without the private one.

        The backbone as it stands is the original, whose answers the key learns to bring back; it is left as it was.

        Raises:
            ExpungeError: for a method that makes no key.
        """
        raise ExpungeError(
            f"{type(self).__name__} makes no key that could be learned anew: expected a method with keys"
        )

    def fresh_cost(self, targets: int) -> Cost:
        """What `fresh_key` will cost for so many targets."""
        return Cost()


def counted(count: int, times: float) -> int:
    """``count`` updates at ``times`` the strength: one at least."""
    return max(1, round(count * times))


LATER: Mapping[str, bool] = {"later": True}
"""Metadata of a setting that came when results without it had been stored: `settings_of` leaves its default out."""


def files_of(plug_in: Any) -> dict[str, str]:
    """The sha256 of each file that the settings of an eraser or an attack name, by setting: what its path does not tell.

    Raises:
        ExpungeError: if one cannot be read.
    """
    named = {name: Path(getattr(plug_in, name)) for name in type(plug_in).files if getattr(plug_in, name)}
    try:
        return {name: sha256(path) for name, path in named.items()}
    except OSError as error:
        raise ExpungeError(
            f"'{error.filename}' cannot be read: expected a file, since a setting names it ({error.strerror})"
        ) from error


def settings_of(plug_in: Any) -> dict[str, Any]:
    """The fields of an eraser or a metric as JSON, but for the defaults of those that are `LATER`."""
    unsaid = {f.name for f in fields(plug_in) if f.metadata.get("later") and getattr(plug_in, f.name) == f.default}
    return json.loads(json.dumps({name: value for name, value in asdict(plug_in).items() if name not in unsaid}))
