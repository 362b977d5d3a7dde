#!/usr/bin/env bash
# An erased model's weights, loaded into a pipeline that optimum-quanto has quantised.
# Editors' scripts do `unet.load_state_dict(weights, strict=False)`. Into a frozen eight-bit UNet the weight is expected to be quantised in turn, or
# to be refused (torchao raises). Seen: the call returns, the edited weight stands neither among the unexpected keys nor among the missing ones,
# and the model draws bit for bit what it drew before. `weight.data.copy_(edited)` does nothing either. Quantising after the edit works.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 optimum-quanto==0.2.7 <<'PY'
import torch
from heard import heard
from optimum.quanto import freeze, qint8, quantize
from tiny_sd import pipeline

unet = pipeline().unet
name = next(name for name in unet.state_dict() if name.endswith("attn2.to_k.weight"))
torch.manual_seed(0)
edited = {name: torch.randn_like(unet.state_dict()[name])}
given = torch.randn(1, 4, 8, 8), 5, torch.randn(1, 16, 32)

@torch.no_grad()
def drawn(unet):
    return unet(*given).sample

def quantised(unet):
    quantize(unet, weights=qint8)
    freeze(unet)
    return unet

before = drawn(quantised(unet))
with heard() as said:
    answer = unet.load_state_dict(edited, strict=False)
told = any(key.startswith(name) for key in (*answer.missing_keys, *answer.unexpected_keys))
loaded = drawn(unet)
unet.get_submodule(name.removesuffix(".weight")).weight.data.copy_(edited[name])
copied = drawn(unet)
other = pipeline().unet
other.load_state_dict(edited, strict=False)
first = drawn(quantised(other))
print("edited weight named in the answer:", told, "how far the prediction moved:", float((loaded - before).norm()), "by copy_:",
      float((copied - before).norm()), "edited before it was quantised:", float((first - before).norm()))
assert float((first - before).norm()) > 0.01
assert not said and not told and torch.equal(loaded, before) and torch.equal(copied, before), "changed"
PY
