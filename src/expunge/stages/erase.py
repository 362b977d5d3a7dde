"""Erase: model, concepts and an eraser's settings in; an edit out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from expunge import backbones
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, check_targets
from expunge.core.edit import Edit, Provenance
from expunge.core.eraser import Eraser, Step, Task, settings_of
from expunge.core.errors import ExpungeError, unknown
from expunge.stages import presets
from expunge.store import check_new, load_edit, save_edit, with_provenance


@final
@dataclass(frozen=True, kw_only=True)
class EraseResult:
    """What an erasure gave."""

    edit: Edit
    path: Path
    seconds: float


def build(method: str, given: dict[str, Any], kind: str | None) -> Eraser:
    """The eraser ``method``: the paper's defaults, then the preset of ``kind`` (if any), then what the user gave.

    Raises:
        ExpungeError: for an unknown method or setting.
    """
    cls = Catalog("erasers").load(method)
    known = getattr(cls, "__dataclass_fields__", {})
    for name in given:
        if name not in known:
            raise unknown(f"setting of {method}", name, known)
    return cls(**{**(presets.eraser(method, kind) if kind else {}), **given})


def erase(
    model: Any,
    targets: str | Concept | Sequence[str | Concept],
    method: str = "uce",
    *,
    retain: str | Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    preset: bool = True,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> Edit:
    """Make an edit that removes ``targets`` from ``model``, which is left as it was.

    Args:
        model: a diffusers pipeline that you hold, a backbone, or a name as `load` takes it.
        targets: one concept or several, in words.
        method: catalog name of the eraser; see `expunge list`.
        retain: words of a concept to keep, or of several.
        settings: the eraser's settings, over the preset's and the paper's.
        preset: start from the settings found for this kind of model, if there are any.
        seed: seed of whatever the method draws.
        on_step: called after every update.

    Raises:
        ExpungeError: for bad input, in one line.
    """
    backbone = backbones.load(model) if isinstance(model, str) else backbones.of(model)
    eraser = build(method, dict(settings or {}), backbone.kind if preset else None)
    return run(
        backbone,
        method,
        eraser,
        concepts(targets),
        [retain] if isinstance(retain, str) else list(retain),
        seed,
        on_step,
    )


def concepts(targets: str | Concept | Sequence[str | Concept]) -> list[Concept]:
    """Targets in any of the accepted forms, as concepts."""
    several = [targets] if isinstance(targets, str | Concept) else list(targets)
    return [Concept(name=t) if isinstance(t, str) else t for t in several]


def run(
    backbone: Backbone,
    method: str,
    eraser: Eraser,
    targets: list[Concept],
    retain: list[str],
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> Edit:
    """Drain an eraser's steps; the last edit gets its provenance."""
    check_targets(targets, retain)
    start, before = time.perf_counter(), backbone.cost
    last: Step | None = None
    for step in eraser.steps(backbone, Task(targets=targets, retain=retain, seed=seed)):
        last = step
        if on_step is not None:
            on_step(step)
    if last is None:
        raise ExpungeError(f"{method} made no update: expected at least one step")
    provenance = Provenance(
        eraser=method,
        settings=settings_of(eraser),
        targets=[t.name for t in targets],
        anchors=[t.anchor for t in targets],
        retain=retain,
        model=backbone.name,
        family=backbone.family,
        seed=seed,
        cost=backbone.cost - before,
        seconds=round(time.perf_counter() - start, 3),
        expunge=version("expunge"),
    )
    return with_provenance(last.edit, provenance)


def to_folder(
    backbone: Backbone,
    method: str,
    eraser: Eraser,
    targets: list[Concept],
    retain: list[str],
    out: Path,
    *,
    attached: Sequence[Path] = (),
    seed: int = 0,
    overwrite: bool = False,
) -> EraseResult:
    """Erase on top of the ``attached`` edits and write ``out/edit.safetensors``."""
    file = out / "edit.safetensors"
    check_new(file, overwrite)
    with backbone.attached([load_edit(path) for path in attached]):
        edit = run(backbone, method, eraser, targets, retain, seed)
    save_edit(edit, file, overwrite)
    return EraseResult(edit=edit, path=file, seconds=0.0 if edit.provenance is None else edit.provenance.seconds)
