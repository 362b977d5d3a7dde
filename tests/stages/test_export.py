"""Exports that open elsewhere: images equal those of the edited model."""

import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import expunge
from expunge import backbones
from expunge.backbones.flux import packed
from expunge.core.adapter import Adapter, LowRank
from expunge.core.edit import Weights, fingerprints
from expunge.core.errors import ExpungeError
from expunge.core.lora import written
from expunge.erasers.spm import Transport
from expunge.maths.training import thin
from expunge.stages import export
from expunge.stages.card import Told
from expunge.store import load_edit
from tiny import still, tiny_flux_pipeline, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

MAKERS = {
    "sd": tiny_pipeline,
    "sdxl": tiny_xl_pipeline,
    "sd3": tiny_sd3_pipeline,
    "flux": tiny_flux_pipeline,
}
CALL = {"num_inference_steps": 3, "height": 16, "width": 16, "guidance_scale": 5.0, "output_type": "latent"}


def noise_of(backbone):
    """Noise as the family's pipeline takes it."""
    noise = backbone.noise(5)
    return packed(noise) if backbone.family == "flux" else noise


def adapter(backbone, rank, scale, seed, gate=None, layers="transformer"):
    generator = torch.Generator().manual_seed(seed)
    factors = thin(backbone, backbone.layers(layers), rank, generator)
    drawn = {n: 0.2 * torch.randn(t.shape, generator=generator) if n.endswith(".up") else t for n, t in factors.items()}
    return Adapter(drawn, scale=scale, gate=gate)


