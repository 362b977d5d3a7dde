"""A folder of what single commands wrote, read for its report."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.report.run import Run, Side, apart_below, erasures, figures_below, files_below
from expunge.report.variants import told_apart
from expunge.results.counts import became
from expunge.results.group import SET, Group
from expunge.results.newest import newest
from expunge.store.atomic import read_lines
from expunge.store.headers import EDIT, read_header
from expunge.store.listing import METADATA, read_run
from expunge.store.shapes import RECORD, check_shape

FOLDER = "folder"
"""What a record's provenance calls the whole path of its images while they are read."""


def read(folder: Path, store: Path) -> Run:
    """The images, records, edits and figures in ``folder``, without those of plans and audits in it, and of a ``store`` in it.

    Raises:
        ExpungeError: if there is none of them, or a file is damaged.
    """
    apart, jobs, root = apart_below(folder), store.resolve(), folder.resolve()
    without = [*apart, *([folder / jobs.relative_to(root)] if jobs != root and jobs.is_relative_to(root) else [])]
    sides = list(_image_folders(folder, without))
    everything = _records(folder, sides, without)
    records = newest(everything)
    edits = [read_header(file) for file in files_below(folder, f"*{EDIT}", without) if file.name == EDIT]
    figures = figures_below(folder, without)
    if not (sides or records or edits or figures):
        what = "holds no images, records, edits or figures: expected a run of expunge"
        raise ExpungeError(f"'{folder}' {what}" + (f", such as '{apart[0]}' in it" if apart else ""))
    rows = told_apart(_placed(records, sides, folder))
    known = {id_ for row in rows for id_ in row["provenance"]["edits"]}
    alone = [_as_record(edit) for edit in edits if edit["id"] not in known and edit["provenance"]]
    shares = [row for row in rows if row["metric"].startswith("became@")]
    return Run(
        name=folder.name,
        about="",
        records=rows,
        summary=[*(_as_summary(row) for row in rows if row not in shares), *_became(shares)],
        sides=sides,
        gone=len({images for r in records if (images := _images(r)) and not _is_there(images)}),
        erasures=erasures([*rows, *alone]),
        figures=figures,
        outdated=len(everything) - len(records),
        apart=[other.relative_to(folder).as_posix() for other in apart],
    )


