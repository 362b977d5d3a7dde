import dataclasses
from pathlib import Path

import pytest
import torch

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Shot
from expunge.erasers.forget_me_not import ForgetMeNot
from expunge.maths.attention import columns_of, recorded
from expunge.stages import erase
from tiny import still, tiny_sd3_pipeline, tiny_xl_pipeline

SHORT = ForgetMeNot(prompt="a {}", shots=3, iterations=2, batch=2, lr=1e-3, group="xattn")
INVERTING = dataclasses.replace(SHORT, inversion=3, vectors=2, inversion_lr=0.1)


def task_of(backbone, *names, count=3):
    """Noise for images of each target."""
    generator = torch.Generator().manual_seed(0)
    height, width = backbone.image_size
    images = {
        name: [
            Shot(path=Path(name), pixels=lambda x=x: x, prompt=name, seed=0, label=None)
            for x in torch.randint(0, 256, (count, height, width, 3), generator=generator).byte()
        ]
        for name in names
    }
    return Task(targets=[Concept(name=name) for name in names], images=images, seed=1)


class Kept:
    """A processor for diffusers' own attention, head by head, that keeps the maps."""

    def __init__(self):
        self.maps = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        width, parts = q.shape[-1] // attn.heads, []
        for head in range(attn.heads):
            some = slice(head * width, (head + 1) * width)
            self.maps.append((q[..., some] @ k[..., some].transpose(1, 2) / width**0.5).softmax(-1))
            parts.append(self.maps[-1] @ v[..., some])
        return attn.to_out[0](torch.cat(parts, -1))


def attended(backbone, x, t, texts, columns):
    """The norm of what the columns of each row get, through the real UNet with attention written out."""
    unet, kept = backbone.components()["unet"], Kept()
    with torch.no_grad():
        embeds = torch.cat([backbone.encode([text]).embeds for text in texts])
    before = unet.attn_processors
    unet.set_attn_processor({n: kept if ".attn2." in n else p for n, p in before.items()})
    unet(x, t, encoder_hidden_states=embeds)
    unet.set_attn_processor(before)
    picked = [m[row, :, j].flatten() for m in kept.maps for row, some in enumerate(columns) for j in some]
    return torch.cat(picked).norm()


def noised(backbone, task, x0, update, targets):
    """Noised latents of an update, drawn as the method says it draws."""
    generator = task.generator("forget-me-not", "resteer", *targets, update)
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(0, 1000, (len(x0),), generator=generator)
    signal = backbone.components()["scheduler"].alphas_cumprod[t][:, None, None, None]
    return signal.sqrt() * x0 + (1 - signal).sqrt() * noise, t


def test_the_gradient_is_cut_to_its_length(backbone):
    """Adam's running mean holds a tenth of the gradient, which as a whole is no longer than the setting."""
    task = Task(targets=[Concept(name="church")], seed=1)
    lengths = []
    for clip in (1e9, 1e-4):
        eraser = dataclasses.replace(SHORT, source="zeros", clip=clip)
        state = next(iter(eraser.steps(backbone, task))).state()
        lengths.append(float(torch.cat([t.flatten() for n, t in state.items() if "/exp_avg/" in n]).norm()) / 0.1)
    assert lengths[0] > 2e-4
    assert lengths[1] == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("end_tokens", [True, False])
