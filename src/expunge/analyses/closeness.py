"""Damage against closeness: whether an edit harms most what reads like its target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.analysis import Analysis, Findings, Study, averaged
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog, Paper
from expunge.core.eraser import Eraser
from expunge.core.errors import ExpungeError, check_counts
from expunge.core.figure import Axis, Figure, Series
from expunge.core.judge import Judge
from expunge.core.metric import Measurement
from expunge.core.record import Interval
from expunge.maths.correlation import spearman


@final
@dataclass(frozen=True, kw_only=True)
class Closeness(Analysis):
    r"""Whether an edit harms most what reads like its target: top-1 lost, object by object, against distance in text.

    Each object is drawn by the original and by the edited model on equal seeds, and a judge says whether its first answer is
    the object. ``change`` is the share that is right after the edit minus before, in points, over the objects
    that are not targets and that the original draws right at least once (so a mere reshuffle shows as a small loss). The
    distance of an object is

    .. math:: d(o) = \min_{t} \big(1 - \cos(\tau(o), \tau(t))\big)

    over targets t, of the words alone as the model's own text encoder reads them. ``rho`` is 100 times Spearman's rank
    correlation of distance and change over objects, with a bootstrap over objects: above 0 where damage falls with distance.
    Deviations: the papers that report unequal damage compare hand-made groups of concepts; this project's own measure takes
    every object that the judge knows. Objects that the original never draws right are left out, since they cannot be lost.
    """

    paper: ClassVar[Paper] = Paper(
        "Hiding and Recovering Knowledge in Text-to-Image Diffusion Models via Learnable Prompts",
        "Bui et al.",
        2024,
        "2403.12326",
    )
    objects: tuple[str, ...] = ()
    """Objects that are drawn; every label of the judge if not given. Targets are left out."""
    count: int = 4
    """Images an object, before and after."""
    pool: Literal["end", "mean"] = "end"
    """The text's vector: that of its end token, which has read all words, or the mean of its words'."""
    judge: str = "testbed"
    """Who says what an image shows."""

    def __post_init__(self) -> None:
        check_counts("closeness", count=self.count)

    @override
    def images(self, targets: int, retain: int, eraser: Eraser | None) -> int:
        known = self.objects or Catalog("judges").open(self.judge).labels
        return 2 * self.count * len(known)

    @override
    def findings(self, backbone: Backbone, study: Study) -> Findings:
        judge: Judge = Catalog("judges").open(self.judge)
        gone = {label for target in study.targets for label in _known(judge, target)}
        objects = [o for o in self.objects or judge.labels if not gone & set(judge.label_ids(o))]
        asked = study.queries(objects, self.count)
        states = study.states()
        hits: dict[str, Float[Tensor, "objects count"]] = {}
        for state in ("original", "edited"):
            with backbone.attached(states[state]):
                first = judge.scores(study.images(backbone, asked)).argmax(1)
            right = [float(int(label) in judge.label_ids(str(q.label))) for label, q in zip(first, asked, strict=True)]
            hits[state] = torch.tensor(right).view(len(objects), self.count)
        known = torch.nonzero(hits["original"].sum(1) > 0).flatten().tolist()
        if len(known) < 3:
            raise ExpungeError(
                f"the original draws {len(known)} of {len(objects)} objects right: expected three or more"
            )
        names = [objects[i] for i in known]
        change = (hits["edited"] - hits["original"])[known]
        distances = text_distances(backbone, names, study.targets, self.pool)
        values = [(n, v) for n, row in zip(names, change.tolist(), strict=True) for v in row]
        numbers = [averaged("change", values, self.count, "points")]
        means, rho = change.mean(1), None
        if not (means == means[0]).all():  # an edit that changes no object, or all alike, has no such correlation
            rho = spearman(distances, means)
            numbers.append(_in_hundreds("rho", rho, len(names), self.count))
        return Findings(measurements=numbers, figures={"closeness": self._figure(study, names, distances, means, rho)})

    def _figure(
        self, study: Study, names: Sequence[str], distances: Tensor, change: Tensor, rho: Interval | None
    ) -> Figure:
        agreement = (
            "all objects alike" if rho is None else f"Spearman's rho {rho.value:.2f} [{rho.low:.2f}, {rho.high:.2f}]"
        )
        lost = [round(100 * v, 2) for v in change.tolist()]
        points = Series(name="objects", x=[round(d, 4) for d in distances.tolist()], y=lost, labels=list(names))
        note = (
            f"{self.count} images an object on equal seeds, {len(names)} objects that the original draws; {agreement} "
            "(95 %, a bootstrap over objects)."
        )
        return Figure(
            title=f"Damage against closeness to {', '.join(study.targets)}",
            note=note,
            kind="scatter",
            x=Axis(f"distance in text from the nearest target (1 - cosine, {self.pool})"),
            y=Axis("top-1, edited minus original, points"),
            series=[points],
        )


@torch.no_grad()
def text_distances(
    backbone: Backbone, words: Sequence[str], targets: Sequence[str], pool: str
) -> Float[Tensor, "words"]:
    """1 - cosine of each word's vector and the nearest target's."""
    own, theirs = (torch.nn.functional.normalize(_vectors(backbone, w, pool), dim=-1) for w in (words, targets))
    return (1 - own @ theirs.T).min(1).values.cpu()


def _vectors(backbone: Backbone, words: Sequence[str], pool: str) -> Float[Tensor, "words d"]:
    ids = backbone.tokenize(words)
    embeds, end = backbone.encode(ids).embeds.float(), backbone.end(ids)
    if pool == "end":
        return embeds[torch.arange(len(end)), end]
    position = torch.arange(embeds.shape[1], device=end.device)[None]
    own = ((position >= backbone.first) & (position < end[:, None]))[..., None]
    return (embeds * own).sum(1) / own.sum(1)


def _known(judge: Judge, word: str) -> Sequence[int]:
    """The labels that mean ``word``; none if the judge does not know it."""
    try:
        return judge.label_ids(word)
    except ExpungeError:
        return []


def _in_hundreds(metric: str, rho: Interval, objects: int, seeds: int) -> Measurement:
    """A correlation x 100: one number of all objects together, with no values of single ones behind it."""
    percent = Interval(*(100 * part for part in rho))
    return Measurement(
        metric=metric, interval=percent, unit="100 rho", n=objects, n_seeds=seeds, per_image=[], labels=[]
    )
