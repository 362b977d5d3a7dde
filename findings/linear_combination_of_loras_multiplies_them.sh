#!/usr/bin/env bash
# Two LoRAs (two erasers, say) made into one by peft's `add_weighted_adapter(…, combination_type="linear")`, which an expert takes for
# the weighted sum of what both do: it is what both do that are active together, and what the name says.
# Seen: the two pairs of matrices are added, not their products. One's first matrix is multiplied with the other's second, too:
# (B1 + B2) (A1 + A2). For two that have nothing in common the error is as large as the sum itself, and the images are not those of
# both. Of a single adapter it is right, at any weight. `combination_type="cat"` is the sum; "svd" is one of lower rank. Nothing is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from tiny_sd import image, pipeline

pipe = pipeline()
config = LoraConfig(r=2, lora_alpha=2, target_modules=r".*attn2\.to_q")
unet = get_peft_model(pipe.unet, config, adapter_name="one")
unet.add_adapter("two", config)
layers = [m for n, m in unet.named_modules() if n.endswith("attn2.to_q")]
generator = torch.Generator().manual_seed(3)
for name in ("one", "two"):
    for layer in layers:
        for matrices, size in ((layer.lora_A, 1.0), (layer.lora_B, 0.1)):
            weight = matrices[name].weight
            weight.data = size * torch.randn(weight.shape, generator=generator)
pipe.unet = unet

def drawn(*names):
    """The image with some adapters, and what they add to the first layer that has them."""
    unet.base_model.set_adapter(list(names))
    return image(pipe), sum(layers[0].get_delta_weight(name) for name in names)

with unet.disable_adapter():
    original = image(pipe)
seen = {}
for names in (["one"], ["one", "two"]):
    wanted, total = drawn(*names)
    for kind in ("linear", "cat"):
        merged = f"{kind} of {len(names)}"
        unet.add_weighted_adapter(names, [1.0] * len(names), merged, combination_type=kind)
        found, weights = drawn(merged)
        moved = (wanted - original).norm()
        seen[merged] = (float((weights - total).norm() / total.norm()), float((found - wanted).norm() / moved))
for merged, (weights, images) in seen.items():
    print(f"{merged}: weights off by {weights:.3f} of the sum, images by {images:.3f} of what both move")
assert all(max(seen[good]) < 1e-3 for good in ("linear of 1", "cat of 1", "cat of 2"))
assert seen["linear of 2"][0] > 0.5 and seen["linear of 2"][1] > 0.2, "changed"
PY
