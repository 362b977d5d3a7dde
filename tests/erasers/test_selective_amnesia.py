import dataclasses
import json

import pytest
import torch

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.eraser import Task, files_of, settings_of
from expunge.core.errors import ExpungeError
from expunge.erasers.selective_amnesia import SelectiveAmnesia
from expunge.jobs import EraseJob
from expunge.jobs.workspace import Workspace
from expunge.maths.fisher import REPLAY, SCENES, Estimate, strata
from expunge.stages import erase
from expunge.stages import fisher as stage
from expunge.store import Checkpoints, load_edit, read_fisher
from expunge.testing import _noisy_images
from tiny import still, tiny_pipeline

SMALL = {"surrogate_images": 3, "replay_images": 4, "fisher_images": 2, "fisher_timesteps": 5, "fisher_rows": 3}
SHORT = SelectiveAmnesia(**SMALL, surrogate="cat", group="xattn", iterations=3, batch=2, lr=1e-3)
TARGETS = [Concept(name="church"), Concept(name="dog")]


@pytest.fixture
def task(backbone):
    bare = Task(targets=TARGETS, retain=["radio"], seed=3)
    return dataclasses.replace(bare, images=_noisy_images(SHORT.wants(TARGETS, ["radio"]), backbone))


def unet(backbone, only=".attn2."):
    return {f"unet.{n}": p for n, p in backbone.components()["unet"].named_parameters() if only in n}


def raw(backbone, x, t, texts):
    """The denoiser, called without expunge, on a text for each row."""
    with torch.no_grad():
        embeds = torch.cat([backbone.encode([text]).embeds for text in texts])
    return backbone.components()["unet"](x, t, encoder_hidden_states=embeds).sample


def gradients(loss, parameters):
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def noised(backbone, x0, noise, t):
    """x_t by the closed form of the forward process, from the scheduler's own table."""
    alphas = backbone.components()["scheduler"].alphas_cumprod[t].view(-1, 1, 1, 1)
    return alphas.sqrt() * x0 + (1 - alphas).sqrt() * noise


def latents(backbone, shots):
    with torch.no_grad():
        return torch.cat([backbone.encode_image(shot.pixels()[None]) for shot in shots])


@pytest.fixture
def learning(backbone):
    """Autograd on the module's own parameters, for computations beside expunge's."""
    for p in unet(backbone).values():
        p.requires_grad_(True)
    yield unet(backbone)
    for p in unet(backbone).values():
        p.requires_grad_(False)


def by_hand(backbone, task, parameters, drawn):
    """Squares of each image's gradient of the weighted sum over timesteps, one timestep at a time, averaged over images."""
    mean = {n: torch.zeros_like(p) for n, p in parameters.items()}
    shots = task.images[REPLAY][: SHORT.fisher_images]
    for number, shot in enumerate(shots):
        generator = task.generator("fisher", number)
        t, weight = drawn(generator)
        x0 = latents(backbone, [shot])
        whole = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for step, times in zip(t.tolist(), weight.tolist(), strict=True):
            noise = torch.randn(x0.shape, generator=generator)
            answer = raw(backbone, noised(backbone, x0, noise, [step]), step, [shot.prompt])
            for n, g in gradients(times * (answer - noise).square().mean(), parameters).items():
                whole[n] += g
        for n, g in whole.items():
            mean[n] += g.square() / len(shots)
    return mean


def measured(backbone, task, timesteps=5, rows=3):
    estimate = Estimate(backbone, backbone.group("xattn"), task, timesteps, rows)
    for number in range(SHORT.fisher_images):
        estimate.add(number, task.images[REPLAY][number])
    return estimate.mean(SHORT.fisher_images)


def close(a, b, rel=1e-3):
    """As whole tensors: where a gradient vanishes its last digits are noise."""
    assert a.keys() == b.keys()
    for n in a:
        assert (a[n] - b[n]).norm() <= rel * b[n].norm() + 1e-12, n


def test_the_diagonal_is_each_image_s_gradient_squared_and_not_the_square_of_the_mean(backbone, task, learning):
    wanted = by_hand(backbone, task, learning, lambda g: strata(1000, 5, g))
    found = measured(backbone, task)
    assert set(found) == set(learning)
    close(found, wanted)
    assert max(float(t.max()) for t in found.values()) > 0


