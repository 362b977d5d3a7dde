"""A contribution: somebody's results of a committed plan, checked as far as files can show."""

import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from expunge.core.errors import ExpungeError
from expunge.executors.asked import measured_otherwise, measurements_of
from expunge.executors.counterpart import Counterpart, counterpart
from expunge.executors.gathered import wanted
from expunge.jobs import AnalyseJob, GenerateJob, MeasureJob
from expunge.jobs.workspace import model
from expunge.plans.check import checked
from expunge.plans.expand import Measurement
from expunge.plans.read import ON
from expunge.plans.schema import Plan
from expunge.results import summary
from expunge.results.files import PLAN, RECORDS, SUMMARY, TABLE
from expunge.results.kept import kept
from expunge.results.meanings import is_share, stem
from expunge.results.retold import Retold, retold
from expunge.store import new_file, read_json, read_lines, write_lines
from expunge.store.shapes import NUMBER, RECORD, SUMMARY_ROW, check_shape
from expunge.store.toml import toml

FILES = (PLAN, RECORDS, SUMMARY, TABLE)
"""What `expunge bench` writes, and a contribution has."""
WHOLE = {
    **RECORD,
    "unit": str,
    "n_seeds": int,
    "split": str,
    "provenance": {
        **RECORD["provenance"],
        **{"method": str, "split": str, "training_seed": int, "group": str, "variant": str},
    },
    "knowledge": {**RECORD["knowledge"], "templates": [str], "oracles": [str]},
}
"""A record with its whole provenance."""
OF_IMAGES = {
    "images": str,
    "model_sha256": str,
    "dtype": str,
    "sampling": dict,
    "cost": {"forward": int, "trained": int},
}
"""What a record of stored images says beside."""
SAID = {"version": int, "measured_by": str}
"""And since it says what measured it."""
RANGES = {"%": (0.0, float("inf")), "points": (-200.0, 200.0), "100 cos": (-100.0, 100.0), "100 rho": (-100.0, 100.0)}
"""What a unit's values lie between; shares in percent end at 100."""
CLOSE = 1e-3


class Place(NamedTuple):
    """Where in a plan's table a record is."""

    method: str
    split: str
    seed: int
    group: str
    variant: str
    run: int


@final
@dataclass(frozen=True, kw_only=True)
class Contribution:
    """Results that were checked."""

    folder: Path
    of: Counterpart
    records: Sequence[Mapping[str, Any]]
    summary: Sequence[Mapping[str, Any]]
    measurements: Sequence[Measurement] = field(repr=False)
    told: Retold

    def in_words(self) -> Iterator[str]:
        """What was found, a sentence a line."""
        plan, name = self.of.plan, self.of.name
        added = f", with {len(self.of.added)} rows added: {', '.join(self.of.added)}" if self.of.added else ""
        more = f"; it has more: {', '.join(self.of.more)}" if self.of.more else ""
        yield f"the plan is '{name}'{added}{more}"
        folders = {r["provenance"]["images"] for r in self.records if "images" in r["provenance"]}
        yield (
            f"{len(self.records):,} records of {len(plan.grid.method)} rows, {len(plan.grid.seed)} training seeds and "
            f"{len(folders):,} image folders: each is of a job that the plan asks for, on the same model, and none lacks"
        )
        yield (
            f"{self.told.values:,} numbers of the summary are what the records give, and {self.told.differences:,} "
            "differences are those of their rows"
        )
        if self.told.beyond:
            yield f"{self.told.beyond:,} numbers of the summary cannot be told from records alone"
        yield "verdicts, published figures and the table are told again from the summary, bit for bit"
        judged = Counter(row["claim_verdict"] for row in self.summary if "claim" in row)
        if judged:
            yield "claims: " + ", ".join(f"{count} {verdict}" for verdict, count in judged.items())


def check(folder: Path, against: Path, name: str | None = None) -> Contribution:
    """Check the results in ``folder``, as `expunge bench` writes them, against a committed plan.

    Args:
        folder: of ``plan.json``, ``records.jsonl``, ``summary.jsonl`` and ``table.md``.
        against: folder of committed plans.
        name: of the plan that is meant; found if not given.

    Raises:
        ExpungeError: naming the first thing that is wrong.
    """
    lacking = [file for file in FILES if not (folder / file).is_file()]
    if lacking:
        raise ExpungeError(
            f"'{folder}' has no {lacking[0]}: expected a folder that `expunge bench` wrote, with {', '.join(FILES)}"
        )
    of = counterpart(read_json(folder / PLAN), folder / PLAN, against, name)
    records, lines = read_lines(folder / RECORDS), read_lines(folder / SUMMARY)
    if not records:
        raise ExpungeError(f"'{folder / RECORDS}' is empty: expected a record a job and metric")
    for number, record in enumerate(records, 1):
        check_shape(f"'{folder / RECORDS}' line {number}", record, WHOLE)
    names = [model_of(of.plan, record["provenance"]) for record in records]
    hashes = {name: model(name, of.plan.dtype).identity() for name in dict.fromkeys(names)}
    for number, (record, name) in enumerate(zip(records, names, strict=True), 1):
        _check_record(f"'{folder / RECORDS}' line {number}", record, name, hashes[name])
    measurements = measurements_of(of.plan, records)
    _check_places(folder / RECORDS, records, measurements)
    told = _check_summary(folder, of, records, lines)
    return Contribution(folder=folder, of=of, records=records, summary=lines, measurements=measurements, told=told)


