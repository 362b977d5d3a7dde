"""Resume: what tells the work that a killed run began from other work, so that only the same is gone on with."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expunge.backbones.pipeline import PipelineBackbone
from expunge.core.backbone import Backbone
from expunge.core.concept import Concept
from expunge.core.digest import sha256
from expunge.core.edit import Edit, fingerprint
from expunge.core.eraser import Eraser, files_of, settings_of
from expunge.core.query import Query


def of_images(
    backbone: Backbone, edits: Sequence[Edit], queries: Sequence[Query], batch: int | None, **about: Any
) -> str:
    """The fingerprint of a folder of images."""
    asked = [q.as_json() for q in queries]
    starts = [fingerprint({"start": q.start.image}) for q in queries if q.start is not None]
    drawn = {"edits": [e.id for e in edits], "queries": asked, "starts": starts, "batch": batch}
    return _digest({"model": _model(backbone), **drawn, **about})


def of_erasure(
    backbone: Backbone,
    method: str,
    eraser: Eraser,
    targets: Sequence[Concept],
    retain: Sequence[str],
    seed: int,
    images: Mapping[str, Path] | None,
    stop: Mapping[str, Any],
) -> str:
    """The fingerprint of an erasure; ``stop`` has the fields of the stop that may end it, if there is one."""
    shown = {role: _files(folder) for role, folder in (images or {}).items()}
    erasure = {
        "method": method,
        "version": eraser.version,
        "settings": settings_of(eraser),
        "seed": seed,
        "images": shown,
    }
    words = {"targets": [asdict(t) for t in targets], "retain": list(retain), "on": [e.id for e in backbone.edits]}
    ends = {"stop": dict(stop)} if stop else {}
    files = files_of(eraser)
    ends |= {"files": files} if files else {}
    ends |= _redefined(backbone, method, getattr(eraser, "group", ""))
    return _digest({"model": _model(backbone), **erasure, **words, **ends})


def of_fisher(backbone: Backbone, wish: Mapping[str, Any], images: Path | None) -> str:
    """The fingerprint of a Fisher pass; ``wish`` has the fields of the stage's own."""
    shown = None if images is None else _files(images)
    again = _redefined(backbone, wish["group"])
    return _digest(
        {
            "model": _model(backbone),
            "fisher": dict(wish),
            "images": shown,
            "on": [e.id for e in backbone.edits],
            **again,
        }
    )


def redefined(backbone: Backbone, *names: str) -> int:
    """How often a group or an eraser of these names came to mean something else on this model.

    Once more in float16, where gradients were not scaled at first.
    """
    return sum(backbone.redefined.get(name, 0) for name in names) + (str(backbone.dtype) == "torch.float16")


def _redefined(backbone: Backbone, *names: str) -> dict[str, int]:
    """What tells a checkpoint from one before a name came to mean something else."""
    times = redefined(backbone, *names)
    return {"redefined": times} if times else {}


def _model(backbone: Backbone) -> dict[str, Any]:
    """The model by its name, precision, the matrices that read text, and its files: these may be many gigabytes."""
    about = {"name": backbone.name, "family": backbone.family, "dtype": str(backbone.dtype), "on": str(backbone.device)}
    reads = fingerprint(backbone.tensors(backbone.text_inputs()))
    return {**about, "reads": reads, "files": list(_sizes_and_times(backbone))}


def _sizes_and_times(backbone: Backbone) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of each file of a model that was opened by its path, which change where its weights do."""
    path, parts = Path(backbone.name), backbone.parts if isinstance(backbone, PipelineBackbone) else ()
    for file in [path] if path.is_file() else sorted(f for part in parts for f in (path / part).glob("*")):
        if file.is_file():
            stat = file.stat()
            yield str(file), stat.st_size, stat.st_mtime_ns


def _files(folder: Path) -> Iterable[tuple[str, str]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(str(file.relative_to(folder)), sha256(file)) for file in files]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
