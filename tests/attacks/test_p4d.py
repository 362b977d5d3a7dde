import dataclasses
from pathlib import Path

import pytest
import torch

from expunge.attacks.p4d import NAME, P4D
from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.attack import image_for
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query, Shot
from expunge.core.victim import WhiteBox
from expunge.erasers.negative_prompt import NegativePromptGuidance
from expunge.erasers.uce import UCE
from expunge.maths.free_tokens import free_tokens, vocabulary
from expunge.stages import erase
from tiny import tiny_pipeline

PIXELS = torch.randint(0, 256, (4, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()
OWN = (("a church", 3), ("a church", 4), ("a cat", 3), ("", 0))
SHOTS = [
    Shot(path=Path(str(i)), pixels=lambda i=i: PIXELS[i], prompt=p, seed=s, label=None) for i, (p, s) in enumerate(OWN)
]
TASK = Task(targets=[Concept(name="church")], seed=1, images={"church": SHOTS})
QUERIES = [
    Query(prompt=prompt, label="church", seed=seed, guidance=3.0, steps=2)
    for prompt, seed in (("a church", 3), ("dog church", 0), ("a b c d e", 7))
]
SHORT = P4D(tokens=4, iterations=2, look=2, clip="", lr=0.3)


def victim(backbone, budget=0, draw=lambda queries: PIXELS[:0]):
    return WhiteBox(backbone, draw, {}, budget)


def found(attack, backbone, asked=QUERIES, task=TASK):
    return [q.prompt for q in attack.provoke(victim(backbone), task, asked).queries]


def batch_of(attack, backbone, asked=QUERIES):
    words = vocabulary(backbone)
    free = free_tokens(backbone, NAME, [attack._layout(backbone, q.prompt) for q in asked])
    return attack._batch(backbone, TASK, asked, free, words)


def uce(backbone):
    return erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])


def noised(backbone, update, query=QUERIES[0], pixels=PIXELS[:1]):
    """What an update draws for a query, in the model's own terms."""
    t = int(torch.randint(0, 1000, (), generator=TASK.generator(NAME, "timestep", update)))
    own = (query.label, query.prompt, query.seed)
    noise = torch.randn((1, 4, 8, 8), generator=TASK.generator(NAME, "noise", *own, update))
    kept = backbone.components()["scheduler"].alphas_cumprod[t]
    return kept.sqrt() * backbone.encode_image(pixels) + (1 - kept).sqrt() * noise, t


@pytest.mark.parametrize("edited", [False, True])
def test_an_update_moves_vectors_by_the_gradient_at_their_nearest_tokens(backbone, edited):
    """AdamW's first update, by torch's own; the original's prediction for the query's own prompt is what is wanted."""
    parts = backbone.components()
    unet, tower, words = parts["unet"], parts["text_encoder"], backbone.spellable()
    ask = lambda text, x, t: unet(x, t, encoder_hidden_states=text).sample  # noqa: E731
    x, t = noised(backbone, 0)
    with torch.no_grad():
        wanted = ask(tower(backbone.tokenize(["a church"])).last_hidden_state, x, t)
    own = ("church", "a church", 3)
    place = torch.randint(0, len(words), (3,), generator=TASK.generator(NAME, "tokens", *own, 0))
    ids = backbone.tokenize(["a a a"])
    ids[0, 1:4] = words[place]
    assert len(set(place.tolist())) == 3, "or gradients of the table would be sums"
    table = tower.get_input_embeddings().weight
    with backbone.attached([uce(backbone)] if edited else []):
        table.requires_grad_(True)
        loss = (ask(tower(ids).last_hidden_state, x, t) - wanted).square().mean()
        (gradient,) = torch.autograd.grad(loss, table)
        table.requires_grad_(False)
        one = dataclasses.replace(SHORT, tokens=3, iterations=1, lr=0.2)
        before = backbone.cost
        texts = found(one, backbone, QUERIES[:1])
        assert backbone.cost - before == one.cost(1, 1) == Cost(forward=1, trained=1)
    learned = table[words[place]].clone().requires_grad_()
    learned.grad = gradient[words[place]]
    torch.optim.AdamW([learned], lr=0.2, weight_decay=0.1).step()
    cosines = torch.nn.functional.cosine_similarity(learned.detach()[:, None], table[words][None], dim=-1)
    nearest = words[cosines.argmax(-1)]
    assert nearest.tolist() != words[place].tolist(), "something moved"
    assert texts == [parts["tokenizer"].decode(nearest).strip()]


