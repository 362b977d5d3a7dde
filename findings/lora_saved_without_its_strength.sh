#!/usr/bin/env bash
# A LoRA trained in a pipeline with an alpha that is not its rank, saved by `save_lora_weights(folder, unet_lora_layers=…)` from the
# state dict that peft gives, as many training scripts do, and loaded by `load_lora_weights`. An expert expects what was trained.
# Seen: the file has the matrices, and neither alpha nor the rule of scaling. It loads as if alpha were the rank: trained at alpha 1 and
# rank 4 it acts four times as strongly, trained at alpha 8 half as strongly; an eraser then ruins the model, or erases too little. With
# `unet_lora_adapter_metadata`, which is optional, it loads as it was. Neither saving nor loading says anything.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import tempfile

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from heard import heard
from tiny_sd import image, pipeline

original = image(pipeline())

def moved(pipe):
    return float((image(pipe) - original).norm())

for alpha in (1, 4, 8):
    pipe = pipeline()
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_v"]))
    generator = torch.Generator().manual_seed(1)
    for name, weight in pipe.unet.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    apart = {}
    for told, more in (("saved", {}), ("saved with metadata", _collate_lora_metadata({"unet": pipe.unet}))):
        with tempfile.TemporaryDirectory() as folder:
            with heard() as said:
                StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, **more)
                again = pipeline()
                again.load_lora_weights(folder)
            assert not said
        apart[told] = (round(moved(again), 2), round(float((image(again) - image(pipe)).norm()), 3))
    print(f"alpha {alpha}, rank 4: trained, the image moves by {moved(pipe):.2f};", *(f"{t}, by {m[0]};" for t, m in apart.items()))
    assert apart["saved with metadata"][1] < 1e-2
    assert (apart["saved"][1] < 1e-2) == (alpha == 4), "changed"
PY
