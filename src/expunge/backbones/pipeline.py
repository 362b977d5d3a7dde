"""What all model families of diffusers share: components, latents, sampling, and edits on a pipeline that the user holds."""

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from expunge.backbones import guard, held
from expunge.backbones.folder import Folder
from expunge.backbones.parts import DTYPES, Files, Parts, read_json
from expunge.backbones.single_file import SingleFile
from expunge.backbones.steering import Steering, steers
from expunge.core.adapter import Adapter
from expunge.core.backbone import Backbone, Conditioning, Images, InjectedPrompt
from expunge.core.edit import Edit, Guidance
from expunge.core.errors import ExpungeError, ExpungeWarning, unknown
from expunge.core.query import Query

TEXT_GROUPS: dict[str, Callable[[str, int], bool]] = {
    "text-encoder": lambda n, last: True,
    "text-embedding": lambda n, last: n.endswith("token_embedding.weight"),
    "text-mlp": lambda n, last: ".mlp." in n,
    "text-attn": lambda n, last: ".self_attn." in n,
    "text-last": lambda n, last: f"layers.{last}." in n,
    "text-mlp-last-attn": lambda n, last: ".mlp." in n or f"layers.{last}.self_attn." in n,
}
"""Parameters of CLIP text encoders, by their name and the number of the last layer."""


class Asked(NamedTuple):
    """What a pipeline's own loop asks the denoiser."""

    x: Float[Tensor, "b c h w"]
    t: Tensor
    cond: Conditioning


class Smallest(NamedTuple):
    """A question that costs next to nothing."""

    x: Float[Tensor, "1 c h w"]
    cond: Conditioning


class Begun(NamedTuple):
    """Where sampling begins, and the timesteps that are left."""

    x: Float[Tensor, "b c h w"]
    timesteps: Tensor


