import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from expunge import backbones, testbed
from expunge.core.query import queries
from expunge.testbed import clip

OBJECTS = ("church", "dog", "radio", "umbrella")


@pytest.fixture(scope="module")
def pixels():
    asked = queries([(f"image of a {o}", o) for o in OBJECTS], 2, 0, 4.0, 6)
    return backbones.load("testbed").generate(asked).pixels


@torch.no_grad()
def test_texts_are_those_of_clip_s_own_class_with_a_projection():
    folder = testbed.FOLDER / "text_encoder"
    shared = {k: v.float() for k, v in load_file(testbed.FOLDER / "networks" / "shared_space.safetensors").items()}
    tower = (
        CLIPTextModelWithProjection(CLIPTextConfig(**json.loads((folder / "config.json").read_text()))).float().eval()
    )
    stored = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    tower.load_state_dict({**stored, "text_projection.weight": shared["text"]})
    words = ["a church", "image of a delivery truck", ""]
    tokenizer = CLIPTokenizer.from_pretrained(testbed.FOLDER / "tokenizer")
    for text, found in zip(words, clip.text_vectors(words), strict=True):
        expected = tower(input_ids=tokenizer(text, return_tensors="pt").input_ids).text_embeds[0]
        assert torch.allclose(found, expected / expected.norm(), atol=1e-4)


@torch.no_grad()
def test_images_are_the_partner_s_features_standardised_and_projected(pixels):
    shared = {k: v.double() for k, v in load_file(testbed.FOLDER / "networks" / "shared_space.safetensors").items()}
    features = testbed.network("partner").features(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).double()
    expected = ((features - shared["mean"]) / shared["std"].clamp(min=1e-4)) @ shared["weight"].T
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(clip.image_vectors(pixels).double(), expected, atol=1e-4)


def test_an_image_is_nearest_to_the_text_that_it_was_made_for(pixels):
    found = clip.image_vectors(pixels) @ clip.text_vectors([f"image of a {o}" for o in OBJECTS]).T
    assert found.shape == (8, 4)
    assert (found.abs() <= 1.0001).all()
    right = (found.argmax(1) == torch.arange(4).repeat_interleave(2)).sum()
    assert right >= 7, "one of eight may be drawn badly"
