import dataclasses

import pytest
import torch

from expunge import backbones
from expunge.core.concept import COCO_OBJECTS, Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.erasers.adv_unlearn import AdvUnlearn
from expunge.maths.trajectories import Sampling
from expunge.stages import erase

FROZEN = Sampling(arm="online-frozen", sampling_steps=4)
SHORT = AdvUnlearn(
    **{"iterations": 3, "batch": 2, "lr": 1e-3, "warmup": 1, "attack_steps": 2, "attack_lr": 1e-2, "retain_batch": 2},
    **{"kept": ("dog", "a red church"), "sampling": FROZEN},
)
TASK = Task(targets=[Concept(name="church")], seed=1)


def trained(backbone):
    tower = backbone.components()["text_encoder"]
    return {f"text_encoder.{n}": p for n, p in tower.named_parameters() if ".layers." in n}


def points_of(backbone, purpose, texts, points, index, batch):
    with torch.no_grad():
        cond, null = backbone.encode(texts), backbone.encode([""])
        return FROZEN.source(backbone, cond, null, TASK, f"adv-unlearn {purpose}", points).draw(index, batch)


def answer(backbone, points, embeds):
    """The denoiser, called without expunge."""
    return backbone.components()["unet"](points.x, points.t, encoder_hidden_states=embeds).sample


def behind(backbone, vectors, text):
    """A text's features with vectors between its first token and its words, layer by layer."""
    tower = backbone.components()["text_encoder"]
    embeds = tower.get_input_embeddings()(backbone.tokenize([text]))
    return _run(tower, torch.cat([embeds[:, :1], vectors[None], embeds[:, 1 : -len(vectors)]], 1))


def _run(tower, embeds):
    """The layers of a CLIP text encoder on token embeddings."""
    model = tower.text_model if hasattr(tower, "text_model") else tower
    hidden = embeds + model.embeddings.position_embedding.weight[None, : embeds.shape[1]]
    length = embeds.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for layer in model.encoder.layers:
        out = layer(hidden, mask)
        hidden = out[0] if isinstance(out, tuple) else out
    return model.final_layer_norm(hidden)


def plain_loss(backbone, vectors, index):
    """The whole loss of an update with plain torch: the target behind the vectors, and the kept word."""
    points = points_of(backbone, "erased", ["church"], 6, index, 2)
    kept = points_of(backbone, "kept", ["a photo of a dog"], 6, index, 2)
    with torch.no_grad():
        null, church, dog = (backbone.encode([text]).embeds for text in ("", "church", "a photo of a dog"))
        e_null, e_church = (answer(backbone, points, e.expand(2, -1, -1)) for e in (null, church))
        goal = e_null - (e_church - e_null)
        wanted = answer(backbone, kept, dog.expand(2, -1, -1))
    text = backbone.encode(["church"]).embeds if vectors is None else behind(backbone, vectors, "church")
    erased = ((answer(backbone, points, text.expand(2, -1, -1)) - goal) ** 2).mean()
    again = backbone.encode(["a photo of a dog"]).embeds
    retained = ((answer(backbone, kept, again.expand(2, -1, -1)) - wanted) ** 2).mean()
    return erased, retained


def test_the_first_update_is_adam_on_esds_loss_of_the_text_encoder(backbone):
    parameters = trained(backbone)
    for p in parameters.values():
        p.requires_grad_(True)
    erased, retained = plain_loss(backbone, None, 0)
    found = torch.autograd.grad(erased + 2.0 * retained, list(parameters.values()), allow_unused=True)
    for p in parameters.values():
        p.requires_grad_(False)
    eraser = dataclasses.replace(SHORT, retain_weight=2.0)
    step = next(iter(eraser.steps(backbone, TASK)))
    assert step.losses == {"erase": pytest.approx(erased.item(), rel=1e-4), "retain": pytest.approx(0.0, abs=1e-9)}
    edit = step.edit()
    assert set(edit.replaced) == set(parameters)
    for (name, p), g in zip(parameters.items(), found, strict=True):
        clear = g.abs() > 1e-5  # Adam's first step is lr times the sign
        assert torch.allclose(edit.replaced[name][clear], (p - 1e-3 * g.sign())[clear], atol=2e-6), name


