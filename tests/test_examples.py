"""The examples run as they stand, and stay short."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda f: f.stem)
def test_an_example_is_short(file):
    assert len(file.read_text().splitlines()) < 60


def test_erase_and_dial(tmp_path, capsys):
    runpy.run_path(str(FOLDER / "erase_and_dial.py"))["main"](out=str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    moved = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("strength")]
    assert len(moved) == 3
    assert 0 < moved[0] < moved[2], "a stronger edit moves images further"
    assert (tmp_path / "church.safetensors").is_file()
    assert [line.rsplit(" ", 1)[1] for line in lines if line.endswith(("True", "False"))] == ["True", "True"]


def test_keep_the_key(tmp_path, capsys):
    runpy.run_path(str(FOLDER / "keep_the_key.py"))["main"](out=str(tmp_path), iterations="3")
    told = capsys.readouterr().out
    assert [line.split(":")[0] for line in told.splitlines()] == ["before", "erased", "with key", "with a random key"]
    assert (tmp_path / "key.safetensors").stat().st_mode & 0o077 == 0


def test_write_a_method(capsys):
    runpy.run_path(str(FOLDER / "write_a_method.py"), run_name="__main__")
    assert "every promise kept" in capsys.readouterr().out
