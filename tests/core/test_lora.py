"""LoRA files as others write them: what expunge reads does what diffusers' own loader makes of the same file."""

import json
import re
import warnings

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.lora_names import place
from expunge.store import load_edit
from tiny import still, tiny_pipeline, tiny_xl_pipeline

FILE = "pytorch_lora_weights.safetensors"
CALL = {"num_inference_steps": 3, "height": 16, "width": 16, "guidance_scale": 5.0, "output_type": "latent"}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
DOWN, UP = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), torch.randn(64, 4)


def image(pipe):
    return pipe("a dog", generator=torch.Generator().manual_seed(0), **CALL).images


def trained(part, names=ATTENTION, **settings):
    """A peft LoRA on a component, with matrices that do something."""
    torch.manual_seed(9)
    part.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 4, **settings}, target_modules=list(names)))
    for name, tensor in part.named_parameters():
        if "lora_B" in name:
            tensor.data.normal_(0, 0.3)
    return get_peft_model_state_dict(part)


def same_as_diffusers(make, file, at_least=1e-2):
    """Whether a file does in expunge what `load_lora_weights` makes of it, and that is something."""
    base, theirs, ours = (still(make()) for _ in range(3))
    theirs.load_lora_weights(file.parent, weight_name=file.name)
    load_edit(file).attach(ours)
    plain, wanted = image(base), image(theirs)
    effect = (wanted - plain).norm() / plain.norm()
    assert effect > at_least
    assert (image(ours) - wanted).norm() / (wanted - plain).norm() < 1e-4


PATTERNS = {
    "rank_pattern": {"attn1.to_q": 2, r"^down_blocks.*to_v": 8},
    "alpha_pattern": {"to_q": 16, r"mid_block.*attn2\.to_out\.0": 1},
}


@pytest.mark.parametrize(
    "settings",
    [{"r": 8, "lora_alpha": 2}, {"use_rslora": True}, PATTERNS, {"r": 2, "lora_alpha": 8, "init_lora_weights": "eva"}],
    ids=["alpha", "rslora", "patterns", "of training"],
)
def test_settings_in_the_metadata_are_heeded(tmp_path, settings):
    made = tiny_pipeline()
    tensors = trained(made.unet, **({**settings, "init_lora_weights": True}))
    told = made.unet.peft_config["default"].to_dict() | {"init_lora_weights": settings.get("init_lora_weights", True)}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=tensors, unet_lora_adapter_metadata=told
    )
    if "eva" not in settings.values():
        return same_as_diffusers(tiny_pipeline, tmp_path / FILE)
    part = load_edit(tmp_path / FILE).layers[LAYER]  # diffusers wants the initialisation's data to load it
    assert torch.allclose(
        part.up @ part.down, 4 * tensors[f"{LAYER[5:]}.lora_B.weight"] @ tensors[f"{LAYER[5:]}.lora_A.weight"]
    )
    return None


def test_ranks_that_differ_are_read_without_settings_too(tmp_path):
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=trained(tiny_pipeline().unet, rank_pattern={"attn1.to_q": 2, "to_v": 8})
    )
    same_as_diffusers(tiny_pipeline, tmp_path / FILE)


