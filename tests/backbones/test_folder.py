"""Diffusers folders: a component that does not fit is refused by name, whatever precision and format it lies in."""

import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import expunge
from expunge import backbones, testbed
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from tiny import still, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

ASKED = [Query(prompt="a dog", seed=5, guidance=3.0, steps=2)]
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
MOVED = {"unet": "conv_in.weight", "vae": "decoder.conv_in.weight", "text_encoder": "encoder.layers.0.mlp.fc1.weight"}


@pytest.fixture
def place(folder, tmp_path):
    """A folder to change."""
    shutil.copytree(folder, tmp_path / "sd")
    return tmp_path / "sd"


def change(file, changed):
    """Exchange some tensors of a file, or take them out (None)."""
    tensors = {k: v for k, v in {**load_file(file), **changed}.items() if v is not None}
    save_file(tensors, file, metadata={"format": "pt"})


def latents(place, **options):
    return backbones.load(str(place), **options).generate(ASKED).latents


def like(one, other):
    """Equal but for rounding: tensors of another file lie at other addresses, where a product may differ in its last bit."""
    return torch.allclose(one, other, atol=1e-3)


# names and shapes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("fault", ["missing", "misnamed", "strange", "of another shape"])
def test_a_component_that_does_not_fit_is_refused_by_name(place, part, fault):
    file = place / FILES[part]
    whole = load_file(file)
    name = next(n for n in whole if n.endswith(MOVED[part]))
    faults = {
        "missing": ({name: None}, rf"lacks 1 tensors \('{MOVED[part]}'\)"),
        "misnamed": (
            {name: None, f"model.{name}": whole[name]},
            f"lacks 1 tensors .* has 1 that nothing reads .*model.{name}",
        ),
        "strange": ({"extra.weight": torch.zeros(2)}, r"has 1 that nothing reads \('extra\.weight'\)"),
        "of another shape": ({name: torch.zeros(2, 3)}, rf"{MOVED[part]}.*2, 3"),
    }
    changed, words = faults[fault]
    change(file, changed)
    with pytest.raises(ExpungeError, match=words) as caught:
        latents(place)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fused", [False, True])
def test_a_folder_that_was_saved_with_a_lora_loaded_is_refused_as_such(place, tmp_path, fused):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    name = next(n for n, m in pipe.unet.named_modules() if m is layer)
    shapes = {"A": (1, layer.in_features), "B": (layer.out_features, 1)}
    pipe.load_lora_weights({f"unet.{name}.lora_{end}.weight": torch.ones(shape) for end, shape in shapes.items()})
    if fused:
        pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(ExpungeError, match=r"base_layer.*saved with a LoRA loaded: unload it"):
        latents(tmp_path / "saved")
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "plain")
    latents(tmp_path / "plain")
    ours, theirs = (load_file(folder / FILES["unet"])[f"{name}.weight"] for folder in (tmp_path / "plain", place))
    assert torch.equal(ours, theirs) != fused


def test_a_component_that_is_a_lora_alone_is_refused(place):
    """As diffusers saves a text encoder with a LoRA."""
    (place / "text_encoder" / "config.json").rename(place / "text_encoder" / "adapter_config.json")
    with pytest.raises(
        ExpungeError, match=r"there is no '.*text_encoder.config.json.: .*in its folder is adapter_config"
    ):
        latents(place)


@pytest.mark.parametrize("fault", ["compiled", "short", "of another shape"])
def test_closed_forms_refuse_a_unet_that_does_not_fit_before_it_is_built(place, fault):
    """Tensors are read by name there, so that names of a compiled module would get into an edit."""
    file = place / FILES["unet"]
    whole = load_file(file)
    keys = [n for n in whole if n.endswith("attn2.to_k.weight")]
    faults = {
        "compiled": {**dict.fromkeys(whole), **{f"_orig_mod.{n}": t for n, t in whole.items()}},
        "short": {keys[0]: None},
        "of another shape": {n: torch.zeros(3, 3) for n in keys},
    }
    change(file, faults[fault])
    with pytest.raises(ExpungeError, match=r"_orig_mod|lacks 1 tensors|of \(3, 3\): expected"):
        expunge.erase(backbones.load(str(place)), "dog", settings={"anchor": "cat"})


