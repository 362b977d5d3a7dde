#!/usr/bin/env bash
# The frozen model that an erasure is held to, as the model with its LoRA switched off: how a preference loss gets its reference, and
# how ESD or SPM get what the original predicts, without a second copy. An expert takes a LoRA that is off, or deleted, for no LoRA.
# Seen: with the initialisations "pissa" and "olora" of `LoraConfig`, which are made to learn faster, the layers themselves are changed
# when the adapter is added: what it holds is taken out of them. With it the model is the original; without it, it is not, and deleting
# it leaves the model so. The reference is then some other model from the first update on. peft's page on these initialisations says
# that they change the layers; nothing says so where the adapter is switched off or deleted. The usual initialisation, "gaussian" and
# "orthogonal" leave the layers as they are.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
from peft import LoraConfig
from heard import heard
from tiny_sd import image, pipeline

original, moved = image(pipeline()), {}
for start in (True, "gaussian", "orthogonal", "pissa", "olora"):
    pipe = pipeline()
    away = lambda: round(float((image(pipe) - original).norm()), 3)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=start, target_modules=["to_q", "to_v"]), adapter_name="it")
    on = away()
    with heard() as said:
        pipe.unet.disable_adapters()
        off = away()
        pipe.unet.enable_adapters()
        pipe.unet.delete_adapters("it")
        moved[start] = {"on": on, "off": off, "deleted": away()}
    assert not said
    print(f"init_lora_weights={start!r}: images away from the original's by", moved[start])
assert all(value < 1e-2 for start in (True, "gaussian", "orthogonal") for value in moved[start].values())
for start in ("pissa", "olora"):
    assert moved[start]["on"] < 1e-2 and min(moved[start]["off"], moved[start]["deleted"]) > 1, "changed"
PY