def _place(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """A device that there is, and a precision, by their names."""
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ExpungeError(f"device '{device}' is not to be had here: expected cpu, cuda, cuda:0 or mps") from error
    return where, DTYPES[dtype]


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
    """Which of those are CLIP's, and read the tokens of `tokenize`."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Components that a model may be without."""
    capabilities: ClassVar[frozenset[str]]

    def __init__(self, parts: Parts, name: str) -> None:
        super().__init__()
        self.name = name
        self._parts = parts
        self.inside = False
        """Whether an evaluation of our own is going on: not one that a user's pipeline asks for."""
        self.asking_text = False
        """Likewise of the text encoders."""
        self.call: tuple[tuple[Any, ...], dict[str, Any], Int[Tensor, "b"]] | None = None
        """The call of a user's pipeline that is going on, and its rows with the prompt: our own questions repeat the rest."""
        self.clip_skip: int | None = None
        """Last layers of the text encoders that are left out, as a call asked for; negative prompts are read by all."""
        self._prompt: InjectedPrompt | None = None
        self._hooks: list[Any] = []
        self._steering: Steering | None = None
        self._samplers: dict[int, Any] = {}
        self._trained: set[frozenset[str]] = set()
        self.read_by: list[Any] = []
        """The text encoders of the user's pipeline when it was first seen."""
        self._identity: str | None = None
        marker = (parts.path if isinstance(parts, Folder) else Path(name)) / "expunge.json"
        self.kind = str(read_json(marker).get("kind", self.family)) if marker.is_file() else self.family

    @property
    @override
    def device(self) -> torch.device:
        parts = self._parts
        if isinstance(parts, Files):
            return parts.device
        where = next(parts.get(self.denoiser).parameters()).device
        return self._held.pipe._execution_device if where.type == "meta" else where

    @property
    @override
    def dtype(self) -> torch.dtype:
        parts = self._parts
        return parts.dtype if isinstance(parts, Files) else parts.get(self.denoiser).dtype

    @property
    def _held(self) -> held.Pipeline:
        """The user's pipeline."""
        if not isinstance(self._parts, held.Pipeline):
            raise ExpungeError(f"{self.name} was opened from files: expected a pipeline in memory")
        return self._parts

    @override
    def identity(self) -> str:
        if not isinstance(self._parts, Files):
            raise ExpungeError("a pipeline in memory has no files to tell it by: expected a model opened from a folder")
        if self._identity is None:
            self._identity = self._parts.identity()
        return self._identity

    @classmethod
    def from_folder(cls, path: Path, *, name: str, device: str = "cpu", dtype: str = "float32") -> "PipelineBackbone":
        """Open a diffusers folder; nothing is read until it is needed.

        Raises:
            ExpungeError: if it does not hold a pipeline of this family, or the device or dtype is unknown.
        """
        return cls(Folder(path, cls.pipeline, cls.parts, cls.optional, *_place(device, dtype)), name)

    @classmethod
    def from_file(
        cls, path: Path, layout: str | None, *, name: str, device: str = "cpu", dtype: str = "float32"
    ) -> "PipelineBackbone":
        """Open a single file in the LDM layout; ``layout`` says how it is read, if the file does not: see `SingleFile`.

        Raises:
            ExpungeError: if there is no such layout, or the device or dtype is unknown.
        """
        return cls(SingleFile(path, layout, *_place(device, dtype)), name)

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
        if kept is not None and not all(a is b for a, b in zip(kept.read_by, towers, strict=True)):
            if kept._held.pipe is pipe and not kept.touches_text():
                kept.read_by = towers  # exchanged by the user
            elif kept.edits:
                other = "with one that it had" if kept._held.pipe is pipe else "with another pipeline"
                raise ExpungeError(
                    f"a {type(pipe).__name__} shares its {cls.denoiser} {other}, which carries edit {kept.edits[0].id} and has "
                    "other text encoders: expected that to be detached there first"
                )
            else:
                kept = None
        if kept is None:
            kept = cls(parts, str(getattr(pipe, "name_or_path", None) or type(pipe).__name__))
            kept.read_by = towers
            denoiser._expunge_backbone = kept
        kept._parts, kept._samplers, kept._trained = parts, {}, set()  # whatever the user did since
        return kept

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
        return self._ids("", prompts)

    def _ids(self, which: str, prompts: Sequence[str]) -> Int[Tensor, "b n"]:
        """Token ids of one of the CLIP tokenizers: the first one's, or that of ``which`` (``_2``)."""
        tokenizer, tower = self._parts.get(f"tokenizer{which}"), self._parts.get(f"text_encoder{which}")
        length = min(tokenizer.model_max_length, tower.config.max_position_embeddings)
        encoded = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return encoded.input_ids.to(self.device)

    @override
    def cut(self, prompts: Sequence[str]) -> list[str]:
        tokenizer, tower = self._parts.get("tokenizer"), self._parts.get("text_encoder")
        length = min(tokenizer.model_max_length, tower.config.max_position_embeddings)
        whole = tokenizer(list(prompts), truncation=False, verbose=False).input_ids if prompts else []
        return ["" if len(row) <= length else tokenizer.decode(row[length - 1 : -1]) for row in whole]

    @override
    def end(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        return (ids == self._parts.get("tokenizer").eos_token_id).int().argmax(-1)

    @override
    def embed(self, ids: Tensor) -> Float[Tensor, "b n d"]:
        tables = [self._parts.get(tower).get_input_embeddings() for tower in self.clip_towers]
        soft = ids.is_floating_point()
        return torch.cat([ids.to(t.weight.dtype) @ t.weight if soft else t(ids) for t in tables], -1)

    @property
    @override
    def vocabulary(self) -> int:
        return self._parts.get(self.clip_towers[0]).get_input_embeddings().num_embeddings

    def _read(
        self,
        tower: str,
        ids: Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None,
        at: Bool[Tensor, "b n"] | None,
    ) -> Any:
        """What a CLIP text encoder answers, with all its hidden states; ``embeddings`` take the place of the ids' own."""
        model = self._parts.get(tower)
        handle = None
        if embeddings is not None:

            def exchanged(_: Any, args: Any, own: Tensor) -> Tensor:
                return embeddings if at is None else torch.where(at[..., None], embeddings.to(own), own)

            handle = model.get_input_embeddings().register_forward_hook(exchanged)
        before, self.asking_text = self.asking_text, True
        try:
            with held.eager(model):
                return model(input_ids=ids, output_hidden_states=True)
        finally:
            self.asking_text = before
            if handle is not None:
                handle.remove()

    @contextmanager
    def skipping(self, layers: int | None) -> Iterator[None]:
        """Read texts without the last ``layers`` of the text encoders, as ``clip_skip`` of the pipelines does."""
        self.clip_skip = layers
        try:
            yield
        finally:
            self.clip_skip = None

    @staticmethod
    def _known(ids: Int[Tensor, "b n"], embeddings: Tensor | None, at: Tensor | None) -> Int[Tensor, "b n"] | None:
        """Token ids where they say what was read: all, those that were not exchanged (-1 for the others), or none."""
        if embeddings is None:
            return ids
        return None if at is None else ids.masked_fill(at, -1)

    def _read_two(
        self,
        prompts: Sequence[str] | Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None,
        at: Bool[Tensor, "b n"] | None,
    ) -> tuple[Int[Tensor, "b n"], Any, Any]:
        """The first tokenizer's ids, and what both CLIP text encoders answer, of a family that has two.

        The second tokenizer pads with a word of its own, which it reads as padding in a text, too; ids that are given instead
        of prompts are the first one's, and only padded otherwise. So are ``embeddings``, past the end of their text.
        """
        if isinstance(prompts, Tensor):
            ids = prompts
            after = torch.arange(ids.shape[1], device=ids.device)[None] > self.end(ids)[:, None]
            second = torch.where(after, self._parts.get("tokenizer_2").pad_token_id, ids)
        else:
            ids, second = self.tokenize(prompts), self._ids("_2", prompts)
        parts: Sequence[Tensor | None] = (None, None)
        if embeddings is not None:
            first = self._parts.get("text_encoder").get_input_embeddings().weight.shape[1]
            one, two = embeddings.split([first, embeddings.shape[-1] - first], -1)
            past = torch.arange(ids.shape[1], device=ids.device)[None] > self.end(ids)[:, None]
            padding = self._parts.get("text_encoder_2").get_input_embeddings()(second)
            parts = (one, torch.where(past[..., None], padding.to(two), two))
        return (
            ids,
            self._read("text_encoder", ids, parts[0], at),
            self._read("text_encoder_2", second, parts[1], at),
        )

    # denoising --------------------------------------------------------------------------------------------------------
    @override
    def denoise(
        self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        model = self._parts.get(self.denoiser)
        if self.checkpointing and not model.is_gradient_checkpointing:
            model.enable_gradient_checkpointing(self._checkpointed)
        elif model.is_gradient_checkpointing and not self.checkpointing:
            model.disable_gradient_checkpointing()
        if self.call is None and isinstance(self._parts, held.Pipeline):
            self._check_alone(model)
        with self._told(cond.prompt, self.stack.gates), held.eager(model):
            if self.call is None:
                return self._ask(x.to(self.dtype), t, cond).to(x.dtype)
            args, kwargs = self._repeated(len(x))
            cond = self.fitted(cond, self.asked(args, kwargs).cond.embeds.shape[1])
            args, kwargs = self.asking(args, kwargs, cond, x.to(self.dtype), t)
            output = model(*args, **kwargs)
        return (output[0] if isinstance(output, tuple) else output.sample).to(x.dtype)

    def _check_alone(self, model: Any) -> None:
        """Refuse a question of our own to a denoiser that only its pipeline can ask."""
        if getattr(model.config, "encoder_hid_dim_type", None) == "ip_image_proj":
            raise ExpungeError(f"{self.name} reads an IP-Adapter's images: expected unload_ip_adapter() first")
        if held.replaced_forward(model):
            raise ExpungeError(
                f"the {self.denoiser} of {self.name} runs somebody else's code that keeps what it computed (DeepCache?): "
                "expected that to be switched off first"
            )

    def _repeated(self, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call that is going on, of its rows with the prompt (of all, for as many)."""
        args, kwargs, index = self.call  # pyright: ignore[reportGeneralTypeIssues]
        total = len(self.asked(args, kwargs).x)

        def taken(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[index.to(value.device)] if value.ndim and len(value) == total != rows else value
            if isinstance(value, dict):
                return {name: taken(inner) for name, inner in value.items()}
            return type(value)(taken(inner) for inner in value) if type(value) in (list, tuple) else value

        return taken(tuple(args)), taken(dict(kwargs))

    def fitted(self, cond: Conditioning, length: int) -> Conditioning:
        """``cond`` as long as the call's own texts, which may be several joined: empty texts follow.

        Raises:
            ExpungeError: if theirs is no multiple of the model's length.
        """
        own = cond.embeds.shape[1]
        if own == length:
            return cond
        if length % own:
            raise ExpungeError(
                f"texts of {length} vectors in a call, and {own} of an edit's: expected as many, or a multiple of them"
            )
        with torch.no_grad():
            empty = self.encode([""]).embeds.to(cond.embeds).expand(len(cond.embeds), -1, -1)
        return replace(cond, embeds=torch.cat([cond.embeds, *[empty] * (length // own - 1)], 1), tokens=None)

    @contextmanager
    def _told(self, prompt: InjectedPrompt | None, gates: dict[str, Float[Tensor, "b r"]]) -> Iterator[None]:
        """What the denoiser's layers hear beside its arguments, during one evaluation."""
        before = self.inside, self._prompt
        self.inside, self._prompt = True, prompt
        handles: list[Any] = []
        try:
            handles = self.injected(prompt)
            with self.stack.opened(gates):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self.inside, self._prompt = before

    def _checkpointed(self, block: torch.nn.Module, *args: Any) -> Any:
        """Run a block whose activations are computed again on the way back, when it must hear what it heard the first time."""
        prompt, gates = self._prompt, self.stack.gates

        def again(*given: Any) -> Any:
            if self.inside:
                return block(*given)
            with self._told(prompt, gates):
                return block(*given)

        return checkpoint(again, *args, use_reentrant=False)

    @abstractmethod
    def asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
        """What the arguments of a call of the denoiser say."""

    @abstractmethod
    def asking(
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
    def _ask(self, x: Float[Tensor, "b c h w"], t: Real[Tensor, "b"], cond: Conditioning) -> Float[Tensor, "b c h w"]:
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
        with self._coder() as vae:
            x = pixels.to(self.device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
            encoded = vae.encode(x)
            z = (encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()).to(self.dtype)
            return self.normed(z, vae)

    def normed(self, latents: Float[Tensor, "b c h w"], vae: Any) -> Float[Tensor, "b c h w"]:
        """The autoencoder's latents as the denoiser knows them."""
        return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor

    def unnormed(self, latents: Float[Tensor, "b c h w"], vae: Any) -> Float[Tensor, "b c h w"]:
        """The denoiser's latents as the autoencoder knows them."""
        return latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)

    @override
    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b H W 3"]:
        with self._coder() as vae:
            x = vae.decode(self.unnormed(latents, vae).to(vae.dtype), return_dict=False)[0].float()
        if latents.isfinite().all() and not x.isfinite().all():  # which would be black
            raise ExpungeError(f"the autoencoder of {self.name} gives NaN or infinity in {vae.dtype}: expected float32")
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    @contextmanager
    def _coder(self) -> Iterator[Any]:
        """The autoencoder; in float32 while it works where float16 would overflow (SDXL, as its configuration says)."""
        vae = self._parts.get("vae")
        upcast = self.family == "sdxl" and vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
        try:
            yield vae.to(torch.float32) if upcast else vae
        finally:
            if upcast:
                vae.to(torch.float16)

    @property
    @override
    def training_timesteps(self) -> int:
        return int(self._parts.get("scheduler").config.num_train_timesteps)

    @property
    @override
    def image_size(self) -> tuple[int, int]:
        config = self._parts.config("vae")
        widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
        height, width = self._latent_size()
        return height * 2 ** (len(widths) - 1), width * 2 ** (len(widths) - 1)

    @override
    def noise(self, seed: int) -> Float[Tensor, "1 c h w"]:
        return self._noise(torch.Generator().manual_seed(seed))

    def _noise(self, generator: torch.Generator) -> Float[Tensor, "1 c h w"]:
        channels, made = self._parts.get(self.denoiser).config.in_channels, self._channels()
        if channels != made:
            raise ExpungeError(
                f"{self.name} has a {self.denoiser} of {channels} input channels (inpainting?), and latents of {made}: "
                "expected a text-to-image model"
            )
        drawn = torch.randn((1, channels, *self._latent_size()), generator=generator)
        return drawn.to(self.device)

    def _channels(self) -> int:
        """Channels of the autoencoder's latents."""
        return int(self._parts.config("vae").get("latent_channels", 4))

    def _latent_size(self) -> tuple[int, int]:
        size = self._parts.config(self.denoiser)["sample_size"]
        return (size[0], size[1]) if isinstance(size, (list, tuple)) else (size, size)

    @override
    @torch.no_grad()
    def generate(self, queries: Sequence[Query]) -> Images:
        first = queries[0]
        if not all(q.alike(first) for q in queries):
            raise ExpungeError(
                "queries of one batch differ in guidance, steps, negative prompt, strength or learned word: expected the same "
                "for all"
            )
        if self._parts.config(self.denoiser).get("time_cond_proj_dim") is not None:
            raise ExpungeError(
                f"{self.name} was distilled to read the scale of guidance (LCM): expected a guided model (or a pipeline "
                "that you hold, to which edits can be attached)"
            )
        idle = [e for e in self.edits if isinstance(e, Guidance) and not e.private]
        if first.guidance <= 1 and idle:
            warnings.warn(
                f"a {idle[0].eraser} edit has no effect at guidance {first.guidance:g}, which is none: expected more than 1",
                ExpungeWarning,
                stacklevel=3,
            )
        template = self._parts.get("scheduler")
        most = template.config.num_train_timesteps
        if not 1 <= first.steps <= most:
            raise ExpungeError(f"{first.steps} denoising steps: expected 1 to {most}")
        scheduler = type(template).from_config(template.config)
        scheduler.set_timesteps(first.steps, device=self.device)
        cond = self.encode_each([q.prompt for q in queries], first.learned)
        null = self.encode([first.negative]) if first.negative else self.unconditional()
        generators = [torch.Generator().manual_seed(q.seed) for q in queries]
        begun = self._begun(scheduler, queries, torch.cat([self._noise(g) for g in generators]))
        x = begun.x
        options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        state: dict[str, Tensor] = {}
        for index, t in enumerate(begun.timesteps):
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            predicted = self.guided(scaled, t.item(), index, cond, null, first.guidance, state).combined
            x = scheduler.step(predicted, t, x, return_dict=False, **options)[0]
        return Images(self.decode(x), x)

    def _begun(self, scheduler: Any, queries: Sequence[Query], noise: Float[Tensor, "b c h w"]) -> "Begun":
        """Where sampling begins: at pure noise, or at a given image with the noise of a timestep on the way."""
        first = queries[0]
        if first.start is None:
            return Begun(noise * getattr(scheduler, "init_noise_sigma", 1.0), scheduler.timesteps)
        skipped = self._skipped(first.steps, first.start.strength)
        if skipped == first.steps:
            raise ExpungeError(
                f"strength {first.start.strength} of {first.steps} steps leaves none: expected {1 / first.steps:.3g} or more"
            )
        timesteps = scheduler.timesteps[skipped * scheduler.order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped * scheduler.order)
        latents = torch.cat([self._latents_of(q.start.image) for q in queries if q.start is not None]).to(noise)
        if latents.shape != noise.shape:
            given, wanted = tuple(latents.shape[1:]), tuple(noise.shape[1:])
            raise ExpungeError(
                f"an image of {given} as latents for {self.name}: expected {wanted}, an image of its size"
            )
        at = timesteps[:1].expand(len(noise))
        flow = hasattr(scheduler, "scale_noise")  # which has the same under another name
        x = scheduler.scale_noise(latents, at, noise) if flow else scheduler.add_noise(latents, noise, at)
        return Begun(x, timesteps)

    def _skipped(self, steps: int, strength: float) -> int:
        """Denoising steps that image to image leaves out, rounded as the family's pipeline does."""
        return steps - int(steps * strength)

    def _latents_of(self, image: Tensor) -> Float[Tensor, "1 c h w"]:
        """Scaled latents of a given image, which may be those already."""
        return self.encode_image(image[None]) if image.dtype == torch.uint8 else image[None].to(self.device)

    # anatomy ----------------------------------------------------------------------------------------------------------
    @override
    def stored(self, names: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in (self.denoiser, *self.towers):
            mine = [n.removeprefix(f"{part}.") for n in names if n.startswith(f"{part}.")]
            if not mine:
                continue
            if isinstance(self._parts, Files) and (part in self.towers or self._parts.built(part)):
                own = held.parameters(self._parts.get(part))
                found.update({f"{part}.{n}": own[n].detach() for n in mine})
            else:
                found.update({f"{part}.{n}": v for n, v in self._parts.read(part, mine).items()})
        return found

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
    def scaled(self) -> bool:
        """Whether the model's files hold 8-bit numbers with scales, which were multiplied out."""
        return isinstance(self._parts, Files) and self._parts.scaled

    def _tower_group(self, name: str) -> list[str]:
        """Names of the parameters in a group of the text encoders."""
        found: list[str] = []
        for tower in self.clip_towers:
            model = self._parts.get(tower)
            last = model.config.num_hidden_layers - 1
            found += [f"{tower}.{n}" for n in held.parameters(model) if TEXT_GROUPS[name](n, last)]
        return found

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

    def answers(self) -> None:
        """Ask the denoiser the smallest question it answers, uncounted."""
        question = self.smallest()
        with self._told(None, {}), held.eager(self._parts.get(self.denoiser)), torch.no_grad():
            self._ask(question.x, torch.ones(1, device=self.device), question.cond)

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
