#!/usr/bin/env bash
# An erasure published as a LoRA, and a user who then loads a LoRA of a style.
# Two calls of `load_lora_weights` with two files are expected to add both changes, as the same two files do in other programs. Seen: the second
# call switches the first LoRA off. Its weights stay in memory, `get_active_adapters` names the second alone, and images are bit for bit
# those of the second without the first. So a style's LoRA undoes the erasure. peft warns of "multiple adapters in the model", which sounds
# like both. `set_adapters` with both names adds them.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import torch
from peft import LoraConfig, get_peft_model_state_dict
from heard import heard
from tiny_sd import image, pipeline

def lora(seed):
    torch.manual_seed(seed)
    unet = pipeline().unet
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_v"], init_lora_weights="gaussian"))
    weights = get_peft_model_state_dict(unet)
    return {f"unet.{name}": torch.randn_like(weight) for name, weight in weights.items()}

def with_loaded(*loras):
    pipe = pipeline()
    for weights in loras:
        pipe.load_lora_weights(dict(weights))
    return pipe

def apart(one, other):
    return float((one - other).norm() / other.norm())

erasure, style = lora(1), lora(2)
with heard() as said:
    both = with_loaded(erasure, style)
alone = with_loaded(style)
seen = image(both)
print("active:", both.get_active_adapters(), "how far from the style alone:", apart(seen, image(alone)))
moved = apart(image(with_loaded(erasure)), image(pipeline()))
both.set_adapters(["default_0", "default_1"])
added = apart(image(both), seen)
print("how far the erasure alone moves an image:", moved, "both by set_adapters from that:", added)
assert any("multiple adapters in the model" in line for line in said)
assert moved > 0.01 and added > 0.01
assert torch.equal(seen, image(alone)), "changed"
PY
