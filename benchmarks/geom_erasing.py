"""Geom-Erasing on the testbed: a watermark is trained into it, or into a copy of it, and removed again.

Clean drawings of the testbed get a mark at a random place, most of them, with known boxes. *Data-removal*: the testbed is
fine-tuned on these, by each step of the paper's ablation. *Model-removal*: the plain fine-tune is the model that draws the mark
already, and only location tokens are learned on it, beside a plain negative prompt and SLD.

Writes geom-erasing.jsonl and geom-erasing.md beside this file. What is made lies in runs/geom-erasing, each thing once, so that
a killed run goes on. Foreseen (not measured): 17 to 25 minutes of one quiet core for two training seeds, 43,000 evaluations of
training and 950 images.

    python benchmarks/geom_erasing.py --seeds 2
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from expunge import backbones
from expunge.core.backbone import Backbone
from expunge.core.concept import Concept
from expunge.core.edit import Edit
from expunge.core.eraser import settings_of
from expunge.core.query import Shot, queries
from expunge.core.record import Interval, Record, hull, paired_proportions, share_of, wilson
from expunge.judges.marks import Marks
from expunge.metrics.icr import ICR
from expunge.settings import presets
from expunge.stages import erase, generate, measure
from expunge.store import load_edit, new_folder, read_images, read_run, read_set, write_records
from expunge.testbed import CONCEPTS
from expunge.testbed.marks import composed

HERE = Path(__file__).parent
HOME = Path("runs") / "geom-erasing"
MARK = "watermark"
SHARE = 0.7
"""Share of the training images that get the mark."""
TRAINED = {"iterations": 150, "batch": 8, "lr": 1e-4, "token_lr": 1e-2}
"""Rates and updates of every row; not searched for: whether they plant the mark is the first row's to say."""
DATA: Mapping[str, Mapping[str, Any]] = {
    "fine-tuned": {"form": "data", "told": "nothing"},
    "+ name": {"form": "data", "told": "name"},
    "+ geometry": {"form": "data", "told": "geometry"},
    "+ re-weighting": {"form": "data", "told": "geometry", "alpha": 2.0},
    "oracle": {"form": "data", "told": "clean"},
}
"""The paper's ablation: each row tells or does more than the one before; the oracle has the same images without marks."""
MODEL = ("negative prompt", "SLD", "location tokens")
"""What removes the mark from the plain fine-tune, which stays as it is."""
COMPARED = [
    ("+ name", "fine-tuned"),
    ("+ geometry", "+ name"),
    ("+ re-weighting", "+ geometry"),
    ("location tokens", "fine-tuned"),
    ("location tokens", "negative prompt"),
    ("location tokens", "SLD"),
]


class Models(NamedTuple):
    """The testbed twice: to learn with, and to draw with, in the precision that this machine is fastest in."""

    learner: Backbone
    painter: Backbone


class Row(NamedTuple):
    """A row of the table: its images by training seed."""

    name: str
    folders: dict[int, Path]


