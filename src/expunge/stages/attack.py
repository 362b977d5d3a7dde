"""Attack: model, edits and queries in; a provocation out, to be generated and judged by other rooms."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import UInt8
from torch import Tensor

from expunge.core.attack import Attack
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, check_targets
from expunge.core.edit import Edit, not_finite, strengths
from expunge.core.eraser import Task, files_of, settings_of
from expunge.core.errors import ExpungeError
from expunge.core.guidance import pairing
from expunge.core.knowledge import Knowledge
from expunge.core.query import Query
from expunge.core.victim import Victim, victim
from expunge.settings import presets
from expunge.settings.layers import filled
from expunge.stages import generate, wanted
from expunge.store import read_queries, write_queries


@final
@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What an attack gave."""

    queries: Sequence[Query]
    about: Mapping[str, Any]
    """How they were found: method, settings, access, budget, against what; goes with the images, into their records.

    What the settings told an attack stands under ``knowledge``, as `Knowledge` calls it and without what is empty; the judges
    that it asks stand under ``oracles``. An attack that was told nothing, or asks none, lacks these.
    """
    edit: Edit | None = None
    """What the attack changed in the model, on top of its edits."""

    @property
    def dtype(self) -> str | None:
        """The precision that the attack has the model run in; None for an attack that leaves it."""
        return self.about.get("dtype")

    def within(self, tier: Mapping[str, Any]) -> "Attacked":
        """The same, which says for which budget of time its settings were chosen, and what was given up."""
        return replace(self, about={**self.about, "tier": dict(tier)})

    def check(self, backbone: Backbone) -> None:
        """Refuse a model in another precision than the attack's.

        Raises:
            ExpungeError: naming both.
        """
        own = precision(backbone)
        if self.dtype not in (None, own):
            raise ExpungeError(
                f"these queries are of an attack in {self.dtype}, and the model is in {own}: expected the same (--dtype)"
            )


def precision(backbone: Backbone) -> str:
    """The precision of a model's weights, by torch's name."""
    return str(backbone.dtype).removeprefix("torch.")


def build(name: str, settings: Mapping[str, Any], kind: str | None = None) -> Attack[Any]:
    """The attack called ``name``: the paper's defaults, then the preset of ``kind`` (if any), then ``settings``.

    Raises:
        ExpungeError: for an unknown attack or setting.
    """
    cls = Catalog("attacks").load(name)
    return filled(cls, name, presets.attack(name, kind) if kind else {}, settings)


def run(
    backbone: Backbone,
    name: str,
    attack: Attack[Any],
    edits: Sequence[Edit],
    targets: Sequence[Concept],
    queries: Sequence[Query],
    seed: int = 0,
    images: Mapping[str, Path] | None = None,
    strength: float | Sequence[float] = 1.0,
) -> Attacked:
    """Adversarial versions of ``queries`` against the model with ``edits`` (none: the original, to calibrate on).

    ``strength`` is what edits that have weights are attached with, all or each. Images that the attack wants are the
    original's, unless folders of them are given.

    Raises:
        ExpungeError: for bad targets, if no query asks for one of them, or if the attack exceeds its budget of images.
    """
    check_targets(list(targets), [])
    attack.check(targets)
    each = strengths(strength, edits)
    attack.fits(edits)
    check_pair(backbone, edits, queries)
    _check_asked(targets, queries)
    start, before = time.perf_counter(), backbone.cost
    with backbone.bare():
        task = wanted.attached(backbone, Task(targets=targets, seed=seed), attack.needs(targets), images or {})
    of_images = backbone.cost - before
    names = {t.name for t in targets}
    lent = lend(backbone, attack, len(targets), sum(q.label in names for q in queries))
    with backbone.attached(edits, each):
        answer = attack.provoke(lent, task, queries)
    bad = None if answer.edit is None else not_finite(answer.edit.tensors())
    if bad is not None:
        raise ExpungeError(f"{name} made NaN or infinity of '{bad}': expected finite numbers, so other settings")
    known = attack.knowledge()
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
        "cost": asdict(backbone.cost - before - of_images),
        "cost_of_images": asdict(of_images),
        "seconds": round(time.perf_counter() - start, 3),
        **({"budget": {"images": lent.budget, "asked": lent.asked}} if lent.budget else {}),
        **_told(known),
        **({"oracles": list(known.oracles)} if known.oracles else {}),
        **({"files": files_of(attack)} if attack.files else {}),
        **({} if answer.edit is None else {"edit": answer.edit.id}),
        **({} if answer.dtype is None else {"dtype": answer.dtype}),
    }
    return Attacked(queries=list(answer.queries), about=about, edit=answer.edit)


def check_pair(backbone: Backbone, edits: Sequence[Edit], queries: Sequence[Query]) -> None:
    """Refuse an edit that acts through a pair of predictions, where none would be made.

    Raises:
        ExpungeError: for such an edit on a distilled model (FLUX), of which queries ask without a ``true_cfg``.
    """
    idle = next(iter(pairing(edits)), None)
    if idle is not None and backbone.supports("distilled") and all(query.true_cfg <= 1 for query in queries):
        raise ExpungeError(
            f"edit {idle.id} acts through a pair of predictions, and {backbone.name} is asked without one: expected edits of "
            "weights, or images made with `expunge generate --true-cfg`"
        )


def _check_asked(targets: Sequence[Concept], queries: Sequence[Query]) -> None:
    labels = {q.label for q in queries}
    unasked = [t.name for t in targets if t.name not in labels]
    if unasked:
        raise ExpungeError(f"no query asks for '{unasked[0]}': expected one labelled so")


def _told(known: Knowledge) -> dict[str, Any]:
    """What an attack was told beside names and judges, as ``knowledge``; nothing of one that was told nothing."""
    every: dict[str, Any] = {
        "anchor": known.anchor,
        "phrases": list(known.phrases),
        "random_texts": known.random_texts,
        "words": list(known.words),
    }
    content = {kind: value for kind, value in every.items() if value not in (None, [], False)}
    return {"knowledge": content} if content else {}


def lend(backbone: Backbone, attack: Attack[Any], targets: int, queries: int) -> Victim:
    """What an attack on so many targets, and queries for them, holds of a model: no more than its access, budget and oracles.

    Raises:
        ExpungeError: for an unknown judge.
    """

    def draw(asked: Sequence[Query]) -> UInt8[Tensor, "n H W 3"]:
        return torch.cat(
            [torch.zeros((0, *backbone.image_size, 3), dtype=torch.uint8), *generate.render(backbone, asked)]
        )

    judges = {name: Catalog("judges").open(name) for name in attack.knowledge().oracles}
    return victim(attack.access, backbone, draw, judges, attack.budget(targets, queries))


def to_folder(attacked: Attacked, out: Path, overwrite: bool = False) -> Path:
    """Write the queries, their learned words, how they were found, and the attack's edit if it has one."""
    write_queries(out, attacked.queries, attacked.about, overwrite, edit=attacked.edit)
    return out


def read(folder: Path) -> Attacked:
    """What `to_folder` wrote.

    Raises:
        ExpungeError: if there are no queries, they are damaged, or the edit that they name is not there.
    """
    stored = read_queries(folder)
    return Attacked(queries=stored.queries, about=stored.about, edit=stored.edit)
