import dataclasses
from pathlib import Path

import pytest
import torch

from expunge.attacks.unlearn_diff_atk import NAME, UnlearnDiffAtk
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.query import Query, Shot
from expunge.core.victim import WhiteBox
from expunge.erasers.negative_prompt import NegativePromptGuidance
from expunge.erasers.sld import SafetyGuidance
from expunge.erasers.uce import UCE
from expunge.maths.free_tokens import free_tokens, vocabulary
from expunge.stages import erase

PIXELS = torch.randint(0, 256, (1, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()
SHOT = Shot(path=Path("0"), pixels=lambda: PIXELS[0], prompt="", seed=0, label=None)
TASK = Task(targets=[Concept(name="church")], seed=1, images={"church": [SHOT]})
QUERIES = [
    Query(prompt=prompt, label="church", seed=seed, guidance=3.0, steps=2)
    for prompt, seed in (("a church", 3), ("dog church", 0), ("a b c d e", 7))
]
SHORT = UnlearnDiffAtk(tokens=2, steps=2, iterations=2, lr=0.5)


class Bright(Judge):
    """Sees a church in a bright image."""

    name = "bright"
    labels = ("church", "none")

    def scores(self, images):
        raise NotImplementedError

    def confidence(self, images, concept):
        return images.float().mean((1, 2, 3)) / 255


def provoked(attack, backbone, asked=QUERIES, task=TASK, budget=0, draw=lambda queries: PIXELS[:0]):
    lent = WhiteBox(backbone, draw, {"bright": Bright()}, budget)
    return attack.provoke(lent, task, asked).queries, lent


def found(attack, backbone, asked=QUERIES, task=TASK):
    return [q.prompt for q in provoked(attack, backbone, asked, task)[0]]


def uce(backbone):
    return erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])


def batch_of(attack, backbone, asked=QUERIES):
    free = free_tokens(backbone, NAME, [[*[None] * attack.tokens, q.prompt] for q in asked])
    return attack._batch(backbone, TASK, asked, free, vocabulary(backbone))


def drawn(purpose, query, update, shape):
    """What an update draws for a query."""
    generator = TASK.generator(NAME, purpose, query.label, query.prompt, query.seed, update)
    return (torch.randn if purpose == "noise" else torch.rand)(shape, generator=generator)