def main() -> None:
    """Compose, train, generate, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=2, help="training seeds")
    parser.add_argument("--count", type=int, default=5, help="images of each of the ten test prompts")
    options = parser.parse_args()
    models = Models(backbones.load("testbed"), backbones.load("testbed", dtype=backbones.fast_dtype()))
    clean = drawn(models)
    marked = with_marks(clean)
    rows = [Row("testbed", {0: painted(models, "testbed", [], options.count)})]
    rows += [Row(name, {}) for name in (*DATA, *MODEL)]
    for seed in range(options.seeds):
        edits = edits_of(models, clean, marked, seed)
        for row in rows[1:]:
            row.folders[seed] = painted(models, f"{row.name} {seed}", edits[row.name], options.count)
    write_records(HERE / "geom-erasing.jsonl", [record for row in rows for record in records_of(row)])
    lines = [
        f"Testbed, the mark '{MARK}' on {100 * SHARE:.0f} % of {len(read_images(marked))} training images. Updates and rates: "
        f"{json.dumps(TRAINED)}.",
        f"{options.seeds} training seeds, {options.count} images of each of ten prompts of other objects. Percent [95 %].",
        *["", *table(rows), "", *compared(rows), "", *instrument(models.learner, clean), ""],
    ]
    (HERE / "geom-erasing.md").write_text("\n".join(lines))


# images ---------------------------------------------------------------------------------------------------------------
def drawn(models: Models) -> Path:
    """Clean drawings of everyday objects, by the testbed itself."""
    guidance, steps = presets.generation(models.painter)
    part = read_set("everyday", CONCEPTS).dev
    asked = [replace(q, label=None) for q in queries(part.prompts, 1, part.seed, guidance, steps)]
    if not (HOME / "clean").exists():
        generate.to_folder(models.painter, [], asked, HOME / "clean", split="dev")
    return HOME / "clean"


def with_marks(clean: Path) -> Path:
    """The same drawings, most of them with a mark, whose boxes stand in their metadata."""
    out = HOME / "marked"
    if out.exists():
        return out
    chosen = torch.rand(len(read_images(clean)), generator=torch.Generator().manual_seed(0)) < SHARE
    with new_folder(out, False) as folder, (folder / "metadata.jsonl").open("w") as lines:
        for number, (shot, marked) in enumerate(zip(read_images(clean), chosen.tolist(), strict=True)):
            pixels, objects = shot.pixels(), {"bbox": [], "categories": []}
            if marked:
                pixels, box = composed(pixels, MARK, number)
                objects = {"bbox": [list(box[:4])], "categories": [MARK]}
            Image.fromarray(pixels.numpy()).save(folder / shot.path.name)
            line = {"file_name": shot.path.name, "prompt": shot.prompt, "seed": shot.seed, "objects": objects}
            lines.write(json.dumps(line) + "\n")
    return out


def painted(models: Models, name: str, edits: Sequence[Edit], count: int) -> Path:
    """Images of the ten test prompts with edits attached."""
    guidance, steps = presets.generation(models.painter)
    part = read_set("objects10", CONCEPTS).test
    folder = HOME / "images" / name.replace(" ", "-")
    made = read_run(folder).get("edits") if folder.exists() else None
    if made is None or [e["id"] for e in made] != [e.id for e in edits] or len(read_images(folder)) != 10 * count:
        asked = queries(part.prompts, count, part.seed, guidance, steps)
        generate.to_folder(models.painter, edits, asked, folder, overwrite=True)
    return folder


# edits ----------------------------------------------------------------------------------------------------------------
def edits_of(models: Models, clean: Path, marked: Path, seed: int) -> dict[str, list[Edit]]:
    """What each row attaches."""
    edits = {
        name: [erased(models, name, settings, seed, clean if name == "oracle" else marked)]
        for name, settings in DATA.items()
    }
    planted = edits["fine-tuned"]
    with models.learner.attached(planted):
        tokens = erased(models, "location tokens", {"form": "model"}, seed, marked)
    words = {"negative prompt": "negative-prompt", "SLD": "sld"}
    for name, method in words.items():
        eraser = erase.build(method, {}, "testbed")
        edits[name] = [*planted, erase.run(models.learner, method, eraser, [Concept(name=MARK)], [])]
    return {**edits, "location tokens": [*planted, tokens]}


def erased(models: Models, name: str, settings: Mapping[str, Any], seed: int, images: Path) -> Edit:
    """An edit by Geom-Erasing, trained once."""
    out = HOME / "edits" / f"{name} {seed}".replace(" ", "-")
    eraser = erase.build("geom-erasing", {**TRAINED, **settings}, None)
    if (out / "edit.safetensors").exists():
        edit = load_edit(out / "edit.safetensors")
        below = tuple(e.id for e in models.learner.edits)
        if edit.provenance and edit.provenance.settings == settings_of(eraser) and edit.requires == below:
            return edit
    out.mkdir(parents=True, exist_ok=True)
    points = erase.checkpoints(out, resume=True)
    how = {"images": {MARK: images}, "checkpoints": points}
    edit = erase.run(models.learner, "geom-erasing", eraser, [Concept(name=MARK)], [], seed, **how)
    erase.to_folder(edit, out, overwrite=True)
    return edit


# numbers --------------------------------------------------------------------------------------------------------------
def records_of(row: Row) -> list[Record]:
    """The records of a row: one a number and training seed."""
    found: list[Record] = []
    for seed, folder in row.folders.items():
        icr = measure.measure(ICR(concepts=(MARK,)), "icr", folder, [], [])
        labels = sorted({shot.label or "" for shot in read_images(folder)})
        kept = measure.measure(measure.build("esr-psr", {}), "esr-psr", folder, [], labels)
        found += [
            replace(r, provenance={**r.provenance, "row": row.name, "training_seed": seed}) for r in (*icr, *kept)
        ]
    return found


def shown(folder: Path) -> list[tuple[Shot, float]]:
    """The images of a folder, and whether the mark is found in each."""
    shots = read_images(folder)
    (found,) = ICR(concepts=(MARK,)).measure(shots, [], [])
    return list(zip(shots, found.per_image, strict=True))


def table(rows: Sequence[Row]) -> list[str]:
    """ICR over all training seeds, beside what is left of the prompts' own objects."""
    lines = ["| row | ICR | object there (PSR-1) | valid |", "|---|---|---|---|"]
    for row in rows:
        runs = {
            seed: {"": [(shot.prompt, value) for shot, value in shown(folder)]} for seed, folder in row.folders.items()
        }
        values = [value for run in runs.values() for _, value in run[""]]
        interval = hull(wilson(sum(values), len(values)), share_of(runs))
        records = records_of(row)
        kept, valid = (mean_of(records, metric) for metric in ("psr@1", "valid_rate_kept"))
        lines.append(f"| {row.name} | {written(interval)} | {kept} | {valid} |")
    return lines


