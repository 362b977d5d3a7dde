"""LoRAs of FLUX in the names of kohya and Black Forest Labs: read as diffusers reads them, written so that both read them."""

import diffusers
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers as bfl_reader
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers as theirs_of
from safetensors.torch import load_file, save_file

from expunge import backbones
from expunge.cli import main
from expunge.core import bfl_names
from expunge.core.adapter import Adapter, LowRank
from expunge.core.bfl_lora import put_together
from expunge.core.errors import ExpungeError
from expunge.core.lora import factors, written
from expunge.core.query import Query
from expunge.maths.training import thin
from expunge.stages import export
from expunge.store import load_edit, save_edit
from tiny import tiny_flux_pipeline, tiny_pipeline

WIDTH = 3072  # diffusers' reader knows the released one only
ASKED = [Query(prompt="dog", seed=5, guidance=3.5, steps=2)]
CALL = {"num_inference_steps": 2, "height": 16, "width": 16, "guidance_scale": 3.5, "max_sequence_length": 24}


def kohya_file(generator):
    """A LoRA beside modules of every kind, as kohya's scripts write one: rank 6, alpha 3."""
    rows = {
        "double_blocks_0_img_attn_qkv": 3 * WIDTH,
        "double_blocks_0_txt_attn_qkv": 3 * WIDTH,
        "double_blocks_0_img_attn_proj": WIDTH,
        "double_blocks_0_txt_attn_proj": WIDTH,
        "double_blocks_0_img_mlp_0": 4 * WIDTH,
        "double_blocks_0_img_mlp_2": WIDTH,
        "double_blocks_0_txt_mlp_0": 4 * WIDTH,
        "double_blocks_0_txt_mlp_2": WIDTH,
        "double_blocks_0_img_mod_lin": 6 * WIDTH,
        "double_blocks_0_txt_mod_lin": 6 * WIDTH,
        "single_blocks_0_linear1": 7 * WIDTH,
        "single_blocks_0_linear2": WIDTH,
        "single_blocks_0_modulation_lin": 3 * WIDTH,
        "txt_in": WIDTH,
        "vector_in_in_layer": WIDTH,
        "time_in_out_layer": WIDTH,
    }
    file = {}
    for name, count in rows.items():
        file[f"lora_unet_{name}.lora_down.weight"] = torch.randn(6, 4, generator=generator)
        file[f"lora_unet_{name}.lora_up.weight"] = torch.randn(count, 6, generator=generator)
        file[f"lora_unet_{name}.alpha"] = torch.tensor(3.0)
    return file


def changes(tensors):
    """Up times down, by diffusers' names without the component."""
    down = {n.removesuffix(".lora_A.weight"): t for n, t in tensors.items() if n.endswith(".lora_A.weight")}
    return {n.removeprefix("transformer."): tensors[f"{n}.lora_B.weight"] @ t for n, t in down.items()}


def test_kohya_s_names_are_read_as_diffusers_reads_them():
    file = kohya_file(torch.Generator().manual_seed(0))
    theirs = changes(theirs_of(dict(file)))
    ours = factors(file)
    assert {n.rpartition(".")[0].removeprefix("transformer.") for n in ours} == set(theirs)
    for name, wanted in theirs.items():
        change = ours[f"transformer.{name}.up"] @ ours[f"transformer.{name}.down"]
        assert torch.allclose(change, wanted, atol=1e-4), name


def test_the_last_layer_s_shift_and_scale_change_places_as_diffusers_has_them():
    name = "lora_unet_final_layer_adaLN_modulation_1"
    file = {f"{name}.lora_down.weight": torch.randn(2, 4), f"{name}.lora_up.weight": torch.randn(6, 2)}
    ours = factors(file)
    shift, scale = (file[f"{name}.lora_up.weight"]).chunk(2)
    assert torch.equal(ours["transformer.norm_out.linear.up"], torch.cat([scale, shift]))


@pytest.mark.parametrize("front", ["", "diffusion_model.", "model.diffusion_model.", "transformer."])
def test_names_of_black_forest_labs_are_read_with_and_without_a_prefix(front):
    down, up = torch.randn(2, 8), torch.randn(42, 2)
    module = f"{front}single_blocks.3.linear1"
    ours = factors({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up})
    assert torch.equal(ours["transformer.single_transformer_blocks.3.proj_mlp.up"], up[18:])
    assert torch.equal(ours["transformer.single_transformer_blocks.3.attn.to_v.up"], up[12:18])
    with pytest.raises(ExpungeError, match="of 41 rows: expected a multiple of 7"):
        factors({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up[:41]})


def net_norms():
    """Scales of the norms, which their files of the kind have beside the LoRA."""
    double = [f"double_blocks.{i}.{side}_attn.norm" for i in range(19) for side in ("img", "txt")]
    single = [f"single_blocks.{i}.norm" for i in range(38)]
    return [f"{norm}.{one}_norm.scale" for norm in (*double, *single) for one in ("query", "key")]


