import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.edit import Weights, fingerprint
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Box, Query, Shot
from expunge.erasers.geom_erasing import Avoided, GeomErasing
from expunge.erasers.uce import UCE
from expunge.stages import erase
from expunge.store import load_edit
from expunge.testing import check_eraser
from tiny import tiny_pipeline

MODEL = GeomErasing(rows=2, columns=2, iterations=2, batch=2, token_lr=1e-2, weight_decay=0.0)
DATA = dataclasses.replace(MODEL, form="data", group="xattn", lr=1e-3, alpha=3.0)
BOXES = ((Box(0, 0, 8, 8),), (Box(8, 0, 8, 8), Box(0, 8, 2, 2)), ())
"""On images of 16 x 16: the first cell, the second and the third, and none."""
CELLS = ([0], [1, 2], [])


def task_of(boxes=BOXES, prompt="dog", masks=False):
    """Noise for images with boxes, or masks of them, on them."""
    generator = torch.Generator().manual_seed(0)
    shots = []
    for some in boxes:
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator).byte()
        mask = torch.zeros(16, 16, dtype=torch.bool)
        for box in some:
            mask[int(box.y) : int(box.y + box.height), int(box.x) : int(box.x + box.width)] = True
        marks = {"mask": (lambda m=mask: m) if masks and some else None} if masks else {"boxes": some}
        shots.append(Shot(path=Path("a.png"), pixels=lambda x=pixels: x, prompt=prompt, seed=0, label=None, **marks))
    return Task(targets=[Concept(name="church")], images={"church": shots}, seed=1)


def first_tokens(backbone, task):
    """The location tokens as they are drawn: of the vocabulary's mean and spread."""
    table = backbone.components()["text_encoder"].get_input_embeddings().weight
    drawn = torch.randn((4, table.shape[1]), generator=task.generator("geom-erasing tokens"))
    return drawn * table.std(0) + table.mean(0)


def texted(backbone, text, vectors):
    """The hidden states of a text and vectors behind it, with transformers alone."""
    parts = backbone.components()
    words = len(parts["tokenizer"](text).input_ids) - 2
    filled = " ".join([text, *["a"] * len(vectors)])
    ids = parts["tokenizer"](filled, padding="max_length", max_length=16, return_tensors="pt").input_ids
    table = parts["text_encoder"].get_input_embeddings()

    def exchange(module, args, output):
        return torch.cat([output[:, : words + 1], vectors[None], output[:, words + 1 + len(vectors) :]], 1)

    handle = table.register_forward_hook(exchange)
    try:
        return parts["text_encoder"](ids).last_hidden_state
    finally:
        handle.remove()


