import numpy as np
import pytest
import torch
from uce_left import left

import expunge
from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task, settings_of
from expunge.core.errors import ExpungeError
from expunge.erasers.uce import UCE
from expunge.stages import erase
from tiny import sd2_pipeline, tiny_pipeline, tiny_xl_pipeline


def edit_of(eraser, backbone, targets, retain=()):
    task = Task(targets=[Concept(name=t) if isinstance(t, str) else t for t in targets], retain=retain)
    (step,) = eraser.steps(backbone, task)
    return step.edit()


def last_vector(backbone, text):
    """The last word's vector, found from the tokenizer's own list of words."""
    words = backbone._parts.get("tokenizer").tokenize(text)
    return backbone.encode([text]).embeds[0, len(words)].double()


def test_replace_form_equals_equation_7_for_every_matrix(backbone):
    eraser = UCE(erase_scale=2.0, preserve_scale=0.5, lamb=0.7, anchor="cat")
    edit = edit_of(eraser, backbone, ["church", Concept(name="dog", anchor="fish")], ["car"])
    c = [last_vector(backbone, t) for t in ("church", "dog", "car")]
    g = [last_vector(backbone, t) for t in ("cat", "fish", "car")]
    for name, w in backbone.stored(backbone.text_inputs()).items():
        w = w.double()
        left, right = 0.7 * w, 0.7 * torch.eye(32, dtype=torch.float64)
        for ci, gi, s in zip(c, g, (2.0, 2.0, 0.5), strict=True):
            left = left + s * torch.outer(w @ gi, ci)
            right = right + s * torch.outer(ci, ci)
        assert torch.allclose(edit.replaced[name].double(), left @ torch.inverse(right), atol=1e-5), name


@pytest.mark.parametrize("tokens", ["last", "tail"])
def test_tensor_takes_the_target_s_own_direction_out_of_the_goal(backbone, tokens):
    """By hand, phrase by phrase, in numpy: all vectors of a phrase together are one direction."""
    eraser = UCE(technique="tensor", tokens=tokens, anchor="cat", lamb=0.7, erase_scale=2.0, preserve_scale=0.5)
    edit = edit_of(eraser, backbone, ["church", Concept(name="dog", anchor="fish")], ["car"])
    places = {t: len(backbone._parts.get("tokenizer").tokenize(t)) for t in ("church", "dog", "car", "cat", "fish")}
    read = {t: backbone.encode([t]).embeds[0].double().numpy() for t in places}
    for name, w in backbone.stored(backbone.text_inputs()).items():
        old = w.double().numpy()
        left, right = 0.7 * old, 0.7 * np.eye(32)
        for source, goal, scale in (("church", "cat", 2.0), ("dog", "fish", 2.0), ("car", "car", 0.5)):
            count = 1 if tokens == "last" else 16 - max(places[source], places[goal])
            c = read[source][places[source] :][:count]
            g = read[goal][places[goal] :][:count]
            if (source, tokens) == ("car", "tail"):
                c = g = read["car"]
            own, wanted = c @ old.T, g @ old.T
            if source != goal:
                u = own / np.sqrt((own**2).sum())
                wanted = wanted - (u * wanted).sum() * u
                assert abs((wanted * own).sum()) < 1e-9
            left, right = left + scale * wanted.T @ c, right + scale * c.T @ c
        assert np.allclose(edit.replaced[name].double().numpy(), left @ np.linalg.inv(right), atol=1e-5), name


def test_the_technique_is_replace_where_it_is_not_named(backbone):
    assert "technique" not in settings_of(UCE()), "the default is not part of a job's key"
    assert settings_of(UCE(technique="tensor"))["technique"] == "tensor"


def test_edits_exactly_the_matrices_that_read_text(backbone):
    edit = edit_of(UCE(), backbone, ["church"])
    assert set(edit.replaced) == set(backbone.text_inputs())
    assert all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in edit.replaced)


