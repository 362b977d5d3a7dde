"""What a single file says of itself, and what it holds beside the model."""

import json
import shutil
import warnings

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file

import expunge
from expunge import backbones
from expunge.backbones import ldm
from expunge.backbones.layout import layout_of
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.stages import export
from ldm_models import ASKED


# what a file says of itself -------------------------------------------------------------------------------------------
def marked(tmp_path, file, layout, *keys, told=None, without=("v_pred",)):
    """The model of a file with marks, and what was warned of."""
    tensors = {k: v for k, v in load_file(file).items() if k not in without}
    save_file({**tensors, **{k: torch.zeros(0) for k in keys}}, tmp_path / "marked.safetensors", metadata=told)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened = backbones.load(str(tmp_path / "marked.safetensors"), layout=layout)
    return opened, [str(w.message) for w in caught if w.category is ExpungeWarning]


def test_marks_win_over_a_layout_given_by_hand_and_say_so(tmp_path, exported):
    folder, file, layout = exported
    for given in (str(folder), layout):
        opened, warned = marked(tmp_path, file, given, "v_pred", "ztsnr")
        sampler = opened._parts.get("scheduler").config
        assert (sampler.prediction_type, sampler.rescale_betas_zero_snr) == ("v_prediction", True)
        assert sampler.timestep_spacing == "trailing"
        assert any("says that it predicts v_prediction" in w for w in warned) == (layout != "sd2")
        assert any("zero SNR" in w for w in warned)
        opened, warned = marked(tmp_path, file, given, told={"modelspec.prediction_type": "epsilon"})
        assert opened._parts.get("scheduler").config.prediction_type == "epsilon"
        assert any("says that it predicts epsilon" in w for w in warned) == (layout == "sd2")
    opened, warned = marked(tmp_path, file, str(folder))
    assert not warned, "what the file does not say, the layout does"
    assert opened._parts.get("scheduler").config.prediction_type == ("v_prediction" if layout == "sd2" else "epsilon")


def test_zero_snr_reaches_the_noise_that_is_sampled_from(tmp_path, exported):
    """The signal at the last step is nothing; a sampler that cannot do so (PNDM) gives its place to one that can."""
    _, file, layout = exported
    opened, _ = marked(tmp_path, file, layout, "v_pred", "ztsnr")
    sampler = opened._parts.get("scheduler")
    assert sampler.alphas_cumprod[-1] < 1e-6
    x, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    assert torch.allclose(opened.add_noise(x, noise, torch.tensor([999])), noise, atol=1e-2)


def test_an_export_writes_the_marks_of_a_folder(tmp_path, exported):
    folder, _, layout = exported
    shutil.copytree(folder, tmp_path / "sd")
    file = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "_class_name": "DDIMScheduler"}
    index = tmp_path / "sd" / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **told}))
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", "DDIMScheduler"]}))
    export.to_file(backbones.load(str(tmp_path / "sd")), [], tmp_path / "out")
    whole = load_file(tmp_path / "out" / "model.safetensors")
    assert {"v_pred", "ztsnr"} <= set(whole)
    again = backbones.load(str(tmp_path / "out" / "model.safetensors"), layout=layout)
    assert again._parts.get("scheduler").config.rescale_betas_zero_snr
    for part, cls, convert in (("unet", diffusers.UNet2DConditionModel, convert_ldm_unet_checkpoint),):
        model = cls.from_pretrained(folder / part)
        assert set(convert(dict(whole), config=model.config)) == set(model.state_dict()), "diffusers minds no mark"


def test_marks_that_disagree_or_are_unknown_are_not_passed_over(tmp_path, exported):
    _, file, _ = exported
    opened, warned = marked(tmp_path, file, None, "v_pred", told={"modelspec.prediction_type": "epsilon"})
    assert opened._parts.prediction == "v_prediction"
    assert any("modelspec.prediction_type says epsilon" in w for w in warned)
    with pytest.raises(ExpungeError, match=r"predicts 'sample' \(modelspec\.prediction_type\): expected epsilon or v"):
        marked(tmp_path, file, None, told={"modelspec.prediction_type": "sample"})


# what a file holds beside ---------------------------------------------------------------------------------------------
def test_tensors_of_no_use_are_left_and_unknown_ones_are_told_or_refused(tmp_path, exported):
    folder, file, layout = exported
    stem = ldm.TEXT[layout]["text_encoder"]
    idle = {
        "model_ema.decay": torch.zeros(1),
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(1),
        "alphas_cumprod": torch.zeros(3),
        "sqrt_recipm1_alphas_cumprod": torch.zeros(3),
        "denoiser.sigmas": torch.zeros(3),
        "global_step": torch.zeros(1),
        f"{stem}logit_scale": torch.zeros(1),
        f"{stem}text_model.embeddings.position_ids": torch.zeros(1, 16),
        f"{stem}text_projection": torch.zeros(3, 3),
        "first_stage_model.loss.logvar": torch.zeros(1),
    }
    whole, bare = load_file(file), tmp_path / "x.safetensors"
    expected = backbones.load(str(file), layout=str(folder)).generate(ASKED).latents
    save_file({**whole, **idle}, bare)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExpungeWarning)
        opened = backbones.load(str(bare), layout=str(folder))
        assert torch.allclose(opened.generate(ASKED).latents, expected, atol=1e-4)
    save_file({**whole, "control_model.x": torch.zeros(1), "lora_y": torch.zeros(1)}, bare)
    with pytest.warns(
        ExpungeWarning, match=r"holds 2 tensors of no component, which are not read \('control_model\.x'\)"
    ):
        backbones.load(str(bare), layout=str(folder))
    starts = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", **ldm.TEXT[layout]}
    save_file({**whole, **{f"{start}adapter.weight": torch.zeros(1) for start in starts.values()}}, bare)
    opened = backbones.load(str(bare), layout=str(folder))
    for part, start in starts.items():
        with pytest.raises(ExpungeError, match=rf"has a '{start}adapter\.weight', for which the {part} .* no place"):
            opened._parts.read(part, [])


def test_a_tensor_of_another_shape_is_refused_by_closed_forms_too(tmp_path, exported):
    folder, file, _ = exported
    whole = load_file(file)
    wrong = {k: torch.zeros(3, 3) for k in whole if k.startswith("model.") and k.endswith("attn2.to_k.weight")}
    save_file({**whole, **wrong}, tmp_path / "x.safetensors")
    with pytest.raises(ExpungeError, match=r"is \(3, 3\): expected \("):
        expunge.erase(
            backbones.load(str(tmp_path / "x.safetensors"), layout=str(folder)), "dog", settings={"anchor": "cat"}
        )


def test_clip_as_it_was_named_before_text_model_is_read(tmp_path, exported):
    folder, file, layout = exported
    old = {k.replace(".transformer.text_model.", ".transformer."): v for k, v in load_file(file).items()}
    save_file(old, tmp_path / "old.safetensors", metadata={"prediction_type": "epsilon"})
    assert layout_of(tmp_path / "old.safetensors").partition("-")[0] == layout
    ours, new = (backbones.load(str(p), layout=str(folder)) for p in (tmp_path / "old.safetensors", file))
    assert torch.allclose(ours.encode(["a dog"]).embeds, new.encode(["a dog"]).embeds, atol=1e-5)
