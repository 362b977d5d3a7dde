"""Debiasing with UCE's closed form: move a word until its images show attributes in the shares that are wanted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog, Paper
from expunge.core.concept import phrases
from expunge.core.cost import Cost
from expunge.core.edit import Edit
from expunge.core.eraser import Eraser, Step, Task
from expunge.core.errors import ExpungeError, check_counts, check_not_negative, check_positive
from expunge.core.judge import Judge
from expunge.core.knowledge import Kind
from expunge.core.query import Query
from expunge.maths.closed_form import ridge_edit
from expunge.maths.text_pairs import Pairs, Tokens, kept, paired


class _Texts(NamedTuple):
    """Vectors of what is edited and kept."""

    keys: list[Float[Tensor, "n d"]]
    """Of each target."""
    directions: list[Float[Tensor, "a n d"]]
    """Of each attribute, aligned with each target's."""
    kept: Pairs | None


@final
@dataclass(frozen=True, kw_only=True)
class Debias(Eraser):
    r"""Balance what a word's images show, say the styles of "a dog", with a judge in the loop; nothing is erased.

    .. math:: W = \arg\min_W \sum_i s_e \Big|W c_i - W_0 \Big(c_i + \sum_k \alpha_{ik} a_k\Big)\Big|^2
        + \sum_j s_p |W c_j - W_0 c_j|^2 + \lambda |W - W_0|^2

    UCE's closed form (2308.14761; methods.md A4), whose goal for a target :math:`c_i` is moved along attributes :math:`a_k`.
    Each round makes images of the target, counts for which attribute a judge takes each, and moves on from there:

    .. math:: \alpha_{ik} \leftarrow \alpha_{ik} + \eta (r_k - \rho_{ik})

    with the wanted and the counted share :math:`r_k, \rho_{ik}`. A target whose shares are all within the tolerance rests;
    where all rest, it ends. Settings follow rohitgandikota/unified-concept-editing, ``trainscripts/uce_sd_debias.py``.
    Deviations: that script adds the whole difference, whatever its step size, in the place of the original's answers, which
    an attribute that is also a target loses; here the step size counts, and sums are kept apart. Its judge is CLIP, asked
    which attribute a picture shows; here it is any judge that has the attributes as labels. Solves in float64.
    """

    paper: ClassVar[Paper] = Paper(
        "Unified Concept Editing in Diffusion Models",
        "Gandikota et al.",
        2024,
        "2308.14761",
        "https://github.com/rohitgandikota/unified-concept-editing",
    )
    knows: ClassVar[Mapping[str, Kind]] = {"attributes": "words", "judge": "oracles", "prompt": "phrases"}
    tuning: ClassVar[Sequence[str]] = (
        *("shares", "images", "steps_of_images", "tolerance", "step_size", "edit_scale", "preserve_scale", "tokens"),
    )
    attributes: tuple[str, ...] = ()
    """What images of a target may show: words of the text encoder that are labels of the judge; two or more."""
    shares: tuple[float, ...] = ()
    """Wanted share of each attribute; equal ones if not given."""
    judge: str = "testbed:network=b,labels=styles"
    """Who counts; not the judge that reports."""
    prompt: str = "{}"
    """What the target is put into for the images that are counted."""
    images: int = 10
    """Images of each target in a round."""
    steps_of_images: int = 20
    """Denoising steps of these."""
    guidance: float = 7.5
    """Guidance of these."""
    batch: int = 10
    """Images at a time."""
    iterations: int = 30
    """Rounds, at most."""
    step_size: float = 0.1
    """How far a round moves, eta."""
    tolerance: float = 0.05
    """Difference from a wanted share below which nothing is moved."""
    lamb: float = 0.5
    """Pull towards the old weights, lambda."""
    edit_scale: float = 1.0
    """Weight of each target, s_e."""
    preserve_scale: float = 1.0
    """Weight of each retained concept, s_p."""
    tokens: Tokens = "last"
    """Text vectors used: the last word's one vector; all from the last word through the padding, aligned; or all."""

    def __post_init__(self) -> None:
        check_counts("debias", images=self.images, batch=self.batch, iterations=self.iterations)
        check_counts("debias", steps_of_images=self.steps_of_images)
        check_positive("debias", step_size=self.step_size, tolerance=self.tolerance)
        check_positive("debias", lamb=self.lamb, edit_scale=self.edit_scale)
        check_not_negative("debias", preserve_scale=self.preserve_scale)
        phrases([self.prompt], "")
        odd = len(self.shares) != len(self.attributes) or min(self.shares, default=0) < 0
        if self.shares and (odd or abs(sum(self.shares) - 1) > 1e-6):
            raise ExpungeError(
                f"debias's shares {list(self.shares)} for {len(self.attributes)} attributes: expected one for each, sum 1"
            )

    @override
    def check(self, backbone: Backbone) -> None:
        if len(set(self.attributes)) < 2:
            raise ExpungeError(f"debias's attributes {list(self.attributes)}: expected two or more, all different")
        judge: Judge = Catalog("judges").open(self.judge)
        for attribute in self.attributes:
            judge.label_ids(attribute)

    @property
    @override
    def heeds_retain(self) -> bool:
        return self.preserve_scale != 0

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        texts = self._texts(backbone, task)
        judge: Judge = Catalog("judges").open(self.judge)
        count = len(self.attributes)
        wanted = torch.tensor(self.shares or [1 / count] * count, dtype=torch.float64)
        alphas, first = torch.zeros(len(task.targets), count, dtype=torch.float64), 0
        if resume is not None:
            alphas, first = resume["alphas"], int(resume["next"])
        for index in range(first, self.iterations):
            edit = self._edit(backbone, texts, alphas)
            off = wanted - self._counted(backbone, task, edit, judge, index)
            off[off.abs().amax(1) < self.tolerance] = 0
            alphas = alphas + self.step_size * off
            yield Step(
                index=index,
                edit=lambda now=alphas: self._edit(backbone, texts, now),
                losses={"off": float(off.abs().max())},
                state=lambda now=alphas, index=index: {"alphas": now, "next": torch.tensor(index + 1)},
                warnings=lambda off=off, last=index + 1 == self.iterations: self._unbalanced(task, off) if last else [],
            )
            if not off.any():
                return

    def _unbalanced(self, task: Task, off: Float[Tensor, "t a"]) -> list[str]:
        """A line for each target that still moved in the last round."""
        return [
            f"debias: '{target.name}' was up to {worst:.2f} from the wanted shares in the last of {self.iterations} rounds"
            for target, worst in zip(task.targets, off.abs().amax(1).tolist(), strict=True)
            if worst
        ]

    @torch.no_grad()
    def _texts(self, backbone: Backbone, task: Task) -> _Texts:
        keys: list[Tensor] = []
        directions: list[Tensor] = []
        for target in task.targets:
            pairs = [paired(backbone, [(target.name, attribute, 1.0)], self.tokens) for attribute in self.attributes]
            count = min(len(pair.keys) for pair in pairs)
            keys.append(pairs[0].keys[:count])
            directions.append(torch.stack([pair.goals[:count] for pair in pairs]))
        stay = kept(task.retain, self.preserve_scale)
        return _Texts(keys, directions, paired(backbone, stay, self.tokens) if stay else None)

    def _edit(self, backbone: Backbone, texts: _Texts, alphas: Float[Tensor, "t a"]) -> Edit:
        """The edit whose goals are moved by so much along each attribute."""
        keys, goals, scales = list(texts.keys), [], [torch.full((sum(map(len, texts.keys)),), self.edit_scale)]
        for key, along, alpha in zip(texts.keys, texts.directions, alphas, strict=True):
            goals.append(key + torch.einsum("a,and->nd", alpha.to(along), along))
        if texts.kept is not None:
            keys.append(texts.kept.keys)
            goals.append(texts.kept.goals)
            scales.append(texts.kept.scales.cpu())
        weights = backbone.tensors(backbone.text_inputs())
        return backbone.edit_of(ridge_edit(weights, torch.cat(keys), torch.cat(goals), torch.cat(scales), self.lamb))

    @torch.no_grad()
    def _counted(self, backbone: Backbone, task: Task, edit: Edit, judge: Judge, index: int) -> Float[Tensor, "t a"]:
        """The share of each target's images that the judge takes for each attribute, with an edit."""
        counted: list[Tensor] = []
        for target in task.targets:
            asked = [
                Query(
                    prompt=self.prompt.replace("{}", target.name),
                    seed=task.number("debias", target.name, index, i) % 2**32,
                    guidance=self.guidance,
                    steps=self.steps_of_images,
                )
                for i in range(self.images)
            ]
            batches = [asked[i : i + self.batch] for i in range(0, self.images, self.batch)]
            with backbone.attached([edit]):
                pixels = torch.cat([backbone.generate(batch).pixels for batch in batches])
            sure = torch.stack([judge.confidence(pixels, attribute) for attribute in self.attributes])
            counted.append(sure.argmax(0).bincount(minlength=len(self.attributes)).double() / self.images)
        return torch.stack(counted).cpu()

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        """That of all rounds; it may end before."""
        each = self.steps_of_images * (2 if self.guidance > 1 else 1)
        return Cost(forward=self.iterations * targets * self.images * each)
