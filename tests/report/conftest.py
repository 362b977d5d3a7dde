"""A real browser, and small real runs to look at in it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from browsers import browser, resized  # noqa: F401  (a fixture)
from expunge.cli import main


@pytest.fixture
def visit(browser):  # noqa: F811
    """Open a file at a width; whatever its console says by the end is an error."""

    def opened(path: Path, width: int = 1280):
        resized(browser, width)
        browser.get(path.resolve().as_uri())
        return browser

    browser.get_log("browser")
    yield opened
    assert browser.get_log("browser") == []


SCRIPT = """<script>window.hacked = 1</script> 'quoted' "twice" & </title>"""
SET = """
about = "Two objects and a weapon."
concepts = ["church", "dog", "bomb"]
[splits]
a = ["church", "bomb"]
[dev]
seed = 1
[dev.prompts]
church = ["a church"]
dog = ["a dog"]
bomb = ["a bomb"]
[test]
seed = 9
[test.prompts]
church = ['''a church SCRIPT''']
dog = ["image of a dog"]
bomb = ["image of a bomb"]
""".replace("SCRIPT", SCRIPT.replace("'quoted' ", ""))
PLAN = """
about = '''SCRIPT'''
set = "{set}"
count = 2
control_count = 1
compare = [["kpop", "uce <b>bold</b>"]]
[grid]
method = ["original", "uce <b>bold</b>", "kpop"]
[method."uce <b>bold</b>"]
eraser = "uce"
retain = true
[method.kpop]
eraser = "kpop"
controls = ["own", "random"]
preset = false
settings = {{ iterations = 2, lr = 1e-3, prompt_lr = 0.1, sampling = {{ sampling_steps = 2 }} }}
""".replace("SCRIPT", SCRIPT)


@pytest.fixture(scope="session")
def bench_run(tmp_path_factory):
    """A plan's results, its store, and the report."""
    place = tmp_path_factory.mktemp("bench")
    (place / "three.toml").write_text(SET)
    (place / "plan.toml").write_text(PLAN.format(set=place / "three.toml"))
    store, out, page = place / "store", place / "out", place / "report.html"
    assert (
        main(["bench", str(place / "plan.toml"), "--store", str(store), "--out", str(out), "--workers", "1", "--quiet"])
        == 0
    )
    assert main(["report", str(out), "--store", str(store), "--out", str(page), "--quiet"]) == 0
    return SimpleNamespace(out=out, store=store, page=page)


@pytest.fixture(scope="session")
def command_run(tmp_path_factory, images):
    """What erase, generate and measure wrote into one folder, beside images of the original model."""
    place = tmp_path_factory.mktemp("commands") / "run"
    shutil.copytree(images, place / "before")
    edit = place / "edit" / "edit.safetensors"
    erase = ["erase", "uce", "--target", "church", "--anchor", "picture", "--retain", "dog", "--out", str(edit.parent)]
    assert main([*erase, "--no-check", "--quiet"]) == 0
    asked = [word for concept in ("church", "dog", "radio") for word in ("--concept", concept)]
    sampled = ["--edit", str(edit), "--count", "3", "--seed", "0", "--steps", "4", "--out", str(place / "after")]
    assert main(["generate", *asked, *sampled, "--quiet"]) == 0
    for folder in ("before", "after"):
        measure = ["measure", "esr-psr", "--images", str(place / folder), "--target", "church"]
        assert main([*measure, "--out", str(place / f"{folder}.jsonl"), "--quiet"]) == 0
    return place
