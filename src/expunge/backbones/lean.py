"""The classes that models are made of, imported without what diffusers and transformers import for nothing.

Half of the time in which they are imported goes to what no model here reads: TorchDynamo (for `torch.compile`), scipy (for
other schedulers, and losses of object detection), PEFT, and a list of all files of all installed packages. Where others share
the process that would be theirs to decide; a command is alone in its own. What is stood in for is private to the releases that
this was written with: whatever goes wrong with others, everything is imported as usual.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

LATER = ("scipy", "scipy.integrate", "scipy.stats", "torch.nn.attention.flex_attention")
"""Modules that are imported whole, and used by name: stood in for until one is used."""
DEFERRED = ("diffusers.loaders.single_file_utils", "torch._dynamo._trace_wrapped_higher_order_op")
"""Modules whose functions and classes are imported by name, and are called later if ever: these, until they are called."""
BARE = ("diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets")
"""Packages that import all they have: without that, while modules of them are imported."""
ABSENT = ("peft", "trio", "transformers.image_processing_base")
"""Optional packages: diffusers and httpcore do without them."""
DECORATORS = ("allow_in_graph", "assume_constant_result", "disable")
"""What others import TorchDynamo for: marks on functions, which only `torch.compile` reads."""
FORGOTTEN = ("diffusers", "transformers", "scipy", "peft")
"""Packages that are imported from their beginning again, if it goes wrong."""
CLASSES = {
    "transformers": ("CLIPTextModel", "CLIPTokenizer"),
    "diffusers": (
        *("UNet2DConditionModel", "AutoencoderTiny", "AutoencoderKL", "DDIMScheduler", "PNDMScheduler"),
        "DPMSolverMultistepScheduler",
    ),
}
"""What models of the families with a UNet are made of, with the schedulers that most of them come with."""


class _Later(ModuleType):
    """A module that is imported when something of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        inner = sys.modules.get(f"{self.__name__}.{name}")
        if isinstance(inner, _Later):
            return inner
        top = self.__name__.partition(".")[0]
        for module in [m for m, held in sys.modules.items() if isinstance(held, _Later) and m.partition(".")[0] == top]:
            del sys.modules[module]
        return getattr(importlib.import_module(self.__name__), name)


def import_model_classes() -> None:
    """Import them, once; what stood in for something is gone afterwards.

    Only for a process of one's own: what is compiled by `torch.compile` later is traced into where diffusers would not let it,
    and diffusers does not know of PEFT.
    """
    if "diffusers" in sys.modules or "transformers" in sys.modules:
        return
    before = set(sys.modules)
    try:
        _import_lean()
    except Exception:  # another release, which imports what is not stood in for
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in FORGOTTEN:
                del sys.modules[name]


def _import_lean() -> None:
    """Import the classes with stand-ins for what they need not."""
    import torch.distributed

    with (
        _in_place_of(_stand_ins()),
        _patched(importlib.metadata, "packages_distributions", dict),
        _patched(torch.distributed, "is_available", bool),
    ):
        for name in ("transformers.utils", "transformers.utils.import_utils"):
            importlib.import_module(name).is_torch_flex_attn_available = bool  # pyright: ignore[reportAttributeAccessIssue]
        for package, names in CLASSES.items():
            for name in names:
                getattr(importlib.import_module(package), name)
        # A scheduler that is made from a file looks at all that could read it.
        importlib.import_module("diffusers").DPMSolverMultistepScheduler._get_compatibles()
    reset = _numbers_only(torch.nn.Embedding.reset_parameters)
    torch.nn.Embedding.reset_parameters = reset  # pyright: ignore[reportAttributeAccessIssue]


def _stand_ins() -> dict[str, ModuleType | None]:
    """What stands in for what: None for a package that is said to be absent."""
    dynamo = ModuleType("torch._dynamo")
    for name in DECORATORS:
        setattr(dynamo, name, _unchanged)
    processing = ModuleType("transformers.processing_utils")
    processing.Unpack = typing.Unpack  # pyright: ignore[reportAttributeAccessIssue]  (all that a text encoder takes of it)
    losses = ModuleType("transformers.loss.loss_utils")
    losses.LOSS_MAPPING = {}  # pyright: ignore[reportAttributeAccessIssue]
    named: dict[str, ModuleType | None] = {module.__name__: module for module in (dynamo, processing, losses)}
    named |= {name: _Later(name) for name in LATER} | {name: _Deferring(name) for name in DEFERRED}
    named |= {name: _bare(name) for name in BARE}
    return named | dict.fromkeys(ABSENT)


def _bare(name: str) -> ModuleType:
    """A package in which modules are found, but whose own code has not run."""
    first, *rest = name.split(".")
    above = importlib.util.find_spec(first)
    package = ModuleType(name)
    package.__path__ = [str(Path(place, *rest)) for place in (above and above.submodule_search_locations) or ()]
    return package


class _Deferring(ModuleType):
    """A module that gives functions which are looked up in the real one when they are called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def looked_up(*args: Any, **named: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **named)

        return looked_up


def _numbers_only(reset: Callable[[Any], None]) -> Callable[[Any], None]:
    """A module's first numbers, unless it has none yet: on the meta device they are drawn by way of TorchDynamo and sympy."""
    return lambda module: None if module.weight.is_meta else reset(module)


def _unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator that changes nothing, called with or without what it decorates."""
    return _unchanged if function is None else function


@contextmanager
def _in_place_of(stand_ins: dict[str, ModuleType | None]) -> Iterator[None]:
    """Let these stand for modules that are not imported yet; those that would be found again later are forgotten."""
    new = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(new)  # pyright: ignore[reportArgumentType, reportCallIssue]  (None is how Python says "absent")
    try:
        yield
    finally:
        for name, module in new.items():
            if sys.modules.get(name, module) is module:
                sys.modules.pop(name, None)


@contextmanager
def _patched(module: ModuleType, name: str, instead: Callable[[], Any]) -> Iterator[None]:
    """Let a function of a module be another one for a while."""
    before = getattr(module, name)
    setattr(module, name, instead)
    try:
        yield
    finally:
        setattr(module, name, before)
