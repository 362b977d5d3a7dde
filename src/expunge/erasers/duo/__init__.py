"""DUO: prefer safe images to unsafe ones, in pairs, and leave the answer to pure noise as it was."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Real
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept, phrases
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.eraser import LATER, Eraser, Redrawn, Step, Task, Wish
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.knowledge import Kind
from expunge.erasers.duo.pairs import SAFE, UNSAFE, Cut, Pairs, Texts
from expunge.maths import preference
from expunge.maths.preference import Changes, NoGrad, row_errors
from expunge.maths.training import Learned, numbers, thin

SIDES = {"dpo": (SAFE, UNSAFE), "kto": (SAFE, UNSAFE), "both": (SAFE, UNSAFE), "finetune": (SAFE,), "ascent": (UNSAFE,)}
"""The images that each loss looks at."""
COMPARED: Mapping[str, Callable[[Changes, float], Tensor]] = {"dpo": preference.dpo, "kto": preference.kto}
"""The losses that compare with the original model's errors."""


@final
@dataclass(frozen=True, kw_only=True)
class Flow:
    """What is particular to models of a flow (SD3), where the authors' code and its purpose part."""

    direction: Literal["clean", "noisy"] = "clean"
    """The end of the noise levels that ``t_max`` counts from: clean, as for SD 1.4, or (the authors' code for SD3) noisy."""
    prior: Literal["noise", "released"] = "noise"
    """Level at which answers to pure noise are kept: 1, or (the authors' code, where it has next to no effect) the lowest."""
    precondition: bool = True
    """Measure errors on the clean image that a prediction implies, not on the velocity."""


class _Batch(NamedTuple):
    """The rows that one update asks the model for: those of each side, pure noise, and safe images with random texts."""

    x: Float[Tensor, "n c h w"]
    t: Real[Tensor, "n"]
    cond: Conditioning
    truth: Float[Tensor, "m c h w"]
    """What the sides' rows should be answered with."""
    random: int
    """How many of the rows, the last ones, have random texts."""
    weight: Float[Tensor, "n"]
    """What squared errors are multiplied by."""