def test_with_all_timesteps_the_sum_is_the_paper_s(backbone, task, learning, monkeypatch):
    """Every timestep once, each with weight one: of a model whose forward process has 6."""
    monkeypatch.setattr(type(backbone), "training_timesteps", property(lambda self: 6))

    def all_six(generator):
        torch.rand(6, generator=generator, dtype=torch.float64)  # what a draw would take
        return torch.arange(6), torch.ones(6)

    close(measured(backbone, task, timesteps=6, rows=4), by_hand(backbone, task, learning, all_six))


def test_the_diagonal_in_float16_is_that_of_float32(tmp_path, monkeypatch):
    """Of the same weights. Unscaled, gradients of a mean over a thousand numbers vanish in part."""
    pipe = still(tiny_pipeline())
    pipe.unet.register_to_config(sample_size=16)
    pipe.to(torch.float16).save_pretrained(tmp_path / "half")
    found = {}
    for dtype in ("float32", "float16"):
        model = backbones.load(str(tmp_path / "half"), dtype=dtype)
        monkeypatch.setattr(type(model), "training_timesteps", property(lambda self: 2))  # so that each counts once
        shots = _noisy_images({REPLAY: ["a plant"]}, model)[REPLAY]
        estimate = Estimate(model, model.group("xattn"), Task(targets=TARGETS, seed=3), 2, 2)
        estimate.add(0, shots[0])
        found[dtype] = estimate.mean(1)
    for name, wanted in found["float32"].items():
        near = found["float16"][name]
        assert near.dtype == torch.float32
        assert (near != 0).all() == (wanted != 0).all(), name
        assert (near - wanted).norm() < 0.02 * wanted.norm(), name


def test_the_rows_at_a_time_do_not_matter(backbone, task):
    one, all_at_once = measured(backbone, task, rows=1), measured(backbone, task, rows=9)
    close(one, all_at_once)


@pytest.mark.parametrize(("timesteps", "count"), [(1000, 10), (10, 3), (7, 7), (1000, 1)])
def test_the_strata_cover_all_timesteps_once_and_stand_for_them_without_bias(timesteps, count):
    generator = torch.Generator().manual_seed(0)
    drawn = [strata(timesteps, count, generator) for _ in range(3000)]
    assert all(float(d.weight.sum()) == timesteps for d in drawn)
    assert all(bool((d.t.diff() > 0).all()) and d.t.min() >= 0 and d.t.max() < timesteps for d in drawn)
    bounds = [0, *drawn[0].weight.cumsum(0).int().tolist()]
    for d in drawn[:50]:
        assert all(low <= t < high for t, low, high in zip(d.t.tolist(), bounds, bounds[1:], strict=False))
    values = torch.arange(timesteps).double().square()
    sums = torch.stack([(d.weight * values[d.t]).sum() for d in drawn])
    error = sums.std() / len(sums) ** 0.5
    assert abs(float(sums.mean() - values.sum())) <= 4 * float(error) + 1e-6
    if count == timesteps:
        assert all(d.t.tolist() == list(range(timesteps)) for d in drawn)


def drawn(backbone, task, update, gamma=True):
    """What an update is about, drawn once more in the order that the method draws in."""
    generator = task.generator("selective-amnesia", update)

    def one(count):
        return int(torch.randint(0, count, (), generator=generator))

    shots, prompts = [], []
    for _ in range(2):
        name = ("church", "dog")[one(2)]
        shots.append(task.images[name][one(3)])
        prompts.append(name)
    for _ in range(2 if gamma else 0):
        shots.append(task.images[REPLAY][one(4)])
        prompts.append(shots[-1].prompt)
    x0 = latents(backbone, shots)
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(0, 1000, (len(shots),), generator=generator)
    return noised(backbone, x0, noise, t), t, prompts, noise


