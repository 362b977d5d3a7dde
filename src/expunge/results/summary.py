"""A plan's results: its records, their summary, a table and figures, from measurements that are finished."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError, unknown
from expunge.results import claims, counts, curves, histograms, markdown
from expunge.results.costs import costs, fresh_key_costs
from expunge.results.differences import differences, gains, saturations
from expunge.results.files import FIGURES, PLAN, RECORDS, SUMMARY, TABLE, WORST, figure_file
from expunge.results.finished import Finished, Wanted
from expunge.results.group import Group
from expunge.results.knowledge import knowledge
from expunge.results.meanings import DETECTIONS, plain
from expunge.results.rows import rows, rows_by_split
from expunge.results.worst import worst
from expunge.store.atomic import new_file, read_json, read_lines, write_json, write_lines

SHAPES = {"became": ("shares", "n"), DETECTIONS: ("counts", "n")}
"""What rows of a summary hold that are no numbers with an interval."""
NUMBER = ("value", "low", "high", "n", "training_seeds")
"""What all others hold."""


def write(wanted: Wanted, finished: Sequence[Finished], out: Path) -> list[dict[str, Any]]:
    """Write records (one a job and metric), their summary (one a method, group and metric), a table and figures into ``out``.

    Returns:
        The summary's rows. They end with the verdict on each claim, and with rows of papers.
    """
    records = placed(finished)
    write_lines(out / RECORDS, records)
    summary = summarised(wanted, finished, records)
    if any(one.group.kind == "attack" for one in finished):
        write_lines(out / WORST, worst(finished))
    for stale in (out / FIGURES).glob("*.json"):
        stale.unlink()
    _copy_figures(finished, out / FIGURES)
    return _write_summary(wanted, summary, out)


def forget(out: Path) -> None:
    """Delete the results in ``out``, the summary first: without it the rest counts for nothing."""
    for file in (SUMMARY, RECORDS, TABLE, WORST):
        (out / file).unlink(missing_ok=True)
    for figure in (out / FIGURES).glob("*.json"):
        figure.unlink()


def placed(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """The records of measurements, each with its place in the table."""
    return [_placed(one, record) for one in finished for record in one.records]


def summarised(
    wanted: Wanted, finished: Sequence[Finished], records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What the measurements say together; claims and papers' figures stand apart, since both can be told anew."""
    beside = costs(finished)
    for method, words in knowledge(finished).items():
        beside.setdefault(method, {})["told"] = words
    fresh = fresh_key_costs(finished)
    lines = [
        {**row, **beside.get(row["method"], {}), **fresh.get((row["method"], Group.parse(row["group"])), {})}
        for row in rows(finished)
    ]
    alone = rows_by_split(finished) if wanted.by_split else []
    shown = [*counts.became(records), *counts.detections(finished)]
    return [*lines, *alone, *shown, *differences(wanted.pairs, finished), *gains(finished), *saturations(finished)]


def write_again(wanted: Wanted, results: Path, out: Path) -> list[dict[str, Any]]:
    """Judge the claims of a plan and draw its figures from ``results``, a file of its records and summary that was kept.

    Raises:
        ExpungeError: if the file is no JSON Lines, has no summary or another plan's; or if ``out`` holds a run's results.
    """
    kept = read_lines(results)
    summary = checked(wanted, kept, str(results))
    if (out / PLAN).is_file():
        raise ExpungeError(f"'{out}' holds the results of a run: expected another --out")
    written = _write_summary(wanted, summary, out)
    drawn = {figure_file(figure.title) for figure in (*wanted.figures, *wanted.histograms)}
    for stale in (out / FIGURES).glob("*.json"):
        if stale.name not in drawn:
            stale.unlink()
    write_lines(out / RECORDS, [row for row in kept if "provenance" in row])
    return written


def checked(wanted: Wanted, kept: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """The rows of a summary that was kept, without its claims and papers' figures: they can be told anew.

    Raises:
        ExpungeError: if ``kept``, read from ``where``, has no summary, a damaged one, or that of another plan.
    """
    lines = [dict(r) for r in kept if "provenance" not in r and "claim" not in r and r.get("group") != "paper"]
    sets = ("set", "memory", *wanted.sets)
    for row in lines:
        names = ("method", "group", "metric", *SHAPES.get(plain(str(row.get("metric"))), NUMBER))
        lacking = [name for name in names if name not in row]
        if lacking:
            raise ExpungeError(
                f"a row of the summary in '{where}' has no {lacking[0]}: expected rows as this version writes them"
            )
        for name in row["method"].split(" - ") if "verdict" in row else [row["method"]]:
            if name not in wanted.methods:
                raise unknown(f"method of the grid in '{where}'", name, wanted.methods)
        if Group.parse(row["group"]).kind in ("set", "others", "memory", "further") and row["group"] not in sets:
            raise unknown(f"set of the plan in '{where}'", row["group"], sets)
    lacking = _unmeasured(wanted, lines)
    if len(lacking) == len(wanted.methods):
        raise ExpungeError(f"'{where}' has no row of '{lacking[0]}': expected the summary of this plan")
    return lines


def _unmeasured(wanted: Wanted, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of the plan that a summary does not have: those that the plan was given later."""
    return [name for name in wanted.methods if name not in {row["method"] for row in lines}]


def _write_summary(wanted: Wanted, lines: Sequence[Mapping[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Write the summary with claims and papers' figures, its table and its figures, all made before the first is written."""
    summary = [*map(dict, lines), *claims.judged(wanted.claims, lines, wanted.trained), *map(dict, wanted.published)]
    drawn = [
        *(curves.figure(curve, summary) for curve in wanted.figures),
        *(histograms.histogram(bars, summary) for bars in wanted.histograms),
    ]
    page = f"{wanted.about}\n\n{markdown.text(summary)}"
    lacking = _unmeasured(wanted, lines)
    if lacking:
        page += f"\nNot measured yet: {', '.join(lacking)}.\n"
    for figure in drawn:
        write_json(out / FIGURES / figure_file(figure.title), figure.as_json(), overwrite=True)
    write_lines(out / SUMMARY, summary)
    with new_file(out / TABLE, overwrite=True) as temporary:
        temporary.write_text(page)
    return summary


def _placed(one: Finished, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its place in the table, and where in the store its images are (or were)."""
    where: dict[str, Any] = {"method": one.method, "split": one.split, "training_seed": one.seed}
    where |= {"group": str(one.group), "variant": one.variant}
    if one.group.kind == "attack":
        where["attack_run"] = one.run
    if one.folder:
        where |= {"images": one.folder, "model_sha256": one.model_sha256}
    return {**record, "provenance": {**record["provenance"], **where}}


def _copy_figures(finished: Sequence[Finished], out: Path) -> None:
    """Put every analysis's figures into one folder, each under a name that says what it is of."""
    for one in finished:
        for file in one.figures:
            words = f"{one.group.name}{one.variant} {one.method} {one.split} seed {one.seed} {file.stem}"
            write_json(out / figure_file(words), read_json(file), overwrite=True)