def test_text_encoders_of_older_and_newer_transformers_open_alike(place):
    """Before 5.6, CLIPTextModel put ``text_model.`` before its tensors; later ones do not."""
    file, expected = place / FILES["text_encoder"], latents(place)
    bare = {n.removeprefix("text_model."): t for n, t in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    assert like(latents(place), expected)
    save_file({f"text_model.{n}": t for n, t in bare.items()}, file, metadata={"format": "pt"})
    assert like(latents(place), expected)


def test_a_class_that_keeps_the_level_reads_files_without_it(tmp_path):
    """As CLIPTextModel does in transformers before 5.6."""
    tiny_xl_pipeline().save_pretrained(tmp_path / "xl")
    expected = latents(tmp_path / "xl")
    file = tmp_path / "xl" / "text_encoder_2" / "model.safetensors"
    bare = {n.removeprefix("text_model."): t for n, t in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    assert like(latents(tmp_path / "xl"), expected)
    change(file, {"final_layer_norm.bias": None})
    with pytest.raises(ExpungeError, match=r"lacks .*text_model"):
        latents(tmp_path / "xl")


def test_what_a_text_encoder_has_no_use_for_is_no_fault(place):
    expected = latents(place)
    rest = {"logit_scale": torch.ones(()), "text_projection.weight": torch.zeros(32, 32)}
    rest |= {"text_model.embeddings.position_ids": torch.arange(16)[None], "vision_model.post.bias": torch.zeros(2)}
    change(place / FILES["text_encoder"], rest)
    assert like(latents(place), expected)


def test_tied_tensors_and_names_of_older_autoencoders_are_no_fault(place, tmp_path):
    expected = latents(place)
    old = {}
    for name, tensor in load_file(place / FILES["vae"]).items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{before}")
        old[name] = tensor
    assert any("proj_attn" in name for name in old)
    save_file(old, place / FILES["vae"], metadata={"format": "pt"})
    assert like(latents(place), expected)
    tiny_sd3_pipeline().save_pretrained(tmp_path / "sd3")
    t5 = tmp_path / "sd3" / "text_encoder_3" / "model.safetensors"
    expected = latents(tmp_path / "sd3")
    change(t5, {"encoder.embed_tokens.weight": load_file(t5)["shared.weight"]})
    assert like(latents(tmp_path / "sd3"), expected)


def test_a_group_holds_parameters_and_no_buffers_built_or_not(tmp_path):
    tiny_sd3_pipeline(t5=False).save_pretrained(tmp_path / "sd3")
    backbone = backbones.load(str(tmp_path / "sd3"))
    unbuilt = backbone.group("full")
    backbone.components()
    assert set(unbuilt) == set(backbone.group("full"))


# formats and variants -------------------------------------------------------------------------------------------------
def renamed(place, variant):
    for part, name in FILES.items():
        file = place / name
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors")) if part != "vae" else None


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_folder_of_one_variant_opens_in_any_precision(place, variant):
    expected = latents(place)
    renamed(place, variant)
    assert like(latents(place), expected)
    assert backbones.load(str(place), dtype="bfloat16").tensors([f"unet.{MOVED['unet']}"])
    expunge.erase(backbones.load(str(place)), "dog", settings={"anchor": "cat"})


def test_weights_that_are_no_average_are_opened_with_a_word(place):
    expected = latents(place)
    renamed(place, "non_ema")
    with pytest.warns(ExpungeWarning, match=r"no weights but '.*\.non_ema\.safetensors'"):
        assert like(latents(place), expected)


@pytest.mark.parametrize("shard", ["10GB", "200KB"])
def test_a_folder_of_pickles_opens_by_the_restricted_reader(tmp_path, shard):
    pipe = still(tiny_pipeline())
    pipe.save_pretrained(tmp_path / "safe")
    shutil.copytree(tmp_path / "safe", tmp_path / "sd")
    for part in FILES:
        (tmp_path / "sd" / FILES[part]).unlink()
    torch.save(load_file(tmp_path / "safe" / FILES["text_encoder"]), tmp_path / "sd/text_encoder/pytorch_model.bin")
    for part in ("unet", "vae"):
        pipe.components[part].save_pretrained(tmp_path / "sd" / part, safe_serialization=False, max_shard_size=shard)
    assert (tmp_path / "sd/unet/diffusion_pytorch_model.bin.index.json").is_file() == (shard == "200KB")
    opened, plain = (backbones.load(str(tmp_path / n)) for n in ("sd", "safe"))
    assert opened.identity() != plain.identity()
    ours, theirs = (expunge.erase(b, "dog", settings={"anchor": "cat"}) for b in (opened, plain))
    assert ours.tensors().keys() == theirs.tensors().keys()
    assert like(opened.generate(ASKED).latents, plain.generate(ASKED).latents)


class Harm:
    """What a pickle can do and a restricted reader does not."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def test_a_pickle_that_would_run_code_is_refused(place):
    (place / FILES["unet"]).unlink()
    torch.save({"x": Harm()}, place / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ExpungeError, match="cannot be loaded as UNet2DConditionModel"):
        latents(place)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("diffusion_pytorch_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("diffusion_pytorch_model.safetensors", b"<html>no</html>", "a web page"),
        ("diffusion_pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("diffusion_flax_model.msgpack", b"\x81", "has no safetensors weights.*there is diffusion_flax_model.msgpack"),
    ],
)
def test_what_is_in_the_place_of_weights_is_named(place, name, content, words):
    (place / FILES["unet"]).unlink()
    (place / "unet" / name).write_bytes(content)
    with pytest.raises(ExpungeError, match=words):
        expunge.erase(backbones.load(str(place)), "dog", settings={"anchor": "cat"})


# other pipelines ------------------------------------------------------------------------------------------------------
def test_a_pipeline_that_reads_more_than_latents_is_refused_in_a_line(place):
    index, config = place / "model_index.json", place / "unet" / "config.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps({**whole, "_class_name": "StableDiffusionInpaintPipeline"}))
    with pytest.raises(ExpungeError, match="holds a StableDiffusionInpaintPipeline: expected one of"):
        backbones.load(str(place))
    index.write_text(json.dumps(whole))
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    with pytest.raises(ExpungeError, match="unet of 9 input channels: expected 4"):
        backbones.load(str(place))


def test_devices_and_precisions_are_taken_as_torch_has_them(folder):
    opened = backbones.load(str(folder), dtype=torch.float16, device=torch.device("cpu"))
    assert (opened.dtype, opened.device) == (torch.float16, torch.device("cpu"))
    with pytest.raises(ExpungeError, match="unknown dtype 'float64'"):
        backbones.load(str(folder), dtype=torch.float64)
    with pytest.raises(ExpungeError, match="unknown dtype 'float61'"):
        backbones.load("owner/name", dtype="float61")


def test_the_testbed_s_folder_is_a_pipeline_of_diffusers_as_it_is():
    """And what is measured of it is of this model: its weights never change under one version."""
    pipe = still(diffusers.StableDiffusionPipeline.from_pretrained(testbed.FOLDER))
    assert pipe.text_encoder.dtype == pipe.unet.dtype == torch.float32
    ours = backbones.load("testbed")
    call = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent", "height": 64, "width": 64}
    theirs = pipe("a church", generator=torch.Generator().manual_seed(3), **call).images
    expected = ours.generate([Query(prompt="a church", seed=3, guidance=5.0, steps=3)]).latents
    assert torch.allclose(theirs, expected, atol=1e-3)
    if testbed.FOLDER == testbed.SHIPPED:
        assert ours.identity() == "61b5f8f6c93f8137c811beb5ae41983bb1923ec5c3f5f5ea5f724713a29dda67"


def test_any_change_of_the_testbed_is_another_model(tmp_path):
    shutil.copytree(testbed.SHIPPED, tmp_path / "testbed")
    (tmp_path / "testbed" / "expunge.json").unlink()  # which would refuse a part that is not the shipped one
    first = backbones.load(str(tmp_path / "testbed")).identity()
    file = tmp_path / "testbed" / "text_encoder" / "config.json"
    file.write_text(file.read_text().replace("quick_gelu", "gelu"))
    assert backbones.load(str(tmp_path / "testbed")).identity() != first
