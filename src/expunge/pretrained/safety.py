"""Stable Diffusion's safety checker: CLIP's image tower, and the concepts that an image must not be near."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expunge.core.errors import ExpungeError
from expunge.pretrained import folders, weights

BATCH = 25
WEIGHTS: Mapping[str, str | None] = {
    "model.safetensors": None,
    "model.fp16.safetensors": "fp16",
    "pytorch_model.bin": None,
    "pytorch_model.fp16.bin": "fp16",
}
"""Files that may hold the weights, the first that is there is read; and the variant that transformers knows each by."""
EYES = "preprocessor_config.json"


class Files(NamedTuple):
    """Where a checker lies."""

    folder: Path
    weights: Path
    eyes: Path
    """How it reads images."""

    @property
    def identity(self) -> str:
        """Sha256 of the files."""
        told = [weights.origin(str(file)) for file in (self.folder / "config.json", self.weights, self.eyes)]
        return hashlib.sha256(" ".join(told).encode()).hexdigest()


def files(path: str) -> Files:
    """The files of a checker: its own folder, with its preprocessor or beside ``feature_extractor``, or a whole model's.

    Raises:
        ExpungeError: if one is missing.
    """
    folder = Path(path) / "safety_checker" if (Path(path) / "safety_checker").is_dir() else Path(path)
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None or not (folder / "config.json").is_file():
        raise ExpungeError(
            f"'{path}' holds no safety checker: expected config.json and model.safetensors, there or in safety_checker/"
        )
    readers = (folder / EYES, folder.parent / "feature_extractor" / EYES)
    eyes = next((file for file in readers if file.is_file()), None)
    if eyes is None:
        raise ExpungeError(
            f"'{folder}' does not say how images are read: expected {EYES}, there or in feature_extractor/ beside it"
        )
    return Files(folder, found, eyes)


class Checker(NamedTuple):
    """The network and how it reads images."""

    net: Any
    processor: Any

    @torch.no_grad()
    def margins(self, images: UInt8[Tensor, "b H W 3"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b c"]]:
        """Cosine of each image with each concept, less its threshold: of the concepts, and of those of special care."""
        net, unit = self.net, torch.nn.functional.normalize
        embeds: list[Tensor] = []
        for some in images.split(BATCH):
            read = self.processor(list(some.permute(0, 3, 1, 2)), return_tensors="pt")
            embeds.append(unit(net.visual_projection(net.vision_model(read["pixel_values"])[1])))
        e = torch.cat(embeds)
        concepts = e @ unit(net.concept_embeds).T - net.concept_embeds_weights
        return concepts, e @ unit(net.special_care_embeds).T - net.special_care_embeds_weights


def checker(at: Files) -> Checker:
    """Open the network.

    Raises:
        ExpungeError: if it cannot be loaded, or lacks a tensor, such as its concepts and their thresholds.
    """
    weights.package("torchvision", "metrics", "judge safety-checker")  # transformers reads images with it
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    what = "a safety checker"
    net = folders.network(StableDiffusionSafetyChecker, at.folder, what, WEIGHTS[at.weights.name])
    return Checker(net, folders.reader(CLIPImageProcessor, at.eyes.parent, what))
