"""SneakyPrompt against models that are functions of the prompt, a judge of brightness, and the testbed's own CLIP."""

import dataclasses
import json
import string

import pytest
import torch

from expunge.attacks import sneaky_prompt
from expunge.attacks.sneaky_prompt import SneakyPrompt, disjoint, entries, exchanged
from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.query import Query
from expunge.core.victim import BlackBox
from expunge.pretrained.clip import clip
from expunge.testbed.clip import image_vectors, text_vectors

TASK = Task(targets=[Concept(name="church")], seed=1)
QUERY = Query(prompt="image of a church", label="church", seed=3, guidance=3.0, steps=2)
LONG = dataclasses.replace(QUERY, prompt="a church by the river and seven more words")


class Brightness(Judge):
    """Is as sure of a church as an image is bright."""

    name = "brightness"
    labels = ("church",)

    def scores(self, images):
        return self.confidence(images, "church")[:, None]

    def confidence(self, images, concept):
        self.label_ids(concept)
        return images.float().mean((1, 2, 3)) / 255


def grey(level):
    """An image of a brightness, 0 to 1."""
    return torch.full((1, 64, 64, 3), round(255 * level), dtype=torch.uint8)


class Asked:
    """A model: the images of its function of a prompt and of how often it was asked, and the prompts that it got."""

    def __init__(self, drawn, budget=1000):
        self.prompts, self.sizes = [], []
        self.box = BlackBox(self._draw, {"brightness": Brightness()}, budget)
        self._drawn = drawn

    def _draw(self, queries):
        self.sizes.append(len(queries))
        images = []
        for query in queries:
            self.prompts.append(query.prompt)
            images.append(self._drawn(query.prompt, len(self.prompts)))
        return torch.cat(images)


def quick(**settings):
    return SneakyPrompt(**{"judge": "brightness", "reward": "judge", "longest": 3, "size": 6, "limit": 6, **settings})


def word_of(prompt):
    """What stands where the church stood."""
    return prompt.removeprefix("image of a ")


@pytest.fixture
def rewards(monkeypatch):
    """Every reward that a policy learned from."""
    seen, real = [], sneaky_prompt.reinforce
    monkeypatch.setattr(
        sneaky_prompt, "reinforce", lambda written, reward: (seen.append(reward), real(written, reward))[1]
    )
    return seen


def test_a_search_asks_for_its_limit_and_no_more(rewards):
    model = Asked(lambda *_: grey(0.1), budget=quick().budget(1, 2))
    other = dataclasses.replace(QUERY, seed=4)
    made = quick().provoke(model.box, TASK, [QUERY, other, dataclasses.replace(QUERY, label="dog")]).queries
    assert model.box.asked == model.box.budget == len(model.prompts) == 12
    assert model.sizes == [2] * 6, "queries are asked side by side"
    assert [(q.seed, q.label) for q in made] == [(3, "church"), (4, "church")]
    assert len(set(model.prompts)) > 6
    assert rewards == pytest.approx([26 / 255] * 10), "from all but the last, after which nothing is drawn"
    for prompt in model.prompts:
        assert prompt.startswith("image of a ")
        assert "church" not in prompt
        assert 3 <= len(word_of(prompt)) <= 9, "three entries of up to three letters"


def test_a_search_ends_with_success_and_answers_with_it(rewards):
    model = Asked(lambda _, n: grey(0.7 if n == 3 else 0.1 * n))
    (answer,) = quick().provoke(model.box, TASK, [QUERY]).queries
    assert model.box.asked == 3
    assert answer == dataclasses.replace(QUERY, prompt=model.prompts[2])


def test_without_success_the_best_reward_is_taken():
    levels = [0.1, 0.3, 0.45, 0.2, 0.4, 0.0]
    model = Asked(lambda _, n: grey(levels[n - 1]))
    (answer,) = quick().provoke(model.box, TASK, [QUERY]).queries
    assert answer.prompt == model.prompts[2]


def test_a_reward_by_clip_is_the_image_s_cosine_to_the_prompt_as_it_was(rewards):
    generator = torch.Generator().manual_seed(0)
    noise = (
        torch.randint(0, 256, (30, 4, 4, 3), generator=generator)
        .repeat_interleave(16, 1)
        .repeat_interleave(16, 2)
        .byte()
    )
    cosines = (image_vectors(noise) @ text_vectors([QUERY.prompt]).T)[:, 0]
    order = cosines.argsort()
    pick = [int(order[0]), int(order[15]), int(order[-1]), int(order[-2])]
    assert cosines[pick[2]] > cosines[pick[3]] > 0
    model = Asked(lambda _, n: noise[pick[n - 1] : pick[n - 1] + 1])
    attack = quick(reward="clip", limit=4, sure=1.0)
    (answer,) = attack.provoke(model.box, TASK, [QUERY]).queries
    assert rewards == pytest.approx([max(0.0, float(cosines[i])) for i in pick[:3]], abs=1e-5)
    assert answer.prompt == model.prompts[2]
    bar = (float(cosines[pick[2]]) + float(cosines[pick[3]])) / 2
    alone = Asked(lambda _, n: noise[pick[n - 1] : pick[n - 1] + 1])
    (answer,) = quick(reward="clip", limit=4, judge="", similar=bar).provoke(alone.box, TASK, [QUERY]).queries
    assert (alone.box.asked, answer.prompt) == (3, alone.prompts[2]), "the authors': similar enough is a success"


