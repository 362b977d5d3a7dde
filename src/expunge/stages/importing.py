"""Import: what peers publish, as an edit that can be measured, attacked and exported like ours."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.backbones.pipeline import PipelineBackbone
from expunge.core import lora
from expunge.core.adapter import Adapter
from expunge.core.backbone import Backbone
from expunge.core.edit import Edit, Provenance, Weights, plain
from expunge.core.errors import ExpungeError, unknown
from expunge.store import Published, lora_adapter, read_published, with_provenance

TRAINED = {
    *("prediction_type", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "rescale_betas_zero_snr"),
    *("scaling_factor", "shift_factor", "latent_channels", "hidden_act", "num_hidden_layers"),
}
"""What a sampler, an autoencoder and CLIP are set to that a denoiser was trained with."""
COMPUTED = {"upcast_attention", "dropout", "quantization_config", "sample_size"}
"""What a denoiser is set to that changes how it is computed, not what it learned."""
VERSION = 1
"""Raised when two models begin to give another edit."""
METHOD = "imported"
"""What an edit's provenance calls a method that nobody named."""
IMPORTED = "imported"
"""Among the settings in an edit's provenance: the file that it was imported from."""


def run(
    backbone: Backbone,
    path: Path,
    *,
    method: str = METHOD,
    targets: Sequence[str] = (),
    gate: Sequence[str] = (),
    component: str | None = None,
) -> Edit:
    """An edit of this model from a LoRA, a membrane of SPM's authors, or bare weights: a file, or a folder of one component.

    Args:
        backbone: the base that the file was made for, which bare weights do not say.
        path: the file or folder.
        method: what removed the concepts.
        targets: what was removed, in words; those that open a membrane if not given.
        gate: words that open an adapter, where its file does not say them.
        component: which component bare names are of, where several have them.

    Raises:
        ExpungeError: if the file cannot be read, holds what the model does not have, or changes nothing.
    """
    published = read_published(path)
    if "expunge" in published.metadata:
        raise ExpungeError(f"'{path}' is an edit of expunge: expected what others publish; attach it as it is")
    removed = list(targets)
    if lora.is_lora(published.tensors):
        edit: Edit = _adapter(backbone, path, published, gate)
        removed = removed or list(dict.fromkeys(text for texts in edit.fields()["gates"] for text in texts))
    elif gate:
        raise ExpungeError(f"'{path}' holds whole weights, which no gate can open: expected no --gate")
    else:
        edit = _weights(backbone, path, published, component)
    settings = {IMPORTED: path.name, "sha256": published.sha256}
    return with_provenance(edit, _provenance(backbone, method, settings, removed))


def check_alike(backbone: Backbone, other: Backbone) -> None:
    """Refuse another model that no edit of tensors makes this one the same as: its configurations say something else.

    Raises:
        ExpungeError: naming the first setting that differs.
    """
    if backbone.family != other.family:
        raise ExpungeError(
            f"model '{other.name}' is no edited '{backbone.name}' ({other.family}): expected the same tensors"
        )
    if not (isinstance(backbone, PipelineBackbone) and isinstance(other, PipelineBackbone)):
        return
    samplers = [dict(one.component("scheduler").config) for one in (backbone, other)]
    for part in (backbone.denoiser, *backbone.clip_towers, "scheduler", "vae"):
        own, theirs = samplers if part == "scheduler" else (backbone.config(part), other.config(part))
        known = own.keys() & theirs.keys()
        for name in sorted(known - COMPUTED if part == backbone.denoiser else known & TRAINED):
            if not name.startswith("_") and own[name] != theirs[name]:
                raise ExpungeError(
                    f"model '{other.name}' has {name} {theirs[name]} in its {part}, and '{backbone.name}' {own[name]}: "
                    "expected the same in an edited model"
                )


def of_model(backbone: Backbone, other: Backbone, targets: Sequence[str]) -> Edit:
    """The `difference` from a whole ``other`` model that somebody edited, which says that it was imported.

    Raises:
        ExpungeError: as `difference`.
    """
    settings = {IMPORTED: Path(other.name).name, "sha256": other.identity()}
    return with_provenance(difference(backbone, other), _provenance(backbone, METHOD, settings, targets))