def mean_of(records: Sequence[Record], metric: str) -> str:
    """The mean of a number over training seeds, with the hull of their intervals."""
    mine = [record for record in records if record.metric == metric]
    if not mine:
        return "–"
    value = sum(r.value for r in mine) / len(mine)
    return written(Interval(value, min(r.low for r in mine), max(r.high for r in mine)))


def compared(rows: Sequence[Row]) -> list[str]:
    """Paired differences of ICR, image by image, on equal prompts and seeds."""
    by_name = {row.name: row for row in rows}
    lines = ["| ICR, difference of | points | |", "|---|---|---|"]
    for one, other in COMPARED:
        runs, pairs = {}, []
        for seed, folder in by_name[one].folders.items():
            both = list(zip(shown(folder), shown(by_name[other].folders[seed]), strict=True))
            pairs += [(mine, theirs) for (_, mine), (_, theirs) in both]
            runs[seed] = {"": [(shot.prompt, mine - theirs) for (shot, mine), (_, theirs) in both]}
        alone = paired_proportions(*([pair[side] for pair in pairs] for side in (0, 1)))
        interval = hull(alone, share_of(runs, least=-1.0))
        verdict = "lower" if interval.high < 0 else "higher" if interval.low > 0 else "undecided"
        lines.append(f"| {one} − {other} | {written(interval)} | {'one seed' if len(runs) == 1 else verdict} |")
    return lines


def instrument(backbone: Backbone, clean: Path) -> list[str]:
    """How often the detector is right: on clean drawings, on each with a mark, and on these through the autoencoder."""
    lines = [
        "| the detector finds | in clean drawings | in marked ones | … through the autoencoder |",
        "|---|---|---|---|",
    ]
    drawings = torch.stack([shot.pixels() for shot in read_images(clean)])
    judge, threshold = Marks(), ICR().threshold
    for name in judge.labels:
        marked = torch.stack([composed(x, name, 1000 + number).pixels for number, x in enumerate(drawings)])
        with torch.no_grad():
            coded = torch.cat([backbone.decode(backbone.encode_image(part)) for part in marked.split(16)])
        found = [wilson(int((judge.confidence(x, name) > threshold).sum()), len(x)) for x in (drawings, marked, coded)]
        lines.append(f"| {name} | {' | '.join(map(written, found))} |")
    return lines


def written(interval: Interval) -> str:
    """A number with its interval."""
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


if __name__ == "__main__":
    main()
