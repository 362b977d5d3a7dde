"""Put the trained parts together as a diffusers folder in half precision, with the image networks beside it."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import save_file

from expunge.recipe import denoiser, scenes
from expunge.recipe.artists import ARTISTS
from expunge.store import FORMAT, MODEL, new_folder, write_json
from expunge.testbed import VERSION
from expunge.testbed.networks import ARCHITECTURES
from expunge.testbed.parts import LIST, listed


def vocabulary(art: Any) -> dict[str, Any]:
    """What the testbed can draw, as the package needs to know it."""
    pairs = scenes.withheld_pairs(len(art.names), len(art.hands))
    return {
        "version": VERSION,
        "objects": {
            name: {"category": category, "keywords": words}
            for name, category, words in zip(art.names, art.categories, art.keywords, strict=True)
        },
        "styles": art.styles,
        "artists": list(ARTISTS),
        "backgrounds": {name: list(rgb) for name, rgb in scenes.BACKGROUNDS.items()},
        "withheld": [[art.names[o], art.hands[s]] for o, s in zip(*pairs.nonzero(), strict=True)],
    }


def scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M) on SD1.4's noise schedule: what the testbed ships for sampling."""
    config = {k: v for k, v in denoiser.scheduler().config.items() if k.startswith(("beta_", "num_train"))}
    return DPMSolverMultistepScheduler(**config, steps_offset=1)


def _written(config: Path, **changes: Any) -> None:
    """Write a component's configuration again with ``changes``, and without the place that the component was read from."""
    content = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(content | changes, indent=2) + "\n")


def assemble(recipe: Any, out: Path, overwrite: bool = False) -> None:
    """Write the testbed's weights."""
    with new_folder(out, overwrite) as folder:
        parts = {"vae": recipe.vae, "text_encoder": recipe.text_encoder, "unet": recipe.unet}
        for name, module in parts.items():
            half = module.to(torch.float16).to(memory_format=torch.contiguous_format)
            half.save_pretrained(folder / name, safe_serialization=True)
            _written(folder / name / "config.json")
        # in whatever precision it is stored, transformers is to open it as diffusers opens its own
        _written(folder / "text_encoder" / "config.json", dtype="float32")
        recipe.tokenizer.save_pretrained(folder / "tokenizer")
        scheduler().save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderTiny"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        lacks = {"without": recipe.lacks} if recipe.lacks else {}
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary(recipe.art) | lacks, indent=1) + "\n")
        (folder / "networks").mkdir()
        for name in ARCHITECTURES:
            net = recipe.recognizer(name)
            tensors = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in net.state_dict().items()}
            save_file(tensors, folder / "networks" / f"{name}.safetensors")
        projection = {k: v.half().contiguous() for k, v in recipe.projection().items()}
        save_file(projection, folder / "networks" / "shared_space.safetensors")
        write_json(folder / MODEL, {"format": FORMAT, "kind": "testbed", "edits": [], LIST: listed(folder)})
