"""The model in the box: its folder, its vocabulary and its image networks."""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError, reason
from expunge.testbed.parts import Parts

VERSION = "testbed-2"
SHIPPED = Path(__file__).parent / "weights"
"""A diffusers folder of a `StableDiffusionPipeline`; its weights never change under one version."""
FOLDER = Path(os.environ.get("EXPUNGE_TESTBED", SHIPPED))
"""The testbed in use: the one shipped, or a rebuilt one that the environment names."""
KNOWN = {"82d62abe815f6798": "testbed-1", "61b5f8f6c93f8137": VERSION}
"""Versions by how the hash of their pipeline's files begins, as records name it."""
CONCEPTS = Path(__file__).parent / "concepts"
"""Concept sets, one TOML file each."""


def version_of(model_sha256: str) -> str:
    """Which version the hash of a model's files is of; empty for any other model."""
    return KNOWN.get(model_sha256[:16], "")


@cache
def _parts() -> Parts:
    return Parts(FOLDER)


def sha256(*names: str) -> str:
    """Hash of a file of the testbed in use, named by its way in the folder.

    Raises:
        ExpungeError: if it is not there, or is a part of another testbed.
    """
    return _parts().sha256(FOLDER.joinpath(*names))


def tensors(name: str) -> dict[str, Any]:
    """What the file of a network, or of the space that texts and images share, holds; in single precision.

    Raises:
        ExpungeError: if it is damaged, not there, or a part of another testbed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = FOLDER / "networks" / f"{name}.safetensors"
    sha256("networks", file.name)
    try:
        return {k: v.float() for k, v in load_file(file).items()}
    except SafetensorError as error:
        raise ExpungeError(f"'{file}' is damaged: {error}") from error


@cache
def vocabulary() -> dict[str, Any]:
    """What it draws: ``objects`` (name -> category and keywords), ``styles``, ``backgrounds``, ``withheld`` pairs.

    ``styles`` are the icon sets' hands and then the ``artists``.
    """
    file = FOLDER / "vocabulary.json"
    sha256(file.name)
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ExpungeError(f"'{file}' is damaged: expected the testbed's words ({error})") from error


def network(name: str) -> Any:
    """One of the image networks (``judge_a``, ``judge_b``, ``partner``, ``features``), with its weights, on the CPU.

    Raises:
        ExpungeError: also if it is of another architecture, or does not tell as many things apart as the vocabulary names.
    """
    from expunge.testbed.networks import ARCHITECTURES, opened

    if name not in ARCHITECTURES:
        raise ExpungeError(f"no testbed network '{name}': expected one of {', '.join(ARCHITECTURES)}")
    file = FOLDER / "networks" / f"{name}.safetensors"
    try:
        net = opened(name, tensors(name))
    except (KeyError, RuntimeError) as error:
        raise ExpungeError(
            f"'{file}' is of another network: expected the tensors of {name} ({reason(error)})"
        ) from error
    for head, words in (("objects", "objects"), ("style", "styles"), ("background", "backgrounds")):
        asked, count = net.asks.get(head), len(vocabulary()[words])
        if asked not in (None, count):
            raise ExpungeError(
                f"'{file}' tells {asked} {words} apart: expected {count}, as '{FOLDER / 'vocabulary.json'}' names"
            )
    return net


WELL_DRAWN = (
    "house", "bus", "apple", "turtle", "television", "umbrella", "balloon",
    "castle", "ferris wheel", "church", "tractor", "airplane", "sailboat",
    "pineapple", "lemon", "strawberry", "grapes", "octopus", "butterfly", "snail", "crab", "drum",
    "telephone", "laptop", "key", "trophy", "book", "crown", "dress", "hammer", "scissors", "pencil", "microscope",
)  # fmt: skip
"""Objects that it draws in every image of its scores, and of the looks that erasures and searches take at themselves."""


def near(targets: Sequence[str]) -> list[str]:
    """Objects that it draws well, those of the targets' kinds first; none that a target names, by a keyword or a kind."""
    objects, said = vocabulary()["objects"], {target.lower() for target in targets}
    names = {word: {word, row["category"], *row["keywords"]} for word, row in objects.items()}
    kinds = {objects[word]["category"] for word in objects if said & names[word]}
    free = [word for word in WELL_DRAWN if word in objects and not said & names[word]]
    return sorted(free, key=lambda word: objects[word]["category"] not in kinds)
