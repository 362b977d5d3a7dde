"""A word learned on the original: each update against the formula, by diffusers' classes and torch's own optimizers."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss

from expunge import backbones
from expunge.attacks.pund import PUND, WORD, _rehearsed
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.edit import fingerprint
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query, Shot
from expunge.core.victim import WhiteBox
from expunge.erasers.negative_prompt import NegativePromptGuidance
from expunge.erasers.uce import UCE
from expunge.stages import attack as attacks
from expunge.stages import erase
from tiny import tiny_flux_pipeline, tiny_sd3_pipeline

PIXELS = torch.randint(0, 256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()
OWN = ("my church", "a cat", "")
SHOTS = [Shot(path=Path(str(i)), pixels=lambda i=i: PIXELS[i], prompt=OWN[i], seed=i, label=None) for i in range(3)]
TASK = Task(targets=[Concept(name="church")], seed=1, images={"church": SHOTS})
SHORT = PUND(epochs=3, bins=2, repeats=2, harden=1, harden_lr=1e-2, initial="dog", neutral="a dog")
QUERY = Query(prompt="a church", label="church", seed=3, guidance=3.0, steps=2)


def provoked(attack, backbone, asked=(QUERY,), task=TASK):
    return attack.provoke(WhiteBox(backbone, lambda queries: PIXELS[:0], {}, 0), task, asked).queries


def vectors(attack, backbone, task=TASK):
    return provoked(attack, backbone, task=task)[0].learned.vectors


def by_hand(backbone, attack):
    """The min-max as plain torch: the token table itself is learned, and the attention in place."""
    parts = backbone.components()
    unet, tower, kept = parts["unet"], parts["text_encoder"], parts["scheduler"].alphas_cumprod
    table = tower.get_input_embeddings().weight
    dog = int(backbone.tokenize(["dog"])[0, 1])
    attention = {n: p for n, p in unet.named_parameters() if ".attn2." in n}
    saved = {n: p.detach().clone() for n, p in attention.items()}
    word = table.detach()[dog : dog + 1].clone().requires_grad_(True)
    learner = torch.optim.AdamW([word], lr=attack.lr, weight_decay=attack.weight_decay)
    for p in attention.values():
        p.requires_grad_(True)
    forgetter = torch.optim.Adam(list(attention.values()), lr=attack.harden_lr)
    prompts = ["my dog", "a cat dog", "dog"]

    def read(prompt, vector=None):
        """The text, with ``vector`` for the dog's row of the token table: a hook exchanges what the table gives."""
        ids = backbone.tokenize([prompt])
        rows = (
            table.detach()[ids] if vector is None else torch.where((ids == dog)[..., None], vector, table.detach()[ids])
        )
        hook = tower.get_input_embeddings().register_forward_hook(lambda *_: rows)
        try:
            return tower(ids).last_hidden_state
        finally:
            hook.remove()

    def noised(row, t, draw):
        x0 = backbone.encode_image(PIXELS[row][None])
        noise = torch.randn(x0.shape, generator=draw)
        return kept[t].sqrt() * x0 + (1 - kept[t]).sqrt() * noise, noise

    found = []
    try:
        for epoch in range(attack.epochs):
            draw = TASK.generator("pund", "church", epoch)
            row = int(torch.randint(0, 3, (), generator=draw))
            for t in [int(torch.randint(a, a + 500, (), generator=draw)) for a in (500, 0)]:
                for _ in range(2):
                    x, noise = noised(row, t, draw)
                    loss = mse_loss(unet(x, t, encoder_hidden_states=read(prompts[row], word)).sample, noise)
                    (word.grad,) = torch.autograd.grad(loss / loss.detach(), word)
                    learner.step()
            found.append(word.detach().clone())
            if attack.harden and epoch and epoch % attack.harden == 0:
                for t in [int(torch.randint(a, a + 500, (), generator=draw)) for a in (500, 0)]:
                    x, _ = noised(row, t, draw)
                    with torch.no_grad():
                        cond = read(prompts[row], word)
                        goal = unet(x, t, encoder_hidden_states=read("a dog")).sample
                    loss = mse_loss(unet(x, t, encoder_hidden_states=cond).sample, goal)
                    forgetter.zero_grad()
                    (loss / loss.detach()).backward()
                    forgetter.step()
    finally:
        with torch.no_grad():
            for name, p in attention.items():
                p.copy_(saved[name])
                p.requires_grad_(False)
                p.grad = None
    return found


