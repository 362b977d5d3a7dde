"""A folder of what single commands wrote, read for its report."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.report.run import Run, Side, erasures, figures_below, files_below
from expunge.results.counts import became
from expunge.results.group import SET, Group
from expunge.results.newest import newest
from expunge.store.atomic import read_lines
from expunge.store.headers import EDIT, read_header
from expunge.store.listing import METADATA, read_run
from expunge.store.shapes import RECORD, check_shape


def read(folder: Path) -> Run:
    """The images, records, edits and figures in ``folder``.

    Raises:
        ExpungeError: if there is none of them, or a file is damaged.
    """
    sides = list(_image_folders(folder))
    everything = _records(folder)
    records = newest(everything)
    edits = [read_header(file) for file in files_below(folder, f"*{EDIT}") if file.name == EDIT]
    figures = figures_below(folder)
    if not (sides or records or edits or figures):
        raise ExpungeError(f"'{folder}' holds no images, records, edits or figures: expected a run of expunge")
    rows = _placed(records, sides)
    known = {id_ for row in rows for id_ in row["provenance"]["edits"]}
    alone = [_as_record(edit) for edit in edits if edit["id"] not in known and edit["provenance"]]
    shares = [row for row in rows if row["metric"].startswith("became@")]
    return Run(
        name=folder.name,
        about="",
        records=rows,
        summary=[*(_as_summary(row) for row in rows if row not in shares), *became(shares)],
        sides=sides,
        gone=len({r["provenance"].get("images") for r in records} - {None, *(s.folder.name for s in sides)}),
        erasures=erasures([*rows, *alone]),
        figures=figures,
        outdated=len(everything) - len(records),
    )


def _records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every record below a folder with the file that it stands in; what one file holds of another counts once."""
    files = [file for file in files_below(folder, "*.jsonl") if file.name != METADATA]
    rows = [(f, row) for f in files for row in read_lines(f) if {"metric", "value", "subject"} <= row.keys()]
    once = list({str(row): (file, row) for file, row in rows}.values())
    for file, row in once:
        check_shape(f"a record in '{file}'", row, RECORD)
    return once


def _image_folders(folder: Path) -> Iterator[Side]:
    """Image folders, the original model's first."""
    runs = {file.parent: read_run(file.parent) for file in files_below(folder, METADATA)}
    for path, run in sorted(runs.items(), key=lambda pair: bool(pair[1].get("edits") or pair[1].get("control"))):
        provenances = [e["provenance"] for e in run.get("edits", []) if e.get("provenance")]
        targets = tuple(dict.fromkeys(target for p in provenances for target in p["targets"]))
        key = f" ({run['control']} key)" if run.get("control") else ""
        yield Side(name=f"{path.relative_to(folder)}{key}", scene="", folder=path, targets=targets)


def _placed(records: Sequence[Mapping[str, Any]], sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Records that say which row they are of, as a plan's do.

    That is their image folder; for a recovery, the folder with the same edits and no key.
    """
    of_images = [r for r in records if "images" in r["provenance"]]
    owners = {tuple(r["provenance"]["edits"]): r["provenance"]["images"] for r in of_images if r["subject"] == "edited"}
    runs = [(side, read_run(side.folder)) for side in sides]
    owners |= {tuple(e["id"] for e in run["edits"]): side.name for side, run in runs if run and not run.get("control")}
    rows: list[dict[str, Any]] = []
    for record in records:
        provenance, control = record["provenance"], record["provenance"].get("control")
        edits = tuple(provenance["edits"])
        # an analysis draws images of its own, and keeps none
        images = provenance.get("images", ", ".join(edits) or "original")
        group = SET
        if control:
            group = Group(kind="key", control=control)
        if "analysis" in provenance:
            group = Group(kind="analysis", name=provenance["analysis"])
        method = images if group == SET else owners.get(edits, images)
        where = {"method": method, "group": str(group), "variant": "", "training_seed": 0}
        rows.append({**record, "provenance": {"split": "", **provenance, **where}})
    return rows


def _as_summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of a summary."""
    provenance = record["provenance"]
    spent = {}
    if provenance["made_by"] and provenance["group"] == str(SET):
        costs = [Cost(**p["cost"]).equivalents for p in provenance["made_by"]]
        spent = {"erase_equivalents": sum(costs), "erase_seconds": sum(p["seconds"] for p in provenance["made_by"])}
    numbers = {name: record[name] for name in ("metric", "value", "low", "high", "n")}
    return {
        "method": provenance["method"],
        "group": provenance["group"],
        **numbers,
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
