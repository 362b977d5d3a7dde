"""Exports that write only the shards an edit touches."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import expunge
from expunge import backbones
from expunge.core.errors import ExpungeError
from expunge.stages import export, shards
from tiny import tiny_flux_pipeline, tiny_pipeline


@pytest.fixture
def folder(tmp_path):
    """FLUX in several shards, in bfloat16."""
    tiny_flux_pipeline().to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    return tmp_path / "model"


def test_only_the_shards_that_an_edit_touches_are_written_and_the_model_is_not_built(folder, tmp_path):
    backbone = backbones.load(str(folder), dtype="bfloat16")
    edit = expunge.erase(backbone, "dog", settings={"anchor": "cat"})
    index = json.loads((folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    touched = {index["weight_map"][name.removeprefix("transformer.")] for name in edit.tensors()}
    assert 0 < len(touched) < len(set(index["weight_map"].values()))
    fresh = backbones.load(str(folder), dtype="bfloat16")
    written = shards.to_folder(fresh, [edit], tmp_path / "out")
    assert not fresh._parts.built("transformer")
    assert not fresh._parts.built("text_encoder_2")
    assert written.files == len(touched)
    for file in folder.rglob("*.safetensors"):
        copy = tmp_path / "out" / file.relative_to(folder)
        assert copy.samefile(file) == (file.name not in touched or file.parent.name != "transformer")
        if not copy.samefile(file):
            old, new = load_file(file), load_file(copy)
            changed = {n for n in old if not torch.equal(old[n], new[n])}
            assert changed == {
                n.removeprefix("transformer.") for n in edit.tensors() if n.removeprefix("transformer.") in old
            }
            assert all(torch.equal(new[n], edit.tensors()[f"transformer.{n}"]) for n in changed)
    export.to_folder(backbone, [edit], tmp_path / "whole")
    pipes = [
        diffusers.FluxPipeline.from_pretrained(tmp_path / name, torch_dtype=torch.bfloat16) for name in ("out", "whole")
    ]
    theirs = [dict(pipe.transformer.named_parameters()) for pipe in pipes]
    assert all(torch.equal(theirs[0][n], theirs[1][n]) for n in theirs[0])
    assert edit.id in (tmp_path / "out" / "README.md").read_text()


def test_strengths_are_heeded_and_what_does_not_fit_is_refused(folder, tmp_path):
    backbone = backbones.load(str(folder))
    edit = expunge.erase(backbone, "dog", settings={"anchor": "cat"})
    shards.to_folder(backbone, [edit], tmp_path / "half", strength=0.5)
    half = backbones.load(str(tmp_path / "half")).stored(list(edit.tensors()))
    base = backbone.stored(list(edit.tensors()))
    for name, tensor in half.items():
        assert torch.equal(tensor, ((base[name] + edit.tensors()[name]) / 2).bfloat16().float())
    assert torch.equal(backbones.load(str(folder)).stored([name])[name], base[name]), "the model's own files stay"
    leco = expunge.erase(backbone, "dog", method="leco", settings={"iterations": 1, "sampling": {"sampling_steps": 2}})
    with pytest.raises(ExpungeError, match="is of kind adapter: expected edits of weights"):
        shards.to_folder(backbone, [leco], tmp_path / "adapter")
    with pytest.raises(ExpungeError, match="was made for another base"):
        shards.to_folder(backbones.load(str(tmp_path / "half")), [edit], tmp_path / "other")
    with pytest.raises(ExpungeError, match="does not lie in a diffusers folder"):
        shards.to_folder(backbones.of(tiny_flux_pipeline()), [edit], tmp_path / "held")
    assert not any((tmp_path / name).exists() for name in ("adapter", "other", "held"))


def test_a_folder_that_names_a_safety_checker_can_be_opened_without_it(tmp_path):
    """As Stable Diffusion 1.x is published: the list names components that an edit has nothing to do with."""
    tiny_pipeline().save_pretrained(tmp_path / "sd", variant="fp16")
    index = tmp_path / "sd" / "model_index.json"
    named = json.loads(index.read_text()) | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    index.write_text(json.dumps(named))
    backbone = backbones.load(str(tmp_path / "sd"), dtype="float16")
    edit = expunge.erase(backbone, "dog", settings={"anchor": "cat"})
    shards.to_folder(backbone, [edit], tmp_path / "out")
    assert 'variant="fp16"' in (tmp_path / "out" / "README.md").read_text()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", variant="fp16")
    (name, tensor), *_ = edit.tensors().items()
    assert torch.allclose(pipe.unet.get_parameter(name.removeprefix("unet.")), tensor.float(), atol=1e-3)
    assert json.loads(index.read_text()) == named, "the model's own list stays"