@pytest.mark.parametrize("guided", [False, True])
def test_the_loss_is_the_mean_distance_of_the_two_models_predictions(backbone, guided):
    parts = backbone.components()
    unet, tower = parts["unet"], parts["text_encoder"]
    edit = NegativePromptGuidance(text="cat") if guided else uce(backbone)

    def ask(x, t, text, null):
        e_null, e = (
            unet(x, t, encoder_hidden_states=tower(backbone.tokenize([words])).last_hidden_state).sample
            for words in (null, text)
        )
        return e_null + 7.5 * (e - e_null) if guided else e

    with torch.no_grad():
        pairs = [noised(backbone, 5, query, PIXELS[i : i + 1]) for i, query in enumerate(QUERIES[:1])]
        wanted = [ask(x, t, q.prompt, "") for (x, t), q in zip(pairs, QUERIES[:1], strict=True)]
        with backbone.attached([edit]):
            batch = batch_of(SHORT, backbone)
            (point,) = SHORT._points(batch, range(5, 6))
            place = torch.arange(12)
            losses = SHORT._losses(batch, point, place, batch.words.vectors[place])
            text = batch.free.texts(backbone, batch.words.ids[place])[0]
            own = [(ask(x, t, text, "cat") - w).square().mean() for (x, t), w in zip(pairs, wanted, strict=True)]
            assert [e.id for e in backbone.edits] == [edit.id]
    assert torch.allclose(point.x[:1], pairs[0][0], atol=1e-6)
    assert torch.allclose(point.wanted[:1], wanted[0], atol=1e-4)
    assert torch.allclose(losses[:1], torch.stack(own), rtol=1e-3)


@pytest.mark.parametrize("variant", ["n", "k"])
@pytest.mark.parametrize("search", ["gradient", "random"])
def test_queries_at_once_are_found_what_they_are_found_alone(backbone, variant, search):
    attack = dataclasses.replace(SHORT, variant=variant, front=True, search=search, iterations=4)
    with backbone.attached([uce(backbone)]):
        before = backbone.cost
        together = found(attack, backbone)
        assert backbone.cost - before == attack.cost(1, 3)
        assert together == found(dataclasses.replace(attack, batch=1), backbone)
        assert together[1:2] == found(attack, backbone, QUERIES[1:2])
        assert together[::-1] == found(attack, backbone, QUERIES[::-1])
        assert together == found(attack, backbone), "the same seed, the same prompts"
        assert together != found(attack, backbone, task=dataclasses.replace(TASK, seed=2))


def test_losses_and_gradients_at_once_are_those_alone(backbone):
    losses, gradients = [], []
    for some in (QUERIES, *([q] for q in QUERIES)):
        batch = batch_of(SHORT, backbone, some)
        (point,) = SHORT._points(batch, range(1))
        place = torch.arange(12) if len(some) == 3 else torch.arange(4) + 4 * QUERIES.index(some[0])
        vectors = batch.words.vectors[place].clone().requires_grad_()
        loss = SHORT._losses(batch, point, place, vectors)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss.sum(), vectors)[0])
    assert torch.allclose(losses[0], torch.cat(losses[1:]), rtol=1e-4)
    assert torch.allclose(gradients[0], torch.cat(gradients[1:]), rtol=1e-3, atol=1e-6)


def read(backbone, text):
    ids = backbone.tokenize([text])
    return ids[0, 1 : int(backbone.end(ids)[0])].tolist()


@pytest.mark.parametrize("front", [False, True])
def test_with_k_the_query_s_own_tokens_stay_and_one_follows_every_k(backbone, front):
    attack = dataclasses.replace(SHORT, variant="k", every=2, front=front)
    (text,) = found(attack, backbone, QUERIES[2:])
    tokens, own = read(backbone, text), read(backbone, "a b c d e")
    free = [0, 3, 6] if front else [2, 5]
    assert len(tokens) == 5 + len(free)
    assert [token for place, token in enumerate(tokens) if place not in free] == own
    assert all(tokens[place] in backbone.spellable().tolist() for place in free)
    (whole,) = found(attack, backbone, [dataclasses.replace(QUERIES[0], prompt="church")])
    assert read(backbone, whole)[front:-1] == read(backbone, "church"), "after the word that the second token is in"


