import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.eraser import Redrawn, Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Shot
from expunge.erasers.duo import DUO, Flow
from expunge.erasers.duo.pairs import Cut, Pairs, cropped
from expunge.stages import erase
from tiny import tiny_sd3_pipeline

PIXELS = torch.randint(0, 256, (6, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()
SHORT = DUO(iterations=2, batch=3, rank=4, alpha=8.0, base_lr=5e-2, base_lamb=0.2)


def shots(rows, prompt):
    return [Shot(path=Path(str(i)), pixels=lambda i=i: PIXELS[i], prompt=prompt, seed=i, label=None) for i in rows]


TASK = Task(
    targets=[Concept(name="church")],
    seed=1,
    images={"unsafe": shots((0, 1, 2), "a church"), "safe": shots((3, 4, 5), "a dog")},
)


def fused(backbone, factors, scale):
    """The layers' weights with the change in them."""
    base = backbone.tensors([f"{n.removesuffix('.up')}.weight" for n in factors if n.endswith(".up")])
    return {
        n: w + scale * factors[n.replace(".weight", ".up")] @ factors[n.replace(".weight", ".down")]
        for n, w in base.items()
    }


def minus_log_sigmoid(z):
    return np.log1p(np.exp(-z))


@pytest.mark.parametrize(
    ("loss", "texts", "timesteps", "no_grad"),
    [
        ("dpo", "empty", "independent", "none"),
        ("dpo", "given", "shared", "ascent"),
        ("kto", "empty", "independent", "none"),
        ("kto shuffled", "given", "independent", "none"),
        ("finetune", "empty", "independent", "none"),
        ("ascent", "empty", "independent", "none"),
        ("both", "given", "independent", "none"),
        ("dpo", "unsafe", "shared", "none"),
        ("finetune", "unsafe", "independent", "none"),
    ],
)
def test_an_update_is_the_formula(backbone, loss, texts, timesteps, no_grad):
    """The second update's losses, from the UNet itself with the first one's change in its weights."""
    loss, shuffled = loss.split()[0], loss.endswith("shuffled")
    eraser = dataclasses.replace(
        SHORT, loss=loss, shuffled=shuffled, texts=texts, timesteps=timesteps, no_grad=no_grad, beta=300.0
    )
    if loss in ("dpo", "kto"):
        eraser = dataclasses.replace(eraser, base_keep=0.3)
    before = backbone.cost
    updates = iter(eraser.steps(backbone, TASK))
    edit = next(updates).edit()
    second = next(updates)
    assert backbone.cost - before == eraser.cost(1, 0)
    assert (edit.scale, edit.gates) == (2.0, ())

    generator = TASK.generator("duo", 1)
    noise = torch.randn((3, 4, 8, 8), generator=generator)
    u = torch.rand(2, 1 if loss == "kto" else 3, generator=generator, dtype=torch.float64).expand(2, 3)
    t = (u * 750).long()
    t_safe, t_unsafe = (t[0], t[0]) if loss == "kto" or timesteps == "shared" else t
    order = torch.randperm(3, generator=TASK.generator("duo pairs", 1)).tolist()
    apart = torch.randperm(3, generator=TASK.generator("duo safe")).tolist() if shuffled else [0, 1, 2]
    safe_order = [apart[i] for i in order]
    assert (order != safe_order) is shuffled
    parts = backbone.components()
    kept = parts["scheduler"].alphas_cumprod

    def asked(pixels, at, text):
        with torch.no_grad():
            a = kept[at].view(-1, 1, 1, 1)
            x = a.sqrt() * backbone.encode_image(pixels) + (1 - a).sqrt() * noise
            embeds = parts["text_encoder"](backbone.tokenize([text] * 3)).last_hidden_state
            return parts["unet"](x, at, encoder_hidden_states=embeds).sample

    def answers():
        said = {"empty": ("", ""), "given": ("a dog", "a church"), "unsafe": ("a church", "a church")}[texts]
        safe = asked(PIXELS[3:][safe_order], t_safe, said[0])
        unsafe = asked(PIXELS[:3][order], t_unsafe, said[1])
        return safe, unsafe

    def errors(given):
        return [((e - noise) ** 2).numpy().reshape(3, -1).mean(1) for e in given]

    def of_noise():
        with torch.no_grad():
            embeds = parts["text_encoder"](backbone.tokenize([""] * 3)).last_hidden_state
            return parts["unet"](noise, torch.full((3,), 999), encoder_hidden_states=embeds).sample

    before_update, noise_ref = answers(), of_noise()
    with backbone.weights(fused(backbone, edit.tensors(), 2.0)):
        now, noise_now = answers(), of_noise()
    (safe_ref, unsafe_ref), (safe, unsafe) = errors(before_update), errors(now)
    moved = safe - safe_ref if loss == "dpo" else (safe - safe_ref).mean()
    expected = {
        "dpo": minus_log_sigmoid(-300 * (moved - (unsafe - unsafe_ref))).mean(),
        "kto": minus_log_sigmoid(-300 * (moved - (unsafe - unsafe_ref))).mean(),
        "finetune": safe.mean(),
        "ascent": -unsafe.mean(),
        "both": safe.mean() - unsafe.mean(),
    }[loss]
    assert second.losses["preference"] == pytest.approx(expected, rel=1e-3)
    assert second.losses["prior"] == pytest.approx(((noise_now - noise_ref) ** 2).mean().item(), rel=1e-3)
    assert second.losses["prior"] > 0
    kept_safe = ((now[0] - before_update[0]) ** 2).mean().item() if loss in ("dpo", "kto") else 0
    assert second.losses.get("kept", 0) == pytest.approx(kept_safe, rel=1e-3)


def test_keeping_the_answers_to_safe_images_is_a_term_of_the_update(backbone):
    """With its weight far above all else the next updates undo what the first one changed on safe images."""
    eraser = dataclasses.replace(SHORT, iterations=12, base_lr=1e-2, base_lamb=0.0)
    free = [step.losses["kept"] for step in dataclasses.replace(eraser, base_keep=1e-9).steps(backbone, TASK)]
    held = [step.losses["kept"] for step in dataclasses.replace(eraser, base_keep=1e4).steps(backbone, TASK)]
    assert held[1] == pytest.approx(free[1], rel=1e-3), "after one update nothing has been held yet"
    assert held[-1] < 0.5 * free[-1]
    assert dataclasses.replace(eraser, base_keep=2.0, beta=300.0).derived()["kept"] == 6.0
    with pytest.raises(ExpungeError, match="expected a loss that compares, dpo or kto"):
        dataclasses.replace(eraser, loss="finetune", base_keep=1.0)


def test_answers_to_random_texts_are_kept_at_any_noise_level(backbone):
    """The term of the second update, from the UNet itself with the first one's change in its weights."""
    eraser = dataclasses.replace(SHORT, base_random=0.3, timesteps="shared", beta=300.0)
    before = backbone.cost
    updates = iter(eraser.steps(backbone, TASK))
    edit = next(updates).edit()
    second = next(updates)
    assert backbone.cost - before == eraser.cost(1, 0) == Cost(forward=2 * 3 * 4, trained=2 * 3 * 4)
    assert eraser.derived()["retained"] == pytest.approx(0.9)

    generator = TASK.generator("duo", 1)
    noise = torch.randn((3, 4, 8, 8), generator=generator)
    torch.rand(2, 3, generator=generator, dtype=torch.float64)
    torch.rand(3, 3, generator=generator)
    texts = backbone.random_texts(3, generator)
    t = torch.randint(0, 1000, (3,), generator=generator)
    order = torch.randperm(3, generator=TASK.generator("duo pairs", 1)).tolist()
    parts = backbone.components()

    def answers():
        with torch.no_grad():
            a = parts["scheduler"].alphas_cumprod[t].view(-1, 1, 1, 1)
            x = a.sqrt() * backbone.encode_image(PIXELS[3:][order]) + (1 - a).sqrt() * noise
            return parts["unet"](x, t, encoder_hidden_states=parts["text_encoder"](texts).last_hidden_state).sample

    was = answers()
    with backbone.weights(fused(backbone, edit.tensors(), 2.0)):
        now = answers()
    assert second.losses["retained"] == pytest.approx(((now - was) ** 2).mean().item(), rel=1e-3)
    assert second.losses["retained"] > 0


def test_the_first_update_follows_the_gradient_at_the_rate_that_beta_scales(backbone):
    """AdamW's first update is the rate times the sign of the gradient; of the zero factors alone, since the other's is zero."""
    eraser = dataclasses.replace(SHORT, iterations=1, beta=200.0, weight_decay=0.0)
    assert (eraser.lr, eraser.lamb) == (2.5e-2, 0.4)
    assert eraser.derived() == {"lr": 2.5e-2, "lamb": 0.4}
    (step,) = eraser.steps(backbone, TASK)
    assert step.losses["preference"] == pytest.approx(np.log(2), rel=1e-4), "nothing is preferred yet"
    assert step.losses["prior"] == 0
    ups = torch.cat([t.flatten() for n, t in step.edit().tensors().items() if n.endswith(".up")])
    moved = ups[ups.abs() > 1e-3].abs()
    assert len(moved) > 0.9 * len(ups)
    assert torch.allclose(moved, torch.full_like(moved, 2.5e-2), rtol=0.05)


def test_the_lora_stands_beside_self_attention_alone(backbone):
    (step,) = dataclasses.replace(SHORT, iterations=1).steps(backbone, TASK)
    layers = step.edit().layers
    assert set(layers) == set(backbone.layers("selfattn"))
    assert all(".attn1." in name and len(part.down) == 4 for name, part in layers.items())
    with pytest.raises(ExpungeError, match="unknown layer group 'selfatn': did you mean 'selfattn'"):
        dataclasses.replace(SHORT, layers="selfatn").check(backbone)


def test_timesteps_are_below_the_limit_and_apart_or_shared(backbone):
    many = dataclasses.replace(SHORT, batch=400, t_max=100)
    draw = lambda eraser: eraser._times(backbone, torch.Generator().manual_seed(0))  # noqa: E731
    apart = draw(many)
    assert all(0 <= t.min() < 5 and 95 < t.max() < 100 for t in apart.values())
    assert (apart["safe"] != apart["unsafe"]).float().mean() > 0.9
    one = draw(dataclasses.replace(many, timesteps="shared"))
    assert torch.equal(one["safe"], one["unsafe"])
    assert len(set(one["safe"].tolist())) > 50
    assert len({*draw(dataclasses.replace(many, loss="kto"))["safe"].tolist()}) == 1


def test_a_bank_asks_the_original_once(backbone):
    eraser = dataclasses.replace(SHORT, iterations=5, bank=2)
    before = backbone.cost
    losses = [step.losses["preference"] for step in eraser.steps(backbone, TASK)]
    assert backbone.cost - before == eraser.cost(1, 0) == Cost(forward=2 * 3 * 3, trained=5 * 3 * 3)
    assert len(losses) == 5
    fresh = dataclasses.replace(SHORT, iterations=5)
    assert fresh.cost(1, 0).forward == 5 * 3 * 3
    numbers = []
    real = DUO._batch

    def seen(self, backbone, task, pairs, number):
        numbers.append(number)
        return real(self, backbone, task, pairs, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DUO, "_batch", seen)
        list(eraser.steps(backbone, TASK))
    assert sorted(numbers) == [0, 1]


@pytest.mark.parametrize(
    ("change", "forward", "trained"),
    [
        ({}, 3, 3),
        ({"base_lamb": 0.0}, 2, 2),
        ({"loss": "finetune"}, 1, 2),
        ({"loss": "ascent", "base_lamb": 0.0}, 0, 1),
        ({"loss": "both"}, 1, 3),
        ({"base_random": 1.0, "base_keep": 1.0}, 4, 4),
        ({"loss": "finetune", "base_lamb": 0.0, "base_random": 1.0}, 1, 2),
    ],
)
def test_what_a_pair_costs(backbone, change, forward, trained):
    eraser = dataclasses.replace(SHORT, iterations=1, batch=1, **change)
    before = backbone.cost
    list(eraser.steps(backbone, TASK))
    assert backbone.cost - before == eraser.cost(1, 0) == Cost(forward=forward, trained=trained)


def test_the_weight_of_noise_grows_once_the_preference_is_learned():
    eraser = dataclasses.replace(SHORT, beta=100.0, base_lamb=5.0, dynamic_lamb=True)
    assert eraser._weight({"preference": torch.tensor(0.2)}) == 5
    assert eraser._weight({"preference": torch.tensor(0.05)}) == 500
    assert dataclasses.replace(eraser, dynamic_lamb=False)._weight({"preference": torch.tensor(0.05)}) == 5
    with pytest.raises(ExpungeError, match="no_grad 'ascent' with loss both, which compares no two sides"):
        dataclasses.replace(SHORT, loss="both", no_grad="ascent")
    with pytest.raises(ExpungeError, match="dynamic_lamb with loss finetune, which has no preference"):
        dataclasses.replace(eraser, loss="finetune")


def test_training_prefers_the_safe_images(backbone):
    """On one batch, again and again, the preference falls well below log 2, where it began."""
    eraser = dataclasses.replace(SHORT, iterations=25, bank=1, beta=500.0, base_lr=5e-2, base_lamb=0.0)
    losses = [step.losses["preference"] for step in eraser.steps(backbone, TASK)]
    assert losses[0] == pytest.approx(np.log(2), rel=1e-4)
    assert losses[-1] < 0.5 * np.log(2)


def test_latents_are_exact_and_kept_and_pairs_are_turned_together(backbone):
    calls = []
    real = type(backbone).encode_image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone), "encode_image", lambda self, x: (calls.append(len(x)), real(self, x))[1])
        pairs = dataclasses.replace(SHORT, flip=True).paired(backbone, TASK)
        found = [
            pairs.latents(side, 1, Cut(f, 0, 0)) for _ in range(3) for side in ("safe", "unsafe") for f in (False, True)
        ]
    assert len(calls) == 1 + 4, "each once"
    expected = [backbone.encode_image(p[None]) for row in (4, 1) for p in (PIXELS[row], PIXELS[row].flip(1))]
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 3, strict=True))
    still = SHORT.paired(backbone, TASK)
    assert torch.equal(still.latents("safe", 1, Cut(True, 0, 0)), expected[0]), "nothing is turned unless asked for"


