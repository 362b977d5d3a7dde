"""Tensors that are being learned."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.errors import ExpungeError

Optimizer = Literal["adam", "adamw", "sgd"]
Decay = Literal["none", "linear", "cosine-restarts"]
SCALE = 2.0**16
"""What a loss is multiplied by at first where its gradient comes back through float16: PyTorch's own choice."""
GROWTH = 2000
"""Updates in a row with finite gradients after which that doubles: PyTorch's, too."""


def pace(decay: Decay, update: int, updates: int, warmup: int = 0, cycles: int = 1) -> float:
    """What the learning rate is scaled by at ``update`` of ``updates``.

    1, or a straight line from 1 down to 1 / updates, or ``cycles`` half cosines from 1 to 0, after a straight line from 0 up to
    1 over the first ``warmup`` updates.
    """
    if update < warmup:
        return update / warmup
    done = (update - warmup) / max(1, updates - warmup)
    if decay == "cosine-restarts":
        return 0.5 * (1 + math.cos(math.pi * (cycles * done % 1)))
    return 1.0 if decay == "none" else 1 - done


@final
class Scaling:
    """The factor of a loss whose gradient comes back through float16, where small numbers would vanish (1710.03740).

    By the rule of `torch.amp.GradScaler`, a gradient that is not finite halves the factor, and `GROWTH` others in a row double
    it. But PyTorch's leaves all such updates out, and goes on in silence where no factor helps.
    """

    def __init__(self) -> None:
        """Begin at `SCALE`."""
        self.factor, self.updates = SCALE, 0

    def unscale(self, gradients: Sequence[Tensor]) -> bool:
        """Divide gradients by the factor, in place, and set the next one; False if they are to be asked for again.

        Raises:
            ExpungeError: if no factor makes them finite.
        """
        finite = bool(torch.stack([gradient.div_(self.factor).isfinite().all() for gradient in gradients]).all())
        self.updates = (self.updates + 1) % GROWTH if finite else 0
        if not finite:
            self.factor /= 2
        elif self.updates == 0:
            self.factor *= 2
        if self.factor < 1:
            raise ExpungeError(
                "a gradient in float16 that is not finite, however small its loss: expected bfloat16 or float32"
            )
        return finite

    def gradients(self, loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Those of a loss by some tensors; None for one that it does not depend on, and for all where they are left out.

        While the factor is new the graph is kept, which takes memory, to ask again. Later, as PyTorch does, one is left out.

        Raises:
            ExpungeError: if no factor makes them finite.
        """
        while True:
            new = self.updates == 0
            found = torch.autograd.grad(loss * self.factor, tensors, allow_unused=True, retain_graph=new)
            own = [gradient for gradient in found if gradient is not None]
            if not own or self.unscale(own) or not loss.isfinite():  # whoever trains says that a loss is not
                return list(found)
            if not new:
                return [None for _ in found]

    def state(self) -> Tensor:
        """What `load` takes, ``[2]``."""
        return torch.tensor([self.factor, self.updates], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        """Go on from a `state`."""
        self.factor, self.updates = float(state[0]), int(state[1])


@final
class Learned:
    """Named tensors under an optimizer, learned in float32 whatever the precision the model reads them in.

    (An update of 1e-5 is lost in bfloat16 and mostly lost in float16, so the model's own tensors cannot be learned in place.)
    Gradients come back in the model's precision: where that is float16, losses are scaled on the way (`Scaling`).
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        lr: float,
        optimizer: Optimizer = "adam",
        options: Mapping[str, Any] | None = None,
        through: torch.dtype | None = None,
    ) -> None:
        """Learn copies of ``tensors`` at rate ``lr``; ``options`` are the optimizer's, else PyTorch's defaults.

        ``through`` is the precision of the model that losses come through, if it is another than that of the tensors.
        """
        self._dtypes = {name: t.dtype for name, t in tensors.items()}
        self._scaling = Scaling() if torch.float16 in (*self._dtypes.values(), through) else None
        self._copies = {name: t.detach().to(torch.float32, copy=True).requires_grad_() for name, t in tensors.items()}
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
        self._lr = lr
        self._optimizer = kind(list(self._copies.values()), lr=lr, **(options or {}))

    def tensors(self) -> dict[str, Tensor]:
        """What the model reads: differentiable, in the precision of the tensors they were made from."""
        return {name: t.to(self._dtypes[name]) for name, t in self._copies.items()}

    def values(self) -> dict[str, Tensor]:
        """The same without a gradient."""
        return {name: t.detach().to(self._dtypes[name]) for name, t in self._copies.items()}

    def descend(self, loss: Tensor, pace: float = 1.0, clip: float | None = None) -> Tensor:
        """One update against ``loss``, which moves these tensors only (and of them only those that the loss depends on).

        ``pace`` scales the learning rate; ``clip`` is the longest that the gradient of all tensors together may be. Returns the
        loss before the update, where it was computed: `numbers` reads it.
        """
        self.move(self.pull(loss), pace, clip)
        return loss.detach()

    def pull(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradient of ``loss`` by these tensors, in float32, of those that it depends on; for `move`, summed or not."""
        return pulls([self], loss)[0]

    def move(self, gradients: Mapping[str, Tensor], pace: float = 1.0, clip: float | None = None) -> None:
        """One update along `pull`'s gradients, which are used up; ``pace`` and ``clip`` as in `descend`."""
        for name, copy in self._copies.items():
            copy.grad = gradients.get(name)
        if clip is not None:
            _shorten(list(gradients.values()), clip)
        self._optimizer.param_groups[0]["lr"] = self._lr * pace
        self._optimizer.step()
        self._optimizer.zero_grad()

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write other values into some of them, as a projection after an update does; the optimizer goes on as it was."""
        for name, value in tensors.items():
            self._copies[name].copy_(value)

    def squared_distance(self, origin: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        r""":math:`\|\theta' - \theta\|^2` from the tensors ``origin``, summed over all learned numbers; differentiable.

        With ``weights`` each number's square counts so much, as in :math:`\sum_i F_i (\theta'_i - \theta_i)^2`.
        """
        squares = {n: (copy - origin[n].float()).square() for n, copy in self._copies.items()}
        return torch.stack([(s if weights is None else weights[n] * s).sum() for n, s in squares.items()]).sum()

    def state(self, name: str) -> dict[str, Tensor]:
        """Values and optimizer state, under names that begin with ``name``; what `load` takes."""
        found = {f"{name}/value/{n}": t.detach().clone() for n, t in self._copies.items()}
        for tensor_name, copy in self._copies.items():
            for part, value in self._optimizer.state.get(copy, {}).items():
                if isinstance(value, Tensor):
                    found[f"{name}/{part}/{tensor_name}"] = value.clone()
        return found if self._scaling is None else {**found, f"{name}/scaling": self._scaling.state()}

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`.

        Raises:
            ExpungeError: if it lacks one of the tensors.
        """
        for tensor_name, copy in self._copies.items():
            _restore(copy, state, f"{name}/value/{tensor_name}")
            keys = {part: f"{name}/{part}/{tensor_name}" for part in ("step", "exp_avg", "exp_avg_sq")}
            if all(key in state for key in keys.values()):  # a tensor that no loss has touched yet has none
                self._optimizer.state[copy] = {part: state[key].clone() for part, key in keys.items()}
        if self._scaling is not None:
            scaling = self._scaling.state()
            _restore(scaling, state, f"{name}/scaling")
            self._scaling.load(scaling)


def pulls(parts: Sequence[Learned], loss: Tensor) -> list[dict[str, Tensor]]:
    """`Learned.pull` of several parts by one backward pass; the first part's `Scaling` is that of all."""
    copies = [(number, name, copy) for number, part in enumerate(parts) for name, copy in part._copies.items()]
    tensors, scaling = [copy for *_, copy in copies], parts[0]._scaling
    plain = scaling is None
    found = torch.autograd.grad(loss, tensors, allow_unused=True) if plain else scaling.gradients(loss, tensors)
    by_part: list[dict[str, Tensor]] = [{} for _ in parts]
    for (number, name, _), gradient in zip(copies, found, strict=True):
        if gradient is not None:
            by_part[number][name] = gradient
    return by_part


def _shorten(gradients: Sequence[Tensor], longest: float) -> None:
    """Scale tensors so that together they are no longer than that; torch's way but for the precision.

    In single precision the length of a tensor differs in its last bit by where the tensor lies in memory, and so would two
    equal runs: it is added up in double precision, where the device has that.
    """
    wide = torch.float32 if gradients[0].device.type == "mps" else torch.float64
    length = torch.stack([gradient.to(wide).square().sum() for gradient in gradients]).sum().sqrt()
    # a tensor, so that nothing waits for the device
    share = torch.fmin(longest / (length + 1e-6), torch.ones_like(length))
    for gradient in gradients:
        gradient.mul_(share)


@final
class Averaged:
    """An exponential moving average of tensors that are being learned, in float32."""

    def __init__(self, student: Learned, decay: float) -> None:
        """Begin at the student's values; ``decay`` is how much of the average stays at an update, from 0 to 1."""
        self._student, self._decay = student, decay
        self._copies = {name: t.detach().clone() for name, t in student._copies.items()}

    def follow(self) -> None:
        r"""Take the student's values in, after its update: :math:`\theta^* \leftarrow m \theta^* + (1 - m) \theta`."""
        for name, copy in self._copies.items():
            copy.mul_(self._decay).add_(self._student._copies[name].detach(), alpha=1 - self._decay)

    def values(self) -> dict[str, Tensor]:
        """The average, in the precision of the tensors that the student was made from."""
        return {name: t.to(self._student._dtypes[name]) for name, t in self._copies.items()}

    def state(self, name: str) -> dict[str, Tensor]:
        """The average, under names that begin with ``name``; what `load` takes."""
        return {f"{name}/value/{n}": t.clone() for n, t in self._copies.items()}

    def load(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`.

        Raises:
            ExpungeError: if it lacks one of the tensors.
        """
        for tensor_name, copy in self._copies.items():
            _restore(copy, state, f"{name}/value/{tensor_name}")


@torch.no_grad()
def _restore(copy: Tensor, state: Mapping[str, Tensor], key: str) -> None:
    """Write what a state holds under ``key`` into a tensor."""
    value = state.get(key)
    if value is None or value.shape != copy.shape:
        raise ExpungeError(
            f"the state to resume from has no '{key}' of shape {tuple(copy.shape)}: expected a state of the same run"
        )
    copy.copy_(value)


def trainable(backbone: Backbone, group: str) -> list[str]:
    """Parameters of a group of the denoiser.

    Raises:
        ExpungeError: for an unknown group, or one of the text encoder, whose outputs a loop over the denoiser holds fixed.
    """
    names = backbone.group(group)
    foreign = [n for n in names if n.startswith("text_encoder.")]
    if foreign:
        raise ExpungeError(f"parameter group '{group}' holds '{foreign[0]}': expected a group of the denoiser")
    return names


def thin(
    backbone: Backbone,
    layers: Sequence[str],
    rank: int,
    generator: torch.Generator,
    drawn_from: Literal["uniform", "gaussian"] = "uniform",
) -> dict[str, Tensor]:
    """A low-rank change beside each layer (tensors ``LAYER.down``, ``LAYER.up``) that changes nothing yet: up is zero.

    Down is ``kaiming_uniform_`` with a = sqrt(5), as LoRA has it, or normal with standard deviation 1 / rank (peft's gaussian).
    """
    factors: dict[str, Tensor] = {}
    for layer in layers:
        weight = backbone.tensors([f"{layer}.weight"])[f"{layer}.weight"]
        out, *taken = weight.shape
        if drawn_from == "gaussian":
            drawn = torch.randn((rank, *taken), generator=generator) / rank
        else:
            drawn = (2 * torch.rand((rank, *taken), generator=generator) - 1) * (1 / math.sqrt(math.prod(taken)))
        factors[f"{layer}.down"] = drawn.to(weight)
        factors[f"{layer}.up"] = torch.zeros(out, rank, *(1 for _ in taken[1:])).to(weight)
    return factors


def numbers(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Terms of a loss as numbers, by name: one copy from the device for all, since each would wait for it."""
    if not terms:
        return {}
    values = torch.stack([term.detach() for term in terms.values()]).tolist()
    return dict(zip(terms, values, strict=True))


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error over all elements, as released code computes the papers' squared norms (methods.md 0.1)."""
    return (a.float() - b.float()).square().mean()
