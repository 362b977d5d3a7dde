#!/usr/bin/env bash
# One picture, several prompts, and a list of generators, one an image: a batch of inpainting (SD), or of image to image on FLUX, as when an
# eraser's prompts are drawn over the same picture before and after.
# An expert expects each image to be what its prompt and its generator give alone, as in image to image of Stable Diffusion, and in all three
# for one picture an image. Seen: the picture's latents are drawn once, from the first generator alone, while alone every image draws them
# from its own before its noise. So only the first image of the batch is the one that its seed gives; the others get other noise.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import diffusers
import tiny_flux
import tiny_sd
import torch

def seeded(seed):
    return torch.Generator().manual_seed(seed)

def of(cls, parts):
    names = {name: part for name, part in parts.items() if name != "image_encoder"}
    pipe = cls(**names) if "transformer" in parts else cls(**names, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe

def equal(pipe, texts, **call):
    """Whether each of two images of a batch is the one that its text and generator give alone."""
    def drawn(text, generator, picture):
        pictures = {k: v[:1].repeat(picture, 1, 1, 1) for k, v in call.items()}
        return pipe(**text, **pictures, strength=0.8, generator=generator, num_inference_steps=5, output_type="latent").images

    both = {k: torch.cat([t[k] for t in texts]) for k in texts[0]}
    alone = [drawn(text, seeded(seed), 1)[0] for seed, text in enumerate(texts)]
    found = {}
    for pictures in (1, 2):
        batch = drawn(both, [seeded(0), seeded(1)], pictures)
        found[pictures] = [bool((a - b).norm() < 1e-3 * a.norm()) for a, b in zip(alone, batch)]
    return found

draw = seeded(9)
picture, mask = torch.rand(1, 3, 16, 16, generator=draw), torch.ones(1, 1, 16, 16)
words = [{"prompt_embeds": torch.randn(1, 16, 32, generator=draw), "negative_prompt_embeds": torch.zeros(1, 16, 32)} for _ in range(2)]
vectors = [
    {"prompt_embeds": torch.randn(1, 8, 32, generator=draw), "pooled_prompt_embeds": torch.randn(1, 32, generator=draw)} for _ in range(2)
]
sd, flux = tiny_sd.pipeline().components, tiny_flux.pipeline().components
seen = {
    "SD, image to image": equal(of(diffusers.StableDiffusionImg2ImgPipeline, sd), words, image=picture),
    "SD, inpainting": equal(of(diffusers.StableDiffusionInpaintPipeline, sd), words, image=picture, mask_image=mask),
    "FLUX, image to image": equal(of(diffusers.FluxImg2ImgPipeline, flux), vectors, image=picture),
}
for name, found in seen.items():
    print(name, "- as alone: with one picture", found[1], "with two", found[2])
assert seen["SD, image to image"][1] == [True, True] and all(found[2] == [True, True] for found in seen.values()), "changed"
assert all(seen[name][1] == [True, False] for name in ("SD, inpainting", "FLUX, image to image")), "changed"
PY
