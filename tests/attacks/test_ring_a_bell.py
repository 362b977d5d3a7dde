"""Ring-A-Bell against a direction and distances computed with the text encoder itself."""

import json

import pytest
import torch

from expunge.attacks.ring_a_bell import Reader, RingABell
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.knowledge import Knowledge
from expunge.core.query import Query
from expunge.core.victim import GrayBox

TASK = Task(targets=[Concept(name="church")], seed=1)
SMALL = RingABell(templates=("a {}", "my {}"), neutral="dog", population=12, generations=4, k=5, eta=2.0, batch=5)
QUERY = Query(prompt="a church", label="church", seed=3, guidance=3.0, steps=2)


def lent(backbone):
    """The text encoder, and a model that is never to be asked."""
    return GrayBox(backbone, lambda queries: pytest.fail("an image is asked for"), {}, 0)


def read(backbone, text):
    """A text's encoding, by the classes of transformers."""
    ids = backbone.component("tokenizer")(text, padding="max_length", truncation=True, max_length=16).input_ids
    with torch.no_grad():
        return backbone.component("text_encoder")(torch.tensor([ids])).last_hidden_state[0]


def moved(backbone):
    """Where the prompt of `QUERY` should be, with `SMALL`."""
    pairs = [("a church", "a dog"), ("my church", "my dog")]
    c = sum(read(backbone, one) - read(backbone, other) for one, other in pairs) / 2
    return read(backbone, "a church") + 2.0 * c


@pytest.fixture
def spied(backbone, monkeypatch):
    """Every text that the text encoder is asked for, in the batches that it is asked in."""
    texts, encode = [], backbone.encode
    monkeypatch.setattr(
        backbone, "encode", lambda prompts, *rest: (texts.append(list(prompts)), encode(prompts, *rest))[1]
    )
    return texts


@pytest.mark.parametrize("edited", [False, True])
def test_the_direction_is_the_mean_difference_of_the_victim_s_own_encodings(backbone, edited):
    names = backbone.group("text-mlp")
    edit = backbone.edit_of({n: 1.5 * t for n, t in backbone.tensors(names).items()})
    original = SMALL.direction(lent(backbone), TASK.targets[0])
    with backbone.attached([edit] if edited else []):
        found = SMALL.direction(lent(backbone), TASK.targets[0])
        wanted = (moved(backbone) - read(backbone, "a church")) / 2.0
        own = RingABell(pairs=("dog church | dog", "church | a "))
        apart = own.direction(lent(backbone), TASK.targets[0])
        by_hand = (
            read(backbone, "dog church") - read(backbone, "dog") + read(backbone, "church") - read(backbone, "a")
        ) / 2
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(apart, by_hand, atol=1e-5)
    assert torch.allclose(found, original, atol=1e-5) is not edited


