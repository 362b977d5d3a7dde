# An edited model saved over the folder that it was opened from, in smaller files: `save_pretrained(folder, max_shard_size=…)`.
# An expert expects the folder to open as what was saved last. Seen: the earlier single file stays beside the new ones in each component. Of
# the UNet diffusers opens the new files, of the text encoder transformers opens the old one. So a concept that was erased in the text
# encoder (AdvUnlearn, say) is back, and one that was erased in both opens half erased. Nothing is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
import torch
from heard import heard
from tiny_sd import pipeline

def total(module):
    return sum(float(p.detach().abs().sum()) for p in module.parameters())

pipe = pipeline()
pipe.save_pretrained("model")
before = {part: total(getattr(pipe, part)) for part in ("unet", "text_encoder")}
for part in before:
    for p in getattr(pipe, part).parameters():
        p.data.mul_(2)  # an edit that can be told
with heard() as said:
    pipe.save_pretrained("model", max_shard_size="20KB")
    again = diffusers.StableDiffusionPipeline.from_pretrained("model")
times = {part: round(total(getattr(again, part)) / before[part], 3) for part in before}
print("opened, of what was saved first (1) and last (2):", times)
assert not said and times == {"unet": 2.0, "text_encoder": 1.0}, "changed"
PY
