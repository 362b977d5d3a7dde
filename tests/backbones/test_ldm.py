"""Models in the LDM layout: diffusers' own reader is the reference, at tiny configurations."""

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

import expunge
from conftest import tiny_clip, tiny_pipeline, tiny_xl_pipeline, tokenizer
from expunge import backbones
from expunge.backbones import ldm
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.stages import export

ASKED = [Query(prompt="a dog", seed=5, guidance=5.0, steps=2)]


def tiny_sd2():
    """Stable Diffusion 2's particulars: linear projections, v-prediction, a text encoder that OpenCLIP trained."""
    torch.manual_seed(3)
    parts = tiny_pipeline(prediction="v_prediction").components
    parts["unet"] = diffusers.UNet2DConditionModel(**{**parts["unet"].config, "use_linear_projection": True})
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


MAKERS = {"sd1": tiny_pipeline, "sd2": tiny_sd2, "sdxl": tiny_xl_pipeline}


@pytest.fixture(scope="module", params=MAKERS)
def exported(request, tmp_path_factory):
    """A diffusers folder, the single file made of it, and the layout's name."""
    place = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param]().save_pretrained(place / "folder")
    backbone = backbones.load(str(place / "folder"))
    export.file_to_folder(backbone, [], place / "out", request.param)
    return place / "folder", place / "out" / "model.safetensors", request.param


def test_a_single_file_gives_the_images_of_the_folder_it_was_made_of(exported):
    folder, file, layout = exported
    assert ldm.layout_of(file) == layout
    expected = backbones.load(str(folder)).generate(ASKED).latents
    opened = backbones.load(str(file), layout=str(folder))
    assert opened.family == ("sdxl" if layout == "sdxl" else "sd")
    assert torch.allclose(opened.generate(ASKED).latents, expected, atol=1e-5)


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
    words = ldm.tokenizer("<|endoftext|>")
    assert len(words) == 49408
    ids = words("a photo of a cat", padding="max_length").input_ids
    assert ids[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert len(ids) == 77
    assert ldm.tokenizer("!")("a dog", padding="max_length").input_ids[:5] == [49406, 320, 1929, 49407, 0]
    assert words("Ünïcödé 👍 it's").input_ids[-1] == 49407


@pytest.mark.parametrize(
    ("layout", "unet", "text"), [("sd1", 859_520_964, 123_060_480), ("sd2", 865_910_724, 340_387_840)]
)
def test_shipped_layouts_are_of_the_published_sizes(layout, unet, text):
    """Parameters as counted on the released models; built without memory."""
    with torch.device("meta"):
        assert sum(p.numel() for p in _bare(layout, "unet").parameters()) == unet
        assert sum(p.numel() for p in _bare(layout, "text_encoder").parameters()) == text
        assert sum(p.numel() for p in _bare(layout, "vae").parameters()) == 83_653_863


def test_sdxl_s_layout_is_of_the_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in _bare("sdxl", "unet").parameters()) == 2_567_463_684
        assert sum(p.numel() for p in _bare("sdxl", "text_encoder_2").parameters()) == 694_659_840


def _bare(layout, part):
    single = object.__new__(ldm.SingleFile)
    single.told = ldm.configurations(layout)
    return single._bare(part)


def test_scheduler_and_pipeline_of_a_layout():
    assert ldm.configurations("sd2")["scheduler"]["prediction_type"] == "v_prediction"
    assert "prediction_type" not in ldm.configurations("sd2-base")["scheduler"]
    assert ldm.configurations("sd2-base")["unet"]["use_linear_projection"] is True
    assert ldm.configurations("sdxl")["text_encoder"] == ldm.configurations("sd1")["text_encoder"]
    assert type(_bare("sdxl", "scheduler")).__name__ == "EulerDiscreteScheduler"


def test_an_edit_of_the_folder_fits_the_file_and_comes_back_from_an_export(exported, tmp_path):
    folder, file, layout = exported
    backbone = backbones.load(str(folder))
    edit = expunge.erase(backbone, "dog", settings={"anchor": "cat"})
    opened = backbones.load(str(file), layout=str(folder))
    assert expunge.erase(opened, "dog", settings={"anchor": "cat"}).id == edit.id
    with opened.attached([edit]):
        expected = opened.generate(ASKED).latents
    export.file_to_folder(backbone, [edit], tmp_path / "out", layout)
    again = backbones.load(str(tmp_path / "out" / "model.safetensors"), layout=str(folder))
    assert torch.allclose(again.generate(ASKED).latents, expected, atol=1e-5)
    assert not torch.allclose(opened.generate(ASKED).latents, expected, atol=1e-3)
    assert "church" not in (tmp_path / "out" / "README.md").read_text()
    assert "dog" in (tmp_path / "out" / "README.md").read_text()


def test_closed_forms_read_a_file_without_building_the_unet(exported):
    folder, file, _ = exported
    opened = backbones.load(str(file), layout=str(folder))
    expunge.erase(opened, "dog", settings={"anchor": "cat"})
    assert not opened._parts.built("unet")
    assert opened.identity() != backbones.load(str(file), layout=str(folder)).name


def test_what_is_no_whole_model_is_refused_in_a_line(tmp_path, exported):
    folder, file, layout = exported
    whole = load_file(file)
    cases = {
        "a LoRA": {"lora_unet_x.lora_down.weight": torch.zeros(1)},
        "refiner": {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(1)},
        "a transformer": {"model.diffusion_model.joint_blocks.0.x": torch.zeros(1)},
        "without its text encoder": {"model.diffusion_model.out.0.weight": torch.zeros(1)},
        "another kind": {"x": torch.zeros(1)},
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
    other = "sd1" if layout == "sdxl" else "sdxl"
    with pytest.raises(ExpungeError, match="expected one of its own"):
        backbones.load(str(file), layout=other)
    with pytest.raises(ExpungeError, match="another layout"):
        backbones.load(str(file)).generate(ASKED)
    with pytest.raises(ExpungeError, match="unknown layout 'sd9'"):
        backbones.load(str(file), layout="sd9")
    with pytest.raises(ExpungeError, match=r"single \.safetensors file"):
        backbones.load(str(folder), layout="sd1")
