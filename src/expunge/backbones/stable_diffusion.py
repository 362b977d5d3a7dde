"""Stable Diffusion 1.x and 2.x, and the testbed, which has their layout."""

import hashlib
import inspect
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from expunge.core.adapter import Adapter
from expunge.core.backbone import Attention, Backbone, Conditioning, Images, InjectedPrompt
from expunge.core.edit import Guidance, GuidedStep
from expunge.core.errors import ExpungeError, unknown
from expunge.core.query import Query

_GROUPS: dict[str, Callable[[str], bool]] = {
    "xattn": lambda n: ".attn2." in n,
    "xattn-strict": lambda n: n.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")),
    "noxattn": lambda n: not re.search(r"\.attn2\.|^unet\.(conv_norm_out|conv_out|time_embedding|time_proj)\.", n),
    "selfattn": lambda n: ".attn1." in n,
    "attn": lambda n: re.search(r"\.attn[12]\.to_(q|k|v|out)", n) is not None,
    "esd-u": lambda n: ".attn2." not in n and "norm" not in n,
    "full": lambda n: True,
}
_TEXT_GROUPS: dict[str, Callable[[str, int], bool]] = {
    "text-encoder": lambda n, last: True,
    "text-embedding": lambda n, last: n.endswith("token_embedding.weight"),
    "text-mlp": lambda n, last: ".mlp." in n,
    "text-attn": lambda n, last: ".self_attn." in n,
    "text-last": lambda n, last: f"layers.{last}." in n,
    "text-mlp-last-attn": lambda n, last: ".mlp." in n or f"layers.{last}.self_attn." in n,
}
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""The components of a pipeline, those with weights first."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@final
class _Folder:
    """A diffusers folder whose components are built when they are first used."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        index = path / "model_index.json"
        if not index.is_file():
            raise ExpungeError(f"'{path}' is not a diffusers folder: expected a model_index.json in it")
        self.classes = _json(index)
        given = self.classes.get("_class_name")
        if given != "StableDiffusionPipeline":
            raise ExpungeError(f"'{path}' holds a {given}: expected a StableDiffusionPipeline (SD 1.x or 2.x)")
        for part in _PARTS:
            if not (path / part).is_dir():
                raise ExpungeError(f"'{path}' has no '{part}' folder: expected a complete diffusers folder")
        for part in _PARTS:
            named = self.classes.get(part)
            if not (isinstance(named, list) and len(named) == 2 and all(isinstance(n, str) for n in named)):
                raise ExpungeError(f"'{index}' names {named} as its {part}: expected a library and a class")
        self.path, self.device, self.dtype = path, device, dtype
        self._built: dict[str, Any] = {}

    def weights_file(self, part: str) -> tuple[Path, str | None]:
        """The safetensors file (or shard index) of a component, and its variant."""
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        variants = ["fp16", None] if self.dtype == torch.float16 else [None, "fp16"]
        for variant in variants:
            dotted = f".{variant}" if variant else ""
            for name in (f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"):
                if (self.path / part / name).is_file():
                    return self.path / part / name, variant
        raise ExpungeError(f"'{self.path / part}' has no safetensors weights: expected {stem}.safetensors")

    def files(self) -> list[Path]:
        """Everything that the model is made from: configurations, vocabulary, and the weights in this precision."""
        texts = [f for part in _PARTS for f in (self.path / part).iterdir() if f.suffix in (".json", ".txt")]
        weights = [f for part in _PARTS[:3] for f in set(self._files(part).values())]
        return sorted({self.path / "model_index.json", *texts, *weights})

    def _files(self, part: str) -> dict[str, Path]:
        """File of each tensor of a component."""
        file, _ = self.weights_file(part)
        if file.suffix == ".json":
            shards = _json(file).get("weight_map", {})
            return {n: file.parent / f for n, f in shards.items()}
        try:
            with safe_open(file, "pt") as opened:
                return dict.fromkeys(opened.keys(), file)
        except (SafetensorError, OSError) as error:
            raise ExpungeError(f"'{file}' is damaged: {error}") from error

    def names(self, part: str) -> list[str]:
        if part in self._built:
            return [n for n, _ in self._built[part].named_parameters()]
        return list(self._files(part))

    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        files = self._files(part)
        found: dict[str, Tensor] = {}
        try:
            for file in {files[n] for n in names}:
                with safe_open(file, "pt") as opened:
                    for name in names:
                        if files[name] == file:
                            found[name] = opened.get_tensor(name).to(device=self.device, dtype=self.dtype)
        except (SafetensorError, OSError) as error:
            raise ExpungeError(f"'{self.path / part}' is damaged: {error}") from error
        return found

    def built(self, part: str) -> bool:
        return part in self._built

    def get(self, part: str) -> Any:
        if part not in self._built:
            self._built[part] = self._build(part)
        return self._built[part]

    def _build(self, part: str) -> Any:
        library, class_name = self.classes[part]
        if library not in ("diffusers", "transformers"):
            raise ExpungeError(
                f"'{self.path}' names {library}.{class_name} as its {part}: expected a diffusers or transformers class"
            )
        if library == "transformers":
            import transformers as module
        else:
            import diffusers as module
        cls = getattr(module, class_name, None)
        if cls is None:
            raise ExpungeError(
                f"'{self.path}' names {library}.{class_name} as its {part}, which {library} does not have"
            )
        folder = self.path / part
        options: dict[str, Any] = {"local_files_only": True}
        if part not in ("tokenizer", "scheduler"):
            _, options["variant"] = self.weights_file(part)
            options["dtype" if library == "transformers" else "torch_dtype"] = self.dtype
            options["use_safetensors"] = True
        try:
            with quiet():
                loaded = cls.from_pretrained(folder, **options)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise ExpungeError(f"'{folder}' cannot be loaded as {class_name}: {reason}") from error
        return loaded if "variant" not in options else loaded.to(self.device).eval().requires_grad_(False)


def _json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ExpungeError: if it is damaged.
    """
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{file}' is damaged: {error}") from error


