import re
import shutil

import diffusers
import pytest
import torch

import expunge
from expunge import backbones
from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance
from expunge.core.query import Query
from tiny import tiny_components, tiny_pipeline


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("vae", ["kl", "tiny"])
@pytest.mark.parametrize(
    "scheduler",
    [
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
    ],
)
def test_generates_what_the_diffusers_pipeline_generates(tmp_path, prediction, vae, scheduler):
    pipe = tiny_pipeline(prediction=prediction, vae=vae)
    options = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **options)
    pipe.save_pretrained(tmp_path / "sd")
    ours = StableDiffusion.from_folder(tmp_path / "sd", name="tiny")
    queries = [Query(prompt=p, seed=s, guidance=5.0, steps=4) for p, s in (("dog", 3), ("church", 4))]
    generators = [torch.Generator().manual_seed(q.seed) for q in queries]
    theirs = pipe(
        [q.prompt for q in queries], generator=generators, guidance_scale=5.0, num_inference_steps=4, output_type="np"
    ).images
    difference = ours.generate(queries).pixels.float() - torch.from_numpy(theirs) * 255
    assert difference.abs().max() <= 1


def test_seeds_do_not_depend_on_the_batch(backbone):
    queries = [Query(prompt="dog", seed=s, guidance=3.0, steps=2) for s in (8, 9)]
    together = backbone.generate(queries).latents
    assert torch.allclose(together[1:], backbone.generate(queries[1:]).latents, atol=1e-5)


def test_half_precision_variant_is_found_by_itself(tmp_path):
    pipe = tiny_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path / "sd", variant="fp16")
    for dtype in ("float16", "float32"):
        backbone = StableDiffusion.from_folder(tmp_path / "sd", name="tiny", dtype=dtype)
        names = backbone.text_inputs()
        from_file = backbone.stored(names)
        backbone.components()
        from_model = backbone.stored(names)
        assert all(torch.equal(from_file[n], from_model[n]) for n in names)
        assert from_file[names[0]].dtype == getattr(torch, dtype)


def test_an_edit_holds_for_both_precisions_of_one_base(tmp_path):
    tiny_pipeline().to(torch.float16).save_pretrained(tmp_path / "sd", variant="fp16")
    half, full = (StableDiffusion.from_folder(tmp_path / "sd", name="tiny", dtype=d) for d in ("float16", "float32"))
    edit = half.edit_of({n: t + 1 for n, t in half.tensors(half.text_inputs()).items()})
    full.attach(edit)


def test_given_embeddings_take_the_tokens_place_with_gradients(backbone):
    ids = backbone.tokenize(["dog"])
    embeddings = backbone.embed(ids).clone().requires_grad_()
    encoded = backbone.encode(ids, embeddings)
    assert torch.allclose(encoded.embeds, backbone.encode(["dog"]).embeds, atol=1e-6)
    assert encoded.tokens is None
    encoded.embeds[0, 3, 0].backward()
    assert embeddings.grad[0, 1].abs().sum() > 0
    assert embeddings.grad[0, 4:].abs().sum() == 0, "the text tower looks back only"


def test_one_hot_rows_embed_as_ids_do(backbone):
    ids = backbone.tokenize(["dog"])
    rows = torch.nn.functional.one_hot(ids, backbone._parts.get("text_encoder").config.vocab_size).float()
    assert torch.allclose(backbone.embed(rows), backbone.embed(ids), atol=1e-6)


def test_groups_follow_their_definitions(backbone):
    full = backbone.group("full")
    model = tiny_components()["unet"]
    assert set(full) == {f"unet.{n}" for n, _ in model.named_parameters()}
    assert set(backbone.group("xattn")) == {n for n in full if "attn2" in n}
    assert set(backbone.group("selfattn")) == {n for n in full if "attn1" in n}
    left_out = {n for n in full if re.match(r"unet\.(conv_norm_out|conv_out|time_embedding)\.", n) or "attn2" in n}
    assert set(backbone.group("noxattn")) == set(full) - left_out
    assert any("time_emb_proj" in n for n in backbone.group("noxattn")), "ResNet-level time projections are trained"
    backbone.components()
    assert set(backbone.group("full")) == set(full), "file and model agree"
    with pytest.raises(ExpungeError, match="did you mean 'xattn'"):
        backbone.group("xatn")


def test_attentions_name_real_parameters(backbone):
    found = backbone.attentions()
    assert {a.block for a in found.values()} == {"down", "mid", "up"}
    for layer in found.values():
        names = {layer.q, layer.k, layer.v, layer.out}
        assert names <= set(backbone.group("xattn"))
        assert layer.heads == 2


