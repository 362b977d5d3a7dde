"""UCE on the testbed's ten objects: settings chosen on the dev ten, the table made on the test ten.

``python benchmarks/uce_objects.py dev`` tries settings on ``objects10_dev`` (uce-dev.jsonl, .md). Without a word it runs
the four splits of ``objects10``, with and without a retain list, and two edits stacked (uce-objects.jsonl, .md). Images
go to runs/ and are made once, so a killed run resumes.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.edit import Edit, fingerprint
from expunge.core.query import queries
from expunge.core.record import Record
from expunge.stages import erase, generate, measure, presets
from expunge.store import append_records, read_set
from expunge.testbed import CONCEPTS

HERE = Path(__file__).parent
SETTINGS: dict[str, dict[str, Any]] = {
    "paper (new script): last, anchor ''": {},
    "old script: tail, anchor ' '": {"tokens": "tail", "anchor": " "},
    "last, anchor a picture": {"anchor": "a picture"},
    "tail, anchor a picture": {"tokens": "tail", "anchor": "a picture"},
    "tail, a picture, article": {"tokens": "tail", "anchor": "picture", "templates": ("a {}",)},
    "tail, a picture, 3 templates": {
        "tokens": "tail",
        "anchor": "picture",
        "templates": ("{}", "a {}", "image of a {}"),
    },
}


class Bench:
    """One model, one part of one concept set, and the records so far."""

    def __init__(self, name: str, part: str, per_class: int, per_never_named: int) -> None:
        self.backbone = backbones.load("testbed")
        self.ten = read_set(name, CONCEPTS)
        self.rest = read_set("everyday", CONCEPTS)
        self.part = part
        self.never_named = [c for c in self.rest.concepts if c not in self.ten.concepts]
        guidance, steps = presets.generation(self.backbone)
        mine, others = self.ten.part(part), self.rest.part(part)
        other_prompts = [(p, c) for p, c in others.prompts if c in self.never_named]
        self.asked = queries(list(mine.prompts), per_class, mine.seed, guidance, steps)
        self.asked += queries(other_prompts, per_never_named, others.seed, guidance, steps)
        self.metric = measure.build("esr-psr", {})
        self.records: list[Record] = []

    def edit(self, targets: Sequence[str], retain: Sequence[str], settings: dict[str, Any] | None = None) -> Edit:
        """UCE with the testbed's preset, or with exactly ``settings``."""
        eraser = erase.build("uce", settings or {}, "testbed" if settings is None else None)
        return erase.run(self.backbone, "uce", eraser, [Concept(name=t) for t in targets], list(retain))

    def images(self, name: str, edits: Sequence[Edit], labels: Sequence[str] | None = None) -> Path:
        """Images of the queries with these labels (all by default), made once."""
        folder = Path("runs") / f"uce-{self.part}" / name
        if not folder.exists():
            print(f"generating {name}", flush=True)
            asked = [q for q in self.asked if labels is None or q.label in labels]
            generate.to_folder(self.backbone, edits, asked, folder, split=self.part, batch=100)
        return folder

    def measure(
        self, folder: Path, setting: str, targets: Sequence[str], kept: Sequence[str], never: bool = True
    ) -> None:
        """Records of one setting: targets, kept classes, and what nobody named."""
        groups = [("kept", list(kept))] + ([("never_named", self.never_named)] if never else [])
        for group, retain in groups:
            for r in measure.measure(self.metric, "esr-psr", folder, targets, retain):
                if group == "never_named" and not r.metric.startswith(("psr", "valid_rate_kept")):
                    continue
                metric = r.metric if group == "kept" else f"never_named_{r.metric}"
                extra = {**r.provenance, "setting": setting, "retain_measured": group}
                self.records.append(replace(r, metric=metric, provenance=extra))

    def write(self, stem: str, about: str) -> None:
        """Records and table beside this file."""
        file = HERE / f"{stem}.jsonl"
        file.unlink(missing_ok=True)
        append_records(file, self.records)
        (HERE / f"{stem}.md").write_text(f"{about}\n\n{table(self.records)}")
        print(json.dumps({"records": len(self.records), "file": str(file)}))


