#!/usr/bin/env bash
# A LoRA in training beside one that is frozen (a distilled model's, say), with the model without either as the reference, as preference
# losses (DUO, Diffusion-DPO) need it. `disable_adapters()` and `enable_adapters()` around the reference are expected to leave alone which
# parameters learn. Seen: switching off freezes all of them, and switching on thaws every active one, the frozen LoRA too. So an optimiser or
# a gradient norm that takes what `requires_grad` takes it in from the second update on. Nothing says so.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
from peft import LoraConfig
from heard import heard
from tiny_sd import pipeline

unet = pipeline().unet
unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"]), "frozen")
unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"]), "mine")
unet.set_adapters(["frozen", "mine"])
for name, parameter in unet.named_parameters():
    parameter.requires_grad_(".mine." in name)

def learning():
    return sorted({name.split(".")[-2] for name, parameter in unet.named_parameters() if parameter.requires_grad})

before = learning()
with heard() as said:
    unet.disable_adapters()
    off = learning()
    unet.enable_adapters()
after = learning()
print("adapters that learn: before", before, "switched off", off, "and on again", after)
assert before == ["mine"] and off == []
assert not said and after == ["frozen", "mine"], "changed"
PY
