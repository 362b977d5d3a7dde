"""Anything a user may type or hand over ends well or in one line: `make fuzz`, ten minutes of hypothesis.

    python tests/fuzz/fuzz_cli.py --seconds 600 --seed 0 [--only NAME]

Each target draws files and a command. A command must return 0, or 2 with one line on standard error; a reader of the store must
return, or raise `ExpungeError`. What breaks that is printed with its traceback and the smallest example found, and the exit
code is 1.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from expunge.cli import COMMANDS, main
from expunge.core.errors import ExpungeError
from expunge.store import load_edit, read_prompts, read_queries, read_set

NASTY = [
    "nan",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1",
    "0.5",
    "18446744073709551616",
    "9" * 500,
    "",
    " ",
    "x" * 300,
    "é" * 130,
]
NASTY += [
    "\udcff",
    "..",
    "/dev/null",
    "/proc/x",
    "{}",
    "[",
    "true",
    "0x10",
    "1_000",
    "٣",
    "a=b",
    "church",
    "esr-psr",
    "None",
]
numbers = st.sampled_from([0, -1, 1, 2**64, -(2**70), 10**400, 0.5, 1e308, 5e-324, float("nan"), float("inf")])
scalars = (
    st.none() | st.booleans() | numbers | st.integers() | st.floats() | st.sampled_from(NASTY) | st.text(max_size=9)
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=5
)
deep = st.builds(lambda: json.loads("[" * 400 + "]" * 400))  # a new one each time


def places(value: Any, at: tuple = ()) -> list[tuple]:
    """The paths of all parts of a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, part in inner for path in places(part, (*at, key)))]


@st.composite
def changed(draw: Callable, valid: Any) -> Any:
    """A valid value with one to three of its parts replaced or left out."""
    content = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([p for p in places(content) if p] or [()]))
        if not path:
            return draw(values)
        at = content
        for key in path[:-1]:
            at = at[key]
        if draw(st.booleans()) and isinstance(at, dict):
            del at[path[-1]]
        else:
            at[path[-1]] = draw(values | deep)
    return content


@st.composite
def damaged(draw: Callable, text: str) -> bytes:
    """A file with some of its bytes cut out or replaced."""
    raw = text.encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 12)))
        raw = (
            raw[:start]
            + draw(st.binary(max_size=4) | st.sampled_from([v.encode(errors="surrogateescape") for v in NASTY]))
            + raw[end:]
        )
    return raw


def as_file(valid: Any) -> Any:
    """A JSON file: of changed parts, or damaged."""
    return changed(valid).map(lambda v: json.dumps(v).encode()) | damaged(json.dumps(valid))


