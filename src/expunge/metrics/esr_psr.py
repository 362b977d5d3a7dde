"""Erasing and preserving success rates: does the image show what was asked for?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from typing_extensions import override

from expunge.core.catalog import Catalog, Paper
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.metric import Measurement, Metric, Shot
from expunge.core.record import Interval, clustered, wilson

BATCH = 250


@final
@dataclass(frozen=True, kw_only=True)
class EsrPsr(Metric):
    """Share of target images that do not show their concept (ESR-k), and of retained images that do (PSR-k), by top-k.

    KPOP's section 5.1; methods.md C1. Beside them: the share of images that are pictures at all (``valid_rate`` of target
    images, ``valid_rate_kept``; collapse is not erasure), and the five labels that target images show most (``became@…``).
    Intervals: Wilson's for one concept, cluster bootstrap over concepts for several.
    Deviations: none known; the judge is a setting.
    """

    paper: ClassVar[Paper] = Paper(
        "Hiding and Recovering Knowledge in Text-to-Image Diffusion Models", "Bui et al.", 2024, "2403.12326"
    )
    higher_is_better: ClassVar[bool] = True
    judge: str = "testbed"
    """Catalog name of the judge."""
    ks: tuple[int, ...] = (1, 5)
    """Ranks that count as shown."""

    @override
    def measure(self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str]) -> list[Measurement]:
        judge: Judge = Catalog("judges").load(self.judge)()
        wanted = {name: set(judge.label_ids(name)) for name in (*targets, *retain)}
        asked = [s for s in shots if s.label in wanted]
        if not asked:
            raise ExpungeError(f"no image is labelled with one of {list(wanted)}: expected images generated for them")
        if max(self.ks) > len(judge.labels) or min(self.ks) < 1:
            raise ExpungeError(f"ranks {self.ks}: expected numbers from 1 to the judge's {len(judge.labels)} labels")
        order, valid = _judged(judge, asked, max(self.ks))
        groups = {"erased": [i for i, s in enumerate(asked) if s.label in set(targets)]}
        groups["kept"] = [i for i, s in enumerate(asked) if s.label in set(retain)]
        found: list[Measurement] = []
        for group, rows in groups.items():
            if not rows:
                continue
            for k in self.ks:
                shown = [bool(wanted[str(asked[i].label)] & set(order[i][:k])) for i in rows]
                values = [float(s) for s in shown] if group == "kept" else [float(not s) for s in shown]
                found.append(
                    _measurement(f"{'psr' if group == 'kept' else 'esr'}@{k}", [asked[i] for i in rows], values)
                )
            found.append(
                _measurement(
                    "valid_rate" if group == "erased" else "valid_rate_kept",
                    [asked[i] for i in rows],
                    [float(valid[i]) for i in rows],
                )
            )
        became = Counter(judge.labels[order[i][0]] for i in groups["erased"])
        for label, _ in became.most_common(5):
            values = [float(judge.labels[order[i][0]] == label) for i in groups["erased"]]
            found.append(_measurement(f"became@{label}", [asked[i] for i in groups["erased"]], values))
        return found


def _judged(judge: Judge, shots: Sequence[Shot], top: int) -> tuple[list[list[int]], list[bool]]:
    """For each image the ``top`` labels, likeliest first, and whether it is a picture."""
    order: list[list[int]] = []
    valid: list[bool] = []
    for start in range(0, len(shots), BATCH):
        pixels = torch.stack([s.pixels() for s in shots[start : start + BATCH]])
        order += judge.scores(pixels).topk(top, dim=1).indices.tolist()
        valid += judge.valid(pixels).tolist()
    return order, valid


def _measurement(metric: str, shots: Sequence[Shot], values: list[float]) -> Measurement:
    """The mean of ``values`` in percent; concepts are the clusters of its interval."""
    labels = sorted({str(s.label) for s in shots})
    if len(labels) == 1:
        interval = wilson(sum(values), len(values))
    else:
        clusters = [[v for s, v in zip(shots, values, strict=True) if s.label == label] for label in labels]
        interval = Interval(*(100 * x for x in clustered(clusters)))
    return Measurement(
        metric=metric,
        interval=interval,
        unit="%",
        n=len(values),
        n_seeds=len({s.seed for s in shots}),
        per_image=values,
    )
