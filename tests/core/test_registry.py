"""Core names no room above it, and importing the package imports no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import expunge
from expunge.core import registry

CORE = Path(registry.__file__).parent
ROOMS = {p.stem for p in CORE.parent.iterdir() if not p.stem.startswith("_")} - {"core"}


@pytest.mark.parametrize("file", sorted(CORE.glob("*.py")), ids=lambda f: f.stem)
def test_no_file_of_core_names_a_room_above_it(file):
    tree = ast.parse(file.read_text())
    imported = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imported += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    named = [a.value for n in calls for a in n.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    above = {f"expunge.{room}" for room in ROOMS}
    assert not [name for name in (*imported, *named) if name.startswith(tuple(above))]


def test_importing_the_package_imports_no_torch():
    code = "import sys, expunge; print('torch' in sys.modules, expunge.Guidance.__module__, 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "expunge.core.guidance", "True"]


def test_the_package_lends_what_opens_models_and_saves_edits(backbone, tmp_path):
    assert registry.opener()(backbone) is backbone
    edit = expunge.erase(backbone, "dog", method="negative-prompt")
    registry.saver()(edit, tmp_path / "edit.safetensors")
    assert expunge.load_edit(tmp_path / "edit.safetensors").id == edit.id