def adapter(backbone, layers, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = thin(backbone, layers, 2, generator)
    drawn = {n: 0.2 * torch.randn(t.shape, generator=generator) if n.endswith(".up") else t for n, t in drawn.items()}
    return Adapter(drawn, scale=0.5)


@pytest.mark.parametrize("layers", ["transformer", "attn", "double"])
def test_what_is_written_for_kohya_is_read_back_and_by_diffusers(tmp_path, layers):
    backbone = backbones.of(tiny_flux_pipeline())
    edit = adapter(backbone, backbone.layers(layers), 3)
    with backbone.attached([edit]):
        expected = backbone.generate(ASKED).latents
    export.lora_to_folder(backbone, [edit], tmp_path / "lora", "kohya")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    names = {n.partition(".")[0] for n in load_file(file)}
    assert all(bfl_names.dotted(n.removeprefix("lora_unet_")) for n in names)
    with backbone.attached([load_edit(file)]):
        assert torch.allclose(backbone.generate(ASKED).latents, expected, atol=1e-4)
    assert not torch.allclose(backbone.generate(ASKED).latents, expected, atol=1e-3)
    if layers == "double":  # their reader splits single blocks at the released width alone
        fresh = tiny_flux_pipeline()
        fresh.load_lora_weights(tmp_path / "lora")
        generator = torch.Generator().manual_seed(5)
        theirs = fresh("dog", generator=generator, output_type="latent", **CALL).images
        theirs = diffusers.FluxPipeline._unpack_latents(theirs, 16, 16, fresh.vae_scale_factor)
        assert torch.allclose(theirs, expected, atol=1e-3)


def test_what_is_written_for_black_forest_labs_is_read_back(tmp_path):
    backbone = backbones.of(tiny_flux_pipeline())
    edit = adapter(backbone, backbone.layers("transformer"), 3)
    with backbone.attached([edit]):
        expected = backbone.generate(ASKED).latents
    export.lora_to_folder(backbone, [edit], tmp_path / "lora", "bfl")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    names = {n.rpartition(".lora_")[0] for n in load_file(file)}
    assert "double_blocks.0.img_attn.qkv" in names
    assert all(bfl_names.layers_of(name) for name in names)
    with backbone.attached([load_edit(file)]):
        assert torch.allclose(backbone.generate(ASKED).latents, expected, atol=1e-4)


def test_black_forest_labs_name_flux_s_transformer_alone(tmp_path, capsys):
    tiny_flux_pipeline().save_pretrained(tmp_path / "flux")
    tiny_pipeline().save_pretrained(tmp_path / "sd")
    flux, sd = (backbones.load(str(tmp_path / name)) for name in ("flux", "sd"))
    words = ["export", "--layout", "lora-bfl", "--quiet", "--edit", str(tmp_path / "edit.safetensors")]
    save_edit(adapter(flux, flux.layers("double"), 3), tmp_path / "edit.safetensors")
    assert main([*words, "--model", str(tmp_path / "flux"), "--out", str(tmp_path / "lora")]) == 0
    assert all("_blocks." in name for name in load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors"))
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    clip = Adapter({f"{text}.down": torch.ones(2, 4), f"{text}.up": torch.ones(4, 2)}, scale=1.0)
    for backbone, edit, said in (
        (flux, clip, "who name the transformer alone"),
        (sd, adapter(sd, sd.layers("attn"), 3), "expected FLUX"),
    ):
        with pytest.raises(ExpungeError, match=said):
            export.lora_to_folder(backbone, [edit], tmp_path / "none", "bfl")
    assert not (tmp_path / "none").exists()


def test_at_the_released_size_it_is_what_diffusers_reads_of_their_own():
    """Every module of FLUX, each layer's change of rank 1: diffusers has a reader for the LoRAs that they publish."""
    with torch.device("meta"):
        net = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {n.removesuffix(".weight"): p.shape for n, p in net.named_parameters() if p.ndim == 2}
    layers = {
        f"transformer.{name}": LowRank(
            torch.randn(1, wide, generator=generator), torch.randn(rows, 1, generator=generator)
        )
        for name, (rows, wide) in shapes.items()
    }
    file = written(together := put_together(layers, lambda name: shapes[name][0]), "bfl", {n: n for n in together})
    norms = {n: torch.ones(128) for n in net_norms()}
    theirs = bfl_reader({**file, **norms})
    for name, part in layers.items():
        layer = name.removeprefix("transformer.")
        up, down = (theirs[f"transformer.{layer}.lora_{half}.weight"] for half in "BA")
        if layer == "norm_out.linear":  # whose ranks their reader exchanges in one of the two: findings/last_layer_*.sh
            down = torch.cat([*down.chunk(2)][::-1])
        assert torch.allclose(up[:64] @ down[:, :64], part.up[:64] @ part.down[:, :64], atol=1e-5), layer


def test_names_of_diffusers_with_underscores_are_read(tmp_path):
    backbone = backbones.of(tiny_flux_pipeline())
    layers = backbone.layers("transformer")
    edit = adapter(backbone, layers, 3)
    file = {}
    for name, part in edit.layers.items():
        flat = "lora_" + name.replace(".", "_")
        file |= {f"{flat}.lora_down.weight": part.down, f"{flat}.lora_up.weight": 0.5 * part.up}
    save_file(file, tmp_path / "lora.safetensors")
    read = load_edit(tmp_path / "lora.safetensors")
    assert set(read.layers) == set(edit.layers)
    assert set(edit.layers) == set(layers)


def test_every_layer_has_a_place_in_a_file_and_back():
    with torch.device("meta"):
        net = diffusers.FluxTransformer2DModel(num_layers=2, num_single_layers=3, guidance_embeds=True)
    for name, _ in net.named_parameters():
        layer = name.rpartition(".")[0]
        home = bfl_names.home_of(layer)
        assert bfl_names.layers_of(home.module)[home.part] == layer
        assert bfl_names.dotted(home.module.replace(".", "_")) == home.module


def test_t5_in_kohya_s_names_is_refused_by_name():
    name = "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight"
    with pytest.raises(ExpungeError, match="unknown layout, with 'lora_te3_"):
        factors({name: torch.zeros(2, 4), name.replace("down", "up"): torch.zeros(4, 2)})
