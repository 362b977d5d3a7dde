"""What fetches and draws the icons, where it is not there."""

import importlib.util
from pathlib import Path

import pytest

from expunge.core.errors import ExpungeError
from expunge.recipe import artwork


def test_what_fetches_and_draws_is_named_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExpungeError, match=r"needs resvg_py: expected `pip install 'expunge\[recipe\]'`"):
        artwork.load(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExpungeError, match="'icons@1' comes from npm, which is not installed"):
        artwork.fetch("icons@1", tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing is half-written"


def test_a_package_that_npm_cannot_fetch_is_named(tmp_path, monkeypatch):
    failing = Path(tmp_path / "bin" / "npm")
    failing.parent.mkdir()
    failing.write_text("#!/bin/sh\necho >&2\necho 'npm error no such package' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{failing.parent}:/usr/bin:/bin")
    with pytest.raises(ExpungeError, match="npm cannot fetch 'icons@1': npm error no such package"):
        artwork.fetch("icons@1", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
