"""Models in the LDM layout: diffusers' own reader is the reference, at tiny configurations and at the published sizes."""

import shutil

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file

import expunge
from expunge import backbones
from expunge.backbones import ldm, single_file
from expunge.backbones.layout import configurations, layout_of
from expunge.backbones.layout import tokenizer as clip_tokenizer
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.stages import export
from ldm_models import ASKED, tiny_xl
from tiny import tiny_clip, tiny_pipeline, tokenizer


def test_a_single_file_gives_the_images_of_the_folder_it_was_made_of(exported):
    folder, file, layout = exported
    assert layout_of(file) == layout
    expected = backbones.load(str(folder)).generate(ASKED).latents
    opened = backbones.load(str(file), layout=str(folder))
    assert opened.family == ("sdxl" if layout == "sdxl" else "sd")
    assert torch.allclose(opened.generate(ASKED).latents, expected, atol=1e-4)
    assert opened.pipeline_options() == backbones.load(str(folder)).pipeline_options()


def test_diffusers_own_reader_finds_the_same_unet_and_autoencoder(exported):
    folder, file, _ = exported
    whole = load_file(file)
    for part, cls, convert in (
        ("unet", diffusers.UNet2DConditionModel, convert_ldm_unet_checkpoint),
        ("vae", diffusers.AutoencoderKL, convert_ldm_vae_checkpoint),
    ):
        model = cls.from_pretrained(folder / part)
        read = convert(dict(whole), config=model.config)
        assert set(read) == set(model.state_dict())
        assert all(torch.equal(read[n].reshape(t.shape), t) for n, t in model.state_dict().items())


def test_diffusers_own_reader_finds_the_same_text_encoders(exported):
    folder, file, layout = exported
    whole, backbone = load_file(file), backbones.load(str(folder))
    for part, prefix in ldm.TEXT[layout].items():
        tower = backbone._parts.get(part)
        if prefix.endswith(".model."):
            read = convert_open_clip_checkpoint(prefixed(tower), dict(whole), prefix=prefix)
        else:
            read = convert_ldm_clip_checkpoint(dict(whole), remove_prefix=prefix)
        theirs = {n.removeprefix("text_model."): t for n, t in read.items()}
        ours = {n.removeprefix("text_model."): t for n, t in tower.state_dict().items()}
        assert set(ours) <= set(theirs)
        assert all(torch.equal(theirs[n], t) for n, t in ours.items())


def prefixed(tower):
    """A text encoder with the names that diffusers' reader asks for, which older transformers put a prefix before."""
    if hasattr(tower, "text_model"):
        return tower
    settings = {**tower.config.to_dict(), "projection_dim": tower.config.hidden_size}
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings))


@pytest.mark.parametrize("projected", [False, True])
def test_openclip_s_attention_is_one_matrix_and_its_projection_is_turned(projected):
    """Against OpenCLIP's formulas: x -> in_proj x, and pooled @ text_projection."""
    tower = tiny_clip(tokenizer(), 48, projected)
    tensors = dict(tower.state_dict())
    layout, part = ("sdxl", "text_encoder_2") if projected else ("sd2", "text_encoder")
    file = ldm.written(layout, {part: tensors})
    stem = ldm.TEXT[layout][part]
    attention = tower.get_submodule(("text_model." if projected else "") + "encoder.layers.1.self_attn")
    x = torch.randn(5, 48)
    together = torch.nn.functional.linear(
        x,
        file[f"{stem}transformer.resblocks.1.attn.in_proj_weight"],
        file[f"{stem}transformer.resblocks.1.attn.in_proj_bias"],
    )
    apart = torch.cat([attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)], 1)
    assert torch.allclose(together, apart, atol=1e-6)
    if projected:
        assert torch.allclose(x @ file[f"{stem}text_projection"], tower.text_projection(x), atol=1e-6)
    else:
        assert f"{stem}transformer.resblocks.2.ln_1.weight" in file, "a layer more, as SD 2's files have it"
    places = ldm.places(part, list(tensors), layout)
    assert all(torch.equal(ldm.taken(p, file[p.key]), tensors[n]) for n, p in places.items())


