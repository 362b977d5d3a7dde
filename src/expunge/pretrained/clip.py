"""Texts and images in one space: any CLIP of the hub or of a folder, or the testbed's own."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expunge import testbed
from expunge.core.errors import ExpungeError
from expunge.core.query import Shot, batches
from expunge.pretrained import folders, weights

BATCH = 50


class Clip(NamedTuple):
    """Two towers into one space."""

    images: Callable[[UInt8[Tensor, "b H W 3"]], Float[Tensor, "b d"]]
    texts: Callable[[Sequence[str]], Float[Tensor, "b d"]]
    instrument: dict[str, str]
    """Network, weights and preprocessing, for the record."""
    entries: Callable[[], list[str]]
    """What stands in its tokenizer's vocabulary, by id, without the marks of word ends."""

    @torch.no_grad()
    def scores(self, shots: Sequence[Shot], texts: Sequence[str]) -> list[float]:
        """max(cos, 0) of each image and its text, 0 to 1 (methods.md C4)."""
        unit = torch.nn.functional.normalize
        found: list[float] = []
        for start in range(0, len(shots), BATCH):
            images = torch.cat([self.images(pixels) for pixels in batches(shots[start : start + BATCH], BATCH)])
            words = self.texts(texts[start : start + BATCH])
            found += (unit(images) * unit(words)).sum(-1).clamp_min(0).tolist()
        return found

    @torch.no_grad()
    def similarity(self, pixels: UInt8[Tensor, "i H W 3"], texts: Sequence[str]) -> Float[Tensor, "i t"]:
        """Cosine of every image with every text."""
        unit = torch.nn.functional.normalize
        images = torch.cat([self.images(some) for some in pixels.split(BATCH)])
        return unit(images) @ unit(self.texts(texts)).T


def identity(model: str) -> str:
    """Sha256 of a folder's files; empty for the testbed's CLIP, which never changes, and for a hub id."""
    return "" if model == "testbed" or not Path(model).is_dir() else _sha256(Path(model))


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = weights.origin(str(file)).removeprefix("sha256:")
        digest.update(str(file.relative_to(folder)).encode() + bytes.fromhex(content))
    return digest.hexdigest()


def clip(model: str) -> Clip:
    """Open ``testbed``, a hub id such as ``openai/clip-vit-base-patch32``, or a local folder.

    Raises:
        ExpungeError: if there is no such CLIP, or it cannot be had.
    """
    return _testbed() if model == "testbed" else _published(model)


def _published(model: str) -> Clip:
    from transformers import CLIPModel, CLIPProcessor

    folder = Path(model) if Path(model).is_dir() else _fetched(model)
    net = folders.network(CLIPModel, folder, "a CLIP")
    processor = folders.reader(CLIPProcessor, folder, "a CLIP")
    longest = net.config.text_config.max_position_embeddings

    def images(pixels: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b d"]:
        read = processor.image_processor(list(pixels.permute(0, 3, 1, 2)), return_tensors="pt")
        return net.get_image_features(pixel_values=read["pixel_values"]).pooler_output

    def texts(words: Sequence[str]) -> Float[Tensor, "b d"]:
        read = processor.tokenizer(list(words), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return net.get_text_features(**read).pooler_output

    read_by = type(processor.image_processor).__name__
    told = {"network": model, "weights": f"sha256:{_sha256(folder)}", "preprocessing": f"{read_by}, of uint8"}
    return Clip(images, texts, told, lambda: _entries(processor.tokenizer))


def _fetched(model: str) -> Path:
    """Snapshot of a hub repository: configurations, tokenizer and safetensors."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExpungeError(
            f"no CLIP '{model}': expected testbed, a folder, or a hub id that can be fetched ({reason})"
        ) from error


def _entries(tokenizer: Any) -> list[str]:
    """A vocabulary by id, as its entries read."""
    known: dict[str, int] = tokenizer.get_vocab()
    return [entry.removesuffix("</w>") for entry in sorted(known, key=known.__getitem__)]


def _testbed() -> Clip:
    """The text tower that the testbed's UNet reads, and its image partner, each with its projection."""
    from expunge.testbed import clip as own

    with folders.quietly():
        own.text_vectors([""])  # the tower is read at its first use, and kept
    told = {"network": f"{testbed.VERSION} text tower and partner", "preprocessing": "area resize to 64 x 64"}
    return Clip(own.image_vectors, own.text_vectors, told, lambda: _entries(own.tokenizer()))
