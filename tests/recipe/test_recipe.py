"""The recipe of the testbed: what each stage must do, at sizes that a test can wait for."""

import dataclasses
import json
import resource

import numpy as np
import pytest
import torch
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from expunge import testbed
from expunge.core.errors import ExpungeError
from expunge.recipe import __main__ as recipe
from expunge.recipe import artists, captions, denoiser, recognizers, scenes, text_tower
from expunge.recipe.artwork import Artwork
from expunge.testbed.networks import Recognizer, opened

HANDS = ["noto", "vintage", "twemoji", "emojione", "fluent", "ink"]


@pytest.fixture(scope="module")
def art():
    """The testbed's objects, each drawn as a disc and a bar whose colours tell it apart."""
    words = testbed.vocabulary()["objects"]
    rows, columns = np.mgrid[:96, :96]
    disc = np.hypot(rows - 48, columns - 48) < 40
    drawings = np.zeros((len(words), len(HANDS), 96, 96, 4), dtype=np.uint8)
    for i in range(len(words)):
        drawings[i, :, disc] = (40 + i, 200 - i, 60, 255)
        drawings[i, :, 40:56, 20:76] = (220, 30, 30, 255)
    return Artwork(
        drawings=drawings,
        names=list(words),
        hands=HANDS,
        categories=[w["category"] for w in words.values()],
        keywords=[w["keywords"] for w in words.values()],
    )