def test_the_whole_loss_and_its_gradient_by_hand(backbone, task, learning):
    """The second update, where the Fisher term is no longer zero: plain gradient descent shows the gradient itself."""
    eraser = dataclasses.replace(SHORT, optimizer="sgd", lr=0.05, gamma=0.7, lamb=1.0)
    fisher = by_hand(backbone, task, learning, lambda g: strata(1000, 5, g))
    origin = {n: p.detach().clone() for n, p in learning.items()}
    before = values(eraser, backbone, task, 2)[1]  # at the original the term is flat: the same with any lambda
    put(learning, before)
    x, t, prompts, noise = drawn(backbone, task, 1)
    error = (raw(backbone, x, t, prompts) - noise).square()
    denoising = error[:2].mean() + 0.7 * error[2:].mean()
    ewc = sum((fisher[n] * (p - origin[n]).square()).sum() for n, p in learning.items())
    told = {"surrogate": float(error[:2].mean().detach()), "replay": float(error[2:].mean().detach())}
    pulls, holds = gradients(denoising, learning), gradients(ewc, learning)
    put(learning, origin)
    lamb = length(pulls) / length(holds)  # so that both parts tell
    losses, after = values(dataclasses.replace(eraser, lamb=lamb), backbone, task, 3)
    assert losses == {n: pytest.approx(v, rel=5e-3) for n, v in {**told, "ewc": float(ewc.detach())}.items()}
    moved = {n: pulls[n] + lamb * holds[n] for n in learning}
    found = {n: (before[n] - after[n]) / 0.05 for n in learning}
    assert length({n: found[n] - moved[n] for n in moved}) < 0.02 * length(moved)
    assert length({n: found[n] - pulls[n] for n in moved}) > 0.2 * length(moved)


def put(parameters, values):
    with torch.no_grad():
        for n, p in parameters.items():
            p.copy_(values[n])


def length(tensors):
    return float(torch.cat([t.flatten() for t in tensors.values()]).norm())


def values(eraser, backbone, task, step):
    """Losses of a step, and what is learned after it; steps before the third are the Fisher pass's."""
    for s in eraser.steps(backbone, task):
        if s.index == step:
            return s.losses, {n.removeprefix("student/value/"): t for n, t in s.state().items() if "/value/" in n}
    raise AssertionError(step)


def test_without_replay_and_fisher_it_is_plain_fine_tuning(backbone, task, learning):
    """AdamW on the surrogates' denoising loss alone, written here with torch's own optimizer."""
    eraser = dataclasses.replace(SHORT, gamma=0.0, lamb=0.0)
    assert eraser.keeps(TARGETS, ["radio"]) == {}
    alone = dataclasses.replace(task, retain=[], images={t.name: task.images[t.name] for t in TARGETS})
    with pytest.raises(ExpungeError, match="has a prompt with 'radio', which is to be kept: expected some"):
        next(iter(eraser.steps(backbone, dataclasses.replace(alone, retain=["radio"]))))
    steps = [(s.losses, s.edit()) for s in eraser.steps(backbone, alone)]
    assert [sorted(losses) for losses, _ in steps] == [["surrogate"]] * 3
    origin = {n: p.detach().clone() for n, p in learning.items()}
    optimizer = torch.optim.AdamW(list(learning.values()), lr=1e-3)
    for update in range(3):
        x, t, prompts, noise = drawn(backbone, task, update, gamma=False)
        loss = (raw(backbone, x, t, prompts) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert steps[update][0]["surrogate"] == pytest.approx(float(loss.detach()), rel=1e-4)
    found, wanted = steps[-1][1].replaced, {n: p.detach().clone() for n, p in learning.items()}
    with torch.no_grad():
        for n, p in learning.items():
            p.copy_(origin[n])
            p.grad = None
    for n in wanted:  # Adam divides by the gradient's size: where it is next to nothing, so is what can be told
        assert float(((found[n] - wanted[n]).abs() > 2e-4).float().mean()) < 0.02, n


def test_a_large_lambda_holds_what_matters(backbone, task):
    free, held = (
        list(dataclasses.replace(SHORT, lamb=lamb).steps(backbone, task))[-1].losses["ewc"] for lamb in (1e-9, 1e10)
    )
    assert 0 < held < 0.5 * free


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_it_goes_on_bit_for_bit_in_the_pass_and_in_training(backbone, task, after):
    whole = [(s.state(), s.edit().id) for s in SHORT.steps(backbone, task)]
    rest = [s.edit().id for s in SHORT.steps(backbone, task, whole[after][0])]
    assert rest == [identity for _, identity in whole[after + 1 :]]
    assert len(set(rest)) > 1 or after == 3


def test_a_state_without_the_sums_is_refused(backbone, task):
    with pytest.raises(ExpungeError, match="the state to resume from has no 'fisher/"):
        list(SHORT.steps(backbone, task, {"next": torch.tensor(1)}))


@pytest.mark.parametrize(
    "change", [{}, {"gamma": 0.0}, {"lamb": 0.0}, {"gamma": 0.0, "lamb": 0.0}, {"fisher_images": 9}]
)
def test_what_is_foreseen_is_what_it_takes(backbone, task, change):
    eraser, before = dataclasses.replace(SHORT, **change), backbone.cost
    list(eraser.steps(backbone, task))
    assert backbone.cost - before == eraser.cost(2, 1)


def test_the_paper_s_cost():
    assert SelectiveAmnesia().cost(1, 0).trained == 5000 * 1000 + 12500 * 16 * 2


def test_what_it_wants_to_see():
    wanted = SelectiveAmnesia(surrogate="a middle aged man").wants([Concept(name="brad pitt")], ["angelina jolie"])
    assert wanted["brad pitt"] == ["a middle aged man"] * 1000
    assert len(wanted[REPLAY]) == 5000
    assert wanted[REPLAY][:3] == ["a photo of angelina jolie", *SCENES[:2]]
    assert len(set(wanted[REPLAY])) == 1 + len(SCENES)
    of_own = SHORT.needs([Concept(name="dog", anchor="a wolf")])
    assert of_own == {"dog": ["a wolf"] * 3}


def test_scenes_that_name_a_target_are_left_out():
    eraser = dataclasses.replace(SHORT, replay=("a Lion rests", "lions", "a sea lion", "a tree"))
    assert eraser.keeps([Concept(name="lion")], []) == {REPLAY: ["lions", "a tree"] * 2}
    with pytest.raises(ExpungeError, match="no prompt to replay: expected some that do not name a target"):
        dataclasses.replace(eraser, replay=("a lion",)).keeps([Concept(name="lion")], [])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two images of four scenes in a folder with prompts; and the file that `expunge fisher` makes of them."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("replay") / "images"
    folder.mkdir()
    lines = []
    for number, prompt in enumerate(("a tree", "a hill", "a boat", "radio")):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(number)).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "prompt": prompt, "seed": number, "label": None}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def asked(group="full", seed=3):
    pass_of = ("--fisher-images", 2, "--fisher-timesteps", 5, "--fisher-rows", 3)
    return (*pass_of, "--seed", seed, "--group", group, "--quiet")


