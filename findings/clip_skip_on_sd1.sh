#!/usr/bin/env bash
# clip_skip of StableDiffusionPipeline with transformers 5.6 or later: every value but None raises AttributeError. The pipeline reads
# `text_encoder.text_model.final_layer_norm`, and CLIPTextModel has no level `text_model` any more. (SDXL needs no final norm there, and works.)
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 <<'PY'
import string
import diffusers, torch, transformers
diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()

def pipeline():
    """Stable Diffusion's classes with random weights, some thousand numbers in all."""
    torch.manual_seed(0)
    letters = list(string.ascii_lowercase)
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=54, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53))
    unet = diffusers.UNet2DConditionModel(sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2)
    vae = diffusers.AutoencoderKL(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16)
    pipe = diffusers.StableDiffusionPipeline(unet=unet, vae=vae, text_encoder=text, tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def image(pipe, **call):
    generator = torch.Generator().manual_seed(0)
    return pipe("a dog", num_inference_steps=2, output_type="latent", generator=generator, **call).images

image(pipeline())
try:
    image(pipeline(), clip_skip=1)
except AttributeError as error:
    print("clip_skip=1:", error)
    assert "text_model" in str(error), "changed"
else:
    raise SystemExit("changed: clip_skip=1 works")
PY