def test_the_first_update_is_adamw_on_the_norm_of_the_attention(backbone, end_tokens):
    """Zeros are noised, so the whole of an update can be made by hand; two targets of different lengths share a batch."""
    eraser = dataclasses.replace(SHORT, source="zeros", batch=4, end_tokens=end_tokens, weight_decay=5.0)
    task = Task(targets=[Concept(name="church"), Concept(name="dog")], seed=1)
    order = [
        torch.randperm(2, generator=task.generator("forget-me-not order", "resteer", 0, 1, turn)) for turn in range(2)
    ]
    names = [("church", "dog")[i] for i in torch.cat(order).tolist()]
    assert sorted(names) == ["church", "church", "dog", "dog"]
    x, t = noised(backbone, task, torch.zeros(4, *backbone.noise(0).shape[1:]), 0, [0, 1])
    columns = []
    for name in names:
        ids = backbone.tokenize([f"a {name}"])[0].tolist()
        end = ids.index(ids[-1])
        columns.append([*range(2, end), *(range(end, len(ids)) if end_tokens else ())])
    unet = backbone.components()["unet"]
    trained = {f"unet.{n}": p for n, p in unet.named_parameters() if ".attn2." in n}
    for p in trained.values():
        p.requires_grad_(True)
    loss = attended(backbone, x, t, [f"a {name}" for name in names], columns)
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    for p in trained.values():
        p.requires_grad_(False)
    step = next(iter(eraser.steps(backbone, task)))
    assert step.losses == {"attend": pytest.approx(loss.item(), rel=1e-5)}
    edit, length = step.edit(), torch.cat([g.flatten() for g in found if g is not None]).norm()
    for (name, before), g in zip(trained.items(), found, strict=True):
        if g is None:  # the last layer's values and output, of which no attention is made
            assert torch.equal(edit.replaced[name], before), name
            continue
        g = g / max(1.0, float(length))
        clear = g.abs() > 1e-5  # Adam's first step is lr times the sign
        wanted = before * (1 - 1e-3 * 5.0) - 1e-3 * g.sign()
        assert torch.allclose(edit.replaced[name][clear], wanted[clear], atol=5e-6), name
    assert any(g is None for g in found)


def test_images_are_noised_each_once_before_one_comes_again(backbone):
    task, eraser = task_of(backbone, "church"), dataclasses.replace(SHORT, batch=3, iterations=1)
    (step,) = eraser.steps(backbone, task)
    latents = [backbone.encode_image(s.pixels()[None]) for s in task.images["church"]]
    order = torch.randperm(3, generator=task.generator("forget-me-not order", "resteer", 0, 0)).tolist()
    x, t = noised(backbone, task, torch.cat([latents[i] for i in order]), 0, [0])
    ids = backbone.tokenize(["a church"])[0].tolist()
    with torch.no_grad():
        loss = attended(backbone, x, t, ["a church"] * 3, [range(2, len(ids))] * 3)
    assert step.losses["attend"] == pytest.approx(loss.item(), rel=1e-4)


def test_an_inversion_learns_the_images_and_leaves_the_model(backbone):
    """Its loss by hand at the second update: the phrase with the tokens learned so far, against the noise."""
    task = task_of(backbone, "church", count=1)
    eraser = dataclasses.replace(INVERTING, batch=1)
    steps = [(s.losses, s.edit(), s.state()) for s in eraser.steps(backbone, task)]
    assert [set(losses) for losses, *_ in steps] == [{"invert"}] * 3 + [{"attend"}] * 2
    base = backbone.tensors(backbone.group("xattn"))
    assert all(torch.equal(steps[2][1].replaced[n], t) for n, t in base.items())
    assert any(not torch.equal(steps[3][1].replaced[n], t) for n, t in base.items())
    generator = task.generator("forget-me-not", "invert", 0, 1)
    x0 = backbone.encode_image(task.images["church"][0].pixels()[None])
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(0, 1000, (1,), generator=generator)
    signal = backbone.components()["scheduler"].alphas_cumprod[t]
    word = steps[0][2]["word 0/value/<v>"]
    with torch.no_grad():
        embeds = backbone.encode_learned(["a <v>"], "<v>", word).embeds
        x = signal.sqrt() * x0 + (1 - signal).sqrt() * noise
        answer = backbone.components()["unet"](x, t, encoder_hidden_states=embeds).sample
    assert steps[1][0]["invert"] == pytest.approx(float((answer - noise).square().mean()), rel=1e-4)
    own = backbone.embed(backbone.tokenize(["church"]))[0, 1:3]
    assert (word - own).abs().max() < 0.15, "it begins at the name's own tokens"


