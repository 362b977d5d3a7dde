"""Bench: run a plan's jobs, each once, and put their records and a table together."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.stages import jobs, summary
from expunge.stages.plan import Plan
from expunge.stages.planner import Planned, Planner, flattened
from expunge.store import FORMAT, read_json, write_json

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
    return flattened(measurements, lambda planned: jobs.result(planned.job, store) is not None)


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
    return summary.write(planner, measurements, store, out)


def _claim(plan: Plan, out: Path, changed: bool) -> None:
    """Write down which plan the results in ``out`` belong to."""
    now, empty = (
        json.loads(json.dumps({"format": FORMAT, **asdict(p)})) for p in (plan, Plan(about="", set="", grid={}))
    )
    file = out / PLAN
    if file.is_file() and {**empty, **read_json(file)} != now and not changed:  # an older expunge knew fewer entries
        raise ExpungeError(
            f"'{out}' holds results of another text of this plan: expected the same text, another --out, or --changed "
            "(finished jobs that it still asks for are kept)"
        )
    write_json(file, now, overwrite=True)


<<<<<<< HEAD
=======
# what the records say -------------------------------------------------------------------------------------------------
class Result(NamedTuple):
    """A measurement, and what its job found."""

    planned: Planned
    found: dict[str, Any]


Cells = dict[tuple[str, str, str], dict[int, dict[str, list[tuple[str, float]]]]]
"""Values by (method, group, metric)."""


def write(
    plan: Plan, measurements: Sequence[Planned], store: Path, out: Path, published: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Write records (one a job and metric) and their summary (one a method, group and metric) into ``out``.

    ``published`` are rows of papers that the summary ends with.
    """
    lines: list[dict[str, Any]] = []
    results = [Result(m, jobs.run_job(m.job, store)) for m in measurements]
    for m, found in results:
        row = {"method": m.method, "split": m.split, "training_seed": m.seed, "group": m.group, "variant": m.variant}
        lines += [{**r, "provenance": {**r["provenance"], **row}} for r in found["records"]]
    made = _spent(results, store)
    for method, told in _told(results).items():
        made.setdefault(method, {})["told"] = told
    summary = [*_summary(results, made), *_became(lines), *_differences(plan, results), *published]
    _copy_figures(results, store, out / analyse.FIGURES)
    write_lines(out / "records.jsonl", lines)
    write_lines(out / "summary.jsonl", summary)
    with new_file(out / "table.md", overwrite=True) as temporary:
        temporary.write_text(f"{plan.about}\n\n{table(summary)}")
    return summary


def _cells(results: Sequence[Result], once: bool) -> Cells:
    """The values behind every number of the table; ``once`` counts an image once, whatever splits it serves."""
    cells: Cells = {}
    counted: set[tuple[str, str, str, str, str]] = set()
    for m, found in results:
        for record, values in zip(found["records"], found["values"], strict=True):
            if record["metric"].startswith("became@") or not values:
                continue
            name = record["metric"] + m.variant
            runs = cells.setdefault((m.method, m.group, name), {})
            kept = runs.setdefault(m.seed, {}).setdefault(m.split, [])
            images = (m.method, m.group, name, m.job.get("images", m.key))
            kept.extend((label, value) for label, value in values if not (once and (*images, label) in counted))
            counted.update((*images, label) for label, _ in values)
    return cells


