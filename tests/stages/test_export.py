"""Exports that open elsewhere: images equal those of the edited model."""

import pytest
import torch

import expunge
from conftest import tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline
from expunge import backbones
from expunge.core.adapter import Adapter
from expunge.core.errors import ExpungeError
from expunge.maths.training import thin
from expunge.stages import export

MAKERS = {"sd": tiny_pipeline, "sdxl": tiny_xl_pipeline, "sd3": tiny_sd3_pipeline}
CALL = {"num_inference_steps": 3, "height": 16, "width": 16, "guidance_scale": 5.0, "output_type": "latent"}


def adapter(backbone, rank, scale, seed, gates=()):
    generator = torch.Generator().manual_seed(seed)
    factors = thin(backbone, backbone.layers("transformer"), rank, generator)
    drawn = {n: 0.2 * torch.randn(t.shape, generator=generator) if n.endswith(".up") else t for n, t in factors.items()}
    return Adapter(drawn, scale=scale, gates=gates)


@pytest.mark.parametrize(
    ("family", "layout"), [("sd", "diffusers"), ("sd", "kohya"), ("sdxl", "diffusers"), ("sd3", "diffusers")]
)
def test_a_lora_is_loaded_by_diffusers_itself(tmp_path, family, layout):
    held = MAKERS[family]()
    backbone = backbones.of(held)
    edits = [adapter(backbone, 2, 0.5, 0), adapter(backbone, 1, 2.0, 1)]
    noise = backbone.noise(5)
    plain = held("dog", latents=noise, **CALL).images
    for edit in edits:
        edit.attach(held)
    expected = held("dog", latents=noise, **CALL).images
    for edit in edits:
        edit.detach(held)
    export.lora_to_folder(backbone, edits, tmp_path / "lora", layout)
    fresh = MAKERS[family]()
    fresh.load_lora_weights(tmp_path / "lora")
    theirs = fresh("dog", latents=noise, **CALL).images
    assert torch.allclose(theirs, expected, atol=1e-3)
    assert not torch.allclose(theirs, plain, atol=1e-2)
    assert "load_lora_weights" in (tmp_path / "lora" / "README.md").read_text()


@pytest.mark.parametrize("family", MAKERS)
def test_a_whole_model_is_loaded_by_diffusers_itself(tmp_path, family):
    import diffusers

    held = MAKERS[family]()
    edit = expunge.erase(held, "church", settings={"anchor": "cat"})
    both = [edit, adapter(backbones.of(held), 2, 0.5, 0)]
    export.to_folder(backbones.of(held), both, tmp_path / "model")
    noise = backbones.of(held).noise(5)
    for one in both:
        one.attach(held)
    expected = held("a church", latents=noise, **CALL).images
    fresh = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    fresh.set_progress_bar_config(disable=True)
    assert type(fresh) is type(held)
    assert torch.allclose(fresh("a church", latents=noise, **CALL).images, expected, atol=1e-3)


def test_what_is_no_lora_is_refused_in_a_line(tmp_path):
    held = tiny_pipeline()
    backbone = backbones.of(held)
    weights = expunge.erase(held, "church", settings={"anchor": "cat"})
    gated = adapter(backbone, 1, 1.0, 0, gates=[["church"]])
    for edits, words in (([weights], "is a weights edit"), ([gated], "gates"), ([], "no edit")):
        with pytest.raises(ExpungeError, match=words):
            export.lora_to_folder(backbone, edits, tmp_path / "lora", "diffusers")
    with pytest.raises(ExpungeError, match="kohya layout of a sdxl model"):
        xl = backbones.of(tiny_xl_pipeline())
        export.lora_to_folder(xl, [adapter(xl, 1, 1.0, 0)], tmp_path / "lora", "kohya")
    assert not (tmp_path / "lora").exists()
