"""LoRA files: what their tensors and their settings say; and an adapter's tensors as such a file."""

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from expunge.core.adapter import LowRank
from expunge.core.bfl_lora import taken_apart
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.lora_names import levelled, place, unknown

Layout = Literal["diffusers", "kohya", "bfl"]
SETTINGS = "lora_adapter_metadata"
"""Where diffusers puts peft's settings into a file's metadata, each with its component in front."""
_HEEDED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
_OF_TRAINING = (
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "runtime_config",
    ),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("eva_config", "qalora_group_size", "megatron_core", "ensure_weight_tying"),
)
"""Settings of peft that say how a LoRA was trained or where it goes: what it does is in its tensors."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base's own weights as they are."""
_FOREIGN = {
    r"dora_scale|lora_magnitude_vector": "the magnitudes of DoRA",
    r"\.hada_": "a part of a LoHa",
    r"\.lokr_": "a part of a LoKr",
    r"\.oft_": "a part of an OFT",
    r"lora_mid": "a third matrix, of a LoCon in parts",
    r"lora_bias|lora_B\.bias|lora_up\.bias": "a bias",
    r"bundle_emb|emb_params": "a learned word",
    r"\.diff(_b)?$": "a whole change of a tensor",
    r"\.set_weight$": "a whole tensor",
}
"""What a tensor is that low-rank changes do not cover, by a pattern of its name."""


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names are somebody's LoRA, or something of its kind."""
    return any("lora" in name or re.search(pattern, name) for name in names for pattern in _FOREIGN)


class Lora(NamedTuple):
    """What a LoRA file holds."""

    factors: dict[str, Tensor]
    """Its low-rank changes; see `factors`."""
    gates: list[list[str]]
    """For each component the texts that open it, of a membrane of SPM; empty for a LoRA."""


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, gate: Sequence[str] = ()) -> Lora:
    """What a LoRA file says; a membrane of SPM's authors keeps the words of its gate.

    Args:
        tensors: all tensors of the file.
        metadata: the file's own.
        gate: words that open it, if the file does not say them.

    Raises:
        ExpungeError: as `factors`; also for a gate of a file that has its own.
    """
    metadata = metadata or {}
    changes = factors(tensors, settings(metadata))
    ranks = {len(t) for name, t in changes.items() if name.endswith(".down")}
    # SPM's own files say which words they were trained on, and rank and alpha; LECO's and kohya's say other things
    words = metadata.get("prompts", "") if {"rank", "alpha"} <= set(metadata) else ""
    texts = [word.strip() for word in words.split(",") if word.strip()]
    if texts and gate:
        raise ExpungeError(f"a membrane that '{texts[0]}' opens, with the gate '{gate[0]}': expected its own")
    if texts or gate:
        return Lora(changes, [texts or list(gate)] * max(ranks))
    if ranks == {1} and all(name.startswith("lora_unet_") for name in tensors):
        warnings.warn(
            "every layer of this LoRA has rank 1 and nothing in the file says for which words: if it is a membrane of SPM, its "
            "gate is lost, and it acts on every prompt alike (`expunge import --gate WORDS` puts one in)",
            ExpungeWarning,
            stacklevel=5,
        )
    return Lora(changes, [])


