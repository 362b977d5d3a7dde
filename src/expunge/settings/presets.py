"""Settings that fit a kind of model, as ``presets.toml`` has them."""

import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever reads tables alone needs no torch
    from expunge.core.backbone import Backbone

TABLES = {"erasers": "erase", "attacks": "attack"}
"""The table of ``presets.toml`` with settings of a kind of plug-in."""


@cache
def _presets() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent.parent / "presets.toml").read_text())


def looks(kind: str) -> dict[str, Any]:
    """What the images of a check are made with, for a kind of model: template, guidance and steps."""
    row = _presets()["generate"][kind]
    return {"prompt": row["check_prompt"], "guidance": float(row["guidance"]), "steps": int(row["steps"])}


def generation(backbone: "Backbone") -> tuple[float, int]:
    """Guidance and steps as the model ships."""
    row = _presets()["generate"][backbone.kind]
    return float(row["guidance"]), int(row["steps"])


def true_cfg(backbone: "Backbone") -> float:
    """Scale of a distilled model's pair of predictions, where an edit needs one; 1, none, for other models."""
    return float(_presets()["generate"][backbone.kind].get("true_cfg", 1.0))


def image_evaluations(backbone: "Backbone") -> int:
    """Evaluations of the denoiser for an image as the model ships."""
    from expunge.core.cost import predictions

    guidance, steps = generation(backbone)
    return predictions(backbone.supports("distilled"), guidance) * steps


def prompt(backbone: "Backbone") -> str:
    """The template that asks the model for a concept."""
    return template(backbone.kind)


def template(kind: str) -> str:
    """That of a kind of model."""
    return str(_presets()["generate"][kind]["prompt"])


def check_images(backbone: "Backbone") -> int:
    """Images a word that an erasure looks at itself with."""
    return int(_presets()["generate"][backbone.kind]["check"])


def check_prompt(backbone: "Backbone") -> str:
    """The template of those images: not that of `prompt`, which results are reported on."""
    return _presets()["generate"][backbone.kind]["check_prompt"]


def batch(backbone: "Backbone") -> int:
    """Images at a time."""
    return int(_presets()["generate"][backbone.kind]["batch"])


def eraser(method: str, model_kind: str) -> dict[str, Any]:
    """Settings of ``method`` found on the dev sets of a kind of model; empty where the paper's serve."""
    return _found("erase", method, model_kind)


def attack(name: str, model_kind: str) -> dict[str, Any]:
    """Likewise of an attack."""
    return _found("attack", name, model_kind)


def by_kind(plug_ins: str, name: str) -> dict[str, dict[str, Any]]:
    """Settings of a plug-in by kind of model; none for kinds of plug-ins that have no presets."""
    return dict(_presets().get(TABLES[plug_ins], {}).get(name, {})) if plug_ins in TABLES else {}


def _found(table: str, name: str, model_kind: str) -> dict[str, Any]:
    return dict(_presets().get(table, {}).get(name, {}).get(model_kind, {}))