def test_images_survive_encoding_and_noise_is_added_as_the_schedule_says(backbone):
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    z = backbone.encode_image(pixels)
    assert z.shape == (2, 4, 8, 8)
    t = torch.tensor([10, 900])
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[t][:, None, None, None]
    noise = torch.randn_like(z)
    assert torch.allclose(backbone.add_noise(z, noise, t), abar.sqrt() * z + (1 - abar).sqrt() * noise, atol=1e-5)


def test_a_user_s_pipeline_keeps_one_backbone():
    pipe = tiny_pipeline()
    assert backbones.of(pipe) is backbones.of(pipe)
    img2img = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    assert backbones.of(img2img) is backbones.of(pipe), "one UNet, one stack of edits"
    with pytest.raises(ExpungeError, match="cannot be edited"):
        backbones.of(object())
    pipe = tiny_pipeline()
    pipe.text_encoder_2 = pipe.text_encoder
    with pytest.raises(ExpungeError, match="cannot be edited"):
        backbones.of(pipe)


def test_a_weights_edit_changes_the_user_s_pipeline_and_leaves_it_as_it_was():
    pipe = tiny_pipeline()
    call = {"guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}

    def image():
        return pipe("dog", generator=torch.Generator().manual_seed(0), **call).images

    plain = image()
    backbone = backbones.of(pipe)
    edit = backbone.edit_of({n: torch.zeros_like(t) for n, t in backbone.tensors(backbone.text_inputs()).items()})
    edit.attach(pipe)
    assert not torch.equal(image(), plain)
    edit.detach(pipe)
    assert torch.equal(image(), plain)


class Damped(Guidance):
    """Halves the guided prediction from the second step on, and counts its steps in the state."""

    eraser = "none"

    def fields(self):
        return {"eraser": "none"}

    def combine(self, backbone, guided, step):
        seen = step.state.setdefault("seen", torch.zeros(1))
        assert step.index == int(seen), "the step counts, whatever the scheduler repeats"
        step.state["seen"] = seen + 1
        return guided if step.index == 0 else guided / 2


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler"])
def test_a_combining_guidance_does_the_same_in_a_user_s_pipeline(tmp_path, scheduler):
    pipe = tiny_pipeline()
    options = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **options)
    pipe.save_pretrained(tmp_path / "sd")
    ours = StableDiffusion.from_folder(tmp_path / "sd", name="tiny")
    ours.attach(Damped())
    queries = [Query(prompt=p, seed=s, guidance=5.0, steps=4) for p, s in (("dog", 3), ("church", 4))]
    expected = ours.generate(queries).latents
    call = {"guidance_scale": 5.0, "num_inference_steps": 4, "output_type": "latent"}

    def images():
        generators = [torch.Generator().manual_seed(q.seed) for q in queries]
        return pipe([q.prompt for q in queries], generator=generators, **call).images

    plain = images()
    Damped().attach(pipe)
    for _ in range(2):
        assert torch.allclose(images(), expected, atol=1e-4)
    with pytest.raises(ExpungeError, match="called outside of a pipeline"):  # where nothing says which rows are guided
        pipe.unet(torch.zeros(1, 4, 8, 8), 5, torch.zeros(1, 16, 32))
    backbones.of(pipe).detach(Damped())
    assert torch.equal(images(), plain)


def test_several_images_a_prompt_in_a_user_s_pipeline(backbone):
    pipe = tiny_pipeline()
    call = {"guidance_scale": 5.0, "num_inference_steps": 2, "output_type": "latent", "num_images_per_prompt": 2}
    start = torch.randn(4, 4, 8, 8)
    wanted = pipe(["dog", "cat"], negative_prompt=["church"] * 2, latents=start.clone(), **call).images
    edit = expunge.erase(pipe, "church", method="negative-prompt")
    edit.attach(pipe)
    assert torch.allclose(pipe(["dog", "cat"], latents=start.clone(), **call).images, wanted, atol=1e-5)
    with pytest.raises(ExpungeError, match="attached already"):
        expunge.erase(pipe, "dog", method="negative-prompt").attach(pipe)


def test_an_edit_made_in_float32_holds_in_half_precision_and_back(folder, other_folder):
    full, half = (StableDiffusion.from_folder(folder, name="tiny", dtype=d) for d in ("float32", "float16"))
    names = full.text_inputs()
    made_full = full.edit_of({n: t + 1 for n, t in full.tensors(names).items()})
    made_half = half.edit_of({n: t + 1 for n, t in half.tensors(names).items()})
    half.attach(made_full)
    full.attach(made_half)
    other = StableDiffusion.from_folder(other_folder, name="other", dtype="float16")
    with pytest.raises(ExpungeError, match="another base"):
        other.attach(made_full)