def by_hand(backbone, task, texts, tokens, batch, alpha=1.0, place="inside"):
    """The loss of the first update, in diffusers' own classes; ``texts`` are told of the images that are used, by number."""
    used, rows = list(texts), []
    for turn in range(batch):
        order = torch.randperm(len(used), generator=task.generator("geom-erasing order", turn)).tolist()
        rows += [used[number] for number in order]
    rows = rows[:batch]  # all once, before one comes again
    shots = [task.images["church"][row] for row in rows]
    x0 = torch.cat([backbone.encode_image(s.pixels()[None]) for s in shots])
    generator = task.generator("geom-erasing", 0)
    noise = torch.randn(x0.shape, generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    signal = backbone.components()["scheduler"].alphas_cumprod[t][:, None, None, None]
    x = signal.sqrt() * x0 + (1 - signal).sqrt() * noise
    cells = [[] if tokens is None else CELLS[row] for row in rows]
    embeds = [
        texted(backbone, texts[row], torch.zeros(0, 32) if tokens is None else tokens[covered])
        for row, covered in zip(rows, cells, strict=True)
    ]
    error = backbone.components()["unet"](x, t, encoder_hidden_states=torch.cat(embeds)).sample - noise
    weight = torch.ones(batch, 1, 8, 8)
    for number, covered in enumerate(cells):
        for cell in range(4):
            value = 4 / (len(covered) + alpha * (4 - len(covered))) * (1 if cell in covered else alpha)
            y, x_ = divmod(cell, 2)
            weight[number, 0, 4 * y : 4 * y + 4, 4 * x_ : 4 * x_ + 4] = value
    return ((weight * error) ** 2 if place == "inside" else weight * error**2).mean()


def test_the_first_update_moves_the_covered_cells_tokens_and_nothing_else(backbone):
    task = task_of()
    tokens = first_tokens(backbone, task).requires_grad_()
    loss = by_hand(backbone, task, {0: "dog, church", 1: "dog, church"}, tokens, 2)
    (gradient,) = torch.autograd.grad(loss, tokens)
    before = fingerprint(backbone.tensors(backbone.group("full")))
    step = next(iter(MODEL.steps(backbone, task)))
    assert step.losses == {"denoise": pytest.approx(loss.item(), rel=1e-4)}
    edit = step.edit()
    assert list(edit.tensors()) == ["locations"]
    clear = gradient.abs() > 1e-6  # Adam's first step is its rate times the sign
    assert clear[:3].float().mean() > 0.9
    assert torch.allclose(edit.locations[clear], (tokens - 1e-2 * gradient.sign())[clear], atol=2e-5)
    assert torch.equal(edit.locations[3], tokens[3]), "no image covers the last cell"
    assert fingerprint(backbone.tensors(backbone.group("full"))) == before


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_with_data_the_denoiser_learns_as_well_by_the_weighted_loss(backbone, place):
    """Three images a batch, one of them without a mark: its caption stands alone, and all its cells count alike."""
    eraser, task = dataclasses.replace(DATA, weight=place, batch=3), task_of()
    tokens = first_tokens(backbone, task).requires_grad_()
    unet = backbone.components()["unet"]
    trained = {f"unet.{n}": p for n, p in unet.named_parameters() if ".attn2." in n}
    for p in trained.values():
        p.requires_grad_(True)
    texts = {0: "dog, church", 1: "dog, church", 2: "dog"}
    loss = by_hand(backbone, task, texts, tokens, 3, alpha=3.0, place=place)
    of_tokens, *found = torch.autograd.grad(loss, [tokens, *trained.values()])
    for p in trained.values():
        p.requires_grad_(False)
    step = next(iter(eraser.steps(backbone, task)))
    assert step.losses == {"denoise": pytest.approx(loss.item(), rel=1e-4)}
    edit = step.edit()
    assert set(edit.weights.replaced) == set(trained)
    for name, gradient in zip(trained, found, strict=True):
        clear = gradient.abs() > 1e-5
        wanted = trained[name] - 1e-3 * gradient.sign()
        assert torch.allclose(edit.weights.replaced[name][clear], wanted[clear], atol=2e-6), name
    clear = of_tokens.abs() > 1e-6
    assert torch.allclose(edit.locations[clear], (tokens - 1e-2 * of_tokens.sign())[clear], atol=2e-5)


@pytest.mark.parametrize(
    ("told", "texts"),
    [
        ("name", {0: "dog, church", 1: "dog, church", 2: "dog"}),
        ("nothing", {0: "dog", 1: "dog", 2: "dog"}),
        ("clean", {2: "dog"}),
    ],
)
def test_the_ablation_tells_less(backbone, told, texts):
    """Only the geometry weighs cells and has tokens; the oracle sees the image without marks alone."""
    task, eraser = task_of(), dataclasses.replace(DATA, told=told, batch=3)
    with torch.no_grad():
        loss = by_hand(backbone, task, texts, None, 3)
    step = next(iter(eraser.steps(backbone, task)))
    assert step.losses == {"denoise": pytest.approx(loss.item(), rel=1e-4)}
    edit = step.edit()
    assert edit.locations is None
    assert edit.text == ("church" if told == "name" else "")
    cond, null = backbone.encode(["dog"]), backbone.encode([""])
    changed = edit.conditioning(backbone, cond, null, {})[1].embeds
    expected = backbone.encode(["church" if told == "name" else ""]).embeds
    assert torch.equal(changed, expected)


def test_masks_say_where_as_boxes_do(backbone):
    boxed, masked = (
        next(iter(dataclasses.replace(DATA, marks=marks).steps(backbone, task_of(masks=marks == "mask")))).edit()
        for marks in ("boxes", "mask")
    )
    assert torch.equal(boxed.locations, masked.locations)
    assert all(torch.equal(t, masked.weights.replaced[n]) for n, t in boxed.weights.replaced.items())


def test_the_negative_prompt_holds_the_words_and_every_token(backbone):
    *_, last = MODEL.steps(backbone, task_of())
    edit = last.edit()
    with torch.no_grad():
        expected = texted(backbone, "church", edit.locations)
    cond, null = backbone.encode(["dog", "radio"]), backbone.encode(["", ""])
    kept, changed = edit.conditioning(backbone, cond, null, {})
    assert kept is cond
    assert torch.allclose(changed.embeds, expected.expand(2, -1, -1), atol=1e-6)
    with backbone.attached([edit]):
        ours = backbone.generate([Query(prompt="dog", seed=5, guidance=4.0, steps=4)]).latents
    pipe = tiny_pipeline()
    theirs = pipe(
        "dog",
        negative_prompt_embeds=expected,
        latents=backbone.noise(5),
        guidance_scale=4.0,
        num_inference_steps=4,
        output_type="latent",
    ).images
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_edit_with_weights_reaches_a_pipeline_and_leaves_it(backbone):
    *_, last = DATA.steps(backbone, task_of())
    edit, pipe = last.edit(), tiny_pipeline()
    call = {"latents": backbone.noise(5), "guidance_scale": 4.0, "num_inference_steps": 3, "output_type": "latent"}
    plain = pipe("dog", **call).images
    with backbone.attached([edit]):
        ours = backbone.generate([Query(prompt="dog", seed=5, guidance=4.0, steps=3)]).latents
    edit.attach(pipe)
    assert torch.allclose(pipe("dog", **call).images, ours, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-3
    edit.detach(pipe)
    assert torch.equal(pipe("dog", **call).images, plain)


def test_its_weights_stack_with_other_edits_bit_for_bit(backbone):
    """Over another edit of the same tensors differences add up, in whatever order they go."""
    eraser = dataclasses.replace(DATA, group="xattn-strict")
    *_, last = eraser.steps(backbone, task_of())
    ours = last.edit()
    other = erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])
    names = list(ours.weights.replaced)
    base = {name: tensor.clone() for name, tensor in backbone.tensors(names).items()}
    backbone.attach(other)
    backbone.attach(ours)
    for name, now in backbone.tensors(names).items():
        moved = ours.weights.replaced[name] - base[name] + other.replaced.get(name, base[name])
        assert torch.allclose(now, moved, atol=1e-6), name
    backbone.detach(other)
    assert all(torch.equal(t, ours.weights.replaced[n]) for n, t in backbone.tensors(names).items())
    with backbone.bare():
        assert all(torch.equal(t, base[n]) for n, t in backbone.tensors(names).items())
    backbone.detach(ours)
    assert all(torch.equal(t, base[n]) for n, t in backbone.tensors(names).items())
    assert all(torch.equal(t, base[n]) for n, t in backbone.stored(names).items())


