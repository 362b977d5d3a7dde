#!/usr/bin/env bash
# The strength of a LoRA (an eraser's, say), changed for one image or for a fusion, and what comes afterwards.
# An expert takes `cross_attention_kwargs={"scale": …}` to be of that call, and `unfuse_lora()` to undo `fuse_lora(lora_scale=…)`. Seen:
# - A call with scale 0, to see the model without the LoRA, sets its strength to 1 for all later calls, whatever `set_adapters` had
#   asked for. Any other scale is taken back.
# - `lora_scale` multiplies the strength for good. After unfusing, the LoRA acts at half; fused at half once more, at a quarter.
# Neither is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import torch
from heard import heard
from tiny_sd import image, pipeline

def made(strength):
    pipe, generator, tensors = pipeline(), torch.Generator().manual_seed(3), {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith("to_q"):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator) * 0.3
    pipe.load_lora_weights(tensors, adapter_name="lora")
    pipe.set_adapters(["lora"], [strength])
    return pipe

known = {strength: image(made(strength)) for strength in (0.25, 0.5, 1.0)}

def acts_at(pipe):
    apart = {strength: float((image(pipe) - there).norm()) for strength, there in known.items()}
    found = min(apart, key=apart.get)
    assert apart[found] < 1e-3
    return found

with heard() as said:
    pipe, seen = made(0.5), {}
    image(pipe, cross_attention_kwargs={"scale": 0.3})
    seen["0.5, after a call with scale 0.3"] = acts_at(pipe)
    image(pipe, cross_attention_kwargs={"scale": 0.0})
    seen["0.5, after a call with scale 0"] = acts_at(pipe)
    pipe = made(1.0)
    pipe.fuse_lora(lora_scale=0.5)
    seen["1, fused at half"] = acts_at(pipe)
    pipe.unfuse_lora()
    seen["then unfused"] = acts_at(pipe)
    pipe.fuse_lora(lora_scale=0.5)
    seen["then fused at half again"] = acts_at(pipe)
print(seen)
assert not said and seen["0.5, after a call with scale 0.3"] == seen["1, fused at half"] == 0.5
assert [seen[k] for k in ("0.5, after a call with scale 0", "then unfused", "then fused at half again")] == [1.0, 0.5, 0.25], "changed"
PY
