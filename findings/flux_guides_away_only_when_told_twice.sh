#!/usr/bin/env bash
# A negative prompt, the cheapest way to keep a concept out of images, on FLUX.
# On Stable Diffusion it acts whenever there is guidance, and guidance without one is away from the empty text. Seen on FLUX: a negative
# prompt alone changes nothing, since `true_cfg_scale` is 1 (`guidance_scale` is a number that the model reads); and
# `true_cfg_scale=4` alone changes nothing either, since there is no empty text to guide away from. Both are needed, and nothing says so.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from heard import heard
from tiny_flux import pipeline

pipe = pipeline()
texts = torch.randn(2, 1, 5, 32), torch.randn(2, 1, 32)
prompt = {"prompt_embeds": texts[0][0], "pooled_prompt_embeds": texts[1][0]}
negative = {"negative_prompt_embeds": texts[0][1], "negative_pooled_prompt_embeds": texts[1][1]}

def image(**more):
    generator = torch.Generator().manual_seed(0)
    return pipe(**prompt, **more, height=16, width=16, num_inference_steps=2, output_type="latent", generator=generator).images

plain = image()
with heard() as said:
    apart = {
        name: float((image(**more) - plain).norm() / plain.norm())
        for name, more in {
            "negative prompt": negative,
            "true_cfg_scale=4": {"true_cfg_scale": 4.0},
            "both": {**negative, "true_cfg_scale": 4.0},
        }.items()
    }
print("how far from the image without:", apart)
assert apart["both"] > 0.01
assert not said and apart["negative prompt"] == apart["true_cfg_scale=4"] == 0, "changed"
PY