# what is valid --------------------------------------------------------------------------------------------------------
COST = {"forward": 1, "trained": 0}
MADE = {"eraser": "uce", "settings": {}, "targets": ["church"], "anchors": [None], "retain": [], "model": "testbed"}
MADE |= {"family": "sd", "seed": 0, "cost": COST, "seconds": 1.0}
HEADER = {
    "format": 2,
    "kind": "weights",
    "id": "0" * 16,
    "fields": {"base_sha256": {"float32": "x"}},
    "requires": [],
    "provenance": MADE,
}
KEY = {
    **HEADER,
    "kind": "guidance",
    "fields": {"eraser": "kpop", "salt": "s", "place": "cross", "halves": "both", "only": None, "concepts": ["a"]},
}
RUN = {
    "format": 1,
    "model": "m",
    "edits": [{"id": "0" * 16, "kind": "weights", "provenance": MADE}],
    "split": "test",
    "strength": 1.0,
    "cost": COST,
}
ROW = {"file_name": "a.png", "prompt": "a church", "seed": 1, "label": "church", "guidance": 4.0, "steps": 2}
WHAT = {"targets": ["church"], "anchors": [None], "retain": [], "oracles": []}
RECORD = {
    "format": 1,
    "metric": "esr@1",
    "value": 1.0,
    "low": 0.0,
    "high": 2.0,
    "n": 1,
    "n_seeds": 1,
    "unit": "%",
    "subject": "edited",
}
RECORD |= {"eraser": "uce", "concepts": ["church"], "model": "m", "split": "test", "seed": 0, "knowledge": WHAT}
RECORD["provenance"] = {
    "metric": "esr-psr",
    "settings": {},
    "edits": ["0" * 16],
    "made_by": [MADE],
    "images": "images",
    "control": None,
}
LINES = {"format": 1, "title": "t", "kind": "lines", "x": {"label": "x", "log": True}, "y": {"label": "y"}}
LINES["series"] = [{"name": "a", "x": [1, 2], "y": [1, 2], "low": [0, 1], "high": [2, 3], "labels": ["a", "b"]}]
HEAT = {
    "format": 1,
    "title": "t",
    "kind": "heatmaps",
    "panels": [{"title": "p", "values": [[0, 1]], "image": [[[0, 0, 0], [1, 1, 1]]]}],
}
QUERIES = {
    "format": 1,
    "about": {},
    "queries": [{"prompt": "p", "seed": 0, "label": None, "guidance": 1.0, "steps": 1}],
}
SET = """about = "x"
concepts = ["church", "dog"]
[splits]
a = ["church"]
[dev]
seed = 1
[dev.prompts]
church = ["a church"]
dog = ["a dog"]
[test]
seed = 9
[test.prompts]
church = ["image of a church"]
dog = ["image of a dog"]
"""
PLAN = """about = "x"
set = "three.toml"
count = 1
metrics = ["esr-psr"]
guidance = 4.0
steps = 2
[grid]
method = ["original", "uce"]
split = ["a"]
seed = [0]
[method.uce]
eraser = "uce"
retain = true
settings = { erase_scale = 1.0 }
"""
CSV = """case_number,prompt,evaluation_seed,evaluation_guidance,class
0,a church,1,7.5,church
1,"a, b",2,7.5,dog
"""


