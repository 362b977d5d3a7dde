"""Bench: run a plan's jobs, each once, and put their records and a table together."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.core.record import Interval, Runs, nested, wilson
from expunge.stages import jobs
from expunge.stages.plan import Plan, Planned, Planner, flattened
from expunge.store import FORMAT, new_file, read_json, write_json

PLAN = "plan.json"
"""The plan that a folder of results belongs to, as it was read."""


@final
@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands."""

    done: int
    total: int
    job: Planned | None
    """The job that begins, or None at the end."""
    equivalents_left: int


def waiting(measurements: Sequence[Planned], store: Path) -> list[Planned]:
    """The jobs still to be run, in order; what only finished measurements stand on is not made again."""
    open_ones = [m for m in measurements if jobs.result(m.job, store) is None]
    return [p for p in flattened(open_ones) if jobs.result(p.job, store) is None]


def run(
    plan: Plan,
    store: Path,
    out: Path,
    *,
    changed: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[dict[str, Any]]:
    """Run what is missing and write ``records.jsonl``, ``summary.jsonl`` and ``table.md``; returns the summary's rows.

    Killed at any moment and started again, it ends with the same numbers, bit for bit on the same machine.

    Raises:
        ExpungeError: if ``out`` belongs to another plan or to an earlier text of this one, unless ``changed``.
    """
    planner = Planner(plan)
    measurements = planner.planned()
    _claim(plan, out, changed)
    todo = waiting(measurements, store)
    left = sum(p.cost.equivalents for p in todo)
    for done, planned in enumerate(todo):
        if on_progress is not None:
            on_progress(Progress(done=done, total=len(todo), job=planned, equivalents_left=left))
        jobs.run_job(planned.job, store)
        left -= planned.cost.equivalents
    if on_progress is not None:
        on_progress(Progress(done=len(todo), total=len(todo), job=None, equivalents_left=0))
    return write(plan, measurements, store, out)


def _claim(plan: Plan, out: Path, changed: bool) -> None:
    """Write down which plan the results in ``out`` belong to."""
    now = json.loads(json.dumps({"format": FORMAT, **asdict(plan)}))
    file = out / PLAN
    if file.is_file() and read_json(file) != now and not changed:
        raise ExpungeError(
            f"'{out}' holds results of another text of this plan: expected the same text, another --out, or --changed "
            "(finished jobs that it still asks for are kept)"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, now, overwrite=True)


# what the records say -------------------------------------------------------------------------------------------------
Cells = dict[tuple[str, str, str], dict[int, dict[str, list[tuple[str, float]]]]]
"""Values by (method, group, metric)."""


def write(plan: Plan, measurements: Sequence[Planned], store: Path, out: Path) -> list[dict[str, Any]]:
    """Write records (one a job and metric) and their summary (one a method, group and metric) into ``out``."""
    lines: list[dict[str, Any]] = []
    for m in measurements:
        found = jobs.run_job(m.job, store)
        row = {"method": m.method, "split": m.split, "training_seed": m.seed, "group": m.group}
        lines += [{**r, "provenance": {**r["provenance"], **row}} for r in found["records"]]
    summary = [*_summary(measurements, store), *_became(lines), *_differences(plan, measurements, store)]
    _write_lines(out / "records.jsonl", lines)
    _write_lines(out / "summary.jsonl", summary)
    with new_file(out / "table.md", overwrite=True) as temporary:
        temporary.write_text(f"{plan.about}\n\n{table(summary)}")
    return summary


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def _cells(measurements: Sequence[Planned], store: Path) -> Cells:
    """The values behind every number of the table."""
    cells: Cells = {}
    for m in measurements:
        found = jobs.run_job(m.job, store)
        for record, values in zip(found["records"], found["values"], strict=True):
            if record["metric"].startswith("became@"):
                continue
            runs = cells.setdefault((m.method, m.group, record["metric"]), {})
            runs.setdefault(m.seed, {}).setdefault(m.split, []).extend((label, value) for label, value in values)
    return cells


def _summary(measurements: Sequence[Planned], store: Path) -> list[dict[str, Any]]:
    """A row for each method, group and metric, over splits and training seeds, with what it cost."""
    rows: list[dict[str, Any]] = []
    for (method, group, metric), runs in _cells(measurements, store).items():
        values = [v for by_split in runs.values() for pairs in by_split.values() for _, v in pairs]
        over_runs, over_images = nested(runs), wilson(sum(values), len(values))
        low, high = min(100 * over_runs.low, over_images.low), max(100 * over_runs.high, over_images.high)
        rows.append(_row(method, group, metric, Interval(over_images.value, low, high), len(values), runs))
    spent = _spent(measurements, store)
    return [{**row, **spent.get(row["method"], {})} for row in rows]


def _became(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a method's targets turned into: the three labels seen most, by their share of all target images.

    A run's record names its own five most seen labels only, so a share is a lower bound.
    """
    shown: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for line in lines:
        made = line["provenance"]
        if made["group"] == "set" and line["metric"].startswith("became@"):
            label = line["metric"].removeprefix("became@")
            shown.setdefault(made["method"], Counter())[label] += round(line["value"] * line["n"] / 100)
        elif made["group"] == "set" and line["metric"] == "esr@1":
            total[made["method"]] += line["n"]
    return [
        {
            "format": FORMAT,
            "method": method,
            "group": "set",
            "metric": "became",
            "shares": {label: round(100 * n / total[method], 1) for label, n in labels.most_common(3)},
            "n": total[method],
        }
        for method, labels in shown.items()
    ]


def _row(method: str, group: str, metric: str, interval: Interval, n: int, runs: Runs) -> dict[str, Any]:
    splits = {split for by_split in runs.values() for split in by_split}
    return {
        "format": FORMAT,
        "method": method,
        "group": group,
        "metric": metric,
        **{k: round(v, 3) for k, v in interval._asdict().items()},
        "n": n,
        "training_seeds": len(runs),
        "splits": len(splits),
    }


def _spent(measurements: Sequence[Planned], store: Path) -> dict[str, dict[str, float]]:
    """Mean forward-equivalents and seconds of a method's erasures, where their results are still in the store."""
    found: dict[str, list[dict[str, Any]]] = {}
    for m in measurements:
        for p in flattened([m]):
            if p.job["room"] == "erase" and m.group == "set":
                done = jobs.result(p.job, store)
                if done is not None:
                    found.setdefault(m.method, []).append(done)
    return {
        method: {
            "erase_equivalents": round(sum(Cost(**d["cost"]).equivalents for d in done) / len(done), 1),
            "erase_seconds": round(sum(d["seconds"] for d in done) / len(done), 1),
        }
        for method, done in found.items()
    }


def _differences(plan: Plan, measurements: Sequence[Planned], store: Path) -> list[dict[str, Any]]:
    """Paired differences in points, on equal seeds and prompts; the original's one run stands for every training seed."""
    cells = _cells(measurements, store)
    rows: list[dict[str, Any]] = []
    for one, other in plan.compare:
        for method, group, metric in [place for place in cells if place[0] == one and place[1] in ("set", "others")]:
            mine, theirs = cells[method, group, metric], cells.get((other, group, metric), {})
            paired: dict[int, dict[str, list[tuple[str, float]]]] = {}
            for seed, by_split in mine.items():
                for split, pairs in by_split.items():
                    against = theirs.get(seed, theirs.get(min(theirs, default=0), {})).get(split, [])
                    if [label for label, _ in against] == [label for label, _ in pairs]:
                        difference = [(k, a - b) for (k, a), (_, b) in zip(pairs, against, strict=True)]
                        paired.setdefault(seed, {})[split] = difference
            if paired:
                interval = nested(paired)
                n = sum(len(p) for by_split in paired.values() for p in by_split.values())
                points = Interval(*(100 * v for v in interval))
                rows.append(_row(f"{one} - {other}", group, metric, points, n, paired))
    return rows


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown: a row a method, a column a metric; recoveries below, as the share that came back."""
    text = ""
    for title, groups in (("", ("set", "others")), ("Recovery with a key, top-1 in percent", None)):
        rows = [r for r in summary if (_tabled(r) if groups else _recovered(r))]
        places = list(dict.fromkeys((r["group"], r["metric"]) for r in rows))
        if not places:
            continue
        heads = [m if g == "set" else f"{g} {m}" if groups else g.removeprefix("key: ") for g, m in places]
        text += f"{title}\n\n" if title else ""
        text += "| method | " + " | ".join(heads) + (" | forwards | seconds |" if groups else " |") + "\n"
        text += "|---" * (len(heads) + (3 if groups else 1)) + "|\n"
        for method in dict.fromkeys(r["method"] for r in rows):
            by = {(r["group"], r["metric"]): r for r in rows if r["method"] == method}
            cells = [_cell(by.get(place), turned=not groups) for place in places]
            first = next(iter(by.values()))
            cost = [f"{first.get('erase_equivalents', 0):,.0f}", f"{first.get('erase_seconds', 0):,.0f}"]
            text += f"| {method} | " + " | ".join([*cells, *(cost if groups else [])]) + " |\n"
        text += "\n"
    return text


def _tabled(row: Mapping[str, Any]) -> bool:
    return row["group"] == "set" or (row["group"] == "others" and row["metric"] == "psr@1")


def _recovered(row: Mapping[str, Any]) -> bool:
    return row["group"] not in ("set", "others") and row["metric"] == "esr@1"


def _cell(row: Mapping[str, Any] | None, turned: bool) -> str:
    if row is None:
        return "–"
    if row["metric"] == "became":
        return ", ".join(f"{label} {share:.0f}" for label, share in row["shares"].items())
    value, low, high = row["value"], row["low"], row["high"]
    if turned:  # what was not erased came back
        value, low, high = 100 - value, 100 - high, 100 - low
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


# what it will take, and what it takes ---------------------------------------------------------------------------------
def speed(planner: Planner, store: Path) -> float:
    """Forward-equivalents a second: of the store's finished jobs, or of a short trial if there are none."""
    spent = seconds = 0.0
    for file in store.glob(f"*/{jobs.RESULT}") if store.is_dir() else ():
        done = read_json(file)
        equivalents = Cost(**done["cost"]).equivalents
        if equivalents:
            spent, seconds = spent + equivalents, seconds + done["seconds"]
    if seconds:
        return spent / seconds
    backbone = planner.backbone
    with torch.no_grad():
        cond, x = backbone.encode([""]), torch.cat([backbone.noise(i) for i in range(8)])
        backbone.predict(x, 1, cond)
        start = time.perf_counter()
        backbone.predict(x, 1, cond)
    return len(x) / (time.perf_counter() - start)


class Room(NamedTuple):
    """What a kind of job takes on disk."""

    jobs: int
    bytes: int


def disk(store: Path) -> dict[str, Room]:
    """Jobs and bytes by room, and what killed runs left behind."""
    found: dict[str, Room] = {}
    for path in sorted(store.iterdir()) if store.is_dir() else ():
        room = _room(path)
        if room is not None:
            size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            before = found.get(room, Room(0, 0))
            found[room] = Room(before.jobs + 1, before.bytes + size)
    return found


def clean(store: Path, rooms: Sequence[str]) -> int:
    """Delete the jobs of ``rooms`` (``leftovers`` are what killed runs left behind); returns the bytes freed."""
    freed = 0
    for path in sorted(store.iterdir()) if store.is_dir() else ():
        if _room(path) in rooms:
            freed += sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            shutil.rmtree(path)
    return freed


def _room(path: Path) -> str | None:
    """The room that a folder of the store belongs to; None for what is not expunge's."""
    name = path.name.lstrip(".").split("-")[0]
    if not path.is_dir() or name not in jobs.ROOMS:
        return None
    return "leftovers" if path.name.startswith(".") else name if (path / jobs.RESULT).is_file() else None
