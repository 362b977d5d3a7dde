import warnings

import pytest
import torch

from beside import by_hand
from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.erasers.eiup import EIUP, ErasurePrompt
from expunge.stages import erase
from tiny import still, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

TASK = Task(targets=[Concept(name="church"), Concept(name="dog")])
QUERY = Query(prompt="a cat", seed=5, guidance=4.0, steps=5)
EDIT = ErasurePrompt(text="church dog", weight=-1.5, early=0.8)


def formula(backbone, words, acting):
    """The image of `QUERY` by `EDIT`'s formula."""
    return by_hand(backbone, [QUERY], EDIT.text, words, lambda x, t, cond: [[EDIT.weight] * len(words)], acting)


@pytest.mark.parametrize(("early", "acting"), [(0.8, range(4)), (1.0, range(5)), (0.2, range(1))])
def test_generation_is_the_formula_in_the_first_steps(backbone, early, acting):
    edit = ErasurePrompt(text="church dog", weight=-1.5, early=early)
    words = range(1, int(backbone.end(backbone.tokenize(["church dog"]))[0]))
    assert len(words) > 2, "several tokens"
    plain, before = backbone.generate([QUERY]).latents, backbone.cost
    with backbone.attached([edit]):
        ours = backbone.generate([QUERY]).latents
    assert (backbone.cost - before).forward == 2 * 5, "no evaluation more"
    expected = formula(backbone, words, acting)
    assert torch.allclose(ours, expected, atol=1e-4)
    assert (ours - plain).abs().max() > 1e-2
    assert not torch.allclose(formula(backbone, words[:-1], acting), expected, atol=1e-4)


def test_only_the_half_with_the_prompt_reads_it(backbone):
    with torch.no_grad():
        cond, null = backbone.encode(["a cat"]), backbone.encode([""])
        plain = backbone.guided(backbone.noise(5), 981, 0, cond, null, 4.0, {})
        with backbone.attached([EDIT]):
            edited = backbone.guided(backbone.noise(5), 981, 0, cond, null, 4.0, {})
            late = backbone.guided(backbone.noise(5), 181, 4, cond, null, 4.0, {})
            asked = backbone.predict(backbone.noise(5), 981, cond)
        assert torch.equal(edited.null, plain.null)
        assert not torch.allclose(edited.cond, plain.cond, atol=1e-4)
        assert torch.equal(late.combined, backbone.guided(backbone.noise(5), 181, 4, cond, null, 4.0, {}).combined)
        assert torch.equal(asked, backbone.predict(backbone.noise(5), 981, cond)), "nobody's guided prediction"


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
def test_reaches_a_pipeline_the_user_holds_and_leaves_it(make):
    pipe = still(make())
    backbone = backbones.of(pipe)
    edit = erase.run(backbone, "eiup", EIUP(weight=-3.0), TASK.targets, [])
    call = {"latents": backbone.noise(5), "num_inference_steps": 5, "output_type": "latent", "height": 16, "width": 16}
    with torch.no_grad():
        plain, alone = (pipe("a cat", guidance_scale=s, **call).images for s in (4.0, 1.0))
        with backbone.attached([edit]):
            ours = backbone.generate([QUERY]).latents
        edit.attach(pipe)
        theirs = pipe("a cat", guidance_scale=4.0, **call).images
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExpungeWarning)  # it acts without guidance, too
            unguided = pipe("a cat", guidance_scale=1.0, **call).images
        edit.detach(pipe)
        assert torch.allclose(theirs, ours, atol=1e-4)
        assert (theirs - plain).abs().max() > 1e-3
        assert (unguided - alone).abs().max() > 1e-3
        assert torch.equal(pipe("a cat", guidance_scale=4.0, **call).images, plain)


def test_the_edit_is_the_words_of_all_targets(backbone):
    (step,) = EIUP(weight=-2.0, early=0.5).steps(backbone, TASK)
    assert step.edit() == ErasurePrompt(text="church dog", weight=-2.0, early=0.5)
    (step,) = EIUP(separator=", ").steps(backbone, TASK)
    assert step.edit().text == "church, dog"


def test_a_model_without_cross_attention_is_refused():
    backbone = backbones.of(still(tiny_sd3_pipeline()))
    with pytest.raises(ExpungeError, match=r"needs cross-attention, which .* has not"):
        erase.run(backbone, "eiup", EIUP(), TASK.targets, [])
    with pytest.raises(ExpungeError, match="has no cross-attention"):
        backbone.attach(EDIT)


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"early": 0.0}, {"early": 1.5}])
def test_bad_settings_are_refused(change):
    with pytest.raises(ExpungeError, match="expected a weight other than zero, and a share above 0, of 1 at most"):
        erase.build("eiup", change, None)


def test_on_the_testbed_a_stronger_weight_moves_a_picture_further():
    backbone = backbones.load("testbed")
    asked = [Query(prompt="image of a church", seed=seed, guidance=4.0, steps=4) for seed in range(2)]
    plain, moved = backbone.generate(asked).latents, []
    for weight in (-0.5, -2.0):
        (step,) = EIUP(weight=weight).steps(backbone, Task(targets=[Concept(name="church")]))
        with backbone.attached([step.edit()]):
            moved.append(float((backbone.generate(asked).latents - plain).norm()))
    assert 0 < moved[0] < moved[1]