def test_what_was_inverted_takes_the_name_s_place(backbone):
    task = task_of(backbone, "church", count=1)
    eraser = dataclasses.replace(INVERTING, batch=1, iterations=1, end_tokens=False)
    *_, before, last = [(s.losses, s.state()) for s in eraser.steps(backbone, task)]
    word = before[1]["word 0/value/<v>"]
    x, t = noised(backbone, task, backbone.encode_image(task.images["church"][0].pixels()[None]), 0, [0])
    with torch.no_grad():
        told = backbone.encode_learned(["a <v>"], "<v>", word)
        with recorded(backbone, 1, columns=[2, 3]) as recording:
            backbone.predict(x, t, told)
    wanted = torch.cat([m.flatten() for m in recording.maps().values()]).norm()
    assert last[0]["attend"] == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("at", [0, 2, 3])
def test_it_goes_on_bit_for_bit_in_either_part(backbone, at):
    task = task_of(backbone, "church")
    steps = [(s.state(), s.edit()) for s in INVERTING.steps(backbone, task)]
    *_, again = INVERTING.steps(backbone, task, steps[at][0])
    assert again.edit().id == steps[-1][1].id


def test_less_memory_gives_the_same_edit(backbone):
    edits = []
    for backbone.checkpointing in (False, True):
        *_, last = SHORT.steps(backbone, task_of(backbone, "church"))
        edits.append(last.edit().replaced)
    assert all(torch.allclose(t, edits[1][n], atol=1e-6) for n, t in edits[0].items())


@pytest.mark.parametrize(("change", "evaluated"), [({}, 4), ({"inversion": 3, "vectors": 2}, 2 * (2 + 6))])
def test_what_is_foreseen_is_what_it_takes(backbone, change, evaluated):
    eraser, before = dataclasses.replace(SHORT, **change), backbone.cost
    list(eraser.steps(backbone, task_of(backbone, "church", "dog")))
    assert backbone.cost - before == eraser.cost(2, 0)
    assert eraser.cost(2, 0).trained == evaluated


def test_it_wants_images_unless_it_sees_none():
    targets = [Concept(name="church"), Concept(name="dog")]
    assert ForgetMeNot().needs(targets) == {n: [f"a photo of {n}"] * 10 for n in ("church", "dog")}
    assert ForgetMeNot(source="zeros").needs(targets) == {}


def test_on_two_encoders_and_not_without_cross_attention():
    backbone = backbones.of(still(tiny_xl_pipeline()))
    eraser = dataclasses.replace(INVERTING, group="full", inversion=1)
    assert len(list(eraser.steps(backbone, task_of(backbone, "church")))) == 3
    backbone = backbones.of(still(tiny_sd3_pipeline()))
    with pytest.raises(ExpungeError, match=r"needs cross-attention, which .* has not"):
        erase.run(backbone, "forget-me-not", SHORT, [Concept(name="church")], [])


def test_on_the_testbed_the_word_is_attended_to_less():
    backbone = backbones.load("testbed")
    eraser = dataclasses.replace(SHORT, source="zeros", iterations=6, batch=4, lr=1e-3)
    *_, last = eraser.steps(backbone, Task(targets=[Concept(name="church")]))
    columns, masses = columns_of(backbone, "a church", "church"), []
    with torch.no_grad():
        for edits in ([], [last.edit()]):
            with backbone.attached(edits), recorded(backbone, 1, columns) as recording:
                backbone.predict(backbone.noise(3), 500, backbone.encode(["a church"]))
            masses.append(sum(float(m.mean()) for m in recording.maps().values()))
    assert masses[1] < 0.8 * masses[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shots": 0}, "forget-me-not's shots is 0"),
        ({"inversion": -1}, "inversion -1 and weight_decay 0.01: expected 0 or more"),
        ({"inversion": 5, "source": "zeros"}, "expected source images, which it learns from"),
        ({"prompt": "a photo"}, "has not one {}"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"source": "noise"}, "unknown forget-me-not's source 'noise'"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        erase.build("forget-me-not", change, None)


def test_a_group_of_the_text_encoder_is_refused(backbone):
    with pytest.raises(ExpungeError, match="expected a group of the denoiser"):
        ForgetMeNot(group="text-mlp").check(backbone)
