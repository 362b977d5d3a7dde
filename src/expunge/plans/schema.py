"""What a plan file may say, with its defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

from expunge.results.claims import Claim
from expunge.results.curves import Curve
from expunge.results.histograms import Histogram
from expunge.stages.fisher import Wish as FisherWish
from expunge.stages.pairs import Wish
from expunge.stages.stopping import Stop

ORIGINAL = "original"
"""The row of the model as it is."""
FAST = "fast"
"""A precision that is left to the machine: what its CPU is fastest in."""
PRECISION = "original in "
"""How the row of the model as it is in another precision begins, compared with the original on equal seeds: a scale."""


def precision_of(row: str) -> str | None:
    """The precision that such a row names; None for all others."""
    return row.removeprefix(PRECISION) if row.startswith(PRECISION) else None


CONTROLS = ("none", "own", "random", "other", "neutral", "original")
"""Recoveries: the edited model without a key, with its own, with random prompts of the same norms, with each concept's prompt
exchanged for the next one's, with its own and a neutral text, and the original model with the key."""
ASKED = ("other seed", "fresh")
"""Recoveries that are made only where a method names them: with the key of the same erasure with the grid's next seed, and
with a key that was learned anew on the edited model, without the private one."""
KEYLESS = ("none", "fresh")
"""Recoveries that need no key of the method's own."""


class Named(NamedTuple):
    """A plug-in that a plan names."""

    name: str
    settings: Mapping[str, Any]
    """What its table says beside the name."""
    variant: str
    """What tells it in the table from the same plug-in with other settings."""


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """The axes of a plan: every method on every split with every seed."""

    method: tuple[str, ...]
    """Rows: names of the plan's ``[method.NAME]`` tables, ``original``, or ``original in DTYPE``."""
    split: tuple[str, ...] = ()
    """Splits of the concept set; all of them if not given."""
    seed: tuple[int, ...] = (0,)
    """Training seeds."""


@final
@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of a table: an eraser with its settings, and what it is told; or edits that are finished, or another model."""

    eraser: str = ""
    """Catalog name; empty where the edits, or another model, are given."""
    model: str = ""
    """Another model instead, as `load` takes it, drawn as it is: one that was trained without the concepts."""
    edits: tuple[str, ...] = ()
    """Finished edits instead, files of expunge in the order in which they are attached; they erased every split's targets."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Over the preset's and the paper's."""
    preset: bool = True
    """Start from the preset of the model's kind."""
    retain: bool | tuple[str, ...] = False
    """Whether it is told the concepts of the set that are to stay; or other words that it is told to keep."""
    images: str | tuple[str, ...] | None = None
    """The plan's pairs that it learns from, for ``apart`` those of each word; a method that wants images has the model make its
    own if not given."""
    fisher: str | None = None
    """The plan's Fisher information that it holds to; a method that does makes its own if not given."""
    strength: float = 1.0
    """What its edits are attached with, for images and attacks: 0.5 is half way. Rows that differ by it alone share one."""
    order: Literal["joint", "sequential", "apart"] = "joint"
    """Whether a split's targets are erased at once; one after another, each erasure on top of the ones before; or every word
    alone on the model as it is, and the edits attached together (no method with keys)."""
    stop: Stop | None = None
    """Where its training ends before its updates do: at what a judge that does not report sees."""
    controls: tuple[str, ...] | None = None
    """Recoveries to try: none, own, random, other, neutral, original, other seed, fresh, or the name of another method.

    A method without keys may have none and fresh. The first six if not given, for an eraser that makes keys.
    """


@final
@dataclass(frozen=True, kw_only=True)
class Fresh:
    """How a key is learned anew on an edited model, for the control ``fresh``: alike for all methods of a plan."""

    eraser: str = "kpop"
    """A method with keys, by catalog name."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Over the preset's and the paper's."""
    preset: bool = True
    """Start from the preset of the model's kind."""
    updates: tuple[int, ...] = ()
    """Numbers of updates, a control each; the settings' own if not given."""


@final
@dataclass(frozen=True, kw_only=True)
class Others:
    """Prompts for what nobody names."""

    set: str
    """A concept set; concepts of the plan's own set are left out."""
    count: int = 2
    """Images a prompt."""


@final
@dataclass(frozen=True, kw_only=True)
class MoreImages:
    """Further prompts, for the plan's concepts or others: a split's concepts count as erased, all else as kept."""

    set: str
    """A concept set."""
    count: int
    """Images a prompt."""
    label: str | None = None
    """What every prompt asks for, in a set that is a CSV without labels."""
    metrics: tuple[Named, ...] | None = None
    """Metrics for these images; the plan's if not given."""


