"""Prompt files as papers publish them: one image a row."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

from expunge.core.errors import ExpungeError, reason
from expunge.core.query import Query

SEEDS = ("evaluation_seed", "sd_seed", "seed")
GUIDANCES = ("evaluation_guidance", "sd_guidance_scale", "guidance")
LABELS = ("label_str", "label", "class", "artist", "concept")
"""Columns of published prompt files, the first that is there."""


def read_prompts(
    path: Path, guidance: float, steps: int, label: str | None = None, row_guidance: bool = False
) -> list[Query]:
    """One query for each row of a CSV with the columns of Imagenette's, I2P's, COCO's or the artists' prompt files.

    Args:
        path: the file, or ``hub:OWNER/NAME/FILE.csv`` of a dataset on the hub: ``prompt``, a seed (``evaluation_seed`` before
            ``sd_seed``), and perhaps a class or artist.
        guidance: scale for every row.
        steps: denoising steps for every row.
        label: the concept that every row asks for, in the place of its class or artist.
        row_guidance: take the scale from the row (``evaluation_guidance`` or ``sd_guidance_scale``).

    Raises:
        ExpungeError: if there is no such file, it is empty, or a column or value is missing or bad.
    """
    try:
        with _fetched(path).open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise ExpungeError(f"no file '{path}': expected a CSV of prompts") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExpungeError(f"'{path}' cannot be read as CSV: {error}") from error
    if not rows:
        raise ExpungeError(f"'{path}' has no row: expected a header and a row for each image")

    def column(names: Sequence[str], needed: bool = True) -> str:
        found = next((name for name in names if name in columns), "")
        if needed and not found:
            has = ", ".join(name for name in columns if name)
            raise ExpungeError(f"'{path}' has no column {' or '.join(names)}: expected one beside {has}")
        return found

    prompt, seed, named = column(("prompt",)), column(SEEDS), column(LABELS, needed=False)
    scale = column(GUIDANCES) if row_guidance else ""
    found: list[Query] = []
    for line, row in rows:
        place = f"'{path}' line {line}"
        words = (row[prompt] or "").strip()
        if not words:
            raise ExpungeError(f"{place} has no prompt: expected one")
        found.append(
            Query(
                prompt=words,
                seed=_whole(place, seed, row[seed]),
                label=label or ((row[named] or "").strip() or None if named else None),
                guidance=_scale(place, scale, row[scale]) if scale else guidance,
                steps=steps,
            )
        )
    return found


def _fetched(path: Path) -> Path:
    """The file itself, or its copy from the hub, kept where `huggingface_hub` keeps what it fetches.

    Raises:
        ExpungeError: if the hub does not give it.
    """
    named = re.fullmatch(r"hub:([^/]+/[^/]+)/(.+)", path.as_posix())
    if named is None:
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(*named.groups(), repo_type="dataset"))
    except Exception as error:
        raise ExpungeError(f"prompts '{path}' cannot be fetched from the hub: {reason(error)}") from error


def _whole(place: str, name: str, text: str | None) -> int:
    """A seed."""
    if text is None or not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise ExpungeError(f"{place} has {name} '{text or ''}': expected a whole number, 0 or more")
    return int(text)


def _scale(place: str, name: str, text: str | None) -> float:
    """A scale of guidance."""
    try:
        scale = float(text or "")
    except ValueError:
        scale = math.nan
    if not 0 <= scale < math.inf:
        raise ExpungeError(f"{place} has {name} '{text or ''}': expected a number, 0 or more")
    return scale
