"""Attacks that learn no words: images to start from, trajectories, training, rounding, and the controls."""

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from expunge import backbones
from expunge.attacks.continuation import Continuation
from expunge.attacks.image_to_image import ImageToImage
from expunge.attacks.random_tokens import RandomTokens
from expunge.attacks.relearning import Relearning
from expunge.attacks.rounding import Rounding, rounding
from expunge.attacks.seed_search import SeedSearch
from expunge.backbones import sampling
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.conditioning import Conditioning
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query, Shot
from expunge.core.victim import BlackBox, WhiteBox
from expunge.erasers.negative_prompt import NegativePrompt
from expunge.erasers.sld import SafetyGuidance
from expunge.erasers.uce import UCE
from expunge.stages import attack as attacks
from expunge.stages import erase
from tiny import tiny_flux_pipeline, tiny_pipeline, tiny_sd3_pipeline

PIXELS = torch.randint(0, 256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()
SHOTS = [Shot(path=Path(str(i)), pixels=lambda i=i: PIXELS[i], prompt="a church", seed=i, label=None) for i in range(3)]
TASK = Task(targets=[Concept(name="church")], seed=1, images={"church": SHOTS})
ASKED = [
    *(Query(prompt="a church", label="church", seed=s, guidance=3.0, steps=4) for s in range(3)),
    Query(prompt="a dog", label="dog", seed=0, guidance=3.0, steps=4),
]


def white(backbone):
    return WhiteBox(backbone, lambda queries: PIXELS[:0], {}, 0)


def edit_of(backbone):
    return erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])


def test_image_to_image_starts_each_query_from_a_picture_at_the_strength():
    victim = BlackBox(lambda queries: PIXELS[:0], {}, 0)
    found = ImageToImage(strength=0.5).provoke(victim, TASK, ASKED).queries
    assert [(q.prompt, q.seed, q.label) for q in found] == [("a church", s, "church") for s in range(3)]
    assert all(q.start.strength == 0.5 and any(torch.equal(q.start.image, p) for p in PIXELS) for q in found)
    others = ImageToImage(strength=0.5).provoke(victim, dataclasses.replace(TASK, seed=7), ASKED).queries
    assert [q.start.id for q in others] != [q.start.id for q in found]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_continuation_by_the_original_itself_is_its_own_image(backbone, share):
    """Handed over to the same model, the trajectory ends where it would have ended: whatever was stored half-way."""
    own = backbone.generate(ASKED[:1]).pixels.float()
    (begun, *_) = Continuation(share=share).provoke(white(backbone), TASK, ASKED).queries
    assert begun.start.strength == 1 - share
    again = backbone.generate([begun]).pixels.float()
    assert (own - again).abs().max() <= 1
    elsewhere = backbone.generate([dataclasses.replace(begun, seed=99)]).pixels.float()
    assert (own - elsewhere).abs().max() > 1, "another seed's noise is not what was stored"


SAMPLERS = [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler, DPMSolverMultistepScheduler]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("steps", "done"), [(6, 2), (6, 5), (22, 7)])
def test_what_was_begun_gives_its_latents_back_in_every_sampler(sampler, steps, done):
    """Diffusers' own scheduler, step by step, is at the latents that noise added to the start gives back."""
    pipeline = tiny_pipeline()
    own = {"skip_prk_steps": True} if sampler is PNDMScheduler else {}  # as Stable Diffusion has it
    pipeline.scheduler = sampler.from_config(pipeline.scheduler.config, **own)
    backbone = backbones.of(pipeline)
    query = dataclasses.replace(ASKED[0], steps=steps)
    start = backbone.begun(query, done)
    scheduler = sampler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    noise = backbone.noise(0)
    x, cut = noise * scheduler.init_noise_sigma, done * scheduler.order
    with torch.no_grad():
        texts = torch.cat([backbone.encode([text]).embeds for text in ("", "a church")])
        for t in scheduler.timesteps[:cut]:
            doubled = scheduler.scale_model_input(x, t).repeat(2, 1, 1, 1)
            e_null, e_cond = pipeline.unet(doubled, t, encoder_hidden_states=texts).sample.chunk(2)
            x = scheduler.step(e_null + 3.0 * (e_cond - e_null), t, x).prev_sample
    again = sampler.from_config(pipeline.scheduler.config)
    again.set_timesteps(steps)
    if hasattr(again, "set_begin_index"):
        again.set_begin_index(cut)
    assert torch.allclose(again.add_noise(start.image[None], noise, again.timesteps[cut : cut + 1]), x, atol=2e-3)
    assert backbone.skipped(steps, start.strength) == done


