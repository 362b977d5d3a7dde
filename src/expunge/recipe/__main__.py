"""``python -m expunge.recipe STAGE … --cache DIR``: each stage is skipped if its result is in the cache.

With ``--without CONCEPTS`` a model that never saw these: the shipped parts around a denoiser that is trained anew.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from expunge import testbed
from expunge.backbones.parts import device_and_dtype
from expunge.core.errors import ExpungeError
from expunge.recipe import (
    artwork,
    assemble,
    autoencoder,
    captions,
    denoiser,
    recognizers,
    scenes,
    score,
    text_tower,
    without,
)
from expunge.store import new_file, new_folder, read_json, write_json
from expunge.testbed.networks import ARCHITECTURES, Recognizer, opened

SCENES = 60_000
STEPS = {
    "autoencoder": 3300,
    "partner": 1300,
    "text_tower": 1400,
    "spread": 220,
    "denoiser": sum(cycle.updates for cycle in denoiser.CYCLES),
    "judge_a": 3000,
    "judge_b": 2500,
    "features": 1500,
    "leave_one_out": 700,
}
"""Updates of each stage: about 9, 3, 8, 1, 138, 10, 5, 3 and 8 minutes on two cores with bfloat16."""
RETRAINED = ("parts", "denoiser", "assemble")
"""Stages of a model without some concepts: the denoiser alone is trained, for about 138 minutes on two cores."""
SEEDS = {"partner": 11, "judge_a": 12, "judge_b": 13, "features": 14, "leave_one_out": 15}


def log(line: str) -> None:
    """One line of progress on standard error."""
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


class Recipe:
    """The stages, each of which reads what earlier ones left in the cache."""

    def __init__(self, cache: Path, lacks: Sequence[str] = (), device: str = "cpu") -> None:
        """In the folder ``cache``; a model that ``lacks`` some concepts needs one of its own.

        The denoiser is trained on ``device``.

        Raises:
            ExpungeError: if the cache is of a model that lacks others, or there is no such device.
        """
        device_and_dtype(device, "float32")
        self.cache, self.lacks, self.device = cache, list(lacks), device
        self.weights = cache / "weights"
        self._check_cache()

    def _check_cache(self) -> None:
        """Refuse what another model's denoiser was trained in; and say what this one's lacks."""
        said = self.cache / "without.json"
        begun = any((self.cache / file).exists() for file in ("latents.pt", "denoiser.pt"))
        others = read_json(said)["without"] if said.exists() else [] if begun else None
        if others is not None and others != self.lacks:
            what = [", ".join(concepts) or "nothing" for concepts in (others, self.lacks)]
            raise ExpungeError(
                f"'{self.cache}' is the cache of a model without {what[0]}, not without {what[1]}: expected another --cache"
            )
        if self.lacks and others is None:
            self.cache.mkdir(parents=True, exist_ok=True)
            write_json(said, {"without": self.lacks})

    @cached_property
    def art(self) -> artwork.Artwork:
        return artwork.load(self.cache)

    @cached_property
    def bank(self) -> scenes.Bank:
        return scenes.bank(self.art, SCENES, self.cache)

    @cached_property
    def seen(self) -> scenes.Bank:
        """The bank as the denoiser may see it."""
        return without.withheld(self.bank, self.lacks)

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
            trained = autoencoder.train(self.bank, STEPS["autoencoder"], log)
            with new_folder(folder) as temporary:
                trained.save_pretrained(temporary)
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
            with new_file(file) as temporary:
                save_file({k: v.contiguous() for k, v in net.state_dict().items()}, temporary)
        return opened(name, load_file(file))

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        folder = self.cache / "tokenizer"
        if not folder.exists():
            learned = captions.tokenizer(self.captions(), captions.english(self.cache))
            with new_folder(folder) as temporary:
                learned.save_pretrained(temporary)
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
            trained = text_tower.spread(
                trained,
                self.tokenizer,
                self.captioner,
                features,
                project.weight.detach(),
                self.bank,
                STEPS["spread"],
                log,
            )
            save_file(
                {"mean": features.mean(0), "std": features.std(0), **project.state_dict()},
                self.cache / "partner_projection.safetensors",
            )
            with new_folder(folder) as temporary:
                trained.save_pretrained(temporary)
        return CLIPTextModelWithProjection.from_pretrained(folder).eval()

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The tower without its projection: what a pipeline carries."""
        _ = self.tower
        return CLIPTextModel.from_pretrained(self.cache / "text_tower").eval()

    def denoiser(self) -> None:
        file = self.cache / "latents.pt"
        if not file.exists():
            encoded = denoiser.latents(self.vae, self.seen, self.device)
            with new_file(file) as temporary:
                torch.save(encoded, temporary)
            log("latents encoded")
        z = torch.load(file, weights_only=True)
        log(f"latents: {tuple(z.shape)}, mean {z.float().mean():.3f}, std {z.float().std():.3f}")
        unet = denoiser.train(
            z,
            self.seen,
            self.captioner,
            self.tokenizer,
            self.text_encoder,
            denoiser.CYCLES,
            self.cache / "denoiser.pt",
            log,
            device=self.device,
        )
        with new_folder(self.cache / "unet", overwrite=True, marker="config.json") as temporary:
            unet.save_pretrained(temporary)

    def leave_one_out(self) -> None:
        """Accuracy of judge B's architecture (the cheaper one) on each icon set when trained on the other five.

        Without artists: they work from drawings of these sets, also from that which is left out.
        """
        file = self.cache / "leave_one_out.json"
        if file.exists():
            return
        found: dict[str, dict[str, float]] = {}
        for i, style in enumerate(self.art.hands):
            single = (self.bank.objects[:, 1] < 0) & ~self.bank.by_artist
            held = self.bank.styles == i
            net = recognizers.train(
                "judge_b",
                self.heads(),
                self.bank,
                STEPS["leave_one_out"],
                SEEDS["leave_one_out"],
                log,
                keep=~held & ~self.bank.by_artist,
                artists=0.0,
            )
            found[style] = {
                "left_out": recognizers.accuracy(net, self.bank, np.flatnonzero(held & single)[:2000]),
                "in_set": recognizers.accuracy(net, self.bank, np.flatnonzero(~held & single)[:2000]),
            }
            log(f"left out {style}: {found[style]}")
        with new_file(file) as temporary:
            temporary.write_text(json.dumps(found))

    def assemble(self) -> None:
        """Put the parts together in the cache."""
        if not self.weights.exists():
            assemble.assemble(self, self.weights)

    def score(self) -> None:
        """Score what was assembled, in a process that takes it for the testbed; tells what is below the gates."""
        file = self.cache / "testbed.json"
        if not file.exists():
            code = "from expunge.recipe.__main__ import Recipe, score; from pathlib import Path; import sys; "
            code += "score.write(Recipe(Path(sys.argv[1])), Path(sys.argv[2]))"
            environment = {**os.environ, "EXPUNGE_TESTBED": str(self.weights)}
            subprocess.run([sys.executable, "-c", code, str(self.cache), str(file)], check=True, env=environment)
        missed = score.missed(json.loads(file.read_text()))
        log("every gate reached" if not missed else f"below the gates: {', '.join(missed)}")

    def parts(self) -> None:
        """Fill a cache with the shipped parts, but for the denoiser."""
        if (self.cache / "partner_projection.safetensors").exists():  # the last of them
            return
        shipped = testbed.SHIPPED
        for part in ("vae", "tokenizer"):
            shutil.copytree(shipped / part, self.cache / part, dirs_exist_ok=True)
        for name in ARCHITECTURES:
            tensors = load_file(shipped / "networks" / f"{name}.safetensors")
            save_file({k: v.float() for k, v in tensors.items()}, self.cache / f"{name}.safetensors")
        shared = {k: v.float() for k, v in load_file(shipped / "networks" / "shared_space.safetensors").items()}
        tower = text_tower.build(self.tokenizer)
        tower.load_state_dict(
            {
                f"text_model.{k.removeprefix('text_model.')}": v.float()
                for k, v in load_file(shipped / "text_encoder" / "model.safetensors").items()
            }
            | {"text_projection.weight": shared.pop("text")}
        )
        tower.save_pretrained(self.cache / "text_tower")
        with new_file(self.cache / "partner_projection.safetensors") as temporary:
            save_file(shared, temporary)

    def thaw(self) -> None:
        """Fill an empty cache with the shipped parts: another of `denoiser.CYCLES` then goes on from them.

        Thaw before that cycle is added: the checkpoint says that as many updates were made as all present cycles have.

        Raises:
            ExpungeError: if the cache has a part already, which may have been trained there.
        """
        networks = [f"{name}.safetensors" for name in (*ARCHITECTURES, "partner_projection")]
        trained = ("denoiser.pt", "latents.pt", "unet", "vae", "tokenizer", "text_tower", *networks)
        there = [name for name in trained if (self.cache / name).exists()]
        if there:
            raise ExpungeError(
                f"'{self.cache}' has {', '.join(there)} already, which thaw would replace: expected another --cache"
            )
        self.parts()
        shipped, step = testbed.SHIPPED, STEPS["denoiser"]
        unet = UNet2DConditionModel.from_pretrained(shipped / "unet", torch_dtype=torch.float32)
        state = unet.state_dict()
        optimizer = denoiser.optimizer_of(unet).state_dict()
        torch.save({"unet": state, "average": state, "optimizer": optimizer, "step": step}, self.cache / "denoiser.pt")
        unet.save_pretrained(self.cache / "unet")

    def install(self) -> None:
        """Make what was assembled the package's testbed, and its scores the committed ones."""
        shutil.rmtree(testbed.SHIPPED)
        shutil.copytree(self.weights, testbed.SHIPPED)
        shutil.copy(self.cache / "testbed.json", Path("benchmarks") / "testbed.json")
        shutil.copy(self.cache / "testbed.png", Path("docs") / "images" / "testbed.png")

    def run(self, stage: str) -> None:
        if stage in ("judge_a", "judge_b", "partner", "features"):
            self.recognizer(stage)
        elif stage == "autoencoder":
            _ = self.vae
        elif stage in ("text_tower", "spread"):
            _ = self.tower
        else:
            getattr(self, stage)()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the named stages in order."""
    stages = [*STEPS, "assemble", "score"]
    every = [*stages, "parts", "thaw", "install"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "stages",
        nargs="*",
        metavar="STAGE",
        help=f"any of {', '.join(every)}; all but the last three if none is named",
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloads, checkpoints and results")
    parser.add_argument(
        "--without",
        metavar="CONCEPTS",
        help="objects, categories of them or styles, with commas between, that the denoiser is not to see: its stages are "
        f"{', '.join(RETRAINED)}, in a cache of its own, and the model is CACHE/weights",
    )
    parser.add_argument("--device", default="cpu", help="where the denoiser is trained: cpu (the default) or cuda")
    options = parser.parse_args(argv)
    if options.without is not None:
        stages = every = list(RETRAINED)
    unknown = set(options.stages) - set(every)
    if unknown:
        parser.error(f"unknown stage {unknown.pop()}: expected any of {', '.join(every)}")
    try:
        lacks = [] if options.without is None else without.named(options.without)
        recipe = Recipe(options.cache, lacks, options.device)
    except ExpungeError as error:
        parser.error(str(error))
    for stage in options.stages or stages:
        log(f"stage {stage}")
        try:
            recipe.run(stage)
        except ExpungeError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