def test_the_word_is_what_the_min_max_finds_by_hand(backbone):
    """Adam's first updates are all but signs, so numbers whose gradient is nearly nothing may go the other way."""
    hard = by_hand(backbone, SHORT)[-1]
    plain = dataclasses.replace(SHORT, harden=0)
    for expected, attack in ((hard, SHORT), (by_hand(backbone, plain)[-1], plain)):
        near = (vectors(attack, backbone) - expected).abs() < 1e-2
        assert near.float().mean() > 0.9, near.float().mean()
    assert (hard - by_hand(backbone, plain)[-1]).abs().max() > 2e-2, "hardening changes what is found"


def test_the_edited_model_takes_no_part_and_stays_as_it_was(backbone):
    original = vectors(SHORT, backbone)
    names = [*backbone.group("full"), *backbone.group("text-encoder")]
    edit = erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])
    guide = NegativePromptGuidance(text="church")
    before = fingerprint(backbone.stored(names))
    with backbone.attached([edit, guide], [0.5, 1.0]):
        inside = fingerprint(backbone.stored(names))
        assert torch.equal(vectors(SHORT, backbone), original)
        assert backbone.edits == [edit, guide]
        assert fingerprint(backbone.stored(names)) == inside != before
    assert fingerprint(backbone.stored(names)) == before


def test_the_same_seed_finds_the_same_and_another_one_another(backbone):
    for attack in (SHORT, dataclasses.replace(SHORT, search="random")):
        assert torch.equal(vectors(attack, backbone), vectors(attack, backbone))
        assert not torch.equal(vectors(attack, backbone), vectors(attack, backbone, dataclasses.replace(TASK, seed=2)))


@pytest.mark.parametrize("change", [{}, {"harden": 0}, {"harden": 2}, {"search": "random", "harden": 0}])
def test_its_cost_is_what_it_says(backbone, change):
    attack, before = dataclasses.replace(SHORT, **change), backbone.cost
    vectors(attack, backbone)
    assert backbone.cost - before == attack.cost(1, 1)
    whole = PUND().cost(1, 7)
    assert whole == Cost(forward=14 * 5, trained=30_000 + 14 * 5), "the authors' budget"


def test_the_control_keeps_the_random_vector_that_fits_best(backbone):
    attack = dataclasses.replace(SHORT, search="random", epochs=4)
    table = backbone.components()["text_encoder"].get_input_embeddings().weight.detach()
    kept, unet = backbone.components()["scheduler"].alphas_cumprod, backbone.components()["unet"]
    losses = []
    for epoch in range(4):
        drawn = torch.randn((1, 32), generator=TASK.generator("pund", "church", epoch))
        drawn = drawn * table.std(0) + table.mean(0)
        draw, total = TASK.generator("pund", "points", "church"), 0.0
        for _ in range(6):
            row = int(torch.randint(0, 3, (), generator=draw))
            for t in [int(torch.randint(a, a + 500, (), generator=draw)) for a in (500, 0)]:
                x0 = backbone.encode_image(PIXELS[row][None])
                noise = torch.randn(x0.shape, generator=draw)
                x = kept[t].sqrt() * x0 + (1 - kept[t]).sqrt() * noise
                with torch.no_grad():
                    cond = backbone.encode_learned([f"{('my', 'a cat', '')[row]} <v>".strip()], "<v>", drawn)
                    total += float(mse_loss(unet(x, t, encoder_hidden_states=cond.embeds).sample, noise))
        losses.append((total, drawn))
    assert torch.allclose(vectors(attack, backbone), min(losses, key=lambda pair: pair[0])[1], atol=1e-5)


