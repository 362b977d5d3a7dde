"""Prompt files as papers publish them: one image a row."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.core.errors import ExpungeError, ExpungeWarning, reason, unknown
from expunge.core.query import Query
from expunge.store.tables import Row, Table, plain, read_table

PROMPTS = ("prompt", "adv_prompt", "sensitive prompt", "text", "caption", "original")
SEEDS = ("evaluation_seed", "sd_seed", "seed")
GUIDANCES = ("evaluation_guidance", "sd_guidance_scale", "guidance")
LABELS = (
    *("label_str", "label", "class", "artist", "concept"),
    *("classes", "target", "profession", "categories", "category"),
)
"""Columns of published prompt files, the first that is there; in any case, with spaces or underscores."""
ADVERSARIAL = ("adv_prompt", "sensitive prompt")
"""Columns of `PROMPTS` that hold what an attack found; a ``prompt`` beside one is what it began with."""
ROLES = {"prompt": PROMPTS, "label": LABELS, "seed": SEEDS, "guidance": GUIDANCES}
"""What a column can be."""
UNREAD = r"width|height|size|resolution|negative|steps|sampler|scheduler|guidance|cfg"
"""In the names of columns that say how an image was made, and that are not read."""
READ = ".csv or .tsv (one image a row, fields between commas, semicolons or tabs) or .txt (one prompt a line)"
OTHERS = (".json", ".jsonl", ".parquet", ".arrow", ".xlsx", ".xls", ".ods", ".zip", ".gz")


def read_prompts(
    path: Path,
    guidance: float,
    steps: int,
    label: str | None = None,
    row_guidance: bool = False,
    columns: Mapping[str, str] | None = None,
    seed_from: int | None = None,
    attack_set: bool = False,
) -> list[Query]:
    """One query for each row of a table with the columns of Imagenette's, I2P's, COCO's or the artists' prompt files.

    A blank prompt is a prompt. What the rows say and is not read (sizes, negative prompts, …) is told in one warning.

    Args:
        path: the file, or ``hub:OWNER/NAME/FILE.csv`` of a dataset on the hub: a CSV whose columns are among `PROMPTS`, `SEEDS`
            and `LABELS`, or a ``.txt`` of one prompt a line.
        guidance: scale for every row.
        steps: denoising steps for every row.
        label: the concept that every row asks for, in the place of its class or artist; those with a 1, if ``columns`` names a
            column of 0 and 1 for it.
        row_guidance: take the scale from the row (``evaluation_guidance`` or ``sd_guidance_scale``).
        columns: names of columns by what they are: ``prompt``, ``label``, ``seed``, ``guidance``.
        seed_from: seed of the first row, and one more for each further row, where no column has seeds.
        attack_set: the prompts are an attack's: they are read from a column of `ADVERSARIAL` before ``prompt``, and
            ``guidance`` and ``seed_from`` stand in only where the file has no such column.

    Raises:
        ExpungeError: if there is no such file, it is empty, or a column or value is missing or bad.
    """
    table = _opened(path, seed_from)
    try:
        how = _How(label is not None, row_guidance, seed_from is not None, attack_set)
        roles = _columns(table, _adversarial(table, columns or {}) if attack_set else dict(columns or {}), how)
    except ExpungeError as error:
        raise ExpungeError(f"'{path}': {error}") from error
    _warn(path, table, roles)
    shown = _marked(path, table, roles, label) if "label" in (columns or {}) else None
    queries: list[Query] = []
    for number, row in enumerate(table.rows):
        where = f"'{path}' line {row.line}"
        said = None if roles.label is None else row.fields[roles.label].strip() or None
        queries.append(
            Query(
                prompt=row.fields[roles.prompt].strip(),
                seed=(seed_from or 0) + number if roles.seed is None else _whole(where, table, row, roles.seed),
                label=(label or said) if shown is None else shown[number],
                guidance=guidance if roles.guidance is None else _scale(where, table, row, roles.guidance),
                steps=steps,
            )
        )
    return queries


class _How(NamedTuple):
    """What was said of a file."""

    labelled: bool
    """Whether one label is for every row."""
    row_guidance: bool
    seeded: bool
    """Whether there are seeds for a file without."""
    attack_set: bool


class Columns(NamedTuple):
    """Where in a row what stands."""

    prompt: int
    seed: int | None
    label: int | None
    guidance: int | None


def _opened(path: Path, seed_from: int | None) -> Table:
    """The table of a file, or of a text of one prompt a line."""
    if path.suffix.lower() in OTHERS:
        raise ExpungeError(f"prompts '{path}' are a {path.suffix} file: expected {READ}")
    if seed_from is not None and not 0 <= seed_from < 10**18:
        raise ExpungeError(f"prompts from seed {seed_from} on: expected 0 or more, below 10^18")
    file = _fetched(path)
    if not file.is_file():
        raise ExpungeError(f"no file '{path}': expected a CSV of prompts")
    if path.suffix.lower() != ".txt":
        return read_table(file)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExpungeError(f"'{path}' cannot be read as text: {error}") from error
    rows = [Row(number, (line,)) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ExpungeError(f"'{path}' is empty: expected a prompt on each line")
    return Table(("prompt",), rows)


def _adversarial(table: Table, chosen: Mapping[str, str]) -> dict[str, str]:
    """The columns that are chosen, and that of the adversarial prompts if there is one, and none was chosen."""
    found = [name for name in ADVERSARIAL if table.at(name) is not None]
    if len(found) > 1 and "prompt" not in chosen:
        raise _several(found)
    return {"prompt": found[0], **chosen} if found else dict(chosen)


def _several(names: Sequence[str]) -> ExpungeError:
    return ExpungeError(f"the columns {' and '.join(names)} may each be the prompts: expected --column prompt=NAME")


def _columns(table: Table, chosen: dict[str, str], how: _How) -> Columns:
    """Where what stands: in the columns that are chosen, or the first that has one of its role's names."""
    for role, name in chosen.items():
        if role not in ROLES:
            raise unknown("role of a column", role, ROLES)
        if table.at(name) is None:
            raise unknown(f"column for the {role}", name, [column for column in table.columns if column])
    seed, prompt = _column(table, "seed", chosen), _column(table, "prompt", chosen)
    if prompt is None:
        raise _lacking(table, "prompt", "or a .txt of one prompt a line")
    if seed is None and not how.seeded:
        raise _lacking(table, "seed", "or --seed-from N")
    if seed is not None and how.seeded and not how.attack_set:
        raise ExpungeError(
            f"--seed-from beside the column {table.columns[seed]}, which has seeds: expected one of the two"
        )
    wanted = how.row_guidance or "guidance" in chosen
    guidance = _column(table, "guidance", chosen) if wanted else None
    if wanted and guidance is None and not how.attack_set:
        raise _lacking(table, "guidance", "or one scale for all rows")
    several = [name for name in PROMPTS if table.at(name) is not None]
    if "prompt" not in chosen and len(several) > 1 and "prompt" not in several:
        raise _several(several)
    named = None if how.labelled and "label" not in chosen else _column(table, "label", chosen)
    return Columns(prompt, seed, named, guidance)


