import dataclasses
from pathlib import Path

import pytest
import torch

from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Shot
from expunge.erasers.ca import CA, resized

PIXELS = torch.randint(0, 256, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0)).byte()
PLAIN = CA(anchor="cat", iterations=1, batch=2, flip=False, resize=False, lr=1e-3, prompts=("a {}",))


def task_of(prompts=("a cat", "the cat", "cat"), name="dog"):
    shown = [
        Shot(path=Path(str(i)), pixels=lambda i=i: PIXELS[i], prompt=p, seed=i, label=None)
        for i, p in enumerate(prompts)
    ]
    return Task(targets=[Concept(name=name)], seed=1, images={name: shown})


def drawn(backbone, task, count=2):
    """What an update without augmentation draws: latents, prompts, noise and timesteps."""
    generator = task.generator("ca", 0)
    picked = []
    for _ in range(count):
        torch.randint(0, 1, (), generator=generator)
        picked.append(int(torch.randint(0, 3, (), generator=generator)))
        torch.randint(0, 6, (), generator=generator)
    x0 = torch.cat([backbone.encode_image(PIXELS[i][None]) for i in picked])
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(0, 1000, (count,), generator=generator)
    kept = backbone.components()["scheduler"].alphas_cumprod[t].view(-1, 1, 1, 1)
    prompts = [task.images[task.targets[0].name][i].prompt for i in picked]
    return kept.sqrt() * x0 + (1 - kept).sqrt() * noise, t, noise, prompts


@pytest.mark.parametrize("variant", ["model", "noise"])
@pytest.mark.parametrize("prior", [False, True])
def test_an_update_is_the_formula(backbone, variant, prior):
    eraser = dataclasses.replace(PLAIN, variant=variant, prior=prior, prior_weight=0.5)
    task = task_of()
    before = backbone.cost
    (step,) = eraser.steps(backbone, task)
    assert backbone.cost - before == eraser.cost(1, 0)
    x, t, noise, anchors = drawn(backbone, task)
    unet = backbone.components()["unet"]
    trained = {
        f"unet.{n}": p for n, p in unet.named_parameters() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    with torch.no_grad():
        c, c_star = (backbone.encode(texts).embeds for texts in (anchors, [a.replace("cat", "dog") for a in anchors]))
    for p in trained.values():
        p.requires_grad_(True)
    e_star, e_c = (unet(x, t, encoder_hidden_states=k).sample for k in (c_star, c))
    ablate = (e_star - (e_c.detach() if variant == "model" else noise)).square().mean()
    kept = (e_c - noise).square().mean()
    gradients = torch.autograd.grad(ablate + (0.5 * kept if prior else 0), list(trained.values()))
    for p in trained.values():
        p.requires_grad_(False)
    assert step.losses["ablate"] == pytest.approx(ablate.item(), rel=1e-3)
    assert ("prior" in step.losses) == prior
    if prior:
        assert step.losses["prior"] == pytest.approx(kept.item(), rel=1e-3)
    edit = step.edit()
    assert set(edit.replaced) == set(trained)
    for (name, p), g in zip(trained.items(), gradients, strict=True):
        expected = p * (1 - 1e-3 * 0.01) - 1e-3 * g / (g.abs() + 1e-8)
        clear = g.abs() > 1e-6
        assert torch.allclose(edit.replaced[name][clear], expected[clear], atol=2e-5), name


def test_the_anchor_s_branch_is_of_the_current_weights(backbone):
    """Not of a frozen copy: the second update's loss follows from the first one's weights on both sides."""
    eraser = dataclasses.replace(PLAIN, iterations=2, lr=0.05)
    task = task_of()
    updates = iter(eraser.steps(backbone, task))
    edit = next(updates).edit()
    second = next(updates)
    generator = task.generator("ca", 1)
    batch = eraser._drawn(backbone, task, generator)
    noise = torch.randn(batch.latents.shape, generator=generator)
    t = torch.randint(0, 1000, (2,), generator=generator)
    x = backbone.add_noise(batch.latents, noise, t)
    unet = backbone.components()["unet"]
    with torch.no_grad(), backbone.attached([edit]):
        e_star, e_c = (
            unet(x, t, encoder_hidden_states=backbone.encode(texts).embeds).sample
            for texts in (batch.targets, batch.anchors)
        )
    assert second.losses["ablate"] == pytest.approx((e_star - e_c).square().mean().item(), rel=1e-3)


def test_the_embedding_group_moves_the_targets_tokens_alone(backbone):
    (name,) = backbone.group("text-embedding")
    task = task_of(name="dog 7")
    steps = list(dataclasses.replace(PLAIN, group="embedding", iterations=3).steps(backbone, task))
    edit = steps[-1].edit()
    assert set(edit.replaced) == {name}
    moved = (edit.replaced[name] != backbone.tensors([name])[name]).any(1).nonzero().flatten().tolist()
    ids = backbone.tokenize(["dog 7"])[0]
    marks = set(backbone.tokenize([""])[0].tolist())
    assert moved == sorted(set(ids.tolist()) - marks)


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("object", {"a dog"}),
        ("style", {"a cat, in the style of dog", "in dog's style, a cat"}),
        ("content", {"dog, a cat", "in dog style, a cat", "a cat, dog"}),
        ("fixed", {"dog"}),
    ],
)
def test_the_concept_goes_into_the_anchor_s_prompt(kind, allowed):
    eraser = dataclasses.replace(PLAIN, kind=kind)
    made = [eraser._with_concept("a cat", Concept(name="dog"), way) for way in range(6)]
    assert set(made) == allowed
    if kind == "style":
        assert made.count("in dog's style, a cat") == 4


