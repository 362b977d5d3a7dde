"""What results are made of: finished measurements as plain values, which know neither plans nor the jobs that were run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from expunge.core.cost import Cost
from expunge.results.claims import Claim
from expunge.results.curves import Curve
from expunge.results.group import Group
from expunge.results.histograms import Histogram


class Value(NamedTuple):
    """A value of an image, and what the image is of."""

    label: str
    """Its concept."""
    value: float
    prompt: str = ""
    """Told where all values of a measurement are of one concept."""
    images: str = ""
    """Those that it is one of, as `Finished.images`; told in cells."""


class End(NamedTuple):
    """Where a judge ended a training."""

    updates: int
    enough: bool
    """Whether it saw enough erased; else the training ran out of updates."""


@final
@dataclass(frozen=True, kw_only=True)
class Spent:
    """A finished job that a measurement stands on, and what it took."""

    key: str
    """The job's content key, so that it counts once."""
    cost: Cost
    seconds: float
    bytes: int = 0
    """Size of the edit that it made."""
    end: End | None = None
    """Where a judge ended it, for an erasure with a stop."""


@final
@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished measurement, with its place in the table."""

    method: str
    split: str
    seed: int
    """Training seed."""
    group: Group
    variant: str = ""
    """How its metric differs from the metric's defaults, as the metric's name ends: `` (judge x)``."""
    run: int = 0
    """Which run of an attack it is of."""
    images: str = ""
    """Key of the job whose images were measured, or its own: an image counts once, whatever splits it serves."""
    folder: str = ""
    """Where these images are (or were) in the store, from its folder on; empty where no job made images."""
    model_sha256: str = ""
    """Hash of the model that made them."""
    records: Sequence[Mapping[str, Any]] = ()
    """As JSON, one a metric."""
    values: Sequence[Sequence[Value]] = ()
    """Behind each record: each image's; none where a number exists only for the images together."""
    figures: Sequence[Path] = ()
    """Files of an analysis."""
    peak_bytes: int | None = None
    """What tensors took in an erasure's first updates, where that was counted."""
    erase: Sequence[Spent] = ()
    """The erasure's steps behind the images; none where one of them is no longer in the store."""
    pairs: Sequence[Spent] = ()
    """Pairs of images that the erasure learned from, as far as they are in the store."""
    fisher: Sequence[Spent] = ()
    """Fisher information that the erasure holds to, as far as it is in the store."""
    fresh_keys: Sequence[Spent] = ()
    """Keys learned anew that the images were made with, as far as they are in the store."""


@final
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a plan wants to be told of its measurements."""

    about: str
    """One line over the table."""
    methods: Sequence[str]
    """The rows of the table."""
    trained: Sequence[str] = ()
    """Those of them that depend on a training seed."""
    sets: Sequence[str] = ()
    """Names of the further sets of prompts."""
    compare: Sequence[Sequence[str]] = ()
    """Pairs of rows whose difference on equal seeds and prompts is told."""
    by_split: bool = False
    """Whether the numbers of each split are told alone, too."""
    claims: Sequence[Claim] = ()
    figures: Sequence[Curve] = ()
    histograms: Sequence[Histogram] = ()
    published: Sequence[Mapping[str, Any]] = ()
    """Rows of papers, as JSON."""

    @property
    def pairs(self) -> list[Sequence[str]]:
        """The pairs of rows to compare, each once: those asked for, and those that claims are about."""
        claimed = [claim.rows for claim in self.claims if claim.than is None]
        return list(dict.fromkeys([*map(tuple, self.compare), *claimed]))