def test_the_answer_is_the_nearest_of_all_texts_that_were_read_as_they_are_read(backbone, spied):
    (answer,) = SMALL.provoke(lent(backbone), TASK, [QUERY]).queries
    candidates = {text for batch in spied[3:] for text in batch}
    assert spied[:3] == [["a church", "my church"], ["a dog", "my dog"], ["a church"]]
    goal = moved(backbone)
    distances = {text: float((read(backbone, text) - goal).square().sum()) for text in candidates}
    best = min(distances.values())
    assert distances[answer.prompt] == pytest.approx(best, rel=1e-5)
    assert best < sorted(distances.values())[len(distances) // 2]
    assert (answer.label, answer.seed, answer.guidance, answer.steps) == ("church", 3, 3.0, 2)


def test_no_more_texts_are_read_than_the_budget_and_none_in_larger_batches(backbone, spied):
    other = Query(prompt="my church", label="church", seed=4, guidance=3.0, steps=2)
    SMALL.provoke(lent(backbone), TASK, [QUERY, other])
    searched = spied[4:]
    assert 2 * 12 < sum(map(len, searched)) <= 2 * 12 * 4
    assert max(map(len, searched)) == 5
    assert len(searched[0]) == len(searched[2]) == 5, "prompts share batches"


def test_tokens_are_scored_by_what_their_text_is_read_as(backbone):
    """``d`` and ``o`` and ``g`` are three tokens, and their text is one."""
    words = backbone.component("tokenizer").get_vocab()
    spelled = torch.tensor([[words["d"], words["o"], words["g</w>"]]])
    assert backbone.spell(spelled) == ["dog"]
    assert backbone.tokenize(["dog"])[0, 1] == words["dog</w>"], "tokenized again it is another"
    goals = torch.stack([read(backbone, "church"), read(backbone, "dog")])
    reader = Reader(lent(backbone), goals, 4)
    far, near = reader([spelled, spelled])
    assert float(far[0]) == pytest.approx(float((goals[0] - goals[1]).square().sum()), rel=1e-5)
    assert float(near[0]) == pytest.approx(0.0, abs=1e-6)


def test_a_text_that_was_just_read_is_not_read_again(backbone, spied):
    words = backbone.component("tokenizer").get_vocab()
    one, other = torch.tensor([[words["a</w>"]]]), torch.tensor([[words["b</w>"]]])
    reader = Reader(lent(backbone), torch.stack([read(backbone, "a"), read(backbone, "b")]), 4)
    first = reader([torch.cat([one, one, other]), one])
    again = reader([torch.cat([other, one]), other])
    assert spied == [["a", "b", "a"], ["b"]]
    assert [float(x) for x in again[0]] == [float(first[0][2]), float(first[0][0])]
    assert float(again[1]) == pytest.approx(0.0, abs=1e-6)
    reader([other, one])
    reader([one, other])
    assert spied[2:] == [["a"], ["a", "b"]], "of one generation before, no more is kept"


@pytest.mark.parametrize("search", ["genetic", "random"])
def test_a_prompt_of_one_token_is_found_again(backbone, search):
    attack = RingABell(templates=("a {}",), k=1, eta=0.0, population=40, generations=20, mutation=1.0, search=search)
    asked = Query(prompt="dog", label="church", seed=0, guidance=3.0, steps=2)
    (answer,) = attack.provoke(lent(backbone), TASK, [asked]).queries
    assert answer.prompt == "dog"


def test_heredity_comes_nearer_than_chance_at_the_same_cost(backbone):
    goal = moved(backbone)
    lost = []
    for search in ("genetic", "random"):
        attack = RingABell(
            templates=("a {}", "my {}"), neutral="dog", population=30, generations=25, k=6, eta=2.0, search=search
        )
        (answer,) = attack.provoke(lent(backbone), TASK, [QUERY]).queries
        lost.append(float((read(backbone, answer.prompt) - goal).square().sum()))
    assert lost[0] < lost[1]


def test_generations_do_not_die_out(backbone, monkeypatch):
    """The better half is half of the population's size, however many children the last generation had."""
    sizes, read = [], Reader.__call__
    monkeypatch.setattr(Reader, "__call__", lambda self, some: (sizes.append(len(some[0])), read(self, some))[1])
    RingABell(templates=("a {}",), population=10, generations=60, k=2).provoke(lent(backbone), TASK, [QUERY])
    assert len(sizes) == 60
    assert (min(sizes) >= 5, max(sizes)) == (True, 10)
    assert sum(sizes[-20:]) > 20 * 7


def test_each_prompt_has_its_own_text_and_others_are_left_out(backbone):
    asked = [QUERY, Query(prompt="a church", label="church", seed=9, guidance=1.0, steps=2)]
    asked += [Query(prompt="my church", label="church", seed=3, guidance=3.0, steps=2)]
    asked += [Query(prompt="a dog", label="dog", seed=3, guidance=3.0, steps=2)]
    made = SMALL.provoke(lent(backbone), TASK, asked).queries
    assert [(q.label, q.seed, q.guidance) for q in made] == [("church", 3, 3.0), ("church", 9, 1.0), ("church", 3, 3.0)]
    assert made[0].prompt == made[1].prompt != made[2].prompt
    alone = SMALL.provoke(lent(backbone), TASK, asked[2:3]).queries
    assert alone[0].prompt == made[2].prompt, "whatever is searched beside it"


def test_tokens_are_printable_texts_of_their_own(backbone):
    from expunge.attacks.ring_a_bell import alleles

    usable = alleles(lent(backbone)).tolist()
    tokenizer = backbone.component("tokenizer")
    assert not set(usable) & set(tokenizer.all_special_ids)
    assert len(usable) == len(tokenizer) - len(set(tokenizer.all_special_ids))
    assert all(text.strip() and text.isprintable() for text in backbone.spell(torch.tensor(usable)[:, None]))


def test_what_cannot_be_searched_is_refused(backbone):
    for settings, message in (
        ({"population": 0}, "population is 0: expected 1 or more"),
        ({"generations": 0}, "generations is 0: expected 1 or more"),
        ({"mutation": 1.5}, "mutation is 1.5: expected a share"),
        ({"crossover": -0.1}, "crossover is -0.1: expected a share"),
        ({"templates": ("a thing",)}, "has not one {}"),
        ({"pairs": ("a church",)}, "pair 'a church' is none: expected 'a text with the concept | the same"),
        ({"pairs": (" | dog",)}, r"pair ' \| dog' is none"),
    ):
        with pytest.raises(ExpungeError, match=message):
            RingABell(**settings)
    two = Task(targets=[Concept(name="church"), Concept(name="dog")])
    for settings, task, message in (
        ({"templates": ("a {}",), "neutral": "church"}, TASK, "reads 'a church' and 'a church' alike"),
        ({"templates": ("a {}",), "k": 17}, TASK, "k is 17: expected 16 or less"),
        ({"templates": ("a {} abcdefghijklmnopqrst",)}, TASK, "is not read to its end"),
        ({"pairs": ("a church | a dog",)}, two, "pairs for several targets"),
    ):
        with pytest.raises(ExpungeError, match=message) as error:
            RingABell(**settings).provoke(lent(backbone), task, [QUERY])
        assert "\n" not in str(error.value)


def test_defaults_are_the_authors_and_settings_say_what_they_tell():
    attack = RingABell()
    assert (attack.population, attack.generations, attack.mutation, attack.crossover) == (200, 3000, 0.25, 0.5)
    assert (attack.eta, attack.k, attack.access, attack.budget(3, 9)) == (3.0, 16, "text encoder", 0)
    assert attack.knowledge() == Knowledge(phrases=attack.templates, words=("thing",))
    assert RingABell(pairs=("a | b",)).knowledge() == Knowledge(words=("a | b",))
    assert RingABell(neutral="").knowledge() == Knowledge(phrases=attack.templates)


def test_from_the_command_line(folder, tmp_path, capsys):
    quick = ["--population", "4", "--generations", "2", "--k", "4", "--templates", "a {}", "--neutral", "dog"]
    words = ["attack", "ring-a-bell", "--target", "church", "--model", str(folder), *quick, "--count", "2"]
    assert main([*words, "--out", str(tmp_path / "q"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)["about"]
    assert (about["access"], about["cost"]) == ("text encoder", {"forward": 0, "trained": 0})
    assert about["knowledge"] == {"phrases": ["a {}"], "words": ["dog"]}
    queries = json.loads((tmp_path / "q" / "queries.json").read_text())["queries"]
    assert len(queries) == 2
    assert queries[0]["prompt"] == queries[1]["prompt"] != "image of church"
