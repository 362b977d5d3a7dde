"""``python -m expunge.testbed.recipe STAGE … --cache DIR``: each stage is skipped if its result is in the cache."""

import argparse
import json
import sys
import time
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from expunge import testbed
from expunge.testbed.networks import Recognizer
from expunge.testbed.recipe import (
    artwork,
    assemble,
    autoencoder,
    captions,
    denoiser,
    recognizers,
    scenes,
    score,
    text_tower,
)

SCENES = 60_000
STEPS = {
    "autoencoder": 3300,
    "partner": 1300,
    "text_tower": 1400,
    "denoiser": 3800,
    "judge_a": 1600,
    "judge_b": 1100,
    "features": 700,
    "leave_one_out": 500,
}
"""Updates of each stage: about 9, 3, 8, 66, 4, 4, 2 and 6 minutes on two cores."""
SEEDS = {"partner": 11, "judge_a": 12, "judge_b": 13, "features": 14, "leave_one_out": 15}


def log(line: str) -> None:
    """One line of progress on standard error."""
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


class Recipe:
    """The stages, each of which reads what earlier ones left in the cache."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    @cached_property
    def art(self) -> artwork.Artwork:
        return artwork.load(self.cache)

    @cached_property
    def bank(self) -> scenes.Bank:
        return scenes.bank(self.art, SCENES, self.cache)

    @cached_property
    def captioner(self) -> captions.Captioner:
        return captions.Captioner(self.art)

    def heads(self, *extra: str) -> dict[str, int]:
        sizes = {"style": len(self.art.styles), "valid": 1, "background": len(scenes.BACKGROUNDS)}
        return {"objects": len(self.art.names)} | {name: sizes[name] for name in extra}

    @cached_property
    def vae(self) -> AutoencoderTiny:
        folder = self.cache / "vae"
        if not folder.exists():
            autoencoder.train(self.bank, STEPS["autoencoder"], log).save_pretrained(folder)
        return AutoencoderTiny.from_pretrained(folder).eval()

    def recognizer(self, name: str) -> Recognizer:
        heads = {
            "judge_a": self.heads("style", "valid"),
            "judge_b": self.heads("style", "valid"),
            "partner": self.heads("style", "background"),
            "features": self.heads("style"),
        }[name]
        file = self.cache / f"{name}.safetensors"
        if not file.exists():
            net = recognizers.train(name, heads, self.bank, STEPS[name], SEEDS[name], log)
            save_file({k: v.contiguous() for k, v in net.state_dict().items()}, file)
        net = Recognizer(name, heads)
        net.load_state_dict(load_file(file))
        return net.eval()

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        folder = self.cache / "tokenizer"
        if not folder.exists():
            captions.tokenizer(self.captions(), captions.english(self.cache)).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)

    def captions(self) -> list[str]:
        """One caption for each of 40,000 scenes: the text that the tokenizer learns from."""
        rng = np.random.default_rng(0)
        return [self.captioner.caption(self.bank.scene(i), rng) for i in range(40_000)]

    def projection(self) -> dict[str, torch.Tensor]:
        """What takes texts and images into the space they share."""
        _ = self.tower
        text = load_file(self.cache / "text_tower" / "model.safetensors")["text_projection.weight"]
        return {**load_file(self.cache / "partner_projection.safetensors"), "text": text}

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(self.cache / "unet").eval()

    @cached_property
    def tower(self) -> CLIPTextModelWithProjection:
        folder = self.cache / "text_tower"
        if not folder.exists():
            features = text_tower.image_features(self.recognizer("partner"), self.bank.images[:30_000])
            words = [w for w, _ in captions.english(self.cache)[:3000]]
            trained, project = text_tower.train(
                self.tokenizer, self.captioner, features, self.bank, words, STEPS["text_tower"], log
            )
            save_file(
                {"mean": features.mean(0), "std": features.std(0), **project.state_dict()},
                self.cache / "partner_projection.safetensors",
            )
            trained.save_pretrained(folder)
        return CLIPTextModelWithProjection.from_pretrained(folder).eval()

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The tower without its projection: what a pipeline carries."""
        _ = self.tower
        return CLIPTextModel.from_pretrained(self.cache / "text_tower").eval()

    def denoiser(self) -> None:
        file = self.cache / "latents.pt"
        if not file.exists():
            torch.save(denoiser.latents(self.vae, self.bank), file)
            log("latents encoded")
        z = torch.load(file, weights_only=True)
        log(f"latents: {tuple(z.shape)}, mean {z.float().mean():.3f}, std {z.float().std():.3f}")
        unet = denoiser.train(
            z,
            self.bank,
            self.captioner,
            self.tokenizer,
            self.text_encoder,
            STEPS["denoiser"],
            self.cache / "denoiser.pt",
            log,
        )
        unet.save_pretrained(self.cache / "unet")

    def leave_one_out(self) -> None:
        """Accuracy of judge A's architecture on each icon set when trained on the other five."""
        file = self.cache / "leave_one_out.json"
        if file.exists():
            return
        found: dict[str, dict[str, float]] = {}
        for i, style in enumerate(self.art.styles):
            single = self.bank.objects[:, 1] < 0
            held = self.bank.styles == i
            net = recognizers.train(
                "judge_a",
                self.heads("style", "valid"),
                self.bank,
                STEPS["leave_one_out"],
                SEEDS["leave_one_out"],
                log,
                keep=~held,
            )
            found[style] = {
                "left_out": recognizers.accuracy(net, self.bank, np.flatnonzero(held & single)[:2000]),
                "in_set": recognizers.accuracy(net, self.bank, np.flatnonzero(~held & single)[:2000]),
            }
            log(f"left out {style}: {found[style]}")
        file.write_text(json.dumps(found))

    def assemble(self) -> None:
        """Write the package's weights, unless they are there."""
        if not testbed.FOLDER.exists():
            assemble.assemble(self, testbed.FOLDER)

    def score(self) -> None:
        """Write the testbed's scores beside the other benchmarks of a checkout."""
        score.write(self, Path("benchmarks") / "testbed.json")

    def run(self, stage: str) -> None:
        if stage in ("judge_a", "judge_b", "partner", "features"):
            self.recognizer(stage)
        elif stage == "autoencoder":
            _ = self.vae
        elif stage == "text_tower":
            _ = self.tower
        else:
            getattr(self, stage)()


def main() -> None:
    """Run the named stages in order."""
    stages = [*STEPS, "assemble", "score"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "stages", nargs="*", choices=[*stages, []], default=stages, metavar="STAGE", help=f"any of {stages}"
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloads, checkpoints and results")
    options = parser.parse_args()
    recipe = Recipe(options.cache)
    for stage in options.stages or stages:
        log(f"stage {stage}")
        recipe.run(stage)


if __name__ == "__main__":
    main()
