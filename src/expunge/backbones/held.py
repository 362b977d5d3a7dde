"""A pipeline that the user holds: its components under plain names, and whether an edit would have an effect in its state."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import ismethod
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.backbones.parts import Parts
from expunge.core.edit import plain
from expunge.core.errors import ExpungeError


@final
class Pipeline(Parts):
    """The components of a pipeline that the user holds, whatever was done to it since it was loaded."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @override
    def names(self, part: str) -> list[str]:
        return list(parameters(self.get(part)))

    @override
    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        known = parameters(self.get(part))
        for name in names:
            check_plain(f"{part}.{name}", known[name])
        return {n: known[n].detach() for n in names}

    @override
    def built(self, part: str) -> bool:
        return True

    @override
    def get(self, part: str) -> Any:
        return unwrapped(getattr(self.pipe, part))

    def outer(self, part: str) -> Any:
        """The component as the pipeline calls it: with the wrapper of ``torch.compile``, if it has one."""
        return getattr(self.pipe, part)

    @override
    def config(self, part: str) -> Mapping[str, Any]:
        return self.get(part).config

    @override
    def option(self, name: str, default: Any) -> Any:
        return self.pipe.config.get(name, default)


# names ----------------------------------------------------------------------------------------------------------------
def unwrapped(module: Any) -> Any:
    """The module inside ``torch.compile(module)``, or itself."""
    inner = getattr(module, "_modules", {}).get("_orig_mod")
    return module if inner is None else inner


FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""What ``fuse_qkv_projections`` makes of which projections, which it leaves where they are, unread."""


def parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The model's own parameters by their plain names.

    Without the levels of wrappers, a LoRA's of the user, and projections that were made from others.
    """
    inside = dict(module.named_modules())
    wrapped = [f"{n}." for n, m in inside.items() if "base_layer" in m._modules]
    joined = [f"{n}.{f}." for n, m in inside.items() for f, of in FUSED.items() if {f, *of} <= m._modules.keys()]
    return {
        plain(name): parameter
        for name, parameter in module.named_parameters()
        if not name.startswith(tuple(joined)) and (".base_layer." in name or not name.startswith(tuple(wrapped)))
    }


class Fusion(NamedTuple):
    """A fused projection, and those that it is made from."""

    whole: torch.nn.Linear
    parts: list[torch.nn.Linear]

    def joined(self, key: str) -> Tensor | None:
        """What its ``weight`` or ``bias`` should be."""
        tensors = [getattr(part, key) for part in self.parts]
        return None if any(t is None for t in tensors) else torch.cat([t.data for t in tensors])

    def fresh(self) -> bool:
        """Whether it is what its parts make."""
        known = ((getattr(self.whole, key), self.joined(key)) for key in ("weight", "bias"))
        return all(joined is None or torch.equal(whole, joined) for whole, joined in known)

    def refresh(self) -> None:
        """Make it again from its parts."""
        for key in ("weight", "bias"):
            joined = self.joined(key)
            if joined is not None:
                getattr(self.whole, key).data.copy_(joined)


def fusions(attention: torch.nn.Module, of: str) -> list[Fusion]:
    """The fused projections in a layer of attention that are made from its projection called ``of``."""
    inside: Any = attention._modules
    return [
        Fusion(inside[whole], [inside[part] for part in parts])
        for whole, parts in FUSED.items()
        if of in parts and {whole, *parts} <= inside.keys()
    ]


def own_layers(module: torch.nn.Module) -> list[str]:
    """Plain names of the model's own Linear and convolution layers, without a LoRA's."""
    owned = {name.rpartition(".")[0] for name in parameters(module)}
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = (plain(f"{n}.")[:-1] for n, m in module.named_modules() if isinstance(m, kinds))
    return [n for n in layers if n in owned]


def owner(module: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module that owns the parameter with this plain ``name``, inside of what wraps it.

    Raises:
        AttributeError: if there is none.
    """
    for step in name.split(".")[:-1]:
        if "text_model" in module._modules and step not in module._modules:
            module = module.get_submodule("text_model")
        module = _inside(module.get_submodule(step))
    return module


def _inside(module: torch.nn.Module) -> torch.nn.Module:
    while (inner := module._modules.get("_orig_mod") or module._modules.get("base_layer")) is not None:
        module = inner
    return module


# states ---------------------------------------------------------------------------------------------------------------
def check_plain(name: str, tensor: Tensor | None) -> None:
    """Refuse a tensor that cannot be read and written as numbers.

    Raises:
        ExpungeError: if it is quantised, offloaded, stored in eight bits, or made from others at every call.
    """
    if tensor is None:
        raise ExpungeError(f"'{name}' is made from other tensors at every call: expected a plain parameter")
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor.is_floating_point():
        kind = str(tensor.dtype) if type(tensor) in (Tensor, torch.nn.Parameter) else type(tensor).__name__
        raise ExpungeError(
            f"'{name}' is quantised ({kind}): expected plain numbers (attach the edit, or export the edited model, "
            "and quantise then)"
        )
    if tensor.device.type == "meta":
        raise ExpungeError(
            f"'{name}' is offloaded (on the meta device): expected the edit to come or go before offloading is switched on"
        )
    if tensor.dtype.itemsize < 2:
        raise ExpungeError(
            f"'{name}' is stored as {str(tensor.dtype).removeprefix('torch.')} (layerwise casting): expected the edit to be "
            "attached before that, or with the weights in float16 or more"
        )


def compiled(module: Any) -> bool:
    """Whether a module, or one in it, runs as ``torch.compile`` made it."""
    if unwrapped(module) is not module or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
        return True
    return any(m._compiled_call_impl is not None or unwrapped(m) is not m for m in module.modules())


@contextmanager
def eager(module: Any) -> Iterator[None]:
    """Run what is in the block as it is written, so that hooks and exchanged tensors are heeded, compiled or not."""
    if not compiled(module):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def forget_compiled(module: Any) -> None:
    """Have a compiled module traced anew at its next call: what it was traced to does not heed hooks that come or go."""
    if compiled(module) and "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def replaced_forward(module: Any) -> bool:
    """Whether somebody runs code of their own in the place of the module's, or of its blocks': DeepCache, diffusers' caches.

    Offloading is told apart.
    """
    inside = unwrapped(module)
    if getattr(inside, "is_cache_enabled", False):
        return True
    forward = vars(inside).get("forward")
    if isinstance(forward, partial) and forward.func.__module__.startswith("accelerate."):
        forward = None if ismethod(vars(inside).get("_old_forward")) else vars(inside).get("_old_forward")
    return forward is not None and not compiled(module)


@contextmanager
def listening(modules: Mapping[str, torch.nn.Module]) -> Iterator[set[str]]:
    """The names of those ``modules`` that were called inside the block."""
    heard: set[str] = set()
    handles: list[Any] = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: heard.add(name)))
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def fused(attentions: Iterable[torch.nn.Module]) -> bool:
    """Whether attention reads fused projections: by the name of its processor, where it cannot be tried."""
    return any("Fused" in type(getattr(m, "processor", None)).__name__ for m in attentions)
