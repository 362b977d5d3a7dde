"""Tiers: the most of an attack that fits into a time, and what is said of the rest."""

import dataclasses
import json
from typing import Any

import pytest

from expunge import backbones
from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.core.query import Query, queries
from expunge.erasers.sld import SLD
from expunge.stages import attack, erase, tiers
from expunge.stages.tiers import FEWEST, PART, ROOM, Rate
from expunge.store import read_queries, read_run
from tiny import tiny_flux_pipeline, tiny_pipeline

CHURCH = [Concept(name="church")]
SD: dict[str, Any] = {"each_step": 2, "picture": 8}
"""A pair of predictions a step, and pictures of four steps."""
SECOND = Rate(forward=1.0, trained=3.0, text=0.1, drawn=1.0, bare=1.0)
ASKED = queries([("a church", "church"), ("the church", "church")], 20, 5, 3.0, 4)


def taken(built, asked: list[Query], rate: Rate = SECOND) -> float:
    """What an attack takes, counted apart from what is tested: images, evaluations, texts."""
    cost = built.cost(1, len(asked)) if type(built).__name__ != "Continuation" else built.foreseen(1, len(asked), 4, 2)
    images = sum(len(wishes) for wishes in built.needs(CHURCH).values()) + built.budget(1, len(asked))
    texts = built.reads(1, len({q.prompt for q in asked}))
    return rate.forward * (cost.forward + 8 * images) + rate.trained * cost.trained + rate.text * texts


@pytest.mark.parametrize("name", Catalog("attacks").entries())
@pytest.mark.parametrize("share", [2.0, 0.7, 0.3, 0.02, 0.001])
def test_no_attack_takes_more_than_its_budget_nor_less_than_it_could(name, share):
    own = attack.build(name, {})
    whole = taken(own, ASKED)
    if not whole:
        assert tiers.fitted(name, own, CHURCH, ASKED, 1e-6, SECOND, **SD).given_up == {}
        return
    seconds = share * whole / ROOM
    try:
        tier = tiers.fitted(name, own, CHURCH, ASKED, seconds, SECOND, **SD)
    except ExpungeError:
        lowest = dataclasses.replace(own, **({own.spends: 1} if own.spends else {}))
        one = ASKED if taken(own, ASKED[:1]) == whole else ASKED[:1]
        assert taken(lowest, one) > ROOM * seconds
        return
    assert taken(tier.attack, tier.queries) == pytest.approx(tier.seconds)
    assert tier.seconds <= ROOM * seconds * (1 + 1e-9)
    now = getattr(tier.attack, own.spends) if own.spends else 1
    assert {k: v for k, v in vars(tier.attack).items() if k != own.spends} == {
        k: v for k, v in vars(own).items() if k != own.spends
    }
    if share > 1:
        assert (tier.attack, tier.queries, tier.given_up) == (own, ASKED, {})
        return
    assert tier.given_up
    if "queries" in tier.given_up and len(tier.queries) >= FEWEST and own.spends and now == getattr(own, own.spends):
        assert taken(own, ASKED[: len(tier.queries) + 1]) > ROOM * seconds, "one query more does not fit"
    elif own.spends in tier.given_up and len(tier.queries) in (FEWEST, len(ASKED)):
        more = dataclasses.replace(tier.attack, **{own.spends: now + 1})
        assert taken(more, tier.queries) > ROOM * seconds, "one step more does not fit"


def test_queries_are_given_up_first_then_steps_and_never_all_of_either():
    p4d = attack.build("p4d", {"clip": ""})
    each = 4 * p4d.iterations  # a forward, and a forward and backward
    images = 8 * 8

    def fits(seconds: float):
        tier = tiers.fitted("p4d", p4d, CHURCH, ASKED, (seconds + images) / ROOM, SECOND, **SD)
        return tier.attack.iterations, len(tier.queries)

    assert fits(12 * each) == (3000, 12)
    assert fits(4 * each) == (1500, FEWEST), "half of the updates on the fewest queries"
    assert fits(8 * each / PART / 2) == (300, 4), "a tenth of them, on half of the fewest"
    assert fits(4 * 7) == (7, 1)
    with pytest.raises(ExpungeError, match=r"too little for one step of p4d on 1 query, which takes about 8[45]"):
        fits(3)


def test_what_costs_the_same_with_fewer_queries_keeps_them():
    tier = tiers.fitted("relearning", attack.build("relearning", {}), CHURCH, ASKED, (64 + 300) / ROOM, SECOND, **SD)
    assert tier.given_up == {"iterations": (500, 100)}
    assert tier.line() == "iterations 500 -> 100 (about 364 s)"
    bell = attack.build("ring-a-bell", {"templates": ["a {}"]})
    tier = tiers.fitted("ring-a-bell", bell, CHURCH, ASKED[:20], (200 * 50 + 2) / 10 / ROOM, SECOND, **SD)
    assert tier.given_up == {"generations": (3000, 50)}, "the same prompt with another seed is searched once"


def test_pictures_are_counted_as_the_model_ships_and_queries_as_they_ask():
    """On FLUX queries may ask for a pair, which no picture has; on others they may ask for none."""
    relearning, continuation = attack.build("relearning", {}), attack.build("continuation", {"share": 0.5})
    wanted = sum(len(wishes) for wishes in relearning.needs(CHURCH).values())
    for predictions, picture in ((2, 4), (1, 8)):
        costs = {"each_step": predictions, "picture": picture}
        tier = tiers.fitted("relearning", relearning, CHURCH, ASKED, 1e6, SECOND, **costs)
        assert tier.seconds == relearning.cost(1, 40).equivalents + picture * wanted
        tier = tiers.fitted("continuation", continuation, CHURCH, ASKED, 1e6, SECOND, **costs)
        assert tier.seconds == predictions * 2 * len(ASKED)