def model_of(plan: Plan, place: Mapping[str, Any]) -> str:
    """The model that drew a record's images: the plan's, or another that is its row. An attack on that has it as an edit."""
    row = place["method"]
    other = plan.method[row].model if row in plan.method and not place["group"].startswith("attack: ") else ""
    return other or plan.model


# records --------------------------------------------------------------------------------------------------------------
def _check_record(what: str, record: Mapping[str, Any], name: str, sha256: str) -> None:
    """One record: whole, on the model of its row, its number within its unit's range."""
    known, place = record["knowledge"], record["provenance"]
    check_shape(f"{what} with 'knowledge' of images", list(known.get("images", {}).values()), [{"count": int}])
    if "random_texts" not in known or not all("given" in shown for shown in known.get("images", {}).values()):
        raise ExpungeError(f"{what} does not say all that its method was told: expected what expunge writes")
    if "images" in place and "analysis" not in place:
        check_shape(f"{what} with 'provenance'", place, OF_IMAGES)
        check_shape(f"{what} with 'provenance'", place, {name: kind for name, kind in SAID.items() if name in place})
    if record["model"] != name:
        raise ExpungeError(f"{what} is of the model '{record['model']}': expected '{name}'")
    if place.get("model_sha256", sha256) != sha256:
        raise ExpungeError(
            f"{what} was made on a model whose files have the hash {place['model_sha256'][:16]}: expected {sha256[:16]}, "
            f"that of '{name}' here"
        )
    value, low, high = record["value"], record["low"], record["high"]
    least, most = RANGES.get(record["unit"], (-float("inf"), float("inf")))
    share = record["unit"] == "%" and (is_share(record["metric"]) or stem(record["metric"]) == "became")
    most = 100.0 if share else most
    if not least - CLOSE <= value <= most + CLOSE or (share and min(low, 100 - high) < -CLOSE):
        raise ExpungeError(
            f"{what} has {record['metric']} {value:g} [{low:g}, {high:g}]: expected {least:g} to {most:g}"
        )
    if not low - CLOSE <= value <= high + CLOSE:
        raise ExpungeError(f"{what} has {record['metric']} {value:g} outside of its interval [{low:g}, {high:g}]")
    if record["n"] < 1 or record["n_seeds"] < 0:
        raise ExpungeError(f"{what} is of {record['n']} images and {record['n_seeds']} seeds: expected 1 or more")
    if bool(place["edits"]) == (record["subject"] == "original") or len(place["made_by"]) > len(place["edits"]):
        raise ExpungeError(
            f"{what} has the subject {record['subject']} and {len(place['edits'])} edits: expected edits if edited"
        )


def _check_places(where: Path, records: Sequence[Mapping[str, Any]], measurements: Sequence[Measurement]) -> None:
    """Every record is of a job that the plan asks for, once; and no job that has images lacks."""
    asked: dict[Place, dict[tuple[str, str], list[Measurement]]] = {}
    for m in measurements:
        place = Place(m.method, m.split, m.seed, str(m.group), m.variant, m.run)
        asked.setdefault(place, {}).setdefault(_of_job(m), []).append(m)
    found: dict[tuple[Place, tuple[str, str], int, str], int] = {}
    for number, record in enumerate(records, 1):
        said, what = record["provenance"], f"'{where}' line {number}"
        run = said.get("attack_run", 0)
        place = Place(said["method"], said["split"], said["training_seed"], said["group"], said["variant"], run)
        jobs = asked.get(place)
        if jobs is None:
            raise ExpungeError(f"{what} is of {_worded(place)}: expected a place in the plan's table")
        of = ("", said["analysis"]) if "analysis" in said else (said.get("images", ""), said.get("metric", ""))
        if of not in jobs:
            known = " or ".join(f"{metric} of '{images}'" for images, metric in jobs)
            raise ExpungeError(f"{what} is {of[1]} of the images '{of[0]}': expected {known}, which the plan asks for")
        which = _which(record, jobs[of])
        job = jobs[of][which].job
        otherwise = measured_otherwise(said, job) if isinstance(job, MeasureJob) else ""
        if otherwise:
            raise ExpungeError(f"{what} {otherwise}, that of the plan's here")
        again = found.setdefault((place, of, which, record["metric"]), number)
        if again != number:
            raise ExpungeError(
                f"{what} has {record['metric']} of {_worded(place)} once more: expected it in line {again} alone"
            )
        _check_count(what, record, jobs[of][which].images)
    there = {(place, of, which) for place, of, which, _ in found}
    wanted_there = [
        (place, of, i) for place, jobs in asked.items() for of, some in jobs.items() for i in range(len(some))
    ]
    lacking = [place for place, of, i in wanted_there if of[0] and (place, of, i) not in there]
    if lacking:
        raise ExpungeError(f"'{where}' has no record of {_worded(lacking[0])}: expected all that the plan asks for")


