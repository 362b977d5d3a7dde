"""What a model does not read of a text is said, or refused; against the tokenizer's own ids."""

import pytest

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.erasers.uce import UCE
from expunge.stages import erase, generate
from expunge.stages.erase import concepts
from expunge.stages.texts import check_words, tell_of
from tiny import tiny_pipeline, tiny_xl_pipeline

LONG = "a dog in a cat hat on a red mat"


def asked(*prompts, **more):
    return [Query(prompt=p, seed=0, guidance=2.0, steps=1, **more) for p in prompts]


def test_what_is_cut_is_what_truncation_leaves_out(backbone):
    words = backbone._parts.get("tokenizer")
    texts = ["", "dog", "a" * 14, "a" * 15, LONG]
    for text, lost in zip(texts, backbone.cut(texts), strict=True):
        kept = words(text, truncation=True, max_length=16).input_ids[1:-1]
        whole = words(text, truncation=False).input_ids[1:-1]
        assert lost == words.decode(whole[len(kept) :])
    assert [bool(lost) for lost in backbone.cut(texts)] == [False, False, False, True, True]
    assert backbone.cut([]) == []


@pytest.mark.parametrize("pipe", [tiny_pipeline, tiny_xl_pipeline])
def test_prompts_that_are_cut_are_told_of_once(pipe, tmp_path):
    model = backbones.of(pipe())
    with pytest.warns(ExpungeWarning) as told:
        generate.to_folder(model, [], asked("dog", LONG, LONG, "a " * 30), tmp_path / "out")
    (line,) = [str(w.message) for w in told if issubclass(w.category, ExpungeWarning)]
    assert line.startswith("2 of 3 prompts are longer than ")
    assert f"of '{LONG}' it cuts '" in line
    with pytest.warns(ExpungeWarning, match="1 of 2 prompts"):
        generate.to_folder(model, [], asked("dog", negative=LONG), tmp_path / "more")


def test_a_target_an_anchor_or_a_retained_word_that_is_cut_is_refused(backbone):
    for targets, retain in (([LONG], []), ([Concept(name="dog", anchor=LONG)], []), (["dog"], ["cat", LONG])):
        with pytest.raises(ExpungeError, match=f"'{LONG}' is longer than tiny's text encoder reads, which cuts '"):
            erase.prepared(backbone, UCE(), concepts(targets), retain, 0)
    erase.prepared(backbone, UCE(), concepts(["dog"]), ["cat"], 0)


@pytest.mark.parametrize(
    "mark", ["(dog:1.2)", "( dog : .5 )", "[dog]", "[dog:cat:0.5]", "((dog))", "<lora:a b:0.8>", "a BREAK b"]
)
def test_marks_of_other_programs_are_told_of(backbone, mark):
    shown = "BREAK" if "BREAK" in mark else mark
    with pytest.warns(ExpungeWarning) as told:
        tell_of(backbone, [f"a {mark}", mark, "dog"])
    assert [str(w.message) for w in told] == [
        f"weights and tags of other programs are read as plain text, in 2 of 3 texts: '{shown}' in 'a {mark}'"
    ]
    with pytest.warns(ExpungeWarning, match="read as plain text, in 1 of 2 texts"):
        check_words(backbone, ["cat", mark])


def test_plain_texts_are_let_be(backbone, recwarn):
    tell_of(backbone, ["a dog (cat)", "a dog at 10:30", "break", "a < b", "(a: dog)", ""])
    check_words(backbone, ["dog", "a dog (cat)", ""])
    assert not recwarn.list
