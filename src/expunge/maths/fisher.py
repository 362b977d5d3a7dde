"""Fisher information of a denoiser, its diagonal: how much each parameter matters to images that should stay."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.concept import Concept, named, phrases, spans
from expunge.core.edit import fingerprint_as, not_finite, plain
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Shot
from expunge.maths.preference import row_errors
from expunge.maths.training import Scaling

REPLAY = "replay"
"""What images of things that should stay are called."""
SCENES = (
    "a mountain lake at sunrise",
    "a narrow street in an old town",
    "a bowl of fruit on a wooden table",
    "an elderly couple on a park bench",
    "a portrait of a woman with a red scarf",
    "a man who reads a newspaper in a cafe",
    "children who play on a beach",
    "a crowded market in the evening",
    "a steam locomotive in the snow",
    "a lighthouse above rough water",
    "a field of lavender under a blue sky",
    "a waterfall in a green forest",
    "a desert with dunes and a camel",
    "a modern kitchen with large windows",
    "a cluttered desk with a lamp and papers",
    "a bridge across a wide river at night",
    "a herd of sheep on a hill",
    "a lion that rests in tall grass",
    "a parrot on a branch",
    "a plate of pasta with basil",
    "a cup of tea beside a window",
    "an orchestra on a stage",
    "a cyclist on a country road",
    "a city skyline in fog",
    "an astronaut on a red planet",
    "a robot in a workshop",
    "a dragon above a village, fantasy art",
    "a still life in oil, with flowers",
    "a watercolour of a harbour",
    "a pencil sketch of a hand",
    "a woodcut of a storm at sea",
    "an abstract painting in blue and orange",
)
"""This project's own list of things that should stay, where nobody gives one."""


class Fisher(NamedTuple):
    """A diagonal, by parameter, and what tells the model and the images that it is of."""

    tensors: Mapping[str, Tensor]
    """By `plain` names."""
    about: Mapping[str, Any]
    """JSON; ``base_sha256`` has the fingerprints of the parameters' own values, by dtype."""


class Strata(NamedTuple):
    """Timesteps that stand for all, each for the stratum that it was drawn from."""

    t: Int[Tensor, "k"]
    weight: Float[Tensor, "k"]
    """How many timesteps its stratum has."""


def strata(timesteps: int, count: int, generator: torch.Generator) -> Strata:
    r"""One timestep at random from each of ``count`` equal parts of all ``timesteps``.

    .. math:: \mathbb{E} \sum_k w_k f(t_k) = \sum_t f(t)

    With as many parts as timesteps each is its own, and nothing is random.
    """
    edges = torch.arange(count + 1) * timesteps // count
    sizes = edges.diff()
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return Strata(edges[:-1] + (drawn * sizes).long().minimum(sizes - 1), sizes.float())


def replayed(
    scenes: Sequence[str], retain: Sequence[str], phrase: str, count: int, targets: Sequence[Concept] = ()
) -> list[str]:
    """The prompts of ``count`` images of what should stay: retained words in ``phrase`` and then ``scenes``, in turn.

    Scenes that name a target, which they would teach again, are left out.

    Raises:
        ExpungeError: if nothing is left, or there are fewer images than retained words.
    """
    asked = [phrases([phrase], word)[0] for word in retain]
    asked += [scene for scene in scenes if not any(names(scene, target.name) for target in targets)]
    if not asked:
        raise ExpungeError("no prompt to replay: expected some that do not name a target, or words to keep")
    if count < len(retain):
        raise ExpungeError(f"{count} images to replay of {len(retain)} words to keep: expected one of each at least")
    return [asked[i % len(asked)] for i in range(count)]


def check_prompts(shots: Sequence[Shot]) -> None:
    """Refuse an image to replay that does not say what it shows.

    Raises:
        ExpungeError: naming it.
    """
    bare = next((shot.path for shot in shots if not shot.prompt.strip()), None)
    if bare is not None:
        raise ExpungeError(f"'{bare}' to replay has no prompt: expected one in its line of metadata.jsonl")


def names(text: str, words: str) -> bool:
    """Whether a text names something, as whole words, however these are spaced."""
    return bool(spans(" ".join(text.split()), " ".join(words.split())))


def shows(prompt: str, target: str, retain: Sequence[str]) -> bool:
    """Whether a prompt names a target, otherwise than as a part of a retained word (a church bell)."""
    rest = prompt
    for word in retain:
        if names(word, target):
            rest = named(word).sub(" ", rest)
    return names(rest, target)


def unshown(retain: Sequence[str], prompts: Sequence[str]) -> str | None:
    """The first retained word that no prompt names; None if there is none."""
    return next((word for word in retain if not any(names(prompt, word) for prompt in prompts)), None)