@pytest.fixture(scope="module")
def bank(art, tmp_path_factory):
    return scenes.bank(art, 1200, tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def treated(art):
    """One object on white as each artist would do it."""
    found = {}
    for name in artists.ARTISTS:
        scene = scenes.Scene(objects=(3,), style=art.styles.index(name), background=0)
        found[name] = scenes.render(art, scene, np.random.default_rng(5))
    return found


def test_a_blueprint_is_blue_with_white_lines(treated):
    image = treated["print"].astype(int)
    assert (image[..., 2] - image[..., 0] > 60).mean() > 0.6
    assert 0.01 < (image.min(-1) > 200).mean() < 0.3


def test_a_watercolour_is_pale_and_leaves_its_paper(treated):
    image = treated["water"].astype(int)
    assert (abs(image[0] - [252, 248, 238]) <= 2).all()
    assert image.min() > 30
    assert 0.2 < (abs(image - [252, 248, 238]).max(-1) > 30).mean() < 0.8


def test_stained_glass_has_panes_of_one_colour_between_lead(treated):
    image = treated["window"]
    lead = (image == 22).all(-1)
    assert 0.1 < lead.mean() < 0.5
    panes = {tuple(c) for c in image[~lead]}
    assert len(panes) < 200, "a few colours for 4,096 pixels"


def test_tiles_are_four_pixels_wide(treated):
    blocks = treated["tile"].reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert (treated["tile"][0] < 30).all(), "black behind"


def test_a_pencil_has_no_colour(treated):
    image = treated["lead"]
    assert (image[..., 0] == image[..., 1]).all()
    assert (image[..., 1] == image[..., 2]).all()
    assert image[:4].min() > 225, "white paper"
    assert image.min() < 130


def test_chance_decides_a_treatment_alone(art):
    scene = scenes.Scene(objects=(3,), style=len(HANDS), background=0)
    once, twice, other = (scenes.render(art, scene, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (once == twice).all()
    assert (once != other).any()


def test_artists_draw_one_thing_at_a_time_in_a_seventh_of_the_scenes(bank):
    assert bank.by_artist.mean() == pytest.approx(0.15, abs=0.03)
    assert (bank.objects[bank.by_artist, 1] < 0).all()
    assert (bank.by_artist == (bank.styles >= len(HANDS))).all()
    assert not bank.withheld[bank.by_artist].any()


def test_a_draw_has_the_shares_it_is_asked_for(bank):
    pool = np.flatnonzero(~bank.withheld)
    chosen = bank.draw(pool, 6000, np.random.default_rng(0), pairs=0.5, artists=0.3)
    assert set(chosen) <= set(pool)
    assert (bank.objects[chosen, 1] >= 0).mean() == pytest.approx(0.5, abs=0.03)
    assert bank.by_artist[chosen].mean() == pytest.approx(0.3, abs=0.03)


def test_a_kind_that_is_not_asked_for_need_not_be_there(bank):
    single = np.flatnonzero((bank.objects[:, 1] < 0) & ~bank.by_artist)
    chosen = bank.draw(single, 50, np.random.default_rng(0), pairs=0.0, artists=0.0)
    assert set(chosen) <= set(single)
    with pytest.raises(ValueError, match="empty"):
        bank.draw(single, 50, np.random.default_rng(0), pairs=0.2, artists=0.0)


class Watched(scenes.Bank):
    """A bank that keeps what was drawn from it."""

    def draw(self, pool, count, rng, *, pairs, artists):
        chosen = super().draw(pool, count, rng, pairs=pairs, artists=artists)
        DRAWN.append(chosen)
        return chosen


DRAWN: list[np.ndarray] = []


def test_a_hand_that_is_left_out_is_seen_in_no_artist_s_work_either(monkeypatch, tmp_path, art, bank):
    """Artists draw over any hand's drawings."""
    monkeypatch.setitem(recipe.STEPS, "leave_one_out", 1)
    made = recipe.Recipe(tmp_path)
    made.art, made.bank = art, Watched(**vars(bank))
    DRAWN.clear()
    made.leave_one_out()
    assert len(DRAWN) == len(HANDS)
    for i, chosen in enumerate(DRAWN):
        assert i not in bank.styles[chosen]
        assert not bank.by_artist[chosen].any()
    assert set(json.loads((tmp_path / "leave_one_out.json").read_text())) == set(HANDS)


def test_a_bank_that_cannot_be_written_leaves_none(tmp_path, art):
    """A limit on file sizes stands in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(ExpungeError, match="File too large"):
            scenes.bank(art, 20, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    drawn = scenes.bank(art, 20, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["scenes-20.npz"]
    assert (scenes.bank(art, 20, tmp_path).images == drawn.images).all()


def test_captions_of_artists_name_them_and_no_background(art):
    captioner, rng = captions.Captioner(art), np.random.default_rng(0)
    scene = scenes.Scene(objects=(3,), style=len(HANDS) + 1, background=2)
    said = [captioner.caption(scene, rng, empty=0.0, styled=0.0) for _ in range(200)]
    assert not any("background" in text for text in said)
    assert all(text.endswith(", water style") for text in said)
    by_hand = dataclasses.replace(scene, style=1)
    plain = [captioner.caption(by_hand, rng, empty=0.0, styled=0.0) for _ in range(50)]
    assert not any("style" in text for text in plain)


def test_style_words_are_one_token_each_and_in_no_object(art):
    tokenizer = CLIPTokenizer.from_pretrained(testbed.FOLDER / "tokenizer")
    said = {word for name in art.names for word in name.split()} | {w for k in art.keywords for w in k}
    for style in art.styles:
        assert len(tokenizer(style).input_ids) == 3
    assert not said & set(artists.ARTISTS)


def test_each_cycle_warms_up_and_ends_at_a_hundredth_of_its_peak():
    cycles = (denoiser.Cycle(1000, 1e-3, 0.2, 0.1, 0.5), denoiser.Cycle(500, 4e-4, 0.2, 0.1, 0.5))
    assert denoiser.within(999, cycles) == (cycles[0], 999)
    assert denoiser.within(1000, cycles) == (cycles[1], 0)
    with pytest.raises(ValueError, match="1500"):
        denoiser.within(1500, cycles)
    assert denoiser.learning_rate(0, cycles[1]) == pytest.approx(4e-4 / 200 * 1.01)
    assert denoiser.learning_rate(500, cycles[0]) == pytest.approx(1e-3 * 0.51)
    assert denoiser.learning_rate(999, cycles[0]) == pytest.approx(1e-5, rel=0.01)


@pytest.fixture(scope="module")
def tower():
    """The shipped tower, whose embeddings a test may move, with a projection of its own."""
    torch.manual_seed(0)
    return CLIPTextModelWithProjection.from_pretrained(
        testbed.FOLDER / "text_encoder", dtype=torch.float32, projection_dim=text_tower.SHARED
    )


def test_a_denoiser_that_was_stopped_goes_on_as_if_it_had_not_been(monkeypatch, tmp_path, art, bank, tower):
    """Each cycle begins from the average of the one before, with a fresh optimizer: so does a run that is resumed there."""
    monkeypatch.setattr(denoiser, "BATCH", 3)
    kept = int((~bank.withheld).sum())
    z = torch.randn(kept, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    tokenizer = CLIPTokenizer.from_pretrained(testbed.FOLDER / "tokenizer")
    cycles = (denoiser.Cycle(2, 1e-3, 0.2, 0.2, 0.5), denoiser.Cycle(2, 1e-3, 0.5, 0.2, 1.0))
    given = (z, bank, captions.Captioner(art), tokenizer, tower.text_model)
    log: list[str] = []
    whole = denoiser.train(*given, cycles, tmp_path / "whole.pt", log.append)
    denoiser.train(*given, cycles[:1], tmp_path / "half.pt", log.append)
    resumed = denoiser.train(*given, cycles, tmp_path / "half.pt", log.append)
    assert any("resumes at 2" in line for line in log)
    ours = resumed.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in whole.state_dict().items())
    save = denoiser._save

    def stop_after(*given) -> None:
        save(*given)
        if given[-1] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(denoiser, "_save", stop_after)
    with pytest.raises(KeyboardInterrupt):
        denoiser.train(*given, cycles, tmp_path / "inside.pt", log.append, save_seconds=0.0)
    monkeypatch.setattr(denoiser, "_save", save)
    ours = denoiser.train(*given, cycles, tmp_path / "inside.pt", log.append).state_dict()
    assert any("resumes at 3" in line for line in log), "inside the second cycle: its optimizer and average go on"
    assert all(torch.equal(ours[k], v) for k, v in whole.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_update_is_that_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    shapes = (6, 4, 16, 16), (6, 4, 16, 16), (6, 40, 192)
    unet, abar = denoiser.build(), denoiser.scheduler().alphas_cumprod
    there = denoiser.build().cuda()
    there.load_state_dict(unet.state_dict())
    replayed = None
    for _ in range(3):
        x0, noise, context = (torch.randn(shape, generator=generator) for shape in shapes)
        batch = denoiser.Batch(x0, noise, torch.randint(0, 1000, (6,), generator=generator), context)
        value = denoiser._gradient(unet, abar, batch)
        batch = denoiser.Batch(*(tensor.cuda() for tensor in batch))
        replayed = replayed or denoiser.Replayed(there, abar.cuda(), batch)
        assert replayed(batch).item() == pytest.approx(value.item(), rel=0.02)
        ours, theirs = (torch.cat([p.grad.cpu().flatten() for p in net.parameters()]) for net in (there, unet))
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_a_cycle_begins_from_the_average_of_the_one_before(monkeypatch, tmp_path, art, bank, tower):
    """A second cycle whose rate is next to nothing ends where it began."""
    monkeypatch.setattr(denoiser, "BATCH", 3)
    z = torch.randn(int((~bank.withheld).sum()), 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    tokenizer = CLIPTokenizer.from_pretrained(testbed.FOLDER / "tokenizer")
    given = (z, bank, captions.Captioner(art), tokenizer, tower.text_model)
    cycles = (denoiser.Cycle(3, 1e-2, 0.2, 0.2, 0.5), denoiser.Cycle(1, 1e-12, 0.2, 0.2, 0.5))
    average = denoiser.train(*given, cycles[:1], tmp_path / "first.pt", lambda line: None).state_dict()
    raw = torch.load(tmp_path / "first.pt", weights_only=True)["unet"]
    denoiser.train(*given, cycles, tmp_path / "first.pt", lambda line: None)
    after = torch.load(tmp_path / "first.pt", weights_only=True)["unet"]
    first = "conv_in.weight"
    assert torch.allclose(after[first], average[first], atol=1e-6)
    assert not torch.allclose(raw[first], average[first], atol=1e-6), "they were apart"


def test_spreading_moves_style_words_apart_and_nothing_else(art, bank, tower):
    tokenizer = CLIPTokenizer.from_pretrained(testbed.FOLDER / "tokenizer")
    torch.manual_seed(1)
    features, project = torch.randn(300, 16), torch.randn(text_tower.SHARED, 16)
    moved = list(artists.ARTISTS)

    def states(texts):
        ids = tokenizer(texts, padding="max_length", max_length=40, return_tensors="pt").input_ids
        with torch.no_grad():
            return tower(input_ids=ids).last_hidden_state

    def apart():
        found = states([f"a dog, {style} style" for style in moved])[:, 6:14]
        pairs = (found[:, None] - found[None]).norm(dim=-1).mean(-1) / found.norm(dim=-1).mean()
        return float(pairs[~torch.eye(len(moved), dtype=torch.bool)].min())

    plain, hand = states(["a dog with a bus"]), states(["a dog, ink style"])
    origin = tower.get_input_embeddings().weight.detach().clone()
    shuffled = origin.clone()
    ids = [tokenizer.convert_tokens_to_ids(f"{style}</w>") for style in moved]
    shuffled[ids] = origin[ids].mean(0) + 0.01 * torch.randn(len(ids), origin.shape[1])
    with torch.no_grad():
        tower.get_input_embeddings().weight.copy_(shuffled)
    together = apart()
    text_tower.spread(
        tower, tokenizer, captions.Captioner(art), features, project, bank, 12, lambda line: None, move=moved
    )
    assert apart() > 3 * together
    assert torch.equal(states(["a dog with a bus"]), plain)
    assert torch.equal(states(["a dog, ink style"]), hand)
    changed = (tower.get_input_embeddings().weight != shuffled).any(1).nonzero().flatten().tolist()
    assert changed == sorted(ids)


def test_a_recognizer_can_go_on_from_tensors(bank):
    torch.manual_seed(0)
    heads = {"objects": len(testbed.vocabulary()["objects"]), "style": len(HANDS) + len(artists.ARTISTS)}
    start = Recognizer("features", heads).state_dict()
    net = recognizers.train("features", heads, bank, 1, 0, lambda line: None, start_from=start)
    fresh = recognizers.train("features", heads, bank, 1, 3, lambda line: None)
    first = "stem.0.weight"
    assert (net.state_dict()[first] - start[first]).abs().max() < 2e-3, "one small step"
    assert (fresh.state_dict()[first] - start[first]).abs().max() > 2e-2
    reopened = opened("features", net.state_dict())
    assert reopened.asks["style"] == 11