def settings(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What peft's settings in a file's metadata say, by component.

    Raises:
        ExpungeError: if they cannot be read, or one is set that changes what the tensors mean in a way that is not known here.
    """
    if SETTINGS not in metadata:
        return {}
    try:
        stored = dict(json.loads(metadata[SETTINGS]))
    except (TypeError, ValueError) as error:
        raise ExpungeError(
            f"a LoRA whose settings ({SETTINGS}) are damaged: expected a JSON object ({error})"
        ) from error
    by_component: dict[str, dict[str, Any]] = {}
    for name, value in stored.items():
        part, _, setting = str(name).rpartition(".")
        if setting == "init_lora_weights":
            known = value in _PLAIN_STARTS
        else:
            known = setting in (*_HEEDED, *_OF_TRAINING) or value in (None, False, 0, "none", {}, [])
        if not known:
            raise ExpungeError(
                f"a LoRA with the setting {name} = {json.dumps(value)}: expected only settings that expunge knows "
                f"({', '.join(_HEEDED)}, and those of training)"
            )
        by_component.setdefault(part, {})[setting] = value
    return by_component


def factors(tensors: Mapping[str, Tensor], peft: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Tensor]:
    """Low-rank changes (``LAYER.down``, ``LAYER.up``) from a LoRA file's tensors; their scale goes into each up.

    Layers of CLIP text encoders are named without the level ``text_model``: ``text_encoder.encoder.layers.0…``.

    Args:
        tensors: all tensors of the file.
        peft: peft's settings by component, as `settings` reads them.

    Raises:
        ExpungeError: if a tensor is no part of a low-rank change, one is missing, or tensors and settings disagree.
    """
    changes: dict[str, Tensor] = {}
    named: dict[str, str] = {}
    for name, tensor in taken_apart(tensors).items():
        where = place(name)
        if where is None:
            raise _foreign(name)
        key = f"{where.layer}.{where.part}"
        if key in changes:
            raise ExpungeError(
                f"a LoRA with '{named[key]}' and '{name}', which are one and the same: expected one of them"
            )
        changes[key], named[key] = tensor, name
    alphas = {key.removesuffix(".alpha"): changes.pop(key) for key in [k for k in changes if k.endswith(".alpha")]}
    layers = dict.fromkeys([*(key.rpartition(".")[0] for key in changes), *alphas])
    for layer in layers:
        for part, other in (("down", "up"), ("up", "down")):
            if f"{layer}.{part}" not in changes:
                given = named.get(f"{layer}.{other}") or named[f"{layer}.alpha"]
                raise ExpungeError(f"a LoRA with '{given}' but no matrix {part} of that layer: expected down and up")
        scale = _scale(layer, len(changes[f"{layer}.down"]), alphas.get(layer), peft or {})
        if scale != 1:
            changes[f"{layer}.up"] = changes[f"{layer}.up"].float() * scale
    return changes


def _scale(layer: str, rank: int, alpha: Tensor | None, peft: Mapping[str, Mapping[str, Any]]) -> float:
    """What a layer's change is multiplied by: alpha / r (rslora: alpha / sqrt r), as tensors or settings say, else 1."""
    part, _, module = layer.partition(".")
    if alpha is not None and alpha.numel() != 1:
        raise ExpungeError(f"a LoRA whose alpha of '{layer}' has shape {tuple(alpha.shape)}: expected one number")
    own = None if alpha is None else float(alpha)
    given = peft.get(part, peft.get(""))
    root = False
    if given is not None:
        rank_set = _patterned(given.get("rank_pattern"), module, given.get("r", rank))
        if rank_set != rank:
            raise ExpungeError(
                f"a LoRA whose settings say rank {rank_set:g} for '{layer}': expected {rank}, its matrices'"
            )
        root = bool(given.get("use_rslora"))
        alpha_set = _patterned(given.get("alpha_pattern"), module, given.get("lora_alpha", rank))
        if own is not None and own != alpha_set:
            raise ExpungeError(
                f"a LoRA with alpha {own:g} for '{layer}' and {alpha_set:g} in its settings: expected one"
            )
        own = alpha_set
    if own is None:
        return 1.0
    if not math.isfinite(own) or own == 0:
        raise ExpungeError(f"a LoRA with alpha {own:g} for '{layer}': expected a number other than 0")
    return own / (math.sqrt(rank) if root else rank)


def _patterned(patterns: Mapping[str, Any] | None, module: str, default: Any) -> float:
    """The number that a module has by the first of peft's patterns (regular expressions of the end of its name) that fits."""
    value = default
    for pattern, number in (patterns or {}).items():
        try:
            fits = any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in (module, levelled(module)))
        except re.error as error:
            raise ExpungeError(
                f"a LoRA with the pattern '{pattern}': expected a regular expression ({error})"
            ) from error
        if fits:
            value = number
            break
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExpungeError(f"a LoRA whose settings say {value!r} for '{module}': expected a number")
    return float(value)


def _foreign(name: str) -> ExpungeError:
    """The error for a tensor that is no part of a low-rank change."""
    what = next((what for pattern, what in _FOREIGN.items() if re.search(pattern, name)), None)
    if what is None and "lora" not in name:
        what = {"weight": "a whole tensor", "bias": "a whole bias"}.get(name.rpartition(".")[2])
    if what is None:
        return unknown(name)
    return ExpungeError(
        f"a LoRA with '{name}', {what}: expected two matrices for each layer (lora_A and lora_B, or lora_down and lora_up), "
        "and alpha"
    )


def written(layers: Mapping[str, LowRank], layout: Layout, flat: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a LoRA file, from low-rank changes by layer, whose scale is in their matrices.

    All layers get the largest rank, by zeros, since some readers (diffusers) take one alpha for all layers.

    Args:
        layers: the changes, by layer.
        layout: diffusers' names, kohya's, or those of Black Forest Labs.
        flat: names of layers that are others there.
    """
    tensors: dict[str, Tensor] = {}
    rank = max((len(part.down) for part in layers.values()), default=0)
    for name, part in layers.items():
        more = rank - len(part.down)
        down = torch.cat([part.down, part.down.new_zeros((more, *part.down.shape[1:]))])
        up = torch.cat([part.up, part.up.new_zeros((part.up.shape[0], more, *part.up.shape[2:]))], 1)
        whole = flat.get(name, name)
        if layout == "kohya":
            tensors[f"{whole}.lora_down.weight"], tensors[f"{whole}.lora_up.weight"] = down, up
            tensors[f"{whole}.alpha"] = torch.tensor(float(rank))  # so that alpha / r is 1
            continue
        front, _, rest = whole.partition(".")
        if front.startswith("text_"):
            whole = f"{front}.{levelled(rest)}"
        tensors[f"{whole}.lora_A.weight"], tensors[f"{whole}.lora_B.weight"] = down, up
    return tensors
