"""What all families share: image to image as diffusers does it, learned words, and the layers of attention."""

import re
import warnings

import diffusers
import pytest
import torch

from expunge import backbones
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import LearnedWord, Query, Start, queries
from tiny import tiny_flux_pipeline, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

MAKERS = {"sd": tiny_pipeline, "sdxl": tiny_xl_pipeline, "sd3": tiny_sd3_pipeline}
REDRAW = {
    "sd": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "sd3": diffusers.StableDiffusion3Img2ImgPipeline,
}
PIXELS = torch.randint(0, 256, (2, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(params=MAKERS)
def family(request):
    return request.param


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("negative", ["", "a church"])
def test_image_to_image_is_what_the_diffusers_pipeline_makes(family, strength, negative):
    held = MAKERS[family]()
    ours = backbones.of(held)
    latents = ours.encode_image(PIXELS)  # given to both as latents: their encoding of pixels is random
    theirs = REDRAW[family](**held.components, **({"requires_safety_checker": False} if family == "sd" else {}))
    theirs.set_progress_bar_config(disable=True)
    prompts = ["dog", "church"]
    expected = theirs(
        prompts,
        image=latents,
        strength=strength,
        negative_prompt=[negative] * 2 if negative else None,
        guidance_scale=5.0,
        num_inference_steps=8,
        generator=[torch.Generator().manual_seed(s) for s in (3, 4)],
        output_type="latent",
        **({"height": 16, "width": 16} if family == "sd3" else {}),
    ).images
    how = {"guidance": 5.0, "steps": 8, "negative": negative}
    for images in (latents, PIXELS):
        queries = [
            Query(prompt=p, seed=s, start=Start(image=x, strength=strength), **how)
            for p, s, x in zip(prompts, (3, 4), images, strict=True)
        ]
        assert torch.allclose(ours.generate(queries).latents, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_image_to_image_with_other_samplers(scheduler):
    held = tiny_pipeline()
    options = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    held.scheduler = getattr(diffusers, scheduler).from_config(held.scheduler.config, **options)
    ours = backbones.of(held)
    latents = ours.encode_image(PIXELS[:1])
    theirs = REDRAW["sd"](**held.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    call = {"strength": 0.6, "guidance_scale": 4.0, "num_inference_steps": 5, "output_type": "latent"}
    expected = theirs("dog", image=latents, generator=[torch.Generator().manual_seed(1)], **call).images
    query = Query(prompt="dog", seed=1, guidance=4.0, steps=5, start=Start(image=latents[0], strength=0.6))
    assert torch.allclose(ours.generate([query]).latents, expected, atol=1e-3, rtol=1e-3)


def test_pndm_begun_midway_takes_no_runge_kutta_steps():
    """By its class's defaults it would take them with the widths of the first timesteps, and end nowhere near."""
    pair = []
    for options in ({"skip_prk_steps": False}, {"skip_prk_steps": True}):
        held = tiny_pipeline()
        held.scheduler = diffusers.PNDMScheduler.from_config(held.scheduler.config, **options)
        pair.append(backbones.of(held))
    start = pair[0].encode_image(PIXELS[:1])[0]
    query = Query(prompt="dog", seed=1, guidance=4.0, steps=20, start=Start(image=start, strength=0.3))
    midway, plain = (ours.generate([query]).latents for ours in pair)
    assert torch.equal(midway, plain)
    assert midway.abs().max() < 10, "as far out as latents are"
    assert torch.equal(*(ours.begun(Query(prompt="dog", seed=1, guidance=4.0, steps=20), 5).image for ours in pair))
    whole = [ours.generate([Query(prompt="dog", seed=1, guidance=4.0, steps=20)]).latents for ours in pair]
    assert not torch.equal(*whole), "a whole trajectory is the model's own"


def test_steps_whose_offset_leads_past_the_last_timestep_are_refused(backbone):
    with pytest.raises(ExpungeError, match="1000 denoising steps, of which tiny has no timestep for the first"):
        backbone.generate([Query(prompt="dog", seed=1, guidance=4.0, steps=1000)])


def test_a_start_costs_the_steps_that_are_left_and_bad_ones_are_refused(backbone):
    query = Query(prompt="dog", seed=1, guidance=4.0, steps=4, start=Start(image=PIXELS[0], strength=0.5))
    before = backbone.cost
    backbone.generate([query])
    assert (backbone.cost - before).forward == 2 * 2
    for start, words in (
        (Start(image=PIXELS[0], strength=0.2), "leaves none: expected 0.25 or more"),
        (Start(image=PIXELS[0, :8], strength=0.5), r"as latents for tiny: expected \(4, 8, 8\)"),
    ):
        with pytest.raises(ExpungeError, match=words):
            backbone.generate([Query(prompt="dog", seed=1, guidance=4.0, steps=4, start=start)])
    with pytest.raises(ExpungeError, match=r"strength 1\.5"):
        Start(image=PIXELS[0], strength=1.5)
    with pytest.raises(ExpungeError, match="differ in guidance"):
        backbone.generate([query, Query(prompt="dog", seed=1, guidance=4.0, steps=4)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_in_half_precision_is_as_strong_as_in_full(family, dtype):
    """The strength that the schedule says, at its first timesteps too, where a signal of 0.999 rounds to 1 in bfloat16."""
    ours = backbones.of(MAKERS[family]())
    times = torch.tensor([0, 1, 2, 5, 20, 999])
    noise = torch.randn(6, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    wanted = times / 1000 if family == "sd3" else (1 - torch.cumprod(1 - betas, 0)[times]).sqrt()
    noised = ours.add_noise(torch.zeros_like(noise).to(dtype), noise.to(dtype), times)
    assert noised.dtype == dtype
    strength = noised.float().flatten(1).std(dim=1) / noise.flatten(1).std(dim=1)
    assert torch.allclose(strength.double(), wanted.double(), rtol=3e-3, atol=1e-6)
    if family == "sd3":
        return
    held = MAKERS[family]()
    held.scheduler.register_to_config(prediction_type="v_prediction")
    velocity = backbones.of(held).truth(noise.to(dtype), torch.zeros_like(noise).to(dtype), times)
    strength = velocity.float().flatten(1).std(dim=1) / noise.flatten(1).std(dim=1)
    assert torch.allclose(strength.double(), wanted.double(), rtol=3e-3)


def test_a_word_s_own_embeddings_are_read_as_the_word(family):
    """Splicing in what the vocabulary has for a word gives the word's encoding, in every text encoder."""
    ours = backbones.of(MAKERS[family]())
    ids = ours.tokenize(["a b dog on c"])
    vectors = ours.embed(ids)[0, 2:4]  # b, dog
    if family == "sd3":  # T5 reads words: here the filler
        ours.components()["text_encoder_3"].shared.weight.data.zero_()
    learned = ours.encode_learned(["a <v> on c", "<v> e <v>"], "<v>", vectors)
    known = ours.encode(["a b dog on c", "b dog e b dog"])
    assert torch.allclose(learned.embeds, known.embeds, atol=1e-5)
    assert learned.pooled is None or torch.allclose(learned.pooled, known.pooled, atol=1e-5)
    spliced = torch.zeros_like(ids, dtype=torch.bool)
    spliced[0, 2:4] = True
    assert torch.equal(learned.tokens[0], torch.where(spliced, -1, ids)[0]), "what was spliced in is no token"


def test_learned_words_have_gradients_and_need_their_place(backbone):
    vectors = torch.randn(2, 32, requires_grad=True)
    prompts = ["a photo of <v>", "<v>"]
    backbone.encode_learned(prompts, "<v>", vectors).embeds[0].sum().backward()
    assert (vectors.grad.abs().sum(1) > 0).all()
    for prompt in ("a photo", "photo of x<v>", "a b c d e f g h i j k l m n <v>"):
        with pytest.raises(ExpungeError, match="does not hold '<v>' as a word"):
            backbone.encode_learned([prompt], "<v>", vectors)


def test_a_query_with_a_learned_word_is_sampled_with_it(backbone):
    dog = backbone.embed(backbone.tokenize(["dog"]))[0, 1:2]
    how = {"guidance": 4.0, "steps": 2, "seed": 1}
    word = LearnedWord(word="<v>", vectors=dog)
    learned = Query(prompt="a <v>", learned=word, **how)
    found = backbone.generate([learned]).latents
    assert torch.allclose(found, backbone.generate([Query(prompt="a dog", **how)]).latents, atol=1e-5)
    other = LearnedWord(word="<v>", vectors=-dog)
    assert not torch.allclose(found, backbone.generate([Query(prompt="a <v>", learned=other, **how)]).latents)
    same = Query(prompt="a <v>", learned=LearnedWord(word="<v>", vectors=dog.clone()), **how)
    assert same == learned
    assert same.alike(learned)
    assert not learned.alike(Query(prompt="a <v>", learned=other, **how))
    assert learned.as_json()["learned"] == {"word": "<v>", "id": word.id}


def test_layers_of_attention(family):
    ours = backbones.of(MAKERS[family]())
    denoiser = ours.components()[ours.denoiser]
    projections = ("to_q", "to_k", "to_v", "to_out.0")
    for group, modules in (("selfattn", ["attn1"]), ("attn", ["attn1", "attn2", "attn"])):
        if family == "sd3" and group == "selfattn":
            continue
        owners = [n for n, _ in denoiser.named_modules() if n.rpartition(".")[2] in modules]
        assert owners
        assert sorted(ours.layers(group)) == sorted(f"{ours.denoiser}.{o}.{p}" for o in owners for p in projections)
    with pytest.raises(ExpungeError, match="layer group"):
        ours.layers("selfatn")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDPMScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverSDEScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("KDPM2AncestralDiscreteScheduler", {}),
        ("SASolverScheduler", {}),
    ],
)
def test_noise_on_the_way_depends_on_the_image_s_seed_alone(name, settings):
    """Not on how often the model has drawn, on what else is in the batch, or on what others draw from."""
    pipe = tiny_pipeline()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **settings)
    backbone = backbones.of(pipe)
    asked = queries([("a dog", "dog")], 2, 3, 3.0, 4)
    first = backbone.generate(asked).latents
    torch.manual_seed(99)
    again, alone = backbone.generate(asked).latents, backbone.generate(asked[1:]).latents
    assert torch.equal(first, again)
    assert (first[1] - alone[0]).norm() < 1e-3 * alone.norm()
    assert (first[0] - first[1]).norm() > 0.1 * alone.norm(), "another seed is another image"


def test_a_scheduler_with_seeds_of_its_own_is_given_each_image_s():
    """One that heeds no generator: the loop by hand, where the noise on the way has the seed of the image, or another's."""
    pipe = tiny_pipeline()
    pipe.scheduler = diffusers.DPMSolverSDEScheduler.from_config(pipe.scheduler.config)
    backbone = backbones.of(pipe)
    asked = [Query(prompt="a dog", seed=seed, guidance=1.0, steps=4) for seed in (3, 8)]
    ours = backbone.generate(asked).latents

    def by_hand(seed, on_the_way):
        scheduler = diffusers.DPMSolverSDEScheduler.from_config(pipe.scheduler.config, noise_sampler_seed=on_the_way)
        scheduler.set_timesteps(4)
        x, cond = backbone.noise(seed) * scheduler.init_noise_sigma, backbone.encode(["a dog"]).embeds
        for t in scheduler.timesteps:
            noise = pipe.unet(scheduler.scale_model_input(x, t), t, encoder_hidden_states=cond).sample
            x = scheduler.step(noise, t, x).prev_sample
        return x

    with torch.no_grad():
        for row, seed in enumerate((3, 8)):
            assert (ours[row] - by_hand(seed, seed)).norm() < 1e-3 * ours[row].norm()
            assert (ours[row] - by_hand(seed, 11 - seed)).norm() > 0.1 * ours[row].norm(), "the other image's noise"


@pytest.mark.parametrize(
    ("make", "name", "settings", "told"),
    [
        (tiny_pipeline, "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, None),
        (
            tiny_pipeline,
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            r"\(algorithm_type sde-dpmsolver\+\+, solver_order 3\) the more noise is left, .*: expected solver_order 2",
        ),
        (tiny_pipeline, "DPMSolverMultistepScheduler", {"solver_order": 3}, None),
        (tiny_pipeline, "EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "other noise levels"),
        (
            tiny_pipeline,
            "EulerDiscreteScheduler",
            {"interpolation_type": "log_linear", "use_exponential_sigmas": True},
            None,
        ),
        (tiny_pipeline, "EulerDiscreteScheduler", {}, None),
        (tiny_flux_pipeline, "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "less varied"),
        (tiny_flux_pipeline, "FlowMatchEulerDiscreteScheduler", {}, None),
    ],
)
def test_a_sampler_that_draws_other_images_than_the_model_knows_is_told(make, name, settings, told):
    lines = warned(make(), name, settings, steps=2)
    assert len(lines) == (told is not None)
    assert told is None or re.search(told, lines[0])


@pytest.mark.parametrize(
    ("name", "spacing", "steps", "first"),
    [
        ("DPMSolverMultistepScheduler", "leading", 2, None),
        ("DPMSolverMultistepScheduler", "leading", 50, None),
        ("DPMSolverMultistepScheduler", "leading", 100, 901),
        ("UniPCMultistepScheduler", "leading", 200, 801),
        ("UniPCMultistepScheduler", "trailing", 200, None),
        ("DDIMScheduler", "leading", 200, None),
        ("DDIMScheduler", "leading", 3, None),
    ],
)
def test_steps_that_begin_where_an_image_should_be_there_are_told(name, spacing, steps, first):
    lines = warned(tiny_pipeline(), name, {"timestep_spacing": spacing, "steps_offset": 1}, steps)
    assert len(lines) == (first is not None)
    assert first is None or f"{steps} steps begin at timestep {first} of 1000" in lines[0]


def warned(pipe, name, settings, steps):
    """What is said of another sampler."""
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **settings)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        backbones.of(pipe).generate([Query(prompt="a dog", seed=0, guidance=1.0, steps=steps)])
    return [str(w.message) for w in said if issubclass(w.category, ExpungeWarning)]