def test_a_window_is_cut_and_enlarged():
    ramp = torch.arange(16).repeat(16, 1)[..., None].expand(-1, -1, 3).byte() * 10
    assert torch.equal(cropped(ramp, 1.0, Cut(False, 0.7, 0.2)), ramp)
    half = cropped(ramp, 0.5, Cut(False, 1.0, 0.0))
    assert half.shape == ramp.shape
    assert (half[0, 0, 0].item(), half[0, -1, 0].item()) == (80, 150), "the right half, top"


def test_pairs_that_the_model_makes_itself():
    targets = [Concept(name="naked woman", anchor="dressed woman"), Concept(name="gun")]
    needed = dataclasses.replace(SHORT, pairs=2, prompt="a {}, realistic photo", strength=0.8).needs(targets)
    assert list(needed) == ["unsafe", "safe"]
    assert needed["unsafe"] == ["a naked woman, realistic photo"] * 2 + ["a gun, realistic photo"] * 2
    assert needed["safe"][0] == Redrawn(
        "a dressed woman, realistic photo", "unsafe", 0.8, "a naked woman, realistic photo"
    )
    assert needed["safe"][2] == Redrawn("", "unsafe", 0.8, "a gun, realistic photo")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"t_max": 1001}, "t_max 1001"),
        ({"crop": 0.0}, "crop 0.0"),
        ({"bank": -1}, "bank is -1"),
        ({"base_random": -1.0}, "base_random is -1.0"),
        ({"shuffled": True}, "shuffled with loss dpo, which needs no order of its own"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        dataclasses.replace(SHORT, **change)


def test_images_that_are_no_pairs_are_refused(backbone):
    odd = dataclasses.replace(TASK, images={**TASK.images, "safe": TASK.images["safe"][:2]})
    with pytest.raises(ExpungeError, match="3 unsafe images and 2 safe ones: expected pairs"):
        next(iter(SHORT.steps(backbone, odd)))
    bare = dataclasses.replace(TASK, images={"unsafe": shots((0,), ""), "safe": shots((1,), "")})
    with pytest.raises(ExpungeError, match="the images have no prompts"):
        next(iter(dataclasses.replace(SHORT, texts="given").steps(backbone, bare)))
    unasked = dataclasses.replace(TASK, images={**TASK.images, "unsafe": shots((0, 1, 2), "")})
    with pytest.raises(ExpungeError, match="duo's texts are 'unsafe', and the images have no prompts"):
        next(iter(dataclasses.replace(SHORT, texts="unsafe").steps(backbone, unasked)))


def test_each_pair_has_its_own_texts(backbone):
    named = [dataclasses.replace(s, prompt=f"a {word}") for s, word in zip(TASK.images["unsafe"], "xyz", strict=True)]
    task = dataclasses.replace(TASK, images={**TASK.images, "unsafe": named})
    for texts, safe in (("unsafe", ["a z", "a x"]), ("given", ["a dog", "a dog"])):
        pairs = dataclasses.replace(SHORT, texts=texts).paired(backbone, task)
        assert [pairs.texts[i] for i in pairs.rows([2, 0], ("safe", "unsafe"))] == [
            *safe,
            "a z",
            "a x",
        ]


def test_shuffled_gives_each_unsafe_image_one_safe_image_for_the_whole_run_and_leaves_texts_in_pairs(
    backbone, monkeypatch
):
    """As the authors' data set does: it shuffles the list of safe images once, before it numbers images and texts alike."""
    eraser = dataclasses.replace(SHORT, loss="kto", shuffled=True, texts="given", iterations=9, batch=1)
    safe = [dataclasses.replace(s, prompt=f"a {word}") for s, word in zip(TASK.images["safe"], "xyz", strict=True)]
    task = dataclasses.replace(TASK, images={**TASK.images, "safe": safe})
    shown, read = [], []
    latents, rows = Pairs.latents, Pairs.rows

    def looked(self, side, pair, cut, whole=False):
        shown.extend([] if whole else [(side, pair)])
        return latents(self, side, pair, cut, whole)

    def texts(self, which, sides):
        read.append([self.texts[i] for i in rows(self, which, sides)])
        return rows(self, which, sides)

    monkeypatch.setattr(Pairs, "latents", looked)
    monkeypatch.setattr(Pairs, "rows", texts)
    list(eraser.steps(backbone, task))
    beside = list(zip(*([pair for side, pair in shown if side == of] for of in ("unsafe", "safe")), strict=True))
    assert len(beside) == len(read) == 9
    assert len(set(beside)) == 3, "three pairs, the same three times"
    assert {a for a, _ in beside} == {b for _, b in beside} == {0, 1, 2}
    assert any(a != b for a, b in beside)
    assert [said for said, _ in read] == [f"a {'xyz'[unsafe]}" for unsafe, _ in beside]


def test_defaults_are_the_authors():
    eraser = DUO()
    assert (eraser.beta, eraser.rank, eraser.alpha, eraser.weight_decay, eraser.clip) == (500, 32, 32, 1e-2, 1)
    assert (eraser.lr, eraser.lamb) == (pytest.approx(6e-5), pytest.approx(5e6))
    assert (eraser.iterations, eraser.batch, eraser.pairs, eraser.strength) == (1000, 4, 64, 0.75)
    violent = DUO(beta=1000.0)
    assert (violent.lr, violent.lamb) == (pytest.approx(3e-5), pytest.approx(1e7))


def test_sd3_starts_from_the_authors_rate():
    assert erase.build("duo", {}, "sd3").base_lr == 3e-5
    assert erase.build("duo", {}, "sd").base_lr == 3e-4


def test_this_project_s_terms_work_on_a_flow():
    backbone = backbones.of(tiny_sd3_pipeline())
    eraser = dataclasses.replace(SHORT, base_keep=0.5, base_random=0.5, beta=20.0)
    before = backbone.cost
    losses = [step.losses for step in eraser.steps(backbone, TASK)]
    assert backbone.cost - before == eraser.cost(1, 0)
    assert losses[0]["kept"] == losses[0]["retained"] == 0, "nothing has changed yet"
    assert losses[1]["kept"] > 0
    assert losses[1]["retained"] > 0


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize(("direction", "prior"), [("clean", "noise"), ("noisy", "released")])
def test_on_a_flow_errors_are_of_the_clean_image(direction, prior, precondition):
    """SD3: x_sigma = (1 - sigma) x_0 + sigma eps, velocity eps - x_0; x_0 as implied is x - sigma v."""
    backbone = backbones.of(tiny_sd3_pipeline())
    flow = Flow(direction=direction, prior=prior, precondition=precondition)
    eraser = dataclasses.replace(SHORT, flow=flow, beta=20.0)
    updates = iter(eraser.steps(backbone, TASK))
    edit = next(updates).edit()
    second = next(updates)
    assert set(edit.layers) == set(backbone.layers("attn"))

    generator = TASK.generator("duo", 1)
    noise = torch.randn((3, 4, 8, 8), generator=generator)
    u = torch.rand(2, 3, generator=generator, dtype=torch.float64).numpy()
    u = 0.75 * u + 0.001 * (1 - u)
    rows = np.floor(1000 * u).astype(int)
    scheduler = backbone.components()["scheduler"]
    scheduler.set_timesteps(1000)
    descending = scheduler.timesteps.numpy()
    levels = descending[rows if direction == "noisy" else 999 - rows] / 1000
    last = 1.0 if prior == "noise" else descending[-1] / 1000
    order = torch.randperm(3, generator=TASK.generator("duo pairs", 1)).tolist()
    transformer = backbone.components()["transformer"]
    null = backbone.encode([""])

    def velocity(x, level):
        with torch.no_grad():
            told = {
                "encoder_hidden_states": null.embeds.expand(3, -1, -1),
                "pooled_projections": null.pooled.expand(3, -1),
            }
            return transformer(hidden_states=x, timestep=1000 * level, return_dict=False, **told)[0]

    def error(side, pixels):
        x0 = backbone.encode_image(pixels[order])
        level = torch.tensor(levels[side], dtype=torch.float32)
        s = level.view(-1, 1, 1, 1)
        x = (1 - s) * x0 + s * noise
        v = velocity(x, level)
        off = (x - s * v) - x0 if precondition else v - (noise - x0)
        return (off**2).flatten(1).mean(1).numpy()

    def implied():
        v = velocity(noise, torch.full((3,), last))
        return noise - last * v if precondition else v

    safe_ref, unsafe_ref, noise_ref = error(0, PIXELS[3:]), error(1, PIXELS[:3]), implied()
    with backbone.weights(fused(backbone, edit.tensors(), 2.0)):
        safe, unsafe, noise_now = error(0, PIXELS[3:]), error(1, PIXELS[:3]), implied()
    expected = minus_log_sigmoid(-20 * ((safe - safe_ref) - (unsafe - unsafe_ref))).mean()
    assert second.losses["preference"] == pytest.approx(expected, rel=1e-3)
    assert second.losses["prior"] == pytest.approx(((noise_now - noise_ref) ** 2).mean().item(), rel=2e-3)
    if precondition and prior == "released":
        assert second.losses["prior"] < 1e-4, "next to no effect, as released"


def test_several_concepts_are_several_edits_with_weights_of_their_own(backbone):
    """Two LoRAs attached at strengths 1 and 0.5 are the sum of their changes in the weights."""
    first, second = (
        list(dataclasses.replace(SHORT, iterations=1).steps(backbone, dataclasses.replace(TASK, seed=s)))[-1].edit()
        for s in (1, 2)
    )
    x, null = backbone.noise(0), backbone.encode([""])
    with torch.no_grad():
        plain = backbone.predict(x, 500, null)
        backbone.attach(first)
        backbone.attach(second, strength=0.5)
        both = backbone.predict(x, 500, null)
        backbone.detach(first)
        backbone.detach(second)
        once = fused(backbone, first.tensors(), 2.0)
        with backbone.weights(once):
            expected = backbone.predict(x, 500, null)
        assert not torch.allclose(both, expected, atol=1e-4)
        change = fused(backbone, second.tensors(), 1.0)
        base = backbone.tensors(list(change))
        with backbone.weights({n: w + change[n] - base[n] for n, w in once.items()}):
            expected = backbone.predict(x, 500, null)
        assert torch.equal(backbone.predict(x, 500, null), plain)
    assert torch.allclose(both, expected, atol=1e-5)
    assert not torch.allclose(both, plain, atol=1e-2)
