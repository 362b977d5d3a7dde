#!/usr/bin/env bash
# A pipeline saved in float16 and opened without a dtype: transformers gives its components in the precision that they were saved in,
# diffusers gives its own in float32, and the first prompt fails. What save_pretrained wrote, from_pretrained does not open as it was.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 <<'PY'
import diffusers
import torch
from tiny_sd import image, pipeline

pipeline().to(torch.float16).save_pretrained("saved")
pipe = diffusers.StableDiffusionPipeline.from_pretrained("saved")
seen = {name: str(part.dtype) for name, part in pipe.components.items() if hasattr(part, "dtype")}
print("opened again:", seen)
assert seen == {"vae": "torch.float32", "text_encoder": "torch.float16", "unet": "torch.float32"}, "changed"
try:
    image(pipe)
except RuntimeError as error:
    print("the first prompt:", error)
else:
    raise SystemExit("changed: it works")
PY
