"""What a run left on disk, read for its report: records, image folders, erasures, figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.stages import bench, measure
from expunge.stages import summary as summaries
from expunge.store import EDIT, read_header, read_json, read_lines, read_run
from expunge.store.shapes import RECORD, check_shape

ORIGINAL = "original"
"""The model without edits, as plans call it."""
FIGURES = "figures"


@final
@dataclass(frozen=True, kw_only=True)
class Side:
    """An image folder of a run."""

    name: str
    """Which model the images are of: a method, perhaps with what was injected."""
    scene: str
    """Which prompts they are for; sides of one scene are compared."""
    folder: Path
    targets: tuple[str, ...]
    """Concepts that should be gone."""


@final
@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What was removed by what, in one row of the tables."""

    method: str
    """What the row is called."""
    eraser: str
    settings: Mapping[str, Any]
    targets: Mapping[str, Sequence[str]]
    """What it was told to remove, by split."""
    retain: Sequence[str]
    anchors: Sequence[str]
    told: Mapping[str, Any]
    """All that it was told, as records have it."""
    seeds: Sequence[int]
    edits: Sequence[str]
    """Ids of all edits behind the row."""


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, as far as its folder tells."""

    name: str
    about: str
    records: Sequence[Mapping[str, Any]]
    summary: Sequence[Mapping[str, Any]]
    """Rows as `stages.bench` writes them: one a method, group and metric, and paired differences."""
    sides: Sequence[Side]
    """Image folders that are there."""
    gone: int
    """Image folders that were measured and are there no more."""
    erasures: Sequence[Erasure]
    figures: Sequence[Mapping[str, Any]]
    outdated: int = 0
    """Records left out: the same was measured again later, or their images have been replaced."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """The plan, if there is one."""

    def values(self, name: str) -> list[str]:
        """What the records say of ``name`` (``model``, or something of their provenance), each once."""
        found = [r.get(name) or r["provenance"].get(name) for r in self.records]
        return list(dict.fromkeys(str(value) for value in found if value))


def read(folder: Path, store: Path) -> Run:
    """A bench folder with its images in ``store``, a demo, or a folder of what single commands wrote.

    Raises:
        ExpungeError: if there is nothing to report, or a file is damaged.
    """
    if not folder.is_dir():
        raise ExpungeError(f"no folder '{folder}': expected a run, such as runs/bench/NAME or runs/demo")
    return _bench(folder, store) if (folder / bench.PLAN).is_file() else _folder(folder)


# a plan's results -----------------------------------------------------------------------------------------------------
def _bench(folder: Path, store: Path) -> Run:
    if not (folder / "summary.jsonl").is_file():
        raise ExpungeError(f"'{folder}' has a plan and no results yet: expected `expunge bench` to have finished")
    plan, records = read_json(folder / bench.PLAN), read_lines(folder / "records.jsonl")
    measured = list({(side.scene, side.name, side.folder): side for side in _measured(records, store, plan)}.values())
    there = [side for side in measured if (side.folder / "metadata.jsonl").is_file()]
    return Run(
        name=folder.name,
        about=str(plan.get("about", "")),
        records=records,
        summary=read_lines(folder / "summary.jsonl"),
        sides=there,
        gone=len({side.folder for side in measured} - {side.folder for side in there}),
        erasures=_erasures(records),
        figures=_figures(folder),
        plan=plan,
    )


def _measured(records: Sequence[Mapping[str, Any]], store: Path, plan: Mapping[str, Any]) -> Iterator[Side]:
    """The image folders of a plan's records: of the first training seed, for each set of prompts."""
    first, own = dict[str, int](), Path(plan["set"]).stem
    for record in records:
        made = record["provenance"]
        seed = first.setdefault(made["method"], made["training_seed"])
        if seed != made["training_seed"] or "model_sha256" not in made:  # an older expunge did not say where
            continue
        group, name = made["group"], made["method"]
        keyed = group.startswith("key: ")
        yield Side(
            name=f"{name}, {summaries.injected(made)}" if keyed and group != "key: none" else name,
            scene=f"{own if keyed or group == 'set' else group}, {made['split']}",
            folder=_within(store, made["images"]),
            targets=tuple(record["concepts"]),
        )


def _within(store: Path, name: str) -> Path:
    """A folder of the store.

    Raises:
        ExpungeError: if the name leads out of it.
    """
    if not (store / name).resolve().is_relative_to(store.resolve()):
        raise ExpungeError(f"a record names the images '{name}', which lead out of '{store}': expected a folder in it")
    return store / name


