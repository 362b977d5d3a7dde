"""A pipeline that the user holds, and changes, while edits are attached."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import expunge
from expunge import backbones
from expunge.core.edit import Weights, plain
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.erasers.kpop.recovery import Recovery
from expunge.erasers.sld import SafetyGuidance
from expunge.erasers.spm import Transport
from expunge.stages import erase
from states import NO_CHECKER, STATES, blocks_compiled, lora_folder, without_middle
from tiny import still, tiny_components, tiny_pipeline, tiny_xl_pipeline


def image(pipe, prompt="a dog", guidance=5.0, **more):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        return pipe(
            prompt, num_inference_steps=3, guidance_scale=guidance, generator=generator, output_type="latent", **more
        ).images.clone()


@pytest.fixture
def pipe():
    return still(tiny_pipeline())


@pytest.fixture(scope="module")
def weights():
    backbone = backbones.of(tiny_pipeline())
    names = backbone.group("xattn-strict")
    return backbone.edit_of({n: -t for n, t in backbone.tensors(names).items()})


STEERED = {
    "negative-prompt": lambda: expunge.erase(tiny_pipeline(), "cat", method="negative-prompt"),
    "sld": lambda: SafetyGuidance(
        text="cat", warmup=0, scale=50.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7
    ),
}


# what happens between attach and detach -------------------------------------------------------------------------------
def test_a_lora_loaded_after_an_edit_is_all_that_is_left_when_it_is_detached(pipe, weights):
    right = still(tiny_pipeline())
    right.load_lora_weights(lora_folder())
    weights.attach(pipe)
    pipe.load_lora_weights(lora_folder())
    weights.detach(pipe)
    assert torch.equal(image(pipe), image(right))
    pipe.unload_lora_weights()
    assert torch.equal(image(pipe), image(tiny_pipeline()))


def test_a_lora_fused_after_an_edit_is_not_thrown_away(pipe, weights):
    weights.attach(pipe)
    pipe.load_lora_weights(lora_folder())
    pipe.fuse_lora()
    before = image(pipe)
    with pytest.raises(ExpungeError, match=r"was changed while edits were attached .* \(unfuse the LoRA first"):
        weights.detach(pipe)
    assert torch.equal(image(pipe), before), "nothing was written"
    assert backbones.of(pipe).edits == [weights], "and it is still on the stack"
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    weights.detach(pipe)
    right = backbones.of(tiny_pipeline()).tensors(list(weights.replaced))
    now = backbones.of(pipe).tensors(list(weights.replaced))
    assert all(torch.equal(now[n], t) for n, t in right.items()), "rounding that fusing and unfusing left is gone, too"


def test_weights_loaded_while_an_edit_is_attached_are_not_overwritten(pipe, weights):
    weights.attach(pipe)
    other = tiny_pipeline(seed=5).unet.state_dict()
    pipe.unet.load_state_dict(other)
    with pytest.raises(ExpungeError, match="was changed while edits were attached"):
        weights.detach(pipe)
    assert all(torch.equal(t, other[n]) for n, t in pipe.unet.state_dict().items())


@pytest.mark.parametrize("there_and_back", [[torch.float16], [torch.bfloat16, torch.float32]])
def test_a_model_cast_while_an_edit_is_attached_is_the_cast_model_after(pipe, weights, there_and_back):
    right = still(tiny_pipeline())
    weights.attach(pipe)
    for dtype in there_and_back:
        pipe.to(dtype)
        right.to(dtype)
    weights.detach(pipe)
    wanted = right.unet.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in pipe.unet.state_dict().items())


def test_projections_fused_while_an_edit_is_attached_are_made_again_without_it(pipe, weights):
    weights.attach(pipe)
    pipe.fuse_qkv_projections()
    weights.detach(pipe)
    right = still(tiny_pipeline())
    right.fuse_qkv_projections()
    assert torch.equal(image(pipe), image(right))
    pipe.unfuse_qkv_projections()
    assert torch.equal(image(pipe), image(tiny_pipeline()))


def test_fused_projections_that_are_not_made_of_their_parts_are_left_alone(pipe, weights):
    pipe.fuse_qkv_projections()
    fused = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_kv
    fused.weight.data.mul_(2)
    with pytest.raises(ExpungeError, match=r"is not read: the projections .* are fused"):
        weights.attach(pipe)


def test_an_edit_of_offloaded_weights_is_not_taken_for_detached(pipe, weights):
    import accelerate

    weights.attach(pipe)
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    with pytest.raises(ExpungeError, match="is offloaded"):
        weights.detach(pipe)
    assert backbones.of(pipe).edits == [weights]


@pytest.mark.parametrize("kind", ["adapter", "negative-prompt"])
def test_a_module_compiled_before_or_after_heeds_what_comes_and_goes(pipe, kind):
    backbone = backbones.of(tiny_pipeline())
    edit = STEERED[kind]() if kind in STEERED else adapter(backbone)
    base = image(pipe)
    edit.attach(pipe)
    right = image(pipe)
    blocks_compiled(pipe)
    assert torch.allclose(image(pipe), right, atol=1e-4)
    edit.detach(pipe)
    assert torch.allclose(image(pipe), base, atol=1e-4)


def adapter(backbone):
    generator, factors = torch.Generator().manual_seed(3), {}
    for layer in backbone.layers("attn"):
        out, taken = backbone.tensors([f"{layer}.weight"])[f"{layer}.weight"].shape
        factors[f"{layer}.down"] = torch.randn((2, taken), generator=generator) * 0.3
        factors[f"{layer}.up"] = torch.randn((out, 2), generator=generator) * 0.3
    return backbone.adapter_of(factors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_lora_fused_in_half_precision_is_not_taken_for_rounding(pipe, weights, dtype):
    pipe.to(dtype)
    weights.attach(pipe, any_base=True)
    pipe.load_lora_weights(lora_folder())
    pipe.fuse_lora(lora_scale=0.02)
    with pytest.raises(ExpungeError, match="was changed while edits were attached"):
        weights.detach(pipe)


@pytest.mark.parametrize("method", ["esd", "leco"])
def test_what_is_not_read_is_not_trained(pipe, method):
    pipe.fuse_qkv_projections()
    with pytest.raises(ExpungeError, match=r"is not read: the projections .* are fused"):
        expunge.erase(pipe, "dog", method=method, settings={"iterations": 1, "sampling": {"sampling_steps": 2}})
    pipe.unfuse_qkv_projections()
    assert expunge.erase(pipe, "dog", method=method, settings={"iterations": 1, "sampling": {"sampling_steps": 2}})


def test_projections_fused_beside_an_adapter_are_refused_at_the_next_call(pipe):
    edit = adapter(backbones.of(tiny_pipeline()))
    base = image(pipe)
    edit.attach(pipe)
    pipe.fuse_qkv_projections()
    with pytest.raises(ExpungeError, match=r"is not read: the projections .* are fused"):
        image(pipe)
    edit.detach(pipe)
    pipe.unfuse_qkv_projections()
    assert torch.equal(image(pipe), base)


def test_an_adapter_of_a_compiled_text_encoder_has_its_effect(pipe):
    backbone, generator = backbones.of(tiny_pipeline()), torch.Generator().manual_seed(3)
    layers = [n.removesuffix(".weight") for n in backbone.group("text-mlp") if n.endswith("fc1.weight")]
    sizes = {n: backbone.tensors([f"{n}.weight"])[f"{n}.weight"].shape for n in layers}
    factors = {f"{n}.down": torch.randn((2, size[1]), generator=generator) for n, size in sizes.items()}
    factors |= {f"{n}.up": torch.randn((size[0], 2), generator=generator) for n, size in sizes.items()}
    edit, base = backbone.adapter_of(factors), image(pipe)
    edit.attach(pipe)
    right = image(pipe)
    edit.detach(pipe)
    pipe.text_encoder.compile(backend="eager")
    image(pipe)
    edit.attach(pipe)
    assert torch.allclose(image(pipe), right, atol=1e-4)
    assert not torch.allclose(right, base, atol=1e-2)
    edit.detach(pipe)
    assert torch.allclose(image(pipe), base, atol=1e-4)


def test_a_wrapper_that_comes_or_goes_does_not_lose_a_guidance_edit(pipe):
    right = image(pipe, negative_prompt="cat")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    STEERED["negative-prompt"]().attach(pipe)
    assert torch.allclose(image(pipe), right, atol=1e-4)
    pipe.unet = pipe.unet._orig_mod
    assert torch.allclose(image(pipe), right, atol=1e-4)


def test_a_text_encoder_exchanged_meanwhile(pipe, weights):
    weights.attach(pipe)
    own, other = pipe.text_encoder, tiny_components(seed=5)["text_encoder"]
    pipe.text_encoder = other
    weights.detach(pipe)
    assert backbones.of(pipe).edits == []
    pipe.text_encoder = own
    few = expunge.erase(pipe, "dog", method="few-shot", settings={"epochs": 1})
    few.attach(pipe)
    pipe.text_encoder = other
    with pytest.raises(ExpungeError, match="shares its unet with one that it had"):
        few.detach(pipe)
    pipe.text_encoder = own
    few.detach(pipe)
    assert torch.equal(image(pipe), image(tiny_pipeline()))


def test_edits_that_come_off_do_so_whatever_goes_wrong_with_one(pipe, weights):
    backbone = backbones.of(pipe)
    negative = STEERED["negative-prompt"]()
    with pytest.raises(ExpungeError, match="was changed while"), backbone.attached([negative, weights]):
        pipe.unet.load_state_dict(tiny_pipeline(seed=5).unet.state_dict())
    assert backbone.edits == [weights], "the other one is off"


@pytest.mark.parametrize(("state", "words"), [("IP-Adapter", "unload_ip_adapter"), ("DeepCache", "switched off first")])
def test_a_model_that_only_its_pipeline_can_ask_is_not_trained(state, words):
    made = STATES[state]().pipe
    with pytest.raises(ExpungeError, match=words):
        expunge.erase(made, "dog", method="esd", settings={"iterations": 1, "sampling": {"sampling_steps": 2}})
    assert expunge.erase(made, "dog", method="uce"), "which reads text alone"


def test_a_copied_unet_has_no_edits_of_its_own(pipe, weights):
    import copy

    weights.attach(pipe)
    twin = copy.deepcopy(pipe.unet)
    other = diffusers.StableDiffusionPipeline(**pipe.components | {"unet": twin}, requires_safety_checker=False)
    assert backbones.of(other).edits == []
    weights.detach(pipe)


# names ----------------------------------------------------------------------------------------------------------------
def test_names_without_the_levels_that_come_and_go():
    assert plain("unet._orig_mod.mid_block.attn2.to_k.base_layer.weight") == "unet.mid_block.attn2.to_k.weight"
    assert (
        plain("text_encoder.text_model.encoder.layers.0.mlp.fc1.bias") == "text_encoder.encoder.layers.0.mlp.fc1.bias"
    )
    assert plain("unet.my_base_layer.weight") == "unet.my_base_layer.weight"


@pytest.mark.parametrize("wrap", ["compile", "lora"])
def test_edits_made_on_wrapped_modules_fit_plain_ones_and_the_other_way_round(pipe, wrap):
    right = expunge.erase(tiny_pipeline(), "dog", method="uce")
    if wrap == "compile":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.load_lora_weights(lora_folder())
    made = expunge.erase(pipe, "dog", method="uce")
    assert made.tensors().keys() == right.tensors().keys()
    assert made.id == right.id
    right.attach(pipe)
    right.detach(pipe)
    plain_pipe = tiny_pipeline()
    made.attach(plain_pipe)
    assert backbones.of(plain_pipe).edits == [made]


def test_a_users_lora_is_not_trained(pipe):
    pipe.load_lora_weights(lora_folder())
    before = {n: t.clone() for n, t in pipe.unet.state_dict().items()}
    for method in ("esd", "leco"):
        settings = {"iterations": 1, "sampling": {"sampling_steps": 2}}
        made = expunge.erase(pipe, "dog", method=method, settings=settings)
        assert not [n for n in made.tensors() if "lora_" in n or "base_layer" in n]
    assert all(torch.equal(t, before[n]) for n, t in pipe.unet.state_dict().items())


def test_an_edit_with_the_text_encoders_old_names_fits(tmp_path, pipe):
    """Transformers before 5.6 have a level ``text_model`` in a text encoder's names."""
    backbone = backbones.of(tiny_pipeline())
    name = next(n for n in backbone.group("text-mlp") if n.endswith("weight"))
    base = backbone.tensors([name])[name]
    old = name.replace("text_encoder.", "text_encoder.text_model.")
    from expunge.core.edit import fingerprints

    edit = Weights({old: -base}, base_sha256=fingerprints({old: base}))
    file = tmp_path / "edit.safetensors"
    edit.save(file)
    assert list(load_file(file)) == [old]
    again = expunge.load_edit(file)
    assert again.id == edit.id
    before = image(pipe)
    again.attach(pipe)
    assert torch.equal(backbones.of(pipe).tensors([name])[name], -base)
    again.detach(pipe)
    assert torch.equal(image(pipe), before)


