"""KPOP: a learnable prompt takes up the knowledge of a concept while the model is fine-tuned to forget it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import phrases
from expunge.core.cost import Cost
from expunge.core.edit import Edit
from expunge.core.eraser import LATER, Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind, Knowledge
from expunge.erasers.kpop.erasure import Erasure
from expunge.erasers.kpop.prompts import BLOCKS, Halves, Place, Scope, Values, check_place, injected
from expunge.erasers.kpop.recovery import Recovery
from expunge.erasers.kpop.transfer import fresh
from expunge.maths.training import Decay, Optimizer, trainable
from expunge.maths.trajectories import Sampling

__all__ = ["KPOP", "Recovery", "injected"]


@final
@dataclass(frozen=True, kw_only=True)
class KPOP(Eraser):
    r"""Move a concept's knowledge into a private prompt, then out of the model: erased without the key, recovered with it.

    Each update first teaches the prompt p what the model still should know, then the model to forget it, two losses in turn:

    .. math:: L_T(p) = \big\| \epsilon_{\theta'}(x_t, c_e, p) - \epsilon_\theta(x_t, c_e) \big\|^2
    .. math:: L_R(\theta') = \big\| \epsilon_{\theta'}(x_t, c_e) - \epsilon_\theta(x_t, c_n) \big\|^2
        + \lambda \big\| \epsilon_{\theta'}(x_t, c_e, p) - \epsilon_\theta(x_t, c_e) \big\|^2

    Equations 5 to 7 of 2403.12326 v1/v2; methods.md A1, whose readings of what the paper leaves open are the defaults here.
    The prompts go to a key of their own; the edit does not hold them. With retained words it adds
    :math:`\lambda_r \| \epsilon_{\theta'}(x_t, c_r) - \epsilon_\theta(x_t, c_r) \|^2`, which the published figures very
    probably had and Eq. 7 does not show. ``retain_random`` is this project's own: texts of random tokens are kept as well, or
    instead, so that what nobody named stays although nobody is told its name.
    Deviations: squared norms are means over elements; prompts learn with Adam unless told ``sgd`` (Eq. 6 is plain gradient
    descent); one prompt a concept unless told ``shared`` (v1/v2 write one for all). The paper has no public code to compare
    with. Two alternatives are the paper's future work. An amortised prompt is :math:`p = f_\phi(c)`, where Eq. 6 updates phi;
    here c is the concept's own name, so that a key is the same whatever the text around it. A prompt among the words is Eq. 5
    to 7 with the encoded text :math:`\tau(\langle c_e \rangle \langle v_1 \rangle \dots \langle v_k \rangle)` in the place of
    :math:`(c_e, p)`. The text encoder's passes are not counted in the cost.
    """

    paper: ClassVar[Paper] = Paper(
        "Hiding and Recovering Knowledge in Text-to-Image Diffusion Models via Learnable Prompts",
        "Bui et al.",
        2024,
        "2403.12326",
    )
    has_key: ClassVar[bool] = True
    requires: ClassVar[Sequence[str]] = ("cross-attention",)
    knows: ClassVar[Mapping[str, Kind]] = {"neutral": "anchor", "templates": "phrases", "retain_random": "random_texts"}
    tuning: ClassVar[Sequence[str]] = (
        *("goal", "keep", "place", "k", "halves", "retain_weight", "retain_points"),
        *("prompt_scope", "prompt_values", "prompt_std", "prompt_lr", "prompt_steps", "prompt_optimizer"),
    )
    neutral: str = "a photo"
    """What targets become when they name no anchor of their own, c_n."""
    goal: Literal["neutral", "esd"] = "neutral"
    """What the model answers a target with: the neutral text's prediction, or ESD's guided away from the target."""
    lamb: float = 0.1
    """Weight of the term that keeps target and prompt together alive, lambda in Eq. 7."""
    keep: Literal["prompt", "frozen-prompt", "weights", "none"] = "prompt"
    """Ablation: that term as it is, with a random prompt that never learns, replaced by |theta' - theta|^2, or left out."""
    place: Place = "mid"
    """Where the prompt goes: after the text in the middle block's cross-attention, in more blocks, added to the text, or as new
    words behind the target's own, before the text encoder."""
    k: int = 10
    """Tokens of a prompt that goes after the text or its words (one that is added to the text has the text's length)."""
    prompt_scope: Scope = field(default="per-concept", metadata=LATER)
    """Whose prompt is learned: each concept's own, one for all of them, or a network's, which reads the concept's name."""
    prompt_values: Values = field(default="tied", metadata=LATER)
    """Whether a prompt that goes after the text is keys and values alike, or a pair, with other tokens for the values."""
    halves: Halves = "both"
    """Who reads the prompt at recovery, of a guided pair: both halves, or the one with the text, as training did.

    A prompt among the words is in the half with the text."""
    prompt_std: float = 1.0
    """Standard deviation of the random prompts that training begins with; 0 is for a prompt added to the text.

    Among the words it is in units of the vocabulary's own."""
    prompt_lr: float = 1e-5
    """Learning rate of the prompts."""
    prompt_steps: int = 1
    """Updates of the prompt before each one of the model."""
    prompt_optimizer: Optimizer = "adam"
    """Adam as for the model, or the plain gradient descent of Eq. 6."""
    retain_weight: float = 1.0
    """Weight of the term that keeps retained words, lambda_r; with neither words nor random texts there is no such term."""
    retain_points: Literal["target", "own"] = "target"
    """Where retained words are kept: at the targets' points, or at points on trajectories of their own."""
    retain_random: float = 0.0
    """Share of the retained points that keep a text of one to three random tokens; 1 or 0 without retained words."""
    templates: tuple[str, ...] = ("{}",)
    """Phrases that targets and retained words are put into; each point draws one."""
    group: str = "xattn"
    """Parameters that are trained: xattn, xattn-strict, noxattn (the paper's for nudity), full."""
    lr: float = 1e-5
    """Learning rate of Adam for the model."""
    decay: Decay = "none"
    """Whether both learning rates fall to zero on a straight line."""
    iterations: int = 1000
    """Updates."""
    batch: int = 1
    """Points an update."""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_counts("kpop", iterations=self.iterations, batch=self.batch, k=self.k, prompt_steps=self.prompt_steps)
        if self.keep != "none" and not self.lamb > 0:
            raise ExpungeError(
                f"kpop's lamb is {self.lamb}: expected a positive number (to leave the term out, as an ablation: keep none)"
            )
        check_positive("kpop", lr=self.lr, prompt_lr=self.prompt_lr, retain_weight=self.retain_weight)
        if not (self.prompt_std > 0 or (self.prompt_std == 0 and self.place == "text")):
            raise ExpungeError(
                f"kpop's prompt_std is {self.prompt_std}: expected a positive number, or 0 for a prompt added to the text"
            )
        if self.prompt_values == "own" and self.place not in BLOCKS:
            raise ExpungeError(
                f"kpop's prompt_values own with place {self.place}: expected a place after the text ({', '.join(BLOCKS)})"
            )
        if not 0 <= self.retain_random <= 1:
            raise ExpungeError(f"kpop's retain_random is {self.retain_random}: expected a share, 0 to 1")
        if self.retain_random and self.retain_points == "own":
            raise ExpungeError(
                "kpop's retain_random with retain_points own: expected random texts at the targets' points"
            )
        phrases(self.templates, "")

    @property
    def prompted(self) -> bool:
        """Whether the second term of Eq. 7 has a prompt; an ablation without one leaves a key of random numbers."""
        return self.keep in ("prompt", "frozen-prompt")

    @property
    @override
    def shares_key(self) -> bool:
        return self.prompt_scope == "shared"

    @override
    def knowledge(self) -> Knowledge:
        """Of its own anchor only where that is the goal: ESD's is the target's own prediction."""
        known = super().knowledge()
        return replace(known, anchor=None) if self.goal == "esd" else known

    @property
    @override
    def unaimed(self) -> str:
        return "since kpop's goal is ESD's, and neutral is the one that has anchors" if self.goal == "esd" else ""

    @override
    def check(self, backbone: Backbone) -> None:
        trainable(backbone, self.group)
        check_place(backbone, self.place)

    @override
    def stronger(self, times: float) -> "KPOP":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        return Erasure(self, backbone, task).steps(resume)

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        points = self.iterations * self.batch
        prompted = self.prompted
        towards = self.goal == "neutral"
        ways = len(self.templates)
        known = (2 if self.goal == "esd" else int(prompted)) + (towards and not self.neutral)
        total = self.sampling.cost(points, known, targets * ways, also=int(towards and bool(self.neutral)))
        total += Cost(trained=points * (1 + prompted + (self.prompt_steps if self.keep == "prompt" else 0)))
        if retain or self.retain_random:
            own = self.sampling.cost(points, 1, retain * ways) if self.retain_points == "own" else Cost(forward=points)
            total += own + Cost(trained=points)
        return total

    @override
    def fresh_key(self, backbone: Backbone, task: Task, edits: Sequence[Edit]) -> Recovery:
        """Prompts alone, by Eq. 5 and 6, for ``iterations`` updates; points are the original's own, whatever the arm."""
        return fresh(self, backbone, task, edits)

    @override
    def fresh_cost(self, targets: int) -> Cost:
        points = self.iterations * self.batch
        return self.sampling.cost(points, 1, targets * len(self.templates)) + Cost(trained=points * self.prompt_steps)
