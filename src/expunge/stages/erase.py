"""Erase: model, concepts and an eraser's settings in; an edit out."""

import hashlib
import secrets
import time
import warnings
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
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.stages import presets
from expunge.store import EDIT, KEY, check_new, load_edit, read_header, save_edit, with_provenance


@final
@dataclass(frozen=True, kw_only=True)
class EraseResult:
    """What an erasure gave."""

    edit: Edit
    path: Path
    key: Path | None
    """Where the private key is, for a method that has one."""
    seconds: float


def build(method: str, given: dict[str, Any], kind: str | None) -> Eraser:
    """The eraser ``method``: the paper's defaults, then the preset of ``kind`` (if any), then what the user gave.

    Raises:
        ExpungeError: for an unknown method or setting.
    """
    cls = Catalog("erasers").load(method)
    return presets.filled(cls, method, presets.eraser(method, kind) if kind else {}, given)


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

    Where the method makes a private key, it is the edit's ``key``, to be saved by itself: ``edit.key.save(path)``.

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
    kept = [retain] if isinstance(retain, str) else list(retain)
    return run(backbone, method, eraser, concepts(targets), kept, seed, on_step=on_step)


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
    salt: str | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Edit:
    """Drain an eraser's steps; the last edit gets its provenance and, where the method makes one, its key.

    A method with a key draws its random numbers from ``seed`` and a secret ``salt``, fresh if not given.
    """
    check_targets(targets, retain)
    if salt is None:
        salt = secrets.token_hex(16) if eraser.has_key else ""
    start, before = time.perf_counter(), backbone.cost
    last: Step | None = None
    for step in eraser.steps(backbone, Task(targets=targets, retain=retain, seed=seed, salt=salt)):
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
        salt_sha256=hashlib.sha256(salt.encode()).hexdigest() if eraser.has_key else "",
    )
    edit = with_provenance(last.edit(), provenance)
    if last.key is not None:
        edit.key = with_provenance(last.key(edit), provenance)
    for line in last.warnings:
        warnings.warn(line, ExpungeWarning, stacklevel=3)
    return edit


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
    on_step: Callable[[Step], None] | None = None,
) -> EraseResult:
    """Erase on top of the ``attached`` edits; writes ``edit.safetensors`` and, where there is a key, ``key.safetensors``.

    A key that was there before is never lost: it is renamed after the edit it belongs to.
    """
    file, key = out / EDIT, out / KEY
    check_new(file, overwrite)
    if eraser.has_key:
        check_new(key, overwrite)
    with backbone.attached([load_edit(path) for path in attached]):
        edit = run(backbone, method, eraser, targets, retain, seed, on_step=on_step)
    if key.exists():  # an old edit's key, which nothing can make again
        old = read_header(key)["requires"][-1:]
        key.rename(key.with_name(f"key-{''.join(old)}.safetensors"))
    if edit.key is not None:
        save_edit(edit.key, key)
    save_edit(edit, file, overwrite)
    seconds = 0.0 if edit.provenance is None else edit.provenance.seconds
    return EraseResult(edit=edit, path=file, key=None if edit.key is None else key, seconds=seconds)
