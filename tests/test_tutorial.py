"""The tutorial runs as it is written, from top to bottom: its plan, and its commands, made cheaper than they are there."""

from pathlib import Path

import pytest

import pages

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()
CHEAPER = {
    "generate --concept": ["--count", "1", "--steps", "2"],
    "erase": ["--check-images", "1"],
    "erase kpop": ["--iterations", "1", "--trajectories", "1", "--sampling-steps", "2"],
    "attack": ["--images", "1", "--iterations", "1", "--query-steps", "2"],
    "recover": ["--count", "1", "--steps", "2"],
}
PLAN = {"count = 4": "count = 1\nsteps = 1"}
"""What of the plan is changed, likewise."""


@pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")  # so few steps draw no neighbours
def test_every_command_runs_after_those_above_it_and_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (plan,) = pages.blocks(PAGE, "toml")
    for there, instead in PLAN.items():
        assert plan.count(there) == 1
        plan = plan.replace(there, instead)
    (tmp_path / "plan.toml").write_text(plan)
    commands = pages.commands(PAGE)
    assert len(commands) > 15
    for shown in commands:
        pages.run(shown, CHEAPER, capsys)
    assert (tmp_path / "runs" / "church" / "report.html").exists()
    assert (tmp_path / "runs" / "bench" / "plan" / "table.md").exists()