def _which(record: Mapping[str, Any], several: Sequence[Measurement]) -> int:
    """Which of the measurements of the same images by the same metric a record is of: each is of labels of its own."""
    kept = record["provenance"].get("retain_measured")
    for i, job in enumerate(m.job for m in several):
        if isinstance(job, MeasureJob) and list(job.retain) == kept and list(job.targets) in ([], record["concepts"]):
            return i
    return 0


def _of_job(measurement: Measurement) -> tuple[str, str]:
    """The images and the metric of a measurement; no images and the name of an analysis."""
    job = measurement.job
    name = job.metric if isinstance(job, MeasureJob) else job.analysis if isinstance(job, AnalyseJob) else job.room
    return measurement.folder, name


def _worded(place: Place) -> str:
    run = f", run {place.run}" if place.run else ""
    return f"'{place.method}', split {place.split}, training seed {place.seed}, {place.group}{place.variant}{run}"


def _check_count(what: str, record: Mapping[str, Any], images: GenerateJob | None) -> None:
    """The n of a share of targets, or of what is kept, is that of the images that the plan asks for of them."""
    if images is None or images.queries_job is not None:
        return
    queries = images.queries()
    if record["n"] > len(queries):
        raise ExpungeError(
            f"{what} has n = {record['n']}: expected {len(queries)} images at most, as the plan asks for"
        )
    labels = {"esr": record["concepts"], "psr": record["provenance"].get("retain_measured", [])}.get(
        stem(record["metric"])
    )
    if labels:
        some = [query for query in queries if query.label in labels]
        expected = len(some), len({query.seed for query in some})
        if (record["n"], record["n_seeds"]) != expected:
            raise ExpungeError(
                f"{what} has n = {record['n']} with {record['n_seeds']} seeds: expected {expected[0]} with {expected[1]}, "
                "as the plan asks for"
            )


# the summary ----------------------------------------------------------------------------------------------------------
def _check_summary(
    folder: Path, of: Counterpart, records: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]
) -> Retold:
    """The summary is its records', as far as they tell; claims, published figures and table are the summary's, bit for bit."""
    for number, row in enumerate(lines, 1):
        what = f"'{folder / SUMMARY}' line {number}"
        check_shape(what, row, {**SUMMARY_ROW, **(NUMBER if "low" in row else {})})
        if "low" in row and "claim" not in row:
            check_shape(what, row, {"training_seeds": int, "splits": int})
    wants = wanted(checked(of.plan))
    numbers = summary.checked(wants, lines, str(folder / SUMMARY))
    told = retold(records, numbers)
    if told.problem:
        raise ExpungeError(f"'{folder / SUMMARY}': {told.problem}")
    with tempfile.TemporaryDirectory() as place:
        again = Path(place) / "again"
        summary.write_again(wants, folder / SUMMARY, again)
        for name in (SUMMARY, TABLE):
            if (again / name).read_text() != (folder / name).read_text():
                raise ExpungeError(
                    f"'{folder / name}' is not what its summary's numbers give: {_first(again / name, folder / name)}"
                )
    return told


def _first(expected: Path, found: Path) -> str:
    """The first line in which two files differ, in words."""
    rows, others = expected.read_text().splitlines(), found.read_text().splitlines()
    number = next(
        (i for i, (a, b) in enumerate(zip(rows, others, strict=False)) if a != b), min(len(rows), len(others))
    )
    shown = [text[number][:120] if number < len(text) else "its end" for text in (others, rows)]
    return f"line {number + 1} is '{shown[0]}', expected '{shown[1]}'"


# what is sent ---------------------------------------------------------------------------------------------------------
def write(contribution: Contribution, out: Path, overwrite: bool = False) -> list[Path]:
    """Write what is to be sent into ``out``, in the layout of benchmarks/; the plan too, if anything was added.

    Raises:
        ExpungeError: if a file exists (unless ``overwrite``), before any is written.
    """
    name = contribution.of.name
    files = [out / f"{name}.jsonl", out / f"{name}.md"]
    if contribution.of.added or contribution.of.more:
        files.append(out / f"{name}.toml")
    if not overwrite:
        for file in files:
            if file.exists():
                raise ExpungeError(f"'{file}' exists already: expected a new path, or --overwrite")
    write_lines(files[0], kept(contribution.records, contribution.summary), overwrite=overwrite, compact=True)
    with new_file(files[1], overwrite) as temporary:
        temporary.write_text((contribution.folder / TABLE).read_text())
    committed = tomllib.loads(contribution.of.file.read_text())
    kinds = {ON: committed[ON]} if ON in committed else {}  # results are kept without what a plan says of other models
    for file in files[2:]:
        with new_file(file, overwrite) as temporary:
            temporary.write_text(toml({**contribution.of.plan.source, **kinds}))
    return files