def test_empty_anchor_is_read_at_the_start_token(backbone):
    _, goals, *_ = UCE(anchor="")._pairs(backbone, Task(targets=[Concept(name="church")]))
    assert torch.equal(goals[0], backbone.encode([""]).embeds[0, 0])


def test_tail_aligns_from_the_last_word_through_the_padding(backbone):
    keys, goals, scales, _ = UCE(tokens="tail", anchor="cat")._pairs(backbone, Task(targets=[Concept(name="church")]))
    words = backbone._parts.get("tokenizer").tokenize
    first, other = len(words("church")), len(words("cat"))
    count = 16 - max(first, other)
    assert len(keys) == len(goals) == len(scales) == count
    assert torch.equal(keys, backbone.encode(["church"]).embeds[0, first : first + count])
    assert torch.equal(goals, backbone.encode(["cat"]).embeds[0, other : other + count])


def test_tail_preserves_with_all_tokens(backbone):
    keys, *_ = UCE(tokens="tail", anchor="cat")._pairs(backbone, Task(targets=[Concept(name="dog")], retain=["fish"]))
    assert torch.equal(keys[-16:], backbone.encode(["fish"]).embeds[0])


def test_templates_are_for_targets_only(backbone):
    eraser = UCE(templates=("{}", "image of {}"), anchor="cat")
    keys, goals, *_ = eraser._pairs(backbone, Task(targets=[Concept(name="dog")], retain=["fish"]))
    assert torch.equal(keys[1], last_vector(backbone, "image of dog").float())
    assert torch.equal(goals[1], last_vector(backbone, "cat").float())
    assert torch.equal(keys[2], goals[2])
    assert len(keys) == 3


def test_the_first_script_s_scale_and_empty_prompt(backbone):
    eraser = UCE(tokens="tail", anchor=" ", preserve_scale="auto", preserve_empty=True)
    keys, goals, scales, _ = eraser._pairs(backbone, Task(targets=[Concept(name="dog")], retain=["fish", "cat"]))
    assert torch.equal(keys[-48:-32], backbone.encode([""]).embeds[0]), "all tokens of the empty prompt"
    assert torch.allclose(scales[-48:], torch.tensor(1 / 3)), "max(0.1, 1 / 3)"
    assert torch.equal(keys[-48:], goals[-48:])


@pytest.mark.parametrize("make", [tiny_pipeline, sd2_pipeline, tiny_xl_pipeline])
def test_stable_diffusion_s_preset_moves_every_vector_from_the_last_word_on(make):
    model = backbones.of(make())
    preset, script = (erase.build("uce", {}, kind) for kind in (model.kind, None))
    assert (preset.tokens, script.tokens) == ("tail", "last")
    moved, kept = (left(model, eraser, "church", "") for eraser in (preset, script))
    assert kept[0] < 0.1, "the last word itself"
    assert kept[1:].min() > 0.6, "and nothing after it"
    assert moved[0] < 0.4
    assert (moved[1:] < 0.7 * kept[1:]).all()
    edit = expunge.erase(make(), "church")
    assert edit.provenance.settings["tokens"] == "tail"
    assert expunge.erase(make(), "church", preset=False).provenance.settings["tokens"] == "last"


@pytest.mark.parametrize(
    ("text", "like", "most"), [("church", "", 0.05), ("a drawing of a church", "a drawing of a", 0.3)]
)
def test_so_it_does_in_a_text_tower_that_has_learned_words(text, like, most):
    model = backbones.load("testbed")
    assert left(model, erase.build("uce", {}, "sd"), text, like).max() < most
    assert left(model, UCE(), text, like)[1:].min() > 0.35


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lamb": 0.0}, "lamb is 0.0"),
        ({"erase_scale": -1.0}, "erase_scale is -1.0"),
        ({"templates": ("no place",)}, "no place"),
        ({"templates": ()}, "template"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ExpungeError, match=words):
        UCE(**settings)


def test_reads_no_unet_evaluation(backbone):
    edit_of(UCE(), backbone, ["church"])
    assert backbone.cost.equivalents == 0
    assert not backbone._parts.built("unet"), "a closed form reads its tensors from the file"
