#!/usr/bin/env bash
# A fused LoRA whose strength is set before it is unfused, as a slider or a loop over strengths does.
# Expected: `set_adapters` is refused or acts, and `unfuse_lora()` gives the model's own weights back. Seen: while fused the new strength
# changes no image, and unfusing takes away what the LoRA is worth now, not what was added. The weights stay changed, and stay so
# when the LoRA is unloaded. Nothing says so.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import torch
from heard import heard
from tiny_sd import image, pipeline

plain, pipe = pipeline(), pipeline()
generator, tensors = torch.Generator().manual_seed(3), {}
for name, layer in pipe.unet.named_modules():
    if name.endswith("to_q"):
        tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
        tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator) * 0.3

def left(strength):
    pipe.load_lora_weights(tensors, adapter_name="lora")
    pipe.fuse_lora()
    fused = image(pipe)
    if strength is not None:
        pipe.set_adapters(["lora"], [strength])
    same = torch.equal(fused, image(pipe))
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    weights = {name: tensor for name, tensor in plain.unet.state_dict().items() if name.endswith("to_q.weight")}
    ours = pipe.unet.state_dict()
    return same, max(float((ours[name] - tensor).norm() / tensor.norm()) for name, tensor in weights.items())

untouched = left(None)
with heard() as said:
    same, changed = left(0.5)
print("weights after unfusing, from the model's own: as fused", untouched[1], "set to 0.5 while fused", changed, "image changed when set:", not same)
assert untouched[1] < 1e-5
assert not said and same and changed > 0.1, "changed"
PY
