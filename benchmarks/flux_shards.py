"""UCE on a sharded checkpoint of FLUX.1-dev's size: bytes read and written, seconds, peak memory.

Random weights in bfloat16: 19 double and 38 single blocks, in the widths of the released transformer. Its text encoders are of
the real widths, with fewer layers. `python benchmarks/flux_shards.py [FOLDER FOR THE CHECKPOINT]`; about 26 GB of disk, given
back at the end, and as much memory as a shard takes a few times over.
"""

import json
import os
import re
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).with_suffix(".json")
BLOCKS = {"num_layers": 19, "num_single_layers": 38}
SHARD = 1_000_000_000


def checkpoint(path: Path) -> dict[str, int]:
    """Write the folder, a shard at a time; how many parameters and bytes the transformer has."""
    import diffusers
    import torch
    import transformers
    from safetensors.torch import save_file

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import still, tiny_clip, tiny_flux_pipeline, tiny_vae, tokenizer

    words = tokenizer((("t", "h"), ("th", "e</w>")))
    clip = tiny_clip(words, 768, projected=False)
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((c, -3.0) for c in string.ascii_letters),
    ]
    t5_tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(pieces),
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=2,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )
    small = tiny_flux_pipeline(channels=16)
    pipe = still(
        diffusers.FluxPipeline(
            transformer=small.transformer,
            scheduler=small.scheduler,
            vae=tiny_vae(16, shift_factor=0.1159, scaling_factor=0.3611),
            text_encoder=clip,
            tokenizer=words,
            text_encoder_2=t5,
            tokenizer_2=t5_tokenizer,
        )
    )
    pipe.to(torch.bfloat16).save_pretrained(path)
    home = path / "transformer"
    for file in home.iterdir():
        file.unlink()
    with torch.device("meta"):
        net = diffusers.FluxTransformer2DModel(guidance_embeds=True, **BLOCKS)
    net.save_config(home)
    tile = 0.02 * torch.randn(4_000_037, generator=torch.Generator().manual_seed(0), dtype=torch.float32).bfloat16()
    shards: list[dict[str, torch.Size]] = [{}]
    held = 0
    for name, p in net.named_parameters():
        if held + 2 * p.numel() > SHARD:
            shards.append({})
            held = 0
        shards[-1][name] = p.shape
        held += 2 * p.numel()
    placed: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        name = f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        made = {n: tile.repeat(-(-s.numel() // len(tile)))[: s.numel()].view(s).clone() for n, s in shapes.items()}
        save_file(made, home / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(shapes, name)
    total = 2 * sum(p.numel() for p in net.parameters())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (home / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return {"transformer_parameters": total // 2, "transformer_bytes": total, "shards": len(shards)}


def forget(folder: Path) -> None:
    """Have the system forget what it holds of files in memory, so that reading them is seen."""
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def counted() -> dict[str, int]:
    """Bytes that this process had read from the disk (read ahead counts) and written, and held at most (Linux)."""
    io = dict(re.findall(r"(\w+): (\d+)", Path("/proc/self/io").read_text()))
    peak = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]
    return {"read": int(io["read_bytes"]), "written": int(io["write_bytes"]), "peak_bytes": int(peak) * 1024}


def child(command: str, model: str, edit: str, out: str) -> None:
    """One command in a fresh process; files that it maps count in its peak, as far as they are in memory."""
    from expunge.cli import main as run

    how = ["--model", model, "--dtype", "bfloat16"]
    if command == "erase":
        argv = ["erase", "uce", *how, "--target", "church", "--retain", "dog", "--no-check", "--out", out]
    else:
        argv = ["export", "--layout", "shards", *how, "--edit", edit, "--out", out]
    start, before = time.perf_counter(), counted()
    code = run(argv)
    after = counted()
    spent = {k: after[k] - before[k] for k in ("read", "written")} | {"peak_bytes": after["peak_bytes"]}
    print(json.dumps({"code": code, "seconds": round(time.perf_counter() - start, 1), **spent}))


def main() -> None:
    """Build the checkpoint, erase and export in fresh processes, and write the figures."""
    if len(sys.argv) > 2:
        child(*sys.argv[1:5])
        return
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        place = Path(folder)
        figures: dict[str, object] = {"format": 1, **checkpoint(place / "model")}
        model, edit = str(place / "model"), str(place / "edit" / "edit.safetensors")
        for command, out in (("erase", place / "edit"), ("export", place / "out")):
            forget(place / "model")
            asked = [sys.executable, __file__, command, model, edit, str(out)]
            done = subprocess.run(asked, capture_output=True, text=True, check=True)
            figures[command] = json.loads(done.stdout.strip().splitlines()[-1])
        own = [f for f in (place / "out").rglob("*.safetensors") if f.stat().st_nlink == 1]
        figures["new_files"] = {f.relative_to(place / "out").as_posix(): f.stat().st_size for f in own}
        figures["edit_bytes"] = Path(edit).stat().st_size
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
