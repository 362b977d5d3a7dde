"""What a softmax gives an injected prompt, and what it leaves to the text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.analysis import Analysis, Findings, Needs, Study, averaged
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.edit import Edit
from expunge.core.eraser import Eraser
from expunge.core.errors import ExpungeError, check_counts
from expunge.core.figure import Axis, Figure, Series
from expunge.maths.attention import recorded

PARTS = ("start", "words", "padding", "prompt")
"""Of the tokens that a layer reads: the start token, the text's own, the end token with what follows it, and the key's."""


@final
@dataclass(frozen=True, kw_only=True)
class PromptMass(Analysis):
    r"""How much of the attention goes to an injected prompt, and how much is left for the text.

    A concatenated prompt of k tokens joins the softmax over the n tokens of the text: KPOP's Fig. 1 argues that it takes up
    attention there, and methods.md A1 that large k dilute it. The share of a part P of the tokens is

    .. math:: m_P = \frac{1}{LHQ} \sum_{\ell, h, q} \sum_{j \in P} A^{(\ell, h)}_{q j}

    over the layers that read the prompt, their heads and places, and over time; the four shares sum to 1. ``prompt`` is the
    key's own, ``prompt_random`` that of random prompts of the same norms, and ``prompt_uniform`` is k / (n + k): what it would
    get if all tokens were read alike. For several k, erase with each (`method.NAME.settings.k` of a plan).
    Deviations: the paper argues by a drawing; the measure is this project's own.
    """

    paper: ClassVar[Paper] = Paper(
        "Hiding and Recovering Knowledge in Text-to-Image Diffusion Models via Learnable Prompts",
        "Bui et al.",
        2024,
        "2403.12326",
    )
    needs: ClassVar[Needs] = "key"
    count: int = 4
    """Images a target."""

    def __post_init__(self) -> None:
        check_counts("prompt-mass", count=self.count)

    @override
    def images(self, targets: int, retain: int, eraser: Eraser | None) -> int:
        return 2 * self.count * targets

    @override
    def findings(self, backbone: Backbone, study: Study) -> Findings:
        if study.key is None:
            raise ExpungeError("prompt-mass without a key: expected an edit's private key")
        keys: dict[str, Edit] = {"own": study.key, "random": study.key.random(study.seed)}
        shares: dict[str, dict[str, Float[Tensor, "images parts"]]] = {}
        for name, key in keys.items():
            with backbone.attached([*study.edits, key]):
                shares[name] = {word: self._shares(backbone, study, word) for word in study.targets}
        measurements = [
            averaged(part, [(w, v) for w, by in shares["own"].items() for v in by[:, i].tolist()], self.count)
            for i, part in enumerate(PARTS)
        ]
        random = [(w, v) for w, by in shares["random"].items() for v in by[:, PARTS.index("prompt")].tolist()]
        alike = [(w, v) for w, by in shares["own"].items() for v in by[:, len(PARTS)].tolist()]
        measurements += [averaged("prompt_random", random, self.count), averaged("prompt_uniform", alike, self.count)]
        return Findings(measurements=measurements, figures={"mass": self._figure(shares)})

    def _shares(self, backbone: Backbone, study: Study, word: str) -> Float[Tensor, "images parts"]:
        """Shares of the four parts for each image of ``word``, and the prompt's if all tokens were read alike."""
        ids = backbone.tokenize([study.prompt(word)])
        length, end = ids.shape[1], int(backbone.end(ids))
        edges = (0, 1, end, length)
        rows: list[Tensor] = []
        for asked in study.batches(study.queries([word], self.count)):
            with recorded(backbone, len(asked)) as recording:
                backbone.generate(asked)
            maps = [m for m in recording.maps().values() if m.shape[-1] > length]
            if not maps:
                raise ExpungeError(
                    f"no layer reads a prompt after the text '{study.prompt(word)}': expected the key of a concatenated "
                    "prompt, and a text that names its concept"
                )
            columns = torch.cat([m.mean(2) for m in maps], 1).mean(1)  # over places, then over layers and heads
            parts = [columns[:, a:b].sum(1) for a, b in zip(edges, (*edges[1:], columns.shape[1]), strict=True)]
            uniform = torch.full_like(parts[0], 1 - length / columns.shape[1])
            rows.append(torch.stack([*parts, uniform], 1).cpu())
        return torch.cat(rows)

    def _figure(self, shares: Mapping[str, Mapping[str, Tensor]]) -> Figure:
        series: list[Series] = []
        for name, by in shares.items():
            rows = [
                averaged(p, [(w, v) for w, s in by.items() for v in s[:, i].tolist()], self.count)
                for i, p in enumerate(PARTS)
            ]
            value, low, high = zip(*(m.interval for m in rows), strict=True)
            series.append(Series(name=f"{name} prompts", x=PARTS, y=value, low=low, high=high))
        uniform = 100 * float(next(iter(shares["own"].values()))[0, len(PARTS)])
        note = f"Read alike, all of the prompt's tokens would get {uniform:.1f} %. Layers that read the prompt; 95 % intervals."
        label = "share of the attention, %"
        return Figure(
            title="What an injected prompt takes of the attention", note=note, kind="bars", y=Axis(label), series=series
        )
