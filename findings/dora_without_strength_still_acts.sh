#!/usr/bin/env bash
# A LoRA with magnitudes (DoRA) at strength 0, which an expert takes for the model without it, as it is for any other LoRA.
# Seen: `set_adapters([name], [0.0])` takes away the low-rank part alone. The magnitudes, which are learned too, heed no strength (here
# they are a tenth longer than the model's own), so the images stay changed: a slider of strength that ends at 0 never shows the original, and an eraser that is "off" is
# not. `disable_lora()` gives the original. Nothing is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import torch
from heard import heard
from tiny_sd import image, pipeline

def adapter(pipe, magnitudes):
    """Low-rank matrices of a few layers, and for DoRA the lengths of their rows, a tenth longer than the model's own."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith("attn2.to_q"):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator) * 0.03
            if magnitudes:
                tensors[f"unet.{name}.lora_magnitude_vector.weight"] = 1.1 * layer.weight.norm(dim=1)
    return tensors

original, moved = image(pipeline()), {}
for kind in ("lora", "dora"):
    pipe = pipeline()
    pipe.load_lora_weights(adapter(pipe, kind == "dora"), adapter_name="it")
    with heard() as said:
        for strength in (1.0, 0.5, 0.0):
            pipe.set_adapters(["it"], [strength])
            moved[kind, strength] = float((image(pipe) - original).norm())
    assert not said
    pipe.disable_lora()
    moved[kind, "off"] = float((image(pipe) - original).norm())
print({" ".join(map(str, key)): round(value, 3) for key, value in moved.items()})
assert moved["lora", 0.0] == moved["lora", "off"] == moved["dora", "off"] == 0
assert moved["dora", 0.0] > 0.05 * moved["dora", 1.0], "changed"
PY
