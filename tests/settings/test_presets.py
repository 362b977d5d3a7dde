"""Presets that are guesses are called so, wherever somebody reads them."""

import tomllib
from pathlib import Path

import expunge
from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.settings import presets

FILE = Path(expunge.__file__).parent / "presets.toml"


def test_provisional_presets_are_those_that_their_comments_call_so():
    content = tomllib.loads(FILE.read_text())
    said = {
        line.split("]")[0].removeprefix("[erase.")
        for line in FILE.read_text().splitlines()
        if line.startswith("[erase.") and "provisional" in line
    }
    named = {f"{name}.{kind}" for kind, names in content["provisional"]["erase"].items() for name in names}
    assert named == said
    assert {name.split(".")[0] for name in named} <= set(Catalog("erasers").entries())


def test_a_provisional_preset_is_called_so_in_help_and_where_it_was_used(tmp_path, capsys):
    assert main(["erase", "rece", "--help"]) == 0
    assert "preset for testbed (provisional)" in capsys.readouterr().out
    words = ["--target", "church", "--no-check", "--out"]
    assert main(["erase", "rece", *words, str(tmp_path / "rece")]) == 0
    assert "; provisional preset for testbed: " in capsys.readouterr().out
    assert main(["erase", "uce", *words, str(tmp_path / "uce")]) == 0
    assert "; preset for testbed: " in capsys.readouterr().out
    assert not presets.provisional("erase", "uce", "testbed")
