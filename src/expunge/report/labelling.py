"""Blinded sheets: people say what images show, and do not know which model made them or what was asked for."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.core.digest import sha256
from expunge.core.errors import ExpungeError
from expunge.report.album import data_uri
from expunge.report.sensitive import covered
from expunge.report.templating import rendered
from expunge.store.atomic import FORMAT, check_new, new_file, write_json
from expunge.store.listing import Listed, read_any_listed

NONE, NO_PICTURE = "none", "no picture"
"""What can be said beside the labels: it shows something else; it is noise or blank."""
KEYS = "123456789qwertyuiopasdfghjklzcvm"
"""Which key means which label; those of `NONE` and `NO_PICTURE` are n and x, and b goes back."""
SIDE = 512
"""Pixels of the longer side at most."""


def write_sheet(
    folders: Sequence[Path],
    labels: Sequence[str],
    out: Path,
    key: Path,
    seed: int = 0,
    count: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a sheet with the images of ``folders`` in random order, and a key that says which is which.

    Args:
        folders: image folders, with or without ``metadata.jsonl``.
        labels: what a person may choose; the labels of the folders if empty.
        out: the HTML file.
        key: the JSON file to keep from those who label; `agreement.read` needs it.
        seed: seed of the order.
        count: images of each folder, drawn at random; all if not given.
        overwrite: replace earlier files.

    Returns:
        The key.

    Raises:
        ExpungeError: if there is nothing to show, nothing to choose from or too much, ``count`` is below 1, or a file exists.
    """
    for path in (out, key):
        check_new(path, overwrite)
    shots, named = _shots(folders, seed, count)
    words = sorted(named) if not labels else list(dict.fromkeys(labels))
    if not words:
        raise ExpungeError("the images have no labels: expected --choice for each label that a person may choose")
    if len(words) > len(KEYS):
        raise ExpungeError(f"{len(words)} labels to choose from: expected {len(KEYS)} at most, a key for each")
    choices = [*words, NONE, NO_PICTURE]
    items = [
        {"item": number, "file": str(s.path.resolve()), "sha256": sha256(s.path), "label": s.label, "prompt": s.prompt}
        for number, s in enumerate(shots, 1)
    ]
    answers = {"format": FORMAT, "seed": seed, "choices": choices, "items": items}
    answers["sheet"] = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()[:16]
    sheet = {
        "sheet": answers["sheet"],
        "choices": [{"name": n, "key": k} for n, k in zip(choices, [*KEYS[: len(words)], "n", "x"], strict=True)],
        "images": [data_uri(s.path, SIDE) for s in shots],
    }
    unsafe = any(covered([s.label, s.prompt]) for s in shots) or covered(words)
    html = rendered("label.html", sheet=sheet, unsafe=unsafe)
    write_json(key, answers, overwrite)
    with new_file(out, overwrite) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return answers


def _shots(folders: Sequence[Path], seed: int, count: int | None) -> tuple[list[Listed], set[str]]:
    """The images to show, in random order, and the labels of all in the folders: a draw that misses one still offers it."""
    if count is not None and count < 1:
        raise ExpungeError(f"{count} images of each folder: expected 1 or more")
    draw = random.Random(seed)
    shots, named = list[Listed](), set[str]()
    for folder in folders:
        listed = read_any_listed(folder)
        named |= {one.label for one in listed if one.label}
        shots += listed if count is None or count >= len(listed) else draw.sample(listed, count)
    if not shots:
        raise ExpungeError("no folder of images: expected one or more to label")
    draw.shuffle(shots)
    return shots, named