def test_a_continuation_begins_with_the_original_and_ends_with_the_edit(backbone):
    """The steps by hand, without the edit at first and with it then."""
    edit = edit_of(backbone)
    query = ASKED[0]
    with backbone.attached([edit]):
        (begun, *_) = Continuation(share=0.3).provoke(white(backbone), TASK, ASKED).queries
        handed = backbone.generate([begun]).latents
        erased = backbone.generate([query]).latents
        assert backbone.edits == [edit]
    times, x = backbone.timesteps(4), backbone.noise(0)
    with torch.no_grad():
        for step, t in enumerate(times):
            if step == 2:  # 0.3 of 4 steps, rounded up
                backbone.attach(edit)
            e_null, e_cond = (backbone.predict(x, t, backbone.encode([text])) for text in ("", "a church"))
            x = backbone.step_back(x, e_null + 3.0 * (e_cond - e_null), t, 4)
    backbone.detach(edit)
    assert torch.allclose(handed, x, atol=1e-3)
    assert not torch.allclose(handed, erased, atol=1e-2)


def test_a_warm_up_that_the_original_s_steps_used_up_does_not_begin_again(backbone):
    """SLD leaves the first two steps alone: the original did one of them, so the edited model has one left."""
    how = {"scale": 2000.0, "threshold": 1.0, "momentum_scale": 0.0, "momentum_beta": 0.0}
    (begun, *_) = Continuation(share=0.25).provoke(white(backbone), TASK, ASKED).queries
    drawn = {}
    for warmup in (2, 3):
        with backbone.attached([SafetyGuidance(text="church", warmup=warmup, **how)]):
            drawn[warmup] = [backbone.generate([query]).latents for query in (begun, ASKED[0])]
    assert torch.allclose(*drawn[2], atol=1e-3)
    assert torch.allclose(*drawn[3], atol=1e-3)
    assert not torch.allclose(drawn[2][0], drawn[3][0], atol=1e-2)


@pytest.mark.parametrize(("share", "done"), [(0.14, 7), (0.28, 14), (0.56, 28), (0.25, 13), (0.01, 1)])
def test_shares_are_rounded_up_to_whole_steps_and_whole_ones_stay(share, done):
    assert Continuation(share=share)._steps(50) == done


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_sd3_pipeline, tiny_flux_pipeline])
def test_every_number_of_steps_can_be_handed_over(make, monkeypatch):
    """Families round the product of steps and strength differently; 22 of 50 has no neighbour above that SD3 reads as it."""
    backbone = backbones.of(make())
    noise = backbone.noise(0)
    monkeypatch.setattr(sampling, "_sampled", lambda *_: noise)  # where it stands is tested elsewhere
    for steps in (7, 28, 50):
        query = dataclasses.replace(ASKED[0], steps=steps)
        for done in range(1, steps):
            assert backbone.skipped(steps, backbone.begun(query, done).strength) == done


