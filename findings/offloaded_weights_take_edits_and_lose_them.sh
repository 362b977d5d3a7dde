#!/usr/bin/env bash
# An edit of weights (a closed form, say) on a model whose weights accelerate keeps elsewhere and brings in layer by layer
# (`cpu_offload`; what `enable_sequential_cpu_offload` of a pipeline calls): how one edits a model that does not fit a GPU.
# An expert expects it to act, or an error, as parameters are on the meta device. Seen: writing into a weight, and a new
# `nn.Parameter` in its place, pass without a word, and the next image is the original's to the last bit: the hook brings in what
# it had before. (`load_state_dict` warns.)
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 <<'PY'
import accelerate
import torch
from heard import heard
from tiny_sd import image, pipeline

def halved(layer):
    with torch.no_grad():
        layer.weight.mul_(0.5)

def copied(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.zeros(layer.weight.shape))

def replaced(layer):
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape))

original, seen = image(pipeline()), {}
for edit in (halved, copied, replaced):
    for offloaded in (False, True):
        pipe = pipeline()
        if offloaded:
            accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
        with heard() as said:
            for name, layer in pipe.unet.named_modules():
                if name.endswith("attn2.to_v"):
                    edit(layer)
            drawn = image(pipe)
        assert not said
        seen[edit.__name__, "offloaded" if offloaded else "plain"] = not torch.equal(drawn, original)
print("the edit acts:", seen)
assert all(acts == (how == "plain") for (_, how), acts in seen.items()), "changed"
PY