def test_where_it_cannot_steer_its_weights_are_taken_out_again(backbone, monkeypatch):
    *_, last = DATA.steps(backbone, task_of())
    edit, before = last.edit(), fingerprint(backbone.tensors(backbone.group("full")))
    changed, calls = backbone.steering_changed, []

    def fail_once():
        calls.append(backbone.edits)
        if len(calls) == 1:
            raise RuntimeError("no hooks")
        changed()

    monkeypatch.setattr(backbone, "steering_changed", fail_once)
    with pytest.raises(RuntimeError, match="no hooks"):
        backbone.attach(edit)
    assert calls == [[edit], []]
    assert backbone.edits == []
    assert fingerprint(backbone.tensors(backbone.group("full"))) == before
    stored = backbone.components()["unet"].state_dict()
    assert all(
        torch.equal(stored[n.removeprefix("unet.")], t) for n, t in backbone.tensors(backbone.group("full")).items()
    )
    backbone.attach(edit)
    assert fingerprint(backbone.tensors(backbone.group("full"))) != before


def test_an_edit_with_weights_is_refused_on_another_base(backbone, other_folder):
    *_, last = DATA.steps(backbone, task_of())
    other = backbones.load(str(other_folder))
    with pytest.raises(ExpungeError, match="was made for another base"):
        other.attach(last.edit())
    other.attach(last.edit(), any_base=True)