def test_a_blocked_prompt_costs_a_query_and_no_image_and_then_another_word_is_replaced(rewards):
    model = Asked(lambda *_: grey(0.1))
    attack = quick(blocked=("River", "seven"), patience=2, replaced=0.2, limit=5)
    answer = attack.provoke(model.box, TASK, [LONG])
    assert model.box.asked == 0
    assert answer.queries == [LONG], "no prompt that was blocked is an answer"
    assert rewards == pytest.approx([-n / 5 / 10 for n in (1, 2, 3, 4)])


def test_the_word_that_is_replaced_next_is_the_one_that_the_concept_lives_by(monkeypatch):
    kept = [w for w in LONG.prompt.split() if w != "church"]
    without = [LONG.prompt.replace(w, "", 1) for w in kept]
    concept, *left = text_vectors(["church", *without])
    alike = [float(concept @ text) for text in left]
    next_word = kept[alike.index(min(alike))]
    tried, exchange = [], sneaky_prompt.exchanged

    def seen(prompt, slots, words):
        tried.append([prompt[start:end] for start, end in slots])
        return exchange(prompt, slots, words)

    monkeypatch.setattr(sneaky_prompt, "exchanged", seen)
    model = Asked(lambda *_: grey(0.1))
    quick(blocked=tuple(kept), patience=2, replaced=0.3, limit=6).provoke(model.box, TASK, [LONG])
    both = [slots for slots in tried if len(slots) == 2]
    expected = sorted(["church", next_word], key=LONG.prompt.index)
    assert len(both) == 4
    assert all(slots == expected for slots in both), "two of nine words, and a third would be too many"
    tried.clear()
    quick(blocked=tuple(kept), patience=2, replaced=0.2, limit=6).provoke(model.box, TASK, [LONG])
    assert all(len(slots) == 1 for slots in tried)


def test_a_prompt_that_spells_the_word_again_is_blocked():
    own = clip("testbed")
    usable = entries(own, ("church", "Dog"), 5)
    assert len(usable) == len(set(usable)) > 100
    assert all(w.isascii() and w.isalpha() and w == w.lower() and len(w) <= 5 for w in usable)
    assert not any("dog" in w for w in usable)
    assert "dog" in entries(own, ("church",), 5)
    model = Asked(lambda *_: grey(0.1))
    attack = quick(longest=1, subwords=1, words=("a",), limit=60, replaced=0.01, search="random")
    attack.provoke(model.box, TASK, [dataclasses.replace(QUERY, prompt="b a")])
    assert model.box.asked == 60, "no entry holds the word"
    own_letters = quick(longest=1, subwords=1, blocked=tuple("abcdefghijklm"), limit=60, replaced=0.01, search="random")
    model = Asked(lambda *_: grey(0.1))
    own_letters.provoke(model.box, TASK, [dataclasses.replace(QUERY, prompt="church")])
    assert 10 < model.box.asked < 50
    assert set(model.prompts) <= set("nopqrstuvwxyz")


def test_a_policy_learns_what_is_rewarded_and_chance_does_not(rewards):
    letters = string.ascii_lowercase

    def drawn(prompt, _):
        return grey(0.02 + 0.9 * letters.index(prompt[-1]) / 25)

    last = {}
    for search in ("policy", "random"):
        model = Asked(drawn)
        quick(longest=1, subwords=1, limit=120, sure=1.0, size=30, search=search).provoke(model.box, TASK, [QUERY])
        scores = [letters.index(prompt[-1]) / 25 for prompt in model.prompts]
        last[search] = sum(scores[-40:]) / 40
        assert len(rewards) == 119, "chance learns from none"
    assert last["policy"] > last["random"] + 0.15


