import dataclasses
import hashlib

import pytest
import torch

import expunge
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.erasers.kpop import KPOP, Recovery, injected
from expunge.maths.trajectories import Sampling
from expunge.stages import erase
from expunge.store import load_edit, save_edit
from tiny import tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
SHORT = KPOP(iterations=1, batch=2, k=3, lr=1e-3, prompt_lr=0.1, sampling=Sampling(sampling_steps=4))
TASK = Task(targets=[Concept(name="church")], seed=1, salt="secret")
FROZEN = Sampling(arm="online-frozen", sampling_steps=4)
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"


def raw(backbone, points, text, prompt=None):
    """The denoiser without expunge, with ``prompt`` put after the text in the middle block by hand."""
    unet = backbone.components()["unet"]
    with torch.no_grad():
        embeds = backbone.encode([text]).embeds.expand(len(points.x), -1, -1)
    layer, forward = unet.get_submodule(LAYER), unet.get_submodule(LAYER).forward
    if prompt is not None:
        layer.forward = lambda hidden, encoder_hidden_states, **kw: attention(
            layer, hidden, torch.cat([encoder_hidden_states, prompt.expand(len(hidden), -1, -1)], 1)
        )
    try:
        return unet(points.x, points.t, encoder_hidden_states=embeds).sample
    finally:
        layer.forward = forward


