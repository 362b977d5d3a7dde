#!/usr/bin/env bash
# DeepCache and image to image, as where an erasure is tried at several strengths with one fast pipeline.
# An image is expected to depend on its prompt, its picture and its generator. Seen: DeepCache counts which steps it may skip from the first step
# of the first image after `enable()`. An image of another strength begins elsewhere, and if that falls on a step to skip, it is drawn from
# features of the image before it, of another prompt. So the same call gives other images, and what one prompt shows can enter the judgement
# of the next. Nothing says so. With `disable()` and `enable()` before each change of strength they are equal.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 DeepCache==0.1.1 <<'PY'
import diffusers
import torch
from DeepCache import DeepCacheSDHelper
from heard import heard
from tiny_sd import pipeline

pipe = diffusers.StableDiffusionImg2ImgPipeline(**pipeline().components, requires_safety_checker=False)
pipe.set_progress_bar_config(disable=True)
picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))

def image(prompt, strength):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, picture, strength, num_inference_steps=8, output_type="latent", generator=generator).images

def after(prompt):
    """The image of "a dog" at half strength, after one of ``prompt`` at full strength."""
    image(prompt, 1.0)
    return image("a dog", 0.5)

def apart():
    one = after("a cat")
    return float((after("a tree") - one).norm() / one.norm())

plain = apart()
helper = DeepCacheSDHelper(pipe=pipe)
helper.set_params(cache_interval=3, cache_branch_id=0)
helper.enable()
with heard() as said:
    cached = apart()
image("a cat", 1.0)
helper.disable()
helper.enable()
one, two = image("a dog", 0.5), image("a dog", 0.5)
print("same call after two other prompts, how far apart: plain", plain, "with DeepCache", cached)
assert plain == 0 and torch.equal(one, two)
assert not said and cached > 0.01, "changed"
PY