def run(*words, code=0):
    assert main([str(word) for word in words]) == code


@pytest.fixture
def file(folder, images, tmp_path):
    run("fisher", "--model", folder, "--images", images, *asked(), "--out", tmp_path / "fisher.safetensors")
    return tmp_path / "fisher.safetensors"


def test_a_file_gives_the_edit_that_the_pass_gives_bit_for_bit(backbone, images, file):
    """The file is of all parameters, of which the eraser trains some."""
    how = {"images": dict.fromkeys((REPLAY, "church", "dog"), images), "seed": 3}
    own = erase.run(backbone, "selective-amnesia", SHORT, TARGETS, [], **how)
    eraser = dataclasses.replace(SHORT, fisher=str(file))
    read = erase.run(backbone, "selective-amnesia", eraser, TARGETS, [], **how)
    assert all(torch.equal(t, own.replaced[n]) for n, t in read.replaced.items())
    assert read.provenance.files == files_of(eraser) != {} == own.provenance.files
    assert read.provenance.cost.trained == own.provenance.cost.trained - 2 * 5
    told = read_fisher(file).about
    assert (told["images"], told["timesteps"], told["prompts"]) == (2, 5, ["a tree", "a hill"])


def test_the_command_makes_its_images_as_the_eraser_does(folder, backbone, images, tmp_path):
    """Of the retained word and the scenes, with the erasure's seed."""
    out = tmp_path / "fisher.safetensors"
    words = ["--retain", "radio", "--replay", "a tree", "--replay", "a hill", "--count", 2]
    run("fisher", "--model", folder, *words, *asked(), "--out", out)
    eraser = dataclasses.replace(SHORT, replay=("a tree", "a hill"), replay_images=2)
    states, surrogates = [], dict.fromkeys(("church", "dog"), images)
    how = {"images": surrogates, "on_step": lambda s: states.append(s.state())}
    erase.run(backbone, "selective-amnesia", eraser, TARGETS, ["radio"], 3, **how)
    found = read_fisher(out).tensors
    assert read_fisher(out).about["prompts"] == ["a photo of radio", "a tree"]
    for name in backbone.group("xattn"):
        assert torch.allclose(found[name], states[-1][f"fisher/{name}"] / 2, rtol=1e-4, atol=1e-9), name


