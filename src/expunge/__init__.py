"""expunge: remove concepts from text-to-image diffusion models, prove it, attack it, report it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from expunge.core import registry

if TYPE_CHECKING:
    from expunge.backbones import load
    from expunge.core.backbone import Backbone
    from expunge.core.catalog import Catalog
    from expunge.core.concept import Concept
    from expunge.core.conditioning import Conditioning
    from expunge.core.edit import Edit, Weights
    from expunge.core.eraser import Eraser
    from expunge.core.errors import ExpungeError
    from expunge.core.guidance import Guidance
    from expunge.core.judge import Judge
    from expunge.core.metric import Metric
    from expunge.core.query import Query
    from expunge.core.record import Record
    from expunge.maths.fisher import Fisher
    from expunge.stages.erase import erase
    from expunge.store import load_edit

_HOMES = {
    "Backbone": "core.backbone",
    "Catalog": "core.catalog",
    "Concept": "core.concept",
    "Conditioning": "core.conditioning",
    "Edit": "core.edit",
    "Eraser": "core.eraser",
    "ExpungeError": "core.errors",
    "Guidance": "core.guidance",
    "Judge": "core.judge",
    "Metric": "core.metric",
    "Query": "core.query",
    "Record": "core.record",
    "Weights": "core.edit",
    "erase": "stages.erase",
    "load": "backbones",
    "load_edit": "store",
}
__all__ = [
    "Backbone",
    "Catalog",
    "Concept",
    "Conditioning",
    "Edit",
    "Eraser",
    "ExpungeError",
    "Guidance",
    "Judge",
    "Metric",
    "Query",
    "Record",
    "Weights",
    "erase",
    "load",
    "load_edit",
]


def _backbone_of(model: Any) -> "Backbone":
    """The backbone around a model, for `Edit.attach`; the families are imported when it is asked."""
    from expunge import backbones

    return backbones.of(model)


def _save_edit(edit: "Edit", path: Any, overwrite: bool = False) -> None:
    """Write an edit, for `Edit.save`."""
    from expunge import store

    store.save_edit(edit, path, overwrite=overwrite)


def _read_fisher(path: Any) -> "Fisher":
    """Read a Fisher file, for erasers whose settings name one."""
    from expunge import store

    return store.read_fisher(path)


def _read_prompts(*given: Any, **how: Any) -> "list[Query]":
    """Read a prompt file, for attacks whose settings name one."""
    from expunge import store

    return store.read_prompts(*given, **how)


registry.register(opener=_backbone_of, saver=_save_edit, fisher_reader=_read_fisher, prompt_reader=_read_prompts)


def __dir__() -> list[str]:
    """The public names, whether they have been imported or not."""
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``expunge --help`` does not wait for torch."""
    if name == "__version__":
        return import_module("importlib.metadata").version("expunge")
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge' has no attribute '{name}'")
    return getattr(import_module(f"expunge.{_HOMES[name]}"), name)
