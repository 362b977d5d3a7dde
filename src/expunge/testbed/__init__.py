"""The model in the box: its folder, its vocabulary and its image networks."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError

VERSION = "testbed-1"
SHIPPED = Path(__file__).parent / "weights"
"""A diffusers folder of a `StableDiffusionPipeline`; its weights never change under one version."""
FOLDER = Path(os.environ.get("EXPUNGE_TESTBED", SHIPPED))
"""The testbed in use: the one shipped, or a rebuilt one that the environment names."""
CONCEPTS = Path(__file__).parent / "concepts"
"""Concept sets, one TOML file each."""


@cache
def vocabulary() -> dict[str, Any]:
    """What it can draw: ``objects`` (name -> category and keywords), ``styles``, ``backgrounds``, ``withheld`` pairs."""
    return json.loads((FOLDER / "vocabulary.json").read_text())


def network(name: str) -> Any:
    """One of the image networks (``judge_a``, ``judge_b``, ``partner``, ``features``), with its weights, on the CPU."""
    from safetensors.torch import load_file

    from expunge.testbed.networks import ARCHITECTURES, Recognizer

    if name not in ARCHITECTURES:
        raise ExpungeError(f"no testbed network '{name}': expected one of {', '.join(ARCHITECTURES)}")
    tensors = {k: v.float() for k, v in load_file(FOLDER / "networks" / f"{name}.safetensors").items()}
    heads = {k.split(".")[1]: len(v) for k, v in tensors.items() if k.startswith("heads.") and k.endswith(".bias")}
    net = Recognizer(name, heads)
    net.load_state_dict({k: v.to(net.state_dict()[k].dtype) for k, v in tensors.items()})
    return net.eval().requires_grad_(False)
