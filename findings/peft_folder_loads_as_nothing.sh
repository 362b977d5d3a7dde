#!/usr/bin/env bash
# A LoRA that was trained with peft (`get_peft_model(pipe.unet, …)`) and saved by peft, loaded by a pipeline.
# Expected: it acts, or is refused, since its tensors are named `base_model.model.…` and not `unet.…`. Seen: `load_lora_weights` takes the
# file, loads nothing of it, and logs that this is "safe to ignore". Who publishes an erasure so ships the model as it was.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import tempfile

import peft
import torch
from heard import heard
from tiny_sd import image, pipeline

trained, plain = pipeline(), pipeline()
settings = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
trained.unet = peft.get_peft_model(trained.unet, settings)
with tempfile.TemporaryDirectory() as folder:
    trained.unet.save_pretrained(folder)
    before = image(plain)
    with heard() as said:
        plain.load_lora_weights(folder, weight_name="adapter_model.safetensors")
    after = image(plain)
    again = pipeline()
    again.unet = peft.PeftModel.from_pretrained(again.unet, folder)
change = {name: float((images - before).norm() / before.norm()) for name, images in {"trained": image(trained), "loaded by peft": image(again), "by the pipeline": after}.items()}
print("how far from the image without:", change, "adapters of the pipeline:", plain.get_list_adapters())
assert change["trained"] > 0.01 and abs(change["loaded by peft"] - change["trained"]) < 1e-4
assert any("safe to ignore" in line.lower() for line in said)
assert change["by the pipeline"] == 0 and not plain.get_list_adapters(), "changed"
PY
