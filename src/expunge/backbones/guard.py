"""Whether an edit would have an effect in the state that a user's pipeline is in, and could be taken back again."""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from expunge.backbones import held
from expunge.backbones.running import check_steers, method_of, steers
from expunge.core.adapter import Adapter
from expunge.core.edit import Edit, weights_of
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Key, attends

if TYPE_CHECKING:
    from expunge.backbones.pipeline import PipelineBackbone


def check_carries(backbone: "PipelineBackbone", parts: held.Pipeline, edit: Edit, coming: bool) -> None:
    """Refuse to write or hook what would have no effect, or could not be taken back.

    Raises:
        ExpungeError: naming the tensor or layer, and its state.
    """
    part = backbone.denoiser
    unread: list[str] = []
    weights = weights_of(edit)
    if weights is not None:
        for name in weights.replaced:
            module, key = backbone.parameter(name)
            held.check_plain(name, module._parameters.get(key))
        layers = {name.rpartition(".")[0] for name in weights.replaced}
        unread = [layer for layer in _unread(backbone, parts, layers) if not _written_through(backbone, parts, layer)]
    elif coming and isinstance(edit, Adapter):
        unread = _unread(backbone, parts, edit.layers)
    elif coming and (isinstance(edit, Key) or attends(edit)):
        if held.compiled(parts.outer(part)):
            what = (
                "a key gives prompts to" if isinstance(edit, Key) else f"a {method_of(edit)} edit looks at attention in"
            )
            raise ExpungeError(f"{what} the layers of a compiled {part}: expected one that is not")
        read = (name for layer in backbone.attentions().values() for name in (layer.q, layer.k, layer.v))
        unread = _unread(backbone, parts, (name.removesuffix(".weight") for name in read))
    _check_none(backbone, unread)
    if coming and steers(edit):
        check_steers(parts.pipe, part, edit)


def check_trains(backbone: "PipelineBackbone", parts: held.Pipeline, layers: Collection[str]) -> None:
    """Refuse to train layers whose change nothing would show.

    Raises:
        ExpungeError: naming one.
    """
    _check_none(backbone, _unread(backbone, parts, layers))


def check_call(backbone: "PipelineBackbone", parts: held.Pipeline) -> None:
    """Refuse a call in which adapters would act on some layers alone: projections were fused since they were attached.

    Raises:
        ExpungeError: naming a layer.
    """
    adapted = [layer for edit in backbone.edits if isinstance(edit, Adapter) for layer in edit.layers]
    fused = [
        layer for layer in adapted if layer.startswith(f"{backbone.denoiser}.") and _fusions(backbone, parts, layer)
    ]
    attentions = {layer: _attention(backbone, parts, layer) for layer in fused}
    _check_none(backbone, [layer for layer, attention in attentions.items() if held.fused([attention])])


def _check_none(backbone: "PipelineBackbone", unread: Sequence[str]) -> None:
    if unread:
        raise ExpungeError(
            f"'{unread[0]}' is not read: the projections of {backbone.name} are fused (fuse_qkv_projections): expected "
            "unfuse_qkv_projections() first"
        )


def _unread(backbone: "PipelineBackbone", parts: held.Pipeline, layers: Iterable[str]) -> list[str]:
    """Layers of attention that the denoiser does not call: what stands in their place was made from them before."""
    part = backbone.denoiser
    asked = sorted(n for n in layers if n.startswith(f"{part}.") and "transformer_blocks." in n)
    if not asked:
        return []
    modules = {name: backbone.parameter(f"{name}.weight")[0] for name in asked}
    try:
        with held.listening(modules) as heard:
            backbone.asker.ask_smallest()
    except Exception:  # it wants more than that (an IP-Adapter's images): go by what stands in it
        heard = set() if held.fused(parts.get(part).modules()) else set(asked)
    return [name for name in asked if name not in heard]


def _fusions(backbone: "PipelineBackbone", parts: held.Pipeline, layer: str) -> list[held.Fusion]:
    """The fused projections that are made from a layer."""
    return held.fusions(_attention(backbone, parts, layer), layer.rpartition(".")[2])


def _attention(backbone: "PipelineBackbone", parts: held.Pipeline, layer: str) -> torch.nn.Module:
    """The module of attention that a projection is in."""
    return held.owner(parts.get(backbone.denoiser), layer.removeprefix(f"{backbone.denoiser}."))


def _written_through(backbone: "PipelineBackbone", parts: held.Pipeline, layer: str) -> bool:
    """Whether fused projections are what a layer and its like make, so that they can be made again."""
    fused = _fusions(backbone, parts, layer)
    return bool(fused) and all(fusion.fresh() for fusion in fused)


@torch.no_grad()
def write_through(backbone: "PipelineBackbone", parts: held.Pipeline, names: Sequence[str]) -> None:
    """Make the projections again that were fused from tensors which have just been written."""
    layers = {
        n.rpartition(".")[0] for n in names if n.startswith(f"{backbone.denoiser}.") and "transformer_blocks." in n
    }
    for layer in layers:
        for fusion in _fusions(backbone, parts, layer):
            fusion.refresh()