def attention(layer, z, context):
    """Table 1 of the paper, from the formula."""
    heads = layer.heads
    q, k, v = layer.to_q(z), layer.to_k(context), layer.to_v(context)
    split = lambda a: a.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    scores = split(q) @ split(k).transpose(-1, -2) / (q.shape[-1] // heads) ** 0.5
    out = (scores.softmax(-1) @ split(v)).transpose(1, 2).flatten(2)
    return layer.to_out[0](out)


def points_of(backbone, eraser):
    with torch.no_grad():
        cond, null = backbone.encode(["church"]), backbone.encode([""])
    return eraser.sampling.source(backbone, cond, null, TASK, "kpop", eraser.batch).draw(0, eraser.batch)


def start_prompt(eraser, task=TASK):
    return torch.randn((eraser.k, 32), generator=task.generator("prompt", "church"))


def test_an_injected_prompt_is_read_after_the_text_by_the_middle_block_alone(backbone):
    points = points_of(backbone, SHORT)
    prompt = torch.randn(3, 32)
    with torch.no_grad():
        cond = injected(
            backbone.encode(["church"]).rows(torch.zeros(2, dtype=torch.int64)), prompt.expand(2, -1, -1), "mid"
        )
        ours = backbone.predict(points.x, points.t, cond)
        theirs = raw(backbone, points, "church", prompt)
        plain = raw(backbone, points, "church")
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize("place", ["mid", "mid-up", "down-mid-up", "text"])
def test_rows_without_a_prompt_are_as_without_it(backbone, place):
    points = points_of(backbone, SHORT)
    with torch.no_grad():
        plain = backbone.encode(["church"]).rows(torch.zeros(2, dtype=torch.int64))
        tokens = torch.randn(2, plain.embeds.shape[1] if place == "text" else 3, 32)
        mixed = injected(plain, tokens, place, torch.tensor([True, False]))
        without, with_one = (backbone.predict(points.x, points.t, c) for c in (plain, mixed))
    assert torch.allclose(without[1], with_one[1], atol=1e-5)
    assert not torch.allclose(without[0], with_one[0], atol=1e-4)
    if place == "text":
        assert torch.allclose(mixed.embeds[0], plain.embeds[0] + tokens[0])


@pytest.mark.parametrize("arm", ["online-student", "bank"])
def test_one_iteration_is_equations_5_to_7(backbone, arm):
    eraser = dataclasses.replace(SHORT, lamb=0.3, neutral="cat", sampling=dataclasses.replace(SHORT.sampling, arm=arm))
    points = points_of(backbone, eraser)
    with torch.no_grad():
        wanted, goal = raw(backbone, points, "church"), raw(backbone, points, "cat")
    p0 = start_prompt(eraser).requires_grad_()
    transfer = ((raw(backbone, points, "church", p0) - wanted) ** 2).mean()  # Eq. 5
    (g,) = torch.autograd.grad(transfer, p0)
    p1 = (p0 - 0.1 * g / (g.abs() + 1e-8)).detach()  # Eq. 6 with Adam
    unet = backbone.components()["unet"]
    trained = {f"unet.{n}": p.requires_grad_() for n, p in unet.named_parameters() if ".attn2." in n}
    erase_term = ((raw(backbone, points, "church") - goal) ** 2).mean()
    keep_term = ((raw(backbone, points, "church", p1) - wanted) ** 2).mean()
    gradients = torch.autograd.grad(erase_term + 0.3 * keep_term, list(trained.values()))  # Eq. 7
    for p in trained.values():
        p.requires_grad_(False)
    (step,) = eraser.steps(backbone, TASK)
    assert step.losses["transfer"] == pytest.approx(transfer.item(), rel=1e-4)
    assert step.losses["erase"] == pytest.approx(erase_term.item(), rel=1e-4)
    assert step.losses["keep"] == pytest.approx(keep_term.item(), rel=1e-3)
    edit = step.edit()
    key = step.key(edit)
    assert torch.allclose(key.prompts["church"], p1, atol=1e-3)
    for (name, old), g in zip(trained.items(), gradients, strict=True):
        clear = g.abs() > 1e-5
        assert torch.allclose((edit.replaced[name] - old)[clear], -1e-3 * g[clear].sign(), atol=1e-5), name


@pytest.mark.parametrize("where", ["target", "own"])
@pytest.mark.parametrize("arm", ["online-frozen", "bank"])
def test_the_retain_term_keeps_the_original_s_answers(backbone, where, arm):
    task = dataclasses.replace(TASK, retain=["dog"])
    sampling = dataclasses.replace(SHORT.sampling, arm=arm)
    eraser = dataclasses.replace(SHORT, iterations=2, lr=1e-2, retain_points=where, sampling=sampling)
    first, second = ((s.losses, s.edit()) for s in eraser.steps(backbone, task))
    assert first[0]["retain"] == pytest.approx(0, abs=1e-9), "nothing has moved yet"
    assert {"erase", "keep", "retain", "transfer"} == set(first[0])
    with torch.no_grad():
        cond, null = backbone.encode(["church" if where == "target" else "dog"]), backbone.encode([""])
    purpose = "kpop" if where == "target" else "kpop retain"
    points = sampling.source(backbone, cond, null, TASK, purpose, 4).draw(1, 2)
    with torch.no_grad():
        before = raw(backbone, points, "dog")
        with backbone.attached([first[1]]):
            after = raw(backbone, points, "dog")
    assert second[0]["retain"] == pytest.approx(float(((after - before) ** 2).mean()), rel=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_random_texts_are_kept_in_the_place_of_retained_words(backbone, share):
    """Alone, or for a share of the points; the original's answers to them, at the targets' points."""
    task = dataclasses.replace(TASK, retain=["dog"] if share < 1 else [])
    eraser = dataclasses.replace(SHORT, iterations=2, batch=4, lr=1e-2, retain_random=share, sampling=FROZEN)
    first, second = ((s.losses, s.edit()) for s in eraser.steps(backbone, task))
    assert first[0]["retain"] == pytest.approx(0, abs=1e-9), "nothing has moved yet"
    with torch.no_grad():
        cond, null, dog = backbone.encode(["church"]), backbone.encode([""]), backbone.encode(["dog"]).embeds
        points = FROZEN.source(backbone, cond, null, TASK, "kpop", 8).draw(1, 4)
        generator = TASK.generator("retain", 1)
        if share < 1:
            torch.randint(0, 1, (4,), generator=generator)
        text = backbone.encode(backbone.random_texts(4, generator)).embeds
        if share < 1:
            random = torch.rand(4, generator=generator) < share
            assert 0 < random.sum() < 4, "another seed would show both kinds"
            text = torch.where(random[:, None, None], text, dog)
        unet = backbone.components()["unet"]
        before = unet(points.x, points.t, encoder_hidden_states=text).sample
        with backbone.attached([first[1]]):
            after = unet(points.x, points.t, encoder_hidden_states=text).sample
    assert second[0]["retain"] == pytest.approx(float(((after - before) ** 2).mean()), rel=1e-3)
    assert eraser.cost(1, 0).trained == dataclasses.replace(eraser, retain_random=0.0).cost(1, 1).trained


def test_each_point_s_prompt_is_its_own_concept_s(backbone):
    """Two targets in two phrases each: a prompt that no point named must stay as it was."""
    task = Task(targets=[Concept(name="church"), Concept(name="dog")], seed=4, salt="s")
    eraser = dataclasses.replace(SHORT, batch=1, templates=("{}", "a {}"), prompt_steps=3)
    (step,) = eraser.steps(backbone, task)
    with torch.no_grad():
        cond, null = backbone.encode(["church", "a church", "dog", "a dog"]), backbone.encode([""])
    row = int(eraser.sampling.source(backbone, cond, null, task, "kpop", 1).draw(0, 1).concept)
    prompts = step.key(step.edit()).prompts
    start = {name: torch.randn((3, 32), generator=task.generator("prompt", name)) for name in prompts}
    moved = {name: not torch.equal(p, start[name]) for name, p in prompts.items()}
    assert moved == {"church": row < 2, "dog": row >= 2}


@pytest.mark.parametrize(
    "change", [{"place": "down-mid-up"}, {"place": "text", "prompt_std": 0.0}, {"group": "noxattn"}]
)
def test_other_places_and_groups_train(backbone, change):
    *_, step = dataclasses.replace(SHORT, iterations=2, **change).steps(backbone, TASK)
    edit = step.edit()
    base = backbone.stored(list(edit.replaced))
    assert set(base) == set(backbone.group(change.get("group", "xattn")))
    assert any(not torch.equal(base[n], edit.replaced[n]) for n in base)
    key = step.key(edit)
    assert key.prompts["church"].abs().sum() > 0
    with backbone.attached([edit, key]):
        backbone.generate([Query(prompt="church", seed=1, guidance=3.0, steps=1)])


def test_both_rates_decay(backbone):
    """From one state, the second of two updates moves half as far."""
    constant = dataclasses.replace(SHORT, iterations=2, keep="frozen-prompt", lamb=1e-9, sampling=FROZEN)
    first = next(iter(constant.steps(backbone, TASK))).state()
    moved = {}
    for decay in ("none", "linear"):
        (step,) = dataclasses.replace(constant, keep="prompt", decay=decay).steps(backbone, TASK, first)
        after = step.state()
        moved[decay] = {n: after[n] - first[n] for n in after if "/value/" in n}
    for name, whole in moved["none"].items():
        assert torch.allclose(moved["linear"][name], whole / 2, atol=2e-5), name
    assert max(float(m.abs().max()) for n, m in moved["none"].items() if n.startswith("prompt/")) > 0.05


def test_plain_gradient_descent_of_the_prompt(backbone):
    eraser = dataclasses.replace(SHORT, prompt_optimizer="sgd", prompt_lr=50.0)
    points = points_of(backbone, eraser)
    with torch.no_grad():
        wanted = raw(backbone, points, "church")
    p0 = start_prompt(eraser).requires_grad_()
    (g,) = torch.autograd.grad(((raw(backbone, points, "church", p0) - wanted) ** 2).mean(), p0)
    (step,) = eraser.steps(backbone, TASK)
    assert torch.allclose(step.key(step.edit()).prompts["church"], p0 - 50.0 * g, atol=1e-4)  # Eq. 6


def test_ablations_change_the_second_term_and_nothing_else(backbone):
    found = {
        k: next(iter(dataclasses.replace(SHORT, keep=k).steps(backbone, TASK)))
        for k in ("prompt", "frozen-prompt", "weights", "none")
    }
    assert len({round(s.losses["erase"], 6) for s in found.values()}) == 1
    assert [set(s.losses) for s in found.values()] == [
        {"transfer", "erase", "keep"},
        {"erase", "keep"},
        {"erase", "keep"},
        {"erase"},
    ]
    assert found["weights"].losses["keep"] == 0, "theta' is theta at the first update"
    frozen = found["frozen-prompt"]
    assert torch.equal(frozen.key(frozen.edit()).prompts["church"], start_prompt(SHORT))


def test_the_esd_target(backbone):
    eraser = dataclasses.replace(SHORT, goal="esd")
    points = points_of(backbone, eraser)
    with torch.no_grad():
        e_c, e_null = raw(backbone, points, "church"), raw(backbone, points, "")
    (step,) = eraser.steps(backbone, TASK)
    assert step.losses["erase"] == pytest.approx(float(((e_c - (2 * e_null - e_c)) ** 2).mean()), rel=1e-4)


def test_cost_is_what_the_paper_s_loop_and_the_bank_take(backbone):
    paper, bank = KPOP(), KPOP(sampling=Sampling(arm="bank"))
    assert paper.cost(1, 0).equivalents == 1000 * (49 + 2 + 3 * 3)
    assert paper.cost(1, 5).equivalents == 1000 * (49 + 2 + 3 * 3 + 1 + 3)
    assert paper.cost(1, 0).equivalents / bank.cost(1, 0).equivalents >= 4.5
    assert paper.cost(1, 5).equivalents / bank.cost(1, 5).equivalents >= 3.5
    small = dataclasses.replace(SHORT, iterations=10, sampling=Sampling(arm="bank", sampling_steps=5, trajectories=4))
    for retain in ((), ("dog",)):
        before = backbone.cost
        list(small.steps(backbone, dataclasses.replace(TASK, retain=retain)))
        assert backbone.cost - before == small.cost(1, len(retain))


def test_a_bank_whose_points_are_used_four_times_asks_for_the_neutral_text_once_a_point(backbone):
    kept = KPOP(sampling=Sampling(arm="bank", reuse=4), iterations=3200)  # whole pools of 16 trajectories of 50 steps
    assert kept.cost(1, 0).equivalents == 3200 * ((2 + 1) / 4 + 3 * 3)
    small = dataclasses.replace(
        SHORT, iterations=20, batch=1, sampling=Sampling(arm="bank", sampling_steps=5, trajectories=1, reuse=4)
    )
    before = backbone.cost
    steps = list(small.steps(backbone, TASK))
    assert backbone.cost - before == small.cost(1, 0)
    with torch.no_grad():
        cond, null = backbone.encode(["church"]), backbone.encode([""])
        points = small.sampling.source(backbone, cond, null, TASK, "kpop", 20).draw(0, 1)
        apart = (raw(backbone, points, "church") - raw(backbone, points, small.neutral)) ** 2
    assert steps[0].losses["erase"] == pytest.approx(float(apart.mean()), rel=1e-4)


def test_what_a_bank_saves_at_the_testbed_s_presets():
    """The ratios that docs/trajectories.md names."""

    def saved(method, retain):
        costs = [
            erase.build(method, {"sampling": {"arm": arm}}, "testbed").cost(5, retain).equivalents
            for arm in ("online-student", "bank")
        ]
        return round(costs[0] / costs[1], 1)

    assert [saved("esd", 0), saved("kpop", 0), saved("kpop", 5)] == [3.4, 2.7, 2.3]


def test_the_public_header_and_seed_do_not_give_the_key_away(backbone, tmp_path):
    edit = erase.run(backbone, "kpop", SHORT, [Concept(name="church")], [], seed=1)
    key = edit.key
    save_edit(edit, tmp_path / "edit.safetensors")
    contents = (tmp_path / "edit.safetensors").read_bytes()
    assert key.salt.encode() not in contents
    assert hashlib.sha256(key.salt.encode()).hexdigest() == edit.provenance.salt_sha256
    assert edit.provenance.salt_sha256.encode() in contents
    assert load_edit(tmp_path / "edit.safetensors").key is None
    again = erase.run(backbone, "kpop", SHORT, [Concept(name="church")], [], seed=1)
    assert not torch.allclose(again.key.prompts["church"], key.prompts["church"], atol=0.1)
    assert again.id != edit.id
    same = erase.run(backbone, "kpop", SHORT, [Concept(name="church")], [], seed=1, salt=key.salt)
    assert (same.id, same.key.id) == (edit.id, key.id)


def two(backbone):
    short = dataclasses.replace(SHORT, iterations=3)
    edit = erase.run(backbone, "kpop", short, [Concept(name="church"), Concept(name="red dog")], [], seed=1)
    return edit, edit.key


def test_a_key_serves_the_texts_that_name_its_concepts_and_no_others(backbone):
    edit, key = two(backbone)
    texts = ["a church", "a red dog", "a dog", "churchy"]
    asked = [Query(prompt=t, seed=5, guidance=3.0, steps=2) for t in texts]
    with backbone.attached([edit]):
        erased = backbone.generate(asked).latents
        with backbone.attached([key]):
            both = backbone.generate(asked).latents
            backbone.detach(key)
            backbone.attach(key.only_for("church"))
            forced = backbone.generate(asked).latents
            backbone.detach(backbone.edits[-1])
            backbone.attach(key)
    changed = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(erased, both, strict=True)]
    assert changed == [True, True, False, False]
    assert torch.allclose(forced[0], both[0], atol=1e-4)
    assert not torch.allclose(forced[1], both[1], atol=1e-4)
    assert not torch.allclose(forced[3], erased[3], atol=1e-4)


def test_a_key_works_in_the_user_s_own_pipeline(backbone):
    edit, key = two(backbone)
    key = key.only_for("church")
    with backbone.attached([edit, key]):
        ours = backbone.generate([Query(prompt="a church", seed=5, guidance=3.0, steps=3)]).latents
    pipe = tiny_pipeline()
    edit.attach(pipe)
    key.attach(pipe)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    theirs = pipe("a church", latents=noise, guidance_scale=3.0, num_inference_steps=3, output_type="latent").images
    assert torch.allclose(ours, theirs, atol=1e-4)
    with pytest.raises(ZeroDivisionError):
        pipe("a church", latents=noise, num_inference_steps=2, callback_on_step_end=lambda *_: 1 / 0)
    fails = pipe.unet.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe("a church", latents=noise, num_inference_steps=2)
    fails.remove()
    key.detach(pipe)
    edit.detach(pipe)
    assert not any(m._forward_pre_hooks for m in pipe.unet.modules()), "even after a failure"


def test_in_a_user_s_pipeline_a_key_knows_what_the_prompt_names_but_not_what_an_embedding_does(backbone):
    edit, key = two(backbone)
    pipe = tiny_pipeline()
    edit.attach(pipe)
    key.attach(pipe)
    call = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    noise = torch.cat([backbone.noise(5)] * 3)
    texts = ["a church", "a dog", "zzz"]
    theirs = pipe(texts, latents=noise, **call).images
    with backbone.attached([edit, key]):
        ours = backbone.generate([Query(prompt=p, seed=5, guidance=4.0, steps=2) for p in texts]).latents
    assert torch.allclose(theirs, ours, atol=1e-3)
    vectors = torch.randn(1, 16, 32)
    with pytest.raises(ExpungeError, match="expected a key for one concept"):
        pipe(prompt_embeds=vectors, negative_prompt_embeds=vectors, **call)


def test_the_longest_concept_that_a_text_names_counts_saved_or_not(backbone, tmp_path):
    edit = erase.run(backbone, "kpop", SHORT, [Concept(name="red dog"), Concept(name="dog")], [], seed=1)
    save_edit(edit.key, tmp_path / "key.safetensors")
    loaded = load_edit(tmp_path / "key.safetensors")
    asked = [Query(prompt="a red dog", seed=5, guidance=3.0, steps=1)]
    found = []
    for key in (edit.key, loaded, edit.key.only_for("red dog")):
        with backbone.attached([edit, key]):
            found.append(backbone.generate(asked).latents)
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], found[2], atol=1e-5)
    assert list(loaded.prompts) == ["red dog", "dog"]


