"""What a UCE edit leaves of a target in keys and values, by word: the testbed's text tower and random weights.

    python benchmarks/uce_left.py

`uce_left.json` has, for each text and setting, how far keys and values of "church" still are from those of the text without
it, from its last word on (1: untouched): at that word, and the least and most after it. The pipelines of random weights are
those of the tests, of tiny sizes. No image is drawn.
"""

import json
import sys
from pathlib import Path

from torch import Tensor

from expunge import backbones
from expunge.backbones.unet import UNetBackbone
from expunge.core.concept import Concept
from expunge.core.eraser import Eraser, Task
from expunge.stages import erase

RESULT = Path(__file__).with_suffix(".json")


def left(model: UNetBackbone, eraser: Eraser, text: str, like: str) -> Tensor:
    """How far keys and values of ``text``, from its last word on, still are from those of ``like``: 1 is untouched."""
    (step,) = eraser.steps(model, Task(targets=[Concept(name="church")], retain=()))
    replaced = step.edit().replaced
    ids = model.tokenize([text, like])
    embeds, (last, goal) = model.encode(ids).embeds, (model.end(ids) - 1).tolist()
    count = ids.shape[1] - last
    c, g = embeds[0, last:], embeds[1, goal : goal + count]
    before, after = c.new_zeros(count), c.new_zeros(count)
    for name, w in model.stored(list(replaced)).items():
        before += (c @ w.T - g @ w.T).square().sum(-1)
        after += (c @ replaced[name].T - g @ w.T).square().sum(-1)
    return (after / before).sqrt()


def main() -> None:
    """Measure the script's setting and each kind's preset."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import sd2_pipeline, tiny_xl_pipeline  # pyright: ignore[reportMissingImports]

    testbed = backbones.load("testbed")
    rows = []
    for name, model, kind, text, like in (
        ("testbed", testbed, "sd", "church", ""),
        ("testbed", testbed, "sd", "a drawing of a church", "a drawing of a"),
        ("random weights, SD 2's padding", backbones.of(sd2_pipeline()), "sd", "church", ""),
        ("random weights, XL's two encoders", backbones.of(tiny_xl_pipeline()), "sdxl", "church", ""),
    ):
        for setting, preset in (("last", None), ("preset", kind)):
            found = left(model, erase.build("uce", {}, preset), text, like).tolist()
            row = {"model": name, "text": text, "settings": setting, "last": found[0]}
            row |= {"least_after": min(found[1:]), "most_after": max(found[1:])}
            rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()
