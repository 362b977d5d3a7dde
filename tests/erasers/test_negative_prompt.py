import pytest
import torch

import expunge
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.erasers.eiup import EIUP
from expunge.erasers.negative_prompt import NegativePrompt, NegativePromptGuidance
from expunge.erasers.sdd import SDD
from expunge.erasers.sld import SLD
from tiny import tiny_pipeline


def noise():
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))


def test_generation_equals_the_pipeline_s_own_negative_prompt(backbone):
    backbone.attach(NegativePromptGuidance(text="church"))
    ours = backbone.generate([Query(prompt="dog", seed=5, guidance=4.0, steps=4)]).latents
    pipe = tiny_pipeline()
    theirs = pipe(
        "dog",
        negative_prompt="church",
        latents=noise(),
        guidance_scale=4.0,
        num_inference_steps=4,
        output_type="latent",
    ).images
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_reaches_a_pipeline_the_user_holds_and_leaves_it():
    pipe = tiny_pipeline()
    call = {"latents": noise(), "guidance_scale": 4.0, "num_inference_steps": 3, "output_type": "latent"}
    plain = pipe("dog", **call).images
    wanted = pipe("dog", negative_prompt="church", **call).images
    edit = expunge.erase(pipe, "church", method="negative-prompt")
    edit.attach(pipe)
    assert torch.allclose(pipe("dog", **call).images, wanted, atol=1e-5)
    edit.detach(pipe)
    assert torch.equal(pipe("dog", **call).images, plain)


def test_several_targets_are_joined(backbone):
    edit = expunge.erase(backbone, ["church", "dog"], method="negative-prompt")
    assert edit.fields()["text"] == "church, dog"


@pytest.mark.parametrize(
    "method",
    [NegativePrompt(), SLD(), EIUP(), SDD(iterations=1, roles="paper"), SDD(iterations=1)],
    ids=["negative-prompt", "sld", "eiup", "sdd, paper", "sdd"],
)
def test_targets_that_the_model_would_not_read_are_refused_where_they_are_one_text(backbone, method):
    names = [f"church {'abcdefghijklmnopqrstuvwxyz'[i : i + 3]}" for i in range(24)]
    task = Task(targets=[Concept(name=name) for name in names], seed=0)
    assert backbone.cut([", ".join(names)])[0], "a list that is too long"
    assert not any(backbone.cut(names)), "of words that are not"
    with pytest.raises(ExpungeError, match=r"24 words as one text .* which ends in 'church \w+', number \d+: expected"):
        list(method.steps(backbone, task))
