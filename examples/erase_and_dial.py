"""Erase a concept from a pipeline you hold, dial the edit's strength, save it, and take it off again bit for bit.

`python examples/erase_and_dial.py` uses the model in the box; give another model's folder or hub id as the argument.
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import expunge
from expunge.testbed import FOLDER


def main(model: str = str(FOLDER), out: str = "runs/example") -> None:
    pipe = DiffusionPipeline.from_pretrained(model, safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def church() -> torch.Tensor:
        seed = torch.Generator().manual_seed(7)
        return pipe("image of a church", num_inference_steps=8, generator=seed, output_type="pt").images

    before = church()
    edit = expunge.erase(pipe, "church", method="uce", retain=["castle", "house"])  # pipe is left as it was
    print("the pipeline is as it was:", torch.equal(church(), before))

    for strength in (0.25, 0.5, 1.0):  # 1 is the edit as made
        edit.attach(pipe, strength=strength)
        print(f"strength {strength}: the image moved by {float((church() - before).abs().mean()):.3f}")
        edit.detach(pipe)

    file = Path(out) / "church.safetensors"
    edit.save(file, overwrite=True)  # replaced tensors, and how they were made
    again = expunge.load_edit(file)
    again.attach(pipe)
    print(f"{file}: {again.provenance.eraser}, {file.stat().st_size / 1e6:.1f} MB")
    again.detach(pipe)
    print("detached, bit for bit the same:", torch.equal(church(), before))


if __name__ == "__main__":
    main(*sys.argv[1:])
