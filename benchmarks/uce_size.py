"""UCE at Stable Diffusion 1.4's real size: seconds and peak memory on a random-weight checkpoint (`make bench-uce`)."""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).with_suffix(".json")


def pipeline():
    """A random-weight StableDiffusionPipeline of SD1.4's size, on torch's default device."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from expunge.testbed import FOLDER

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    words = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer", model_max_length=77)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def checkpoint(path: Path) -> int:
    """Write a random-weight checkpoint in SD1.4's layout and size; returns the UNet's parameter count."""
    pipe = pipeline()
    pipe.save_pretrained(path)
    return sum(p.numel() for p in pipe.unet.parameters())


def peak_bytes() -> int:
    """Peak resident memory of this process (Linux; `ru_maxrss` would count what the parent held before the exec)."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


def main() -> None:
    """Build the checkpoint, erase from it in a fresh process through the command line, and write the figures."""
    if len(sys.argv) > 1:
        import torch

        from expunge.cli import main as run

        torch.set_num_threads(2)
        start = time.perf_counter()
        code = run(
            [
                "erase",
                "uce",
                "--no-preset",
                "--model",
                sys.argv[1],
                "--target",
                "church",
                "--retain",
                "dog",
                "--out",
                sys.argv[2],
            ]
        )
        peak = peak_bytes()
        print(json.dumps({"code": code, "seconds": time.perf_counter() - start, "peak_bytes": peak}))
        return
    from expunge.store import load_edit

    with tempfile.TemporaryDirectory() as temporary:
        parameters = checkpoint(Path(temporary) / "sd")
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, str(Path(temporary) / "sd"), str(Path(temporary) / "out")],
            check=True,
            capture_output=True,
            text=True,
        )
        whole = time.perf_counter() - start
        found = json.loads(done.stdout.splitlines()[-1])
        edited = len(load_edit(Path(temporary) / "out" / "edit.safetensors").tensors())
        edit_bytes = (Path(temporary) / "out" / "edit.safetensors").stat().st_size
    rows = {
        "format": 1,
        "unet_parameters": parameters,
        "seconds": round(found["seconds"], 2),
        "seconds_with_start_up": round(whole, 2),
        "peak_bytes": found["peak_bytes"],
        "edited_tensors": edited,
        "edit_bytes": edit_bytes,
        "target": {"seconds": 20, "peak_bytes": 3e9},
        "met": found["code"] == 0 and whole < 20 and found["peak_bytes"] < 3e9,
    }
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
