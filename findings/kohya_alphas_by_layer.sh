#!/usr/bin/env bash
# A LoRA in kohya's format whose layers have different alphas: diffusers takes one alpha, the most frequent, for all of them.
# It hands peft an alpha_pattern whose keys name no module, which peft says in a warning, and leaves out.
# Expected: each layer scaled by its own alpha / rank. Seen: to_v by 4 instead of 1, to_out by 1 instead of 0.5.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 <<'PY'
import diffusers
import torch
from tiny_sd import image, pipeline

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
