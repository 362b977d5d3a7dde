"""The testbed's own CLIP: its text tower and that tower's image partner, which were trained to agree."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expunge import testbed
from expunge.testbed.networks import as_input


@torch.no_grad()
def image_vectors(images: UInt8[Tensor, "i H W 3"]) -> Float[Tensor, "i d"]:
    """Unit vectors of images in the space that they share with texts."""
    space = _space()
    features = (_partner().features(as_input(images)) - space["mean"]) / space["std"].clamp(min=1e-4)
    return torch.nn.functional.normalize(features @ space["weight"].T, dim=-1)


@torch.no_grad()
def text_vectors(texts: Sequence[str]) -> Float[Tensor, "t d"]:
    """Unit vectors of texts in the space that they share with images: those of their end tokens."""
    words, tower = _reader()
    length = tower.config.max_position_embeddings
    ids = words(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
    return torch.nn.functional.normalize(tower(input_ids=ids).pooler_output @ _space()["text"].T, dim=-1)


def tokenizer() -> Any:
    """What the text tower's words are cut by."""
    return _reader()[0]


@cache
def _space() -> dict[str, Tensor]:
    return testbed.tensors("shared_space")


@cache
def _partner() -> Any:
    return testbed.network("partner")


@cache
def _reader() -> tuple[Any, Any]:
    """The tokenizer, and the text tower in float32."""
    from transformers import CLIPTextModel, CLIPTokenizer

    for part in ("text_encoder", "tokenizer"):
        for file in (testbed.FOLDER / part).glob("*.*"):
            testbed.sha256(part, file.name)
    tower = CLIPTextModel.from_pretrained(testbed.FOLDER / "text_encoder", dtype=torch.float32)
    return CLIPTokenizer.from_pretrained(testbed.FOLDER / "tokenizer"), tower.eval().requires_grad_(False)
