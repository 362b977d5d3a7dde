import dataclasses
from pathlib import Path

import pytest
import torch

from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Shot
from expunge.erasers.few_shot import GROUPS, OBJECT_TEMPLATES, FewShot

PIXELS = torch.randint(0, 256, (5, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()


def shots(*rows):
    return [Shot(path=Path(str(i)), pixels=lambda i=i: PIXELS[i], prompt="", seed=i, label=None) for i in rows]


def task_of(**images):
    return Task(
        targets=[Concept(name=n) for n in images], seed=1, images={n: shots(*rows) for n, rows in images.items()}
    )


@pytest.mark.parametrize("source", ["images", "uniform"])
def test_an_update_is_gradient_ascent_on_the_noise(backbone, source):
    eraser = FewShot(templates=("a {}",), batch=2, shots=2, epochs=1, flip=False, source=source, lr=1e-3)
    task = task_of(church=(0, 1))
    before = backbone.cost
    (step,) = eraser.steps(backbone, task)
    assert (backbone.cost - before) == eraser.cost(1, 0)
    parts = backbone.components()
    with torch.no_grad():
        x0 = backbone.encode_image(PIXELS[:2])
        if source == "uniform":
            generator = task.generator("few-shot images")
            x0 = torch.cat([torch.rand((1, 4, 8, 8), generator=generator) for _ in range(2)])
        x0 = x0[torch.randperm(2, generator=task.generator("few-shot order", 0))]
        generator = task.generator("few-shot", 0)
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.randint(0, 1000, (2,), generator=generator)
        kept = parts["scheduler"].alphas_cumprod[t].view(-1, 1, 1, 1)
        x = kept.sqrt() * x0 + (1 - kept).sqrt() * noise
    tower = parts["text_encoder"]
    learned = {n: p for n, p in tower.named_parameters() if ".mlp.fc" in n or "layers.1.self_attn" in n}
    for p in learned.values():
        p.requires_grad_(True)
    embeds = tower(backbone.tokenize(["a church"] * 2)).last_hidden_state
    loss = -(parts["unet"](x, t, encoder_hidden_states=embeds).sample - noise).square().mean()
    gradients = torch.autograd.grad(loss, list(learned.values()))
    for p in learned.values():
        p.requires_grad_(False)
    assert step.losses["forget"] == pytest.approx(loss.item(), rel=1e-4)
    edit = step.edit()
    assert set(edit.replaced) == {f"text_encoder.{n}" for n in learned}
    for (name, p), g in zip(learned.items(), gradients, strict=True):
        moved = edit.replaced[f"text_encoder.{name}"] - p
        clear = g.abs() > 1e-6
        assert torch.allclose(moved[clear], (-1e-3 * g / (g.abs() + 1e-6))[clear], atol=2e-4), name


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_of_the_text_encoder_alone(backbone, name):
    chosen = backbone.group(GROUPS[name])
    assert chosen
    assert all(n.startswith("text_encoder.") for n in chosen)
    every = backbone.group("text-encoder")
    expected = {
        "mlp-last-attn": [n for n in every if "mlp" in n or ("layers.1" in n and "attn" in n)],
        "mlp": [n for n in every if "mlp.fc" in n],
        "attn": [n for n in every if "self_attn" in n],
        "last": [n for n in every if "layers.1." in n],
        "all": every,
    }[name]
    assert chosen == expected


def test_every_image_is_used_once_an_epoch_with_its_own_word(backbone):
    eraser = FewShot(batch=2, epochs=3)
    task = task_of(church=(0, 1, 2), dog=(3, 4))
    batches = [rows.tolist() for _, rows in eraser._batches(task, 5)]
    assert len(batches) == 9
    for epoch in range(3):
        assert sorted(i for rows in batches[3 * epoch : 3 * epoch + 3] for i in rows) == [0, 1, 2, 3, 4]
    shown = eraser._shown(backbone, task)
    assert shown.target.tolist() == [0, 0, 0, 1, 1]
    assert len(list(eraser.steps(backbone, task))) == 9


def test_images_are_mirrored_once(backbone):
    task = task_of(church=(0, 1, 2, 3, 4))
    latents = FewShot(flip=True)._shown(backbone, task).latents
    plain, mirrored = backbone.encode_image(PIXELS), backbone.encode_image(PIXELS.flip(2))
    which = [torch.allclose(row, m, atol=1e-5) for row, m in zip(latents, mirrored, strict=True)]
    assert all(w or torch.allclose(row, p, atol=1e-5) for w, row, p in zip(which, latents, plain, strict=True))
    assert 0 < sum(which) < 5


def test_defaults_are_the_authors():
    eraser = FewShot()
    assert len(OBJECT_TEMPLATES) == 27
    assert (eraser.lr, eraser.betas, eraser.eps, eraser.weight_decay) == (1e-5, (0.9, 0.98), 1e-6, 1e-8)
    assert eraser.epochs * eraser.shots // eraser.batch == 8
    assert eraser.needs([Concept(name="church")]) == {"church": ["a photo of a church"] * 4}
    assert dataclasses.replace(eraser, source="uniform").needs([Concept(name="church")]) == {}


@pytest.mark.parametrize("change", [{"epochs": 0}, {"betas": (0.9,)}, {"lr": 0.0}, {"templates": ("church",)}])
def test_bad_settings_are_refused(change):
    with pytest.raises(ExpungeError):
        dataclasses.replace(FewShot(), **change)