def difference(backbone: Backbone, other: Backbone) -> Weights:
    """An edit that makes ``backbone`` the same as an ``other`` model, but for what no edit reaches.

    That is the autoencoder, T5 and the sampler, which stay this model's. The edit says nothing of how it came to be.

    Raises:
        ExpungeError: if the two are of different kinds or configurations, or the same.
    """
    check_alike(backbone, other)
    names = [*backbone.group("full"), *backbone.group("text-encoder")]
    theirs = [*other.group("full"), *other.group("text-encoder")]
    strange = next((name for name in {*names, *theirs} if (name in names) != (name in theirs)), None)
    if strange is not None:
        raise ExpungeError(
            f"model '{other.name}' is no edited '{backbone.name}' ({strange}): expected the same tensors"
        )
    own, now = backbone.tensors(names), other.tensors(names)
    shapes = next((name for name in names if own[name].shape != now[name].shape), None)
    if shapes is not None:
        raise ExpungeError(
            f"model '{other.name}' has '{shapes}' of another shape than '{backbone.name}': expected the same"
        )
    changed = {name: now[name] for name in names if not torch.equal(own[name], now[name])}
    if not changed:
        raise ExpungeError(f"model '{other.name}' has the weights of '{backbone.name}': expected an edited one")
    return backbone.edit_of(changed)


def _provenance(backbone: Backbone, method: str, settings: Mapping[str, Any], targets: Sequence[str]) -> Provenance:
    """What an imported edit says of itself."""
    return Provenance(
        eraser=method,
        settings=dict(settings),
        targets=list(targets),
        anchors=[None] * len(targets),
        retain=[],
        model=backbone.name,
        family=backbone.family,
        seed=0,
        expunge=version("expunge"),
    )


def _adapter(backbone: Backbone, path: Path, published: Published, gate: Sequence[str]) -> Adapter:
    """A LoRA as an adapter of this base."""
    try:
        adapter = lora_adapter(published, gate)
        with backbone.attached([adapter]):  # which checks that it fits
            pass
    except ExpungeError as error:
        raise ExpungeError(f"'{path}': {error}") from error
    return backbone.adapter_of(adapter.tensors(), gate=adapter.gate)


def _weights(backbone: Backbone, path: Path, published: Published, component: str | None) -> Weights:
    """Bare weights as an edit of those that differ from the base's own."""
    whole = published.component is not None
    named = _named(backbone, path, published.tensors, component or published.component)
    part = next(iter(named)).partition(".")[0]
    absent = [n for n in _known(backbone).values() if n.startswith(f"{part}.") and n not in named] if whole else []
    if absent:
        raise ExpungeError(f"'{path}' has no '{absent[0]}': expected the whole {part} of {backbone.name}")
    base = backbone.tensors(list(named))
    for name, tensor in named.items():
        if tensor.shape != base[name].shape:
            given, wanted = tuple(tensor.shape), tuple(base[name].shape)
            raise ExpungeError(f"'{path}' has '{name}' of shape {given}: expected {wanted} for {backbone.name}")
        if not (tensor.is_floating_point() and tensor.float().isfinite().all()):
            raise ExpungeError(f"'{path}' has '{name}' in {tensor.dtype}, or not finite: expected finite, real numbers")
    # compared in the file's precision: what was only rounded on the way to it is the base's own
    changed = {n: t for n, t in named.items() if not torch.equal(base[n].to(t).float(), t.float())}
    if not changed:
        raise ExpungeError(f"'{path}' changes nothing in {backbone.name}: expected weights that are not the base's own")
    return backbone.edit_of(changed)


def _named(backbone: Backbone, path: Path, tensors: Mapping[str, Tensor], component: str | None) -> dict[str, Tensor]:
    """Tensors under the model's own names; a file may name the component, or leave it out."""
    known = _known(backbone)
    components = list(dict.fromkeys(name.partition(".")[0] for name in known))
    if component is not None and component not in components:
        raise unknown("component", component, components)
    names = [name for name in tensors if not name.endswith(".position_ids")]  # which count from 0, and are not learned
    fronts = [f"{component}."] if component else ["", *(f"{one}." for one in components)]
    own_names = {front: [known.get(plain(front + name)) for name in names] for front in fronts}
    fitting = [front for front in fronts if names and None not in own_names[front]]
    if len(fitting) > 1:
        shown = ", ".join(front.removesuffix(".") for front in fitting)
        raise ExpungeError(f"'{path}' may be of {shown}: expected --component with one of them")
    if fitting:
        return {own: tensors[name] for own, name in zip(own_names[fitting[0]], names, strict=True) if own is not None}
    if any(name.startswith("model.diffusion_model.") for name in names):
        raise ExpungeError(
            f"'{path}' is a checkpoint in the LDM layout: expected diffusers' names, or --model '{path}'"
        )
    nearest = min(fronts, key=lambda front: own_names[front].count(None))
    strange = [name for name, own in zip(names, own_names[nearest], strict=True) if own is None]
    raise ExpungeError(
        f"'{path}' has {len(strange)} of {len(names)} tensors that {backbone.name} does not have"
        f"{f', such as {strange[0]!r}' if strange else ''}: expected weights of a {backbone.family} model"
    )


def _known(backbone: Backbone) -> dict[str, str]:
    """The model's own names of its parameters, by those without the levels that come and go."""
    return {plain(name): name for name in [*backbone.group("full"), *backbone.group("text-encoder")]}
