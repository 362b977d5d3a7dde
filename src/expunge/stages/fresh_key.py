"""Fresh key: an edited model and a method with keys in; a key that was learned without the private one out."""

import time
from collections.abc import Sequence
from importlib.metadata import version

from expunge.core.backbone import Backbone
from expunge.core.concept import Concept, check_targets
from expunge.core.edit import Edit, Provenance
from expunge.core.eraser import Eraser, Task, settings_of
from expunge.core.guidance import Key
from expunge.stages.erase import check_model
from expunge.store import with_provenance

VERSION = 2
"""Part of the key of every job; goes up when the same settings would learn another key. 2: by the edited model's own texts."""


def learn(
    backbone: Backbone, method: str, eraser: Eraser, targets: Sequence[Concept], edits: Sequence[Edit], seed: int = 0
) -> Key:
    """A key to the model with ``edits``, learned anew with the settings of ``eraser``: how cheaply does a concept come back?

    ``edits`` may be any method's. The backbone is the original, and left as it was. The key's provenance has its cost.

    Raises:
        ExpungeError: for a method that makes no key, or a model that lacks what it needs.
    """
    check_targets(list(targets), [])
    check_model(backbone, eraser)
    start, before = time.perf_counter(), backbone.cost
    key = eraser.fresh_key(backbone, Task(targets=targets, seed=seed), edits)
    provenance = Provenance(
        eraser=method,
        settings=settings_of(eraser),
        targets=[t.name for t in targets],
        anchors=[None for _ in targets],
        retain=[],
        model=backbone.name,
        family=backbone.family,
        seed=seed,
        cost=backbone.cost - before,
        seconds=round(time.perf_counter() - start, 3),
        expunge=version("expunge"),
    )
    with_provenance(key, provenance)
    return key