# whose call it is -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", STEERED)
def test_a_loop_of_ones_own_is_refused(pipe, method):
    STEERED[method]().attach(pipe)
    x, text = torch.zeros(2, 4, 8, 8), torch.zeros(2, 16, 32)
    with pytest.raises(ExpungeError, match="called outside of a pipeline"):
        pipe.unet(x, 1, encoder_hidden_states=text)


def test_a_pipeline_that_calls_on_other_rows_is_refused(pipe):
    class Halves(diffusers.StableDiffusionPipeline):
        """Asks for each half by itself, as some pipelines do to save memory."""

        def __call__(self, *args, **kwargs):
            self._guidance_scale = 5.0
            latents = torch.zeros(1, 4, 8, 8)
            return self.unet(latents, 1, encoder_hidden_states=torch.zeros(1, 16, 32))

    other = Halves(**pipe.components, requires_safety_checker=False)
    STEERED["sld"]().attach(other)
    with pytest.raises(ExpungeError, match="asks for 1 rows at 1 images: expected null and cond rows of each"):
        other("a dog")


@pytest.mark.parametrize("method", STEERED)
def test_each_of_several_images_is_what_it_is_alone(method):
    """Also without guidance, where an even number of rows is no guided pair."""
    for state in ("as loaded", "LCM (no guidance)"):
        made = STATES[state]()
        STEERED[method]().attach(made.pipe)

        def several(prompts, seeds, made=made):
            generators = [torch.Generator().manual_seed(s) for s in seeds]
            return made.pipe(prompts, num_inference_steps=2, generator=generators, output_type="latent").images

        with pytest.warns(ExpungeWarning, match="no effect") if "LCM" in state else _nothing():
            both = several(["a dog", "cat"], [1, 2])
            alone = torch.cat([several(["a dog"], [1]), several(["cat"], [2])])
        assert torch.allclose(both, alone, atol=1e-3)


