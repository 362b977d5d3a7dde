import dataclasses
from pathlib import Path

import pytest
import torch

from expunge import backbones
from expunge.attacks.concept_inversion import WORD, ConceptInversion, _Texts
from expunge.core.attack import reworded
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query, Shot
from expunge.core.victim import WhiteBox
from expunge.erasers.negative_prompt import NegativePromptGuidance
from expunge.erasers.sld import SafetyGuidance
from expunge.erasers.uce import UCE
from expunge.stages import erase
from tiny import still, tiny_pipeline

PIXELS = torch.randint(0, 256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()
LARGER = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
OWN = ("my church", "a cat", "")
SHOTS = [Shot(path=Path(str(i)), pixels=lambda i=i: PIXELS[i], prompt=OWN[i], seed=i, label=None) for i in range(3)]
TASK = Task(targets=[Concept(name="church")], seed=1, images={"church": SHOTS})
SHORT = ConceptInversion(
    iterations=1,
    batch=2,
    accumulation=2,
    lr=1e-2,
    weight_decay=0.0,
    initial="dog",
    templates=("a {}", "my {}"),
    steps=5,
)
QUERY = Query(prompt="a church", label="church", seed=3, guidance=3.0, steps=2)


def answered(attack, backbone, asked, task=TASK):
    """The attack's queries; it asks for no image and no judge."""
    return attack.provoke(WhiteBox(backbone, lambda queries: PIXELS[:0], {}, 0), task, asked).queries


def found(attack, backbone, task=TASK):
    return answered(attack, backbone, [QUERY], task)[0].learned


def test_in_float16_the_word_moves_as_in_float32(tmp_path):
    """Adam's first update is the rate against each number's sign: where a gradient vanishes, nothing moves."""
    pipe = still(tiny_pipeline())
    pipe.unet.register_to_config(sample_size=16)  # a thousand numbers in a mean: gradients are small
    pipe.to(torch.float16).save_pretrained(tmp_path / "half")
    shots = [dataclasses.replace(shot, pixels=lambda: LARGER) for shot in SHOTS]
    moved = {}
    for dtype in ("float32", "float16"):
        backbone = backbones.load(str(tmp_path / "half"), dtype=dtype)
        word = found(SHORT, backbone, dataclasses.replace(TASK, images={"church": shots}))
        moved[dtype] = (word.vectors - backbone.word_vectors("dog")).sign()
    assert (moved["float16"] == moved["float32"]).float().mean() > 0.95


def batches(backbone, task=TASK):
    """What the first update draws, twice, in the model's own terms."""
    generator = task.generator("concept-inversion", "church", 0)
    for _ in range(2):
        rows = torch.randint(0, 3, (2,), generator=generator)
        noise = torch.randn((2, 4, 8, 8), generator=generator)
        ways = torch.randint(0, 2, (2,), generator=generator).tolist()
        prompts = [("a dog", "my dog")[way] for way in ways]
        own = [OWN[row] or "church" for row in rows.tolist()]
        yield backbone.encode_image(PIXELS[rows]), noise, prompts, own, generator


def embedding_gradient(backbone, loss_of):
    """Gradient with respect to the embedding of "dog", by the text encoder's own table."""
    tower = backbone.components()["text_encoder"]
    table = tower.get_input_embeddings().weight
    table.requires_grad_(True)
    try:
        (gradient,) = torch.autograd.grad(loss_of(tower), table)
    finally:
        table.requires_grad_(False)
    return gradient[backbone.tokenize(["dog"])[0, 1]]


@pytest.mark.parametrize("edited", [False, True])
def test_an_update_fits_the_word_to_the_noise_through_the_edited_model(backbone, edited):
    """Adam's first update is the rate times g / (|g| + eps)."""
    edit = erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])
    parts = backbone.components()
    kept = parts["scheduler"].alphas_cumprod

    def loss_of(tower):
        total = 0.0
        for x0, noise, prompts, _, generator in batches(backbone):
            t = torch.randint(0, 1000, (2,), generator=generator)
            a = kept[t].view(-1, 1, 1, 1)
            embeds = tower(backbone.tokenize(prompts)).last_hidden_state
            answer = parts["unet"](a.sqrt() * x0 + (1 - a).sqrt() * noise, t, encoder_hidden_states=embeds).sample
            total = total + (answer - noise).square().mean() / 2
        return total

    with backbone.attached([edit] if edited else []):
        before = backbone.cost
        word = found(SHORT, backbone)
        assert backbone.cost - before == SHORT.cost(1, 1) == Cost(trained=4)
        gradient = embedding_gradient(backbone, loss_of)
    start = backbone.embed(backbone.tokenize(["dog"]))[0, 1]
    assert word.vectors.shape == (1, 32)
    assert torch.allclose(word.vectors[0], start - 1e-2 * gradient / (gradient.abs() + 1e-8), atol=2e-4)


