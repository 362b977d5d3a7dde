"""Geom-Erasing: concepts that images show unasked, such as watermarks, get words and places, which are then avoided."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept
from expunge.core.conditioning import Conditioning
from expunge.core.cost import Cost
from expunge.core.edit import Weights
from expunge.core.eraser import Eraser, Marked, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_not_negative, check_positive
from expunge.core.guidance import Guidance
from expunge.core.knowledge import Kind
from expunge.core.query import Shot
from expunge.maths import geometry
from expunge.maths.training import Learned, pulls, trainable

WORD = "<l>"
"""What stands for location tokens in a text."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Avoided(Guidance):
    """Condition the unconditional half on the concept's words and all location tokens; with what the denoiser learned."""

    eraser = "geom-erasing"
    text: str
    """The concept's words; empty for no negative prompt at all."""
    locations: Float[Tensor, "k d"] | None = None
    """Token embeddings of the grid's cells, row by row."""
    weights: Weights | None = None

    @property
    @override
    def takes_null(self) -> bool:
        return bool(self.text)

    @override
    def fields(self) -> dict[str, Any]:
        base = None if self.weights is None else self.weights.base_sha256
        return {"eraser": self.eraser, "text": self.text, "base_sha256": base}

    @override
    def tensors(self) -> dict[str, Tensor]:
        replaced = {} if self.weights is None else self.weights.tensors()
        return replaced if self.locations is None else {"locations": self.locations, **replaced}

    @override
    @classmethod
    def restore(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> "Avoided":
        replaced = {name: tensor for name, tensor in tensors.items() if name != "locations"}
        weights = Weights(replaced, base_sha256=fields["base_sha256"]) if replaced else None
        return cls(text=fields["text"], locations=tensors.get("locations"), weights=weights)

    @override
    def check(self, backbone: Backbone) -> None:
        if self.text and any(isinstance(edit, Avoided) and edit.text for edit in backbone.edits):
            raise ExpungeError(
                "a geom-erasing edit with a negative prompt is attached already: expected one that names all targets"
            )
        if self.locations is None:
            return
        given, width = self.locations.shape[1], len(backbone.word_spread().mean)
        if given != width:
            raise ExpungeError(
                f"edit {self.id} has location tokens of {given} numbers: expected {width} for {backbone.name}"
            )

    @override
    def conditioning(
        self, backbone: Backbone, cond: Conditioning, null: Conditioning, state: dict[str, Any]
    ) -> tuple[Conditioning, Conditioning]:
        if not self.text:
            return cond, null
        if "geom-erasing" not in state:
            with torch.no_grad():
                state["geom-erasing"] = told(backbone, self.text, self.locations)
        return cond, state["geom-erasing"].expand(len(null.embeds))


def told(backbone: Backbone, text: str, locations: Float[Tensor, "k d"] | None) -> Conditioning:
    """A text with location tokens behind it, if there are any, as the model reads it; differentiable in these."""
    if locations is None or not len(locations):
        return backbone.encode([text])
    return backbone.encode_learned([f"{text} {WORD}"], WORD, locations.to(backbone.device))


@final
@dataclass(frozen=True, kw_only=True)
class GeomErasing(Eraser):
    r"""Teach a model what an implicit concept is called and where it is, from marked images; then steer away from all of that.

    .. math:: \min \mathbb{E} \big\| w \odot (\epsilon - \epsilon_\theta(z_t, t, c(y'))) \big\|^2,\qquad
        w_{in} = \frac{T}{K + \alpha (T - K)},\quad w_{out} = \alpha\, w_{in}

    2310.05873; methods.md A15. An image is divided into T cells. Its caption, the concept's words and a location token for each
    of the K cells that its boxes overlap make :math:`y'`. An image without boxes has its caption alone. With ``form="model"``
    the model draws the concept already, and only the tokens learn, from images with boxes. With ``form="data"`` the model is
    fine-tuned on images of which some show it, and the denoiser learns, too. At inference the words and all location tokens
    take the empty prompt's place. So the edit has no effect at guidance 1, but for weights that learned with it. Ignores
    the retain list. Several targets share the tokens.

    The weight stands inside the square, as above; sources differ, and ``weight`` moves it. Weights sum to T over cells, and so
    have a mean of 1 over latents that the grid divides evenly.
    Deviations: grid, alpha, updates and rates were in no source that was found: these defaults are this project's, and alpha 1
    weighs all cells alike. Tokens begin at random, as far out as the vocabulary is. A caption that is too long gives its last
    words up for the concept's, and a warning counts such captions. Images are cut at their middle and read as mean latents.
    Tokens of cells that no image covers stay random; a warning counts them.
    On SD3, T5 reads filler words in the places of the tokens.
    """

    paper: ClassVar[Paper] = Paper(
        "Implicit Concept Removal of Diffusion Models",
        "Liu et al.",
        2024,
        "2310.05873",
    )
    scales: ClassVar[bool] = False
    needs_pair: ClassVar[bool] = True
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {}
    tuning: ClassVar[Sequence[str]] = (
        *("form", "told", "marks", "rows", "columns", "weight", "separator", "token_lr"),
    )
    form: Literal["model", "data"] = "model"
    """What learns: location tokens alone (the model draws the concept already), or the denoiser as well (fine-tuning data)."""
    told: Literal["geometry", "name", "nothing", "clean"] = "geometry"
    """What captions get: words and places, words alone, nothing (plain fine-tuning), or nothing and unmarked images alone."""
    marks: Literal["boxes", "mask"] = "boxes"
    """What says where the concept is in an image."""
    rows: int = 4
    """Cells from top to bottom, H_bin."""
    columns: int = 4
    """Cells from left to right, W_bin."""
    alpha: float = 1.0
    """How much more a cell without the concept counts than one with it."""
    weight: Literal["inside", "outside"] = "inside"
    """Whether the weight is squared with the error, or multiplies the squared error."""
    group: str = "full"
    """Parameters of the denoiser that are trained with form data."""
    separator: str = ", "
    """What stands between caption and words, and between several targets."""
    token_lr: float = 1e-3
    """Learning rate of the location tokens."""
    lr: float = 1e-5
    """Learning rate of the denoiser."""
    weight_decay: float = 1e-2
    """AdamW's."""
    iterations: int = 1000
    """Updates."""
    batch: int = 4
    """Images an update."""

    def __post_init__(self) -> None:
        check_counts("geom-erasing", rows=self.rows, columns=self.columns, iterations=self.iterations, batch=self.batch)
        check_positive("geom-erasing", alpha=self.alpha, token_lr=self.token_lr, lr=self.lr)
        check_not_negative("geom-erasing", weight_decay=self.weight_decay)
        if self.form == "model" and self.told != "geometry":
            raise ExpungeError(
                f"geom-erasing's form model with told {self.told} would learn nothing: expected told geometry, or form data"
            )

    @property
    def grid(self) -> geometry.Grid:
        """The cells of an image."""
        return geometry.Grid(self.rows, self.columns)

    @override
    def check(self, backbone: Backbone) -> None:
        if self.form == "data":
            trainable(backbone, self.group)

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[Marked]]:
        return {t.name: [Marked(t.name, self.marks, "any" if self.told == "clean" else "some")] for t in targets}

    @override
    def stronger(self, times: float) -> "GeomErasing":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        training = _Telling(self, backbone, task)
        first = 0
        if resume is not None:
            training.load(resume)
            first = int(resume["next"])
        for index in range(first, self.iterations):
            loss = training.update(index)
            yield Step(
                index=index,
                edit=training.edit,
                losses={"denoise": loss},
                state=lambda index=index: {**training.state(), "next": torch.tensor(index + 1)},
                warnings=lambda: training.warnings,
            )

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        return Cost(trained=self.iterations * self.batch)


