"""Erase with KPOP, publish the edit, keep the key, and bring the concept back with it.

A few minutes on two cores with the model in the box.
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import expunge
from expunge.core.catalog import Catalog
from expunge.testbed import FOLDER


def main(out: str = "runs/example-key", iterations: str = "100") -> None:
    pipe = DiffusionPipeline.from_pretrained(FOLDER, safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    judge = Catalog("judges").open("testbed")

    def shown(word: str) -> float:
        """Share of eight images in which the judge finds ``word``."""
        seeds = [torch.Generator().manual_seed(i) for i in range(8)]
        made = pipe(
            [f"image of a {word}"] * 8, num_inference_steps=8, guidance_scale=4.0, generator=seeds, output_type="pt"
        )
        pixels = (made.images * 255).round().byte().permute(0, 2, 3, 1)
        best = judge.scores(pixels).argmax(1).tolist()
        return sum(i in judge.label_ids(word) for i in best) / len(best)

    print(f"before: church {shown('church'):.0%}, dog {shown('dog'):.0%}")
    edit = expunge.erase(pipe, "church", method="kpop", retain="dog", settings={"iterations": int(iterations)})
    Path(out).mkdir(parents=True, exist_ok=True)
    edit.save(Path(out) / "edit.safetensors", overwrite=True)  # to be published
    edit.key.save(Path(out) / "key.safetensors", overwrite=True)  # to be kept: its file is yours alone to read

    edit.attach(pipe)
    print(f"erased: church {shown('church'):.0%}, dog {shown('dog'):.0%}")
    for name, key in {"key": edit.key, "a random key": edit.key.random(0)}.items():
        key.attach(pipe)
        print(f"with {name}: church {shown('church'):.0%}, dog {shown('dog'):.0%}")
        key.detach(pipe)
    edit.detach(pipe)


if __name__ == "__main__":
    main(*sys.argv[1:])
