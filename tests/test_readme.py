"""What the README shows runs as it is written: the list of commands from top to bottom, and the lines of Python."""

import re
import shlex
from pathlib import Path

import torch

import expunge
from expunge.cli import main

ROOT = Path(__file__).parent.parent


def block(heading: str, language: str) -> str:
    """The one block in a language under a heading."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return found


def test_every_command_runs_after_those_above_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # the root of the repository, as far as they need it
    monkeypatch.chdir(tmp_path)
    for line in block("On the command line", "sh").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "expunge"
        assert main(words) == 0, (line, capsys.readouterr().err)
        told = capsys.readouterr().out
        assert told.strip(), line
        if words[0] == "erase":
            assert told.splitlines()[-1].startswith("church: shown in 100 -> ")
    made = {"edit.safetensors", "check.json", "before", "after", "records.jsonl", "attack", "attacked", "daam", "model"}
    assert {path.name for path in (tmp_path / "runs" / "church").iterdir()} == {*made, "report.html"}


def test_the_lines_of_python_run(tmp_path, monkeypatch, folder):
    code, hub = block("On your own pipeline", "python"), "stable-diffusion-v1-5/stable-diffusion-v1-5"
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