def test_an_attack_brings_the_answer_nearer_the_originals_and_the_next_update_trains_against_it(backbone):
    """The attack by hand: Adam on vectors before the target, for the original's prediction, through the edited encoder."""
    first, second, *_ = [(s.edit(), s.state(), s.losses) for s in SHORT.steps(backbone, TASK)]
    generator = TASK.generator("adv-unlearn vectors", 1)
    ids = torch.randint(0, backbone.vocabulary, (1, 1), generator=generator)
    vectors = backbone.components()["text_encoder"].get_input_embeddings()(ids)[0].detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=1e-2)
    with torch.no_grad():
        church = backbone.encode(["church"]).embeds
    backbone.attach(first[0])
    for number in range(2):
        points = points_of(backbone, "attack", ["church"], 4, number, 1)
        with torch.no_grad():
            wanted = answer(backbone, points, church)
        loss = ((answer(backbone, points, behind(backbone, vectors, "church")) - wanted) ** 2).mean()
        (vectors.grad,) = torch.autograd.grad(loss, vectors)
        optimizer.step()
    backbone.detach(first[0])
    found = second[1]["vectors"]
    assert torch.allclose(found, vectors.detach(), atol=1e-3)  # a tenth of a step, and most are far nearer
    assert (found - vectors.detach()).abs().median() < 1e-4
    with backbone.attached([first[0]]):
        points = points_of(backbone, "erased", ["church"], 6, 1, 2)
        with torch.no_grad():
            loud = answer(backbone, points, behind(backbone, found, "church").expand(2, -1, -1))
    with torch.no_grad():
        e_null, e_church = (
            answer(backbone, points, backbone.encode([text]).embeds.expand(2, -1, -1)) for text in ("", "church")
        )
    assert second[2]["erase"] == pytest.approx(float(((loud - (2 * e_null - e_church)) ** 2).mean()), rel=1e-3)


def test_one_step_of_an_attack_is_the_sign_of_its_gradient(backbone):
    """The paper's fast variant: each number of the vectors moves by the rate, whatever its gradient's size."""
    eraser = dataclasses.replace(SHORT, iterations=2, attack_steps=1)
    found = [s.state() for s in eraser.steps(backbone, TASK)][1]["vectors"]
    ids = torch.randint(0, backbone.vocabulary, (1, 1), generator=TASK.generator("adv-unlearn vectors", 1))
    moved = (found - backbone.embed(ids)[0]).abs()
    assert torch.allclose(moved, torch.full_like(moved, 1e-2), atol=1e-4)


def test_attacks_go_on_from_the_last_or_begin_anew(backbone):
    still = dataclasses.replace(SHORT, attack_lr=1e-12, warmup=0)
    latest = [s.state()["vectors"] for s in still.steps(backbone, TASK)]
    anew = [s.state()["vectors"] for s in dataclasses.replace(still, initial="random").steps(backbone, TASK)]
    assert torch.allclose(latest[0], latest[2], atol=1e-6)
    assert not torch.allclose(anew[0], anew[1], atol=1e-3)
    seldom = dataclasses.replace(still, initial="random", attack_every=2)
    assert torch.equal(*[s.state()["vectors"] for s in seldom.steps(backbone, TASK)][:2])


def test_without_attack_and_kept_words_it_is_esd_on_the_text_encoder(backbone):
    eraser = dataclasses.replace(SHORT, attack_steps=0, retain_weight=0.0)
    steps = list(eraser.steps(backbone, TASK))
    assert all(set(s.losses) == {"erase"} and "vectors" not in s.state() for s in steps)
    assert steps[0].losses["erase"] == pytest.approx(float(plain_loss(backbone, None, 0)[0]), rel=1e-4)


def test_a_weaker_one_attacks_in_the_same_share_of_its_updates():
    weaker = AdvUnlearn().stronger(0.1)
    assert (weaker.iterations, weaker.warmup) == (100, 20)


def test_kept_apart_has_an_update_of_its_own(backbone):
    """As the released code has it: the second update of one round begins where the first left off, and lowers its loss."""
    apart = dataclasses.replace(SHORT, keeping="apart", attack_steps=0, iterations=1)
    term = dataclasses.replace(apart, keeping="term")
    (one,), (other,) = (list(e.steps(backbone, TASK)) for e in (apart, term))
    assert other.losses["retain"] == pytest.approx(0.0, abs=1e-9)
    assert one.losses["retain"] > 1e-8  # after the first update there is something to restore
    name = next(iter(trained(backbone)))
    assert not torch.equal(one.edit().replaced[name], other.edit().replaced[name])