class _nothing:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_guidance_that_a_callback_switches_off_on_the_way(pipe):
    """As diffusers' own documentation has it: half of the steps with guidance, the rest without."""

    def switch_off(pipe, step, t, given):
        if step == 1:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
        return given

    call = {"callback_on_step_end": switch_off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    right, base = image(pipe, negative_prompt="cat", **call), image(pipe, **call)
    STEERED["negative-prompt"]().attach(pipe)
    with pytest.warns(ExpungeWarning, match="no effect"):
        got = image(pipe, **call)
    assert float((got - right).norm() / (right - base).norm()) < 1e-3


def test_each_generation_begins_anew(pipe):
    """Momentum, and what is known of the words, belong to one generation, even one of a single step."""
    STEERED["sld"]().attach(pipe)
    first, other = image(pipe), image(pipe, "cat cat")
    assert torch.equal(image(pipe), first)
    assert not torch.equal(first, other)
    one = {"num_inference_steps": 1, "output_type": "latent"}
    alone = [pipe("a dog", generator=torch.Generator().manual_seed(0), **one).images for _ in range(2)]
    assert torch.equal(*alone)


def test_a_unet_shared_with_another_text_encoder(pipe):
    edit = expunge.erase(pipe, "dog", method="few-shot", settings={"epochs": 1})
    other = still(diffusers.StableDiffusionPipeline(**tiny_components(seed=5) | {"unet": pipe.unet}, **NO_CHECKER))
    before = image(pipe), image(other)
    edit.attach(pipe)
    for change in (edit.attach, edit.detach):
        with pytest.raises(ExpungeError, match="shares its unet with another pipeline, which carries edit"):
            change(other)
    edit.detach(pipe)
    assert torch.equal(image(pipe), before[0])
    assert torch.equal(image(other), before[1])
    STEERED["negative-prompt"]().attach(pipe)
    with pytest.raises(ExpungeError, match="has another text_encoder"):
        image(other)


def test_clip_skip_finds_the_words_all_the_same():
    pipe = tiny_xl_pipeline()
    gates = adapter(backbones.of(tiny_xl_pipeline()))
    from expunge.core.adapter import Adapter

    gated = Adapter(
        {n: t[:1] if n.endswith("down") else t[:, :1] for n, t in gates.tensors().items()}, gate=Transport([["dog"]])
    )
    free = Adapter(gated.tensors())
    call = {"height": 16, "width": 16, "clip_skip": 1}
    free.attach(pipe)
    right = image(pipe, **call)
    free.detach(pipe)
    gated.attach(pipe)
    assert torch.allclose(image(pipe, **call), right, atol=1e-4)


@pytest.mark.parametrize("first", ["sld", "key"])
def test_two_edits_that_steer_do_together_what_they_do_in_our_own_loop(pipe, first):
    tokens = torch.randn((3, 32), generator=torch.Generator().manual_seed(5))
    edits = [STEERED["sld"](), Recovery(prompts={"dog": tokens}, place="down-mid-up", salt="s")]
    if first == "key":
        edits.reverse()
    with backbones.of(pipe).attached(edits):
        ours = backbones.of(pipe).generate([Query(prompt="a dog", seed=0, guidance=5.0, steps=3)]).latents
        assert torch.allclose(image(pipe), ours, atol=1e-3)


def test_a_model_that_reads_the_scale_of_guidance_is_not_sampled_as_if_it_were_guided():
    with pytest.raises(ExpungeError, match=r"distilled to read the scale of guidance \(LCM\)"):
        backbones.of(STATES["LCM (no guidance)"]().pipe).generate(
            [Query(prompt="a dog", seed=0, guidance=5.0, steps=2)]
        )


# what a model cannot do -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
def test_guidance_of_one_or_less_is_none_as_the_pipelines_have_it(make, scale):
    pipe = still(make())
    sizes = {"height": 16, "width": 16}
    theirs = image(pipe, guidance=scale, **sizes)
    backbone = backbones.of(pipe)
    before = backbone.cost
    ours = backbone.generate([Query(prompt="a dog", seed=0, guidance=scale, steps=3)]).latents
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert (backbone.cost - before).forward == 3 * (2 if scale > 1 else 1)


def test_guidance_edits_do_nothing_without_guidance(pipe):
    backbone = backbones.of(pipe)
    query = [Query(prompt="a dog", seed=0, guidance=1.0, steps=2)]
    before = backbone.generate(query).latents
    for make in STEERED.values():
        with backbone.attached([make()]), pytest.warns(ExpungeWarning, match="no effect at guidance 1, which is none"):
            assert torch.equal(backbone.generate(query).latents, before)


def test_latents_with_statistics_of_their_own(tmp_path):
    pipe = tiny_xl_pipeline()
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[2.0, 1.5, 0.5, 3.0])
    pipe.save_pretrained(tmp_path / "xl")
    ours = backbones.load(str(tmp_path / "xl"))
    call = {"num_inference_steps": 2, "guidance_scale": 3.0}
    images = {
        kind: pipe("a dog", generator=torch.Generator().manual_seed(0), output_type=kind, **call).images
        for kind in ("latent", "np")
    }
    pixels = ours.decode(images["latent"])
    assert abs(pixels[0].numpy() / 255 - images["np"][0]).mean() < 0.003
    mean, std = (torch.tensor(pipe.vae.config[n]).view(1, 4, 1, 1) for n in ("latents_mean", "latents_std"))
    z = pipe.vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(ours.encode_image(pixels), (z - mean) * pipe.vae.config.scaling_factor / std, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: diffusers.EDMEulerScheduler(), "EDMEulerScheduler"),
        (lambda: diffusers.EulerDiscreteScheduler(timestep_type="continuous"), "timestep_type continuous"),
        (lambda: diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
    ],
)
def test_other_noise_schedules_are_not_trained_on(pipe, make, words):
    pipe.scheduler = make()
    with pytest.raises(ExpungeError, match=f"another noise schedule .*{words}"):
        expunge.erase(pipe, "dog", method="esd", settings={"iterations": 1})


