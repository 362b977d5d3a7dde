"""A metric: one call over stored images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, final

from expunge.core.catalog import Paper
from expunge.core.errors import ExpungeError
from expunge.core.query import Shot
from expunge.core.record import Interval, Runs, hull, in_percent, mean_of, share_of, spread, wilson


@final
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number, its interval and the values behind it."""

    metric: str
    interval: Interval
    unit: str
    n: int
    n_seeds: int
    per_image: Sequence[float]
    """Empty for a number that exists only for the images together."""
    labels: Sequence[str]
    """The concept that each of the values is of."""
    prompts: Sequence[str] = ()
    """The prompt that each is of, where all are of one concept: then prompts are the clusters of its interval."""
    instrument: Mapping[str, Any] = field(default_factory=dict)
    """What a record should say of what it was measured with, beside the settings: weights, release, preprocessing."""


class Metric(ABC):
    """Measures stored images. Subclasses are frozen keyword-only dataclasses of settings."""

    paper: ClassVar[Paper]
    higher_is_better: ClassVar[bool]
    paired: ClassVar[bool] = False
    """Whether images are compared with the original model's, of the same prompts."""
    against: ClassVar[Literal["original", "reference"]] = "original"
    """Whose images a ``paired`` metric compares with: the original model's, or those of a reference that a plan names."""
    any_reference: ClassVar[bool] = False
    """Whether a ``paired`` metric takes other images too, such as a folder of photographs without prompts."""
    about: ClassVar[Literal["targets", "kept", "either"]] = "either"
    """Which images it cannot do without; plans leave it out where there are none."""
    asks_kept: ClassVar[bool] = True
    """Whether its judge, if it has one, must know retained concepts too."""
    any_label: ClassVar[bool] = False
    """Whether all images count, whatever they are labelled with: it looks for what no prompt asks for."""
    version: ClassVar[int] = 1
    """Raised when the same images begin to give other numbers."""

    # What its numbers mean to a reader. These are literals, which `Catalog.literals` reads without importing the metric; a
    # number is named by what its name is before an ``@``.
    meanings: ClassVar[Mapping[str, str]] = {}
    """In words."""
    margins: ClassVar[Mapping[str, float]] = {}
    """Points within which two methods are of equal quality, for numbers of which that is agreed (design.md section 5)."""
    shares: ClassVar[Sequence[str]] = ()
    """Numbers that are shares in percent, which a report draws as bars from 0 to 100."""
    headline: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Numbers that a table shows of other groups than the plan's own set, of which it shows all: by the kind of group (see
    `Group`), or ``any`` for all but keys and splits. Names are whole, with their ``@``, and ``*`` stands for anything."""

    def identity(self) -> str:
        """What tells its weights from others under the same name; empty if they never change."""
        return ""

    def check(self, prompts: Sequence[tuple[str, str | None]]) -> None:
        """Refuse prompts (each with its label) whose images it could not measure, before these are made.

        Raises:
            ExpungeError: naming the first.
        """

    @abstractmethod
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        """Measure images whose labels are among ``targets`` or ``retain``; ``reference`` is for a metric that is ``paired``.

        Raises:
            ExpungeError: if the judge does not know a concept, or there is no image to measure.
        """


# which images ---------------------------------------------------------------------------------------------------------
class Groups(NamedTuple):
    """Images by what should have happened to them."""

    erased: list[Shot]
    """Of targets."""
    kept: list[Shot]
    """Of retained concepts, and of prompts that ask for nothing in particular."""

    def named(self, metric: str) -> dict[str, list[Shot]]:
        """The groups that have images, by the names of their numbers: ``metric_erased`` and ``metric_kept``."""
        return {f"{metric}_{group}": shots for group, shots in self._asdict().items() if shots}


def grouped(shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], where: str = "") -> Groups:
    """Sort images by their labels; for metrics that need no judge, so that images without a label count too.

    ``where`` says in an error which images they are.

    Raises:
        ExpungeError: if there is none.
    """
    groups = Groups([s for s in shots if s.label in {*targets}], [s for s in shots if s.label in {None, *retain}])
    if not groups.erased and not groups.kept:
        raise ExpungeError(
            f"no image {where}{' ' if where else ''}is labelled with one of {[*targets, *retain]}: "
            "expected images generated for them, or without labels"
        )
    return groups


class Pair(NamedTuple):
    """An image and the one it is compared with."""

    shot: Shot
    other: Shot


def paired(shots: Sequence[Shot], reference: Sequence[Shot]) -> list[Pair]:
    """Each image with the reference's of its prompt and seed; in the order of seeds, if the two share no seed at all.

    Raises:
        ExpungeError: if there is nothing to compare, the reference lacks an image, or only some seeds are the same.
    """
    if not shots:
        raise ExpungeError("no image has a label to compare by: expected images generated for concepts")
    known, asked = _by_prompt(reference), _by_prompt(shots)
    pairs: list[Pair] = []
    for prompt, several in asked.items():
        others = known.get(prompt, [])
        if len(others) != len(several):
            raise ExpungeError(
                f"the reference has {len(others)} images of '{prompt}': expected {len(several)}, as there are to compare"
            )
        pairs += [Pair(*pair) for pair in zip(several, others, strict=True)]
    same = [a.seed == b.seed for a, b in pairs]
    if any(same) and not all(same):
        raise ExpungeError(
            "the reference has some of the images' seeds and not others: expected the same, or all other"
        )
    return pairs


def _by_prompt(shots: Sequence[Shot]) -> dict[str, list[Shot]]:
    """Images by prompt, in the order of their seeds."""
    by_prompt: dict[str, list[Shot]] = {}
    for shot in sorted(shots, key=lambda s: s.seed):
        by_prompt.setdefault(shot.prompt, []).append(shot)
    return by_prompt


# numbers --------------------------------------------------------------------------------------------------------------
def concept_of(shot: Shot) -> str:
    """The concept that an image is of; empty if it is of none in particular."""
    return shot.label or ""


def prompt_of(shot: Shot) -> str:
    """The prompt that an image was made for."""
    return shot.prompt


def share(
    metric: str,
    shots: Sequence[Shot],
    values: Sequence[float],
    clusters: Callable[[Shot], str] = concept_of,
    instrument: Mapping[str, Any] | None = None,
) -> Measurement:
    """How many of the images have something (a value of 1, else 0), in percent.

    The interval is Wilson's; for several ``clusters``, the hull of Wilson's and a bootstrap over them with Student's floor (the
    bootstrap alone is empty when all images agree, and too narrow for few clusters). One cluster's prompts are the clusters.
    """
    interval, names = wilson(sum(values), len(values)), _clusters(shots, clusters)
    if len(set(names)) > 1:
        interval = hull(interval, share_of(_run(names, values)))
    return _measurement(metric, shots, values, interval, "%", instrument)


def average(
    metric: str,
    shots: Sequence[Shot],
    values: Sequence[float],
    instrument: Mapping[str, Any] | None = None,
    unit: str = "%",
) -> Measurement:
    """The mean of values, x 100; clusters of its interval are concepts, or one concept's prompts, or one prompt's images."""
    interval = in_percent(mean_of(_run(_clusters(shots), values)))
    return _measurement(metric, shots, values, interval, unit, instrument)


def deviation(
    metric: str, shots: Sequence[Shot], values: Sequence[float], instrument: Mapping[str, Any] | None = None
) -> Measurement:
    """The standard deviation of values over images, x 100; clusters as in `average`."""
    names = _clusters(shots)
    by_name: dict[str, list[float]] = {name: [] for name in sorted(set(names))}
    for name, value in zip(names, values, strict=True):
        by_name[name].append(value)
    groups = list(by_name.values()) if len(by_name) > 1 else [[value] for value in values]
    return together(metric, shots, in_percent(spread(groups)), "%", instrument)


def _clusters(shots: Sequence[Shot], of: Callable[[Shot], str] = concept_of) -> list[str]:
    """The cluster of each image; its prompt, where all are of one cluster."""
    names = [of(shot) for shot in shots]
    return names if len(set(names)) > 1 else [prompt_of(shot) for shot in shots]


def _run(names: Sequence[str], values: Sequence[float]) -> Runs:
    """Values by cluster, as one run."""
    return {0: {"": list(zip(names, values, strict=True))}}


def _measurement(
    metric: str,
    shots: Sequence[Shot],
    values: Sequence[float],
    interval: Interval,
    unit: str,
    instrument: Mapping[str, Any] | None,
) -> Measurement:
    return Measurement(
        metric=metric,
        interval=interval,
        unit=unit,
        n=len(values),
        n_seeds=len({s.seed for s in shots}),
        per_image=list(values),
        labels=[concept_of(s) for s in shots],
        prompts=[] if len({concept_of(s) for s in shots}) > 1 else [prompt_of(s) for s in shots],
        instrument=instrument or {},
    )


def together(
    metric: str, shots: Sequence[Shot], interval: Interval, unit: str, instrument: Mapping[str, Any] | None = None
) -> Measurement:
    """A number that exists only for the images together."""
    return Measurement(
        metric=metric,
        interval=interval,
        unit=unit,
        n=len(shots),
        n_seeds=len({s.seed for s in shots}),
        per_image=[],
        labels=[],
        instrument=instrument or {},
    )
