"""Free tokens: what is optimised as tokens is the text that is judged."""

import pytest
import torch

from expunge import backbones
from expunge.backbones.sd3 import StableDiffusion3
from expunge.backbones.sdxl import StableDiffusionXL
from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.errors import ExpungeError
from expunge.maths.free_tokens import free_tokens, lengths, parted, vocabulary
from tiny import tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

FAMILIES = {
    "sd": (StableDiffusion, tiny_pipeline),
    "sdxl": (StableDiffusionXL, tiny_xl_pipeline),
    "sd3": (StableDiffusion3, tiny_sd3_pipeline),
}


def read(backbone, text):
    """The tokens of a text, without marks and padding."""
    ids = backbone.tokenize([text])
    return ids[0, 1 : int(backbone.end(ids)[0])].tolist()


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


def test_what_can_be_spelled_are_whole_words(backbone):
    words = backbone.components()["tokenizer"].get_vocab()
    whole = [words[f"{c}</w>"] for c in "abcdefghijklmnopqrstuvwxyz0123456789,.->"]
    assert backbone.spellable().tolist() == sorted([*whole, words["dog</w>"]]), "no pieces, no marks"
    assert backbone.spell(backbone.tokenize(["a dog", "", "church"])) == ["a dog", "", "church"]
    found = vocabulary(backbone)
    table = backbone.components()["text_encoder"].get_input_embeddings().weight
    assert torch.equal(found.vectors, table[found.ids])


def test_a_word_that_one_of_two_tokenizers_reads_otherwise_is_left_out():
    pipe = tiny_xl_pipeline()
    backbone = StableDiffusionXL.from_pipeline(pipe)
    before = set(backbone.spellable().tolist())
    pipe.tokenizer_2.add_special_tokens({"pad_token": ">"})  # as that of SDXL reads "!"
    lost = before - set(backbone.spellable().tolist())
    assert backbone.spell(torch.tensor([[i] for i in lost])) == [">"]


def test_words_of_the_testbed_keep_beside_each_other(testbed):
    ids = testbed.spellable()
    assert 0.5 < len(ids) / testbed.vocabulary < 1
    drawn = ids[torch.randint(0, len(ids), (100, 10), generator=torch.Generator().manual_seed(0))]
    texts = [" ".join(testbed.spell(row[:, None])) for row in drawn]
    assert [read(testbed, text) for text in texts] == drawn.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_read_with_vectors_is_its_text_read(family):
    cls, make = FAMILIES[family]
    backbone = cls.from_pipeline(make())
    words = vocabulary(backbone)
    free = free_tokens(backbone, "m", [[None, "a church", None], [None, None, "dog"]])
    place = torch.tensor([3, 8, 20, 30])
    texts = free.texts(backbone, words.ids[place])
    spelled = [backbone.spell(words.ids[[i]][None])[0] for i in place.tolist()]
    assert texts == [f"{spelled[0]} a church {spelled[1]}", f"{spelled[2]} {spelled[3]} dog"]
    vectors = words.vectors[place].clone().requires_grad_()
    cond, plain = free.read(backbone, words.ids[place], vectors), backbone.encode(texts)
    assert torch.allclose(cond.embeds, plain.embeds, atol=1e-5)
    assert torch.equal(cond.tokens, plain.tokens), "gates of adapters read the tokens themselves"
    if plain.pooled is not None:
        assert torch.allclose(cond.pooled, plain.pooled, atol=1e-4)
    (gradient,) = torch.autograd.grad(cond.embeds[0].square().sum(), vectors)
    assert gradient[:2].abs().sum(-1).min() > 0
    assert gradient[2:].abs().sum() == 0, "a prompt's own tokens only"


def test_some_of_the_prompts(backbone):
    free = free_tokens(backbone, "m", [[None], [None, None], ["a", None, None, None]])
    assert free.counts == [1, 2, 3]
    assert free.of_rows([0, 2]).tolist() == [0, 3, 4, 5]
    assert free.of_rows([]).tolist() == []
    some = free.rows([2, 0])
    assert (some.counts, list(some.layouts[0])) == ([3, 1], ["a", None, None, None])
    assert torch.equal(some.ids, free.ids[[2, 0]])


def test_no_word_is_cut_in_two(backbone):
    assert parted(backbone, "a dog a dog a", 2) == ["a dog", "a dog", "a"]
    assert parted(backbone, "church a b", 2) == ["church", "a b"]
    assert lengths(backbone, ["church", "a b"]) == [4, 2]
    assert parted(backbone, "", 3) == []
    with pytest.raises(ExpungeError, match="is longer than tiny reads"):
        parted(backbone, "a " * 15, 3)
    with pytest.raises(ExpungeError, match=r"'a <\|endoftext\|> b' is read otherwise in parts"):
        parted(backbone, "a <|endoftext|> b", 3)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (["a dog"], "m has no free token in 'a dog'"),
        ([], "m has no free token in ''"),
        ([None] * 15, "m has 15 free tokens: expected no more than the 14 tokens that tiny reads"),
        ([None, "a " * 14], "m has 1 free tokens beside 'a a"),
        (["<|endoftext|>", None], "is read otherwise in parts than as a whole"),
    ],
)
def test_prompts_that_cannot_hold_free_tokens_are_refused(backbone, layout, message):
    free_tokens(backbone, "m", [[None] * 14])
    with pytest.raises(ExpungeError, match=message):
        free_tokens(backbone, "m", [[None, "a"], layout])


def test_text_that_is_read_otherwise_is_refused(backbone):
    piece = backbone.components()["tokenizer"].get_vocab()["do"]
    free = free_tokens(backbone, "m", [[None, "a"]])
    with pytest.raises(ExpungeError, match="the model reads 'do a' as other tokens"):
        free.texts(backbone, torch.tensor([piece]))


def test_a_model_whose_vocabulary_cannot_be_looked_at_is_refused():
    pipe = tiny_pipeline()
    backbone = StableDiffusion.from_pipeline(pipe)
    pipe.tokenizer = None
    with pytest.raises(ExpungeError, match=r"the vocabulary of .* cannot be looked at"):
        vocabulary(backbone)
