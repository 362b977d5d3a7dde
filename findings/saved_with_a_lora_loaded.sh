#!/usr/bin/env bash
# A pipeline with a LoRA (what DUO, LECO and many others publish), saved as a folder: to keep it, or after fusing it to pass on plain weights.
# Expected: a folder that draws what the pipeline drew. Seen, whether the LoRA is loaded or fused (but not unloaded): the UNet's file
# has the weights as `to_q.base_layer.weight` with the LoRA's beside them, and nothing that `from_pretrained` looks for. It opens the
# folder all the same, with whatever was in memory in the place of those weights; only the log speaks of them. Of a text encoder
# with a LoRA the folder has the LoRA alone, so the encoder's own weights are not saved, and the folder does not open.
# After `fuse_lora()` and `unload_lora_weights()` the folder is right.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import os
import tempfile

import diffusers
import safetensors
import torch
from tiny_sd import image, pipeline

def lora(pipe, part):
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, layer in getattr(pipe, part).named_modules():
        if name.endswith(("to_q", "q_proj")):
            tensors[f"{part}.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
            tensors[f"{part}.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator) * 0.3
    pipe.load_lora_weights(tensors)

def saved(part, *calls):
    pipe = pipeline()
    lora(pipe, part)
    for call in calls:
        getattr(pipe, call)()
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        with safetensors.safe_open(f"{folder}/unet/diffusion_pytorch_model.safetensors", "pt") as file:
            names = [name for name in file.keys() if "attn1.to_q" in name][:1]
        files = sorted(os.listdir(f"{folder}/text_encoder"))
        try:
            again = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        except OSError:
            return names, files, "does not open"
        again.set_progress_bar_config(disable=True)
        return names, files, "draws the same" if torch.allclose(image(again), image(pipe), atol=1e-4) else "opens, and draws something else"

for part, *calls in (("unet",), ("unet", "fuse_lora"), ("text_encoder",), ("unet", "fuse_lora", "unload_lora_weights")):
    names, files, said = saved(part, *calls)
    print(part, *calls, "->", said, names, files)
    wanted = "does not open" if part == "text_encoder" else "draws the same" if len(calls) == 2 else "opens, and draws something else"
    assert said == wanted, "changed"
PY