@final
@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures of a paper, which are of its own model, prompts and judge."""

    file: str
    """JSON Lines with table, method, metric, value and source, from the folder that expunge runs in."""
    rows: dict[str, Any]
    """By row of the plan: the table and the method there."""


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a plan file says."""

    about: str
    """One line on what it is for."""
    set: str
    """Concept set, by name or file (TOML, or a published CSV): its splits name the targets, its prompts make the images."""
    grid: Grid
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Targets by split, instead of the set's own splits."""
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What erasers are told for a concept that is a class ("weapon") and not its own name."""
    method: dict[str, Method] = field(default_factory=dict)
    pairs: dict[str, Wish] = field(default_factory=dict)
    """Pairs of images by name, as `expunge pairs` makes them, for methods that learn from some: tables of what is wanted, with
    ``phrases`` of each unsafe thing redrawn as each safe one."""
    fisher: dict[str, FisherWish] = field(default_factory=dict)
    """Fisher information of the model by name, as `expunge fisher` makes it, for methods that hold to some: once for all rows,
    splits and seeds."""
    metrics: tuple[Named, ...] = (Named("esr-psr", {}, ""),)
    """Metrics by name, or tables with a name and settings."""
    analyses: tuple[Named, ...] = ()
    """Analyses of each edit (and of the original model, for one that needs no edit), by name, or tables as for metrics."""
    model: str = "testbed"
    """As `load` takes it."""
    reference: str = ""
    """Another model, as `load` takes it, that metrics such as `reference-distance` compare every row with."""
    dtype: str = "float32"
    """Precision of training."""
    image_dtype: str = FAST
    """Precision of generation; `fast` is what this machine's CPU is fastest in."""
    part: str = "test"
    """Part of the concept sets: dev or test."""
    guidance: float | None = None
    """Scale of classifier-free guidance of the plan's images, its pairs' too; the model's own if not given. It is not that of
    what methods and attacks draw for themselves."""
    true_cfg: float | None = None
    """FLUX: scale of a pair of predictions, at twice the time, for every row; if not given, the model's own where a method acts
    through one alone, and else none."""
    steps: int | None = None
    """Denoising steps; likewise."""
    count: int = 50
    """Images a prompt."""
    control_count: int = 10
    """Images a prompt for each recovery control; without a key the table's own images show it."""
    neutral: str = "a picture"
    """The text of the control in which a key stands alone."""
    fresh: Fresh | None = None
    """How keys are learned anew, for the control ``fresh``."""
    others: Others | None = None
    """Prompts for what nobody names."""
    also: tuple[MoreImages, ...] = ()
    """Tables of further sets, each with its count and perhaps metrics; the table calls them by the set's name."""
    attacks: tuple[Named, ...] = ()
    """Attacks on every row (the original's calibrates them), by name or as tables with a name and settings over the preset's
    (``preset = false``: over the paper's; ``apart = true``: a run for each of its ``prompts``); ``control_count`` images a
    prompt for the targets and run (``count`` of its own, if its table says so), ``attack: NAME`` in the table."""
    attack_runs: int = 1
    """How often each attack is run on each row and training seed. Runs differ in draws and image seeds, training seeds in
    draws; rows share both. Runs are the clusters of an attack's intervals, since all images of one share what it found."""
    memory: bool = False
    """Whether to count what tensors take in the first updates of each method's first erasure."""
    paper: Published | None = None
    """Published figures to print beside these: a JSON Lines ``file``, and for a row the ``table`` and ``method`` in it."""
    compare: tuple[tuple[str, ...], ...] = ()
    """Pairs of methods whose difference on equal seeds and prompts is reported."""
    claims: tuple[Claim, ...] = ()
    """Tables of what a paper claims of the rows; the summary says which hold."""
    figures: tuple[Curve, ...] = ()
    """Tables of curves to draw from the summary's numbers."""
    histograms: tuple[Histogram, ...] = ()
    """Tables of bars to draw from the detections that `ner` counts by label."""
    by_split: bool = False
    """Whether the table has the set's numbers of each split alone too."""
    source: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The tables that it was read from, as results keep them."""

    @property
    def other_models(self) -> list[str]:
        """The models beside the plan's own: of rows, and the reference."""
        rows = [method.model for method in self.method.values()]
        return list(dict.fromkeys(name for name in (*rows, self.reference) if name))
