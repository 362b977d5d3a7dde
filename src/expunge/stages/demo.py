"""The demo: erase one concept from the model in the box, compare on equal seeds, measure."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.errors import unknown
from expunge.core.query import queries
from expunge.core.record import Record
from expunge.stages import erase, generate, measure, presets
from expunge.store import load_edit, new_file, read_images, read_set, write_records
from expunge.testbed import CONCEPTS, vocabulary

METHOD = "uce"
SCALE = 2
"""Each pixel of the testbed is drawn as 2 x 2 in the comparison."""


def run(target: str, out: Path, count: int, overwrite: bool) -> list[Record]:
    """Erase ``target`` keeping the other objects of ``objects10``; returns the records of both sides.

    Raises:
        ExpungeError: if the testbed does not know ``target``.
    """
    if target not in vocabulary()["objects"]:
        raise unknown("object of the testbed", target, vocabulary()["objects"])
    ten = read_set("objects10", CONCEPTS)
    others = [c for c in ten.concepts if c != target][:9]
    backbone = backbones.load("testbed")
    eraser = erase.build(METHOD, {}, "testbed")
    done = erase.to_folder(backbone, METHOD, eraser, [Concept(name=target)], others, out, overwrite=overwrite)
    guidance, steps = presets.generation(backbone)
    template = presets.prompt(backbone)
    asked = [(generate.fill(template, c), c) for c in (target, *others)]
    wanted = queries(asked, count, ten.test.seed, guidance, steps)
    records: list[Record] = []
    for name, edits in (("original", []), ("edited", [load_edit(done.path)])):
        generate.to_folder(backbone, edits, wanted, out / name, overwrite=overwrite)
        metric = measure.build("esr-psr", {})
        records += measure.measure(metric, "esr-psr", out / name, [target], others)
    write_records(out / "records.jsonl", records)
    compare(out, [target, *others], 5)
    return records


def compare(out: Path, concepts: Sequence[str], columns: int) -> None:
    """Write ``compare.png``: for each concept a row of originals and, beside it, the same seeds after the edit."""
    side, margin, head = 64 * SCALE, 150, 24
    sheet = Image.new("RGB", (margin + (2 * columns) * side + 20, head + len(concepts) * side), "white")
    pen = ImageDraw.Draw(sheet)
    for half, name in enumerate(("original", "edited")):
        left = margin + half * (columns * side + 20)
        pen.text((left + 4, 6), name, fill="black")
        shots = read_images(out / name)
        for row, concept in enumerate(concepts):
            pen.text((6, head + row * side + side // 2), concept, fill="black")
            for column, shot in enumerate([s for s in shots if s.label == concept][:columns]):
                tile = Image.fromarray(shot.pixels().numpy()).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(tile, (left + column * side, head + row * side))
    with new_file(out / "compare.png", overwrite=True) as temporary:
        sheet.save(temporary, format="png")


def table(out: Path, records: Sequence[Record]) -> str:
    """The records of a demo as text."""
    lines = [f"{'':26}{'original':>26}{'edited':>26}"]
    for metric in dict.fromkeys(r.metric for r in records if not r.metric.startswith("became")):
        cells = [next(r for r in records if r.metric == metric and r.subject == s) for s in ("original", "edited")]
        lines.append(f"{metric:26}" + "".join(f"{r.value:7.1f} % [{r.low:5.1f}, {r.high:5.1f}]" for r in cells))
    became = [
        f"{r.metric.removeprefix('became@')} {r.value:.0f} %"
        for r in records
        if r.metric.startswith("became@") and r.subject == "edited"
    ]
    return "\n".join(
        [*lines, f"prompts for {records[0].concepts[0]} now show: {', '.join(became)}", f"see {out / 'compare.png'}"]
    )