def test_what_is_searched_beside_it_changes_nothing_and_the_seed_does():
    def drawn(prompt, _):
        return grey(0.4 * (sum(map(ord, prompt)) % 97) / 97)

    asked = [QUERY, dataclasses.replace(QUERY, seed=4), LONG]
    prompts = [
        [
            q.prompt
            for q in quick(batch=batch).provoke(Asked(drawn).box, dataclasses.replace(TASK, seed=seed), some).queries
        ]
        for batch, seed, some in ((8, 1, asked), (1, 1, asked), (8, 2, asked), (8, 1, asked[1:2]))
    ]
    assert prompts[0] == prompts[1]
    assert prompts[0] != prompts[2]
    assert prompts[0][1:2] == prompts[3]
    assert prompts[0][0] != prompts[0][1], "each seed is searched for itself"


def test_spans_and_slots():
    assert disjoint([(5, 9), (0, 3), (2, 4), (0, 2)]) == [(0, 3), (5, 9)]
    assert exchanged("a church by a church.", [(2, 8), (14, 20)], ["xy", "z"]) == "a xy by a z."
    model = Asked(lambda *_: grey(0.1))
    prompt = "A Church, not a churchyard or church"
    quick(limit=1).provoke(model.box, TASK, [dataclasses.replace(QUERY, prompt=prompt)])
    before, between, after = model.prompts[0].partition(", not a churchyard or ")
    assert between
    assert before.startswith("A ")
    assert all(3 <= len(word) <= 9 for word in (before[2:], after))


def test_what_cannot_be_searched_is_refused_before_an_image_is_asked_for():
    for settings, message in (
        ({"limit": 0}, "limit is 0: expected 1 or more"),
        ({"lr": 0.0}, r"lr is 0\.0: expected a positive number"),
        ({"replaced": 1.5}, r"replaced is 1\.5: expected more than 0, up to 1"),
        ({"judge": ""}, "reward is the judge's, and there is none"),
        ({"words": (" ",)}, "a word of sneaky-prompt is empty"),
    ):
        with pytest.raises(ExpungeError, match=message):
            quick(**settings)
    model = Asked(lambda *_: grey(0.1))
    flurb = Task(targets=[Concept(name="flurb")])
    unnamed = dataclasses.replace(QUERY, prompt="a building")
    for attack, task, query, message in (
        (
            quick(),
            flurb,
            dataclasses.replace(QUERY, label="flurb", prompt="a flurb"),
            "unknown concept for judge 'brightness'",
        ),
        (quick(), TASK, unnamed, "prompt 'a building' names none of church: expected one to replace"),
        (quick(words=("steeple", "spire")), TASK, QUERY, "names none of steeple, spire"),
        (quick(judge="nobody"), TASK, QUERY, "asks the oracle 'nobody'"),
        (quick(clip="/nowhere"), TASK, QUERY, "no CLIP '/nowhere'"),
        (quick(longest=1, words=tuple(string.ascii_lowercase)), TASK, QUERY, "no word of up to 1 letters"),
    ):
        with pytest.raises(ExpungeError, match=message) as error:
            attack.provoke(model.box, task, [QUERY, query] if task is TASK else [query])
        assert "\n" not in str(error.value)
    assert model.box.asked == 0
    with pytest.raises(ExpungeError, match="unknown concept for judge 'testbed'"):
        Catalog("judges").open("testbed:network=b").label_ids("flurb")


def test_defaults_are_the_paper_s_and_its_judge_is_not_the_one_that_reports():
    attack = SneakyPrompt()
    assert (attack.limit, attack.subwords, attack.longest, attack.lr, attack.size) == (60, 3, 9, 0.1, 30)
    assert (attack.reward, attack.similar, attack.patience, attack.replaced) == ("clip", 0.26, 5, 0.3)
    assert (attack.access, attack.budget(2, 5)) == ("queries", 300)
    assert attack.knowledge().oracles == ("testbed:network=b",)
    assert SneakyPrompt(judge="").knowledge().oracles == ()


def test_from_the_command_line(folder, tmp_path, capsys):
    words = ["attack", "sneaky-prompt", "--target", "church", "--model", str(folder), "--limit", "2", "--sure", "1"]
    words += ["--longest", "3", "--count", "1", "--query-steps", "2", "--json"]
    assert main([*words, "--out", str(tmp_path / "q")]) == 0
    about = json.loads(capsys.readouterr().out)["about"]
    assert (about["access"], about["oracles"]) == ("queries", ["testbed:network=b"])
    assert about["budget"] == {"images": 2, "asked": 2}
    assert about["cost"] == {"forward": 2 * 2 * 2, "trained": 0}
    (query,) = json.loads((tmp_path / "q" / "queries.json").read_text())["queries"]
    assert query["prompt"].startswith("image of ")
    assert "church" not in query["prompt"]
    assert main([*words, "--words", "spire", "--out", str(tmp_path / "x")]) == 2
    assert "names none of spire" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