class _Image(NamedTuple):
    """An image that the model is told of."""

    latents: Float[Tensor, "c h w"]
    caption: str
    """With the concept's words, where these are told."""
    covered: Bool[Tensor, "rows columns"]


@final
class _Telling:
    """The training of one erasure."""

    def __init__(self, method: GeomErasing, backbone: Backbone, task: Task) -> None:
        self.method, self.backbone, self.task = method, backbone, task
        self.words = method.separator.join(t.name for t in task.targets) if method.told in ("geometry", "name") else ""
        self._check_length()
        self.shortened = 0
        self.images = self._images()
        self.warnings = list(self._warned())
        options = {"weight_decay": method.weight_decay}
        self.learned: dict[str, Learned] = {}
        if method.told == "geometry":
            self.learned["tokens"] = Learned({WORD: self._first()}, method.token_lr, "adamw", options)
        if method.form == "data":
            tensors = backbone.tensors(trainable(backbone, method.group))
            self.learned["student"] = Learned(tensors, method.lr, "adamw", options)

    def _warned(self) -> Iterator[str]:
        if self.shortened:
            yield f"captions shortened to make room for words and places: {self.shortened}"
        unseen = int((~torch.stack([image.covered for image in self.images]).any(0)).sum())
        if self.method.told == "geometry" and unseen:
            yield (
                f"{unseen} of {self.method.grid.cells} cells are covered in no image: their tokens stay random, and are in the "
                "negative prompt, too"
            )

    def state(self) -> dict[str, Tensor]:
        """What `load` takes."""
        return {key: value for name, part in self.learned.items() for key, value in part.state(name).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        for name, part in self.learned.items():
            part.load(name, state)

    def edit(self) -> Avoided:
        """What was learned so far."""
        values = {name: part.values() for name, part in self.learned.items()}
        weights = self.backbone.edit_of(values["student"]) if "student" in values else None
        edit = Avoided(text=self.words, locations=values.get("tokens", {}).get(WORD), weights=weights)
        below = tuple(other.id for other in self.backbone.edits)  # which the tokens were learned with
        object.__setattr__(edit, "requires", below)
        return edit

    def update(self, index: int) -> float:
        """One update of everything that learns."""
        method, backbone = self.method, self.backbone
        shown = [self.images[row] for row in self._rows(index)]
        generator = self.task.generator("geom-erasing", index)
        x0 = torch.stack([image.latents for image in shown])
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        t = torch.randint(0, backbone.training_timesteps, (len(x0),), generator=generator).to(x0.device)
        x, truth = backbone.add_noise(x0, noise, t), backbone.truth(x0, noise, t)
        cells = torch.stack([geometry.weights(image.covered, self._alpha) for image in shown])
        weight = geometry.spread(cells, (x0.shape[-2], x0.shape[-1])).to(x0.device)
        now = {name: part.tensors() for name, part in self.learned.items()}
        with backbone.weights(now.get("student", {})):
            answer = backbone.predict(x, t, self._told(shown, now.get("tokens", {}).get(WORD)))
            loss = geometry.weighted_error(answer, truth, weight, method.weight)
            found = pulls(list(self.learned.values()), loss)
        for part, gradients in zip(self.learned.values(), found, strict=True):
            if gradients:  # of tokens there are none where no image of the batch is marked
                part.move(gradients)
        return float(loss.detach())

    @property
    def _alpha(self) -> float:
        """Cells count alike where nothing is told of them."""
        return self.method.alpha if self.method.told == "geometry" else 1.0

    def _told(self, shown: Sequence[_Image], tokens: Float[Tensor, "k d"] | None) -> Conditioning:
        """What the model is told with each image: its text, and the tokens of the cells that are covered."""
        texts: list[Conditioning] = []
        for image in shown:
            at = image.covered.flatten()
            texts.append(told(self.backbone, image.caption, None if tokens is None else tokens[at.to(tokens.device)]))
        return reduce(Conditioning.join, texts)

    def _rows(self, index: int) -> list[int]:
        """The images of an update: all once, in random order, before one comes again."""
        rows: list[int] = []
        for place in range(index * self.method.batch, (index + 1) * self.method.batch):
            turn, at = divmod(place, len(self.images))
            generator = self.task.generator("geom-erasing order", turn)
            rows.append(int(torch.randperm(len(self.images), generator=generator)[at]))
        return rows

    @torch.no_grad()
    def _first(self) -> Float[Tensor, "k d"]:
        """Random token embeddings, of the vocabulary's mean and spread."""
        backbone, count = self.backbone, self.method.grid.cells
        words = backbone.word_spread()
        drawn = torch.randn((count, len(words.mean)), generator=self.task.generator("geom-erasing tokens"))
        return (drawn.to(words.mean) * words.std + words.mean).to(backbone.dtype)

    # images -----------------------------------------------------------------------------------------------------------
    def _images(self) -> list[_Image]:
        """The images that are trained on.

        Raises:
            ExpungeError: if there is none.
        """
        every = [self._image(t.name, shot) for t in self.task.targets for shot in self.task.images[t.name]]
        method = self.method
        kept = [
            image
            for image, marked in every
            if not (method.form == "model" and not marked) and not (method.told == "clean" and marked)
        ]
        if not kept:
            wanted = f"without {method.marks}" if method.told == "clean" else f"with {method.marks}"
            raise ExpungeError(f"geom-erasing got {len(every)} images: expected some {wanted} in the images' middle")
        return kept

    @torch.no_grad()
    def _image(self, target: str, shot: Shot) -> tuple[_Image, bool]:
        """An image, and whether it is marked."""
        method, grid, pixels = self.method, self.method.grid, shot.pixels()
        try:
            if method.marks == "boxes":
                covered = geometry.of_boxes(shot.boxes, (pixels.shape[0], pixels.shape[1]), grid)
            else:
                covered = geometry.of_mask(shot.mask(), grid) if shot.mask else torch.zeros(grid, dtype=torch.bool)
        except ExpungeError as error:
            raise ExpungeError(f"'{shot.path}' for '{target}': {error}") from error
        marked = bool(covered.any())
        tokens = int(covered.sum()) if method.told == "geometry" else 0
        caption = self._caption(shot.prompt, target, tokens) if marked and self.words else shot.prompt
        return _Image(self.backbone.encode_image(pixels[None])[0], caption, covered), marked

    def _caption(self, caption: str, target: str, tokens: int) -> str:
        """A caption with the concept's words, shortened until it is read whole with so many tokens behind it."""
        words = caption.split()
        while True:
            text = self.method.separator.join(part for part in (" ".join(words), target) if part)
            if not words or not self.backbone.cut([_filled(text, self.backbone.filler, tokens)])[0]:
                break
            words = words[:-1]
        self.shortened += len(words) < len(caption.split())
        return text

    def _check_length(self) -> None:
        """Refuse a grid whose tokens do not fit behind the words.

        Raises:
            ExpungeError: naming it.
        """
        grid = self.method.grid
        if (
            self.method.told == "geometry"
            and self.backbone.cut([_filled(self.words, self.backbone.filler, grid.cells)])[0]
        ):
            raise ExpungeError(
                f"geom-erasing's {grid.rows} rows and {grid.columns} columns make {grid.cells} location tokens, more than "
                f"{self.backbone.name} reads behind '{self.words}': expected fewer"
            )


def _filled(text: str, filler: str, tokens: int) -> str:
    """A text with words in the places of location tokens."""
    return " ".join([text, *[filler] * tokens])