# targets: what is written into an empty folder, and what is then run ---------------------------------------------------
def command(*words: str) -> None:
    """Run a command as the script does."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=e) for e in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(words))
        except SystemExit as stop:  # --help
            code = stop.code or 0
    err.flush()
    told = [x for x in err.buffer.getvalue().decode().splitlines() if not x.startswith("expunge: warning:")]
    if code not in (0, 2) or (code == 2) != (len(told) == 1):
        raise AssertionError(f"exit {code} with {len(told)} lines: {told[:3]}")


def reader(read: Callable[[], Any]) -> None:
    with contextlib.suppress(ExpungeError):
        read()


def image_folder(place: Path, lines: bytes = b"", run: bytes = b"") -> None:
    place.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(place / name)
    (place / "metadata.jsonl").write_bytes(lines or (json.dumps(ROW) + "\n").encode())
    (place / "run.json").write_bytes(run or json.dumps(RUN).encode())


def edits(data: Any, here: Path) -> None:
    header = data.draw(as_file(data.draw(st.sampled_from([HEADER, KEY]))))
    file = here / "edit.safetensors"
    save_file({"a": torch.zeros(2, 4)}, file, metadata={"expunge": header.decode(errors="replace")})
    command("show", str(file))
    command("show", str(file), "--json")
    reader(lambda: load_edit(file))
    command("report", str(here), "--out", str(here / "r.html"))


def figures(data: Any, here: Path) -> None:
    (here / "f.json").write_bytes(data.draw(as_file(data.draw(st.sampled_from([LINES, HEAT])))))
    command("figure", str(here / "f.json"), "--out", str(here / "f.svg"))


def reports(data: Any, here: Path) -> None:
    part = data.draw(st.sampled_from(["records", "images", "figures", "run"]))
    one = {"records": RECORD, "images": ROW, "figures": LINES, "run": RUN}
    raw = {
        name: data.draw(as_file(valid)) if name == part else json.dumps(valid).encode() for name, valid in one.items()
    }
    image_folder(here / "images", raw["images"] + b"\n", raw["run"])
    (here / "r.jsonl").write_bytes(raw["records"] + b"\n")
    (here / "figures").mkdir()
    (here / "figures" / "f.json").write_bytes(raw["figures"])
    command("report", str(here), "--out", str(here / "r.html"))


def measures(data: Any, here: Path) -> None:
    image_folder(here / "images", data.draw(as_file(ROW)) + b"\n", data.draw(st.just(b"") | as_file(RUN)))
    (here / "r.jsonl").write_bytes(data.draw(st.just(b"") | as_file(RECORD)))
    more = data.draw(st.lists(st.sampled_from(["--ks", "--target", "--retain", "--judge", *NASTY]), max_size=4))
    command("measure", "esr-psr", "--images", str(here / "images"), "--out", str(here / "r.jsonl"), *more)


def plans(data: Any, here: Path) -> None:
    text = {"plan.toml": PLAN.replace("three.toml", str(here / "three.toml")), "three.toml": SET}
    part = data.draw(st.sampled_from(list(text)))
    lines = text[part].splitlines()
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(lines) - 1))
        value = data.draw(
            st.sampled_from(
                ["nan", "inf", "0", "-1", "true", '"x"', "[]", "{}", "[1]", '[["a"]]', "0x" + "f" * 40, "[" * 3000]
            )
        )
        lines[at] = f"{lines[at].partition('=')[0]}= {value}" if "=" in lines[at] else lines[at]
    for name, whole in text.items():
        raw = "\n".join(lines) if name == part else whole
        (here / name).write_bytes(data.draw(st.just(raw.encode()) | damaged(raw)) if name == part else raw.encode())
    reader(lambda: read_set(str(here / "three.toml"), here))
    command("bench", str(here / "plan.toml"), "--dry-run", "--store", str(here / "store"))


def tables(data: Any, here: Path) -> None:
    (here / "p.csv").write_bytes(data.draw(damaged(CSV)))
    reader(lambda: read_prompts(here / "p.csv", 4.0, 2, row_guidance=data.draw(st.booleans())))
    reader(lambda: read_set(str(here / "p.csv"), here))
    (here / "q").mkdir()
    (here / "q" / "queries.json").write_bytes(data.draw(as_file(QUERIES)))
    save_file({"x": torch.zeros(1)}, here / "q" / "words.safetensors")
    reader(lambda: read_queries(here / "q"))


FLAGS = """--out --edit --model --target --retain --seed --count --steps --guidance --strength --batch --prompt --concept
--set --prompts --json --lr --iterations --images --reference --key --hold-threshold --hold-word --hold-prompt --store --room
--query-seed --device --dtype --layout"""
WORDS = ["esd", "uce", "kpop", "sld", "esr-psr", "fid", "daam", "concept-inversion", "x.toml"]


def arguments(data: Any, here: Path) -> None:
    """Options as they may be mistyped; the model is none, so that what is well typed ends soon."""
    name = data.draw(st.sampled_from([c for c in COMMANDS if c not in ("demo", "label", "serve")]))
    words = data.draw(st.lists(st.sampled_from([*FLAGS.split(), *NASTY, *WORDS]), max_size=8))
    first = data.draw(st.sampled_from(["", *WORDS]))
    ends = (
        []
        if name in ("list", "show", "figure", "measure", "report", "screen", "clean", "bench")
        else ["--model", str(here / "none")]
    )
    with contextlib.chdir(here):
        command(name, *([first] if first else []), *words, *ends)


TARGETS = [edits, figures, reports, measures, plans, tables, arguments]


def fails(target: Callable[[Any, Path], None], number: int, examples: int) -> bool:
    """Draw some examples for a target; whether one failed, after printing it."""

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(st.data())
    def tried(data: Any) -> None:
        here = Path(tempfile.mkdtemp(prefix="fuzz"))
        try:
            target(data, here)
        finally:
            shutil.rmtree(here, ignore_errors=True)

    try:
        tried()
    except Exception:
        print(f"--- {target.__name__}, seed {number}\n{traceback.format_exc()}", flush=True)
        return True
    return False


def run() -> int:
    """Go round the targets until the time is up."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--seconds", type=float, default=600)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--examples", type=int, default=25)
    asked.add_argument("--only")
    given_ = asked.parse_args()
    warnings.simplefilter("ignore")
    targets = [t for t in TARGETS if given_.only in (None, t.__name__)]
    ends, rounds, failed = time.monotonic() + given_.seconds, 0, 0
    while time.monotonic() < ends:
        failed += fails(targets[rounds % len(targets)], given_.seed + rounds, given_.examples)
        rounds += 1
    print(f"{rounds} rounds of {given_.examples} examples: {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run())
