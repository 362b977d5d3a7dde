"""Two UCE edits stacked on the testbed, fish on top of church: does either lose its effect, and do they come off again?

Writes uce-stacked.jsonl and uce-stacked.md beside this file. Images go to runs/ and are made once.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.edit import Edit, fingerprint
from expunge.core.query import queries
from expunge.core.record import Record
from expunge.settings import presets
from expunge.stages import erase, generate, measure
from expunge.store import read_run, read_set, write_records
from expunge.testbed import CONCEPTS

HERE = Path(__file__).parent
PAIR = ["church", "fish"]


def main() -> None:
    """Erase, stack, generate 50 images of each target, measure, detach."""
    backbone, painter = backbones.load("testbed"), backbones.load("testbed", dtype=backbones.fast_dtype())
    ten = read_set("objects10", CONCEPTS)
    kept = [c for c in ten.concepts if c not in PAIR]
    base = fingerprint(backbone.tensors(backbone.group("full")))
    eraser = erase.build("uce", {}, "testbed")

    def edit(name: str) -> Edit:
        return erase.run(backbone, "uce", eraser, [Concept(name=name)], kept)

    def measured(setting: str, edits: Sequence[Edit], targets: Sequence[str]) -> list[Record]:
        guidance, steps = presets.generation(painter)
        prompts = [(p, c) for p, c in ten.test.prompts if c in targets]
        folder = Path("runs") / "uce-stacked" / setting.replace(" ", "-")
        made = read_run(folder).get("edits", []) if folder.exists() else None
        if made is None or [e["id"] for e in made] != [e.id for e in edits]:
            asked = queries(prompts, 50, ten.test.seed, guidance, steps)
            generate.to_folder(painter, edits, asked, folder, overwrite=True)
        metric = measure.build("esr-psr", {})
        return [
            replace(r, provenance={**r.provenance, "setting": setting})
            for target in targets
            for r in measure.measure(metric, "esr-psr", folder, [target], [])
        ]

    church, fish = edit("church"), edit("fish")
    backbone.attach(church)
    on_top = edit("fish")
    backbone.attach(on_top)
    backbone.detach(on_top)
    backbone.detach(church)
    exact = fingerprint(backbone.tensors(backbone.group("full"))) == base
    records = measured("church alone", [church], ["church"]) + measured("fish alone", [fish], ["fish"])
    both = measured("both stacked", [church, on_top], PAIR)
    write_records(HERE / "uce-stacked.jsonl", records + both)

    def esr(rows: list[Record], name: str) -> Record:
        return next(r for r in rows if r.metric == "esr@1" and r.concepts == [name])

    lines = ["Testbed: UCE with its preset and eight retained objects, ESR-1 in percent, n = 50 each.", ""]
    lines += ["| target | alone | both stacked | lost by stacking (at most 10) |", "|---|---|---|---|"]
    for name in PAIR:
        alone, stacked = esr(records, name), esr(both, name)
        lost = alone.value - stacked.value
        shown = [f"{r.value:.1f} [{r.low:.1f}, {r.high:.1f}]" for r in (alone, stacked)]
        lines.append(f"| {name} | {' | '.join(shown)} | {lost:.1f} ({'met' if lost <= 10 else 'missed'}) |")
    lines += ["", f"Both detached, the model's tensors are bit-exact: {'yes' if exact else 'NO'}.", ""]
    (HERE / "uce-stacked.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
