"""UCE on the testbed's ten objects: settings chosen on the dev ten, the table made on the test ten.

``python benchmarks/uce_objects.py dev`` tries settings on ``objects10_dev`` (uce-dev.jsonl, .md). Without a word it runs
the four splits of ``objects10``, with and without a retain list, and two edits stacked (uce-objects.jsonl, .md). Images
go to runs/ and are made once, so a killed run resumes. Edits are computed in float32; images are generated in the
dtype that is fastest here (bfloat16 on a CPU that has it), which every record names.
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
from expunge.store import read_run, read_set, write_records
from expunge.testbed import CONCEPTS

HERE = Path(__file__).parent
FIRST = {"tokens": "tail", "preserve_scale": None, "preserve_empty": True}
"""The authors' first script, but for its anchor."""
PHRASES = ("{}", "a {}", "image of a {}")
SETTINGS: dict[str, dict[str, Any]] = {
    "paper, current script: last word, anchor ''": {},
    "paper, first script: tail, anchor ' '": {**FIRST, "anchor": " "},
    "last word, anchor 'a picture'": {"anchor": "a picture"},
    "tail, anchor 'a picture'": {"tokens": "tail", "anchor": "a picture"},
    "tail, anchor 'a picture', 3 phrases": {"tokens": "tail", "anchor": "a picture", "templates": PHRASES},
    "first script, anchor 'a picture', 3 phrases": {**FIRST, "anchor": "a picture", "templates": PHRASES},
}


class Bench:
    """One model, one part of one concept set, and the records so far."""

    def __init__(self, name: str, part: str, per_class: int, per_never_named: int) -> None:
        self.backbone = backbones.load("testbed")
        self.painter = backbones.load("testbed", dtype=backbones.fast_dtype())
        self.ten = read_set(name, CONCEPTS)
        self.rest = read_set("everyday", CONCEPTS)
        self.part = part
        known = {*read_set("objects10", CONCEPTS).concepts, *read_set("objects10_dev", CONCEPTS).concepts}
        self.never_named = [c for c in self.rest.concepts if c not in known]
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
        """Images of the queries with these labels (all by default), made once for the same edits."""
        folder = Path("runs") / f"uce-{self.part}" / name
        made = read_run(folder).get("edits", []) if folder.exists() else None
        if made is None or [e["id"] for e in made] != [e.id for e in edits]:
            print(f"generating {name}", flush=True)
            asked = [q for q in self.asked if labels is None or q.label in labels]
            generate.to_folder(self.painter, edits, asked, folder, split=self.part, overwrite=True)
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
                extra = {**r.provenance, "setting": setting, "group": group}
                self.records.append(replace(r, metric=metric, provenance=extra))

    def write(self, stem: str, about: str, below: Sequence[str] = ()) -> None:
        """Records and table beside this file."""
        file = HERE / f"{stem}.jsonl"
        write_records(file, self.records)
        (HERE / f"{stem}.md").write_text("\n".join([about, "", table(self.records), *below, ""]))
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


def stacked(bench: Bench) -> list[str]:
    """Church, then fish on top of it; each alone; and both detached again. Returns what that showed, in sentences."""
    pair = ["church", "fish"]
    names = bench.backbone.group("full")
    base = fingerprint(bench.backbone.tensors(names))
    kept = [c for c in bench.ten.concepts if c not in pair]
    alone = {name: bench.edit([name], kept) for name in pair}
    bench.backbone.attach(alone["church"])
    on_top = bench.edit(["fish"], kept)
    bench.backbone.detach(alone["church"])
    for name in pair:
        bench.measure(bench.images(f"alone-{name}", [alone[name]], [name]), f"{name} alone", [name], [], False)
    folder = bench.images("stacked", [alone["church"], on_top], pair)
    lines: list[str] = []
    for name in pair:
        bench.measure(folder, f"{name}, both stacked", [name], [], False)
        esr = {r.provenance["setting"]: r.value for r in bench.records if r.metric == "esr@1"}
        drop = esr[f"{name} alone"] - esr[f"{name}, both stacked"]
        verdict = "met" if drop <= 10 else "missed"
        lines.append(
            f"{name}: ESR-1 stacked is {drop:.1f} points below its value alone (target at most 10: {verdict})."
        )
    exact = fingerprint(bench.backbone.tensors(names)) == base
    return [*lines, f"Both detached: bit-exact: {'yes' if exact else 'NO'}."]


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
    for told in ("original", "no retain", "retain"):
        rows = [r for r in records if r.provenance["setting"] in {f"v{i} {told}" for i in (1, 2, 3, 4)}]
        means = [[r.value for r in rows if r.metric == c] for c in COLUMNS]
        if rows:
            cells = [f"{sum(m) / len(m):.1f} ({min(m):.1f} to {max(m):.1f})" for m in means]
            lines.append(f"| mean of four splits (range), {told} | " + " | ".join(cells) + " | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and write records and table."""
    if sys.argv[1:] == ["dev"]:
        bench = Bench("objects10_dev", "dev", 12, 1)
        choose(bench)
        bench.write("uce-dev", "Testbed, dev ten, split v1, five erased, five retained. Percent with 95 % intervals.")
        return
    bench = Bench("objects10", "test", 50, 2)
    splits(bench)
    below = stacked(bench)
    bench.write(
        "uce-objects", "Testbed, test ten. Percent with 95 % intervals; made by `make bench-uce-objects`.", below
    )


if __name__ == "__main__":
    main()
