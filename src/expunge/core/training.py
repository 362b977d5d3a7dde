"""What a model is trained through: tensors in the place of its own, and low-rank changes beside its layers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from expunge.core.adapter import as_layers

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone


@contextmanager
def swapped(backbone: "Backbone", tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Tensors in the place of the model's own inside; see `Backbone.weights`."""
    backbone.check_trains({name.rpartition(".")[0] for name in tensors})
    owners = {name: backbone.parameter(name) for name in tensors}
    saved = {name: module._parameters[key] for name, (module, key) in owners.items()}
    try:
        for name, (module, key) in owners.items():
            module._parameters[key] = tensors[name]  # pyright: ignore[reportArgumentType]
        yield
    finally:
        for name, (module, key) in owners.items():
            module._parameters[key] = saved[name]


@contextmanager
def put_beside(backbone: "Backbone", factors: Mapping[str, Tensor], scale: float) -> Iterator[None]:
    """Low-rank changes beside layers inside; see `Backbone.adapted`."""
    handles: list[Any] = []
    layers = as_layers(factors)
    backbone.check_trains(layers)
    try:
        handles = backbone.stack.put_beside(layers, scale, None)
        yield
    finally:
        for handle in handles:
            handle.remove()