def two_layers():
    """SDXL with two layers a block, as it was released: kohya's names for it are the LDM layout's, which count on that."""
    pipe = tiny_xl_pipeline()
    torch.manual_seed(1)
    pipe.register_modules(unet=type(pipe.unet).from_config({**pipe.unet.config, "layers_per_block": 2}))
    return still(pipe)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("sd", "diffusers"),
        ("sd", "kohya"),
        ("sdxl", "diffusers"),
        ("sdxl", "kohya"),
        ("sd3", "diffusers"),
        ("flux", "diffusers"),
    ],
)
def test_a_lora_is_loaded_by_diffusers_itself(tmp_path, family, layout):
    make = two_layers if (family, layout) == ("sdxl", "kohya") else MAKERS[family]
    held = make()
    backbone = backbones.of(held)
    edits = [adapter(backbone, 2, 0.5, 0), adapter(backbone, 1, 2.0, 1)]
    noise = noise_of(backbone)
    plain = held("dog", latents=noise, **CALL).images
    for edit, strength in zip(edits, (1.0, 0.25), strict=True):
        edit.attach(held, strength=strength)
    expected = held("dog", latents=noise, **CALL).images
    for edit in edits:
        edit.detach(held)
    export.lora_to_folder(backbone, edits, tmp_path / "lora", layout, strength=(1.0, 0.25))
    fresh = make()
    fresh.load_lora_weights(tmp_path / "lora")
    theirs = fresh("dog", latents=noise, **CALL).images
    assert torch.allclose(theirs, expected, atol=1e-3)
    assert not torch.allclose(theirs, plain, atol=1e-2)
    page = (tmp_path / "lora" / "README.md").read_text()
    assert "load_lora_weights" in page
    assert "`pipe.set_adapters([...])` with both names" in page
    ours = load_edit(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    ours.attach(held)
    assert torch.allclose(held("dog", latents=noise, **CALL).images, expected, atol=1e-4), "and read back by expunge"
    ours.detach(held)


@pytest.mark.parametrize("write", [export.to_folder, export.to_file])
def test_an_adapter_of_another_family_is_refused_in_a_line_before_it_is_fused(tmp_path, write):
    strange = adapter(backbones.of(MAKERS["sdxl"]()), 2, 0.5, 0)
    with pytest.raises(ExpungeError, match=r"expected an adapter of its family|expected \("):
        write(backbones.of(MAKERS["sd"]()), [strange], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_duo_s_edit_is_a_lora_that_diffusers_loads(tmp_path, family):
    held = MAKERS[family]()
    settings = {"iterations": 2, "batch": 2, "pairs": 2, "rank": 4, "base_lr": 0.5, "base_lamb": 0.0}
    images = {role: [torch.randint(0, 256, (16, 16, 3)).byte() for _ in range(2)] for role in ("unsafe", "safe")}
    for role, pixels in images.items():
        (tmp_path / role).mkdir()
        for i, one in enumerate(pixels):
            Image.fromarray(one.numpy()).save(tmp_path / role / f"{i}.png")
    folders = {role: tmp_path / role for role in images}
    edit = expunge.erase(held, "church", method="duo", settings=settings, images=folders)
    assert edit.provenance.derived == {"lr": 0.1, "lamb": 0.0}
    backbone = backbones.of(held)
    noise = noise_of(backbone)
    plain = held("dog", latents=noise, **CALL).images
    with backbone.attached([edit]):
        expected = held("dog", latents=noise, **CALL).images
    export.lora_to_folder(backbone, [edit], tmp_path / "lora", "diffusers")
    fresh = MAKERS[family]()
    fresh.load_lora_weights(tmp_path / "lora")
    theirs = fresh("dog", latents=noise, **CALL).images
    assert torch.allclose(theirs, expected, atol=1e-3)
    assert not torch.allclose(theirs, plain, atol=1e-2)


@pytest.mark.parametrize("family", MAKERS)
def test_a_whole_model_is_loaded_by_diffusers_itself(tmp_path, family):
    import diffusers

    held = MAKERS[family]()
    edit = expunge.erase(held, "church", settings={"anchor": "cat"})
    both = [edit, adapter(backbones.of(held), 2, 0.5, 0)]
    export.to_folder(backbones.of(held), both, tmp_path / "model")
    noise = noise_of(backbones.of(held))
    for one in both:
        one.attach(held)
    expected = held("a church", latents=noise, **CALL).images
    fresh = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    fresh.set_progress_bar_config(disable=True)
    assert type(fresh) is type(held)
    assert torch.allclose(fresh("a church", latents=noise, **CALL).images, expected, atol=1e-3)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_weights_that_were_made_on_an_adapter_are_exported_with_it(tmp_path, family):
    import diffusers

    held = MAKERS[family]()
    backbone = backbones.of(held)
    first, noise = adapter(backbone, 2, 0.5, 0), noise_of(backbone)
    with backbone.attached([first]):
        second = expunge.erase(held, "church", settings={"anchor": "cat"})
    assert second.requires == (first.id,)
    with backbone.attached([first, second]):
        expected = held("a church", latents=noise, **CALL).images
    export.to_folder(backbone, [first, second], tmp_path / "model")
    fresh = still(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model"))
    assert torch.allclose(fresh("a church", latents=noise, **CALL).images, expected, atol=1e-3)
    with pytest.raises(ExpungeError, match="was made on top of"):
        export.to_folder(backbone, [second], tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


def test_weights_on_weights_with_a_text_encoder_s_old_names_are_exported(tmp_path):
    """Transformers before 5.6 have a level ``text_model`` in its names, and fingerprints are of the names in the file."""
    import diffusers

    backbone = backbones.of(tiny_pipeline())
    names = [n for n in backbone.group("text-mlp") if n.endswith("weight")][:2]
    old = [name.replace("text_encoder.", "text_encoder.text_model.") for name in names]
    first, second = (backbone.tensors([name])[name] for name in names)
    under = Weights({old[0]: -first}, base_sha256=fingerprints({old[0]: first}))
    over = Weights({old[1]: -second}, base_sha256=fingerprints({old[1]: second}), requires=(under.id,))
    export.to_folder(backbone, [under, over], tmp_path / "model")
    fresh = backbones.of(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")).tensors(names)
    assert torch.equal(fresh[names[0]], -first)
    assert torch.equal(fresh[names[1]], -second)


def test_what_is_no_lora_is_refused_in_a_line(tmp_path):
    held = tiny_pipeline()
    backbone = backbones.of(held)
    weights = expunge.erase(held, "church", settings={"anchor": "cat"})
    gated = adapter(backbone, 1, 1.0, 0, gate=Transport([["church"]]))
    for edits, words in (([weights], "is a weights edit"), ([gated], "gates"), ([], "no edit")):
        with pytest.raises(ExpungeError, match=words):
            export.lora_to_folder(backbone, edits, tmp_path / "lora", "diffusers")
    with pytest.raises(ExpungeError, match="kohya layout of a sd3 model"):
        third = backbones.of(tiny_sd3_pipeline())
        export.lora_to_folder(third, [adapter(third, 1, 1.0, 0)], tmp_path / "lora", "kohya")
    assert not (tmp_path / "lora").exists()


def test_every_layer_of_sdxl_has_the_name_that_kohya_gives_it(tmp_path):
    """All Linear and convolution layers, as kohya's scripts name those of SDXL, read back by diffusers and by expunge."""
    held = two_layers()
    backbone = backbones.of(held)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = [f"unet.{n}" for n, m in held.unet.named_modules() if isinstance(m, kinds)]
    generator = torch.Generator().manual_seed(0)
    drawn = {
        n: 0.05 * torch.randn(t.shape, generator=generator) for n, t in thin(backbone, layers, 1, generator).items()
    }
    export.lora_to_folder(backbone, [Adapter(drawn)], tmp_path / "lora", "kohya")
    keys = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    for name in ("input_blocks_0_0", "input_blocks_4_1_transformer_blocks_0_attn1_to_q", "middle_block_2_in_layers_2"):
        assert f"lora_unet_{name}.lora_down.weight" in keys
    noise = backbone.noise(5)
    with backbone.attached([Adapter(drawn)]):
        expected = held("dog", latents=noise, **CALL).images
    plain, fresh = held("dog", latents=noise, **CALL).images, two_layers()
    fresh.load_lora_weights(tmp_path / "lora")
    assert torch.allclose(fresh("dog", latents=noise, **CALL).images, expected, atol=1e-3)
    assert not torch.allclose(plain, expected, atol=1e-2)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_ranks_that_differ_between_layers_are_scaled_alike_by_diffusers(tmp_path, layout):
    held = tiny_pipeline()
    backbone = backbones.of(held)
    edits = [adapter(backbone, 2, 1.0, 0), adapter(backbone, 4, 1.0, 1, layers="selfattn")]
    noise = backbone.noise(5)
    with backbone.attached(edits):
        expected = held("dog", latents=noise, **CALL).images
    export.lora_to_folder(backbone, edits, tmp_path / "lora", layout)
    written = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert {len(t) for n, t in written.items() if n.endswith(("lora_A.weight", "lora_down.weight"))} == {6}
    assert {float(t) for n, t in written.items() if n.endswith(".alpha")} == ({6.0} if layout == "kohya" else set())
    fresh = tiny_pipeline()
    fresh.load_lora_weights(tmp_path / "lora")
    assert torch.allclose(fresh("dog", latents=noise, **CALL).images, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "layout"), [("sd", "diffusers"), ("sd", "kohya"), ("sdxl", "diffusers"), ("sdxl", "kohya")]
)
def test_text_encoders_names_in_a_written_lora_are_those_diffusers_reads(tmp_path, family, layout):
    """Written from an adapter's layers alone: the text encoder's weights in diffusers change by the adapter's product."""
    fresh = MAKERS[family]()
    towers = [name for name in ("text_encoder", "text_encoder_2") if hasattr(fresh, name)]
    layers = {f"{tower}.encoder.layers.1.{n}": LowRank(torch.randn(2, w), torch.randn(o, 2))
              for tower, width in zip(towers, (32, 48), strict=False)
              for n, w, o in (("self_attn.out_proj", width, width), ("mlp.fc2", 2 * width, width))}  # fmt: skip
    layers["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"] = LowRank(
        torch.randn(1, 64), torch.randn(64, 1)
    )
    names = export._kohya_names(backbones.of(fresh), layers) if layout == "kohya" else {}
    save_file(written(layers, layout, names), tmp_path / "lora.safetensors")
    fresh.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    found = 0
    for tower in towers:
        for name, module in getattr(fresh, tower).named_modules():
            for one, scale in (getattr(module, "scaling", None) or {}).items():
                down, up = layers[f"{tower}.{name.removeprefix('text_model.')}"]
                assert torch.allclose(
                    scale * module.lora_B[one].weight @ module.lora_A[one].weight, up @ down, atol=1e-5
                )
                found += 1
    assert found == 2 * len(towers)


@pytest.mark.parametrize("layout", ["diffusers", "ldm", "lora"])
def test_a_card_has_the_figures_of_the_edits_exported(tmp_path, layout):
    held = tiny_pipeline()
    backbone = backbones.of(held)
    edit = adapter(backbone, 1, 1.0, 0)
    record = {
        "metric": "esr@1",
        "value": 97.5,
        "low": 90.0,
        "high": 99.0,
        "n": 40,
        "unit": "%",
        "split": "test",
        "model": backbone.name,
    }
    ours = [{**record, "subject": "edited", "provenance": {"edits": [edit.id]}},
            {**record, "subject": "original", "value": 12.0, "provenance": {"edits": []}}]  # fmt: skip
    write = {
        "diffusers": export.to_folder,
        "ldm": export.to_file,
        "lora": lambda *a, **k: export.lora_to_folder(*a, "diffusers", **k),
    }[layout]
    write(backbone, [edit], tmp_path / "with", told=Told(records=ours))
    card = (tmp_path / "with" / "README.md").read_text()
    assert re.search(r"^\| edited \| [^|]+ \| test \| esr@1 \| 97\.5 % \| 90\.0 to 99\.0 \| 40 \|$", card, re.M)
    assert re.search(r"^\| original \| [^|]+ \| test \| esr@1 \| 12\.0 %", card, re.M)
    assert "states what was done" not in card
    for bad, words in (
        ({**ours[0], "provenance": {"edits": ["other"]}}, "of edits other"),
        ({**ours[0], "model": "another"}, "is of another at strength"),
        ({**ours[0], "provenance": {"edits": [edit.id], "strength": 0.3}}, r"at strength 0\.3"),
        ({"value": 1}, "a record lacks"),
    ):
        with pytest.raises(ExpungeError, match=words):
            write(backbone, [edit], tmp_path / "bad", told=Told(records=[bad]))
    assert not (tmp_path / "bad").exists()
    write(backbone, [edit], tmp_path / "without")
    assert "states what was done" in (tmp_path / "without" / "README.md").read_text()


def test_a_model_exported_again_is_the_same_file(tmp_path):
    """Which its published hash names; safetensors alone writes several entries of metadata in any order."""
    backbone = backbones.of(tiny_pipeline())
    edit = adapter(backbone, 1, 1.0, 0)
    files = [export.to_file(backbone, [edit], tmp_path / str(i)) / "model.safetensors" for i in range(6)]
    assert len({file.read_bytes() for file in files}) == 1


def test_a_model_without_the_layout_s_autoencoder_is_refused(tmp_path):
    with pytest.raises(ExpungeError, match="has an AutoencoderTiny: expected an AutoencoderKL"):
        export.to_file(backbones.load("testbed"), [], tmp_path / "out")
    with pytest.raises(ExpungeError, match="LDM layout of a sd3 model"):
        export.to_file(backbones.of(tiny_sd3_pipeline()), [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_lora_weights.safetensors"])
def test_somebody_else_s_folder_is_never_replaced(tmp_path, name):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_text("precious")
    backbone = backbones.of(tiny_pipeline())
    edit = adapter(backbone, 1, 1.0, 0)
    for write in (export.to_folder, export.to_file, lambda *a, **k: export.lora_to_folder(*a, "kohya", **k)):
        with pytest.raises(ExpungeError, match="was not made by this command"):
            write(backbone, [edit], tmp_path / "theirs", overwrite=True)
    assert (tmp_path / "theirs" / name).read_text() == "precious"