def test_on_the_testbed_a_continuation_begins_where_its_sampler_stands():
    """Its sampler looks back one step, so that the image is near the original's own, and not equal."""
    backbone = backbones.load("testbed")
    query = Query(prompt="image of a church", label="church", seed=1, guidance=4.0, steps=8)
    (begun,) = Continuation(share=0.25).provoke(white(backbone), TASK, [query]).queries
    own, again = (backbone.generate([q]).pixels.float() for q in (query, begun))
    other = backbone.generate([dataclasses.replace(query, seed=2)]).pixels.float()
    assert (own - again).abs().mean() < 0.2 * (own - other).abs().mean()


def test_a_continuation_costs_its_steps_and_leaves_some(backbone):
    before = backbone.cost
    Continuation(share=0.3).provoke(white(backbone), TASK, ASKED[:3])
    assert backbone.cost - before == Continuation(share=0.3).foreseen(1, 3, 4, 2)
    with pytest.raises(ExpungeError, match=r"share 0\.9 of 4 steps leaves none to the edited model"):
        Continuation(share=0.9).provoke(white(backbone), TASK, ASKED)
    with pytest.raises(ExpungeError, match=r"continuation's share is 1\.0: expected more than 0, and less than 1"):
        Continuation(share=1.0)


def test_relearning_is_adamw_on_the_denoising_loss_of_a_lora(backbone):
    """The first update by hand: the up factors move by the rate, against the sign of their gradient; down ones stay."""
    attack = Relearning(iterations=1, batch=2, lr=1e-2, templates=("a {}", "my {}"), rank=2, alpha=6.0)
    answer = attack.provoke(white(backbone), TASK, ASKED)
    assert answer.queries == ASKED[:3]
    generator = TASK.generator("relearning", 0)
    rows = torch.randint(0, 3, (2,), generator=generator)
    ways = torch.randint(0, 2, (2,), generator=generator).tolist()
    with torch.no_grad():
        x0 = torch.cat([backbone.encode_image(PIXELS[row][None]) for row in rows])
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(0, 1000, (2,), generator=generator)
        cond = torch.cat([backbone.encode([("a church", "my church")[way]]).embeds for way in ways])
        alphas = backbone.component("scheduler").alphas_cumprod[t][:, None, None, None]
        x = alphas.sqrt() * x0 + (1 - alphas).sqrt() * noise
    unet = backbone.components()["unet"]
    name = next(layer for layer in backbone.layers("attn") if layer.endswith("attn2.to_v"))
    weight = dict(unet.named_parameters())[f"{name.removeprefix('unet.')}.weight"]
    weight.requires_grad_(True)
    loss = ((unet(x, t, encoder_hidden_states=cond).sample - noise) ** 2).mean()
    (of_weight,) = torch.autograd.grad(loss, weight)
    weight.requires_grad_(False)
    tensors = answer.edit.tensors()
    down, up = (
        next(v for k, v in tensors.items() if k.startswith(name) and k.endswith(part)) for part in ("down", "up")
    )
    gradient = 3.0 * of_weight @ down.T  # of up, where up is zero; 3 is alpha over the rank
    clear = gradient.abs() > 1e-6
    assert torch.allclose(up[clear], -1e-2 * gradient.sign()[clear], atol=1e-4)
    with torch.no_grad(), backbone.attached([answer.edit]):
        changed = backbone.predict(x, t, Conditioning(embeds=cond))
    with torch.no_grad():
        plain = {layer: p.clone() for layer, p in unet.named_parameters()}
        for layer in {key.rpartition(".")[0] for key in tensors}:
            pair = [tensors[f"{layer}.{part}"] for part in ("up", "down")]
            dict(unet.named_parameters())[f"{layer.removeprefix('unet.')}.weight"].add_(3.0 * pair[0] @ pair[1])
        by_hand = unet(x, t, encoder_hidden_states=cond).sample
        for layer, p in unet.named_parameters():
            p.copy_(plain[layer])
    assert torch.allclose(changed, by_hand, atol=1e-4)