def splits(bench: Bench) -> None:
    """Five erased at once, four splits, with and without the other five as retain."""
    original = bench.images("original", [])
    for split, targets in bench.ten.splits.items():
        kept = [c for c in bench.ten.concepts if c not in targets]
        bench.measure(original, f"{split} original", targets, kept)
        for told, retain in (("no retain", []), ("retain", kept)):
            folder = bench.images(f"{split}-{told.replace(' ', '-')}", [bench.edit(targets, retain)])
            bench.measure(folder, f"{split} {told}", targets, kept)


def stacked(bench: Bench) -> None:
    """Church, then fish on top of it; each alone; and both detached again."""
    pair = ["church", "fish"]
    names = bench.backbone.group("full")
    base = fingerprint(bench.backbone.tensors(names))
    kept = [c for c in bench.ten.concepts if c not in pair]
    alone = {name: bench.edit([name], kept) for name in pair}
    bench.backbone.attach(alone["church"])
    on_top = bench.edit(["fish"], kept)
    bench.backbone.detach(alone["church"])
    for name in pair:
        bench.measure(bench.images(f"alone-{name}", [alone[name]], [name, *kept]), f"{name} alone", [name], kept, False)
    folder = bench.images("stacked", [alone["church"], on_top], [*pair, *kept])
    for name in pair:
        bench.measure(folder, f"{name}, both stacked", [name], kept, False)
    if fingerprint(bench.backbone.tensors(names)) != base:
        raise SystemExit("detaching was not bit-exact")
    print("both detached: bit-exact")


def choose(bench: Bench) -> None:
    """Every setting on the dev ten's first split, with the other five as retain."""
    targets = bench.ten.splits["v1"]
    kept = [c for c in bench.ten.concepts if c not in targets]
    bench.measure(bench.images("original", []), "original", targets, kept)
    for name, settings in SETTINGS.items():
        folder = bench.images("".join(c if c.isalnum() else "-" for c in name), [bench.edit(targets, kept, settings)])
        bench.measure(folder, name, targets, kept)


COLUMNS = ("esr@1", "esr@5", "psr@1", "psr@5", "never_named_psr@1", "valid_rate", "valid_rate_kept")


def table(records: Sequence[Record]) -> str:
    """The records as a Markdown table, one row a setting."""
    lines = ["| setting | " + " | ".join(c.replace("_", " ") for c in COLUMNS) + " | targets became | seconds |"]
    lines.append("|---" * (len(COLUMNS) + 3) + "|")
    for setting in dict.fromkeys(r.provenance["setting"] for r in records):
        rows = [r for r in records if r.provenance["setting"] == setting]
        by = {r.metric: r for r in rows}
        cells = [f"{by[c].value:.1f} [{by[c].low:.1f}, {by[c].high:.1f}]" if c in by else "–" for c in COLUMNS]
        became = [f"{r.metric.removeprefix('became@')} {r.value:.0f}" for r in rows if r.metric.startswith("became@")]
        seconds = sum(e["seconds"] for e in rows[0].provenance["made_by"])
        lines.append(f"| {setting} | " + " | ".join(cells) + f" | {', '.join(became[:3])} | {seconds:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and write records and table."""
    if sys.argv[1:] == ["dev"]:
        bench = Bench("objects10_dev", "dev", 12, 1)
        choose(bench)
        bench.write("uce-dev", "Testbed, dev ten, split v1, five erased, five retained. Percent with 95 % intervals.")
        return
    bench = Bench("objects10", "test", 50, 1)
    splits(bench)
    stacked(bench)
    bench.write("uce-objects", "Testbed, test ten. Percent with 95 % intervals; made by `make bench-uce-objects`.")


if __name__ == "__main__":
    main()
