#!/usr/bin/env bash
# Pyramid attention broadcast (`PyramidAttentionBroadcastConfig`: attention is computed at every second time and repeated between), on
# FLUX with a negative prompt. An expert expects that attention is repeated from one step to the next, as the method has it, and for
# each of a pair's predictions its own: the pipeline marks both for caches (`cache_context`), and the first-block cache heeds that.
# Seen: the broadcast counts calls. A pair is two calls, so every second call is the negative prompt's, and repeats what the layer
# answered to the prompt (with every even number of repeats, at all steps inside the span of timesteps that was asked for). The
# prompt's own attention is computed every time, so nothing is repeated from step to step. Another wording of the negative prompt moves
# the image less than a fifth as far as without the broadcast; with the first-block cache it moves it as far as without. Nothing is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from heard import heard
from tiny_flux import pipeline

pipe = pipeline()
generator = torch.Generator().manual_seed(1)
prompt, one, other = (torch.randn(1, 4, 32, generator=generator) for _ in range(3))
pooled, negative_pooled = (torch.randn(1, 32, generator=generator) for _ in range(2))

def image(negative):
    return pipe(
        prompt_embeds=prompt, pooled_prompt_embeds=pooled, negative_prompt_embeds=negative, true_cfg_scale=3.0,
        negative_pooled_prompt_embeds=negative_pooled, generator=torch.Generator().manual_seed(3), num_inference_steps=12,
        height=32, width=32, output_type="latent",
    ).images

answers = []
pipe.transformer.transformer_blocks[0].attn.register_forward_hook(lambda layer, given, answer: answers.append(answer[0]))

def tried(config):
    """How far another wording moves the image, and at how many steps the negative prompt gets the prompt's own attention."""
    if config is not None:
        pipe.transformer.enable_cache(config)
    moved = float((image(one) - image(other)).norm())
    answers.clear()
    image(one)
    if config is not None:
        pipe.transformer.disable_cache()
    same = sum(torch.equal(a, b) for a, b in zip(answers[::2], answers[1::2]))
    return round(moved, 4), f"{same} of {len(answers) // 2}"

def when():
    return pipe.current_timestep

# all steps but the first, whose timestep is 1000
spans = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (-1, 1000), "current_timestep_callback": when}
with heard() as said:
    seen = {
        "no cache": tried(None),
        "first-block cache": tried(FirstBlockCacheConfig(threshold=0.1)),
        "broadcast": tried(PyramidAttentionBroadcastConfig(**spans)),
    }
for name, what in seen.items():
    print(f"{name}: another wording moves the image by {what[0]}; the negative prompt gets the prompt's attention at {what[1]} steps")
assert seen["no cache"][1] == "0 of 12" and seen["first-block cache"][0] > 0.95 * seen["no cache"][0]
assert not said and seen["broadcast"][1] == "11 of 12" and seen["broadcast"][0] < 0.2 * seen["no cache"][0], "changed"
PY
