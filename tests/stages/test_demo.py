"""The demo's stage, with too few updates to erase anything."""

import dataclasses
import shlex
from pathlib import Path

import pytest
from PIL import Image

from expunge.cli import main
from expunge.cli.demo import Demo, again, audit_of
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError
from expunge.plans import audit
from expunge.stages import demo, tiers
from expunge.stages.tiers import Rate
from expunge.store import load_edit, read_images

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
SHORT = {"iterations": 1, "batch": 2, "sampling": {"sampling_steps": 2, "trajectories": 2}}


def test_a_demo_of_no_images_is_refused_before_it_erases(tmp_path):
    with pytest.raises(ExpungeError, match="count is 0"):
        demo.run("church", tmp_path / "out", 0, False)
    assert not (tmp_path / "out").exists()


def test_the_demo_shows_and_measures_four_sides_on_equal_seeds(tmp_path):
    begun = []
    records = demo.run("church", tmp_path / "out", 1, False, begun.append, SHORT)
    assert len(begun) == 5
    assert {(r.provenance["images"], r.subject) for r in records} == {
        ("original", "original"),
        ("erased", "edited"),
        ("recovered", "recovered"),
        ("wrong-key", "recovered"),
    }
    keys = {r.provenance["images"]: r.provenance["key"] for r in records}
    assert keys["original"] is keys["erased"] is None
    assert len({keys["recovered"], keys["wrong-key"], None}) == 3
    with Image.open(tmp_path / "out" / "compare.png") as sheet:
        assert sheet.height == 24 + 10 * 128
        assert sheet.width > 4 * 128
    seeds = {name: [(s.prompt, s.seed) for s in read_images(tmp_path / "out" / name)] for name in demo.SIDES}
    assert seeds["original"] == seeds["erased"]
    assert seeds["recovered"] == seeds["wrong-key"] == seeds["original"][:1]
    head, *_, last = demo.table(tmp_path / "out", records).splitlines()
    assert all(title in head for title in demo.SIDES.values())
    assert last.endswith("compare.png")


def test_its_edit_is_audited_beside_it_and_a_second_time_gone_on_with(tmp_path, monkeypatch, capsys):
    """Of one attack, on a machine that is taken for a fast one: what an update leaves is not erased."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        tiers, "measured", lambda *_: Rate(forward=0.01, trained=0.03, text=0.01, drawn=0.01, bare=0.01)
    )
    monkeypatch.setattr(audit, "ORDER", ("rounding",))
    demo.run("church", tmp_path / "out", 1, False, settings=SHORT)
    options = Demo(out=tmp_path / "out", audit=True, audit_budget="48s", reporting=Reporting(quiet=True))
    done = audit_of(options)
    assert done.content["asked"]["ids"] == [load_edit(tmp_path / "out" / "edit.safetensors").id]
    assert done.content["verdict"]["headline"].startswith("Not erased: still shown to whoever asks by name")
    report = tmp_path / "out" / "audit" / "report.html"
    assert done.text.splitlines()[-1] == f"see {report}"
    assert "Not erased" in report.read_text()
    before = (tmp_path / "out" / "audit" / "plan.toml").stat().st_mtime_ns
    assert audit_of(dataclasses.replace(options, resume=True)).content == done.content
    assert (tmp_path / "out" / "audit" / "plan.toml").stat().st_mtime_ns == before
    longer = audit_of(dataclasses.replace(options, resume=True, audit_budget="50s"))
    assert longer.content["asked"]["budget"] == "50s", (
        "another time is another audit, which takes the first one's place"
    )


def test_without_an_audit_it_ends_with_the_command_of_one():
    assert again(Demo()) == "expunge demo --resume --audit"
    assert again(Demo(target="dog", out=Path("x"))) == "expunge demo --resume --audit --target dog --out x"
    options = Demo(target="delivery truck", out=Path("my runs/it's"), audit_budget="10m")
    words = shlex.split(again(options))
    assert words[:2] == ["expunge", "demo"]
    assert parse(Demo, words[2:], "expunge demo") == dataclasses.replace(options, resume=True, audit=True)


def test_an_audit_that_cannot_be_is_refused_before_the_demo_begins(tmp_path, capsys):
    assert main(["demo", "--audit", "--audit-budget", "soon", "--out", str(tmp_path / "out")]) == 2
    assert "expected a time of more than nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
