#!/usr/bin/env bash
# A LoRA and fuse_qkv_projections: whichever comes first, the LoRA has no effect, and nothing says so.
# Expected by most: the LoRA's change, or an error. Fusing copies `to_k.weight`, which for a layer that peft wrapped is the base layer's;
# a LoRA that is loaded afterwards stands in layers that the fused processor no longer calls. Seen: a change of exactly 0.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 <<'PY'
import diffusers
import torch
from heard import heard
from tiny_sd import image, pipeline

import tempfile
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

made, folder = pipeline(), tempfile.mkdtemp(dir=".")
made.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=["to_k", "to_v"]))
diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(made.unet))
base = image(pipeline())

def moved(*steps):
    pipe = pipeline()
    with heard() as said:
        for step in steps:
            step(pipe)
        away = float((image(pipe) - base).norm() / base.norm())
    assert not said
    return away

def load(pipe): pipe.load_lora_weights(folder)
def fuse(pipe): pipe.fuse_qkv_projections()
alone, fused, first, last = moved(load), moved(fuse), moved(load, fuse), moved(fuse, load)
print(f"moved, in parts of the image's norm: LoRA alone {alone:.3f}; fused projections alone {fused:.1e}; "
      f"LoRA, then fused {first:.1e}; fused, then LoRA {last:.1e}")
assert alone > 0.05 and max(fused, first, last) < 1e-5, "changed"
PY