# a folder of what commands wrote --------------------------------------------------------------------------------------
def _folder(folder: Path) -> Run:
    sides = list(_image_folders(folder))
    files = [f for f in _below(folder, "*.jsonl") if f.name != "metadata.jsonl"]
    rows = [(f, row) for f in files for row in read_lines(f) if {"metric", "value", "subject"} <= row.keys()]
    found = list({str(row): (f, row) for f, row in rows}.values())  # a file may hold what another holds too
    for file, row in found:
        check_shape(f"a record in '{file}'", row, RECORD)
    records = measure.newest(found)
    edits = [read_header(f) for f in _below(folder, f"*{EDIT}") if f.name == EDIT]
    figures = _figures(folder)
    if not (sides or records or edits or figures):
        raise ExpungeError(f"'{folder}' holds no images, records, edits or figures: expected a run of expunge")
    rows = _placed(records, sides)
    known = {id_ for r in rows for id_ in r["provenance"]["edits"]}
    alone = [_as_record(e) for e in edits if e["id"] not in known and e["provenance"]]
    shares = [r for r in rows if r["metric"].startswith("became@")]
    return Run(
        name=folder.name,
        about="",
        records=rows,
        summary=[*(_as_summary(r) for r in rows if r not in shares), *summaries.became(shares)],
        sides=sides,
        gone=len({r["provenance"].get("images") for r in records} - {None, *(s.folder.name for s in sides)}),
        erasures=_erasures([*rows, *alone]),
        figures=figures,
        outdated=len(found) - len(records),
    )


def _below(folder: Path, pattern: str) -> list[Path]:
    """Files in a folder, its folders and theirs."""
    found = [f for depth in ("", "*/", "*/*/") for f in sorted(folder.glob(depth + pattern))]
    return [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]


def _image_folders(folder: Path) -> Iterator[Side]:
    """Image folders, the original model's first."""
    found = [f.parent for f in _below(folder, "metadata.jsonl")]
    runs = {place: read_run(place) for place in found}
    for place, run in sorted(runs.items(), key=lambda pair: bool(pair[1].get("edits") or pair[1].get("control"))):
        made = [e["provenance"] for e in run.get("edits", []) if e.get("provenance")]
        targets = tuple(dict.fromkeys(t for p in made for t in p["targets"]))
        key = f" ({run['control']} key)" if run.get("control") else ""
        yield Side(name=f"{place.relative_to(folder)}{key}", scene="", folder=place, targets=targets)


def _placed(records: Sequence[Mapping[str, Any]], sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Records that say which row they are of, as a plan's do.

    That is their image folder; for a recovery, the folder with the same edits and no key.
    """
    seen = [r for r in records if "images" in r["provenance"]]
    owners = {tuple(r["provenance"]["edits"]): r["provenance"]["images"] for r in seen if r["subject"] == "edited"}
    runs = [(side, read_run(side.folder)) for side in sides]
    owners |= {
        tuple(e["id"] for e in made["edits"]): side.name for side, made in runs if made and not made.get("control")
    }
    rows: list[dict[str, Any]] = []
    for record in records:
        made, control = record["provenance"], record["provenance"].get("control")
        edits = tuple(made["edits"])
        images = made.get(
            "images", ", ".join(edits) or "original"
        )  # an analysis draws images of its own, and keeps none
        method = owners.get(edits, images) if control or "analysis" in made else images
        group = f"analysis: {made['analysis']}" if "analysis" in made else f"key: {control}" if control else "set"
        place = {"method": method, "group": group, "variant": "", "training_seed": 0}
        rows.append({**record, "provenance": {"split": "", **made, **place}})
    return rows


def _as_summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of a summary."""
    made = record["provenance"]
    spent = {}
    if made["made_by"] and made["group"] == "set":
        costs = [Cost(**p["cost"]).equivalents for p in made["made_by"]]
        spent = {"erase_equivalents": sum(costs), "erase_seconds": sum(p["seconds"] for p in made["made_by"])}
    numbers = {k: record[k] for k in ("metric", "value", "low", "high", "n")}
    return {"method": made["method"], "group": made["group"], **numbers, "training_seeds": 1, "splits": 1, **spent}


def _as_record(header: Mapping[str, Any]) -> dict[str, Any]:
    """What an edit's own header says, in the form in which records say it."""
    made = header["provenance"]
    told = {"targets": made["targets"], "anchors": made["anchors"], "retain": made["retain"]}
    place = {"method": made["eraser"], "group": "set", "split": ""}
    return {
        "eraser": made["eraser"],
        "seed": made["seed"],
        "knowledge": told,
        "provenance": {"edits": [header["id"]], "made_by": [made], **place},
    }


# both -----------------------------------------------------------------------------------------------------------------
def _figures(folder: Path) -> list[dict[str, Any]]:
    return [read_json(f) for f in _below(folder, "*.json") if f.parent.name == FIGURES]


def _erasures(records: Sequence[Mapping[str, Any]]) -> list[Erasure]:
    """What was removed by what, a row each, over splits and training seeds."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        made = record["provenance"]
        if made["edits"] and not made["group"].startswith("key: "):
            rows.setdefault(made["method"], []).append(record)
    found: list[Erasure] = []
    for method, mine in rows.items():
        last, knowledge = mine[0]["provenance"]["made_by"][-1], mine[0]["knowledge"]
        found.append(
            Erasure(
                method=method,
                eraser=str(mine[0]["eraser"]),
                settings=last["settings"],
                targets={r["provenance"]["split"]: r["knowledge"]["targets"] for r in mine},
                retain=knowledge["retain"],
                anchors=list(dict.fromkeys(a for a in knowledge["anchors"] if a)),
                told=knowledge,
                seeds=sorted({int(r["seed"]) for r in mine}),
                edits=list(dict.fromkeys(id_ for r in mine for id_ in r["provenance"]["edits"])),
            )
        )
    return found