def _records(folder: Path, sides: Sequence[Side], without: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Every record below a folder with the file that it stands in; what one file holds of another counts once."""
    files = [file for file in files_below(folder, "*.jsonl", without) if file.name != METADATA]
    rows = [(f, row) for f in files for row in read_lines(f) if {"metric", "value", "subject"} <= row.keys()]
    for file, row in rows:
        check_shape(f"a record in '{file}'", row, RECORD)
    there = {side.folder.resolve() for side in sides}
    found = [(file, row, _with_images(file, row, there)) for file, row in rows]
    known = {str(row) for _, row, placed in found if _is_there(_images(placed))}
    once: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file, row, placed in found:
        if _is_there(_images(placed)) or str(row) not in known:
            once.setdefault(str(placed if str(row) in known else row), (file, placed))
    return list(once.values())


def _with_images(file: Path, row: dict[str, Any], there: set[Path]) -> dict[str, Any]:
    """A record that says where its images are: where it was measured, or else the folder of that name beside it or alone."""
    name = row["provenance"].get("images")
    if name is None:
        return row
    measured = row.get("measured")
    marked = measured.get("images") if isinstance(measured, dict) else None
    where = (file.parent / str(marked or name)).resolve()
    beside, called = (file.parent / str(name)).resolve(), [path for path in there if path.name == name]
    if not _is_there(where) and (beside in there or len(called) == 1):
        where = beside if beside in there else called[0]
    return {**row, "provenance": {**row["provenance"], FOLDER: str(where)}}


def _images(record: Mapping[str, Any]) -> Path | None:
    """The folder of a record's images, if it is of some."""
    where = record["provenance"].get(FOLDER)
    return None if where is None else Path(where)


def _is_there(images: Path | None) -> bool:
    return images is not None and (images / METADATA).is_file()


def _image_folders(folder: Path, without: Sequence[Path]) -> Iterator[Side]:
    """Image folders, the original model's first."""
    runs = {file.parent: read_run(file.parent) for file in files_below(folder, METADATA, without)}
    for path, run in sorted(runs.items(), key=lambda pair: bool(pair[1].get("edits") or pair[1].get("control"))):
        provenances = [e["provenance"] for e in run.get("edits", []) if e.get("provenance")]
        targets = tuple(dict.fromkeys(target for p in provenances for target in p["targets"]))
        key = f" ({run['control']} key)" if run.get("control") else ""
        yield Side(name=f"{_inside(path, folder)}{key}", scene="", folder=path, targets=targets)


def _inside(path: Path, folder: Path) -> str:
    """What a folder of images in the reported folder is called, which may be that folder itself."""
    return folder.resolve().name if path == folder else path.relative_to(folder).as_posix()


def _names(records: Sequence[Mapping[str, Any]], sides: Sequence[Side], folder: Path) -> dict[Path, str]:
    """What the rows of image folders are called: their path in the reported folder, or their name where they lie elsewhere.

    Those elsewhere whose name others have, too, are called by their path from the reported folder.
    """
    root = folder.resolve()
    names = {side.folder.resolve(): _inside(side.folder, folder) for side in sides}
    paths = {images for r in records if (images := _images(r))} - names.keys()
    names |= {path: _inside(path, root) for path in paths if path.is_relative_to(root)}
    often = Counter([*names.values(), *(path.name for path in paths - names.keys())])
    for path in paths - names.keys():
        names[path] = path.name if often[path.name] == 1 else Path(os.path.relpath(path, root)).as_posix()
    return names


def _placed(records: Sequence[Mapping[str, Any]], sides: Sequence[Side], folder: Path) -> list[dict[str, Any]]:
    """Records that say which row they are of, as a plan's do.

    That is their image folder; for a recovery, the folder with the same edits and no key.
    """
    names = _names(records, sides, folder)
    named = [(record, names.get(images) if (images := _images(record)) else None) for record in records]
    owners = {tuple(r["provenance"]["edits"]): name for r, name in named if name and r["subject"] == "edited"}
    runs = [(side, read_run(side.folder)) for side in sides]
    owners |= {tuple(e["id"] for e in run["edits"]): side.name for side, run in runs if run and not run.get("control")}
    rows: list[dict[str, Any]] = []
    for record, name in named:
        provenance, control = dict(record["provenance"]), record["provenance"].get("control")
        provenance.pop(FOLDER, None)
        edits = tuple(provenance["edits"])
        # an analysis draws images of its own, and keeps none
        images = name or ", ".join(edits) or "original"
        group = SET
        if control:
            group = Group(kind="key", control=control)
        if "analysis" in provenance:
            group = Group(kind="analysis", name=provenance["analysis"])
        method = images if group == SET else owners.get(edits, images)
        where = {"method": method, "group": str(group), "variant": "", "training_seed": 0}
        rows.append(
            {**record, "provenance": {"split": "", **provenance, **({"images": name} if name else {}), **where}}
        )
    return rows


def _became(shares: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What targets turned into, of each variant alone."""
    rows: list[dict[str, Any]] = []
    for variant in dict.fromkeys(row["provenance"]["variant"] for row in shares):
        own = [row for row in shares if row["provenance"]["variant"] == variant]
        plain = [{**row, "provenance": {**row["provenance"], "variant": ""}} for row in own]
        rows += [{**row, "metric": f"{row['metric']}{variant}"} for row in became(plain)]
    return rows


def _as_summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of a summary."""
    provenance = record["provenance"]
    spent = {}
    if provenance["made_by"] and provenance["group"] == str(SET):
        costs = [Cost(**p["cost"]).equivalents for p in provenance["made_by"]]
        spent = {"erase_equivalents": sum(costs), "erase_seconds": sum(p["seconds"] for p in provenance["made_by"])}
    return {
        "method": provenance["method"],
        "group": provenance["group"],
        "metric": record["metric"] + provenance["variant"],
        **{name: record[name] for name in ("value", "low", "high", "n")},
        "training_seeds": 1,
        "splits": 1,
        **spent,
    }


def _as_record(header: Mapping[str, Any]) -> dict[str, Any]:
    """What an edit's own header says, in the form in which records say it."""
    provenance = header["provenance"]
    where = {"method": provenance["eraser"], "group": str(SET), "split": ""}
    return {
        "eraser": provenance["eraser"],
        "seed": provenance["seed"],
        "knowledge": {name: provenance[name] for name in ("targets", "anchors", "retain")},
        "provenance": {"edits": [header["id"]], "made_by": [provenance], **where},
    }
