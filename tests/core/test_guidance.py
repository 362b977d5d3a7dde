"""Guidance: combined in one place, whoever's loop it is, and what is remembered of a generation."""

from dataclasses import dataclass, field

import pytest
import torch

from expunge import backbones
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance, of_words
from expunge.core.query import Query
from expunge.erasers.geom_erasing import Avoided
from expunge.erasers.kpop import Recovery
from expunge.erasers.negative_prompt import NegativePromptGuidance
from expunge.erasers.sld import SafetyGuidance
from tiny import still, tiny_pipeline, tiny_xl_pipeline

SIZE = {"height": 16, "width": 16}


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighing(Guidance):
    """A combination of all ingredients that no other formula gives, written down with them."""

    eraser = "weighing"
    seen: list = field(default_factory=list)

    def fields(self):
        return {"eraser": self.eraser}

    def combine(self, backbone, guided, step):
        out = 0.9 * guided + 0.3 * step.predicted_null - 0.2 * step.predicted_cond + 0.01 * (step.index + 1) * step.x
        self.seen.append((guided, step, out))
        return out


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
def test_an_edit_is_combined_alike_in_our_loop_and_in_a_users(make):
    pipe = still(make())
    backbone, edit = backbones.of(pipe), Weighing()
    backbone.attach(edit)
    ours = backbone.generate([Query(prompt="a dog", seed=5, guidance=3.0, steps=3)]).latents
    call = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent", **SIZE}
    with torch.no_grad():
        theirs = pipe("a dog", latents=backbone.noise(5), **call).images
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert len(edit.seen) == 6
    for (guided, step, out), (guided_there, step_there, out_there) in zip(edit.seen[:3], edit.seen[3:], strict=True):
        assert torch.allclose(
            guided, step.predicted_null + 3.0 * (step.predicted_cond - step.predicted_null), atol=1e-6
        )
        assert (step.index, step.scale) == (step_there.index, step_there.scale)
        assert float(step.t) == pytest.approx(float(step_there.t))
        assert torch.allclose(step.x, step_there.x, atol=1e-4)
        for one, other in ((guided, guided_there), (out, out_there)):
            assert torch.allclose(one, other, atol=1e-4)


def test_a_prompt_exchanged_on_the_way_keeps_the_momentum_and_forgets_the_words():
    """A callback may exchange the prompt between two steps: SLD's momentum goes on."""
    edit = SafetyGuidance(text="cat", warmup=0, scale=50.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7)
    model = backbones.of(still(tiny_pipeline()))
    model.attach(edit)
    first, second, null = (model.encode([text]) for text in ("a dog", "a church", ""))
    scheduler = type(model.components()["scheduler"]).from_config(model.components()["scheduler"].config)
    scheduler.set_timesteps(4)
    x, state = model.noise(0), {}
    with torch.no_grad():
        for index, t in enumerate(scheduler.timesteps):
            cond = first if index < 2 else second
            predicted = model.guided(x, t.item(), index, cond, null, 4.0, state).combined
            x = scheduler.step(predicted, t, x).prev_sample

    def exchanged(pipe, step, t, given):
        if step == 1:
            given["prompt_embeds"] = torch.cat([null.embeds, second.embeds])
        return given

    pipe = still(tiny_pipeline())
    edit.attach(pipe)
    call = {"callback_on_step_end": exchanged, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with torch.no_grad():
        theirs = pipe(
            "a dog", latents=model.noise(0), num_inference_steps=4, guidance_scale=4.0, output_type="latent", **call
        ).images
    assert torch.allclose(theirs, x, atol=1e-4)


@pytest.mark.parametrize("place", ["down-mid-up", "text"])
@pytest.mark.parametrize("other", [NegativePromptGuidance(text="cat"), Avoided(text="cat")])
def test_a_key_goes_with_a_negative_prompt_whichever_came_first(place, other):
    """The empty half reads the key's prompt beside the words to avoid, or with them."""
    pipe, length = still(tiny_pipeline()), {"down-mid-up": 3, "text": 16}[place]
    tokens = torch.randn((length, 32), generator=torch.Generator().manual_seed(0))
    key = Recovery(prompts={"dog": tokens}, place=place, salt="s")
    query, call = (
        Query(prompt="a dog", seed=5, guidance=4.0, steps=2),
        {"guidance_scale": 4.0, "num_inference_steps": 2},
    )
    model, latents = backbones.of(pipe), []
    for edits in ([other, key], [key, other], [other], [key]):
        with model.attached(edits), torch.no_grad():
            latents.append(model.generate([query]).latents)
            theirs = pipe("a dog", latents=model.noise(5), output_type="latent", **call, **SIZE).images
        assert torch.allclose(latents[-1], theirs, atol=1e-4)
    first, second, *alone = latents
    assert torch.equal(first, second)
    assert all((first - one).abs().max() > 1e-3 for one in alone)


@dataclass(frozen=True, kw_only=True, eq=False)
class Remembering(Guidance):
    """Remembers one thing of the words, and one of the generation."""

    eraser = "remembering"
    seen: list = field(default_factory=list)

    def fields(self):
        return {"eraser": self.eraser}

    def conditioning(self, backbone, cond, null, state):
        self.seen.append((of_words(state).get("here"), state.get("here")))
        of_words(state)["here"] = state["here"] = len(self.seen)
        return cond, null


def test_what_is_known_of_the_words_is_forgotten_with_them():
    pipe, edit = still(tiny_pipeline()), Remembering()
    edit.attach(pipe)

    def exchanged(pipe, step, t, given):
        if step == 1:
            given["prompt_embeds"] = given["prompt_embeds"] * 0.5
        return given

    call = {"callback_on_step_end": exchanged, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    pipe("a dog", num_inference_steps=4, guidance_scale=4.0, output_type="latent", **call)
    assert edit.seen == [(None, None), (1, 1), (None, 2), (3, 3)]
    pipe("a dog", num_inference_steps=1, guidance_scale=4.0, output_type="latent")
    assert edit.seen[-1] == (None, None), "another generation begins anew"


@pytest.mark.parametrize("swapped", [False, True])
def test_two_texts_for_the_empty_prompt_s_place_are_refused(backbone, swapped):
    """The later one would undo the other without a word."""
    edits = [NegativePromptGuidance(text="cat"), Avoided(text="dog")]
    first, second = reversed(edits) if swapped else edits
    with backbone.attached([first]), pytest.raises(ExpungeError, match="has the empty prompt's place already"):
        backbone.attach(second)
    with backbone.attached([edits[0], Avoided(text="")]):
        assert len(backbone.edits) == 2
