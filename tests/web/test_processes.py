"""A run is a process of its own: another server finds it, it may be killed, cancelled and gone on with."""

import os
import signal
import sys
import time

import pytest

from expunge.core.errors import ExpungeError
from expunge.web import showing, wishes
from expunge.web.processes import NOWHERE, TOKEN, Runner
from expunge.web.wishes import Wish


def until(true, seconds=900):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


def test_a_run_is_begun_found_killed_gone_on_with_and_cancelled(served):
    long = Wish(concept="fish", method="uce", keep=["dog"], count=20)  # longer than this process may be kept waiting
    name = wishes.erasure(long, served)
    runner, another = (Runner(served=served, workers=1) for _ in range(2))  # the second is a server started later
    assert showing.standing(name, runner).state == "ready"
    runner.start(name)
    assert another.running() == name
    assert showing.standing(name, another).state == "running"
    with pytest.raises(ExpungeError, match=f"'{name}' is going on"):
        another.start(name)
    with pytest.raises(ExpungeError, match="'web/other' is not going on"):
        another.cancel("web/other")
    until(lambda: isinstance(runner._told().get("pid"), int))
    os.killpg(runner._told()["pid"], signal.SIGKILL)
    until(lambda: another.running() is None)
    assert showing.standing(name, another).line == "stopped: its process was killed"
    another.start(name)
    until((served.root / name / "progress.json").is_file)
    another.cancel(name)
    at = showing.standing(name, runner)
    assert (at.state, at.why) == ("stopped", "terminated")
    assert runner.running() is None


def test_bad_input_that_only_the_run_finds_is_its_last_word(served):
    """A model whose files are no model: `expunge bench` says so in a line, and the page shows it."""
    model = served.root / "models" / "empty"
    model.mkdir(parents=True)
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    name = wishes.erasure(Wish(concept="fish", method="uce", model="./models/empty"), served)
    runner = Runner(served=served, workers=1)
    runner.start(name)
    until(lambda: runner.running() is None)
    at = showing.standing(name, runner)
    assert at.state == "stopped"
    assert "models/empty" in at.why
    assert "\n" not in at.line


def test_an_attack_that_was_refused_does_not_stand_in_the_way_of_the_next(desk):
    """A set of prompts without its file: the run says so, and the plan has it no more when another attack is chosen."""
    served = desk.served
    name = desk.erase(Wish(concept="fish", method="uce", keep=["dog"], count=1))
    until(lambda: desk.runner.running() is None)
    desk.attack(name, "seed-search", {"tries": "1"})
    until(lambda: desk.runner.running() is None)
    assert not desk.runner.unbegun(name)
    desk.attack(name, "prompt-set", {})
    until(lambda: desk.runner.running() is None)
    assert desk.runner.unbegun(name)
    assert "attack_set" in showing.standing(name, desk.runner).why
    desk.attack(name, "rounding", {})
    until(lambda: desk.runner.running() is None)
    assert showing.standing(name, desk.runner).state == "finished"
    assert [one["name"] for one in wishes.read_plan(name, served)["attacks"]] == ["seed-search", "rounding"]


def test_a_run_that_breaks_says_how(served, monkeypatch):
    """What is no error of the input ends with Python's own last line."""
    name = wishes.erasure(Wish(concept="fish", method="uce"), served)
    monkeypatch.setenv("PYTHONPATH", str(served.root / "nowhere"))
    monkeypatch.setattr(sys, "executable", sys._base_executable)  # a Python without expunge
    runner = Runner(served=served)
    runner.start(name)
    until(lambda: runner.running() is None)
    assert showing.standing(name, runner).line.endswith("No module named expunge")


def test_a_run_asks_nothing_of_the_network_unless_it_may(served, monkeypatch):
    monkeypatch.setenv(TOKEN, "x" * 20)
    monkeypatch.setenv("NO_PROXY", "*")
    closed = Runner(served=served)._environment()
    assert closed["https_proxy"] == closed["HTTPS_PROXY"] == NOWHERE
    assert closed["HF_HUB_OFFLINE"] == "1"
    assert not {"NO_PROXY", TOKEN} & set(closed)
    monkeypatch.setenv("PYTHONPATH", "src:")
    assert Runner(served=served)._environment()["PYTHONPATH"] == f"{os.getcwd()}/src:{os.getcwd()}"
    open_ = Runner(served=served, online=True)._environment()
    assert "https_proxy" not in open_ or open_["https_proxy"] != NOWHERE
    assert TOKEN not in open_


def test_no_file_of_the_folder_is_taken_for_a_module(served):
    assert "-P" in Runner(served=served)._command("web/x")