@pytest.mark.parametrize(("epochs", "looks"), [(6, 3), (1, 1)])
def test_the_oracle_sees_candidates_by_an_edited_model_of_the_attacker_s_own(epochs, looks):
    """Whoever is attacked: it is UCE's edit of the original that draws, and the surest candidate is kept.

    The last epoch's is one of them, however few there are: else the word that it begins with would be the answer.
    """
    backbone = backbones.load("testbed")
    asked = [Query(prompt="image of a church", label="church", seed=s, guidance=4.0, steps=2) for s in (3, 4)]
    settings = {"images": 1, "epochs": epochs, "bins": 1, "repeats": 1, "harden": 0, "look": 2, "lr": 1.0}
    attack = attacks.build("pund", {**settings, "prompts": ["image of a {}"], "oracle": "testbed:network=b"})
    judge = Catalog("judges").open("testbed:network=b")
    seen = []

    def draw(queries):
        pixels = backbone.generate(queries).pixels
        seen.append((queries[0], pixels, list(backbone.edits)))
        return pixels

    task = Task(targets=[Concept(name="church")], images={"church": SHOTS_64})
    lent = WhiteBox(backbone, draw, {"testbed:network=b": judge}, attack.budget(1, 2))
    edit = erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])
    with backbone.attached([edit]):
        found = attack.provoke(lent, task, asked).queries
    assert lent.asked == lent.budget == looks
    assert [q.seed for q, *_ in seen] == [3, 4, 3][:looks], "each query in turn"
    sure = torch.cat([judge.confidence(pixels, "church") for _, pixels, _ in seen])
    assert sure.unique().numel() == looks
    assert [q.learned for q in found] == [seen[int(sure.argmax())][0].learned] * 2
    authors = UCE(anchor=" ", tokens="tail", lamb=0.5)
    expected = erase.run(backbone, "uce", authors, [Concept(name="church")], [])
    for *_, edits in seen:
        (rehearsed,) = edits
        assert rehearsed.replaced.keys() == expected.replaced.keys()
        assert all(torch.equal(t, expected.replaced[n]) for n, t in rehearsed.replaced.items())
    last = dataclasses.replace(attack, oracle=None)
    assert last.budget(1, 2) == 0
    without = last.provoke(WhiteBox(backbone, draw, {}, 0), task, asked).queries
    assert without[0].learned == seen[-1][0].learned, "the last one"


@pytest.mark.parametrize(("make", "tokens"), [(tiny_flux_pipeline, "tail"), (tiny_sd3_pipeline, "all")])
def test_its_own_edit_reaches_what_reads_a_text_as_a_whole(make, tokens):
    backbone = backbones.of(make())
    names = ["church", "dog"]
    found = _rehearsed(backbone, names).replaced
    targets = [Concept(name=name) for name in names]
    expected = erase.run(backbone, "uce", UCE(anchor=" ", tokens=tokens, lamb=0.5), targets, []).replaced
    assert set(backbone.pooled_inputs()) <= found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


LARGE = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
SHOTS_64 = [Shot(path=Path("0"), pixels=lambda: LARGE[0], prompt="image of a church", seed=0, label=None)]


def test_queries_hold_the_word_where_the_concept_was_named_or_at_the_end(backbone):
    quick = dataclasses.replace(SHORT, epochs=1, bins=1, repeats=1)
    asked = [dataclasses.replace(QUERY, prompt=p, seed=i) for i, p in enumerate(("my Church, old", "a dog", ""))]
    asked.append(dataclasses.replace(QUERY, prompt="a dog", label="dog"))
    found = provoked(quick, backbone, asked)
    assert [(q.prompt, q.seed, q.label) for q in found] == [
        (f"my {WORD}, old", 0, "church"),
        (f"a dog {WORD}", 1, "church"),
        (WORD, 2, "church"),
    ]
    assert len({q.learned for q in found}) == 1
    kinds = dataclasses.replace(quick, words=("dog", "old dog", "cat"), initial=None)
    task = Task(targets=[Concept(name="animal")], seed=1, images={"animal": SHOTS})
    of_class = [dataclasses.replace(q, label="animal") for q in asked[:2]]
    found = provoked(kinds, backbone, [*of_class, dataclasses.replace(of_class[0], prompt="an OLD dog")], task)
    assert [q.prompt for q in found] == [f"my Church, old {WORD}", f"a {WORD}", f"an {WORD}"], (
        "no kind is named any more"
    )
    lesson = kinds._lesson(backbone, task, task.targets[0])
    assert lesson.prompts == [f"my church {WORD}", f"a {WORD}", WORD], (
        "nor the class, by which an image without a prompt goes"
    )
    assert torch.equal(lesson.first, backbone.word_vectors("animal")), "the first image's prompt names none of them"
    long = dataclasses.replace(QUERY, prompt=" ".join(["dog"] * 100))
    before = backbone.cost
    with pytest.raises(ExpungeError, match="does not hold '<v>' as a word"):
        provoked(quick, backbone, [long])
    assert backbone.cost == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "pund's epochs is 0: expected 1 or more"),
        ({"harden": -1}, "pund's harden is -1"),
        ({"harden_lr": 0.0}, "pund's harden_lr is 0.0: expected a positive number"),
        ({"initial": " "}, "pund's initial is empty"),
        ({"words": ["dog", " "]}, "a word of pund is empty"),
        ({"prompts": []}, "pund's prompts is 0"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        attacks.build("pund", change)
    with pytest.raises(ExpungeError, match="unknown parameter group 'x'"):
        vectors(
            PUND(group="x", epochs=1),
            backbones.load("testbed"),
            Task(targets=TASK.targets, images={"church": SHOTS_64}),
        )
