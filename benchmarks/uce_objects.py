"""UCE on the testbed's objects10, four splits, with and without a retain list, and two edits stacked.

``make bench-uce-objects``. Images go to runs/uce-objects and are made once, so a killed run resumes; records go to
uce-objects.jsonl and the table to uce-objects.md, both beside this file.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.edit import Edit, fingerprint
from expunge.core.query import queries
from expunge.core.record import Record
from expunge.stages import erase, generate, measure, presets
from expunge.store import append_records, read_set
from expunge.testbed import CONCEPTS

RUNS = Path("runs/uce-objects")
HERE = Path(__file__).parent
OUT = HERE / "uce-objects.jsonl"
PER_CLASS = 50
PER_NEVER_NAMED = 2


class Bench:
    """One model, its queries, and the records so far."""

    def __init__(self) -> None:
        self.backbone = backbones.load("testbed")
        self.ten = read_set("objects10", CONCEPTS)
        self.rest = read_set("everyday", CONCEPTS)
        guidance, steps = presets.generation(self.backbone)
        named = queries(list(self.ten.test.prompts), PER_CLASS, self.ten.test.seed, guidance, steps)
        self.asked = named + queries(list(self.rest.test.prompts), PER_NEVER_NAMED, self.rest.test.seed, guidance, steps)
        self.metric = measure.build("esr-psr", {})
        self.records: list[Record] = []

    def edit(self, targets: Sequence[str], retain: Sequence[str]) -> Edit:
        """UCE with the testbed's preset."""
        eraser = erase.build("uce", {}, "testbed")
        return erase.run(self.backbone, "uce", eraser, [Concept(name=t) for t in targets], list(retain))

    def images(self, name: str, edits: Sequence[Edit], labels: set[str] | None = None) -> Path:
        """Images of the queries with these labels (all by default), made once."""
        folder = RUNS / name
        if not folder.exists():
            print(f"generating {name}", flush=True)
            asked = [q for q in self.asked if labels is None or q.label in labels]
            generate.to_folder(self.backbone, edits, asked, folder, batch=100)
        return folder

    def measure(self, folder: Path, setting: str, targets: Sequence[str], kept: Sequence[str], seconds: float) -> None:
        """Records of one setting: targets, kept classes, and what nobody named."""
        for group, retain in (("kept", kept), ("never_named", self.rest.concepts)):
            for r in measure.measure(self.metric, "esr-psr", folder, targets, retain):
                if group == "never_named" and not r.metric.startswith(("psr", "valid_rate_kept")):
                    continue
                metric = r.metric if group == "kept" else f"never_named_{r.metric}"
                extra = {**r.provenance, "setting": setting, "seconds": seconds, "retain_measured": group}
                self.records.append(replace(r, metric=metric, provenance=extra))


def splits(bench: Bench) -> None:
    """Five erased at once, four splits, with and without the other five as retain."""
    original = bench.images("original", [])
    for split, targets in bench.ten.splits.items():
        kept = [c for c in bench.ten.concepts if c not in targets]
        bench.measure(original, f"{split} original", targets, kept, 0.0)
        for told, retain in (("no retain", []), ("retain", kept)):
            edit = bench.edit(targets, retain)
            seconds = edit.provenance.seconds if edit.provenance else 0.0
            folder = bench.images(f"{split}-{told.replace(' ', '-')}", [edit])
            bench.measure(folder, f"{split} {told}", targets, kept, seconds)


def stacked(bench: Bench) -> None:
    """Church, then fish on top of it; each alone; and both detached again."""
    pair = ["church", "fish"]
    base = fingerprint(bench.backbone.tensors(bench.backbone.text_inputs()))
    kept = [c for c in bench.ten.concepts if c not in pair]
    alone = {name: bench.edit([name], kept) for name in pair}
    bench.backbone.attach(alone["church"])
    on_top = bench.edit(["fish"], kept)
    bench.backbone.detach(alone["church"])
    for name in pair:
        folder = bench.images(f"alone-{name}", [alone[name]], set(bench.ten.concepts))
        for r in measure.measure(bench.metric, "esr-psr", folder, [name], kept):
            bench.records.append(replace(r, provenance={**r.provenance, "setting": f"{name} alone"}))
    folder = bench.images("stacked", [alone["church"], on_top], set(bench.ten.concepts))
    for name in pair:
        for r in measure.measure(bench.metric, "esr-psr", folder, [name], kept):
            bench.records.append(replace(r, provenance={**r.provenance, "setting": f"{name} stacked"}))
    after = fingerprint(bench.backbone.tensors(bench.backbone.text_inputs()))
    print(f"detached bit-exact: {base == after}")
    if base != after:
        raise SystemExit("detaching was not bit-exact")


COLUMNS = ("esr@1", "esr@5", "psr@1", "psr@5", "never_named_psr@1", "valid_rate_erased", "valid_rate_kept")


def table(records: Sequence[Record]) -> str:
    """The records as a Markdown table, one row a setting."""
    lines = ["| setting | " + " | ".join(c.replace("_", " ") for c in COLUMNS) + " | targets became | seconds |"]
    lines.append("|---" * (len(COLUMNS) + 3) + "|")
    for setting in dict.fromkeys(r.provenance["setting"] for r in records):
        rows = [r for r in records if r.provenance["setting"] == setting]
        by = {r.metric: r for r in rows}
        cells = [f"{by[c].value:.1f} [{by[c].low:.1f}, {by[c].high:.1f}]" if c in by else "–" for c in COLUMNS]
        became = [f"{r.metric.removeprefix('became@')} {r.value:.0f}" for r in rows if r.metric.startswith("became@")]
        seconds = rows[0].provenance.get("seconds")
        lines.append(f"| {setting} | " + " | ".join(cells) + f" | {', '.join(became[:3])} | {seconds or '–'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and write records and table."""
    bench = Bench()
    splits(bench)
    stacked(bench)
    OUT.unlink(missing_ok=True)
    append_records(OUT, bench.records)
    head = "Testbed. Percent with 95 % intervals; made by `make bench-uce-objects`.\n\n"
    (HERE / "uce-objects.md").write_text(head + table(bench.records))
    print(json.dumps({"records": len(bench.records)}))


if __name__ == "__main__":
    main()
