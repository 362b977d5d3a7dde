"""The examples run as they stand, and stay short."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import expunge
from plans_of import tiny_plan

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda f: f.stem)
def test_an_example_is_short(file):
    assert len(file.read_text().splitlines()) <= 60


def test_erase_and_dial(tmp_path, capsys):
    runpy.run_path(str(FOLDER / "erase_and_dial.py"))["main"](out=str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    moved = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("strength")]
    assert len(moved) == 3
    assert 0 < moved[0] < moved[2], "a stronger edit moves images further"
    assert (tmp_path / "church.safetensors").is_file()
    assert [line.rsplit(" ", 1)[1] for line in lines if line.endswith(("True", "False"))] == ["True", "True"]


def test_the_program_of_the_page_on_python_runs(tmp_path, monkeypatch, capsys):
    page = (FOLDER.parent / "docs" / "python.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(compile(page.split("```python\n")[1].split("```")[0], "python.md", "exec"), {})
    kind, _, eraser, *targets = capsys.readouterr().out.split()
    assert (kind, eraser, " ".join(targets)) == ("weights", "uce", "['church', 'radio']")


def test_keep_the_key(tmp_path, capsys):
    runpy.run_path(str(FOLDER / "keep_the_key.py"))["main"](out=str(tmp_path), iterations="3")
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines()] == ["before", "erased", "with key", "with a random key"]
    assert (tmp_path / "key.safetensors").stat().st_mode & 0o077 == 0


def test_write_a_method(capsys):
    runpy.run_path(str(FOLDER / "write_a_method.py"), run_name="__main__")
    assert "every promise kept" in capsys.readouterr().out


DROPPED_IN = """
import sys
from pathlib import Path

import pytest

import expunge
from plans_of import tiny_plan

from expunge.cli import main


def run(*words):
    assert main([str(word) for word in words]) == 0, words


if __name__ == "__main__":
    out, plan, contracts = map(Path, sys.argv[1:])
    run("list")
    run("erase", "synonym", "--help")
    run("attack", "other-words", "--help")
    quiet = ["--workers", "1", "--quiet"]
    run("bench", plan, "--store", out / "store", "--out", out / "run", *quiet)
    run("report", out / "run", "--store", out / "store", "--quiet")
    chosen = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-k", "test_eraser and synonym or test_attack and other-words"]
    sys.exit(pytest.main([str(contracts), *chosen]))
"""


def test_a_file_that_is_dropped_into_its_room_is_found_everywhere(tmp_path):
    """By the command line, plans, the report and the contract tests, with nothing else touched."""
    package = Path(expunge.__file__).parent
    copy = tmp_path / "code" / "expunge"
    (copy / "erasers").mkdir(parents=True)
    (copy / "attacks").mkdir()
    for path in package.iterdir():
        inside = path.iterdir() if path.name in ("erasers", "attacks") else [path]
        for one in inside:
            (copy / one.relative_to(package)).symlink_to(one)
    (copy / "erasers" / "synonym.py").write_text((FOLDER / "write_a_method.py").read_text())
    (copy / "attacks" / "other_words.py").write_text((FOLDER / "write_an_attack.py").read_text())
    rows = {"grid__method": ["original", "synonym"], "method__synonym": {"eraser": "synonym"}}
    plan = tiny_plan(tmp_path, **rows, attacks=[{"name": "other-words", "tries": 2}])
    (tmp_path / "dropped_in.py").write_text(DROPPED_IN)
    contracts = Path(__file__).parent / "contract"
    words = [sys.executable, tmp_path / "dropped_in.py", tmp_path, plan, contracts]
    places = {"PYTHONPATH": f"{copy.parent}{os.pathsep}{Path(__file__).parent}"}
    ended = subprocess.run(
        [*map(str, words)], env={**os.environ, **places}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "synonym" in ended.stdout
    assert "Put random words around each target" in ended.stdout, "its help"
    assert "3 passed" in ended.stdout, "the eraser, and the attack with and without an edit"
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| synonym |" in table
    assert "attack: other-words" in table
    assert "synonym" in (tmp_path / "run" / "report.html").read_text()


def test_write_an_attack(capsys):
    runpy.run_path(str(FOLDER / "write_an_attack.py"), run_name="__main__")
    assert "every promise kept" in capsys.readouterr().out