def _column(table: Table, role: str, chosen: Mapping[str, str]) -> int | None:
    """Where the column of a role stands, if there is one."""
    names = (chosen[role],) if role in chosen else ROLES[role]
    return next((at for at in map(table.at, names) if at is not None), None)


def _lacking(table: Table, role: str, otherwise: str) -> ExpungeError:
    """The error for a role that no column has."""
    has = ", ".join(name for name in table.columns if name)
    return ExpungeError(
        f"no column {' or '.join(ROLES[role])} beside {has}: expected one, or --column {role}=NAME, {otherwise}"
    )


def _warn(path: Path, table: Table, roles: Columns) -> None:
    """Warn, once, of columns that might have been meant, and of those that say how an image was made and are not read."""
    remarks: list[str] = []
    for role, names in (("prompt", PROMPTS), ("label", LABELS)):
        at = getattr(roles, role)
        known = {plain(name) for name in names}
        others = [c for i, c in enumerate(table.columns) if i not in roles and plain(c) in known]
        if at is not None and others:
            remarks.append(
                f"{role}s are read from {table.columns[at]}, not from {', '.join(others)} (--column {role}=NAME)"
            )
    unread = [name for i, name in enumerate(table.columns) if i not in roles and re.search(UNREAD, plain(name))]
    if unread:
        scale = any(plain(name) in map(plain, GUIDANCES) for name in unread)
        hint = " (--row-guidance reads the scale)" if scale else ""
        remarks.append(f"{', '.join(unread)} {'is' if len(unread) == 1 else 'are'} not read{hint}")
    if remarks:
        warnings.warn(f"'{path}': {'; '.join(remarks)}", ExpungeWarning, stacklevel=3)


def _marked(path: Path, table: Table, roles: Columns, label: str | None) -> list[str | None] | None:
    """Labels from a column of 0 and 1, whose name (or ``label``) is that of what a 1 means; None for a column of words.

    Raises:
        ExpungeError: if a label is given beside a column of words.
    """
    at = roles.label or 0
    values = [row.fields[at].strip().casefold() for row in table.rows]
    yes, no = {"1", "1.0", "true"}, {"0", "0.0", "false"}
    if not set(values) <= yes | no:
        if label is not None:
            raise ExpungeError(
                f"'{path}': label '{label}' beside labels in the column {table.columns[at]}: expected one of the two"
            )
        return None
    concept = label or table.columns[at]
    labels = [concept if value in yes else None for value in values]
    count = sum(name is not None for name in labels)
    remark = f"{count} of {len(labels)} rows have a 1 in {table.columns[at]} and are labelled '{concept}', the others nothing"
    warnings.warn(f"'{path}': {remark}", ExpungeWarning, stacklevel=3)
    return labels


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


def _whole(where: str, table: Table, row: Row, at: int) -> int:
    """A seed; one that a table of numbers has written as 7.0 is 7."""
    text = row.fields[at].strip()
    match = re.fullmatch(r"([0-9]{1,18})(\.0*)?", text)
    if match is None:
        raise ExpungeError(f"{where} has {table.columns[at]} '{text}': expected a whole number, 0 or more")
    return int(match[1])


def _scale(where: str, table: Table, row: Row, at: int) -> float:
    """A scale of guidance."""
    text = row.fields[at].strip()
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 <= scale < math.inf:
        raise ExpungeError(f"{where} has {table.columns[at]} '{text}': expected a number, 0 or more")
    return scale