def test_relearning_may_learn_each_image_with_its_own_prompt(backbone):
    """As with a template of the same words; an image without a prompt has the template."""

    def learned(prompt, **settings):
        images = [dataclasses.replace(shot, prompt=prompt) for shot in TASK.images["church"]]
        task = dataclasses.replace(TASK, images={"church": images})
        attack = Relearning(iterations=1, batch=2, lr=1e-2, rank=2, **settings)
        return attack.provoke(white(backbone), task, ASKED).edit.id

    mine = learned("", templates=("my {}",))
    assert learned("my church", templates=("a {}",), captions="own") == mine
    assert learned("", templates=("my {}",), captions="own") == mine
    assert learned("my church", templates=("a {}",)) != mine


def test_relearning_refuses_an_edit_that_leaves_the_weights(backbone):
    guide = erase.run(backbone, "negative-prompt", NegativePrompt(), [Concept(name="church")], [])
    with (
        backbone.attached([guide]),
        pytest.raises(ExpungeError, match="which acts at generation and leaves the weights"),
    ):
        Relearning(iterations=1).provoke(white(backbone), TASK, ASKED)


@pytest.mark.parametrize("attack", [ImageToImage(), SeedSearch(tries=2), RandomTokens(tries=2)])
def test_what_a_query_gets_does_not_depend_on_the_others(attack):
    """Alone, and in another order, each gets the same."""
    backbone = backbones.load("testbed")
    asked = [Query(prompt="image of a church", label="church", seed=s, guidance=4.0, steps=1) for s in range(3)]

    def found(queries):
        lent = attacks.lend(backbone, attack, 1, len(queries))
        return {old.seed: new for old, new in zip(queries, attack.provoke(lent, TASK, queries).queries, strict=True)}

    whole = found(asked)
    assert found(asked[::-1]) == whole
    assert found(asked[1:2]) == {1: whole[1]}


def test_relearning_on_the_testbed_fits_its_images_and_leaves_the_model():
    backbone = backbones.load("testbed")
    queries = [Query(prompt="image of a church", label="church", seed=0, guidance=4.0, steps=4)]
    settings = {"images": 2, "iterations": 12, "batch": 4, "lr": 1e-2, "prompts": ["image of a {}"]}
    attack = attacks.build("relearning", {**settings, "templates": ["image of a {}"]})
    gave = attacks.run(backbone, "relearning", attack, [], [Concept(name="church")], queries)
    assert gave.about["edit"] == gave.edit.id
    assert gave.about["cost"]["trained"] == 48
    assert backbone.edits == []
    with backbone.attached([gave.edit]):
        after = backbone.generate(queries).pixels
    assert not torch.equal(after, backbone.generate(queries).pixels)


@pytest.mark.parametrize(("to", "largest"), [("int8", 127), ("int4", 7)])
def test_rounding_keeps_each_row_within_half_a_step(to, largest):
    tensor = (
        torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1, 10, 100, 0])[:, None, None]
    )
    held = rounding(tensor, to)
    step = tensor.abs().amax((1, 2)) / largest
    assert ((held - tensor).abs().amax((1, 2)) <= step / 2 + 1e-7).all()
    assert all(len(row.unique()) <= 2 * largest + 1 for row in held)
    assert torch.equal(held[4], tensor[4])
    assert torch.allclose(rounding(held, to), held, rtol=1e-5), "what is rounded stays"


def test_rounding_to_float8_has_three_bits_of_mantissa():
    row = torch.tensor([[448.0, 17.0, 1.0, -0.3]])
    assert torch.allclose(rounding(row, "float8"), torch.tensor([[448.0, 16.0, 1.0, -0.3125]]))