def test_the_command_goes_on_bit_for_bit(backbone, images, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    wish = stage.Wish(group="xattn", images=3, timesteps=4, seed=3)
    whole = stage.make(backbone, wish, tmp_path / "whole.safetensors", images=images)
    seen = []

    def killed(_):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "f.safetensors"
    with pytest.raises(KeyboardInterrupt):
        stage.make(backbone, wish, out, images=images, on_image=killed)
    assert not out.exists()
    with pytest.raises(ExpungeError, match="expected the same, or no --resume"):
        stage.make(backbone, dataclasses.replace(wish, timesteps=3), out, images=images, go_on=True)
    before = backbone.cost
    made = stage.make(backbone, wish, out, images=images, go_on=True)
    assert (backbone.cost - before).trained < wish.cost().trained
    assert made.id == whole.id
    assert made.cost == whole.cost
    assert not list(tmp_path.glob(".*resume"))


def erased(model, images, out, file, *words, group="xattn", code=2):
    base = [
        "erase",
        "selective-amnesia",
        "--target",
        "church",
        "--surrogate",
        "cat",
        "--model",
        model,
        "--fisher",
        file,
    ]
    shown = ["--images", f"church={images}", "--images", f"replay={images}"]
    short = ["--iterations", 1, "--batch", 1, "--no-check", "--quiet", "--group", group]
    run(*base, *shown, *short, *words, "--out", out, code=code)


def test_files_of_another_model_or_of_too_little_are_one_line(folder, other_folder, file, images, tmp_path, capsys):
    strict, edit = tmp_path / "strict.safetensors", tmp_path / "o" / "edit.safetensors"
    run("fisher", "--model", folder, "--images", images, *asked("xattn-strict"), "--out", strict)
    for model, given, said in (
        (other_folder, file, "is the Fisher information of another model than"),
        (folder, tmp_path / "none", "cannot be read: expected a file"),
        (folder, strict, "lacks 'unet."),
    ):
        erased(model, images, tmp_path / "o", given)
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not edit.exists()
    erased(folder, images, tmp_path / "o", strict, group="xattn-strict", code=0)
    assert set(load_edit(edit).provenance.files) == {"fisher"}
    erased(folder, images, tmp_path / "o", edit, "--overwrite")
    assert "is no Fisher file" in capsys.readouterr().err


def test_an_edited_model_is_another_one(backbone, file, images):
    eraser = dataclasses.replace(SHORT, fisher=str(file))
    edit = erase.run(backbone, "uce", erase.build("uce", {"anchor": "cat"}, None), TARGETS, [])
    with backbone.attached([edit]), pytest.raises(ExpungeError, match="with the edits that it carries"):
        eraser.check(backbone)
    eraser.check(backbone)


def test_a_damaged_file_is_refused(backbone, file):
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)
    with pytest.raises(ExpungeError, match="is damaged: its content does not match its id"):
        dataclasses.replace(SHORT, fisher=str(file)).check(backbone)


def test_a_file_that_changed_is_not_resumed_with(folder, file, images, backbone):
    from expunge.stages import resume

    eraser = dataclasses.replace(SHORT, fisher=str(file))
    told = [resume.of_erasure(backbone, "selective-amnesia", eraser, TARGETS, [], 3, {}, {})]
    run("fisher", "--model", folder, "--images", images, *asked(seed=4), "--overwrite", "--out", file)
    told.append(resume.of_erasure(backbone, "selective-amnesia", eraser, TARGETS, [], 3, {}, {}))
    assert told[0] != told[1]


