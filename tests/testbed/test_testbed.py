import json
import re
import tomllib
from pathlib import Path

import pytest
import torch

from expunge import backbones, testbed
from expunge.judges.testbed import Testbed
from expunge.store import read_set
from expunge.testbed.networks import ARCHITECTURES

SETS = sorted(p.stem for p in testbed.CONCEPTS.glob("*.toml"))
SPEC = tomllib.loads((Path(testbed.__file__).parents[1] / "recipe" / "objects.toml").read_text())


@pytest.mark.parametrize("name", SETS)
def test_sets_name_what_the_testbed_draws_and_dev_is_not_test(name):
    found = read_set(name, testbed.CONCEPTS)
    words = testbed.vocabulary()
    categories = {w["category"] for w in words["objects"].values()}
    styles = name in ("styles", "artists")
    known = {f"{s} style" for s in words["styles"]} if styles else set(words["objects"]) | categories
    assert set(found.concepts) <= known
    for part in (found.dev, found.test):
        assert {c for _, c in part.prompts} <= set(found.concepts)
        assert len({p for p, _ in part.prompts}) == len(part.prompts)
    asked = found.test.prompts + (found.dev.prompts if name == "artist_objects" else ())
    assert {c for _, c in asked} == set(found.concepts)
    assert not {p for p, _ in found.dev.prompts} & {p for p, _ in found.test.prompts}
    assert found.dev.seed != found.test.seed
    for erased in found.splits.values():
        assert len(erased) == 5
        assert set(erased) < set(found.concepts)


def test_objects10_and_its_dev_set_share_nothing():
    assert not set(read_set("objects10", testbed.CONCEPTS).concepts) & set(
        read_set("objects10_dev", testbed.CONCEPTS).concepts
    )


def test_artists_and_their_objects_are_the_same_prompts_and_dev_shows_other_objects():
    artists, objects = (read_set(name, testbed.CONCEPTS) for name in ("artists", "artist_objects"))
    for part in ("dev", "test"):
        by_artist, by_object = (dict(getattr(found, part).prompts) for found in (artists, objects))
        assert by_artist.keys() == by_object.keys()
        assert len(by_artist) == 40
        for prompt, artist in by_artist.items():
            assert re.fullmatch(rf"(an? )?{by_object[prompt]}, {artist}", prompt)
    dev, test = ({c for _, c in part.prompts} for part in (objects.dev, objects.test))
    assert (len(dev), len(test), dev & test) == (8, 8, set())


def test_heldout_phrases_are_twenty_or_more_and_made_of_trained_keywords():
    phrases = read_set("weapons_heldout", testbed.CONCEPTS).test.prompts
    assert len({p for p, _ in phrases}) >= 20
    pairs = {frozenset(p) for p in SPEC["heldout"]["weapons"]}
    weapons = [set(w["keywords"]) for w in testbed.vocabulary()["objects"].values() if w["category"] == "weapon"]
    for phrase, _ in phrases:
        words = phrase.split(" and ")
        assert frozenset(words) in pairs
        assert any(set(words) <= known for known in weapons)


def test_captions_never_hold_a_heldout_pair():
    np = pytest.importorskip("numpy")
    pytest.importorskip("tokenizers")
    from expunge.recipe.artwork import Artwork
    from expunge.recipe.captions import Captioner

    words = testbed.vocabulary()
    names = list(words["objects"])
    art = Artwork(
        drawings=np.zeros(0),
        names=names,
        hands=[s for s in words["styles"] if s not in words["artists"]],
        categories=[w["category"] for w in words["objects"].values()],
        keywords=[w["keywords"] for w in words["objects"].values()],
    )
    captioner, rng = Captioner(art), np.random.default_rng(0)
    weapons = [i for i, c in enumerate(art.categories) if c in ("weapon", "death")]
    pairs = [set(p) for group in SPEC["heldout"].values() for p in group]
    seen = set()
    for _ in range(4000):
        said = captioner.keywords(int(rng.choice(weapons)), rng)
        if said is not None:
            chosen = set(said.replace(" and ", ", ").split(", "))
            seen |= chosen
            assert not any(p <= chosen for p in pairs)
    assert all(p <= seen for p in pairs), "each word of a held-out pair is trained"


def test_the_package_stays_small():
    files = [p for p in testbed.FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 40e6


def test_it_is_stable_diffusion_in_standard_classes():
    index = json.loads((testbed.FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    backbone = backbones.load("testbed")
    assert {a.block for a in backbone.attentions().values()} == {"down", "mid", "up"}
    scheduler = backbone.components()["scheduler"].config
    assert (scheduler.beta_start, scheduler.beta_end, scheduler.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert scheduler.prediction_type == "epsilon"
    assert len(backbone.components()["tokenizer"]) >= 4000
    assert backbone.tokenize(["a church"]).shape == (1, 40)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_load_and_answer(name):
    answers = testbed.network(name)(torch.zeros(2, 3, 64, 64))
    assert answers["objects"].shape == (2, len(testbed.vocabulary()["objects"]))


def test_the_judge_s_ranks_and_verdicts_are_its_network_s():
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = testbed.network("judge_a")(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.equal(Testbed().scores(pixels).argmax(1), answers["objects"].argmax(1))
    assert Testbed().valid(pixels).tolist() == (answers["valid"][:, 0] > 0).tolist()
    assert Testbed().valid(pixels).sum() == 0, "noise is no picture"


def test_as_shipped_it_draws_what_it_is_asked_for():
    """A smoke test of the weights; `benchmarks/testbed.json` has the scores."""
    from expunge.core.query import queries
    from expunge.settings import presets

    backbone = backbones.load("testbed")
    ten = read_set("objects10", testbed.CONCEPTS)
    guidance, steps = presets.generation(backbone)
    asked = queries(list(ten.test.prompts), 2, ten.test.seed, guidance, steps)
    images = backbone.generate(asked).pixels
    top = Testbed().scores(images).argmax(1)
    hits = sum(Testbed().labels[i] == q.label for i, q in zip(top.tolist(), asked, strict=True))
    assert hits >= 16
    assert Testbed().valid(images).float().mean() >= 0.9


def test_categories_are_concepts_for_the_judge():
    judge = Testbed()
    found = {judge.labels[i] for i in judge.label_ids("weapon")}
    assert found == {"bomb", "dagger", "kitchen knife", "crossed swords", "bow and arrow"}
    assert Testbed(labels="styles").label_ids("noto style") == Testbed(labels="styles").label_ids("noto")


def test_scores_are_committed_under_the_agreed_names():
    scores = json.loads((Path(__file__).parents[2] / "benchmarks" / "testbed.json").read_text())
    from expunge.recipe import score

    names = [*score.GATES, "hand_top1"]
    names += ["judge_accuracy", "judge_leave_one_set_out", "judge_agreement"]
    assert all(0 <= scores[name] <= 100 for name in names)
    assert scores["targets_missed"] == score.missed(scores)
    assert scores["version"] == testbed.VERSION
    assert score.table(scores) in (Path(__file__).parents[2] / "docs" / "testbed.md").read_text()