@pytest.mark.parametrize("place", ["mid", "text"])
def test_a_key_may_leave_the_empty_half_of_a_guided_pair_alone(backbone, place, tmp_path):
    length = backbone.encode([""]).embeds.shape[1] if place == "text" else 3
    cond, null = backbone.encode(["a church", "a dog"]), backbone.encode([""]).expand(2)
    x = torch.cat([backbone.noise(i) for i in range(2)])
    read = {}
    for halves in ("both", "text"):
        key = Recovery(prompts={"church": torch.randn(length, 32)}, place=place, halves=halves, salt="s")
        save_edit(key, tmp_path / f"{place}-{halves}.safetensors")
        key = load_edit(tmp_path / f"{place}-{halves}.safetensors")
        with torch.no_grad():
            told = key.conditioning(backbone, cond, null, {})
            read[halves] = [
                backbone.predict(x, 1, c) - backbone.predict(x, 1, o) for c, o in zip(told, (cond, null), strict=True)
            ]
        (step,) = dataclasses.replace(SHORT, halves=halves).steps(backbone, TASK)
        assert step.key(step.edit()).halves == halves
    changed = {h: [[bool(row.abs().max() > 1e-4) for row in half] for half in halves] for h, halves in read.items()}
    assert changed["both"] == [[True, False], [True, False]]
    assert changed["text"] == [[True, False], [False, False]]


