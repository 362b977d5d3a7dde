#!/usr/bin/env bash
# A negative prompt, the cheapest way to keep a concept out of images, on FLUX.
# On Stable Diffusion it acts whenever there is guidance, and guidance without one is away from the empty text. Seen on FLUX: a negative
# prompt alone changes nothing, since `true_cfg_scale` is 1 (`guidance_scale` is a number that the model reads); and
# `true_cfg_scale=4` alone changes nothing either, since there is no empty text to guide away from. Both are needed, and nothing says so.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
import torch

diffusers.logging.set_verbosity_info()
torch.manual_seed(0)
pipe = diffusers.FluxPipeline(
    transformer=diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    ),
    vae=diffusers.AutoencoderKL(latent_channels=1, block_out_channels=(32,), norm_num_groups=8),
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
)
pipe.set_progress_bar_config(disable=True)
texts = torch.randn(2, 1, 5, 32), torch.randn(2, 1, 32)
prompt = {"prompt_embeds": texts[0][0], "pooled_prompt_embeds": texts[1][0]}
negative = {"negative_prompt_embeds": texts[0][1], "negative_pooled_prompt_embeds": texts[1][1]}

def image(**more):
    generator = torch.Generator().manual_seed(0)
    return pipe(**prompt, **more, height=16, width=16, num_inference_steps=2, output_type="latent", generator=generator).images

plain = image()
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
assert apart["negative prompt"] == apart["true_cfg_scale=4"] == 0, "changed"
PY
