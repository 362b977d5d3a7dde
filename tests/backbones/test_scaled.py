"""Single files of 8-bit weights: number times scale, by hand; what is in another form is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge import backbones
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.stages import export
from tiny import still, tiny_pipeline, tiny_xl_pipeline

LAYER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
NAME = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
ASKED = [Query(prompt="a dog", seed=5, guidance=3.0, steps=2)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder, and the single file made of it."""
    place = tmp_path_factory.mktemp("scaled")
    still(tiny_pipeline()).save_pretrained(place / "sd")
    export.to_file(backbones.load(str(place / "sd")), [], place / "out")
    return place / "sd", load_file(place / "out" / "model.safetensors")


def quantised(weight, dtype, rows):
    """8-bit numbers and their scale: one for all, or one a row."""
    most = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = weight.abs().flatten(1).amax(1) / most if rows else weight.abs().max() / most
    numbers = weight / (scale.reshape(-1, *[1] * (weight.ndim - 1)) if rows else scale)
    return (numbers.round() if dtype == torch.int8 else numbers).to(dtype), scale


def read(plain, tmp_path, changed, metadata=None):
    """The model with some tensors of its file exchanged, or taken out (None)."""
    folder, whole = plain
    tensors = {k: v for k, v in {**whole, **changed}.items() if v is not None}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt", **(metadata or {})})
    return backbones.load(str(tmp_path / "model.safetensors"), layout=str(folder))


