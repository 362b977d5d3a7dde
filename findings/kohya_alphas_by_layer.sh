#!/usr/bin/env bash
# A LoRA in kohya's format whose layers have different alphas: diffusers takes one alpha, the most frequent, for all of them.
# It hands peft an alpha_pattern whose keys name no module, which peft says in a warning, and leaves out.
# Expected: each layer scaled by its own alpha / rank. Seen: to_v by 4 instead of 1, to_out by 1 instead of 0.5.
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

import tempfile
from safetensors.torch import save_file

block, file, right = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_", {}, {}
for layer, rank, alpha in (("to_q", 4, 4.0), ("to_k", 4, 4.0), ("to_v", 1, 1.0), ("to_out_0", 4, 2.0)):
    file |= {f"{block}{layer}.lora_down.weight": torch.ones(rank, 32), f"{block}{layer}.lora_up.weight": torch.ones(32, rank)}
    file |= {f"{block}{layer}.alpha": torch.tensor(alpha)}
    right[layer] = alpha / rank
folder = tempfile.mkdtemp(dir=".")
save_file(file, f"{folder}/lora.safetensors")
pipe = pipeline()
pipe.load_lora_weights(folder, weight_name="lora.safetensors")
scaled = [(name, module) for name, module in pipe.unet.named_modules() if getattr(module, "scaling", None)]
seen = {name.split("attn1.")[1].replace(".", "_"): module.scaling["default_0"] for name, module in scaled}
print("the file says", right, "and diffusers scales by", seen)
assert seen == {"to_q": 1.0, "to_k": 1.0, "to_v": 4.0, "to_out_0": 1.0}, "changed"
PY
