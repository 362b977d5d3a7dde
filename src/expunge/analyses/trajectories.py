"""What happens along an erasure: where a prompt goes in text space, and what images turn into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.analysis import Analysis, Findings, Needs, Study, averaged
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.edit import Edit
from expunge.core.eraser import Eraser, Step
from expunge.core.errors import ExpungeError, check_counts
from expunge.core.figure import Axis, Figure, Series
from expunge.core.metric import Measurement
from expunge.core.query import Query
from expunge.pretrained import clip as pretrained

PAIRS = {"clip_ee": "(x_e, c_e)", "clip_en": "(x_e, c_n)", "clip_nn": "(x_n, c_n)"}
"""Which images meet which texts: of the target or neutral."""


class Checkpoint(NamedTuple):
    """Where an erasure stood after so many updates."""

    updates: int
    aligned: dict[str, dict[str, Float[Tensor, "images"]]]
    """Cosines of images and texts by pair and target."""
    prompts: dict[str, dict[str, float]]
    """Cosines of a method's prompts and texts by target and text; empty where it has no prompt yet."""


@final
@dataclass(frozen=True, kw_only=True)
class Trajectories(Analysis):
    r"""Follow an erasure: its prompt's cosine with texts, and CLIP's alignment of images with what is erased and neutral.

    KPOP's Fig. 4. The erasure runs once more, as it ran, and stops every few updates. There, images :math:`x_e` of each
    target's prompt :math:`c_e` and :math:`x_n` of the neutral prompt :math:`c_n` are drawn on the same seeds, and CLIP gives
    their cosines: ``clip_ee`` of :math:`(x_e, c_e)` should fall, ``clip_en`` of :math:`(x_e, c_n)` and ``clip_nn`` of
    :math:`(x_n, c_n)` should rise; the numbers are those of the end, ``change`` is the end's minus the original model's.
    ``movement`` is how far a pair's curve moves from stop to stop after the first one that training made, ``rise`` how far of
    that upwards, of a target's mean :math:`a_i` at stop i of n (0 is before any update):

    .. math:: m = \frac1{n-1} \sum_{i=1}^{n-1} |a_{i+1} - a_i| \qquad
        r = \frac1{n-1} \sum_{i=1}^{n-1} \max(0, a_{i+1} - a_i)

    What the first updates take away is erasing, however much it is; a curve that has settled moves no more.

    A prompt's cosine with a text is that of the means over the tokens of each (``mean``; the text's with start, end and
    padding), or the largest over pairs of tokens (``max``); the paper does not say which.
    Deviations: by default the testbed's own CLIP in the place of OpenAI's; movement and rise as numbers are this project's,
    where the paper says that ESD's curve is unstable.
    """

    paper: ClassVar[Paper] = Paper(
        "Hiding and Recovering Knowledge in Text-to-Image Diffusion Models via Learnable Prompts",
        "Bui et al.",
        2024,
        "2403.12326",
    )
    needs: ClassVar[Needs] = "training"
    version: ClassVar[int] = 2
    every: int = 25
    """Updates between two stops; the first is before any, the last after all."""
    count: int = 8
    """Images a prompt at each stop."""
    neutral: str = "a picture"
    """The neutral prompt, c_n."""
    texts: tuple[str, ...] = ()
    """Texts that prompts are compared with; the targets, the neutral text and up to two retained words if not given."""
    pool: Literal["mean", "max"] = "mean"
    """How a prompt's tokens and a text's meet."""
    clip: str = "testbed"
    """Whose CLIP: `testbed`, a hub id (the paper's: openai/clip-vit-large-patch14), or a folder."""

    def __post_init__(self) -> None:
        check_counts("trajectories", every=self.every, count=self.count)

    @override
    def images(self, targets: int, retain: int, eraser: Eraser | None) -> int:
        stops = 1 + -(-getattr(eraser, "iterations", 1) // self.every)
        return stops * self.count * (targets + 1)

    @override
    def findings(self, backbone: Backbone, study: Study) -> Findings:
        if study.training is None:
            raise ExpungeError("trajectories without a training: expected an edit that was trained")
        texts = self.texts or tuple(dict.fromkeys([*study.targets, self.neutral, *list(study.retain)[:2]]))
        clip = pretrained.clip(self.clip)
        stops = [Checkpoint(0, self._aligned(backbone, study, clip, []), {})]
        last: Step | None = None
        for step in study.training.eraser.steps(backbone, study.training.task):
            last = step
            done = step.index + 1
            if done == 1 and done % self.every:
                stops.append(Checkpoint(done, {}, self._cosines(backbone, study, step, texts)))
            elif done % self.every == 0:
                stops.append(self._stop(backbone, study, clip, step, texts))
        if last is not None and stops[-1].updates != last.index + 1:
            stops.append(self._stop(backbone, study, clip, last, texts))
        drawn = [s for s in stops if s.aligned]
        alike = [m for pair in PAIRS for m in self._numbers(study, pair, drawn)]
        numbers = [replace(m, instrument=clip.instrument) for m in alike]
        ends = [(t, by[t]) for t, by in stops[-1].prompts.items() if t in by]
        if ends:
            numbers.append(averaged("prompt_cosine", ends, 1, "100 cos"))
        figures = {"alignment": self._alignment(drawn)}
        prompted = [s for s in stops if s.prompts]
        return Findings(measurements=numbers, figures={**figures, **self._prompts(prompted, texts)})

    def _stop(
        self, backbone: Backbone, study: Study, clip: pretrained.Clip, step: Step, texts: Sequence[str]
    ) -> Checkpoint:
        cosines = self._cosines(backbone, study, step, texts)
        return Checkpoint(step.index + 1, self._aligned(backbone, study, clip, [step.edit()]), cosines)

    def _aligned(
        self, backbone: Backbone, study: Study, clip: pretrained.Clip, edits: Sequence[Edit]
    ) -> dict[str, dict[str, Tensor]]:
        """CLIP's cosines of each pair at this point, by target."""
        sampling = {"guidance": study.guidance, "steps": study.steps, "true_cfg": study.true_cfg, "label": None}
        asked = study.queries(study.targets, self.count)
        asked += [Query(prompt=self.neutral, seed=study.seed + i, **sampling) for i in range(self.count)]
        with backbone.attached(edits):
            pixels = study.images(backbone, asked)
        cosines = clip.similarity(pixels, [*(study.prompt(t) for t in study.targets), self.neutral])
        aligned: dict[str, dict[str, Tensor]] = {pair: {} for pair in PAIRS}
        for row, target in enumerate(study.targets):
            mine = slice(row * self.count, (row + 1) * self.count)
            aligned["clip_ee"][target], aligned["clip_en"][target] = cosines[mine, row], cosines[mine, -1]
            aligned["clip_nn"][target] = cosines[-self.count :, -1]
        return aligned

    def _cosines(
        self, backbone: Backbone, study: Study, step: Step, texts: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """Cosines of each target's prompt with ``texts``, for a method whose key holds prompts as wide as a text.

        (A pair of prompts, for keys and for values, has no one place there.)
        """
        if step.key is None:
            return {}
        with torch.no_grad():
            known = backbone.encode(list(texts)).embeds.float()
        prompts = {n: p.float() for n, p in step.key(step.edit()).tensors().items() if n in study.targets}
        fitting = {n: p for n, p in prompts.items() if p.dim() == 2 and p.shape[1] == known.shape[2]}
        return {n: {t: cosine(p, e, self.pool) for t, e in zip(texts, known, strict=True)} for n, p in fitting.items()}

    def _numbers(self, study: Study, pair: str, stops: Sequence[Checkpoint]) -> list[Measurement]:
        end, start = ({t: s.aligned[pair][t] for t in study.targets} for s in (stops[-1], stops[0]))
        values = [(t, v) for t in end for v in end[t].tolist()]
        change = [(t, v) for t in end for v in (end[t] - start[t]).tolist()]
        numbers = [
            averaged(pair, values, self.count, "100 cos"),
            averaged(f"{pair}_change", change, self.count, "points"),
        ]
        if len(stops) > 2:
            curves = {t: [float(s.aligned[pair][t].mean()) for s in stops] for t in study.targets}
            for name, of in (("movement", movement), ("rise", rise)):
                values = [(t, of(curve)) for t, curve in curves.items()]
                numbers.append(averaged(f"{pair}_{name}", values, self.count, "points"))
        return numbers

    def _alignment(self, stops: Sequence[Checkpoint]) -> Figure:
        series: list[Series] = []
        for pair, words in PAIRS.items():
            ends = [[(t, v) for t, c in s.aligned[pair].items() for v in c.tolist()] for s in stops]
            value, low, high = zip(*(averaged(pair, e, self.count).interval for e in ends), strict=True)
            series.append(Series(name=words, x=[s.updates for s in stops], y=value, low=low, high=high))
        note = f"{self.count} images a prompt on equal seeds; c_n is '{self.neutral}'; 95 % intervals over targets or images."
        y = Axis("cosine of image and text, x 100")
        return Figure(
            title="CLIP alignment along an erasure", note=note, kind="lines", x=Axis("updates"), y=y, series=series
        )

    def _prompts(self, stops: Sequence[Checkpoint], texts: Sequence[str]) -> Mapping[str, Figure]:
        """Cosines of the first target's prompt with each text."""
        if not stops:
            return {}
        target = next(iter(stops[0].prompts))
        x = [s.updates for s in stops]
        series = [Series(name=text, x=x, y=[round(s.prompts[target][text], 5) for s in stops]) for text in texts]
        pooling = {"mean": "cosine of the means over tokens", "max": "largest cosine over pairs of tokens"}[self.pool]
        title, note = (
            f"The prompt of '{target}' along its training",
            f"With texts as the model's encoder reads them; {pooling}.",
        )
        drawn = Figure(title=title, note=note, kind="lines", x=Axis("updates"), y=Axis("cosine"), series=series)
        return {"prompt": drawn}


def cosine(prompt: Float[Tensor, "k d"], text: Float[Tensor, "n d"], pool: str) -> float:
    """Cosine of the means over tokens, or the largest over pairs of tokens."""
    if pool == "mean":
        return float(torch.cosine_similarity(prompt.mean(0), text.mean(0), dim=0))
    unit = torch.nn.functional.normalize
    return float((unit(prompt, dim=-1) @ unit(text, dim=-1).T).max())


def movement(curve: Sequence[float]) -> float:
    """Mean length of a curve's steps after its first."""
    return float(_settled(curve).abs().mean())


def rise(curve: Sequence[float]) -> float:
    """How far a curve's steps after its first lead upwards, on average over all of these."""
    return float(_settled(curve).clamp_min(0).mean())


def _settled(curve: Sequence[float]) -> Float[Tensor, "steps"]:
    """A curve's steps without the first, which is the erasure's own."""
    return torch.tensor(curve, dtype=torch.float64).diff()[1:]