def test_the_first_seeds_of_every_prompt_and_every_target_stay():
    asked = queries([("a", "x"), ("b", "x"), ("c", "y")], 3, 0, 1.0, 1)
    names = [(q.prompt, q.seed) for q in asked]
    shown = [[names.index((q.prompt, q.seed)) for q in tiers.first(asked, n)] for n in (1, 2, 3, 4, 5, 9)]
    assert shown == [[0], [0, 6], [0, 3, 6], [0, 3, 6, 7], [0, 1, 3, 6, 7], list(range(9))]


@pytest.mark.parametrize("word", ["0m", "0s", "", "-1m", "10", "ten", "1d", "nanm", "1e3s"])
def test_a_budget_that_is_no_time_is_refused(word):
    with pytest.raises(ExpungeError, match="expected a time of more than nothing, such as 1m, 10m or 1h"):
        tiers.seconds_of(word)
    assert [tiers.seconds_of(w) for w in ("90s", "1.5m", "2h")] == [90, 90, 7200]


def test_a_rate_is_positive_and_counts_all_kinds(backbone):
    rate = tiers.measured(backbone, 2)
    assert min(rate) > 0
    assert SECOND.seconds(Cost(forward=2, trained=3), 10) == pytest.approx(2 + 9 + 1)


@pytest.mark.parametrize(("make", "pair"), [(tiny_pipeline, 2), (tiny_flux_pipeline, 2)])
def test_images_of_a_steered_model_are_timed_by_all_that_its_edit_asks_beside(make, pair, monkeypatch):
    """SLD's third prediction counts, and the pair counts once: an image's seconds are the evaluations that it makes."""
    backbone = backbones.of(make())

    def evaluations(work, times=3):
        before = backbone.cost
        work()
        return float((backbone.cost - before).forward)

    monkeypatch.setattr(tiers, "_timed", evaluations)
    edit = erase.run(backbone, "sld", SLD(warmup=0), [Concept(name="church")], [])
    query = Query(
        prompt="a church",
        label="church",
        seed=0,
        guidance=3.0,
        steps=2,
        true_cfg=4.0 if make is tiny_flux_pipeline else 1.0,
    )
    plain = tiers.measured(backbone, 1)
    with backbone.attached([edit]):
        rate, before = tiers.measured(backbone, 1), backbone.cost
        backbone.generate([query])
        made = (backbone.cost - before).forward
    assert rate.drawn * pair * query.steps == made == 3 * query.steps
    assert (rate.bare, rate.forward) == (plain.forward, 3 * plain.forward)
    assert plain.drawn == plain.bare == plain.forward
    begun = attack.build("continuation", {"share": 0.5})
    costs = {"each_step": pair, "picture": 0}
    tiers_of = [
        tiers.fitted("continuation", begun, CHURCH, [query], 1e6, one, **costs).seconds for one in (plain, rate)
    ]
    assert tiers_of[0] == tiers_of[1], "the original's steps are not steered"


def test_an_attack_within_a_budget_says_so_and_is_repeated_without_it(tmp_path, capsys, monkeypatch):
    words = ["attack", "random-tokens", "--target", "church", "--count", "3", "--query-steps", "2"]
    assert main([*words, "--out", str(tmp_path / "none"), "--budget", "0m"]) == 2
    assert "expected a time of more than nothing" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "none"), "--most", "0"]) == 2
    assert main([*words, "--out", str(tmp_path / "none"), "--budget", "0.000001s"]) == 2
    error = capsys.readouterr().err
    assert "too little for one step of random-tokens on 1 query" in error
    assert not (tmp_path / "none").exists()

    monkeypatch.setattr(tiers, "measured", lambda *_: SECOND)  # a machine on which three images take a second each
    assert main([*words, "--out", str(tmp_path / "a"), "--budget", "50s"]) == 0
    said = capsys.readouterr().err
    assert "--budget 50s: tries 8 -> 3 (about 36 s); the same again without it: --tries 3" in said
    assert main([*words, "--out", str(tmp_path / "b"), "--tries", "3"]) == 0
    first, again = (read_queries(tmp_path / name) for name in "ab")
    assert first.queries == again.queries
    assert first.about["tier"] == {"budget": "50s", "seconds": 36.0, "given_up": {"tries": [8, 3]}}
    assert "tier" not in again.about

    images = tmp_path / "images"
    assert main(["generate", "--queries", str(tmp_path / "a"), "--out", str(images), "--quiet"]) == 0
    assert read_run(images)["attack"]["tier"]["given_up"] == {"tries": [8, 3]}
    capsys.readouterr()
    assert (
        main(["measure", "esr-psr", "--images", str(images), "--target", "church", "--judge", "testbed:network=b"]) == 0
    )
    assert "testbed:network=b was asked by what made these images" in capsys.readouterr().err
    records = tmp_path / "records.jsonl"
    assert main(["measure", "esr-psr", "--images", str(images), "--target", "church", "--out", str(records)]) == 0
    assert "was asked" not in capsys.readouterr().err
    row = json.loads(records.read_text().splitlines()[0])
    assert row["provenance"]["attack"]["tier"]["budget"] == "50s"
