"""Summary: what a plan's measurements say together, as rows, and as a table."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError, unknown
from expunge.core.record import (
    Interval,
    Runs,
    hull,
    in_percent,
    mean_of,
    nested,
    of_attacks,
    paired_proportions,
    wilson,
)
from expunge.stages import analyse, claims, curves, jobs
from expunge.stages.pairs import ROLES
from expunge.stages.plan import ATTACK, CONTROLS, KINDS, SPLIT
from expunge.stages.planner import Planned, Planner, flattened
from expunge.store import EDIT, FORMAT, new_file, read_json, write_json, write_lines

RECORDS = "records.jsonl"
"""A record a job and metric, in a plan's folder."""
RECOVERY = "recovery"
"""What a paired difference calls the share of images that a key brought back."""


class Result(NamedTuple):
    """A measurement, and what its job found."""

    planned: Planned
    found: dict[str, Any]


Cells = dict[tuple[str, str, str], dict[int, dict[str, list[tuple[str, float]]]]]
"""Values by (method, group, metric)."""


def write(planner: Planner, measurements: Sequence[Planned], store: Path, out: Path) -> list[dict[str, Any]]:
    """Write records (one a job and metric), their summary (one a method, group and metric), a table and figures into ``out``.

    The summary ends with the verdict on each claim, and with rows of papers.
    """
    lines: list[dict[str, Any]] = []
    results = [Result(m, jobs.run_job(m.job, store)) for m in measurements]
    for m, found in results:
        row = {"method": m.method, "split": m.split, "training_seed": m.seed, "group": m.group, "variant": m.variant}
        if m.group.startswith(ATTACK):
            row["attack_run"] = m.run
        lines += [{**r, "provenance": {**r["provenance"], **row, **_seen(m)}} for r in found["records"]]
    write_lines(out / RECORDS, lines)
    made = _spent(results, store)
    for method, told in _told(results).items():
        made.setdefault(method, {})["told"] = told
    pairs = dict.fromkeys([*planner.plan.compare, *(c.rows for c in planner.claims if c.than is None)])
    relearned = _relearned(results, store)
    rows = [{**r, **relearned.get((r["method"], r["group"]), {})} for r in _summary(results, made)]
    rows += _by_split(results) if planner.plan.by_split else []
    for stale in (out / analyse.FIGURES).glob("*.json"):
        stale.unlink()
    _copy_figures(results, store, out / analyse.FIGURES)
    return put(planner, [*rows, *became(lines), *detected(results), *_differences(list(pairs), results)], out)


SHAPES = {"became": ("shares", "n"), "detections": ("counts", "n")}
"""What rows of a summary hold that are no numbers with an interval."""


def checked(planner: Planner, kept: Sequence[Mapping[str, Any]], where: str) -> list[dict[str, Any]]:
    """The rows of a summary that was kept, without its claims and papers' figures: they can be told anew.

    Raises:
        ExpungeError: if ``kept``, read from ``where``, has no summary, a damaged one, or that of another plan.
    """
    rows = [dict(r) for r in kept if "provenance" not in r and "claim" not in r and r.get("group") != "paper"]
    for row in rows:
        wanted = ("method", "group", "metric")
        wanted += SHAPES.get(str(row.get("metric")).split(" (")[0], ("value", "low", "high", "n"))
        lacking = [name for name in wanted if name not in row]
        if lacking:
            raise ExpungeError(
                f"a row of the summary in '{where}' has no {lacking[0]}: expected rows as this version writes them"
            )
        known = row["method"].split(" - ") if "verdict" in row else [row["method"]]
        for name in known:
            if name not in planner.grid.method:
                raise unknown(f"method of the grid in '{where}'", name, planner.grid.method)
        if row["group"] not in planner.groups and not row["group"].startswith(KINDS):
            raise unknown(f"set of the plan in '{where}'", row["group"], planner.groups)
    lacking = [name for name in planner.grid.method if name not in {r["method"] for r in rows}]
    if lacking:
        raise ExpungeError(f"'{where}' has no row of '{lacking[0]}': expected the summary of this plan")
    return rows