def test_the_shipped_tokenizer_is_clip_s():
    """Ids as every published CLIP has them."""
    words = clip_tokenizer("<|endoftext|>")
    assert len(words) == 49408
    ids = words("a photo of a cat", padding="max_length").input_ids
    assert ids[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert len(ids) == 77
    assert clip_tokenizer("!")("a dog", padding="max_length").input_ids[:5] == [49406, 320, 1929, 49407, 0]
    assert words("Ünïcödé 👍 it's").input_ids[-1] == 49407


def bare(layout, part):
    single = object.__new__(single_file.SingleFile)
    single.given, single.prediction, single.zero_snr = configurations(layout), None, False
    return single._bare(part)


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [
        ("sd1", {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863}),
        ("sd2", {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863}),
        ("sdxl", {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}),
    ],
)
def test_shipped_layouts_are_of_the_published_sizes_and_every_tensor_has_a_place(layout, sizes):
    """Parameters as counted on the released models, with no memory; diffusers' converters get every name back."""
    models = {part: bare(layout, part) for part in sizes}
    assert {part: sum(p.numel() for p in model.parameters()) for part, model in models.items()} == sizes
    for part, convert in (("unet", convert_ldm_unet_checkpoint), ("vae", convert_ldm_vae_checkpoint)):
        model = models.get(part) or bare(layout, part)
        tensors = {n: torch.empty(p.shape, device="meta") for n, p in model.state_dict().items()}
        read = convert(ldm.written(layout, {part: tensors}), config=model.config)
        assert {n: t.numel() for n, t in read.items()} == {n: t.numel() for n, t in tensors.items()}


def test_shipped_numbers_that_no_tensor_shows():
    """As published with each model."""
    known = {name: configurations(name).parts for name in ("sd1", "sd2", "sd2-base", "sdxl")}
    heads = {name: parts["unet"]["attention_head_dim"] for name, parts in known.items()}
    assert heads == {"sd1": 8, "sd2": [5, 10, 20, 20], "sd2-base": [5, 10, 20, 20], "sdxl": [5, 10, 20]}
    assert {name: parts["unet"]["sample_size"] for name, parts in known.items()} == {
        "sd1": 64,
        "sd2": 96,
        "sd2-base": 64,
        "sdxl": 128,
    }
    assert [parts["vae"]["scaling_factor"] for parts in known.values()] == [0.18215, 0.18215, 0.18215, 0.13025]
    acts = [parts["text_encoder"]["hidden_act"] for parts in known.values()]
    assert acts == ["quick_gelu", "gelu", "gelu", "quick_gelu"]
    assert known["sdxl"]["text_encoder_2"]["hidden_act"] == "gelu"
    assert [parts["tokenizer"] for parts in known.values()] == ["<|endoftext|>", "!", "!", "<|endoftext|>"]
    assert known["sdxl"]["tokenizer_2"] == "!"
    for name in known:
        sampler = bare(name, "scheduler").config
        assert (sampler.beta_start, sampler.beta_end, sampler.beta_schedule) == (0.00085, 0.012, "scaled_linear")
        assert (sampler.steps_offset, sampler.num_train_timesteps) == (1, 1000)
        assert sampler.prediction_type == ("v_prediction" if name == "sd2" else "epsilon")
    assert type(bare("sdxl", "scheduler")).__name__ == "EulerDiscreteScheduler"


