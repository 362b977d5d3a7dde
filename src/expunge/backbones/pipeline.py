"""What all model families of diffusers share: components, and edits on a pipeline that the user holds."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Real, UInt8
from torch import Tensor
from typing_extensions import override

from expunge.backbones import guard, held, latent_space, sampling
from expunge.backbones.asking import Asker, Question, Smallest
from expunge.backbones.folder import Folder
from expunge.backbones.parts import Files, Parts, device_and_dtype, read_json
from expunge.backbones.running import steers
from expunge.backbones.single_file import SingleFile
from expunge.backbones.steering import Steering
from expunge.backbones.texts import Texts
from expunge.core.adapter import Adapter
from expunge.core.backbone import Backbone
from expunge.core.conditioning import Conditioning, InjectedPrompt
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance
from expunge.core.query import Images, Query, Start


class PipelineBackbone(Backbone):
    """A model in the classes of a diffusers pipeline."""

    pipeline: ClassVar[str]
    """Class of the pipeline that the family is."""
    parts: ClassVar[tuple[str, ...]]
    """Its components."""
    denoiser: ClassVar[str]
    """Which of them denoises."""
    towers: ClassVar[tuple[str, ...]]
    """Which of them read text."""
    clip_towers: ClassVar[tuple[str, ...]]
    """Which of those are CLIP's."""
    text_state: ClassVar[int] = -1
    """Which hidden state of these a text's vectors are: the last one, or the last but one (-2)."""
    reader: ClassVar[str] = "text_encoder"
    """Which of them reads the tokens of `tokenize`; CLIP's, where there are two, read them both."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Components that a model may be without."""
    packing: ClassVar[int] = 1
    """Latents that the denoiser reads as the channels of one place."""
    capabilities: ClassVar[frozenset[str]]

    def __init__(self, parts: Parts, name: str) -> None:
        super().__init__()
        self.name = name
        self._parts = parts
        self.texts = Texts(self)
        self.asker = Asker(self)
        self._hooks: list[Any] = []
        self._steering: Steering | None = None
        self._samplers: dict[int, Any] = {}
        self._times: dict[int, list[Any]] = {}
        self._trained: set[frozenset[str]] = set()
        self.read_by: list[Any] = []
        """The text encoders of the user's pipeline when it was first seen."""
        self._identity: str | None = None
        marker = (parts.path if isinstance(parts, Folder) else Path(name)) / "expunge.json"
        said = read_json(marker).get("kind") if marker.is_file() else None
        self.kind = self.kind_by(parts.config) if said is None else str(said)

    @property
    @override
    def device(self) -> torch.device:
        parts = self._parts
        if isinstance(parts, Files):
            return parts.device
        where = next(parts.get(self.denoiser).parameters()).device
        if where.type == "meta" and isinstance(parts, held.Pipeline):  # offloaded
            return parts.pipe._execution_device
        return where

    @property
    @override
    def dtype(self) -> torch.dtype:
        parts = self._parts
        return parts.dtype if isinstance(parts, Files) else parts.get(self.denoiser).dtype

    @property
    def user_pipeline(self) -> held.Pipeline | None:
        """The pipeline that the user holds; None for a model from files."""
        return self._parts if isinstance(self._parts, held.Pipeline) else None

    def component(self, name: str) -> Any:
        """A component, built when it is first used; None for one that the model is without."""
        return self._parts.get(name)

    def config(self, name: str) -> Mapping[str, Any]:
        """The configuration of a component, which need not be built for it."""
        return self._parts.config(name)

    @override
    def identity(self) -> str:
        if not isinstance(self._parts, Files):
            raise ExpungeError("a pipeline in memory has no files to tell it by: expected a model opened from a folder")
        if self._identity is None:
            self._identity = self._parts.identity()
        return self._identity

    @property
    def weight_bytes(self) -> int:
        """Bytes of the files that hold its weights; 0 for a pipeline in memory."""
        return self._parts.size() if isinstance(self._parts, Files) else 0

    @classmethod
    def from_folder(cls, path: Path, *, name: str, device: str = "cpu", dtype: str = "float32") -> "PipelineBackbone":
        """Open a diffusers folder; nothing is read until it is needed.

        Raises:
            ExpungeError: if it does not hold a pipeline of this family, or the device or dtype is unknown.
        """
        own = (cls.pipeline, cls.parts, cls.optional)
        return cls(Folder(path, *own, *device_and_dtype(device, dtype), packing=cls.packing), name)

    @classmethod
    def from_file(
        cls, path: Path, layout: str | None, *, name: str, device: str = "cpu", dtype: str = "float32"
    ) -> "PipelineBackbone":
        """Open a single file in the LDM layout; ``layout`` says how it is read, if the file does not: see `SingleFile`.

        Raises:
            ExpungeError: if there is no such layout, or the device or dtype is unknown.
        """
        return cls(SingleFile(path, layout, *device_and_dtype(device, dtype)), name)

    @classmethod
    def from_pipeline(cls, pipe: Any) -> "PipelineBackbone":
        """Wrap a pipeline that the user holds; its own ``__call__`` sees the edits too.

        Raises:
            ExpungeError: if it is not of this family, text to image or image to image.
        """
        cls._check_pipeline(pipe)
        parts = held.Pipeline(pipe)
        towers = [parts.get(tower) for tower in cls.towers]
        denoiser = parts.get(cls.denoiser)
        kept = vars(denoiser).get("_expunge_backbone")  # on the denoiser: pipelines that share it share its edits
        if kept is None or not kept._still_reads_by(pipe, towers):
            kept = cls(parts, str(getattr(pipe, "name_or_path", None) or type(pipe).__name__))
            kept.read_by = towers
            denoiser._expunge_backbone = kept
        kept._parts, kept._samplers, kept._times, kept._trained = parts, {}, {}, set()  # whatever the user did since
        return kept

    @classmethod
    def kind_by(cls, config: Callable[[str], Mapping[str, Any]]) -> str:
        """Under which kind of model settings stand, by the configurations of components: the family, or one of its kinds."""
        return cls.family

    def _still_reads_by(self, pipe: Any, towers: list[Any]) -> bool:
        """Whether this is the backbone of ``pipe``, too, which has these text encoders."""
        if all(a is b for a, b in zip(self.read_by, towers, strict=True)):
            return True
        own = self.user_pipeline is not None and self.user_pipeline.pipe is pipe
        if own and not self.touches_text():
            self.read_by = towers  # exchanged by the user
            return True
        if self.edits:
            other = "with one that it had" if own else "with another pipeline"
            raise ExpungeError(
                f"a {type(pipe).__name__} shares its {self.denoiser} {other}, which carries edit {self.edits[0].id} and has "
                "other text encoders: expected that to be detached there first"
            )
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied denoiser has no backbone yet: it is another model, with whatever is written into it."""

    def touches_text(self) -> bool:
        """Whether an attached edit changes a text encoder."""
        touched = (n for e in self.edits for n in e.tensors() if not isinstance(e, Guidance))
        return any(n.startswith(tuple(f"{tower}." for tower in self.towers)) for n in touched)

    @classmethod
    @abstractmethod
    def _check_pipeline(cls, pipe: Any) -> None:
        """Refuse a pipeline of another kind."""

    # text -------------------------------------------------------------------------------------------------------------
    @override
    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "b n"]:
        return self.texts.ids(prompts)

    @override
    def cut(self, prompts: Sequence[str]) -> list[str]:
        return self.texts.cut(prompts)

    @override
    def end(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        return self.texts.end(ids)

    @override
    def spell(self, ids: Int[Tensor, "b n"]) -> list[str]:
        return self.texts.spell(ids)

    @override
    def spellable(self) -> Int[Tensor, "v"]:
        return self.texts.spellable()

    @override
    def embed(self, ids: Tensor) -> Float[Tensor, "b n d"]:
        return self.texts.embed(ids)

    @property
    @override
    def vocabulary(self) -> int:
        return self.texts.table(self.reader).num_embeddings

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt that are read, where the text encoder itself sets no end."""
        raise ExpungeError(f"the text encoder of {self.name} does not say how much it reads: expected a CLIP")

    # denoising --------------------------------------------------------------------------------------------------------
    @override
    def denoise(self, x: Float[Tensor, "b *chw"], t: Real[Tensor, "b"], cond: Conditioning) -> Float[Tensor, "b *chw"]:
        return self.asker.denoise(x, t, cond)

    @abstractmethod
    def parse_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Question:
        """What the arguments of a call of the denoiser say."""

    @abstractmethod
    def change_call(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        cond: Conditioning,
        x: Float[Tensor, "b c h w"] | None = None,
        t: Real[Tensor, "b"] | None = None,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments with another conditioning, and perhaps another input and timestep.

        What is not text (an image's size and crop) stays as it was given.
        """

    @abstractmethod
    def run_denoiser(
        self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Call the denoiser."""

    @abstractmethod
    def smallest(self) -> "Smallest":
        """The smallest question that the denoiser answers: zeros."""

    def injected(self, prompt: InjectedPrompt | None) -> list[Any]:
        """Hooks that let some layers read a prompt after the text.

        Raises:
            ExpungeError: for a family whose layers read no text of their own.
        """
        if prompt is None:
            return []
        raise ExpungeError(f"{self.name} has no cross-attention that could read a prompt: expected sd or sdxl")

    # latents ----------------------------------------------------------------------------------------------------------
    @override
    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b c h w"]:
        return latent_space.encoded(self, pixels)

    @override
    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b H W 3"]:
        return latent_space.decoded(self, latents)

    def normed(self, latents: Float[Tensor, "b c h w"], vae: Any) -> Float[Tensor, "b c h w"]:
        """The autoencoder's latents as the denoiser knows them."""
        return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor

    def unnormed(self, latents: Float[Tensor, "b c h w"], vae: Any) -> Float[Tensor, "b c h w"]:
        """The denoiser's latents as the autoencoder knows them."""
        return latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)

    @property
    @override
    def training_timesteps(self) -> int:
        return int(self.component("scheduler").config.num_train_timesteps)

    @property
    @override
    def image_size(self) -> tuple[int, int]:
        return latent_space.image_size(self)

    @override
    def noise(self, seed: int) -> Float[Tensor, "1 c h w"]:
        return latent_space.drawn(self, torch.Generator().manual_seed(seed))

    @override
    def generate(self, queries: Sequence[Query]) -> Images:
        return sampling.generate(self, queries)

    @override
    def begun(self, query: Query, steps: int) -> Start:
        return sampling.begun(self, query, steps)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents that the denoiser was made for."""
        size = self.config(self.denoiser)["sample_size"]
        return (size[0], size[1]) if isinstance(size, (list, tuple)) else (size, size)

    def space(self, scheduler: Any, steps: int) -> None:
        """Have a scheduler space the timesteps of a generation as the family's pipeline does."""
        scheduler.set_timesteps(steps, device=self.device)

    def skipped(self, steps: int, strength: float) -> int:
        """Denoising steps that image to image leaves out, rounded as the family's pipeline does."""
        return steps - int(steps * strength)

    # anatomy ----------------------------------------------------------------------------------------------------------
    @override
    def stored(self, names: Sequence[str]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for part in (self.denoiser, *self.towers):
            mine = [n.removeprefix(f"{part}.") for n in names if n.startswith(f"{part}.")]
            if not mine:
                continue
            if isinstance(self._parts, Files) and (part in self.towers or self._parts.built(part)):
                own = held.parameters(self._parts.get(part))
                tensors.update({f"{part}.{n}": own[n].detach() for n in mine})
            else:
                tensors.update({f"{part}.{n}": v for n, v in self._parts.read(part, mine).items()})
        return tensors

    @override
    def parameter(self, name: str) -> tuple[torch.nn.Module, str]:
        part, _, rest = name.partition(".")
        return held.owner(self._parts.get(part), rest), rest.rpartition(".")[2]

    @override
    def supports(self, capability: str) -> bool:
        return capability in self.capabilities

    def components(self) -> dict[str, Any]:
        """Every component, built (None for one that the model is without): what a diffusers pipeline is made of."""
        return {part: self._parts.get(part) for part in self.parts}

    def pipeline_options(self) -> dict[str, Any]:
        """What the class of the pipeline takes beside its components."""
        return {}

    @property
    def folder(self) -> Folder | None:
        """The diffusers folder that the model lies in; None for one that is from elsewhere."""
        return self._parts if isinstance(self._parts, Folder) else None

    @property
    def scaled(self) -> bool:
        """Whether the model's files hold 8-bit numbers with scales, which were multiplied out."""
        return isinstance(self._parts, Files) and self._parts.scaled

    # a user's own pipeline --------------------------------------------------------------------------------------------
    @override
    def check_carries(self, edit: Edit, coming: bool) -> None:
        if isinstance(self._parts, held.Pipeline):
            guard.check_carries(self, self._parts, edit, coming)

    @override
    def check_trains(self, layers: Collection[str]) -> None:
        asked = frozenset(layers)
        if isinstance(self._parts, held.Pipeline) and asked not in self._trained:
            guard.check_trains(self, self._parts, asked)
            self._trained.add(asked)

    @override
    def written(self, names: Sequence[str]) -> None:
        if isinstance(self._parts, held.Pipeline):
            guard.write_through(self, self._parts, names)

    @override
    def steering_changed(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._steering is not None:
            self._steering.release()
        self._hooks, self._steering = [], None
        if not isinstance(self._parts, held.Pipeline):
            return
        for part in (self.denoiser, *self.towers):
            if self._parts.outer(part) is not None:
                held.forget_compiled(self._parts.outer(part))
        parts = self._parts
        if any(isinstance(e, Adapter) for e in self.edits):
            as_is = torch.compiler.disable(lambda *_: guard.check_call(self, parts))
            self._hooks.append(parts.get(self.denoiser).register_forward_pre_hook(as_is))
        if any(steers(e) for e in self.edits):
            self._steering = Steering(self, self._parts)
            self._hooks += self._steering.hooks()