@final
class Estimate:
    r"""The diagonal, image after image: the gradient of an image's losses at all timesteps together, squared, is averaged.

    .. math:: F = \frac{1}{n} \sum_{x} \Big( \nabla_\theta \sum_t
        \tfrac{1}{d} \big\| \epsilon_\theta(x_t, t, c) - \epsilon \big\|^2 \Big)^2

    2305.10120, as its authors compute it; methods.md A10. With fewer than all timesteps the sum is that of `strata`: unbiased,
    while its square is larger by its variance. What an image draws depends on its number, and not on how many rows go at a
    time. No more than one image's gradient is held beside the sum.
    """

    def __init__(self, backbone: Backbone, names: Sequence[str], task: Task, timesteps: int, rows: int) -> None:
        """Of the parameters ``names`` as they stand, ``timesteps`` an image, ``rows`` of them at a time."""
        self._backbone, self._task, self._timesteps, self._rows = backbone, task, timesteps, rows
        self._own = backbone.tensors(names)
        self._total = {name: torch.zeros_like(t, dtype=torch.float32) for name, t in self._own.items()}

    def add(self, number: int, shot: Shot) -> float:
        """Take in image ``number``; returns its losses, summed over timesteps."""
        backbone, generator = self._backbone, self._task.generator("fisher", number)
        drawn = strata(backbone.training_timesteps, self._timesteps, generator)
        with torch.no_grad():
            x0, cond = backbone.encode_image(shot.pixels()[None]), backbone.encode([shot.prompt])
        leaves = {name: t.detach().float().requires_grad_() for name, t in self._own.items()}
        gradient = {name: torch.zeros_like(total) for name, total in self._total.items()}
        summed = 0.0
        for steps, weight in zip(drawn.t.split(self._rows), drawn.weight.split(self._rows), strict=True):
            noise = torch.cat([torch.randn(x0.shape, generator=generator) for _ in steps]).to(x0)
            latents, t = x0.expand_as(noise), steps.to(x0.device)
            x, truth = backbone.add_noise(latents, noise, t), backbone.truth(latents, noise, t)
            with backbone.weights({name: leaf.to(self._own[name].dtype) for name, leaf in leaves.items()}):
                loss = (weight.to(x.device) * row_errors(backbone.predict(x, t, cond), truth)).sum()
                found = self._gradients(loss, list(leaves.values()))
            for name, part in zip(leaves, found, strict=True):
                if part is not None:
                    gradient[name] += part
            summed += float(loss.detach())
        for name, total in self._total.items():
            total.add_(gradient[name].square())
        return summed

    def _gradients(self, loss: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """A loss's gradients in float32, scaled on their way through float16: by no factor of earlier images."""
        if torch.float16 in {tensor.dtype for tensor in self._own.values()}:
            return Scaling().gradients(loss, leaves)
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    def mean(self, images: int) -> dict[str, Tensor]:
        """The diagonal, after so many images."""
        return {name: total / images for name, total in self._total.items()}

    def state(self) -> dict[str, Tensor]:
        """What `load` takes."""
        return {f"fisher/{name}": total.clone() for name, total in self._total.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`.

        Raises:
            ExpungeError: if it lacks a tensor.
        """
        for name, total in self._total.items():
            stored = state.get(f"fisher/{name}")
            if stored is None or stored.shape != total.shape:
                raise ExpungeError(f"the state to resume from has no 'fisher/{name}': expected a state of the same run")
            total.copy_(stored)


def fitting(fisher: Fisher, backbone: Backbone, names: Sequence[str], file: str) -> dict[str, Tensor]:
    """The diagonal of the parameters ``names``, on the model's device, if it is of this model.

    Raises:
        ExpungeError: naming what is wrong with ``file``: it lacks a parameter, has it in another shape, is of other weights,
            or holds what is no square.
    """
    known = {plain(name): name for name in backbone.group("full")}
    foreign = [name for name in fisher.tensors if name not in known]
    own = {} if foreign else {n: backbone.tensors([known[n]])[known[n]] for n in fisher.tensors}
    if foreign or any(own[n].shape != t.shape for n, t in fisher.tensors.items()) or not _same(fisher, own):
        raise ExpungeError(
            f"'{file}' is the Fisher information of another model than {backbone.name}: expected one that `expunge fisher` "
            "made of this very model, with the edits that it carries"
        )
    lacking = next((name for name in names if plain(name) not in fisher.tensors), None)
    if lacking is not None:
        raise ExpungeError(
            f"'{file}' lacks '{lacking}', which is trained: expected the Fisher information of its group"
        )
    wanted = {name: fisher.tensors[plain(name)] for name in names}
    odd = not_finite(wanted) or next((name for name, t in wanted.items() if t.numel() and float(t.min()) < 0), None)
    if odd is not None:
        raise ExpungeError(f"'{file}' holds in '{odd}' what is no mean of squares: expected finite numbers from 0 on")
    return {name: t.to(backbone.device, torch.float32) for name, t in wanted.items()}


def _same(fisher: Fisher, own: dict[str, Tensor]) -> bool:
    """Whether a diagonal is of these values, as they are or as they read in another precision."""
    told: Mapping[str, str] = fisher.about["base_sha256"]
    here = {str(t.dtype).removeprefix("torch.") for t in own.values()}
    return any(told[d] == fingerprint_as(own, d) for d in sorted(told, key=lambda d: d not in here))