def put(planner: Planner, rows: Sequence[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Write the summary, its table and its figures into ``out``, all told before the first is written."""
    summary = [*rows, *claims.judged(planner.claims, rows), *planner.published]
    drawn = [
        *(curves.figure(c, summary) for c in planner.figures),
        *(curves.histogram(h, summary) for h in planner.histograms),
    ]
    told = f"{planner.plan.about}\n\n{table(summary)}"
    for figure in drawn:
        write_json(out / analyse.FIGURES / curves.file_name(figure.title), figure.as_json(), overwrite=True)
    write_lines(out / "summary.jsonl", summary)
    with new_file(out / "table.md", overwrite=True) as temporary:
        temporary.write_text(told)
    return summary


def _seen(measurement: Planned) -> dict[str, Any]:
    """Where in the store the images of a measurement are (or were), and the hash of the model that made them."""
    for made in measurement.upstream:
        if made.key == measurement.job.get("images"):
            place = jobs.folder(made.key, "generate", Path()) / jobs.IMAGES
            return {"images": place.as_posix(), "model_sha256": made.job["model_sha256"]}
    return {}


def _cells(results: Sequence[Result], once: bool) -> Cells:
    """The values behind every number of the table; ``once`` counts an image once, whatever splits it serves.

    Under an attack the label says which run of it, too.
    """
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
            run = f", run {m.run}" if m.group.startswith(ATTACK) else ""
            named = [(f"{label}{run}", value) for label, value in values]
            kept.extend((label, value) for label, value in named if not (once and (*images, label) in counted))
            counted.update((*images, label) for label, _ in named)
    return cells


def _signed(results: Sequence[Result]) -> set[tuple[str, str, str]]:
    """The cells that are differences already, in points."""
    return {
        (m.method, m.group, r["metric"] + m.variant)
        for m, f in results
        for r in f["records"]
        if r.get("unit") == "points"
    }


def _interval(group: str, values: Sequence[float], runs: Runs, *, signed: bool) -> Interval:
    """A share's interval, or a mean's, of which Wilson says nothing; an attack's images count by its runs."""
    if signed or not set(values) <= {0.0, 1.0}:
        return in_percent(mean_of(runs))
    return hull(wilson(sum(values), len(values)), of_attacks(runs) if group.startswith(ATTACK) else nested(runs))


def _summary(results: Sequence[Result], made: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method, group and metric, over splits and training seeds, with what it was told and cost."""
    rows: list[dict[str, Any]] = []
    differences = _signed(results)
    for (method, group, metric), runs in _cells(results, once=True).items():
        values = [v for by_split in runs.values() for pairs in by_split.values() for _, v in pairs]
        interval = _interval(group, values, runs, signed=(method, group, metric) in differences)
        rows.append(_row(method, group, metric, interval, len(values), runs))
    rows += _of_sets(results)
    return [{**row, **made.get(row["method"], {})} for row in rows]


def _by_split(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of `_summary`'s own set once more, one for each split; what exists only for a set of images is left out."""
    rows: list[dict[str, Any]] = []
    differences = _signed(results)
    for (method, group, metric), runs in _cells(results, once=False).items():
        for split in dict.fromkeys(s for by_split in runs.values() for s in by_split) if group == "set" else ():
            alone = {seed: {split: by_split[split]} for seed, by_split in runs.items() if split in by_split}
            values = [v for by_split in alone.values() for _, v in by_split[split]]
            interval = _interval(group, values, alone, signed=(method, group, metric) in differences)
            rows.append(_row(method, f"{SPLIT}{split}", metric, interval, len(values), alone))
    return rows


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
            write_json(out / curves.file_name(words), read_json(file), overwrite=True)


def numbers(summary: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of a summary that are a number of one method."""
    return [r for r in summary if "verdict" not in r and "claim" not in r]


def _relearned(results: Sequence[Result], store: Path) -> dict[tuple[str, str], dict[str, float]]:
    """What the fresh keys behind a row's recovery took, on average, of those that are still in the store."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for m, _ in results:
        for p in flattened([m]) if m.group.startswith("key: fresh ") else ():
            done = jobs.result(p.job, store) if p.job["room"] == "relearn" else None
            if done is not None:
                found.setdefault((m.method, m.group), {})[p.key] = Cost(**done["cost"]).equivalents
    return {place: {"relearn_equivalents": round(fmean(spent.values()), 1)} for place, spent in found.items()}


def became(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def detected(results: Sequence[Result]) -> list[dict[str, Any]]:
    """How many detections of each label a method's target images had (KPOP's Fig. 3b), where a metric counted them.

    The number of images stands beside, since rows may have several training seeds.
    """
    found: dict[tuple[str, str, str], Counter[str]] = {}
    images: Counter[tuple[str, str, str]] = Counter()
    for m, measured in results:
        place = (m.method, m.group, f"detections{m.variant}")
        for record in measured["records"]:
            told = record["provenance"].get("instrument", {})
            if "detections" in told and not record["metric"].startswith("ner_kept"):
                found.setdefault(place, Counter()).update(told["detections"])
                images[place] += record["n"]
                break  # every threshold's record has the same
    return [
        {
            "format": FORMAT,
            "method": place[0],
            "group": place[1],
            "metric": place[2],
            "counts": dict(labels.most_common()),
            "n": images[place],
        }
        for place, labels in found.items()
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
                    f"{_pairs(images)} pairs given": _pairs(images),
                    "images given": not _pairs(images) and any(i["given"] for i in images.values()),
                    "images made": any(not i["given"] for i in images.values()),
                    "oracle": knows["oracles"],
                }
                found[m.method] = ", ".join(word for word, told in says.items() if told)
    return found


def _pairs(images: Mapping[str, Mapping[str, Any]]) -> int:
    """How many pairs a method was given."""
    return images[ROLES[0]]["count"] if set(images) == set(ROLES) and all(i["given"] for i in images.values()) else 0


class Took(NamedTuple):
    """What an erasure took."""

    equivalents: int
    seconds: float
    bytes: int


def _spent(results: Sequence[Result], store: Path) -> dict[str, dict[str, Any]]:
    """What a method's erasures that are still in the store took: mean evaluations and bytes, median seconds; peak memory.

    An erasure in several steps took what they took together; pairs, which several erasures may learn from, are told apart.
    """
    found: dict[str, dict[tuple[str, ...], Took]] = {}
    pairs: dict[str, dict[str, int]] = {}
    for m, _ in results:
        stands_on = flattened([m]) if m.group == "set" else []
        for p in (p for p in stands_on if p.job["room"] == "pairs"):
            given = jobs.result(p.job, store)
            if given is not None:
                pairs.setdefault(m.method, {})[p.key] = Cost(**given["cost"]).equivalents
        steps = [p for p in stands_on if p.job["room"] == "erase"]
        done = [jobs.result(p.job, store) for p in steps]
        whole = [d for d in done if d is not None]
        if whole and len(whole) == len(steps):
            found.setdefault(m.method, {})[tuple(p.key for p in steps)] = Took(
                sum(Cost(**d["cost"]).equivalents for d in whole),
                sum(d["seconds"] for d in whole),
                sum((jobs.folder(p.key, "erase", store) / EDIT).stat().st_size for p in steps),
            )
    spent: dict[str, dict[str, Any]] = {
        method: {
            "erase_equivalents": round(fmean(took.equivalents for took in erasures.values()), 1),
            "erase_seconds": round(median(took.seconds for took in erasures.values()), 1),
            "artefact_bytes": round(fmean(took.bytes for took in erasures.values())),
        }
        for method, erasures in found.items()
    }
    for method, took in pairs.items():
        spent.setdefault(method, {})["pairs_equivalents"] = sum(took.values())
    for m, counted in results:
        if m.group == "memory":
            spent.setdefault(m.method, {})["erase_peak_bytes"] = counted["peak_bytes"]
    return spent


def _differences(pairs: Sequence[Sequence[str]], results: Sequence[Result]) -> list[dict[str, Any]]:
    """Paired differences in points, on equal seeds and prompts; what has no training seed stands for every one."""
    cells = _cells(results, once=False)
    cells = {place: runs for place, runs in cells.items() if not place[1].startswith("key: ")} | _recovered(cells)
    rows: list[dict[str, Any]] = []
    for one, other in pairs:
        for method, group, metric in [place for place in cells if place[0] == one]:
            mine, theirs = cells[method, group, metric], cells.get((other, group, metric), {})
            if not theirs:
                continue
            paired: dict[int, dict[str, list[tuple[str, float]]]] = {}
            ones: list[float] = []
            others: list[float] = []
            for seed in sorted({*mine, *theirs}):
                first, second = (runs.get(seed, runs[min(runs)]) for runs in (mine, theirs))
                for split, values in first.items():
                    against = second.get(split, [])
                    if [label for label, _ in against] != [label for label, _ in values]:
                        raise ExpungeError(
                            f"'{one}' and '{other}' have other images on split {split}: expected the same"
                        )
                    difference = [(k, a - b) for (k, a), (_, b) in zip(values, against, strict=True)]
                    paired.setdefault(seed, {})[split] = difference
                    ones += [a for _, a in values]
                    others += [b for _, b in against]
            counted = set(ones) | set(others) <= {0.0, 1.0}  # shares; else means, of which Newcombe says nothing
            resampled = of_attacks(paired, -1.0) if group.startswith(ATTACK) else nested(paired)
            points = hull(paired_proportions(ones, others), resampled) if counted else in_percent(mean_of(paired))
            row = _row(f"{one} - {other}", group, metric, points, len(ones), paired)
            rows.append({**row, "unit": "points", **_verdict(points, metric, len(ones), len(paired))})
    return rows


def _recovered(cells: Cells) -> Cells:
    """Whether each target came back with its own key, or with a fresh one: what ESR-1 counts, turned round."""
    return {
        (method, group, RECOVERY + metric.removeprefix("esr@1")): {
            seed: {split: [(label, 1 - shown) for label, shown in pairs] for split, pairs in by_split.items()}
            for seed, by_split in runs.items()
        }
        for (method, group, metric), runs in cells.items()
        if (group == "key: own" or group.startswith("key: fresh ")) and metric.split(" ")[0] == "esr@1"
    }


def _verdict(points: Interval, metric: str, n: int, seeds: int) -> dict[str, Any]:
    """What a paired difference shows: design.md section 5."""
    most = claims.margin(metric)
    within = -most <= points.low and points.high <= most
    return {
        "verdict": claims.direction(points),
        "equal_quality": (within if n >= 1000 and seeds >= 2 and metric.startswith(("esr", "psr")) else None),
    }


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown: a row a method and a column a metric; then recoveries, and paired differences."""
    plain = numbers(summary)
    main = _grid([r for r in plain if tabled(r)], heading, _cell, made=True)
    returned = [r for r in plain if r["group"].startswith("key: ") and r["metric"].startswith("esr@1")]
    valid = {(r["method"], r["group"]): r["value"] for r in plain if r["metric"].startswith("valid_rate")}

    def came_back(row: Mapping[str, Any]) -> str:
        turned = {**row, "value": 100 - row["value"], "low": 100 - row["high"], "high": 100 - row["low"]}
        return f"{_cell(turned)} ({valid.get((row['method'], row['group']), 0):.0f})"

    parts = [main]
    told = [f"- {name}: {'; '.join(words)}" for name, words in published_words(plain).items()]
    if told:
        parts += ["Columns named paper are published figures, of other models, prompts and judges:", "\n".join(told)]
    if returned:
        title = "Recovery, by what is injected: images that show the target, in percent (valid images in percent)"
        parts += [title, _grid(returned, injected, came_back)]
    alone = of_splits(plain)
    if alone:
        parts += ["By split", _grid(alone, heading, _cell)]
    for group in dict.fromkeys(r["group"] for r in plain if r["group"].startswith("analysis: ")):
        parts += [group.capitalize(), _grid([r for r in plain if r["group"] == group], lambda r: r["metric"], _cell)]
    paired = [r for r in summary if "verdict" in r and tabled(r)]
    if paired:
        parts += [
            "Paired differences in points",
            _grid(paired, heading, lambda r: f"{_cell(r)} {r['verdict']}"),
        ]
    claimed = [r for r in summary if "claim" in r]
    if claimed:
        parts += ["Claims of the papers, and what was measured here", claims.table(claimed)]
    return "\n\n".join(parts) + "\n"


def of_splits(plain: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The numbers of one split alone, the split beside the method's name."""
    return [
        {**r, "method": f"{r['method']}, {r['group'].removeprefix(SPLIT)}", "group": "set"}
        for r in plain
        if r["group"].startswith(SPLIT)
    ]


def injected(row: Mapping[str, Any]) -> str:
    """What a recovery injects, and into what, as a column calls it."""
    control = row["group"].removeprefix("key: ")
    into = {
        "original": "own, in the original model",
        "none": "no key",
        "neutral": "own, with a neutral text",
        "other seed": "that of another seed",
    }
    said = control in CONTROLS or control.startswith("own after ")
    if control.startswith("fresh "):
        return f"{control} updates"
    return into.get(control, control if said else f"own, in the model of {control}")


def published_words(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
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
    CostColumn("pairs_equivalents", "pairs' forwards", 1, 0),
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


def heading(row: Mapping[str, Any]) -> str:
    """What the table calls the column of a row of the summary."""
    return row["metric"] if row["group"] == "set" else f"{row['group']} {row['metric']}"


def shares_in_words(shares: Mapping[str, float]) -> str:
    """Labels and their percentages, the greatest first (a file has them by name)."""
    ordered = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{label} {share:.0f}" for label, share in ordered)


def _cell(row: Mapping[str, Any]) -> str:
    if row["group"] == "paper":
        return f"{row['value']:.1f}"
    if row["metric"] == "became":
        return shares_in_words(row["shares"])
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"


OF_IMAGES = ("prior_", "lpips", "clip", "styled", "fid", "kid")
"""Beginnings of the names of what is told of images without a judge: the table has it of every set."""


def tabled(row: Mapping[str, Any]) -> bool:
    """Whether a row of the summary is a cell of the table: all of the set's, and of further sets the main ones."""
    group, metric = row["group"], row["metric"].split(" ")[0]
    if metric == "detections":
        return False
    if group in ("set", "paper") or metric == RECOVERY:
        return True
    if group.startswith(("key: ", SPLIT)):
        return False
    if metric.startswith(OF_IMAGES):
        return True
    if group.startswith("attack: ") and metric == "valid_rate":
        return True  # an image that shows nothing is safe as well
    if group.startswith("after "):
        return metric in ("esr@1", "psr@1")
    return metric == "psr@1" if group == "others" else "sr@" in metric or metric in ("ner@0.5", "dsr")