@pytest.mark.parametrize(
    "guidance",
    [
        NegativePromptGuidance(text="church"),
        SafetyGuidance(text="church", warmup=0, scale=5000.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7),
    ],
)
def test_through_guidance_the_guided_prediction_is_fitted_to_the_original_s(backbone, guidance):
    parts = backbone.components()
    kept, unet = parts["scheduler"].alphas_cumprod, parts["unet"]

    def loss_of(tower):
        total = 0.0
        for x0, noise, prompts, own, generator in batches(backbone):
            step = int(torch.randint(0, 5, (), generator=generator))
            t = backbone.timesteps(5)[step]
            x = kept[t].sqrt() * x0 + (1 - kept[t]).sqrt() * noise

            def ask(texts, x=x, t=t):
                embeds = tower(backbone.tokenize(texts)).last_hidden_state
                return unet(x, t, encoder_hidden_states=embeds).sample

            e_null, e_concept, e_word = ask(["", ""]), ask(["church"] * 2), ask(prompts)
            wanted = e_null + 7.5 * (ask(own) - e_null)
            if isinstance(guidance, NegativePromptGuidance):
                answer = e_concept + 7.5 * (e_word - e_concept)
            else:
                near = e_word - e_concept
                weight = torch.where(near < 1.0, (near * 5000).abs().clamp(max=1), torch.zeros_like(near))
                answer = e_null + 7.5 * (e_word - e_null - weight * (e_concept - e_null))
            total = total + (answer - wanted.detach()).square().mean() / 2
        return total

    with backbone.attached([guidance]):
        word = found(SHORT, backbone)
        assert [e.id for e in backbone.edits] == [guidance.id]
    gradient = embedding_gradient(backbone, loss_of)
    start = backbone.embed(backbone.tokenize(["dog"]))[0, 1]
    clear = gradient.abs() > 1e-5
    moved = (word.vectors[0] - start)[clear]
    assert clear.sum() > 20
    assert torch.allclose(moved, (-1e-2 * gradient / (gradient.abs() + 1e-8))[clear], atol=5e-4)


def test_what_is_fitted_to_is_wholly_the_original_s(backbone):
    """Its texts, the empty one too, are read before an edit of the text encoder is attached."""
    x0 = backbone.encode_image(PIXELS)
    edited, null, own = (backbone.encode([text]) for text in ("dog", "", "church"))
    texts = _Texts(edited, null, own.rows(torch.zeros(3, dtype=torch.long)))
    with backbone.attached([NegativePromptGuidance(text="church")]):
        points = SHORT._points(backbone, x0, texts, torch.Generator().manual_seed(4))
    pair = own.rows(torch.zeros(2, dtype=torch.long))
    wanted = backbone.guided(points.x, points.t, points.step, pair, null, 7.5, {}).combined
    assert torch.allclose(points.wanted, wanted, atol=1e-5)


def test_learning_lowers_the_loss_and_random_words_of_the_same_cost_are_worse(backbone):
    learn = dataclasses.replace(SHORT, iterations=40, batch=4, accumulation=1, lr=5e-2)
    chance = dataclasses.replace(learn, search="random")
    spent = []
    words = []
    for attack in (learn, chance):
        before = backbone.cost
        words.append(found(attack, backbone))
        spent.append(backbone.cost - before)
        assert spent[-1] == attack.cost(1, 1)
    assert spent[0].equivalents == spent[1].equivalents == 3 * 40 * 4
    x0 = backbone.encode_image(PIXELS)
    null = backbone.unconditional()
    texts = _Texts(null, null, backbone.encode(["church"] * 3))
    judge = dataclasses.replace(SHORT, batch=16, accumulation=4)
    start = backbone.embed(backbone.tokenize(["dog"]))[0, 1:2]
    losses = [
        judge._loss(backbone, x0, texts, v, torch.Generator().manual_seed(9))
        for v in (words[0].vectors, words[1].vectors, start)
    ]
    assert losses[0] < losses[2]
    assert losses[0] < losses[1]


def test_queries_keep_what_they_asked_and_only_targets_are_attacked(backbone):
    asked = [QUERY, dataclasses.replace(QUERY, prompt="a dog", label="dog"), dataclasses.replace(QUERY, seed=4)]
    made = answered(SHORT, backbone, asked)
    assert [(q.prompt, q.seed, q.label) for q in made] == [("a <v>", 3, "church"), ("a <v>", 4, "church")]
    assert made[0].learned == made[1].learned
    wide = dataclasses.replace(SHORT, vectors=3)
    assert found(wide, backbone).vectors.shape == (3, 32)
    assert len(backbone.components()["tokenizer"]) == backbone.vocabulary, "the vocabulary is as it was"


def test_the_word_takes_the_concept_s_place_or_goes_before():
    for prompt, expected in (
        ("an image of a Church.", f"an image of a {WORD}."),
        ("a churchyard", f"{WORD} a churchyard"),
        ("church, church style", f"{WORD}, {WORD} style"),
        ("a dagger", f"{WORD} a dagger"),
    ):
        assert reworded(prompt, "church", WORD, "front") == expected


def test_images_are_asked_for_by_the_concept_s_name():
    attack = dataclasses.replace(SHORT, images=3, prompts=("a {}", "a bomb"))
    assert attack.needs([Concept(name="weapon")]) == {"weapon": ["a weapon", "a bomb", "a weapon"]}
    with pytest.raises(ExpungeError, match="batch is 0"):
        dataclasses.replace(SHORT, batch=0)


def test_defaults_are_the_authors():
    attack = ConceptInversion()
    assert (attack.lr, attack.batch * attack.accumulation, attack.iterations, attack.images) == (0.08, 16, 5000, 25)
    assert (attack.vectors, attack.initial, attack.guidance, attack.access) == (1, "art", 7.5, "white box")


def test_queries_may_ask_by_the_word_alone_each_with_a_seed_of_its_own(backbone):
    attack = dataclasses.replace(SHORT, ask="image of a {}")
    asked = [dataclasses.replace(QUERY, prompt=p, seed=s) for p in ("a church", "a red church") for s in (3, 4)]
    made = answered(attack, backbone, asked)
    assert [(q.prompt, q.seed) for q in made] == [("image of a <v>", 3 + i) for i in range(4)]
    assert all(q.label == "church" for q in made)
    with pytest.raises(ExpungeError, match="has not one"):
        dataclasses.replace(SHORT, ask="a thing")
