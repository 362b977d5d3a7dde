"""What a GPU does with an erasure by each kind of method: equal to the CPU, seconds, memory, copies, and edits that come off.

`python benchmarks/gpu.py` on a machine with CUDA writes `gpu.json`; without one it says so and writes nothing. It takes at most
eight minutes: stages come in order of worth, each is written as it ends, and those that no time was left for are named.

- **check** stages run at a tiny size in float32, on the CPU and on the device: the same seeds must give the same edits and
  latents, within `TOLERANCES`. (Adam turns a gradient of rounding errors into a whole step, so trained edits agree in most
  numbers, not in all.) Every edit is attached to a model and to a pipeline there, must act, and must come off bit for bit.
- **full** stages run at Stable Diffusion 1.4's size, of random weights, in half precision: seconds of an update, memory,
  and how often an update copies between host and device (each copy to the host waits for all work on the device).

`--device cpu --size tiny` runs the same code anywhere; it copies nothing, and says so.
"""

import argparse
import gc
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uce_size import peak_bytes, pipeline

RESULT = Path(__file__).with_suffix(".json")
SHORT = {"iterations": 3, "batch": 1, "sampling": {"arm": "online-frozen", "sampling_steps": 4}}
RATES = {"lr": 1e-3}  # large enough to be seen in bfloat16 after so few updates
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "uce": ("closed form", {}),
    "esd": ("training", {**SHORT, **RATES}),
    "spm": ("adapter", {**SHORT, "lr": 1e-2, "warmup": 0}),
    "sld": ("guidance", {"level": "max"}),
    "kpop": ("training", {**SHORT, **RATES, "prompt_lr": 1e-2}),
    "negative-prompt": ("guidance", {}),
}
"""Methods in order of worth: what kind each is, and settings over the papers'."""
TOLERANCES = {"closed form": 1e-3, "training": 0.05, "adapter": 0.05, "guidance": 0.0}
"""How far a change may be from the CPU's: the length of the difference, over the length of the change."""
LATENTS = 0.01
"""How far latents of an image may be, likewise."""
STEPS = {"tiny": 4, "sd14": 20}
FORESEEN = {"check": 15.0, "full": 45.0}
"""Seconds that a stage is thought to take: one is not begun when less is left."""
PROMPT, SCALE = "a photo of a church", 7.5


class OutOfTime(BaseException):
    """The time is over in the middle of a stage."""


class Place(NamedTuple):
    """Where full stages run."""

    device: str
    dtype: str
    size: str
    seed: int


def model(size: str, device: str, dtype: str = "float32") -> Any:
    """A pipeline of random weights; a tiny one has the same on every device, since they are drawn on the CPU."""
    import torch

    from expunge.backbones.parts import quiet

    if size == "tiny":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from tiny import tiny_pipeline

        pipe = tiny_pipeline()
    else:
        with torch.device(device):
            pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.eval().requires_grad_(False)
    with quiet():  # diffusers says of both halves that nothing of them need be in full precision
        return pipe.to(device, getattr(torch, dtype))


def finish(device: str) -> None:
    """Wait for all work on a device, so that a clock can be read."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class Erased(NamedTuple):
    """An erasure."""

    edit: Any
    key: Any
    losses: list[dict[str, float]]
    seconds: list[float]
    """Of each update."""
    evaluations: list[int]
    """Forward-equivalents of each update."""
    copies: dict[str, int]
    """Of the last update, if it was looked at: then it is not timed."""


def erased(backbone: Any, method: str, place: Place, look: bool) -> Erased:
    """Erase a church; ``look`` at the last update, if there are several."""
    from expunge.core.concept import Concept
    from expunge.core.eraser import Task
    from expunge.stages import erase

    eraser = erase.build(method, METHODS[method][1], None)
    task = Task(
        targets=[Concept(name="church")], retain=["dog"] if method == "uce" else [], seed=place.seed, salt="bench"
    )
    total = getattr(eraser, "iterations", 1)
    steps, step = iter(eraser.steps(backbone, task)), None
    losses, seconds, evaluations, copies = [], [], [], {}
    for index in range(total):
        before, begun = backbone.cost, time.perf_counter()
        if index < total - 1 or total == 1 or not look:
            step = next(steps)
            finish(place.device)
            seconds.append(time.perf_counter() - begun)
        else:
            done: list[Any] = []
            copies = copied(lambda: done.append(next(steps)), place.device)  # noqa: B023  (called at once)
            (step,) = done
        losses.append(dict(step.losses))
        evaluations.append((backbone.cost - before).equivalents)
    edit = step.edit()
    return Erased(edit, None if step.key is None else step.key(edit), losses, seconds, evaluations, copies)


def copied(work: Callable[[], object], device: str) -> dict[str, int]:
    """How often work copies between host and device; numbers read one by one count on a CPU, too."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
    with profile(activities=kinds) as seen:
        work()
        finish(device)
    names = [event.name for event in seen.events()]
    return {
        "to_device": sum(name.startswith("Memcpy HtoD") for name in names),
        "to_host": sum(name.startswith("Memcpy DtoH") for name in names),
        "numbers_read": names.count("aten::_local_scalar_dense"),
    }