def _summary(results: Sequence[Result], made: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method, group and metric, over splits and training seeds, with what it was told and cost."""
    rows: list[dict[str, Any]] = []
    differences = {
        (m.method, m.group, r["metric"] + m.variant)
        for m, f in results
        for r in f["records"]
        if r.get("unit") == "points"
    }
    for (method, group, metric), runs in _cells(results, once=True).items():
        values = [v for by_split in runs.values() for pairs in by_split.values() for _, v in pairs]
        signed = (method, group, metric) in differences
        shares = not signed and set(values) <= {0.0, 1.0}  # else means, of which Wilson says nothing
        interval = hull(wilson(sum(values), len(values)), nested(runs)) if shares else in_percent(nested(runs))
        rows.append(_row(method, group, metric, interval, len(values), runs))
    rows += _of_sets(results)
    return [{**row, **made.get(row["method"], {})} for row in rows]


def _of_sets(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for each number that exists only for a set of images: the mean over its runs, and the hull of their intervals.

    (A run's record has the interval; nothing is left per image that could be resampled here.)
    """
    cells: dict[tuple[str, str, str], list[tuple[Planned, Mapping[str, Any]]]] = {}
    for m, found in results:
        for record, values in zip(found["records"], found["values"], strict=True):
            if not values and not record["metric"].startswith("became@"):
                cells.setdefault((m.method, m.group, record["metric"] + m.variant), []).append((m, record))
    rows: list[dict[str, Any]] = []
    for place, runs in cells.items():
        value, low, high = (
            fmean(r["value"] for _, r in runs),
            min(r["low"] for _, r in runs),
            max(r["high"] for _, r in runs),
        )
        by_run: Runs = {seed: {m.split: [] for m, _ in runs if m.seed == seed} for seed in {m.seed for m, _ in runs}}
        rows.append(_row(*place, Interval(value, low, high), sum(r["n"] for _, r in runs), by_run))
    return rows


def _copy_figures(results: Sequence[Result], store: Path, out: Path) -> None:
    """Put every analysis's figures into one folder, each under a name that says what it is of."""
    for m, _ in results:
        for file in sorted((jobs.folder(m.key, m.job["room"], store) / analyse.FIGURES).glob("*.json")):
            words = f"{m.job['analysis']}{m.variant} {m.method} {m.split} seed {m.seed} {file.stem}"
            write_json(out / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', words)}.json", read_json(file), overwrite=True)


def _became(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a method's targets turned into: the three labels seen most, by their share of all target images.

    A run's record names its own five most seen labels only, so a share is a lower bound.
    """
    shown: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    counted: set[tuple[str, str, int]] = set()
    for line in lines:
        made = line["provenance"]
        if made["group"] != "set" or made["variant"] or not line["metric"].startswith("became@"):
            continue
        label = line["metric"].removeprefix("became@")
        shown.setdefault(made["method"], Counter())[label] += round(line["value"] * line["n"] / 100)
        run = (made["method"], made["split"], made["training_seed"])
        if run not in counted:
            counted.add(run)
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


def _told(results: Sequence[Result]) -> dict[str, str]:
    """What each edited row was told beside its targets' names; methods are to be ranked within equal knowledge."""
    found: dict[str, str] = {}
    for m, measured in results:
        for record in measured["records"][:1] if m.group == "set" and m.method not in found else ():
            knows = record["knowledge"]
            if knows["targets"]:
                kept, images = len(knows["retain"]), knows.get("images", {})
                says = {
                    "anchor": any(knows["anchors"]),
                    "phrases": any(t != "{}" for t in knows["templates"]),
                    f"{kept} kept": kept,
                    "random texts": knows["random_texts"],
                    "images given": any(i["given"] for i in images.values()),
                    "images made": any(not i["given"] for i in images.values()),
                    "oracle": knows["oracles"],
                }
                found[m.method] = ", ".join(word for word, told in says.items() if told)
    return found


def _spent(results: Sequence[Result], store: Path) -> dict[str, dict[str, Any]]:
    """What a method's erasures that are still in the store took: mean evaluations and bytes, median seconds; peak memory."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for m, _ in results:
        for p in flattened([m]):
            if p.job["room"] == "erase" and m.group == "set":
                done = jobs.result(p.job, store)
                if done is not None:
                    size = (jobs.folder(p.key, "erase", store) / EDIT).stat().st_size
                    found.setdefault(m.method, {})[p.key] = {**done, "bytes": size}
    spent: dict[str, dict[str, Any]] = {
        method: {
            "erase_equivalents": round(fmean(Cost(**d["cost"]).equivalents for d in done.values()), 1),
            "erase_seconds": round(median(d["seconds"] for d in done.values()), 1),
            "artefact_bytes": round(fmean(d["bytes"] for d in done.values())),
        }
        for method, done in found.items()
    }
    for m, counted in results:
        if m.group == "memory":
            spent.setdefault(m.method, {})["erase_peak_bytes"] = counted["peak_bytes"]
    return spent


def _differences(plan: Plan, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Paired differences in points, on equal seeds and prompts; what has no training seed stands for every one."""
    cells = _cells(results, once=False)
    cells = {place: runs for place, runs in cells.items() if not place[1].startswith("key: ")} | _recovered(cells)
    rows: list[dict[str, Any]] = []
    for one, other in plan.compare:
        for method, group, metric in [place for place in cells if place[0] == one]:
            mine, theirs = cells[method, group, metric], cells.get((other, group, metric), {})
            if not theirs:
                continue
            paired: dict[int, dict[str, list[tuple[str, float]]]] = {}
            ones: list[float] = []
            others: list[float] = []
            for seed in sorted({*mine, *theirs}):
                first, second = (runs.get(seed, runs[min(runs)]) for runs in (mine, theirs))
                for split, pairs in first.items():
                    against = second.get(split, [])
                    if [label for label, _ in against] != [label for label, _ in pairs]:
                        raise ExpungeError(
                            f"'{one}' and '{other}' have other images on split {split}: expected the same"
                        )
                    difference = [(k, a - b) for (k, a), (_, b) in zip(pairs, against, strict=True)]
                    paired.setdefault(seed, {})[split] = difference
                    ones += [a for _, a in pairs]
                    others += [b for _, b in against]
            counted = set(ones) | set(others) <= {0.0, 1.0}  # shares; else means, of which Newcombe says nothing
            points = hull(paired_proportions(ones, others), nested(paired)) if counted else in_percent(nested(paired))
            row = _row(f"{one} - {other}", group, metric, points, len(ones), paired)
            rows.append({**row, "unit": "points", **_verdict(points, metric, len(ones), len(paired))})
    return rows


def _recovered(cells: Cells) -> Cells:
    """Whether each target came back with its own key, which is what ESR-1 counts, turned round."""
    return {
        (method, group, RECOVERY + metric.removeprefix("esr@1")): {
            seed: {split: [(label, 1 - shown) for label, shown in pairs] for split, pairs in by_split.items()}
            for seed, by_split in runs.items()
        }
        for (method, group, metric), runs in cells.items()
        if group == "key: own" and metric.split(" ")[0] == "esr@1"
    }


def _verdict(points: Interval, metric: str, n: int, seeds: int) -> dict[str, Any]:
    """What a paired difference shows: design.md section 5."""
    margin = 3 if metric.startswith("esr") else 5
    within = -margin <= points.low and points.high <= margin
    return {
        "verdict": "higher" if points.low > 0 else "lower" if points.high < 0 else "undecided",
        "equal_quality": (within if n >= 1000 and seeds >= 2 and metric.startswith(("esr", "psr")) else None),
    }


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown: a row a method and a column a metric; then recoveries, and paired differences."""
    plain = [r for r in summary if "verdict" not in r]
    main = _grid([r for r in plain if _tabled(r)], _head, _cell, made=True)
    returned = [r for r in plain if r["group"].startswith("key: ") and r["metric"].startswith("esr@1")]
    valid = {(r["method"], r["group"]): r["value"] for r in plain if r["metric"].startswith("valid_rate")}

    def came_back(row: Mapping[str, Any]) -> str:
        turned = {**row, "value": 100 - row["value"], "low": 100 - row["high"], "high": 100 - row["low"]}
        return f"{_cell(turned)} ({valid.get((row['method'], row['group']), 0):.0f})"

    parts = [main]
    told = [f"- {name}: {'; '.join(words)}" for name, words in _published_words(plain).items()]
    if told:
        parts += ["Columns named paper are published figures, of other models, prompts and judges:", "\n".join(told)]
    if returned:
        title = "Recovery, by what is injected: images that show the target, in percent (valid images in percent)"
        parts += [title, _grid(returned, _injected, came_back)]
    for group in dict.fromkeys(r["group"] for r in plain if r["group"].startswith("analysis: ")):
        parts += [group.capitalize(), _grid([r for r in plain if r["group"] == group], lambda r: r["metric"], _cell)]
    paired = [r for r in summary if "verdict" in r and _tabled(r)]
    if paired:
        parts += [
            "Paired differences in points",
            _grid(paired, _head, lambda r: f"{_cell(r)} {r['verdict']}"),
        ]
    return "\n\n".join(parts) + "\n"


def _injected(row: Mapping[str, Any]) -> str:
    """What a recovery injects, and into what, as a column calls it."""
    control = row["group"].removeprefix("key: ")
    into = {"original": "own, in the original model", "none": "no key", "neutral": "own, with a neutral text"}
    return into.get(control, control if control in CONTROLS else f"own, in the model of {control}")


def _published_words(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Where the published figures of each row come from, and what is known of them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["group"] == "paper":
            words = [str(row[k]) for k in ("table", "published_as", "source", "knowledge", "note") if row.get(k)]
            found[row["method"]] = list(dict.fromkeys([*found.get(row["method"], []), *words]))
    return found


class CostColumn(NamedTuple):
    """What an erasure took, as a column of the table."""

    name: str
    title: str
    unit: float
    digits: int


COSTS = (
    CostColumn("erase_equivalents", "forwards", 1, 0),
    CostColumn("erase_seconds", "seconds", 1, 1),
    CostColumn("erase_peak_bytes", "peak MB", 1e6, 0),
    CostColumn("artefact_bytes", "artefact kB", 1e3, 0),
)


def _grid(
    rows: Sequence[Mapping[str, Any]],
    head: Callable[[Mapping[str, Any]], str],
    cell: Callable[[Mapping[str, Any]], str],
    made: bool = False,
) -> str:
    """Rows in Markdown; with ``made`` they end with what each method was told and what its erasures took."""
    heads = list(dict.fromkeys(head(r) for r in rows))
    costs = [c for c in COSTS if made and any(c.name in r for r in rows)]
    told = ["told beside the name"] if made and any("told" in r for r in rows) else []
    lines = ["| " + " | ".join(["method", *heads, *(c.title for c in costs), *told]) + " |"]
    lines.append("|---" * (1 + len(heads) + len(costs) + len(told)) + "|")
    for method in dict.fromkeys(r["method"] for r in rows):
        by = {head(r): r for r in rows if r["method"] == method}
        cells = [cell(by[name]) if name in by else "–" for name in heads]
        spent = next(iter(by.values()))
        cells += [f"{spent[c.name] / c.unit:,.{c.digits}f}" if c.name in spent else "–" for c in costs]
        cells += [spent.get("told") or "–" for _ in told]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _head(row: Mapping[str, Any]) -> str:
    return row["metric"] if row["group"] == "set" else f"{row['group']} {row['metric']}"


def _cell(row: Mapping[str, Any]) -> str:
    if row["group"] == "paper":
        return f"{row['value']:.1f}"
    if row["metric"] == "became":
        return ", ".join(f"{label} {share:.0f}" for label, share in row["shares"].items())
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


def _tabled(row: Mapping[str, Any]) -> bool:
    """Whether a row of the summary is a cell of the table: all of the set's, of what nobody named the first rank alone."""
    group, metric = row["group"], row["metric"].split(" ")[0]
    if group in ("set", "paper") or metric == RECOVERY:
        return True
    if metric == "prior_distance":
        return True
    return metric == "psr@1" if group == "others" else not group.startswith("key: ") and "sr@" in metric


>>>>>>> wt-analysis
# what it will take, and what it takes ---------------------------------------------------------------------------------
def speed(planner: Planner, store: Path) -> float:
    """Forward-equivalents a second: of the store's finished jobs, or of a short trial if there are none."""
    spent = seconds = 0.0
    wanted = {planner.identity(planner.plan.dtype), planner.identity(planner.image_dtype)}
    for file in store.glob(f"[!.]*/{jobs.RESULT}") if store.is_dir() else ():
        done = read_json(file)
        if done["job"].get("model_sha256") not in wanted or done["job"]["room"] == "memory":
            continue
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
            size = _size(path)
            before = found.get(room, Room(0, 0))
            found[room] = Room(before.jobs + 1, before.bytes + size)
    return found


def clean(store: Path, rooms: Sequence[str]) -> int:
    """Delete the jobs of ``rooms`` (``leftovers`` are what killed runs left behind); returns the bytes freed."""
    freed = 0
    for path in sorted(store.iterdir()) if store.is_dir() else ():
        room = _room(path)
        if room not in rooms:
            continue
        name = path.name
        if room == "leftovers":
            name = name.removeprefix(".").removesuffix(".old").rpartition(".")[0]
        with jobs.claimed(path.with_name(name), wait=False) as ours:
            if ours:  # a running job's files stay
                freed += _size(path)
                shutil.rmtree(path, ignore_errors=True)
    return freed


def _size(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a running job may take it away
            total += file.stat().st_size if file.is_file() else 0
    return total


def _room(path: Path) -> str | None:
    """The room that a folder of the store belongs to; None for what is not expunge's."""
    name = path.name.lstrip(".").split("-")[0]
    if not path.is_dir() or name not in jobs.ROOMS:
        return None
    return "leftovers" if path.name.startswith(".") else name if (path / jobs.RESULT).is_file() else None