def test_a_folder_of_peft_is_read_with_its_settings_and_refused_without(tmp_path):
    made = tiny_pipeline()
    tensors = trained(made.unet, lora_alpha=12)
    save_file(
        {f"base_model.model.{n}": t.contiguous() for n, t in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(ExpungeError, match=r"without its settings: expected 'adapter_config.json' beside it"):
        load_edit(tmp_path / "adapter_model.safetensors")
    made.unet.peft_config["default"].save_pretrained(tmp_path)
    part = load_edit(tmp_path / "adapter_model.safetensors").layers[LAYER]
    wanted = 3 * tensors[f"{LAYER[5:]}.lora_B.weight"] @ tensors[f"{LAYER[5:]}.lora_A.weight"]
    assert torch.allclose(part.up @ part.down, wanted, atol=1e-6)


def flat(tensors, alpha, front="lora_unet_"):
    """Tensors of a LoRA in kohya's names, from peft's."""
    found = {}
    for name, tensor in tensors.items():
        layer, part = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()
        key = front + layer.replace(".", "_")
        found[f"{key}.lora_{'down' if part == 'A' else 'up'}.weight"] = tensor.contiguous()
        found[f"{key}.alpha"] = torch.tensor(float(alpha))
    return found


def test_kohya_s_names_of_stable_diffusion_1(tmp_path):
    names = [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv_shortcut", "time_emb_proj"]
    save_file(flat(trained(tiny_pipeline().unet, names), 2.0), tmp_path / "kohya.safetensors")
    same_as_diffusers(tiny_pipeline, tmp_path / "kohya.safetensors")


def test_every_layer_has_its_own_alpha_and_rank(tmp_path):
    """By the format; diffusers 0.42 takes the most frequent alpha for all layers of kohya's names, so it is no judge here."""
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    layers = {"to_q": (4, 4.0), "to_v": (1, 1.0), "to_out.0": (4, 2.0)}
    drawn = {n: (torch.randn(r, 64), torch.randn(64, r)) for n, (r, _) in layers.items()}
    tensors = {}
    for name, (down, up) in drawn.items():
        tensors |= flat({f"{block}.{name}.lora_A.weight": down, f"{block}.{name}.lora_B.weight": up}, layers[name][1])
    save_file(tensors, tmp_path / FILE)
    read = load_edit(tmp_path / FILE).layers
    for name, (down, up) in drawn.items():
        part, scale = read[f"unet.{block}.{name}"], 0.5 if name == "to_out.0" else 1.0
        assert torch.allclose(part.up @ part.down, scale * up @ down, atol=1e-5), name


def wide_xl_pipeline():
    """A tiny SDXL with two layers a block, as it was released; names in the LDM layout count on that."""
    pipe = tiny_xl_pipeline()
    torch.manual_seed(1)
    pipe.register_modules(unet=type(pipe.unet).from_config({**pipe.unet.config, "layers_per_block": 2}))
    return still(pipe)


SGM = {  # kohya trains SDXL in the LDM layout, two layers a block
    "down_blocks.1.attentions.0.": "input_blocks_4_1_",
    "down_blocks.1.attentions.1.": "input_blocks_5_1_",
    "mid_block.attentions.0.": "middle_block_1_",
    "up_blocks.0.attentions.0.": "output_blocks_0_1_",
    "up_blocks.0.attentions.1.": "output_blocks_1_1_",
    "up_blocks.0.attentions.2.": "output_blocks_2_1_",
}


def test_kohya_s_names_of_sdxl_are_the_ldm_layout_s(tmp_path):
    tensors = trained(wide_xl_pipeline().unet, [*ATTENTION, "proj_in", "ff.net.0.proj"])
    renamed = {next(k for k in SGM if n.startswith(k)): None for n in tensors}
    assert set(renamed) == set(SGM), "every block has attention"
    named = {re.sub("|".join(map(re.escape, SGM)), lambda m: SGM[m[0]], n): t for n, t in tensors.items()}
    save_file(flat(named, 8.0), tmp_path / "kohya.safetensors")
    same_as_diffusers(wide_xl_pipeline, tmp_path / "kohya.safetensors")


def test_the_ldm_layout_s_names_are_those_of_the_single_file():
    """Every layer of a UNet of SDXL's form: the names that `ldm` gives files lead back to it."""
    from expunge.backbones import ldm

    unet = wide_xl_pipeline().unet
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = [n for n, m in unet.named_modules() if isinstance(m, kinds)]
    keys = ldm.places("unet", [n for n, _ in unet.named_parameters()], "sdxl")
    for layer in layers:
        key = keys[f"{layer}.weight"].key.removeprefix("model.diffusion_model.").removesuffix(".weight")
        for name in (
            f"lora_unet_{key.replace('.', '_')}",
            f"diffusion_model.{key}",
            f"unet.{layer}",
            f"lora_unet_{layer.replace('.', '_')}",
        ):
            assert place(f"{name}.lora_down.weight") == (f"unet.{layer}", "down"), name
    assert len(layers) > 100


def older(name):
    """A name of peft's inside a text encoder, as diffusers once wrote it."""
    layer, part = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()
    end = "down.weight" if part == "A" else "up.weight"
    match = re.fullmatch(r"(.+self_attn)\.(q|k|v|out)_proj", layer)
    return f"{match[1]}.to_{match[2]}_lora.{end}" if match else f"{layer}.lora_linear_layer.{end}"


@pytest.mark.parametrize("names", ["new", "without text_model", "older", "kohya"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_text_encoders_are_read_as_diffusers_reads_them(tmp_path, family, names):
    make = {"sd": tiny_pipeline, "sdxl": tiny_xl_pipeline}[family]
    made, theirs = still(make()), still(make())
    fronts = (
        {"text_encoder": "lora_te_"} if family == "sd" else {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    )
    unet = trained(made.unet, ["to_q"])
    tensors = flat(unet, 2.0) if names == "kohya" else {f"unet.{n}": t.contiguous() for n, t in unet.items()}
    for tower, front in fronts.items():
        for name, tensor in trained(getattr(made, tower), ["q_proj", "v_proj", "out_proj", "fc1"]).items():
            own = f"text_model.{name.removeprefix('text_model.')}"
            if names == "kohya":
                tensors |= flat({own: tensor}, 2.0, front)
                continue
            own = name if names == "without text_model" else older(own) if names == "older" else own
            tensors[f"{tower}.{own}"] = tensor.contiguous()
    save_file(tensors, tmp_path / "lora.safetensors")
    theirs.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    ours = load_edit(tmp_path / "lora.safetensors").layers
    seen = 0
    for tower in fronts:
        for name, module in getattr(theirs, tower).named_modules():
            for adapter, scale in (getattr(module, "scaling", None) or {}).items():
                part = ours[f"{tower}.{name.removeprefix('text_model.')}"]
                wanted = scale * module.lora_B[adapter].weight @ module.lora_A[adapter].weight
                assert torch.allclose(part.up @ part.down, wanted, atol=1e-6), name
                seen += 1
    assert seen == 2 * 4 * len(fronts)


def test_a_lora_with_a_text_encoder_does_what_diffusers_makes_of_it(tmp_path):
    made = tiny_pipeline()
    both = {
        "unet_lora_layers": trained(made.unet),
        "text_encoder_lora_layers": trained(made.text_encoder, ["q_proj", "fc2"]),
    }
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, **both)
    same_as_diffusers(tiny_pipeline, tmp_path / FILE)


def test_older_names_of_diffusers_are_read(tmp_path):
    tensors = {}
    for name, tensor in trained(tiny_pipeline().unet).items():
        layer, part = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name).groups()
        older = re.sub(r"\.(attn\d)\.to_(q|k|v|out)(\.0)?$", r".\1.processor.to_\2_lora", layer)
        tensors[f"unet.{older}.{'down' if part == 'A' else 'up'}.weight"] = tensor.contiguous()
    assert any(".processor.to_out_lora.up." in name for name in tensors)
    save_file(tensors, tmp_path / "lora.safetensors")
    same_as_diffusers(tiny_pipeline, tmp_path / "lora.safetensors")
    save_file({n.removeprefix("unet."): t for n, t in tensors.items()}, tmp_path / "bare.safetensors")
    assert load_edit(tmp_path / "bare.safetensors").id == load_edit(tmp_path / "lora.safetensors").id


def test_half_precision_loses_nothing_to_alpha(tmp_path):
    up = torch.full((64, 4), 6e-8).half()  # the smallest number of float16
    save_file(
        {f"{LAYER}.lora_A.weight": DOWN.half(), f"{LAYER}.lora_B.weight": up, f"{LAYER}.alpha": torch.tensor(1.0)},
        tmp_path / FILE,
    )
    assert torch.equal(load_edit(tmp_path / FILE).layers[LAYER].up, up.float() / 4)


PAIR = {f"{LAYER}.lora_A.weight": DOWN, f"{LAYER}.lora_B.weight": UP}
FLAT = "lora_" + LAYER.replace(".", "_")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (f"{LAYER}.dora_scale", "the magnitudes of DoRA"),
        (f"{LAYER}.lora_magnitude_vector", "the magnitudes of DoRA"),
        ("lora_unet_conv_in.diff", "a whole change of a tensor"),
        ("lora_unet_conv_in.diff_b", "a whole change of a tensor"),
        ("unet.conv_in.weight", "a whole tensor"),
        ("unet.conv_in.bias", "a whole bias"),
        (f"{LAYER}.lora_B.bias", "a bias"),
        (f"{FLAT}.hada_w1_a", "a part of a LoHa"),
        (f"{FLAT}.lokr_w1", "a part of a LoKr"),
        (f"{FLAT}.lora_mid.weight", "a third matrix"),
        ("bundle_emb.cat.string_to_param.*", "a learned word"),
        ("unet.conv_in.lora_A.default.weight", "of unknown layout"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "of unknown layout"),
        ("vae.conv_in.lora_A.weight", "of unknown layout"),
        ("unet.conv_in.lora_A.weight", "no matrix up"),
        ("unet.conv_in.lora_B.weight", "no matrix down"),
        ("unet.conv_in.alpha", "no matrix down"),
        (f"{FLAT}.lora_down.weight", "one and the same"),
    ],
)
def test_what_is_no_low_rank_change_is_refused_by_name(tmp_path, extra, words):
    save_file({**PAIR, extra: torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(
        ExpungeError, match=f"lora.safetensors': a LoRA .*'{re.escape(extra)}'.*{words}|{words}.*'{re.escape(extra)}'"
    ) as caught:
        load_edit(tmp_path / "lora.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("{", "damaged: expected a JSON object"),
        ("[1]", "damaged: expected a JSON object"),
        ({"unet.r": 8, "unet.lora_alpha": 8}, "settings say rank 8 .*expected 4, its matrices'"),
        ({"unet.r": 4, "unet.lora_alpha": "x"}, "settings say 'x'"),
        ({"unet.r": 4, "unet.lora_alpha": 0}, "alpha 0 .*expected a number other than 0"),
        ({"unet.r": 4, "unet.lora_alpha": 4, "unet.alpha_pattern": {"(": 1}}, "expected a regular expression"),
        ({"unet.r": 4, "unet.lora_alpha": 4, "unet.init_lora_weights": "pissa"}, 'init_lora_weights = "pissa"'),
        ({"unet.r": 4, "unet.lora_alpha": 4, "unet.use_dora": True}, "use_dora = true"),
        ({"unet.r": 4, "unet.lora_alpha": 4, "unet.surprise": 3}, "surprise = 3"),
    ],
)
def test_settings_that_are_not_understood_are_refused(tmp_path, told, words):
    text = told if isinstance(told, str) else json.dumps(told)
    save_file(PAIR, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": text})
    with pytest.raises(ExpungeError, match=words) as caught:
        load_edit(tmp_path / "lora.safetensors")
    assert "\n" not in str(caught.value)


def test_an_alpha_that_is_said_twice_must_be_one(tmp_path):
    told = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8})}
    for alpha, refused in ((8.0, False), (4.0, True)):
        save_file({**PAIR, f"{LAYER}.alpha": torch.tensor(alpha)}, tmp_path / FILE, metadata=told)
        if refused:
            with pytest.raises(ExpungeError, match=r"alpha 4 .* and 8 in its settings"):
                load_edit(tmp_path / FILE)
            continue
        part = load_edit(tmp_path / FILE).layers[LAYER]
        assert torch.allclose(part.up @ part.down, 2 * UP @ DOWN, atol=1e-4)


def membrane(path, metadata=None, components=1):
    """Write a file as SPM's authors do: kohya's names, and the erased words in the metadata."""
    tensors = trained(tiny_pipeline().unet, [*ATTENTION, "proj_in", "proj_out"], r=components)
    save_file(flat(tensors, 1.0), path, metadata=metadata)


def test_a_membrane_of_spm_keeps_its_gate(tmp_path, folder):
    membrane(tmp_path / FILE, {"prompts": "church,a big chapel", "rank": "1", "alpha": "1.0"})
    edit = load_edit(tmp_path / FILE)
    assert edit.gates == (("church", "a big chapel"),)
    backbone = StableDiffusion.from_folder(folder, name="tiny")
    opened = edit.gate.opened(backbone, backbone.encode(["church", "dog"]))
    assert opened[0, 0] == pytest.approx(1)
    assert opened[1, 0] < 0.99
    with backbone.attached([edit]):
        assert backbone.edits == [edit]
    membrane(tmp_path / FILE, {"prompts": "church", "rank": "2", "alpha": "1.0"}, components=2)
    assert load_edit(tmp_path / FILE).gates == (("church",), ("church",)), "one membrane, opened as a whole"


@pytest.mark.parametrize(
    "metadata",
    [None, {"prompts": " , ", "rank": "1", "alpha": "1.0"}, {"prompts": '{"target": "church"}', "config": "{}"}],
    ids=["none", "empty", "leco"],
)
def test_a_membrane_that_lost_its_words_is_said_to_act_on_every_prompt(tmp_path, metadata):
    membrane(tmp_path / FILE, metadata)
    with pytest.warns(ExpungeWarning, match="its gate is lost"):
        assert not load_edit(tmp_path / FILE).gates


def test_a_plain_lora_is_read_without_a_warning(tmp_path):
    save_file(PAIR, tmp_path / FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_edit(tmp_path / FILE)