def test_words_that_hold_the_targets_name_are_not_kept(backbone):
    """'a red church' is dropped beside 'dog': with it in the list, points would draw both."""
    words = dataclasses.replace(SHORT, kept=("dog",))
    assert [s.losses for s in words.steps(backbone, TASK)] == [s.losses for s in SHORT.steps(backbone, TASK)]
    told = Task(targets=TASK.targets, retain=["cat"], seed=1)
    assert [s.losses for s in SHORT.steps(backbone, told)] != [s.losses for s in SHORT.steps(backbone, TASK)]
    with pytest.raises(
        ExpungeError, match="has no word to keep: expected some in kept or --retain, or retain_weight 0"
    ):
        list(dataclasses.replace(SHORT, kept=("church door",)).steps(backbone, TASK))
    assert len(set(COCO_OBJECTS)) == 80
    longer = dataclasses.replace(SHORT, kept=("dog", "a red Church", "churchyard"))
    both = dataclasses.replace(SHORT, kept=("dog", "churchyard"))
    assert [s.losses for s in longer.steps(backbone, TASK)] == [s.losses for s in both.steps(backbone, TASK)]


@pytest.mark.parametrize("arm", ["online-frozen", "bank"])
def test_what_is_foreseen_is_what_it_takes(backbone, arm):
    kinds = {
        "online-frozen": Sampling(arm="online-frozen", sampling_steps=1),
        "bank": Sampling(arm=arm, sampling_steps=4),
    }
    eraser = dataclasses.replace(SHORT, kept=("dog", "cat"), sampling=kinds[arm])
    before = backbone.cost
    list(eraser.steps(backbone, TASK))
    assert backbone.cost - before == eraser.cost(1, 0)
    assert AdvUnlearn().cost(1, 0).trained == 1000 * (1 + 5) + 800 * 30


def test_the_student_makes_the_same_points_as_the_original(backbone):
    """Its denoiser is the original's, and trajectories follow the original's reading of the prompt."""
    student = dataclasses.replace(SHORT, sampling=Sampling(arm="online-student", sampling_steps=4))
    assert [s.losses for s in student.steps(backbone, TASK)] == [s.losses for s in SHORT.steps(backbone, TASK)]


def test_it_goes_on_bit_for_bit(backbone):
    _, second, last = [(s.state(), s.edit()) for s in SHORT.steps(backbone, TASK)]
    (again,) = SHORT.steps(backbone, TASK, second[0])
    assert torch.equal(again.state()["vectors"], last[0]["vectors"])
    assert all(torch.equal(t, last[1].replaced[n]) for n, t in again.edit().replaced.items())


def test_on_the_testbed_the_word_comes_to_read_otherwise():
    backbone = backbones.load("testbed")
    bank = Sampling(arm="bank", sampling_steps=8, trajectories=4)
    settings = {"iterations": 6, "batch": 4, "lr": 3e-4, "warmup": 3, "attack_steps": 1, "sampling": bank}
    eraser = AdvUnlearn(**settings, kept=("dog", "fish"), retain_batch=2)
    task = Task(targets=[Concept(name="church")])
    losses = [step.losses["erase"] for step in eraser.steps(backbone, task)]
    assert losses[2] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attack_steps": -1}, "attack_steps -1, .* expected none below 0"),
        ({"retain_weight": -1.0}, "retain_weight -1.0"),
        ({"iterations": 200}, "warmup 200 of 200 iterations leaves none to attack: expected fewer, or attack_steps 0"),
        ({"tokens": 0}, "adv-unlearn's tokens is 0"),
        ({"attack_lr": 0.0}, "adv-unlearn's attack_lr is 0.0: expected a positive number"),
        ({"initial": "zero"}, "unknown adv-unlearn's initial 'zero'"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        erase.build("adv-unlearn", change, None)


def test_a_group_of_the_denoiser_is_refused(backbone):
    with pytest.raises(ExpungeError, match="expected a group of the text encoder, such as text-layers"):
        AdvUnlearn(group="xattn").check(backbone)
