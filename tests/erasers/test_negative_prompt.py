import torch

import expunge
from expunge.core.query import Query
from expunge.erasers.negative_prompt import NegativePromptGuidance
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
