"""The demo: erase one concept from the model in the box, give it back with the key, compare on equal seeds, measure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from expunge import backbones
from expunge.core.backbone import Backbone
from expunge.core.concept import Concept, fill
from expunge.core.edit import Edit
from expunge.core.eraser import Eraser, settings_of
from expunge.core.errors import ExpungeError, check_counts, unknown
from expunge.core.guidance import Key
from expunge.core.query import Query, queries
from expunge.core.record import Record
from expunge.settings import presets
from expunge.stages import erase, generate, measure
from expunge.store import EDIT, KEY, load_edit, new_file, read_images, read_run, read_set, write_records
from expunge.testbed import CONCEPTS, vocabulary

METHOD, SET = "kpop", "objects10"
SIDES = {
    "original": "original",
    "erased": "erased",
    "recovered": "erased, with the key",
    "wrong-key": "erased, with a random key",
}
"""The folders of images, and what the comparison calls them."""
SCALE = 2
"""Each pixel of the testbed is drawn as 2 x 2 in the comparison."""


def run(
    target: str,
    out: Path,
    count: int,
    overwrite: bool,
    tell: Callable[[str], None] = lambda _: None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    resume: bool = False,
) -> list[Record]:
    """Erase ``target`` keeping the other objects of ``objects10``, and recover it; returns the records of all four sides.

    ``tell`` is told what begins; ``settings`` go over the preset's. With ``resume`` it goes on with what an earlier demo left,
    finished or not.

    Raises:
        ExpungeError: if the testbed does not know ``target``, or ``out`` is taken.
    """
    if target not in vocabulary()["objects"]:
        raise unknown("object of the testbed", target, vocabulary()["objects"])
    check_counts("demo", count=count)
    ten = read_set(SET, CONCEPTS)
    others = [c for c in ten.concepts if c != target][:9]
    backbone = backbones.load("testbed")
    eraser = erase.build(METHOD, dict(settings), "testbed")
    run = _Run(out, overwrite, resume, tell)
    with erase.reserve(out, eraser, overwrite or resume):
        edit = _erased(backbone, eraser, target, others, run)
        records = _shown(backbone, edit, [target, *others], count, run)
        write_records(out / "records.jsonl", records)
        compare(out, [target, *others], min(count, 4))
    return records


class _Run(NamedTuple):
    """Where a demo goes, and what may be there."""

    out: Path
    overwrite: bool
    resume: bool
    tell: Callable[[str], None]


def _erased(backbone: Backbone, eraser: Eraser, target: str, others: list[str], run: _Run) -> Edit:
    """The edit with its key: of an earlier demo that was the same so far, or a new one, from its checkpoint if it left one."""
    if run.resume and (run.out / EDIT).exists():
        edit, key = (load_edit(run.out / name) for name in (EDIT, KEY))
        origin = edit.provenance
        known = (
            None if origin is None else (origin.eraser, origin.settings, origin.targets, origin.retain, origin.model)
        )
        if known == (METHOD, settings_of(eraser), [target], others, backbone.name) and edit.id in key.requires:
            edit.key = key
            return edit
        if not run.overwrite:
            raise ExpungeError(
                f"'{run.out}' holds another demo: expected the same target, another --out, or --overwrite"
            )
    run.tell(f"erasing {target} with {METHOD}")
    points = erase.checkpoints(run.out, run.resume)
    edit = erase.run(backbone, METHOD, eraser, [Concept(name=target)], others, checkpoints=points)
    erase.to_folder(edit, run.out, run.overwrite)
    return edit


def _shown(backbone: Backbone, edit: Edit, concepts: list[str], count: int, run: _Run) -> list[Record]:
    """The images of all four sides, those that are there already left as they are, and their records."""
    key = edit.key
    if not isinstance(key, Key):
        raise ExpungeError(f"{METHOD} made no key: expected a method that does")
    guidance, steps = presets.generation(backbone)
    template = presets.prompt(backbone)
    asked = [(fill(template, c), c) for c in concepts]
    wanted = queries(asked, count, read_set(SET, CONCEPTS).test.seed, guidance, steps)
    sides: dict[str, tuple[list[Edit], str | None]] = {
        "original": ([], None),
        "erased": ([edit], None),
        "recovered": ([edit, key], "own"),
        "wrong-key": ([edit, key.random(0)], "random"),
    }
    metric = measure.build("esr-psr", {})
    records: list[Record] = []
    for name, (edits, control) in sides.items():
        shown = wanted[:count] if control else wanted  # a key acts where a text names the target
        if not (run.resume and _is_there(run.out / name, edits, control, shown)):
            run.tell(f"{len(shown)} images: {SIDES[name]}")
            folder, again = run.out / name, run.overwrite
            generate.to_folder(backbone, edits, shown, folder, control=control, overwrite=again, resume=run.resume)
        records += measure.measure(metric, "esr-psr", run.out / name, concepts[:1], concepts[1:])
    return records


def _is_there(folder: Path, edits: Sequence[Edit], control: str | None, shown: Sequence[Query]) -> bool:
    """Whether a folder holds these very images."""
    run = read_run(folder)
    if not run or run.get("control") != control:
        return False
    ids = [*(e["id"] for e in run["edits"]), run.get("key")]
    if ids != [*(e.id for e in edits if not e.private), next((e.id for e in edits if e.private), None)]:
        return False
    return [(s.prompt, s.seed) for s in read_images(folder)] == [(q.prompt, q.seed) for q in shown]


def compare(out: Path, concepts: Sequence[str], columns: int) -> None:
    """Write ``compare.png``: a row a concept, and side by side the same seeds of each side (with a key the target only)."""
    side, margin, head, gap = 64 * SCALE, 150, 24, 20
    width = margin + len(SIDES) * (columns * side + gap) - gap
    sheet = Image.new("RGB", (width, head + len(concepts) * side), "white")
    pen = ImageDraw.Draw(sheet)
    for row, concept in enumerate(concepts):
        pen.text((6, head + row * side + side // 2), concept, fill="black")
    for panel, (name, title) in enumerate(SIDES.items()):
        left = margin + panel * (columns * side + gap)
        pen.text((left + 4, 6), title, fill="black")
        shots = read_images(out / name)
        for row, concept in enumerate(concepts):
            for column, shot in enumerate([s for s in shots if s.label == concept][:columns]):
                tile = Image.fromarray(shot.pixels().numpy()).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(tile, (left + column * side, head + row * side))
    with new_file(out / "compare.png", overwrite=True) as temporary:
        sheet.save(temporary, format="png")


def table(out: Path, records: Sequence[Record]) -> str:
    """The records of a demo as text."""
    by = {(r.provenance["images"], r.metric): r for r in records}
    metrics = dict.fromkeys(r.metric for r in records if not r.metric.startswith("became"))
    lines = [f"{'':18}" + "".join(f"{title:>26}" for title in SIDES.values())]
    for metric in metrics:
        cells = [by.get((name, metric)) for name in SIDES]
        shown = [f"{r.value:7.1f} % [{r.low:5.1f}, {r.high:5.1f}]" if r else f"{'–':>12}" for r in cells]
        lines.append(f"{metric:18}" + "".join(f"{cell:>26}" for cell in shown))
    became = [
        f"{r.metric.removeprefix('became@')} {r.value:.0f} %"
        for (name, metric), r in by.items()
        if metric.startswith("became@") and name == "erased"
    ]
    return "\n".join(
        [*lines, f"prompts for {records[0].concepts[0]} now show: {', '.join(became)}", f"see {out / 'compare.png'}"]
    )