def detached(model: Any, edit: Any, backbone: Any) -> dict[str, bool]:
    """Attach an edit to a backbone or a pipeline and detach it: whether it acts, and every bit is as it was."""
    import torch

    def tensors() -> dict[str, Any]:
        parts = {part: backbone.component(part) for part in ("unet", "text_encoder")}
        return {f"{part}.{n}": t.detach() for part, net in parts.items() for n, t in net.state_dict().items()}

    def answered() -> Any:
        with torch.no_grad():
            cond, null = backbone.encode([PROMPT]), backbone.unconditional()
            x = backbone.noise(3).to(backbone.dtype)
            return backbone.guided(x, backbone.timesteps(20)[5], 15, cond, null, SCALE, {}).combined

    before, first = {n: t.clone() for n, t in tensors().items()}, answered()
    edit.attach(model)
    changed = answered()
    edit.detach(model)
    again = tensors()
    bits = {
        n: torch.equal(t.contiguous().view(torch.uint8), again[n].contiguous().view(torch.uint8))
        for n, t in before.items()
    }
    return {
        "acts": not torch.equal(first, changed),
        "tensors_back": set(before) == set(again) and all(bits.values()),
        "answer_back": torch.equal(first, answered()),
    }


class Drawn(NamedTuple):
    """An image."""

    latents: Any
    seconds: float
    """Once it is warm, if it was looked at before."""
    copies: dict[str, int]


def drawn(backbone: Any, edit: Any, place: Place, look: bool) -> Drawn:
    """Draw an image with an edit; ``look`` at the copies of one before."""
    from expunge.core.query import Query

    query = Query(prompt=PROMPT, seed=7 + place.seed, guidance=SCALE, steps=STEPS[place.size])
    with backbone.attached([edit]):
        copies = copied(lambda: backbone.generate([query]), place.device) if look else {}
        begun = time.perf_counter()
        latents = backbone.generate([query]).latents
        finish(place.device)
    return Drawn(latents, time.perf_counter() - begun, copies)


def apart(found: Any, wanted: Any, origin: Any) -> float:
    """How far two edits are from each other, by the length of the second one's change."""
    import torch

    ours, theirs = found.tensors(), wanted.tensors()
    if set(ours) != set(theirs) or (not ours and found.fields() != wanted.fields()):
        return float("inf")
    if not ours:
        return 0.0
    base = (
        origin.stored(list(theirs)) if wanted.kind == "weights" else {n: torch.zeros_like(t) for n, t in theirs.items()}
    )
    change = torch.cat([(t.cpu().double() - base[n].cpu().double()).flatten() for n, t in theirs.items()])
    off = torch.cat([(ours[n].cpu().double() - t.cpu().double()).flatten() for n, t in theirs.items()])
    return float(off.norm() / change.norm())


def check(method: str, place: Place) -> dict[str, Any]:
    """A tiny erasure in float32 on the CPU and on the device: how far apart, and whether its edit comes off."""
    from expunge import backbones

    tiny = place._replace(size="tiny", dtype="float32")
    here, pipe = backbones.of(model("tiny", "cpu")), model("tiny", place.device)
    there = backbones.of(pipe)
    wanted = erased(here, method, tiny._replace(device="cpu"), look=False)
    found = erased(there, method, tiny, look=False)
    off = {"edit": apart(found.edit, wanted.edit, here)}
    if wanted.key is not None:
        off["key"] = apart(found.key, wanted.key, here)
    pairs = (there, found), (here, wanted)
    ours, theirs = (drawn(b, one.edit, tiny, look=False).latents.cpu().double() for b, one in pairs)
    off["latents"] = float((ours - theirs).norm() / theirs.norm())
    limits = {name: LATENTS if name == "latents" else TOLERANCES[METHODS[method][0]] for name in off}
    own = {"model": detached(there, found.edit, there), "pipeline": detached(pipe, found.edit, there)}
    fine = all(off[name] <= limits[name] for name in off) and all(v for one in own.values() for v in one.values())
    return {"off": off, "tolerance": limits, "attached": own, "passed": fine}


