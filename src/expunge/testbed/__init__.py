"""The model in the box: its folder, its vocabulary and its image networks."""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError

VERSION = "testbed-2"
SHIPPED = Path(__file__).parent / "weights"
"""A diffusers folder of a `StableDiffusionPipeline`; its weights never change under one version."""
FOLDER = Path(os.environ.get("EXPUNGE_TESTBED", SHIPPED))
"""The testbed in use: the one shipped, or a rebuilt one that the environment names."""
CONCEPTS = Path(__file__).parent / "concepts"
"""Concept sets, one TOML file each."""


@cache
def vocabulary() -> dict[str, Any]:
    """What it draws: ``objects`` (name -> category and keywords), ``styles``, ``backgrounds``, ``withheld`` pairs.

    ``styles`` are the icon sets' hands and then the ``artists``.
    """
    return json.loads((FOLDER / "vocabulary.json").read_text())


def network(name: str) -> Any:
    """One of the image networks (``judge_a``, ``judge_b``, ``partner``, ``features``), with its weights, on the CPU."""
    from safetensors.torch import load_file

    from expunge.testbed.networks import ARCHITECTURES, opened

    if name not in ARCHITECTURES:
        raise ExpungeError(f"no testbed network '{name}': expected one of {', '.join(ARCHITECTURES)}")
    return opened(name, load_file(FOLDER / "networks" / f"{name}.safetensors"))


WELL_DRAWN = (
    "house", "bus", "apple", "turtle", "guitar", "television", "umbrella", "balloon",
    "castle", "fountain", "ferris wheel", "church", "tractor", "airplane", "sailboat",
    "pineapple", "lemon", "strawberry", "grapes", "octopus", "butterfly", "snail", "crab", "drum",
    "telephone", "camera", "laptop", "key", "trophy", "book", "crown", "dress", "hammer", "scissors", "pencil", "microscope",
)  # fmt: skip
"""Objects that it draws in every image of its scores, and of the looks that erasures and searches take at themselves."""


def near(targets: Sequence[str]) -> list[str]:
    """Objects that it draws well, those of the targets' kinds first; none that a target names, by a keyword or a kind."""
    objects, said = vocabulary()["objects"], {target.lower() for target in targets}
    names = {word: {word, row["category"], *row["keywords"]} for word, row in objects.items()}
    kinds = {objects[word]["category"] for word in objects if said & names[word]}
    free = [word for word in WELL_DRAWN if word in objects and not said & names[word]]
    return sorted(free, key=lambda word: objects[word]["category"] not in kinds)