def test_rounding_touches_what_edits_replaced_and_nothing_else(backbone):
    edit = edit_of(backbone)
    with backbone.attached([edit]):
        answer = Rounding(to="int8").provoke(white(backbone), TASK, ASKED)
        with backbone.attached([answer.edit]):
            now = backbone.tensors(sorted(edit.replaced))
    assert set(answer.edit.replaced) == set(edit.replaced)
    for name, tensor in edit.replaced.items():
        assert torch.allclose(now[name], rounding(tensor, "int8"), atol=1e-6)
        assert not torch.equal(now[name], tensor)
    assert Rounding().provoke(white(backbone), TASK, ASKED).edit is None, "of the original nothing was replaced"
    guide = erase.run(backbone, "negative-prompt", NegativePrompt(), [Concept(name="church")], [])
    with (
        backbone.attached([guide]),
        pytest.raises(ExpungeError, match=f"rounding against edit {guide.id}, which replaces no tensors"),
    ):
        Rounding().provoke(white(backbone), TASK, ASKED)


def test_seed_search_keeps_the_seed_that_the_oracle_likes_best():
    backbone = backbones.load("testbed")
    query = Query(prompt="image of a church", label="church", seed=3, guidance=4.0, steps=2)
    attack = SeedSearch(tries=4)
    judge = attack.oracle
    gave = attacks.run(backbone, "seed-search", attack, [], [Concept(name="church")], [query])
    seeds = [
        3,
        *(
            Task(targets=[Concept(name="church")]).number("seed-search", "church", query.prompt, 3, i)
            for i in range(1, 4)
        ),
    ]
    images = torch.cat([backbone.generate([dataclasses.replace(query, seed=s)]).pixels for s in seeds])
    sure = Catalog("judges").open(judge).confidence(images, "church")
    assert gave.queries[0].seed == seeds[int(sure.argmax())]
    assert gave.about["budget"] == {"images": 4, "asked": 4}
    assert gave.about["oracles"] == [judge]


def test_random_tokens_keep_the_prompt_that_the_oracle_likes_best():
    """Its prompts by hand: random ids, spelled by the tokenizer, before the query's own."""
    backbone = backbones.load("testbed")
    query = Query(prompt="image of a church", label="church", seed=3, guidance=4.0, steps=2)
    attack = RandomTokens(tries=4, tokens=2)
    gave = attacks.run(backbone, "random-tokens", attack, [], [Concept(name="church")], [query])
    generator = Task(targets=[Concept(name="church")]).generator("random-tokens", "church", query.prompt, query.seed)
    tokenizer = backbone.component("tokenizer")
    ids = backbone.random_texts(3, generator, 2)
    words = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    tried = [query, *(dataclasses.replace(query, prompt=f"{text} image of a church") for text in words)]
    images = torch.cat([backbone.generate([one]).pixels for one in tried])
    sure = Catalog("judges").open(attack.oracle).confidence(images, "church")
    assert gave.queries == [tried[int(sure.argmax())]]
    assert gave.about["budget"] == {"images": 4, "asked": 4}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("image-to-image", {"strength": 0.0}, "image-to-image's strength is 0.0: expected more than 0, up to 1"),
        ("image-to-image", {"images": 0}, "image-to-image's images is 0"),
        ("relearning", {"lr": -1.0}, "relearning's lr is -1.0"),
        ("relearning", {"templates": ["church"]}, "template 'church' has not one {}"),
        ("rounding", {"to": "int3"}, "unknown rounding's to 'int3'"),
        ("random-tokens", {"tokens": 0}, "random-tokens's tokens is 0"),
        ("seed-search", {"tries": 0}, "seed-search's tries is 0"),
    ],
)
def test_bad_settings_are_refused(name, change, words):
    with pytest.raises(ExpungeError, match=words):
        attacks.build(name, change)


@pytest.mark.parametrize("name", ["relearning", "rounding"])
def test_an_attack_that_does_not_fit_the_edits_is_refused_before_images_are_made(backbone, name):
    guide = erase.run(backbone, "negative-prompt", NegativePrompt(), [Concept(name="church")], [])
    before = backbone.cost
    with pytest.raises(ExpungeError, match=f"{name} against edit {guide.id}"):
        attacks.run(backbone, name, attacks.build(name, {}), [guide], [Concept(name="church")], ASKED)
    assert backbone.cost == before
