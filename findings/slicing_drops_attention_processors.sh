#!/usr/bin/env bash
# An erasure that lives in the attention processors (as that of Forget-Me-Not and of many attention editors does), and the option
# that saves memory. Expected: `enable_attention_slicing()` computes the same in slices. Seen: it puts diffusers' own processor in the
# place of whatever was set, so the pipeline draws as if nothing had been erased; `disable_attention_slicing()` gives the default back,
# and not what was there. `fuse_qkv_projections()` does the first, too, and gives back what it took. Nothing is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
from diffusers.models.attention_processor import AttnProcessor2_0
from heard import heard
from tiny_sd import image, pipeline

class Halved(AttnProcessor2_0):
    """Reads half of what the text says."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **more):
        out = super().__call__(attn, hidden_states, encoder_hidden_states, **more)
        return out if encoder_hidden_states is None else out / 2

plain, pipe = image(pipeline()), pipeline()

def acts():
    return float((image(pipe) - plain).norm() / plain.norm()) > 0.01

pipe.unet.set_attn_processor(Halved())
seen = {"set": acts()}
for call in ("fuse_qkv_projections", "unfuse_qkv_projections", "enable_attention_slicing", "disable_attention_slicing"):
    with heard() as said:
        getattr(pipe, call)()
        seen[call] = acts()
    assert not said
print("the processor acts:", seen)
assert list(seen.values()) == [True, False, True, False, False], "changed"
PY