@final
class _Pipeline:
    """A pipeline that the user holds."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def names(self, part: str) -> list[str]:
        return [n for n, _ in getattr(self.pipe, part).named_parameters()]

    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        parameters = dict(getattr(self.pipe, part).named_parameters())
        return {n: parameters[n].detach() for n in names}

    def built(self, part: str) -> bool:
        return True

    def get(self, part: str) -> Any:
        return getattr(self.pipe, part)


class quiet:  # noqa: N801  (used as a statement: `with quiet()`)
    """Silences the loading reports of diffusers and transformers."""

    def __enter__(self) -> None:
        import diffusers  # noqa: F401  (its import sets its own log level, so it comes first)

        self.loggers = [logging.getLogger(n) for n in ("diffusers", "transformers")]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.CRITICAL)
        from transformers.utils import logging as reports

        self.bar = reports.is_progress_bar_enabled()
        reports.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
        if self.bar:
            from transformers.utils import logging as reports

            reports.enable_progress_bar()


@final
class StableDiffusion(Backbone):
    """Stable Diffusion 1.x/2.x: CLIP text encoder, UNet with cross-attention, epsilon or v-prediction."""

    family = "sd"

    def __init__(self, parts: _Folder | _Pipeline, name: str) -> None:
        super().__init__()
        self.name = name
        self._parts = parts
        self._inside = False
        self._hooks: list[Any] = []
        self._steering: _Steering | None = None
        self._samplers: dict[int, Any] = {}
        self._identity: str | None = None
        self._attentions: dict[str, Attention] | None = None
        self.kind = self.family
        if isinstance(parts, _Folder) and (parts.path / "expunge.json").is_file():
            self.kind = str(_json(parts.path / "expunge.json").get("kind", self.family))

    @property
    @override
    def device(self) -> torch.device:
        parts = self._parts
        return parts.device if isinstance(parts, _Folder) else next(parts.get("unet").parameters()).device

    @property
    @override
    def dtype(self) -> torch.dtype:
        parts = self._parts
        return parts.dtype if isinstance(parts, _Folder) else next(parts.get("unet").parameters()).dtype

    @override
    def identity(self) -> str:
        if not isinstance(self._parts, _Folder):
            raise ExpungeError("a pipeline in memory has no files to tell it by: expected a model opened from a folder")
        if self._identity is None:
            digest = hashlib.sha256()
            for file in self._parts.files():
                with file.open("rb") as opened:
                    content = hashlib.file_digest(opened, "sha256").hexdigest()
                digest.update(f"{file.relative_to(self._parts.path)} {content}\n".encode())
            self._identity = digest.hexdigest()
        return self._identity

    @classmethod
    def from_folder(cls, path: Path, *, name: str, device: str = "cpu", dtype: str = "float32") -> "StableDiffusion":
        """Open a diffusers folder; nothing is read until it is needed.

        Raises:
            ExpungeError: if it is not a Stable Diffusion folder, or the device or dtype is unknown.
        """
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        try:
            where = torch.device(device)
            torch.zeros(1, device=where).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ExpungeError(f"device '{device}' is not to be had here: expected cpu, cuda, cuda:0 or mps") from error
        return cls(_Folder(path, where, DTYPES[dtype]), name)

    @classmethod
    def from_pipeline(cls, pipe: Any) -> "StableDiffusion":
        """Wrap a pipeline that the user holds; its own ``__call__`` sees the edits too.

        Raises:
            ExpungeError: if it is not Stable Diffusion 1.x or 2.x, text to image or image to image.
        """
        if not all(hasattr(pipe, part) for part in _PARTS) or hasattr(pipe, "text_encoder_2"):
            raise ExpungeError(
                f"a {type(pipe).__name__} cannot be edited: expected a StableDiffusionPipeline or an expunge backbone"
            )
        reads, writes = pipe.unet.config.cross_attention_dim, pipe.text_encoder.config.hidden_size
        if reads != writes or "InstructPix2Pix" in type(pipe).__name__:
            raise ExpungeError(
                f"a {type(pipe).__name__} (UNet reads {reads} numbers a token, text encoder writes {writes}) cannot be "
                "edited: expected Stable Diffusion 1.x or 2.x"
            )
        kept = getattr(
            pipe.unet, "_expunge_backbone", None
        )  # on the UNet, so that pipelines which share it share its edits
        if kept is None:
            kept = cls(_Pipeline(pipe), getattr(pipe, "name_or_path", None) or type(pipe).__name__)
            pipe.unet._expunge_backbone = kept
        kept._parts = _Pipeline(pipe)
        return kept

    # text -------------------------------------------------------------------------------------------------------------
    @override
    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "b n"]:
        tokenizer = self._parts.get("tokenizer")
        length = min(tokenizer.model_max_length, self._parts.get("text_encoder").config.max_position_embeddings)
        encoded = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return encoded.input_ids.to(self.device)

    @override
    def end(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        return (ids == self._parts.get("tokenizer").eos_token_id).int().argmax(-1)

    @override
    def embed(self, ids: Tensor) -> Float[Tensor, "b n d"]:
        table = self._parts.get("text_encoder").get_input_embeddings()
        return ids.to(table.weight.dtype) @ table.weight if ids.is_floating_point() else table(ids)

    @override
    def encode(
        self, prompts: Sequence[str] | Int[Tensor, "b n"], embeddings: Float[Tensor, "b n d"] | None = None
    ) -> Conditioning:
        ids = prompts if isinstance(prompts, Tensor) else self.tokenize(prompts)
        tower = self._parts.get("text_encoder")
        handle = None
        if embeddings is not None:
            given = embeddings
            handle = tower.get_input_embeddings().register_forward_hook(lambda *_: given)
        try:
            hidden = tower(input_ids=ids).last_hidden_state
        finally:
            if handle is not None:
                handle.remove()
        return Conditioning(embeds=hidden, tokens=ids if embeddings is None else None)

    # denoising --------------------------------------------------------------------------------------------------------
    @override
    def denoise(self, x: Float[Tensor, "b c h w"], t: Tensor, cond: Conditioning) -> Float[Tensor, "b c h w"]:
        self._inside = True
        injected: list[Any] = []
        try:
            injected = self._inject(cond.prompt)
            out = self._parts.get("unet")(x.to(self.dtype), t, encoder_hidden_states=cond.embeds, return_dict=False)[0]
            return out.to(x.dtype)
        finally:
            for handle in injected:
                handle.remove()
            self._inside = False

    def _inject(self, prompt: InjectedPrompt | None) -> list[Any]:
        """Hooks that let the layers of ``prompt.blocks`` read its tokens after the text's."""
        if prompt is None:
            return []
        everyone = bool(prompt.rows.all())

        def lengthen(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            text = kwargs["encoder_hidden_states"]
            changed = {**kwargs, "encoder_hidden_states": torch.cat([text, prompt.tokens.to(text)], 1)}
            if not everyone:
                own, extra = torch.zeros(len(text), text.shape[1]).to(text), prompt.tokens.shape[1]
                closed = torch.where(prompt.rows, 0.0, torch.finfo(text.dtype).min).to(text)[:, None].expand(-1, extra)
                changed["attention_mask"] = torch.cat([own, closed], 1)[:, None]
            return args, changed

        unet = self._parts.get("unet")
        layers = [n.removeprefix("unet.") for n, a in self.attentions().items() if a.block in prompt.blocks]
        return [unet.get_submodule(n).register_forward_pre_hook(lengthen, with_kwargs=True) for n in layers]

    # trajectories -----------------------------------------------------------------------------------------------------
    @override
    def timesteps(self, steps: int) -> list[int]:
        return self._ddim(steps).timesteps.tolist()

    @override
    def step_back(
        self, x: Float[Tensor, "b c h w"], predicted: Float[Tensor, "b c h w"], t: int, steps: int
    ) -> Float[Tensor, "b c h w"]:
        return self._ddim(steps).step(predicted, t, x, return_dict=False)[0]

    def _ddim(self, steps: int) -> Any:
        """DDIM over the model's own noise schedule, as SD 1.4 ships it, whatever sampler the model comes with."""
        if steps not in self._samplers:
            from diffusers import DDIMScheduler

            config = self._parts.get("scheduler").config
            if not 1 <= steps <= config.num_train_timesteps:
                raise ExpungeError(f"{steps} denoising steps: expected 1 to {config.num_train_timesteps}")
            ours = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
            with quiet():
                sampler: Any = DDIMScheduler.from_config(config, **ours)
            sampler.set_timesteps(steps, device=self.device)
            self._samplers[steps] = sampler
        return self._samplers[steps]

    # latents ----------------------------------------------------------------------------------------------------------
    @override
    @torch.no_grad()
    def encode_image(self, pixels: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b c h w"]:
        vae = self._parts.get("vae")
        x = pixels.to(self.device).permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1
        encoded = vae.encode(x)
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return z * vae.config.scaling_factor

    @override
    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b H W 3"]:
        vae = self._parts.get("vae")
        x = vae.decode((latents / vae.config.scaling_factor).to(self.dtype), return_dict=False)[0].float()
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    @override
    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        return self._parts.get("scheduler").add_noise(latents, noise, t)

    @override
    def truth(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, "b"]
    ) -> Float[Tensor, "b c h w"]:
        kind = self._parts.get("scheduler").config.prediction_type
        if kind == "v_prediction":
            return self._ddim(1).get_velocity(latents, noise, t)
        if kind != "epsilon":
            raise ExpungeError(f"{self.name} predicts '{kind}': expected epsilon or v_prediction")
        return noise

    @property
    @override
    def training_timesteps(self) -> int:
        return int(self._parts.get("scheduler").config.num_train_timesteps)

    @property
    @override
    def image_size(self) -> tuple[int, int]:
        config = self._parts.get("vae").config
        widths = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        height, width = self._latent_size()
        return height * 2 ** (len(widths) - 1), width * 2 ** (len(widths) - 1)

    @override
    def noise(self, seed: int) -> Float[Tensor, "1 c h w"]:
        return self._noise(torch.Generator().manual_seed(seed))

    def _noise(self, generator: torch.Generator) -> Float[Tensor, "1 c h w"]:
        channels = self._parts.get("unet").config.in_channels
        drawn = torch.randn((1, channels, *self._latent_size()), generator=generator)
        return drawn.to(self.device)

    def _latent_size(self) -> tuple[int, int]:
        size = self._parts.get("unet").config.sample_size
        return (size[0], size[1]) if isinstance(size, (list, tuple)) else (size, size)

    @override
    @torch.no_grad()
    def generate(self, queries: Sequence[Query]) -> Images:
        first = queries[0]
        if any((q.guidance, q.steps) != (first.guidance, first.steps) for q in queries):
            raise ExpungeError("queries of one batch differ in guidance or steps: expected the same for all")
        template = self._parts.get("scheduler")
        most = template.config.num_train_timesteps
        if not 1 <= first.steps <= most:
            raise ExpungeError(f"{first.steps} denoising steps: expected 1 to {most}")
        scheduler = type(template).from_config(template.config)
        scheduler.set_timesteps(first.steps, device=self.device)
        prompts = {q.prompt: i for i, q in enumerate(queries)}
        encoded = self.encode(list(prompts))
        rows = torch.tensor([list(prompts).index(q.prompt) for q in queries], device=self.device)
        cond, null = encoded.rows(rows), self.encode([""])
        generators = [torch.Generator().manual_seed(q.seed) for q in queries]
        x = torch.cat([self._noise(g) for g in generators]) * scheduler.init_noise_sigma
        options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        state: dict[str, Tensor] = {}
        for index, t in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(x, t)
            predicted = self.guided(scaled, t.item(), index, cond, null, first.guidance, state).combined
            x = scheduler.step(predicted, t, x, return_dict=False, **options)[0]
        return Images(self.decode(x), x)

    # anatomy ----------------------------------------------------------------------------------------------------------
    @override
    def group(self, name: str) -> list[str]:
        if name in _TEXT_GROUPS:
            tower = self._parts.get("text_encoder")
            last = tower.config.num_hidden_layers - 1
            return [f"text_encoder.{n}" for n, _ in tower.named_parameters() if _TEXT_GROUPS[name](n, last)]
        if name not in _GROUPS:
            raise unknown("parameter group", name, [*_GROUPS, *_TEXT_GROUPS])
        return [n for n in (f"unet.{p}" for p in self._parts.names("unet")) if _GROUPS[name](n)]

    @override
    def layers(self, name: str) -> list[str]:
        if name != "transformer":
            raise unknown("layer group", name, ["transformer"])
        modules = dict(self._parts.get("unet").named_modules())
        blocks = tuple(f"{n}." for n, m in modules.items() if type(m).__name__ == "Transformer2DModel")
        kinds = (torch.nn.Linear, torch.nn.Conv2d)
        return [f"unet.{n}" for n, m in modules.items() if isinstance(m, kinds) and n.startswith(blocks)]

    @override
    def text_inputs(self) -> list[str]:
        return self.group("xattn-strict")

    @override
    def attentions(self) -> dict[str, Attention]:
        if (
            self._attentions is None
        ):  # a walk over all modules, which an injected prompt would repeat at every evaluation
            found: dict[str, Attention] = {}
            for name, module in self._parts.get("unet").named_modules():
                if name.endswith(".attn2"):
                    q, k, v, out = (f"unet.{name}.{p}.weight" for p in ("to_q", "to_k", "to_v", "to_out.0"))
                    found[f"unet.{name}"] = Attention(module.heads, q, k, v, out, name.split("_")[0])
            self._attentions = found
        return self._attentions

    @override
    def stored(self, names: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in ("unet", "text_encoder"):
            mine = [n.removeprefix(f"{part}.") for n in names if n.startswith(f"{part}.")]
            if mine and (part == "text_encoder" or self._parts.built(part)):
                parameters = dict(self._parts.get(part).named_parameters())
                found.update({f"{part}.{n}": parameters[n].detach() for n in mine})
            elif mine:
                found.update({f"{part}.{n}": v for n, v in self._parts.read(part, mine).items()})
        return found

    @override
    def parameter(self, name: str) -> tuple[torch.nn.Module, str]:
        part, _, rest = name.partition(".")
        owner, _, key = rest.rpartition(".")
        return self._parts.get(part).get_submodule(owner), key

    @override
    def supports(self, capability: str) -> bool:
        return capability == "cross-attention"

    def components(self) -> dict[str, Any]:
        """Every component, built: what a diffusers pipeline is made of."""
        return {part: self._parts.get(part) for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}

    # a user's own pipeline --------------------------------------------------------------------------------------------
    @override
    def _steering_changed(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._steering is not None:
            self._steering.release()
        self._hooks, self._steering = [], None
        steered = any(isinstance(e, Guidance) or (isinstance(e, Adapter) and e.gates) for e in self.edits)
        if isinstance(self._parts, _Pipeline) and steered:
            steering = self._steering = _Steering(self, self._parts.pipe)
            unet = self._parts.get("unet")
            self._hooks = [
                self._parts.get("text_encoder").register_forward_hook(steering.read, with_kwargs=True),
                unet.register_forward_pre_hook(steering.before, with_kwargs=True),
                unet.register_forward_hook(steering.after, with_kwargs=True, always_call=True),
            ]


@final
class _Steering:
    """Carries guidance edits, and the gates of adapters, into a pipeline's own loop, which combines predictions by itself.

    The pipeline computes ``null + scale * (cond - null)``; handing it the guided prediction as both halves makes that the
    guided prediction, whatever the scale. Without guidance (scale 1 or less) the pipeline has one half, and only what it is
    conditioned on can be changed.
    """

    def __init__(self, backbone: StableDiffusion, pipe: Any) -> None:
        self.backbone, self.pipe = backbone, pipe
        self.last, self.index = -1.0, 0
        self.state: dict[str, Tensor] = {}
        self.halves: tuple[Conditioning, Conditioning] | None = None
        self.injected: list[Any] = []
        self.texts: deque[tuple[Tensor, Tensor]] = deque(maxlen=8)
        """Token ids and vectors of what the text encoder was last asked."""
        self.tokens: Tensor | None = None

    def release(self) -> None:
        """Let the layers read the text alone again, and adapters be open."""
        for handle in self.injected:
            handle.remove()
        self.injected = []
        self.backbone._gates = {}

    def read(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Remember which words gave which vectors: the pipeline hands only the vectors on."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor):
            self.texts.append((ids, output[0].detach()))

    def words_of(self, embeds: Float[Tensor, "b n d"]) -> Int[Tensor, "b n"] | None:
        """Token ids of the texts that gave these vectors; None if one of them is no text's that was seen."""
        rows: list[Tensor] = []
        for row in embeds:
            seen = ((i, v) for ids, vectors in self.texts for i, v in zip(ids, vectors, strict=True))
            found = next((i for i, v in seen if v.shape == row.shape and torch.equal(v.to(row), row)), None)
            if found is None:
                return None
            rows.append(found)
        return torch.stack(rows)

    def before(
        self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change what the two halves are conditioned on."""
        if self.backbone._inside:
            return None
        t = float(kwargs["timestep"] if "timestep" in kwargs else args[1])
        if t > self.last or self.index >= getattr(self.pipe, "_num_timesteps", 1):
            self.index, self.state, self.tokens = 0, {}, None  # another generation begins
        self.last = t
        named = "encoder_hidden_states" in kwargs
        embeds = kwargs["encoder_hidden_states"] if named else args[2]
        pair = self._pair(len(embeds))
        null, cond = embeds.chunk(2) if pair else (embeds, embeds)
        if self.index == 0:
            self.tokens = self.words_of(cond)
        halves = (Conditioning(embeds=cond, tokens=self.tokens), Conditioning(embeds=null))
        for guidance in (e for e in self.backbone.edits if isinstance(e, Guidance)):
            halves = guidance.conditioning(self.backbone, *halves, self.state)
        self.halves = halves
        both = halves[1].join(halves[0]) if pair else halves[0]
        self.release()
        self.injected = self.backbone._inject(both.prompt)
        gates = self.backbone._opened(halves[0], self.state)
        self.backbone._gates = {n: torch.cat([g, g]) if pair else g for n, g in gates.items()}
        changed = both.embeds
        if named:
            return (args, {**kwargs, "encoder_hidden_states": changed})
        return ((*args[:2], changed, *args[3:]), kwargs)

    def _pair(self, rows: int) -> bool:
        """Whether the UNet is called on both halves of a guided pair (a call of the UNet by itself is not)."""
        return getattr(self.pipe, "_guidance_scale", 0) > 1 and rows % 2 == 0

    def after(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Change the combined prediction, for edits that do."""
        if self.backbone._inside:
            return output
        self.release()
        if self.halves is None or output is None:  # called after a failure, too
            return output
        self.index += 1
        combining = [
            e for e in self.backbone.edits if isinstance(e, Guidance) and type(e).combine is not Guidance.combine
        ]
        if not combining or not self._pair(len(args[0])):
            return output
        predicted = output[0] if isinstance(output, tuple) else output.sample
        e_null, e_cond = predicted.chunk(2)
        scale = float(self.pipe.guidance_scale)
        out = e_null + scale * (e_cond - e_null)
        for guidance in combining:
            step = GuidedStep(
                x=args[0].chunk(2)[1],
                t=self.last,
                index=self.index - 1,
                cond=self.halves[0],
                null=self.halves[1],
                predicted_cond=e_cond,
                predicted_null=e_null,
                scale=scale,
                state=self.state,
            )
            out = guidance.combine(self.backbone, out, step)
        return (torch.cat([out, out]),) if isinstance(output, tuple) else type(output)(sample=torch.cat([out, out]))