def test_text_encoder_parameters_have_one_name_each(folder):
    fresh, used = (StableDiffusion.from_folder(folder, name="tiny") for _ in range(2))
    used.encode(["dog"])
    assert fresh.group("text-encoder") == used.group("text-encoder")
    name = fresh.group("text-encoder")[0]
    edit = fresh.edit_of({name: fresh.tensors([name])[name] + 1})
    used.attach(edit)
    used.detach(edit)


def test_a_sharded_unet_is_read_from_its_shards(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "sd")
    pipe.unet.save_pretrained(tmp_path / "sd" / "unet", max_shard_size="500KB")
    (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    backbone = StableDiffusion.from_folder(tmp_path / "sd", name="tiny")
    from_file = backbone.stored(backbone.text_inputs())
    expected = dict(pipe.unet.named_parameters())
    assert all(torch.equal(t, expected[n.removeprefix("unet.")]) for n, t in from_file.items())
    next((tmp_path / "sd" / "unet").glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(ExpungeError, match="damaged"):
        StableDiffusion.from_folder(tmp_path / "sd", name="tiny").stored(backbone.group("full"))


def test_more_steps_than_the_schedule_has_are_refused(backbone):
    with pytest.raises(ExpungeError, match="expected 1 to 1000"):
        backbone.generate([Query(prompt="dog", seed=0, guidance=3.0, steps=2000)])


def test_without_guidance_a_step_costs_one_evaluation(backbone):
    backbone.generate([Query(prompt="dog", seed=0, guidance=1.0, steps=3)])
    assert backbone.cost.forward == 3


def damaged(tmp_path, change):
    tiny_pipeline().save_pretrained(tmp_path / "sd")
    change(tmp_path / "sd")
    return tmp_path / "sd"


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: (p / "model_index.json").unlink(), "not a diffusers folder"),
        (lambda p: (p / "model_index.json").write_text("{"), "damaged"),
        (lambda p: (p / "model_index.json").write_text('{"_class_name": "SanaPipeline"}'), "holds a SanaPipeline"),
        (lambda p: (p / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "no safetensors weights"),
        (lambda p: truncate(p / "unet" / "diffusion_pytorch_model.safetensors"), "damaged|cannot be loaded"),
        (lambda p: truncate(p / "text_encoder" / "model.safetensors"), "cannot be loaded"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(tmp_path, change, words):
    folder = damaged(tmp_path, change)
    with pytest.raises(ExpungeError, match=words) as caught:
        backbone = backbones.load(str(folder))
        backbone.encode(["dog"])
        backbone.stored(backbone.text_inputs())
    assert "\n" not in str(caught.value)


def test_missing_models_are_refused():
    with pytest.raises(ExpungeError, match="no model "):
        backbones.load("/nowhere/at/all")
    with pytest.raises(ExpungeError, match="neither a folder here nor"):
        backbones.load("somebody/some-model")


def test_unknown_device_and_dtype_are_refused(folder):
    with pytest.raises(ExpungeError, match="did you mean 'float16'"):
        backbones.load(str(folder), dtype="float61")
    with pytest.raises(ExpungeError, match="device 'gpu' is not to be had"):
        backbones.load(str(folder), device="gpu")


def test_half_precision_generates_nearly_the_same_with_latents_in_full(folder):
    queries = [Query(prompt="dog", seed=s, guidance=3.0, steps=3) for s in range(4)]
    full, half = (
        StableDiffusion.from_folder(folder, name="tiny", dtype=d).generate(queries) for d in ("float32", "bfloat16")
    )
    assert half.latents.dtype == torch.float32
    assert (half.latents - full.latents).square().mean() < 1e-3 * full.latents.square().mean()


def test_identity_is_the_files_content_and_nothing_else(folder, other_folder, tmp_path):
    def identity(path):
        return StableDiffusion.from_folder(path, name=path.name).identity()

    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert identity(moved) == identity(folder) != identity(other_folder)
    (moved / "README.md").write_text("a card")
    assert identity(moved) == identity(folder)
    config = moved / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert identity(moved) != identity(folder)
    with pytest.raises(ExpungeError, match="expected a model opened from a folder"):
        StableDiffusion.from_pipeline(tiny_pipeline()).identity()


@pytest.mark.parametrize(("known", "dtype"), [({"avx512_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")])
def test_bfloat16_is_fast_only_where_the_cpu_computes_in_it(monkeypatch, known, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert backbones.fast_dtype() == dtype
