#!/usr/bin/env bash
# A second pipeline over the same weights, as for image to image with a model that was just edited.
# `from_pipe` is expected to share the parts of a bfloat16 pipeline as they are. Seen: without `torch_dtype` it turns them to float32, and since they
# are shared, the first pipeline too: its images change, and its memory doubles. What is said are two lines on `to()` in general, with an empty
# list of modules. `torch_dtype=pipe.dtype` leaves both alone.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
import torch
from heard import heard
from tiny_sd import image, pipeline

pipe = pipeline().to(torch.bfloat16)
before = image(pipe)
diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe, torch_dtype=pipe.dtype)
kept, same = pipe.unet.dtype, torch.equal(image(pipe), before)
with heard() as said:
    diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
after = image(pipe)
print("the first pipeline's precision:", kept, "then", pipe.unet.dtype, "how far its image moved:", float((after - before).norm() / before.norm()), "said:", said)
assert kept == torch.bfloat16 and same and len(said) == 2 and all("should be kept in float32: []" in line for line in said)
assert pipe.unet.dtype == torch.float32 and not torch.equal(after.float(), before.float()), "changed"
PY