@pytest.mark.parametrize("told", ["geometry", "name", "nothing"])
def test_with_data_it_keeps_every_promise(backbone, told):
    check_eraser(dataclasses.replace(DATA, told=told, iterations=3), backbone, None)


def test_it_goes_on_bit_for_bit_and_costs_what_is_foreseen(backbone):
    before = backbone.cost
    first, last = [(s.state(), s.edit()) for s in DATA.steps(backbone, task_of())]
    assert backbone.cost - before == DATA.cost(1, 0) == Cost(trained=4)
    (again,) = DATA.steps(backbone, task_of(), first[0])
    assert again.edit().id == last[1].id
    lacking = {n: t for n, t in first[0].items() if not n.startswith("tokens/")}
    with pytest.raises(ExpungeError, match="the state to resume from has no 'tokens/value/<l>'"):
        list(DATA.steps(backbone, task_of(), lacking))


def test_tokens_learned_on_other_edits_need_them(backbone):
    other = erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])
    with backbone.attached([other]):
        *_, last = MODEL.steps(backbone, task_of())
        edit = last.edit()
    with pytest.raises(ExpungeError, match=f"was made on top of edit {other.id}"):
        backbone.attach(edit)


def test_a_model_takes_one_negative_prompt_and_may_be_fine_tuned_before(backbone):
    """Plain fine-tuning plants the concept, and the tokens that are learned on top of it need it."""
    *_, last = dataclasses.replace(DATA, told="nothing").steps(backbone, task_of())
    planted = last.edit()
    with backbone.attached([planted]):
        *_, last = MODEL.steps(backbone, task_of())
        found = last.edit()
        backbone.attach(found)
        with pytest.raises(
            ExpungeError, match="with a negative prompt is attached already: expected one that names all"
        ):
            backbone.attach(dataclasses.replace(found, text="cat"))
        backbone.detach(found)
    assert found.requires == (planted.id,)


def test_several_targets_share_the_tokens(backbone):
    task = task_of()
    shots = task.images["church"]
    both = dataclasses.replace(
        task, targets=[Concept(name="church"), Concept(name="cat")], images={"church": shots[:1], "cat": shots[1:2]}
    )
    *_, last = MODEL.steps(backbone, both)
    assert last.edit().text == "church, cat"
    assert last.edit().locations.shape == (4, 32)


def test_a_long_caption_makes_room_and_is_counted(backbone):
    """14 tokens are read: a comma, church (four), and one place leave eight dogs of ten."""
    task = task_of(BOXES[:1], "dog " * 9 + "dog")
    tokens = first_tokens(backbone, task)
    with torch.no_grad():
        loss = by_hand(backbone, task, {0: " ".join(["dog"] * 8) + ", church"}, tokens, 1)
    step = next(iter(dataclasses.replace(MODEL, batch=1).steps(backbone, task)))
    assert step.losses["denoise"] == pytest.approx(loss.item(), rel=1e-4)
    assert step.warnings()[0] == "captions shortened to make room for words and places: 1"
    (places,) = next(iter(MODEL.steps(backbone, task_of()))).warnings()
    assert places.startswith("1 of 4 cells are covered in no image: their tokens stay random")
    whole = next(iter(MODEL.steps(backbone, task_of([[Box(0, 0, 16, 16)]]))))
    assert whole.warnings() == []


