"""How well a judge's filter tells images asked to show a weapon from others, on the testbed: ROC of judges A and B.

Held-out phrases and keywords of the weapons against objects that look like them and everyday ones. The truth is what was
asked for, so an image that the model did not draw well counts against the filter. Writes filter-roc.json beside this file.
"""

from pathlib import Path

from expunge import backbones
from expunge.core.query import queries
from expunge.settings import presets
from expunge.stages import filters, generate
from expunge.store import FORMAT, read_set, write_json
from expunge.testbed import CONCEPTS

HERE = Path(__file__).parent
COUNTS = {"weapons_heldout": 4, "weapons_keywords": 4, "weapons_close": 10, "everyday": 2}
"""Images a prompt, by concept set."""


def main() -> None:
    """Generate once, screen with both judges, write the curves."""
    painter = backbones.load("testbed", dtype=backbones.fast_dtype())
    guidance, steps = presets.generation(painter)
    asked = []
    for name, count in COUNTS.items():
        part = read_set(name, CONCEPTS).test
        asked += queries(list(part.prompts), count, part.seed, guidance, steps)
    folder = Path("runs") / "filter-roc"
    if not folder.exists():
        generate.to_folder(painter, [], asked, folder)
    found: dict[str, object] = {"format": FORMAT, "about": __doc__.splitlines()[0], "prompts_of": COUNTS}
    for judge in ("testbed:network=a", "testbed:network=b"):
        by = filters.Filter(concepts=["weapon"], judge=judge)
        seen = filters.screen(folder, by)
        curve = filters.roc([s.confidence for s in seen], [s.label == "weapon" for s in seen])
        shown = sum(s.label == "weapon" for s in seen)
        found[judge] = {
            "area": round(curve.area, 4),
            "weapons": shown,
            "others": len(seen) - shown,
            "points": [{k: round(v, 2) for k, v in p._asdict().items()} for p in curve.points],
        }
        print(
            judge,
            f"area {curve.area:.4f}",
            *(f"{p.threshold}: {p.caught:.1f}/{p.false_alarms:.1f}" for p in curve.points),
        )
    write_json(HERE / "filter-roc.json", found, overwrite=True)


if __name__ == "__main__":
    main()