def full(method: str, place: Place) -> dict[str, Any]:
    """An erasure at the model's size in half precision: seconds, memory, copies, and whether its edit comes off."""
    import torch

    from expunge import backbones

    cuda = place.device.startswith("cuda")
    backbone = backbones.of(model(place.size, place.device, place.dtype))
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)
    resting = torch.cuda.memory_allocated(place.device) if cuda else 0
    done = erased(backbone, method, place, look=True)
    peak = torch.cuda.max_memory_allocated(place.device) if cuda else peak_bytes()
    own = detached(backbone, done.edit, backbone)
    image = drawn(backbone, done.edit, place, look=True)
    finite = bool(image.latents.isfinite().all()) and all(t.isfinite().all() for t in done.edit.tensors().values())
    return {
        "dtype": place.dtype,
        "update_seconds": round(statistics.median(done.seconds[1:] or done.seconds), 4),
        "first_update_seconds": round(done.seconds[0], 4),
        "evaluations": done.evaluations,
        "losses": done.losses,
        "peak_bytes": peak,
        "model_bytes": resting,
        "copies_of_last_update": done.copies or "one update, which was timed",
        "image_seconds": round(image.seconds, 4),
        "image_steps": STEPS[place.size],
        "copies_of_image": image.copies,
        "attached": own,
        "passed": finite and all(own.values()),
    }


def stages(place: Place, only: Sequence[str]) -> list[tuple[str, float, Callable[[], dict[str, Any]]]]:
    """All stages in order of worth, with what each should take."""
    half = "float16" if place.dtype == "bfloat16" else "bfloat16"
    named: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        *((f"check {m}", lambda m=m: check(m, place)) for m in METHODS),
        *((f"full {m}", lambda m=m: full(m, place)) for m in METHODS),
        *((f"full {m} {half}", lambda m=m: full(m, place._replace(dtype=half))) for m in ("esd", "uce")),
    ]
    return [(name, FORESEEN[name.split()[0]], work) for name, work in named if not only or name in only]


def measure(place: Place, minutes: float, only: Sequence[str], out: Path | None) -> dict[str, Any]:
    """Run what the time allows; the result is written after every stage."""
    import diffusers
    import torch
    import transformers

    import expunge

    torch.backends.cudnn.allow_tf32 = False  # else convolutions in float32 are not
    cuda = place.device.startswith("cuda")
    begun, end = time.monotonic(), time.monotonic() + 60 * minutes
    result: dict[str, Any] = {
        "format": 1,
        "device": torch.cuda.get_device_name(place.device)
        if cuda
        else "cpu: a run of the code, in which nothing is copied",
        "size": place.size,
        "dtype": place.dtype,
        "seed": place.seed,
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)}
        | {"expunge": expunge.__version__, "cuda": torch.version.cuda if cuda else None},
        "stages": {},
        "left_out": [],
    }
    for name, foreseen, work in stages(place, only):
        if time.monotonic() + foreseen > end:
            result["left_out"].append(name)
            continue
        try:
            result["stages"][name] = ended(work, end)
        except OutOfTime:
            result["left_out"].append(f"{name} (begun)")
            continue
        result["seconds"] = round(time.monotonic() - begun, 1)
        print(json.dumps({name: result["stages"][name]}), flush=True)
        write(result, out)
    result["passed"] = bool(result["stages"]) and all(stage["passed"] for stage in result["stages"].values())
    write(result, out)
    return result


def ended(work: Callable[[], dict[str, Any]], end: float) -> dict[str, Any]:
    """A stage's result; what went wrong in it is one, too.

    Raises:
        OutOfTime: if it is not done at ``end``.
    """

    def over(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, end - time.monotonic()))
    begun = time.monotonic()
    try:
        return {**work(), "stage_seconds": round(time.monotonic() - begun, 1)}
    except Exception as error:  # whatever it is, the other stages may do
        return {"error": f"{type(error).__name__}: {error}", "passed": False}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write(result: dict[str, Any], out: Path | None) -> None:
    """Write the result as it is so far."""
    if out is not None:
        out.with_suffix(".partial").write_text(json.dumps(result, indent=1) + "\n")
        out.with_suffix(".partial").replace(out)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 if a stage did not pass, or none was run for lack of time."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(STEPS), default="sd14")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", action="append", default=[], help="run this one alone, such as 'check uce'; repeat")
    parser.add_argument("--out", type=Path, help="default: benchmarks/gpu.json for all stages on CUDA, else nowhere")
    asked = parser.parse_args(argv)
    place = Place(asked.device, asked.dtype, asked.size, asked.seed)
    known = [name for name, *_ in stages(place, ())]
    for name in asked.stage:
        if name not in known:
            parser.error(f"argument --stage: '{name}': expected any of {', '.join(known)}")
    cuda = asked.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print(f"gpu.py is skipped: torch {torch.__version__} sees no CUDA device here")
        return 0
    result = measure(place, asked.minutes, asked.stage, asked.out or (RESULT if cuda and not asked.stage else None))
    failed = [name for name, stage in result["stages"].items() if not stage["passed"]]
    if result["left_out"]:
        print(f"no time was left for: {', '.join(result['left_out'])}")
    print(f"did not pass: {', '.join(failed)}" if failed else f"{len(result['stages'])} stages passed")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
