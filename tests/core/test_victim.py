"""What an attack holds: nothing that its access does not have, and a budget that is kept."""

import dataclasses
import types

import pytest
import torch

from expunge.core.attack import Provocation
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.query import LearnedWord, Query, Start
from expunge.core.victim import BlackBox, GrayBox, WhiteBox, victim

QUERY = Query(prompt="a church", label="church", seed=3, guidance=3.0, steps=2)


def held(backbone, access, budget=4):
    def draw(asked):
        return torch.cat([backbone.generate([q]).pixels for q in asked])

    return victim(access, backbone, draw, {"testbed": Catalog("judges").open("testbed")}, budget)


def reachable(thing, seen=None):
    """All that an object's attributes lead to, private ones too, and what containers hold; not what functions enclose."""
    seen = {} if seen is None else seen
    if id(thing) in seen or isinstance(thing, str | int | float | type | types.ModuleType | torch.dtype | None):
        return seen
    seen[id(thing)] = thing
    if isinstance(thing, dict | list | tuple | set):
        for part in thing.values() if isinstance(thing, dict) else thing:
            reachable(part, seen)
        return seen
    reachable(getattr(thing, "__self__", None), seen)  # the owner of a bound method
    reachable(getattr(thing, "__dict__", {}), seen)
    return seen


@pytest.mark.parametrize(("access", "kind"), [("queries", BlackBox), ("text encoder", GrayBox)])
def test_what_an_attack_has_no_access_to_is_out_of_its_reach(backbone, access, kind):
    lent = held(backbone, access)
    assert type(lent) is kind
    parts = reachable(lent).values()
    assert not any(isinstance(part, Backbone | Judge | torch.nn.Module | torch.Tensor) for part in parts)
    methods = {name for name in dir(lent) if not name.startswith("_")}
    ask = {"images", "verdicts", "budget", "asked", "learned_words"}
    text = {"tokenize", "spell", "cut", "end", "embed", "encode", "encode_each", "encode_learned", "unconditional"}
    assert methods == (ask if kind is BlackBox else ask | text | {"vocabulary", "random_texts"})
    for private in ("weights", "predict", "tensors", "components"):
        with pytest.raises(AttributeError):
            getattr(lent, private)


def test_whoever_holds_everything_reaches_the_model(backbone):
    lent = held(backbone, "white box")
    assert isinstance(lent, WhiteBox)
    assert lent.backbone is backbone
    assert any(isinstance(part, Backbone) for part in reachable(lent).values())


def test_a_text_encoder_does_what_the_backbone_s_does_and_nothing_else(backbone):
    lent = held(backbone, "text encoder")
    ids = backbone.tokenize(["a dog", "church"])
    assert torch.equal(lent.tokenize(["a dog", "church"]), ids)
    assert torch.equal(lent.end(ids), backbone.end(ids))
    assert torch.equal(lent.embed(ids), backbone.embed(ids))
    assert lent.vocabulary == backbone.vocabulary
    assert lent.cut(["dog"]) == [""]
    assert lent.spell(ids) == backbone.spell(ids) == ["a dog", "church"]
    assert torch.equal(lent.unconditional().embeds, backbone.encode([""]).embeds)
    drawn = [m.random_texts(2, torch.Generator().manual_seed(1)) for m in (lent, backbone)]
    assert torch.equal(*drawn)
    assert torch.equal(lent.encode_each(["dog", "dog"]).embeds, backbone.encode(["dog", "dog"]).embeds)
    vectors = backbone.embed(ids)[0, 1:2].clone().requires_grad_(True)
    read = lent.encode_learned(["a <w>"], "<w>", vectors)
    (gradient,) = torch.autograd.grad(read.embeds.sum(), vectors)
    assert gradient.abs().sum() > 0, "gradients pass through the text"
    with pytest.raises(ExpungeError, match="asks a text encoder for 'weights': expected one of cut, embed"):
        lent._text("weights")


def test_images_are_counted_and_those_beyond_the_budget_are_not_made(backbone):
    lent = held(backbone, "queries", budget=3)
    pixels = lent.images([QUERY, dataclasses.replace(QUERY, seed=4)])
    assert torch.equal(pixels[:1], backbone.generate([QUERY]).pixels)
    before = backbone.cost
    with pytest.raises(
        ExpungeError, match="an attack asks for 2 images after 2: expected no more than its budget, 3"
    ) as error:
        lent.images([QUERY, QUERY])
    assert "\n" not in str(error.value)
    assert (lent.asked, backbone.cost) == (2, before)
    assert len(lent.images([QUERY])) == 1


def test_words_that_are_in_no_vocabulary_need_the_text_encoder(backbone):
    word = LearnedWord(word="<w>", vectors=backbone.embed(backbone.tokenize(["dog"]))[0, 1:2].detach())
    query = dataclasses.replace(QUERY, prompt="a <w>", learned=word)
    with pytest.raises(ExpungeError, match="'a <w>' holds a learned word"):
        held(backbone, "queries").images([query])
    assert held(backbone, "text encoder").images([query]).shape == (1, 16, 16, 3)
    pixels = backbone.generate([QUERY]).pixels[0]
    redrawn = dataclasses.replace(QUERY, start=Start(image=pixels, strength=0.5))
    assert held(backbone, "queries").images([redrawn]).shape == (1, 16, 16, 3)
    inside = dataclasses.replace(QUERY, start=Start(image=backbone.noise(0)[0], strength=0.5))
    with pytest.raises(ExpungeError, match="'a church' holds latents: expected words, and perhaps an image"):
        held(backbone, "queries").images([inside])


def test_an_oracle_is_the_judge_that_it_names(backbone):
    lent, judge = held(backbone, "queries"), Catalog("judges").open("testbed")
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lent.verdicts(pixels, "church"), judge.confidence(pixels, "church"))
    assert torch.equal(lent.verdicts(pixels, "dog", "testbed"), judge.confidence(pixels, "dog"))
    with pytest.raises(
        ExpungeError, match=r"asks the oracle 'imagenet': expected one that its knowledge names \(testbed\)"
    ):
        lent.verdicts(pixels, "church", "imagenet")
    alone = victim("queries", backbone, lambda asked: pixels, {}, 0)
    with pytest.raises(ExpungeError, match=r"names \(none\)"):
        alone.verdicts(pixels, "church")
    with pytest.raises(ExpungeError, match="access 'all': expected white box, text encoder or queries"):
        victim("all", backbone, lambda asked: pixels, {}, 0)


def test_a_provocation_names_a_precision_and_no_key():
    assert Provocation(queries=[QUERY], dtype="bfloat16").dtype == "bfloat16"
    for odd in ("int8", "half precision", "nn"):
        with pytest.raises(ExpungeError, match=f"precision to '{odd}': expected one such as float16"):
            Provocation(queries=[QUERY], dtype=odd)