def test_inpainting_and_middleless_unets():
    parts = tiny_components()
    sizes = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")} | {"in_channels": 9}
    parts["unet"] = diffusers.UNet2DConditionModel(**sizes)
    pipe = still(diffusers.StableDiffusionInpaintPipeline(**parts, **NO_CHECKER))
    with pytest.raises(ExpungeError, match=r"9 input channels \(inpainting\?\), and latents of 4"):
        expunge.erase(pipe, "dog", method="esd", settings={"iterations": 1})
    expunge.erase(pipe, "dog", method="uce").attach(pipe)  # which reads text alone
    with pytest.raises(ExpungeError, match=r"place mid, and .* has cross-attention in down, up blocks alone"):
        erase.prepared(backbones.of(without_middle().pipe), erase.build("kpop", {}, None), erase.concepts("dog"), [], 0)


def test_what_is_read_lies_in_memory_of_its_own(tmp_path, pipe):
    """A file's tensors may lie at any 8-byte boundary, where a matrix product can differ in its last bit."""
    backbone = backbones.of(tiny_pipeline())
    made = adapter(backbone)
    made.save(tmp_path / "edit.safetensors")
    again = expunge.load_edit(tmp_path / "edit.safetensors")
    assert all(t.data_ptr() % 64 == 0 for t in again.tensors().values())
    made.attach(pipe)
    one = image(pipe)
    made.detach(pipe)
    again.attach(pipe)
    assert torch.equal(image(pipe), one)
    tiny_pipeline().save_pretrained(tmp_path / "sd")
    read = backbones.load(str(tmp_path / "sd"))
    assert all(t.data_ptr() % 64 == 0 for t in read.tensors(read.text_inputs()).values())
