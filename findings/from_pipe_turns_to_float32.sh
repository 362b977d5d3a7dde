#!/usr/bin/env bash
# A second pipeline over the same weights, as for image to image with a model that was just edited.
# `from_pipe` is expected to share the parts of a bfloat16 pipeline as they are. Seen: without `torch_dtype` it turns them to float32, and since they
# are shared, the first pipeline too: its images change, and its memory doubles. No message says that. `torch_dtype=pipe.dtype` leaves both alone.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
import torch
from tiny_sd import image, pipeline

pipe = pipeline().to(torch.bfloat16)
before = image(pipe)
diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe, torch_dtype=pipe.dtype)
kept, same = pipe.unet.dtype, torch.equal(image(pipe), before)
diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
after = image(pipe)
print("the first pipeline's precision:", kept, "then", pipe.unet.dtype, "how far its image moved:", float((after - before).norm() / before.norm()))
assert kept == torch.bfloat16 and same
assert pipe.unet.dtype == torch.float32 and not torch.equal(after.float(), before.float()), "changed"
PY