def test_wrong_keys_for_controls(backbone):
    _, key = two(backbone)
    drawn = key.random(7)
    for name, prompt in key.prompts.items():
        assert drawn.prompts[name].norm() == pytest.approx(prompt.norm().item(), rel=1e-4)
        assert not torch.allclose(drawn.prompts[name], prompt, atol=0.1)
    turned = key.rotated()
    assert torch.equal(turned.prompts["church"], key.prompts["red dog"])
    assert turned.requires == key.requires == drawn.requires
    alone = dataclasses.replace(key, prompts={"church": key.prompts["church"]})
    with pytest.raises(ExpungeError, match="expected several"):
        alone.rotated()
    with pytest.raises(ExpungeError, match="did you mean 'church'"):
        key.only_for("churhc")


def test_a_key_of_another_edit_is_refused_unless_told_otherwise(backbone):
    edit, key = two(backbone)
    other, _ = two(backbone)
    with backbone.attached([other]), pytest.raises(ExpungeError, match=f"on top of edit {edit.id}"):
        backbone.attach(key)
    with backbone.attached([key], any_base=True):
        assert backbone.edits == [key], "the control: a key on the original model"


def test_damaged_and_forged_keys_are_refused(backbone, tmp_path):
    _, key = two(backbone)
    file = tmp_path / "key.safetensors"
    save_edit(key, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(ExpungeError, match="damaged"):
        load_edit(file)
    file.write_bytes(whole[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(ExpungeError, match="do not match its id"):
        load_edit(file)
    file.write_bytes(whole)
    assert isinstance(load_edit(file), Recovery)


def test_the_paper_s_prompt_rate_is_reported_as_too_small(backbone):
    settings = {"iterations": 2, "sampling": {"sampling_steps": 4}}
    with pytest.warns(ExpungeWarning, match="moved by .* % of its norm"):
        expunge.erase(backbone, "church", method="kpop", settings=settings)


def test_bad_settings_are_refused(backbone):
    for words, change in (
        ("lamb is 0.0.*keep none", {"lamb": 0.0}),
        ("lamb is -1", {"lamb": -1.0}),
        ("k is 0", {"k": 0}),
        ("prompt_lr", {"prompt_lr": 0.0}),
        ("template", {"templates": ("x",)}),
        ("retain_random is 2.0", {"retain_random": 2.0}),
        ("retain_random with retain_points own", {"retain_random": 0.5, "retain_points": "own"}),
    ):
        with pytest.raises(ExpungeError, match=words):
            dataclasses.replace(SHORT, **change)
    for words, change in (
        ("setting of kpop 'lambda'", {"lambda": 1}),
        ("kpop's keep 'promt': did you mean 'prompt'", {"keep": "promt"}),
        ("kpop's sampling 'arms': did you mean 'arm'", {"sampling": {"arms": "bank"}}),
        ("expected settings of its own", {"sampling": "bank"}),
        ("kpop's k is 'ten': expected int", {"k": "ten"}),
    ):
        with pytest.raises(ExpungeError, match=words):
            erase.build("kpop", change, None)
    with pytest.raises(ExpungeError, match=r"retain_random is 0\.5 with no word to retain"):
        next(iter(dataclasses.replace(SHORT, retain_random=0.5).steps(backbone, TASK)))
    with pytest.raises(ExpungeError, match="retain_random is 1 with words to retain"):
        kept = dataclasses.replace(TASK, retain=["dog"])
        next(iter(dataclasses.replace(SHORT, retain_random=1.0).steps(backbone, kept)))
    assert dataclasses.replace(SHORT, keep="none", lamb=0.0).keep == "none"


@pytest.mark.parametrize(
    ("change", "retain"),
    [({"keep": "none", "retain_weight": 2.5}, ["dog"]), ({"keep": "weights", "lamb": 30.0}, [])],
)
def test_the_second_update_weighs_its_terms(backbone, change, retain):
    """At the first update these terms and their gradients are zero; the second one's Adam step shows their weights."""
    task = dataclasses.replace(TASK, retain=retain)
    eraser = dataclasses.replace(SHORT, iterations=2, sampling=Sampling(arm="bank", sampling_steps=4), **change)
    first, second = (step.edit() for step in eraser.steps(backbone, task))
    unet = backbone.components()["unet"]
    trained = {f"unet.{n}": p for n, p in unet.named_parameters() if ".attn2." in n}
    origin = {n: p.detach().clone() for n, p in trained.items()}
    with torch.no_grad():
        cond, null = backbone.encode(["church"]), backbone.encode([""])
    source = eraser.sampling.source(backbone, cond, null, task, "kpop", 4)

    def gradients(update):
        points = source.draw(update, 2)
        with torch.no_grad():
            goal, kept = raw(backbone, points, "a photo"), raw(backbone, points, "dog")
        with backbone.attached([first] if update else []):
            for p in trained.values():
                p.requires_grad_(True)
            loss = ((raw(backbone, points, "church") - goal) ** 2).mean()
            if retain:
                loss = loss + 2.5 * ((raw(backbone, points, "dog") - kept) ** 2).mean()
            else:
                loss = loss + 30.0 * sum(((p - origin[n]) ** 2).sum() for n, p in trained.items())
            found = torch.autograd.grad(loss, list(trained.values()))
            for p in trained.values():
                p.requires_grad_(False)
        return found

    for name, g1, g2 in zip(trained, gradients(0), gradients(1), strict=True):
        m, v = 0.9 * 0.1 * g1 + 0.1 * g2, 0.999 * 0.001 * g1**2 + 0.001 * g2**2
        step = -1e-3 * (m / (1 - 0.9**2)) / ((v / (1 - 0.999**2)).sqrt() + 1e-8)
        clear = (g1.abs() > 1e-5) & (g2.abs() > 1e-5)
        moved = second.replaced[name] - first.replaced[name]
        assert torch.allclose(moved[clear], step[clear], atol=2e-5), name
