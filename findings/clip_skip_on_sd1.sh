#!/usr/bin/env bash
# clip_skip of StableDiffusionPipeline with transformers 5.6 or later: every value but None raises AttributeError. The pipeline reads
# `text_encoder.text_model.final_layer_norm`, and CLIPTextModel has no level `text_model` any more. (SDXL needs no final norm there, and works.)
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 <<'PY'
import diffusers
import torch
from tiny_sd import image, pipeline

image(pipeline())
try:
    image(pipeline(), clip_skip=1)
except AttributeError as error:
    print("clip_skip=1:", error)
    assert "text_model" in str(error), "changed"
else:
    raise SystemExit("changed: clip_skip=1 works")
PY
