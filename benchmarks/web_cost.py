"""What the extra ``[web]`` adds to an installation with ``[report]``: MB on disk, and seconds until the page is served.

    python benchmarks/web_cost.py

Prints JSON. The seconds are of processor time, so that other work on the machine does not count.
"""

import json
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement


def closure(names: list[str]) -> set[str]:
    """The distributions that ``names`` bring along here, themselves among them."""
    found: set[str] = set()
    left = [name.lower().replace("_", "-") for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        asked = [Requirement(line) for line in requires(name) or []]
        left += [
            r.name.lower().replace("_", "-") for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})
        ]
    return found


def size(of: Distribution) -> int:
    """Bytes of a distribution's files."""
    files = [Path(str(of.locate_file(file))) for file in of.files or ()]
    return sum(file.stat().st_size for file in files if file.is_file())


def processor_seconds(command: list[str], ends: str = "") -> float:
    """Seconds of processor time until a command ends, or has said a line with ``ends`` in it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while ends and process.stdout is not None and ends not in process.stdout.readline():
            pass
        if ends:
            process.terminate()
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print."""
    base = ["torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "jaxtyping"]
    rest = closure([*base, "numpy", "pillow", "rich", "typing_extensions", "jinja2", "matplotlib"])
    added = {name: size(distribution(name)) for name in closure(["gradio"]) - rest}
    with tempfile.TemporaryDirectory() as place:
        serve = [sys.executable, "-m", "expunge", "serve", f"{place}/runs", "--port", "0"]
        seconds = processor_seconds(serve, "http://")
    shown = dict(sorted(added.items(), key=lambda row: -row[1])[:5])
    content = {
        "packages": len(added),
        "megabytes": round(sum(added.values()) / 1e6),
        "largest": {name: round(count / 1e6, 1) for name, count in shown.items()},
        "seconds_to_import_gradio": round(processor_seconds([sys.executable, "-c", "import gradio"]), 1),
        "seconds_until_served": round(seconds, 1),
    }
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