@pytest.fixture
def own(tmp_path):
    """A folder of three images, the first with a box."""

    def folder(box):
        place = tmp_path / f"own-{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        lines = []
        for number in range(3):
            Image.new("RGB", (16, 16), (80 * number, 0, 90)).save(place / f"{number}.png")
            marks = {"objects": {"bbox": [box], "categories": ["church"]}} if box and number == 0 else {}
            lines.append({"file_name": f"{number}.png", "prompt": "a dog", "seed": number, **marks})
        (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        return place

    return folder


def test_a_folder_in_which_some_images_are_marked(backbone, own, tmp_path):
    edit = erase.run(backbone, "geom-erasing", DATA, [Concept(name="church")], [], images={"church": own([0, 0, 4, 4])})
    assert edit.provenance.images["church"]["count"] == 3
    assert edit.provenance.images["church"]["given"] is True
    erase.to_folder(edit, tmp_path / "edit")
    loaded = load_edit(tmp_path / "edit" / "edit.safetensors")
    assert loaded.id == edit.id
    assert isinstance(loaded.weights, Weights)
    assert torch.equal(loaded.locations, edit.locations)
    assert loaded.weights.base_sha256 == edit.weights.base_sha256


def test_folders_that_say_nothing_or_something_wrong_are_refused(backbone, own):
    def run(box, eraser=MODEL):
        erase.run(backbone, "geom-erasing", eraser, [Concept(name="church")], [], images={"church": own(box)})

    with pytest.raises(ExpungeError, match=r"no image in .* for 'church' has boxes: expected them in its metadata"):
        run(None)
    with pytest.raises(ExpungeError, match=r"0.png' is 16 x 16 and has a box at 10, 0 of 10 x 4: expected x, y"):
        run([10, 0, 10, 4])
    run(None, dataclasses.replace(DATA, told="clean"))
    with pytest.raises(ExpungeError, match="need boxes, which no model makes"):
        erase.run(backbone, "geom-erasing", MODEL, [Concept(name="church")], [])


def test_a_warning_counts_shortened_captions_at_the_end(backbone, tmp_path):
    place = tmp_path / "own"
    place.mkdir()
    Image.new("RGB", (16, 16)).save(place / "0.png")
    line = {"file_name": "0.png", "prompt": "dog " * 12, "seed": 0, "objects": {"bbox": [[0, 0, 4, 4]]}}
    (place / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.warns(ExpungeWarning, match="captions shortened to make room for words and places: 1"):
        erase.run(backbone, "geom-erasing", MODEL, [Concept(name="church")], [], images={"church": place})


def test_images_of_a_task_are_checked_too(backbone):
    with pytest.raises(
        ExpungeError, match=r"'a.png' for 'church': a box at 0, 0 of 30 x 4 is not in an image of 16 x 16"
    ):
        next(iter(MODEL.steps(backbone, task_of([(Box(0, 0, 30, 4),)]))))
    for eraser, boxes, words in (
        (MODEL, [()], "got 1 images: expected some with boxes"),
        (dataclasses.replace(DATA, told="clean"), BOXES[:2], "got 2 images: expected some without boxes"),
    ):
        with pytest.raises(ExpungeError, match=words):
            next(iter(eraser.steps(backbone, task_of(boxes))))


def test_more_tokens_than_are_read_are_refused_before_anything_is_trained(backbone):
    before = backbone.cost
    with pytest.raises(ExpungeError, match="4 rows and 4 columns make 16 location tokens, more than tiny reads behind"):
        next(iter(dataclasses.replace(MODEL, rows=4, columns=4).steps(backbone, task_of())))
    assert backbone.cost == before


def test_tokens_of_another_width_are_refused(backbone):
    with pytest.raises(ExpungeError, match="has location tokens of 5 numbers: expected 32 for tiny"):
        backbone.attach(Avoided(text="church", locations=torch.zeros(4, 5)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"form": "model", "told": "name"}, "form model with told name would learn nothing"),
        ({"alpha": 0.0}, "geom-erasing's alpha is 0.0: expected a positive number"),
        ({"rows": 0}, "geom-erasing's rows is 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"told": "places"}, "unknown geom-erasing's told 'places'"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        erase.build("geom-erasing", change, None)


def test_a_group_of_the_text_encoder_is_refused(backbone):
    with pytest.raises(ExpungeError, match="expected a group of the denoiser"):
        dataclasses.replace(DATA, group="text-mlp").check(backbone)
    dataclasses.replace(MODEL, group="text-mlp").check(backbone)  # which trains none