def note(**told):
    return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.float8_e4m3fn, ()),
        (torch.float8_e5m2, (1,)),
        (torch.float8_e4m3fn, (-1,)),
        (torch.int8, ()),
        (torch.int8, (-1, 1)),
    ],
)
def test_a_weight_is_number_times_scale(plain, tmp_path, ending, dtype, shape):
    numbers, scale = quantised(plain[1][f"{LAYER}.weight"], dtype, rows=-1 in shape)
    changed = {f"{LAYER}.weight": numbers, f"{LAYER}.{ending}": scale.reshape(shape)}
    changed["model.diffusion_model.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    changed |= {f"{LAYER}.{name}": torch.tensor(0.37) for name in ("scale_input", "input_scale")}  # of activations only
    changed[f"{LAYER}.comfy_quant"] = note(
        format="int8_tensorwise" if dtype == torch.int8 else str(dtype)[6:], full_precision_matrix_mult=True
    )
    stored = read(plain, tmp_path, changed).tensors([NAME])[NAME]
    by_hand = torch.stack(
        [row.to(torch.float32) * (scale[i] if -1 in shape else scale) for i, row in enumerate(numbers)]
    )
    assert torch.equal(stored, by_hand)
    assert 0 < (stored - plain[1][f"{LAYER}.weight"]).norm() < 0.1 * stored.norm()


def test_a_whole_scaled_model_makes_the_images_of_its_numbers_times_scales(plain, tmp_path):
    """Every matrix and convolution of the UNet and the text encoder; then it is written as plain weights."""
    whole = plain[1]
    changed, by_hand = {}, {}
    for key, tensor in whole.items():
        if key.endswith(".weight") and tensor.ndim in (2, 4) and not key.startswith("first_stage"):
            numbers, scale = quantised(tensor, torch.float8_e4m3fn, rows=tensor.ndim == 4)
            changed |= {key: numbers, f"{key.removesuffix('weight')}scale_weight": scale}
            by_hand[key] = numbers.float() * (scale.reshape(-1, 1, 1, 1) if tensor.ndim == 4 else scale)
    (tmp_path / "by-hand").mkdir()
    expected = read(plain, tmp_path / "by-hand", by_hand).generate(ASKED).latents
    opened = read(plain, tmp_path, changed)
    assert opened.scaled
    assert torch.allclose(opened.generate(ASKED).latents, expected, atol=1e-4)
    export.to_file(opened, [], tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert set(again) == set(whole)
    assert torch.equal(again[f"{LAYER}.weight"], by_hand[f"{LAYER}.weight"])
    assert "8-bit weights are times their scales here, in float32" in (tmp_path / "out" / "README.md").read_text()


def test_a_third_of_openclip_s_attention_has_the_scales_of_its_own_rows(tmp_path):
    still(tiny_xl_pipeline()).save_pretrained(tmp_path / "xl")
    export.to_file(backbones.load(str(tmp_path / "xl")), [], tmp_path / "out")
    whole = load_file(tmp_path / "out" / "model.safetensors")
    layer = "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc"
    numbers, scale = quantised(whole[f"{layer}.weight"], torch.int8, rows=True)
    save_file({**whole, f"{layer}.weight": numbers, f"{layer}.weight_scale": scale}, tmp_path / "x.safetensors")
    opened = backbones.load(str(tmp_path / "x.safetensors"), layout=str(tmp_path / "xl"))
    got = opened._parts.read("text_encoder_2", ["text_model.encoder.layers.0.mlp.fc1.weight"])
    assert torch.equal(next(iter(got.values())), numbers.float() * scale[:, None])


def test_8_bit_floats_without_a_scale_are_read_as_they_are(plain, tmp_path):
    numbers = plain[1][f"{LAYER}.weight"].to(torch.float8_e4m3fn)
    opened = read(plain, tmp_path, {f"{LAYER}.weight": numbers})
    assert torch.equal(opened.tensors([NAME])[NAME], numbers.float())
    assert not opened.scaled


EIGHT = torch.ones(32, 32).to(torch.float8_e4m3fn)
WHOLE = torch.ones(32, 32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weight": WHOLE}, "is int8 without a scale"),
        ({"weight": EIGHT, "weight_scale": torch.ones(4, 4)}, r"is float32 of \(4, 4\) for a weight of \(32, 32\)"),
        ({"weight": EIGHT, "weight_scale": torch.ones(1, 32)}, "expected one scale a tensor or one a row"),
        ({"weight": EIGHT, "weight_scale": EIGHT[0].clone()}, "is float8_e4m3fn of"),
        ({"weight": WHOLE.byte(), "weight_scale": torch.ones(())}, "is uint8 with a scale"),
        ({"weight": EIGHT, "weight_scale": torch.ones(()), "scale_weight": torch.ones(())}, "has 2 scales"),
        ({"weight": EIGHT, "comfy_quant": note(format="float8_e4m3fn")}, "has 0 scales"),
        ({"weight": EIGHT, "weight_scale": torch.ones(()), "comfy_quant": note(format="nvfp4")}, "as 'nvfp4'"),
        (
            {"weight": EIGHT, "weight_scale": torch.ones(()), "comfy_quant": torch.ones(3).byte()},
            "expected a JSON object",
        ),
        (
            {
                "weight": WHOLE,
                "weight_scale": torch.ones(()),
                "comfy_quant": note(format="int8_tensorwise", convrot=True, group_size=64),
            },
            "with 'convrot' True",
        ),
        (
            {"weight": EIGHT, "weight_scale": torch.ones(()), "weight_scale_2": torch.ones(())},
            "weight_scale_2', for which",
        ),
        ({"weight": EIGHT, "weight_scale_inv": torch.ones(())}, "weight_scale_inv', for which"),
        ({"weight": WHOLE, "weight_zero_point": torch.ones(())}, "weight_zero_point', for which"),
    ],
)
def test_other_forms_are_refused_by_name(plain, tmp_path, changed, words):
    opened = read(plain, tmp_path, {f"{LAYER}.{end}": tensor for end, tensor in changed.items()})
    with pytest.raises(ExpungeError, match=words) as caught:
        opened.tensors([NAME])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"layers": {"a": {"format": "mxfp8"}}}, "'a' is quantised as 'mxfp8'"),
        ({"layers": {"a": {"format": "float8_e4m3fn", "rotation": 3}}}, "with 'rotation' 3"),
        ({"layers": [1]}, "expected a JSON object"),
    ],
)
def test_metadata_of_another_form_is_refused(plain, tmp_path, told, words):
    with pytest.raises(ExpungeError, match=words):
        read(plain, tmp_path, {}, {"_quantization_metadata": json.dumps(told)})
    read(plain, tmp_path, {}, {"_quantization_metadata": '{"layers": {"a": {"format": "float8_e5m2"}}}'})