def test_with_n_all_tokens_are_new(backbone):
    assert all(len(read(backbone, text)) == 4 for text in found(SHORT, backbone))


def test_the_prompt_whose_image_is_most_like_the_target_s_is_kept(backbone):
    """The second of three looks at each query shows its target's image; the others show another image, or noise."""
    attack = dataclasses.replace(SHORT, iterations=5, look=2, clip="testbed", lr=1.0)
    asked, images = [], []

    def draw(queries):
        asked.append(queries)
        images.append([PIXELS[[3, 3]], PIXELS[[0, 1]], PIXELS[[3, 2]]][len(asked) - 1])
        return images[-1]

    mine = [QUERIES[0], dataclasses.replace(QUERIES[0], seed=4)]
    assert attack.budget(1, 2) == 6
    lent = victim(backbone, 6, draw)
    answer = attack.provoke(lent, TASK, mine).queries
    assert lent.asked == 6
    assert list(answer) == list(asked[1]) != list(asked[2])
    assert [(q.seed, q.label, q.guidance, q.steps) for q in answer] == [(3, "church", 3.0, 2), (4, "church", 3.0, 2)]
    with pytest.raises(ExpungeError, match="asks for 2 images after 4: expected no more than its budget, 5"):
        asked.clear()
        attack.provoke(victim(backbone, 5, draw), TASK, mine)


def test_the_image_a_query_is_aimed_at_is_its_own_if_there_is_one():
    query = QUERIES[0]
    assert [image_for(query, SHOTS, n).path.name for n in range(3)] == ["0", "0", "0"]
    other = dataclasses.replace(query, seed=9)
    assert [image_for(other, SHOTS, n).path.name for n in range(3)] == ["0", "1", "0"]
    assert [image_for(QUERIES[1], SHOTS, n).path.name for n in range(5)] == ["0", "1", "2", "3", "0"]


def test_only_queries_for_targets_are_attacked(backbone):
    asked = [dataclasses.replace(QUERIES[0], label="dog"), QUERIES[1]]
    (answer,) = SHORT.provoke(victim(backbone), TASK, asked).queries
    assert (answer.label, answer.seed) == ("church", 0)
    needs = dataclasses.replace(SHORT, images=3, prompts=("a {}", "a bomb")).needs([Concept(name="weapon")])
    assert needs == {"weapon": ["a weapon", "a bomb", "a weapon"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "p4d's tokens is 0: expected 1 or more"),
        ({"every": 0, "variant": "k"}, "p4d's every is 0"),
        ({"tokens": 15}, "p4d has 15 free tokens: expected no more than the 14 tokens that tiny reads"),
        ({"variant": "k", "every": 6}, "p4d has no free token in 'a church'"),
        ({"variant": "k", "every": 1, "front": True}, "p4d has 9 free tokens beside 'a b c d e f g h'"),
        ({"lr": 0.0}, "p4d's lr is 0.0"),
        ({"clip": "no/such"}, "no CLIP 'no/such'"),
    ],
)
def test_settings_and_prompts_that_cannot_be_are_refused(backbone, settings, message, hub):
    asked = [*QUERIES, dataclasses.replace(QUERIES[0], prompt="a b c d e f g h")]
    before = backbone.cost
    with pytest.raises(ExpungeError, match=message):
        found(dataclasses.replace(SHORT, **settings), backbone, asked)
    assert backbone.cost == before


def test_a_model_without_its_tokenizer_is_refused():
    pipe = tiny_pipeline()
    backbone = StableDiffusion.from_pipeline(pipe)
    pipe.tokenizer = None
    with pytest.raises(ExpungeError, match="cannot be looked at"):
        found(SHORT, backbone)


def test_defaults_are_the_authors():
    attack = P4D()
    assert (attack.variant, attack.tokens, attack.every, attack.front) == ("n", 16, 3, False)
    assert (attack.lr, attack.weight_decay, attack.iterations, attack.look) == (0.1, 0.1, 3000, 50)
    assert (attack.guidance, attack.access, attack.budget(1, 2)) == (7.5, "white box", 120)
    assert "ViT-H-14" in attack.clip
