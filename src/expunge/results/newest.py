"""Which records still count: the newest of what was measured more than once, none of images that have been replaced."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.store.atomic import RUN
from expunge.store.listing import METADATA


def mark(folder: Path, out: Path) -> dict[str, str]:
    """When, and on which images, the records of ``folder`` were measured that go to the file ``out``.

    A report leaves out what was measured again later, and what is of images that have been replaced.
    """
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"at": now, "images": os.path.relpath(folder, out.parent), "images_sha256": digest(folder)}


def digest(folder: Path) -> str:
    """The sha256 of what an image folder says of itself: what made it, and what each image was asked for."""
    files = [folder / RUN, folder / METADATA]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def newest(records: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Of records and the files they stand in: the newest of what was measured more than once, none of images replaced since."""
    runs: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    kept: list[Mapping[str, Any]] = []
    for file, record in records:
        marked, provenance = record.get("measured"), record.get("provenance")
        if (
            not isinstance(marked, dict)
            or not isinstance(provenance, dict)
            or not {"at", "images", "images_sha256"} <= marked.keys()
        ):
            kept.append(record)  # of an analysis, or of an expunge that did not say
            continue
        folder = (file.parent / str(marked["images"])).resolve()
        if (folder / METADATA).is_file() and digest(folder) != marked["images_sha256"]:
            continue
        what = [provenance.get(name) for name in ("metric", "settings", "reference", "retain_measured")]
        same = json.dumps([str(folder), record.get("concepts"), *what], sort_keys=True)
        runs.setdefault(same, {}).setdefault(str(marked["at"]), []).append(record)
    return [*kept, *(record for times in runs.values() for record in times[max(times)])]