def test_what_a_file_predicts_is_read_from_it_or_said_to_be_a_guess(tmp_path, exported):
    _, file, layout = exported
    assert backbones.load(str(file))._parts.prediction == ("v_prediction" if layout == "sd2" else "epsilon")
    whole, elsewhere = load_file(file), str(tmp_path / "bare.safetensors")
    assert ("v_pred" in whole) == (layout == "sd2"), "which other programs heed"
    whole.pop("v_pred", None)
    save_file(whole, elsewhere)
    if layout == "sd2":
        with pytest.warns(ExpungeWarning, match="taken for a model that predicts v.*sd2-base"):
            backbones.load(elsewhere)
        save_file(whole, elsewhere, metadata={"prediction_type": "epsilon"})
        assert layout_of(tmp_path / "bare.safetensors") == "sd2-base"
        return
    assert backbones.load(elsewhere)._parts.prediction is None
    save_file({**whole, "v_pred": torch.zeros(0)}, elsewhere)
    assert backbones.load(elsewhere)._parts.get("scheduler").config.prediction_type == "v_prediction"
    save_file(whole, elsewhere, metadata={"modelspec.prediction_type": "v"})
    assert backbones.load(elsewhere)._parts.prediction == "v_prediction"
    save_file({**whole, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, elsewhere)
    sampler = backbones.load(elsewhere)._parts.get("scheduler").config
    assert (sampler.rescale_betas_zero_snr, sampler.timestep_spacing) == (True, "trailing")


def test_an_sdxl_that_predicts_v_says_so_to_other_readers(tmp_path):
    pipe = tiny_xl()
    pipe.register_modules(
        scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    )
    export.to_file(backbones.of(pipe), [], tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    assert "v_pred" in load_file(file)
    assert backbones.load(str(file))._parts.prediction == "v_prediction"


def test_a_single_file_is_known_by_what_it_is_made_of(tmp_path, exported):
    folder, file, _ = exported
    first = backbones.load(str(file), layout=str(folder)).identity()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    shutil.copy(file, tmp_path / "other-name.safetensors")
    assert backbones.load(str(tmp_path / "other-name.safetensors"), layout=str(elsewhere)).identity() == first
    words = next(elsewhere.glob("tokenizer/*.json"))
    words.write_text(words.read_text() + " ")
    changed = load_file(file)
    next(iter(changed.values())).view(-1)[0] += 1
    save_file(changed, tmp_path / "changed.safetensors")
    others = [(file, elsewhere), (file, None), (tmp_path / "changed.safetensors", folder)]
    for path, layout in others:
        opened = backbones.load(str(path), layout=None if layout is None else str(layout))
        assert opened.identity() != first


def test_an_edit_of_the_folder_fits_the_file_and_comes_back_from_an_export(exported, tmp_path):
    folder, file, _ = exported
    backbone = backbones.load(str(folder))
    edit = expunge.erase(backbone, "dog", settings={"anchor": "cat"})
    opened = backbones.load(str(file), layout=str(folder))
    assert expunge.erase(opened, "dog", settings={"anchor": "cat"}).id == edit.id
    with opened.attached([edit]):
        expected = opened.generate(ASKED).latents
    export.to_file(backbone, [edit], tmp_path / "out")
    again = backbones.load(str(tmp_path / "out" / "model.safetensors"), layout=str(folder))
    assert torch.allclose(again.generate(ASKED).latents, expected, atol=1e-4)
    assert not torch.allclose(opened.generate(ASKED).latents, expected, atol=1e-3)
    export.to_folder(opened, [edit], tmp_path / "folder")
    whole = backbones.load(str(tmp_path / "folder"))  # whose tensors lie elsewhere in memory: see the last bit
    assert torch.allclose(whole.generate(ASKED).latents, expected, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "asked to remove: dog" in card
    assert 'from_single_file("model.safetensors")`' in card


def test_closed_forms_read_a_file_without_building_the_unet(exported):
    folder, file, _ = exported
    opened = backbones.load(str(file), layout=str(folder))
    expunge.erase(opened, "dog", settings={"anchor": "cat"})
    assert not opened._parts.built("unet")


def test_what_is_no_whole_model_is_refused_in_a_line(tmp_path, exported):
    folder, file, layout = exported
    whole = load_file(file)
    cases = {
        "a LoRA": {"lora_unet_x.lora_down.weight": torch.zeros(1)},
        "refiner": {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(1)},
        "a transformer": {"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)},
        "without its text encoder": {"model.diffusion_model.out.0.weight": torch.zeros(1)},
        "another kind": {"x": torch.zeros(1)},
        "UNet of 9 input channels": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1, 9, 3, 3)},
        "EDM's noise schedule": {"edm_mean": torch.zeros(1)},
    }
    for words, tensors in cases.items():
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(ExpungeError, match=words):
            backbones.load(str(tmp_path / "bad.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExpungeError, match="damaged"):
        backbones.load(str(tmp_path / "torn.safetensors"))
    save_file({k: v for k, v in whole.items() if "middle_block.1" not in k}, tmp_path / "part.safetensors")
    with pytest.raises(ExpungeError, match=r"has no 'model\.diffusion_model\.middle_block\.1"):
        backbones.load(str(tmp_path / "part.safetensors"), layout=str(folder)).generate(ASKED)
    with pytest.raises(ExpungeError, match="expected one of its own"):
        backbones.load(str(file), layout="sd1" if layout == "sdxl" else "sdxl")
    with pytest.raises(ExpungeError, match="another layout"):
        backbones.load(str(file)).generate(ASKED)
    with pytest.raises(ExpungeError, match="unknown layout 'sd9'"):
        backbones.load(str(file), layout="sd9")
    with pytest.raises(ExpungeError, match=r"single \.safetensors file"):
        backbones.load(str(folder), layout="sd1")
    other = tmp_path / "tiny-vae"
    tiny_pipeline(vae="tiny").save_pretrained(other)
    with pytest.raises(ExpungeError, match="has a AutoencoderTiny as its vae: expected an AutoencoderKL"):
        backbones.load(str(file), layout=str(other))


def test_names_without_a_place_are_refused_in_a_line():
    for part, name in (
        ("unet", "down_blocks.0.resnets.0.conv9.weight"),
        ("unet", "conv_extra.weight"),
        ("vae", "encoder.mid_block.attentions.0.to_z.weight"),
        ("vae", "encoder.odd_block.x.weight"),
        ("text_encoder", "encoder.layers.0.self_attn.z_proj.weight"),
        ("text_encoder_3", "x"),
    ):
        with pytest.raises(ExpungeError, match="the LDM layout 'sd2' has no place for"):
            ldm.places(part, [name], "sd2")
