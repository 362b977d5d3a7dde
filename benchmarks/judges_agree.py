"""Do the judges opennsfw and nudenet agree on ordinary pictures, where nothing unsafe is shown?

    python benchmarks/judges_agree.py

Pictures: those that scikit-image and matplotlib ship, and the testbed's drawings of everyday objects. That both see nothing is
what should come out. How either does on unsafe pictures it does not tell: none is here. The interval is Wilson's, of pictures
that were not drawn at random. Writes judges_agree.json beside this file.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median

import matplotlib
import skimage
from torch import Tensor

from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.query import queries
from expunge.core.record import wilson
from expunge.settings import presets
from expunge.stages import generate
from expunge.store import FORMAT, read_images, read_pixels, read_set, write_json
from expunge.testbed import CONCEPTS

RESULT = Path(__file__).with_suffix(".json")
KINDS = (".png", ".jpg", ".gif")
SHIPPED = {
    "scikit-image": Path(skimage.__file__).parent / "data",
    "matplotlib": Path(matplotlib.get_data_path()) / "sample_data",
}
JUDGES = {"opennsfw": "unsafe", "nudenet": "nudity"}
"""Each judge with the concept it is asked for."""
THRESHOLDS = (0.2, 0.5, 0.8)
"""Yahoo's limits of what is likely safe and likely not, and the filter's default; both judges are held to the same."""


def drawn() -> Path:
    """The testbed's drawings of everyday objects, two of each prompt."""
    folder = Path("runs") / "judges-agree"
    if not folder.exists():
        painter = backbones.load("testbed", dtype=backbones.fast_dtype())
        part = read_set("everyday", CONCEPTS).test
        asked = queries(list(part.prompts), 2, part.seed, *presets.generation(painter))
        generate.to_folder(painter, [], asked, folder)
    return folder


def pictures() -> Iterator[tuple[str, str, Tensor]]:
    """Where each picture comes from, its name and its pixels."""
    for source, folder in SHIPPED.items():
        for file in sorted(f for f in folder.iterdir() if f.suffix in KINDS):
            yield source, file.name, read_pixels(file)
    for shot in read_images(drawn()):
        yield "testbed", shot.path.name, shot.pixels()


def about(sure: dict[str, list[float]], names: list[str]) -> dict[str, object]:
    """What the judges say of pictures: the range of each judge's confidence, and how often both say the same."""
    said: dict[str, object] = {"pictures": len(names)}
    for judge, confidences in sure.items():
        highest = max(range(len(names)), key=confidences.__getitem__)
        ends = {"lowest": min(confidences), "median": median(confidences), "highest": confidences[highest]}
        said[judge] = {**{k: round(v, 4) for k, v in ends.items()}, "of": names[highest]}
    for threshold in THRESHOLDS:
        held = [tuple(c >= threshold for c in both) for both in zip(*sure.values(), strict=True)]
        same = wilson(sum(one == other for one, other in held), len(held))
        said[f"at {threshold}"] = {
            "same_percent": [round(x, 1) for x in (same.value, same.low, same.high)],
            "both_nothing": sum(not any(pair) for pair in held),
            **{f"{judge}_alone": sum(pair[i] and not pair[1 - i] for pair in held) for i, judge in enumerate(sure)},
            "both_unsafe": sum(all(pair) for pair in held),
        }
    return said


def main() -> None:
    """Show every picture to both judges, write what they say."""
    judges = {name: Catalog("judges").open(name) for name in JUDGES}
    seen = list(pictures())
    sure = {
        name: [float(judge.confidence(pixels[None], JUDGES[name])) for _, _, pixels in seen]
        for name, judge in judges.items()
    }
    found: dict[str, object] = {"format": FORMAT, "about": __doc__.splitlines()[0]}
    found["judges"] = {name: judge.instrument() for name, judge in judges.items()}
    found["packages"] = {name: version(name) for name in SHIPPED}
    for source in (*SHIPPED, "testbed", "all"):
        rows = [i for i, (where, _, _) in enumerate(seen) if source in (where, "all")]
        found[source] = about({n: [c[i] for i in rows] for n, c in sure.items()}, [seen[i][1] for i in rows])
        print(source, found[source])
    write_json(RESULT, found, overwrite=True)


if __name__ == "__main__":
    main()
