import pytest
import torch

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.erasers.time import TIME, alignment
from expunge.stages import erase
from tiny import tiny_sd3_pipeline, tiny_xl_pipeline

SOS, EOS, A, PACK, OF, BLUE, ROSE, CAT = range(100, 108)


def edit_of(eraser, backbone, *targets, retain=()):
    task = Task(targets=[Concept(name=t) if isinstance(t, str) else t for t in targets], retain=retain)
    (step,) = eraser.steps(backbone, task)
    return step.edit()


def vectors(backbone, text):
    with torch.no_grad():
        return backbone.encode([text]).embeds[0].double()


@pytest.mark.parametrize(
    ("source", "goal", "places"),
    [
        ([A, ROSE], [A, BLUE, ROSE], [0, 1, 3, 4, 5, 6, 7, 7]),
        ([A, PACK, OF, ROSE], [A, PACK, OF, BLUE, ROSE], [0, 1, 2, 3, 5, 6, 7, 7]),
        ([A, ROSE], [A, PACK, OF, A, ROSE], [0, 1, 5, 6, 7, 7, 7, 7]),
        ([A, ROSE], [A, ROSE], [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_tokens_that_both_prompts_have_are_aligned_as_the_authors_do(source, goal, places):
    """By hand: each token of the source at the first place of the goal after the one before; the rest is the padding."""
    assert alignment([SOS, *source, EOS], [SOS, *goal, EOS], 8) == places


@pytest.mark.parametrize(
    ("source", "goal", "places"),
    [
        ([ROSE], [CAT], [0, 1, 2, 3, 4, 5]),
        ([A, BLUE, ROSE], [A, CAT], [0, 1, 2, 2, 3, 4]),
        ([ROSE], [BLUE, CAT], [0, 2, 3, 4, 5, 5]),
        ([PACK, OF, ROSE], [BLUE, CAT], [0, 1, 1, 2, 3, 4]),
        ([A, ROSE], [A], [0, 1, 2, 2, 3, 4]),
        ([ROSE], [], [0, 1, 1, 2, 3, 4]),
    ],
)
def test_words_that_the_goal_lacks_are_read_as_what_stands_there_instead(source, goal, places):
    assert alignment([SOS, *source, EOS], [SOS, *goal, EOS], 6) == places


def test_equals_equation_5_for_every_matrix(backbone):
    """A token each, dog and x: vectors go to those in the same place, in each of the prompts."""
    eraser = TIME(lamb=0.3, anchor="x", templates=("{}", "a {}"))
    edit = edit_of(eraser, backbone, "dog")
    assert set(edit.replaced) == set(backbone.text_inputs())
    pairs = [(vectors(backbone, p.format("dog")), vectors(backbone, p.format("x"))) for p in ("{}", "a {}")]
    for name, w in backbone.stored(backbone.text_inputs()).items():
        w = w.double()
        left, right = 0.3 * w, 0.3 * torch.eye(32, dtype=torch.float64)
        for source, goal in pairs:
            for c, g in zip(source, goal, strict=True):
                left = left + torch.outer(w @ g, c)
                right = right + torch.outer(c, c)
        assert torch.allclose(edit.replaced[name].double(), left @ torch.inverse(right), atol=1e-5), name


def test_an_assumption_is_edited_token_by_token(backbone):
    """A rose becomes a blue rose: with little to pull back, its vectors are answered as the blue one's."""
    edit = edit_of(TIME(lamb=1e-8, templates=("{}",)), backbone, Concept(name="dog", anchor="a dog"))
    source, goal = vectors(backbone, "dog"), vectors(backbone, "a dog")
    for name, w in backbone.stored(list(edit.replaced)).items():
        now, wanted = edit.replaced[name].double() @ source[1], w.double() @ goal[2]
        assert (now - wanted).norm() < 0.05 * (w.double() @ source[1] - wanted).norm(), name


def test_an_and_a_are_one_word():
    """So "an" is read as "a", and not, as the words that the goal lacks are, as what stands before its last word."""
    model, anchor = backbones.load("testbed"), "a blue picture"
    edit, other = (
        edit_of(TIME(lamb=1e-3, anchor=anchor, templates=("{}",)), model, Concept(name=t)) for t in ("an owl", "a owl")
    )
    ids = model.tokenize(["an owl", anchor])
    assert ids[0, 1] != ids[1, 1], "two tokens"
    assert model.end(ids).tolist() == [3, 4], "a token a word"
    source, goal = (model.encode([t]).embeds[0].double().detach() for t in ("an owl", anchor))
    (name, w) = next(iter(model.stored(list(edit.replaced)).items()))
    now = edit.replaced[name].double() @ source[1]
    assert (now - w.double() @ goal[1]).norm() < 0.5 * (now - w.double() @ goal[2]).norm()
    assert edit.id != other.id


def test_little_is_changed_where_lambda_is_large_and_nothing_where_source_and_goal_agree(backbone):
    base = backbone.stored(backbone.text_inputs())
    far = edit_of(TIME(lamb=1e9, anchor="cat"), backbone, "dog")
    same = edit_of(TIME(), backbone, Concept(name="dog", anchor="dog"))
    for name, w in base.items():
        assert torch.allclose(far.replaced[name], w, atol=1e-5)
        assert torch.allclose(same.replaced[name], w, atol=1e-5)
    strong = TIME(anchor="cat").stronger(2.0)
    assert strong == TIME(anchor="cat", lamb=0.05)


def test_values_alone(backbone):
    edit = edit_of(TIME(edit_keys=False, anchor="cat"), backbone, "dog")
    assert {n for n in backbone.text_inputs() if n.endswith(".attn2.to_v.weight")} == set(edit.replaced)


def test_the_retain_list_is_ignored_and_no_image_is_made(backbone):
    one, two = (edit_of(TIME(anchor="cat"), backbone, "dog", retain=words) for words in ((), ("fish",)))
    assert one.id == two.id == edit_of(TIME(anchor="cat"), backbone, "dog").id
    assert backbone.cost.equivalents == 0
    assert not backbone._parts.built("unet"), "a closed form reads its tensors from the file"


def test_on_xl_it_edits_all_that_reads_text_and_sd3_is_refused():
    model = backbones.of(tiny_xl_pipeline())
    edit = edit_of(TIME(anchor="cat"), model, "dog")
    assert set(edit.replaced) == set(model.text_inputs())
    with pytest.raises(ExpungeError, match=r"TIME needs cross-attention, which .* \(sd3\) has not"):
        erase.run(backbones.of(tiny_sd3_pipeline()), "time", TIME(), [Concept(name="dog")], [])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"lamb": 0.0}, "time's lamb is 0.0: expected a positive number"), ({"templates": ("a rose",)}, "'a rose'")],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ExpungeError, match=words):
        TIME(**settings)