def test_images_are_resized_with_words_and_a_mask():
    pixels = torch.full((60, 60, 3), 200).byte()
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(300):
        image, inside, words = resized(pixels, generator)
        assert image.shape == pixels.shape
        assert torch.equal(image[inside > 0].unique(), torch.tensor([200]).byte())
        assert (image[inside == 0] == 127).all()
        share = inside.mean().sqrt().item()
        assert 0.3 < share <= 1
        small = (
            {"a far away ", "very small "}
            if share < 0.59
            else {""}
            if share < 0.99
            else {"", "zoomed in ", "close up "}
        )
        assert words in small or 0.59 <= share <= 0.61
        seen.add(words)
    assert seen == {"", "a far away ", "very small ", "zoomed in ", "close up "}


def test_words_on_the_size_do_not_stand_before_the_prompt_that_is_asked_for_the_anchor(backbone):
    """As in both of the authors' codes; the prior's prompts say what is seen. Without resizing, keys are as before."""
    task, seen = task_of(), set()
    for index in range(12):
        batch = dataclasses.replace(PLAIN, resize=True)._drawn(backbone, task, task.generator("ca", index))
        assert {"a cat", "the cat", "cat"} >= set(batch.anchors)
        seen |= {shown.removesuffix(anchor) for shown, anchor in zip(batch.shown, batch.anchors, strict=True)}
        assert batch.targets == [shown.replace("cat", "dog") for shown in batch.shown]
    assert seen == {"", "a far away ", "very small ", "zoomed in ", "close up "}
    assert (dataclasses.replace(PLAIN, resize=True).version, PLAIN.version) == (2, 1)


def test_the_border_of_a_small_image_does_not_count(backbone):
    task = task_of()
    eraser = dataclasses.replace(PLAIN, resize=True, flip=True, batch=6)
    batch = eraser._drawn(backbone, task, task.generator("ca", 3))
    assert batch.kept.shape == (6, 1, 8, 8)
    assert 0 < batch.kept.mean() < 1
    from expunge.erasers.ca import _masked

    a, b = torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8)
    expected = torch.stack(
        [((x - y) ** 2)[:, k[0] > 0].mean() for x, y, k in zip(a, b, batch.kept, strict=True) if k.any()]
    )
    assert _masked(a, b, batch.kept).item() == pytest.approx(expected.sum().item() / 6, rel=1e-5)


def test_what_cannot_work_is_refused_in_a_line(backbone):
    with pytest.raises(ExpungeError, match="no anchor for 'dog'"):
        CA().needs([Concept(name="dog")])
    with pytest.raises(ExpungeError, match="does not name the anchor 'cat'"):
        list(PLAIN.steps(backbone, task_of(prompts=("a cat", "a bird", "cat"))))
    with pytest.raises(ExpungeError, match="images"):
        dataclasses.replace(PLAIN, anchor_images=0)
    needed = CA(anchor="cat").needs([Concept(name="dog"), Concept(name="fox", anchor="wolf")])
    assert len(needed["dog"]) == 1000
    assert needed["fox"][0] == "a photo of a wolf"
