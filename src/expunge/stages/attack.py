"""Attack: model, edits and queries in; adversarial queries out, to be generated and judged by other rooms."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from expunge.core.attack import Attack
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, check_targets
from expunge.core.edit import Edit, strengths
from expunge.core.eraser import Task, settings_of
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.settings import presets
from expunge.settings.layers import filled
from expunge.stages import erase
from expunge.store import write_queries


@final
@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What an attack gave."""

    queries: Sequence[Query]
    about: Mapping[str, Any]
    """How they were found: method, settings, access, budget, against what; goes with the images, into their records."""


def build(name: str, settings: Mapping[str, Any], kind: str | None = None) -> Attack:
    """The attack called ``name``: the paper's defaults, then the preset of ``kind`` (if any), then ``settings``.

    Raises:
        ExpungeError: for an unknown attack or setting.
    """
    cls = Catalog("attacks").load(name)
    return filled(cls, name, presets.attack(name, kind) if kind else {}, settings)


def run(
    backbone: Backbone,
    name: str,
    attack: Attack,
    edits: Sequence[Edit],
    targets: Sequence[Concept],
    queries: Sequence[Query],
    seed: int = 0,
    images: Mapping[str, Path] | None = None,
    strength: float | Sequence[float] = 1.0,
) -> Attacked:
    """Adversarial versions of ``queries`` against the model with ``edits`` (none: the original, to calibrate on).

    ``strength`` is what edits that have weights are attached with, all or each.

    Images that the attack wants are the original's, unless folders of them are given.

    Raises:
        ExpungeError: for bad targets, or if no query asks for one of them.
    """
    check_targets(list(targets), [])
    each = strengths(strength, edits)
    labels = {q.label for q in queries}
    unasked = [t.name for t in targets if t.name not in labels]
    if unasked:
        raise ExpungeError(f"no query asks for '{unasked[0]}': expected one labelled so")
    start, before = time.perf_counter(), backbone.cost
    with backbone.bare():
        task = erase.with_images(backbone, Task(targets=targets, seed=seed), attack.needs(targets), images or {})
    made = backbone.cost - before
    with backbone.attached(edits, each):
        found = list(attack.queries(backbone, task, queries))
    about = {
        "attack": name,
        "settings": settings_of(attack),
        "access": attack.access,
        "targets": [t.name for t in targets],
        "edits": [e.id for e in edits],
        "strength": strength,
        "model": backbone.name,
        "seed": seed,
        "images": {role: {"count": len(s), "given": role in (images or {})} for role, s in task.images.items()},
        "cost": asdict(backbone.cost - before - made),
        "cost_of_images": asdict(made),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Attacked(queries=found, about=about)


def to_folder(found: Attacked, out: Path, overwrite: bool = False) -> Path:
    """Write the queries, their learned words, and how they were found."""
    write_queries(out, found.queries, found.about, overwrite)
    return out