def test_a_job_is_told_by_the_file_s_content_and_refuses_another(folder, file, tmp_path, backbone):
    def job(files):
        model = {"model": str(folder), "model_sha256": backbone.identity(), "dtype": "float32"}
        task = {"targets": ["church"], "retain": [], "seed": 0, "salt": "", "version": 1}
        settings = settings_of(dataclasses.replace(SHORT, fisher=str(file)))
        return EraseJob(eraser="selective-amnesia", settings=settings, files=files, **task, **model)

    planned = job(files_of(dataclasses.replace(SHORT, fisher=str(file))))
    assert planned.key != job({"fisher": "0" * 64}).key
    with pytest.raises(ExpungeError, match="changed since it was planned: expected the same"):
        job({"fisher": "0" * 64}).run(Workspace(store=tmp_path / "store"), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lamb": -1.0}, "selective-amnesia's lamb is -1.0: expected zero or more"),
        ({"gamma": float("nan")}, "gamma is nan: expected a finite number"),
        ({"gamma": -0.5}, "selective-amnesia's gamma is -0.5"),
        ({"lr": 0.0}, "selective-amnesia's lr is 0.0: expected a positive number"),
        ({"fisher_timesteps": 0}, "selective-amnesia's fisher_timesteps is 0"),
        ({"fisher": "f", "lamb": 0.0}, "fisher 'f' with lamb 0, which does not use it"),
        ({"retain_prompt": "photo"}, "template 'photo' has not one {}"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        erase.build("selective-amnesia", change, None)


@pytest.mark.parametrize(
    ("surrogate", "words"),
    [
        ("", "no surrogate for 'church'"),
        (" Church ", "surrogate ' Church ' names the target 'church'"),
        ("a photo of a church", "surrogate 'a photo of a church' names the target"),
    ],
)
def test_a_surrogate_that_is_the_target_is_refused(surrogate, words):
    with pytest.raises(ExpungeError, match=words):
        dataclasses.replace(SHORT, surrogate=surrogate).needs(TARGETS)


def test_other_bad_input(backbone, task):
    with pytest.raises(ExpungeError, match="fisher_timesteps is 1001, of a model with 1000: expected no more"):
        dataclasses.replace(SHORT, fisher_timesteps=1001).check(backbone)
    with pytest.raises(ExpungeError, match="expected a group of the denoiser"):
        dataclasses.replace(SHORT, group="text-mlp").check(backbone)
    with pytest.raises(ExpungeError, match="a target 'replay', which is what its images of other things are called"):
        SHORT.wants([Concept(name="replay")], [])
    with pytest.raises(ExpungeError, match="1 images to replay of 2 words to keep"):
        dataclasses.replace(SHORT, replay_images=1).keeps(TARGETS, ["a", "b"])
    for prompt, words in ((" ", "has no prompt"), ("a big Dog", "'a big Dog', which names the target 'dog'")):
        odd = [dataclasses.replace(shot, prompt=prompt) for shot in task.images[REPLAY]]
        with pytest.raises(ExpungeError, match=words):
            list(SHORT.steps(backbone, dataclasses.replace(task, images={**task.images, REPLAY: odd})))


def test_a_word_to_keep_must_be_shown_and_a_target_may_not_be(backbone, task):
    """A retained word excuses no target beside it, only one that is part of it."""

    def first(prompt, retain):
        shown = [dataclasses.replace(shot, prompt=prompt) for shot in task.images[REPLAY]]
        asked = dataclasses.replace(task, retain=retain, images={**task.images, REPLAY: shown})
        return next(iter(SHORT.steps(backbone, asked)))

    with pytest.raises(ExpungeError, match="'a radio beside a church', which names the target 'church'"):
        first("a radio beside a church", ["radio"])
    with pytest.raises(ExpungeError, match=r"no image to replay, .* has a prompt with 'radio', which is to be kept"):
        first("a hill", ["radio"])
    with pytest.raises(ExpungeError, match="'a church bell in a church', which names the target"):
        first("a church bell in a church", ["church bell"])
    assert first("a church bell", ["church bell"]).losses["fisher"] > 0


def test_a_fisher_file_of_a_target_is_refused_and_one_may_show_what_is_kept(backbone, task, file):
    """The file is of a tree and a hill."""
    eraser = dataclasses.replace(SHORT, fisher=str(file), gamma=0.0)
    alone = dataclasses.replace(task, retain=["hill"])
    assert set(next(iter(eraser.steps(backbone, alone))).losses) == {"surrogate", "ewc"}
    with pytest.raises(ExpungeError, match="has a prompt with 'radio', which is to be kept"):
        next(iter(eraser.steps(backbone, dataclasses.replace(alone, retain=["radio"]))))
    felled = [Concept(name="tree")]
    images = {**task.images, "tree": task.images["church"]}
    with pytest.raises(ExpungeError, match="'a tree', which names the target 'tree': expected one of other things"):
        next(iter(eraser.steps(backbone, dataclasses.replace(alone, targets=felled, images=images))))