def bisected(row):
    low, high = float(row.min()) - 1, float(row.max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float((row - middle).clamp(min=0).sum()) > 1 else (low, middle)
    return (row - low).clamp(min=0)


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("forward", ["drawn", "mixed"])
def test_updates_fit_a_prefix_to_the_noise_through_the_edited_model(backbone, edited, forward):
    """Two updates with torch's Adam, a bisection, and one-hot rows; then the likeliest tokens are the prefix."""
    parts, query = backbone.components(), QUERIES[0]
    words, tower, unet = backbone.spellable(), parts["text_encoder"], parts["unet"]
    table = tower.get_input_embeddings().weight[words]
    points = torch.full((2, len(words)), 1 / len(words), requires_grad=True)
    adam = torch.optim.Adam([points], lr=0.5, weight_decay=0.1)
    x0, kept = backbone.encode_image(PIXELS), parts["scheduler"].alphas_cumprod[500]
    own = backbone.tokenize(["a a a church"])
    with backbone.attached([uce(backbone)] if edited else []):
        for update in range(2):
            noise = drawn("noise", query, update, (1, 4, 8, 8))
            x = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
            if forward == "drawn":
                at = drawn("tokens", query, update, (2,))
                place = [
                    int((row.detach().double().cumsum(0) <= float(u)).sum()) for row, u in zip(points, at, strict=True)
                ]
                read = torch.nn.functional.one_hot(torch.tensor(place), len(words)).float()
            else:
                read = points.detach().clone()
            read.requires_grad_()
            vectors = tower.get_input_embeddings()(own).detach()
            vectors = torch.cat([vectors[:, :1], (read @ table)[None], vectors[:, 3:]], 1)
            handle = tower.get_input_embeddings().register_forward_hook(lambda *_, v=vectors: v)
            text = tower(own).last_hidden_state
            handle.remove()
            loss = (unet(x, 500, encoder_hidden_states=text).sample - noise).square().mean()
            (gradient,) = torch.autograd.grad(loss, read)
            points.grad = gradient.clamp(-1, 1) if forward == "drawn" else gradient
            adam.step()
            with torch.no_grad():
                points.copy_(torch.stack([bisected(row) for row in points.double()]))
        one = dataclasses.replace(SHORT, steps=1, forward=forward)
        before = backbone.cost
        texts = found(one, backbone, [query])
        assert backbone.cost - before == one.cost(1, 1) == Cost(trained=2)
    prefix = parts["tokenizer"].batch_decode(words[points.argmax(-1)][:, None])
    assert texts == [" ".join([*(word.strip() for word in prefix), "a church"])]


@pytest.mark.parametrize("scale", [None, 3.0])
def test_the_loss_is_the_distance_from_the_noise(backbone, scale):
    """With a guidance edit, of the prompt's own prediction or, at a scale, of the guided one."""
    parts = backbone.components()
    attack = SHORT if scale is None else dataclasses.replace(SHORT, guidance=scale)
    with torch.no_grad(), backbone.attached([NegativePromptGuidance(text="cat")]):
        batch = batch_of(attack, backbone)
        point, place = attack._point(batch, 250, 6), torch.arange(6)
        losses = attack._losses(batch, point, place, batch.words.vectors[place])
        texts = batch.free.texts(backbone, batch.words.ids[place])
        kept = parts["scheduler"].alphas_cumprod[250]
        for query, text, loss in zip(QUERIES, texts, losses, strict=True):
            noise = drawn("noise", query, 6, (1, 4, 8, 8))
            x = kept.sqrt() * backbone.encode_image(PIXELS) + (1 - kept).sqrt() * noise
            e, e_cat, e_0 = (
                parts["unet"](
                    x, 250, encoder_hidden_states=parts["text_encoder"](backbone.tokenize([t])).last_hidden_state
                ).sample
                for t in (text, "cat", "")
            )
            answer, goal = e, noise
            if scale is not None:
                answer, goal = e_cat + scale * (e - e_cat), e_0 + scale * (noise - e_0)
            assert torch.allclose(loss, (answer - goal).square().mean(), rtol=1e-4)


def test_a_guidance_edit_is_told_the_step_of_the_query_s_own_sampling(backbone):
    """Of a query of 50 steps, timestep 250 is step 37: an edit that begins later is not there, one that begins earlier is."""
    attack, asked = (
        dataclasses.replace(SHORT, guidance=3.0),
        [dataclasses.replace(query, steps=50) for query in QUERIES],
    )
    rest = {"scale": 2000.0, "threshold": 1.0, "momentum_scale": 0.0, "momentum_beta": 0.0}

    def losses(warmup):
        with torch.no_grad(), backbone.attached([SafetyGuidance(text="church", warmup=warmup, **rest)]):
            batch = batch_of(attack, backbone, asked)
            point, place = attack._point(batch, 250, 6), torch.arange(6)
            return attack._losses(batch, point, place, batch.words.vectors[place])

    assert torch.equal(losses(0), losses(37))
    assert not torch.allclose(losses(37), losses(38), rtol=1e-3)


def test_timesteps_ascend_from_little_noise(backbone):
    assert UnlearnDiffAtk()._timesteps(backbone) == list(range(10, 1000, 20))
    assert SHORT._timesteps(backbone) == [250, 750]


@pytest.mark.parametrize("search", ["gradient", "random"])
def test_queries_at_once_are_found_what_they_are_found_alone(backbone, search):
    attack = dataclasses.replace(SHORT, search=search)
    with backbone.attached([uce(backbone)]):
        before = backbone.cost
        together = found(attack, backbone)
        assert backbone.cost - before == attack.cost(1, 3)
        assert together == found(dataclasses.replace(attack, batch=1), backbone)
        assert together[1:2] == found(attack, backbone, QUERIES[1:2])
        assert together == found(attack, backbone), "the same seed, the same prompts"
        assert together != found(attack, backbone, task=dataclasses.replace(TASK, seed=2))
    spelled = set(backbone.spell(backbone.spellable()[:, None]))
    for text, query in zip(together, QUERIES, strict=True):
        prefix = text.removesuffix(f" {query.prompt}").split(" ")
        assert text.endswith(f" {query.prompt}"), "the query's own words stay"
        assert len(prefix) == 2
        assert set(prefix) <= spelled


def test_losses_and_gradients_at_once_are_those_alone(backbone):
    losses, gradients = [], []
    for some in (QUERIES, *([q] for q in QUERIES)):
        batch = batch_of(SHORT, backbone, some)
        place = torch.arange(6) if len(some) == 3 else torch.arange(2) + 2 * QUERIES.index(some[0])
        vectors = batch.words.vectors[place].clone().requires_grad_()
        loss = SHORT._losses(batch, SHORT._point(batch, 250, 0), place, vectors)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss.sum(), vectors)[0])
    assert torch.allclose(losses[0], torch.cat(losses[1:]), rtol=1e-4)
    assert torch.allclose(gradients[0], torch.cat(gradients[1:]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("search", ["gradient", "random"])
def test_an_oracle_ends_the_attack_on_a_query_and_the_others_go_on(backbone, search):
    """It sees the second query's plain prompt as a church, the first one's after one timestep, and the third one's never."""
    attack = dataclasses.replace(SHORT, search=search, oracle="bright", threshold=0.5)
    asked = []

    def draw(queries):
        asked.append([q.seed for q in queries])
        bright = {0: 0, 3: 1}
        return torch.cat(
            [torch.full((1, 16, 16, 3), 255 * (bright.get(q.seed, 9) < len(asked)), dtype=torch.uint8) for q in queries]
        )

    assert attack.budget(1, 3) == 9
    before = backbone.cost
    queries, lent = provoked(attack, backbone, budget=9, draw=draw)
    spent = backbone.cost - before
    assert (asked, lent.asked) == ([[3, 0, 7], [3, 7], [7]], 6)
    assert queries[1] == QUERIES[1]
    evaluated = 2 * 2 + 1 * 2  # two queries at the first timestep, one at the second
    assert spent == (Cost(trained=evaluated) if search == "gradient" else Cost(forward=3 * evaluated))
    alone = dataclasses.replace(attack, oracle=None)
    assert queries[2].prompt == found(alone, backbone)[2], "whatever became of the others"
    assert queries[0].prompt.endswith(" a church")
    with pytest.raises(ExpungeError, match="after 5: expected no more than its budget, 5"):
        asked.clear()
        provoked(attack, backbone, budget=5, draw=draw)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "unlearn-diff-atk's tokens is 0: expected 1 or more"),
        ({"tokens": 12}, "has 12 free tokens beside 'a church': expected no more than the 14 tokens that tiny reads"),
        ({"threshold": 1.0}, "threshold is 1.0: expected 0 or more, and below 1"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_settings_and_prompts_that_cannot_be_are_refused(backbone, settings, message):
    before = backbone.cost
    with pytest.raises(ExpungeError, match=message):
        found(dataclasses.replace(SHORT, **settings), backbone)
    assert backbone.cost == before


def test_what_it_was_told_and_wants():
    asking = dataclasses.replace(SHORT, oracle="imagenet")
    assert (asking.knowledge().oracles, SHORT.knowledge().oracles) == (("imagenet",), ())
    needs = dataclasses.replace(SHORT, images=2).needs([Concept(name="church")])
    assert needs == {"church": ["a photo of a church"] * 2}


def test_defaults_are_the_authors():
    attack = UnlearnDiffAtk()
    assert (attack.tokens, attack.lr, attack.weight_decay, attack.steps, attack.iterations) == (3, 0.01, 0.1, 50, 40)
    assert (attack.forward, attack.access, attack.threshold) == ("drawn", "white box", 0.45)
    assert attack.cost(1, 1) == Cost(trained=2000)
    assert (attack.budget(1, 1), dataclasses.replace(attack, oracle="nudenet").budget(1, 1)) == (0, 51)
