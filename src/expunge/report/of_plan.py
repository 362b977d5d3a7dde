"""A plan's results, read for their report."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError
from expunge.report.run import Run, Side, apart_below, erasures, figures_below
from expunge.results.files import AUDIT, PLAN, RECORDS, SUMMARY, WORST
from expunge.results.recoveries import BARE, injected
from expunge.results.rows import group_of
from expunge.store.atomic import read_json, read_lines
from expunge.store.listing import METADATA
from expunge.store.shapes import WORST_IMAGE, check_shape


def read(folder: Path, store: Path) -> Run:
    """The results of a plan in ``folder``, with images in ``store``.

    Raises:
        ExpungeError: if the plan has not finished, or a file is damaged.
    """
    if not (folder / SUMMARY).is_file():
        raise ExpungeError(f"'{folder}' has a plan and no results yet: expected `expunge bench` to have finished")
    plan, records = read_json(folder / PLAN), read_lines(folder / RECORDS)
    measured = list({(side.scene, side.name, side.folder): side for side in _sides(records, store, plan)}.values())
    there = [side for side in measured if (side.folder / METADATA).is_file()]
    return Run(
        name=folder.name,
        about=str(plan.get("about", "")),
        records=records,
        summary=read_lines(folder / SUMMARY),
        sides=there,
        gone=len({side.folder for side in measured} - {side.folder for side in there}),
        erasures=erasures(records),
        figures=figures_below(folder, apart_below(folder)),
        plan=plan,
        worst=_worst(folder, store),
        audit=read_json(folder / AUDIT) if (folder / AUDIT).is_file() else {},
    )


def _worst(folder: Path, store: Path) -> list[dict[str, Any]]:
    """The images in which attacks brought most back, with the folders that they are in."""
    rows = read_lines(folder / WORST) if (folder / WORST).is_file() else []
    for row in rows:
        check_shape(f"a line of '{folder / WORST}'", row, WORST_IMAGE)
    return [{**row, "folder": within(store, row["images"])} for row in rows]


def _sides(records: Sequence[Mapping[str, Any]], store: Path, plan: Mapping[str, Any]) -> Iterator[Side]:
    """The image folders of a plan's records: of the first training seed, for each set of prompts."""
    first, own = dict[str, int](), Path(plan["set"]).stem
    for record in records:
        provenance = record["provenance"]
        seed = first.setdefault(provenance["method"], provenance["training_seed"])
        if (
            seed != provenance["training_seed"] or "model_sha256" not in provenance
        ):  # an older expunge did not say where
            continue
        group, name = group_of(provenance), provenance["method"]
        keyed = group.kind == "key"
        yield Side(
            name=f"{name}, {injected(group)}" if keyed and group != BARE else name,
            scene=f"{own if keyed or group.kind == 'set' else group}, {provenance['split']}",
            folder=within(store, provenance["images"]),
            targets=tuple(record["concepts"]),
        )


def within(store: Path, name: str) -> Path:
    """A folder of the store.

    Raises:
        ExpungeError: if the name leads out of it.
    """
    if not (store / name).resolve().is_relative_to(store.resolve()):
        raise ExpungeError(f"a record names the images '{name}', which lead out of '{store}': expected a folder in it")
    return store / name
