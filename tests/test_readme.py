"""What the README shows runs as it is written: the commands from top to bottom, and the lines of Python."""

from pathlib import Path

import torch

import expunge
import pages

ROOT = Path(__file__).parent.parent
CHEAPER = {"generate --concept": ["--count", "1"], "attack": ["--images", "1", "--iterations", "1"]}
"""What makes the commands cheap enough for a test."""


def section(heading: str) -> str:
    """What stands under a heading."""
    return (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_command_runs_after_those_above_it_and_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # the root of the repository, as far as they need it
    monkeypatch.chdir(tmp_path)
    for shown in pages.commands(section("On the command line")):
        printed = pages.run(shown, CHEAPER, capsys)
        if shown.words[0] == "erase":
            assert printed.splitlines()[-1].startswith("church: shown in 100 -> ")
    written = {"edit.safetensors", "check.json", "before", "after", "records.jsonl", "attack", "attacked", "model"}
    assert {path.name for path in (tmp_path / "runs" / "church").iterdir()} == {*written, "report.html"}


def test_the_lines_of_python_run(tmp_path, monkeypatch, folder):
    (code,) = pages.blocks(section("On your own pipeline"), "python")
    hub = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert code.count(hub) == 1
    monkeypatch.chdir(tmp_path)
    named: dict = {}
    exec(compile(code.replace(hub, str(folder)), "README.md", "exec"), named)
    pipe, edit = named["pipe"], named["edit"]
    ask = {"num_inference_steps": 2, "output_type": "pt"}
    edited = pipe("a church", generator=torch.Generator().manual_seed(0), **ask).images
    edit.detach(pipe)
    assert not torch.equal(pipe("a church", generator=torch.Generator().manual_seed(0), **ask).images, edited)
    assert expunge.load_edit("church.safetensors").id == edit.id