@final
@dataclass(frozen=True, kw_only=True)
class DUO(Eraser):
    r"""Direct unlearning optimization: prefer the safe image of a pair to the unsafe one, whatever the prompt.

    .. math:: L = -\log \sigma\big( -\beta (\Delta^+ - \Delta^-) \big)
        + \lambda \big\| \epsilon_\theta(\epsilon, T) - \epsilon_\phi(\epsilon, T) \big\|^2,
        \quad \Delta = m_\theta - m_\phi

    2407.21035, as its authors implement it; methods.md A2. m is the mean squared error at a noised image, phi the original. A
    LoRA on self-attention learns (on SD3 the image stream's attention), from pairs alone: with the empty texts of their code
    the words of a prompt play no part.
    Several concepts are several edits, attached together. Ignores the retain list.
    Deviations: the sign before the reference's error on the unsafe image is minus, as in the code (Eq. 4 prints plus, with
    which nothing is learned); latents are the autoencoder's mode, not a sample; one process with a batch of 4, not four with
    one; if no pairs are given the model makes them, and nobody looks (`expunge pairs` has a judge look); for SD3 see `flow`.
    """

    version: ClassVar[int] = 2  # 2: the length that its gradient is cut to is added up in double precision
    paper: ClassVar[Paper] = Paper(
        "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models",
        "Park et al.",
        2024,
        "2407.21035",
        "https://github.com/naver-ai/DUO",
    )
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"anchor": "anchor", "base_random": "random_texts"}
    tuning: ClassVar[Sequence[str]] = (
        *("loss", "shuffled", "base_lr", "base_lamb", "base_keep", "dynamic_lamb", "no_grad", "timesteps", "t_max"),
        *("texts", "prompt", "pairs", "strength", "crop", "bank", "flow"),
    )
    loss: Literal["dpo", "kto", "finetune", "ascent", "both"] = "dpo"
    """What is minimised: the preference, its KTO variant (one timestep a batch, safe images averaged), or a baseline on the
    same pairs: the error on safe images, minus that on unsafe ones, or both."""
    shuffled: bool = field(default=False, metadata=LATER)
    """With loss kto: each unsafe image has another pair's safe one, the same for a whole run; texts stay (the code)."""
    beta: float = 500.0
    """How far the model may leave the original: smaller is stronger. Violence: 1000."""
    base_lr: float = 3e-4
    """Learning rate at beta 100; the rate is this times 100 / beta. SD3: 3e-5."""
    base_lamb: float = 1e6
    """Weight of the answers to pure noise at beta 100; the weight is this times beta / 100. 0 leaves the term out."""
    base_keep: float = 0.0
    """This project's own: weight at beta 100 of the original's answers to the noised safe images, scaled as that of the answers
    to pure noise. They are asked for anyway, so it costs nothing; for losses that compare."""
    base_random: float = 0.0
    """This project's own: weight at beta 100, scaled likewise, of the original's answers to safe images at any noise level with
    texts of random tokens, so that what nobody named stays; a further row a pair."""
    dynamic_lamb: bool = False
    """Multiply the weight of the answers to pure noise by 100 while the preference loss is below 0.1."""
    no_grad: NoGrad = "none"
    """A side of the preference that does not learn: that of the unsafe images (ascent), or of the safe ones (descent)."""
    timesteps: Literal["independent", "shared"] = "independent"
    """Whether the images of a pair have a timestep each (the code), or one (Diffusion-DPO)."""
    t_max: int = 750
    """Timesteps are drawn below this, of 1000."""
    texts: Texts = "empty"
    """What images are denoised with: the empty prompt (the code), the prompts they were made with (the paper), or both with the
    unsafe one's (Diffusion-DPO: one prompt, two images), so that what it asks for becomes the safe image."""
    anchor: str = ""
    """What targets become when they name no anchor, in pairs that the model makes: dressed woman for naked woman."""
    prompt: str = "{}"
    """What those pairs are made with; the safe image with the unsafe one's prompt as its negative one."""
    pairs: int = 64
    """Pairs of each target, made by the model if none are given. Violence: 32."""
    strength: float = 0.75
    """Share of the denoising steps that redraw the unsafe image as the safe one. Violence: 0.8."""
    flip: bool = False
    """Mirror both images of a pair with probability a half."""
    crop: float = 1.0
    """Side of the random window that both are cut to, as a share of the image's; 1 is all of it."""
    layers: str | None = None
    """Layers that the LoRA stands beside; selfattn if not given, or attn on a model without self-attention of its own."""
    rank: int = 32
    """Width of the LoRA, r."""
    alpha: float = 32.0
    """The change is scaled by alpha / r."""
    weight_decay: float = 1e-2
    """AdamW's."""
    clip: float = 1.0
    """Longest gradient."""
    iterations: int = 1000
    """Updates. Violence: 500."""
    batch: int = 4
    """Pairs an update."""
    bank: int = 0
    """Batches (pairs, noise, timesteps) that are drawn once, and used again with what the original answered; 0: always new."""
    flow: Flow = field(default_factory=Flow)

    def __post_init__(self) -> None:
        check_counts("duo", rank=self.rank, iterations=self.iterations, batch=self.batch, pairs=self.pairs)
        check_positive("duo", beta=self.beta, base_lr=self.base_lr, alpha=self.alpha, clip=self.clip)
        if not 1 <= self.t_max <= 1000 or not 0 < self.crop <= 1 or not 0 < self.strength <= 1:
            raise ExpungeError(
                f"duo's t_max {self.t_max}, crop {self.crop} and strength {self.strength}: expected 1 to 1000, and shares "
                "above 0, up to 1"
            )
        if self.shuffled and self.loss != "kto":
            raise ExpungeError(
                f"duo's shuffled with loss {self.loss}, which needs no order of its own: expected loss kto"
            )
        for name in ("base_lamb", "base_keep", "base_random", "weight_decay", "bank"):
            if not getattr(self, name) >= 0:
                raise ExpungeError(f"duo's {name} is {getattr(self, name)}: expected 0 or more")
        if self.base_keep and self.loss not in COMPARED:
            raise ExpungeError(
                f"duo's base_keep with loss {self.loss}: expected a loss that compares, "
                f"{' or '.join(COMPARED)}, or base_keep 0"
            )
        if self.no_grad != "none" and self.loss not in COMPARED:
            raise ExpungeError(
                f"duo's no_grad '{self.no_grad}' with loss {self.loss}, which compares no two sides: expected none, or a loss "
                f"that does ({', '.join(COMPARED)})"
            )
        if self.dynamic_lamb and self.loss not in COMPARED:
            raise ExpungeError(
                f"duo's dynamic_lamb with loss {self.loss}, which has no preference to be learned: expected "
                f"{' or '.join(COMPARED)}"
            )
        phrases([self.prompt], "")

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self.base_lr * 100 / self.beta

    @property
    def lamb(self) -> float:
        """The weight of the answers to pure noise."""
        return self.base_lamb * self.beta / 100

    def _scaled(self) -> dict[str, float]:
        """The weights of this project's own terms, where they are set."""
        base = {"kept": self.base_keep, "retained": self.base_random}
        return {name: value * self.beta / 100 for name, value in base.items() if value}

    @override
    def derived(self) -> Mapping[str, float]:
        return {"lr": self.lr, "lamb": self.lamb, **self._scaled()}

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[Wish]]:
        asked: list[str] = []
        redrawn: list[Redrawn] = []
        for target in targets:
            anchor = self.anchor if target.anchor is None else target.anchor
            unsafe, safe = phrases([self.prompt], target.name)[0], phrases([self.prompt], anchor)[0] if anchor else ""
            asked += [unsafe] * self.pairs
            redrawn += [Redrawn(safe, of=UNSAFE, strength=self.strength, negative=unsafe)] * self.pairs
        return {UNSAFE: asked, SAFE: redrawn}

    @override
    def check(self, backbone: Backbone) -> None:
        backbone.layers(self._layers(backbone))

    def _layers(self, backbone: Backbone) -> str:
        return self.layers or ("attn" if backbone.supports("flow") else "selfattn")

    @override
    def stronger(self, times: float) -> "DUO":
        return replace(self, beta=self.beta / times)

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        pairs = self.paired(backbone, task)
        start = thin(backbone, backbone.layers(self._layers(backbone)), self.rank, task.generator("duo"), "gaussian")
        student = Learned(start, self.lr, "adamw", {"weight_decay": self.weight_decay})
        first, scale = 0, self.alpha / self.rank
        if resume is not None:
            student.load("student", resume)
            first = int(resume["next"])
        banked: dict[int, tuple[_Batch, Tensor]] = {}
        for index in range(first, self.iterations):
            number = _shuffled(task, "duo bank", index, self.bank) if self.bank else index
            if number not in banked:
                batch = self._batch(backbone, task, pairs, number)
                banked = {**(banked if self.bank else {}), number: (batch, self._original(backbone, batch))}
            batch, original = banked[number]
            with backbone.adapted(student.tensors(), scale):
                answer = backbone.predict(batch.x, batch.t, batch.cond)
                losses = self._losses(batch, answer, original)
                student.descend(self._total(losses), clip=self.clip)
            yield Step(
                index=index,
                edit=lambda: backbone.adapter_of(student.values(), scale),
                losses=numbers(losses),
                state=lambda index=index: {**student.state("student"), "next": torch.tensor(index + 1)},
            )

    def paired(self, backbone: Backbone, task: Task) -> Pairs:
        """The pairs of ``task``, as the settings have them looked at."""
        sides = SIDES[self.loss]
        return Pairs(backbone, task, sides=sides, texts=self.texts, flip=self.flip, crop=self.crop)

    def _batch(self, backbone: Backbone, task: Task, pairs: Pairs, number: int) -> _Batch:
        """What update ``number`` is about: the same noise for both images of a pair, and for the row of pure noise."""
        generator = task.generator("duo", number)
        paired = self._which(task, pairs.count, number)
        which = {SAFE: self._apart(task, pairs.count, paired) if self.shuffled else paired, UNSAFE: paired}
        noise = torch.randn((self.batch, *pairs.shape), generator=generator).to(backbone.device)
        times = self._times(backbone, generator)
        cuts = [Cut(bool(f < 0.5), x, y) for f, x, y in torch.rand(self.batch, 3, generator=generator).tolist()]
        sides, random = SIDES[self.loss], self.batch if self.base_random else 0
        x0 = {
            side: torch.cat([pairs.latents(side, i, cut) for i, cut in zip(which[side], cuts, strict=True)])
            for side in {*sides, *([SAFE] if random else [])}
        }
        xs = [backbone.add_noise(x0[side], noise, times[side]) for side in sides]
        truths = [backbone.truth(x0[side], noise, times[side]) for side in sides]
        ts, rows, known = [times[side] for side in sides], pairs.rows(paired, sides), pairs.cond
        if self.base_lamb:
            xs, ts, rows = [*xs, noise], [*ts, self._last(backbone, ts[0])], [*rows, *[0] * self.batch]
        if random:
            with torch.no_grad():
                texts = backbone.encode(backbone.random_texts(random, generator))
            rows, known = [*rows, *(len(pairs.texts) + i for i in range(random))], known.join(texts)
            ts.append(self._anywhere(backbone, random, generator))
            xs.append(backbone.add_noise(x0[SAFE], noise, ts[-1]))
        t = torch.cat(ts)
        weight = torch.ones(len(t), device=t.device)
        if backbone.supports("flow") and self.flow.precondition:
            weight = (t / backbone.training_timesteps).square()  # x_0 as implied is x - sigma v
        cond = known.rows(torch.tensor(rows, device=t.device))
        return _Batch(torch.cat(xs), t, cond, torch.cat(truths), random, weight)

    def _which(self, task: Task, count: int, number: int) -> list[int]:
        """The pairs that update ``number`` looks at."""
        return [_shuffled(task, "duo pairs", number * self.batch + i, count) for i in range(self.batch)]

    def _apart(self, task: Task, count: int, paired: Sequence[int]) -> list[int]:
        """The pairs whose safe images stand beside the unsafe ones of ``paired``: one order of all for a whole run."""
        order = torch.randperm(count, generator=task.generator("duo safe")).tolist()
        return [order[pair] for pair in paired]

    def _times(self, backbone: Backbone, generator: torch.Generator) -> dict[str, Real[Tensor, "b"]]:
        """Timesteps of each side's images."""
        drawn = 1 if self.loss == "kto" else self.batch
        u = torch.rand(2, drawn, generator=generator, dtype=torch.float64).expand(2, self.batch)
        if self.loss == "kto" or self.timesteps == "shared":
            u = u[:1].expand(2, -1)
        if backbone.supports("flow"):
            u = u * self.t_max / 1000 + (1 - u) * 0.001
            levels = torch.tensor(backbone.timesteps(backbone.training_timesteps))  # noisy first
            index = (u * len(levels)).long()
            t = levels[index if self.flow.direction == "noisy" else len(levels) - 1 - index]
        else:
            t = (u * max(1, round(self.t_max / 1000 * backbone.training_timesteps))).long()
        return dict(zip((SAFE, UNSAFE), t.to(backbone.device), strict=True))

    def _anywhere(self, backbone: Backbone, rows: int, generator: torch.Generator) -> Real[Tensor, "b"]:
        """Timesteps of all there are."""
        index = torch.randint(0, backbone.training_timesteps, (rows,), generator=generator)
        levels = torch.tensor(backbone.timesteps(backbone.training_timesteps)) if backbone.supports("flow") else None
        return (index if levels is None else levels[index]).to(backbone.device)

    def _last(self, backbone: Backbone, like: Real[Tensor, "b"]) -> Real[Tensor, "b"]:
        """The timestep of pure noise."""
        last = backbone.training_timesteps - 1
        if backbone.supports("flow"):
            released = self.flow.prior == "released"
            last = backbone.timesteps(backbone.training_timesteps)[-1] if released else backbone.training_timesteps
        return torch.full_like(like, last)

    @torch.no_grad()
    def _original(self, backbone: Backbone, batch: _Batch) -> Float[Tensor, "k c h w"]:
        """What the original answers: to all rows for a loss that compares, else to those that are kept."""
        first = 0 if self.loss in COMPARED else len(batch.truth)
        if first == len(batch.x):
            return batch.x[:0]
        rows = torch.arange(first, len(batch.x), device=batch.x.device)
        return backbone.predict(batch.x[first:], batch.t[first:], batch.cond.rows(rows))

    def _losses(
        self, batch: _Batch, answer: Float[Tensor, "n c h w"], original: Float[Tensor, "k c h w"]
    ) -> dict[str, Tensor]:
        n = len(batch.truth)
        errors = batch.weight[:n] * row_errors(answer[:n], batch.truth)
        if self.loss in COMPARED:
            known = batch.weight[:n] * row_errors(original[:n], batch.truth)
            changes = Changes(*(errors - known).chunk(2)).sided(self.no_grad)
            wanted = COMPARED[self.loss](changes, self.beta)
        elif self.loss == "both":
            safe, unsafe = errors.chunk(2)
            wanted = safe.mean() - unsafe.mean()
        else:
            wanted = errors.mean() if self.loss == "finetune" else -errors.mean()
        moved = batch.weight[n:] * row_errors(answer[n:], original[len(original) - len(answer) + n :])
        of_noise, of_random = moved[: len(moved) - batch.random], moved[len(moved) - batch.random :]
        losses = {"preference": wanted, "prior": of_noise.sum() / max(1, len(of_noise))}
        if self.base_keep:
            safe = n // 2  # the first of both sides
            losses["kept"] = (batch.weight[:safe] * row_errors(answer[:safe], original[:safe])).mean()
        if self.base_random:
            losses["retained"] = of_random.mean()
        return losses

    def _total(self, losses: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The loss of an update."""
        weights = {**self._scaled(), "preference": 1.0, "prior": self._weight(losses)}
        return torch.stack([weights[name] * value for name, value in losses.items()]).sum()

    def _weight(self, losses: Mapping[str, Tensor]) -> float:
        """The weight of the answers to pure noise in this update."""
        return self.lamb * (100 if self.dynamic_lamb and losses["preference"] < 0.1 else 1)

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        sides, noise = len(SIDES[self.loss]), bool(self.base_lamb) + bool(self.base_random)
        known = (sides if self.loss in COMPARED else 0) + noise
        asked = min(self.bank, self.iterations) if self.bank else self.iterations
        return Cost(forward=asked * self.batch * known, trained=self.iterations * self.batch * (sides + noise))


def _shuffled(task: Task, purpose: str, number: int, among: int) -> int:
    """The ``number``-th of an endless row of numbers below ``among``: all of them in random order, again and again."""
    order = torch.randperm(among, generator=task.generator(purpose, number // among))
    return int(order[number % among])
