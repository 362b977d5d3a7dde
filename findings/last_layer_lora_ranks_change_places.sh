#!/usr/bin/env bash
# A LoRA of FLUX in the names of Black Forest Labs, which diffusers turns into its own when it loads one of theirs.
# The last layer's shift and scale stand the other way round in diffusers, so the halves of its rows are exchanged. An expert expects that of
# the matrix up, whose rows these are. Seen: the matrix down is cut in halves, too, and its rows are ranks. Up times down is another matrix
# then; every other layer comes out right. A LoRA that reaches the last layer does something else than in its authors' code.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from diffusers import FluxPipeline

WIDTH, RANK = 3072, 2
generator = torch.Generator().manual_seed(0)
file = {}

def add(name, rows, columns):
    file[f"{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator)
    file[f"{name}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator)

for name, columns in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
    add(f"{name}.in_layer", WIDTH, columns)
    add(f"{name}.out_layer", WIDTH, WIDTH)
add("img_in", WIDTH, 64)
add("txt_in", WIDTH, 4096)
for i in range(19):
    for side in ("img", "txt"):
        block = f"double_blocks.{i}.{side}"
        for part, rows, columns in (
            ("mod.lin", 6, 1), ("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.0", 4, 1), ("mlp.2", 1, 4)
        ):
            add(f"{block}_{part}", rows * WIDTH, columns * WIDTH)
        for one in ("query", "key"):
            file[f"{block}_attn.norm.{one}_norm.scale"] = torch.ones(128)
for i in range(38):
    for part, rows, columns in (("modulation.lin", 3, 1), ("linear1", 7, 1), ("linear2", 1, 5)):
        add(f"single_blocks.{i}.{part}", rows * WIDTH, columns * WIDTH)
    for one in ("query", "key"):
        file[f"single_blocks.{i}.norm.{one}_norm.scale"] = torch.ones(128)
add("final_layer.linear", 64, WIDTH)
add("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)

def change(tensors, name):
    return tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]

own = change(file, "final_layer.adaLN_modulation.1")
shift, scale = own.chunk(2)
out = change(file, "final_layer.linear")
theirs = FluxPipeline.lora_state_dict(dict(file))
far = {
    name: float((change(theirs, f"transformer.{name}") - wanted).norm() / wanted.norm())
    for name, wanted in {"norm_out.linear": torch.cat([scale, shift]), "proj_out": out}.items()
}
print("how far from what the file says:", far)
assert far["proj_out"] < 1e-5
assert far["norm_out.linear"] > 1, "changed"
PY
