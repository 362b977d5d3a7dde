"""How well a judge's confidence holds back weapons on the testbed: ROC of judge B, the oracle, and of judge A.

Images of the original model: every prompt of the three weapon tiers, and of everything that is no weapon. What an image shows
is what it was asked for, or what the other judge sees in it. Writes filter-roc.json and filter-roc.md beside this file.
"""

from pathlib import Path

import torch

from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.query import Query, queries
from expunge.core.record import Interval
from expunge.stages import generate, presets
from expunge.stages.filters import Filter, roc
from expunge.store import read_set, write_json
from expunge.testbed import CONCEPTS

HERE = Path(__file__).parent
SETS = {"weapons_named": 10, "weapons_keywords": 8, "weapons_heldout": 8, "objects10": 10, "everyday": 3}
"""Images a prompt."""
CONCEPT = "weapon"
RESAMPLES = 500


def main() -> None:
    """Draw, ask both judges, write."""
    painter = backbones.load("testbed", dtype=backbones.fast_dtype())
    guidance, steps = presets.generation(painter)
    asked: list[Query] = []
    for name, count in SETS.items():
        part = read_set(name, CONCEPTS).test
        asked += queries(part.prompts, count, part.seed, guidance, steps)
    images = torch.cat(list(generate.render(painter, asked)))
    labelled = [q.label == CONCEPT for q in asked]
    rows = []
    for network, other in (("b", "a"), ("a", "b")):
        by = Filter(concepts=(CONCEPT,), judge=f"testbed:network={network}")
        sure = torch.cat([by.confidences(batch)[:, 0] for batch in images.split(250)]).tolist()
        witness = Catalog("judges").open(f"testbed:network={other}")
        weapons = set(witness.label_ids(CONCEPT))
        best = torch.cat([witness.scores(batch).argmax(1) for batch in images.split(250)]).tolist()
        for truth, shows in (("asked for", labelled), (f"seen by judge {other.upper()}", [b in weapons for b in best])):
            curve = roc(sure, shows)
            area = interval(sure, shows, [q.prompt for q in asked])
            rows.append(
                {
                    "judge": network.upper(),
                    "truth": truth,
                    "images": len(shows),
                    "showing": sum(shows),
                    "area": {k: round(v, 4) for k, v in area._asdict().items()},
                    "points": [{k: round(v, 2) for k, v in p._asdict().items()} for p in curve.points],
                }
            )
    write_json(HERE / "filter-roc.json", {"format": 1, "concept": CONCEPT, "sets": SETS, "rows": rows}, overwrite=True)
    (HERE / "filter-roc.md").write_text(table(rows))


def interval(sure: list[float], shows: list[bool], prompts: list[str]) -> Interval:
    """The area under the curve, and 95 % of it over resampled prompts."""
    by_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(i)
    groups, generator = list(by_prompt.values()), torch.Generator().manual_seed(0)
    areas = []
    for _ in range(RESAMPLES):
        drawn = torch.randint(len(groups), (len(groups),), generator=generator).tolist()
        rows = [i for g in drawn for i in groups[g]]
        areas.append(roc([sure[i] for i in rows], [shows[i] for i in rows]).area)
    low, high = torch.quantile(torch.tensor(areas, dtype=torch.float64), torch.tensor([0.025, 0.975]).double()).tolist()
    return Interval(roc(sure, shows).area, low, high)


def table(rows: list[dict]) -> str:
    """The rows in Markdown: an area each, and what thresholds hold back."""
    lines = [
        "Testbed: the post-filter for weapons on the original model's images, by judge and by what counts as the truth. "
        "Caught: weapons held back; false: other images held back; percent. Area under the curve with its 95 % interval "
        "over prompts.",
        "",
        "| judge | truth | images | weapons | area | "
        + " | ".join(f"{p['threshold']}" for p in rows[0]["points"])
        + " |",
        "|---" * (5 + len(rows[0]["points"])) + "|",
    ]
    for r in rows:
        cells = [f"{p['caught']:.1f} / {p['false_alarms']:.1f}" for p in r["points"]]
        area = "{value:.4f} [{low:.4f}, {high:.4f}]".format(**r["area"])
        lines.append(f"| {r['judge']} | {r['truth']} | {r['images']} | {r['showing']} | {area} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Columns of numbers are thresholds: caught / false alarms.", ""])


if __name__ == "__main__":
    main()
