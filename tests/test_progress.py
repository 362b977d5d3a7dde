"""Progress where there is no terminal: a line now and then, whose time left is time left."""

import time

import pytest

from expunge.cli import main, progress
from expunge.cli.bench import live
from expunge.cli.progress import Work
from expunge.cli.reporting import Reporting
from expunge.core.times import duration
from expunge.executors import bench
from expunge.jobs import MeasureJob


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1.0, "0.0 s"),
        (7.84, "7.8 s"),
        (59.96, "1 min 0 s"),
        (125.0, "2 min 5 s"),
        (3599.7, "1 h 0 min"),
        (4805.0, "1 h 20 min"),
    ],
)
def test_times_in_words(seconds, words):
    assert duration(seconds) == words


def test_time_left_is_that_of_the_pace_since_work_began():
    now = [0.0]
    work = Work("generating", 40, "images", clock=lambda: now[0])
    assert work.line() == "generating: 0 of 40 images, 0.0 s so far"
    now[0] = 100.0  # a model was loaded, and the first four were made
    work.advance(4)
    assert work.left() == 100 / 4 * 36, "nothing better is known"
    for now[0] in (110.0, 120.0):
        work.advance(4)
    assert work.left() == 20 / 8 * 28
    now[0] = 130.0
    assert work.left() == 20 / 8 * 28 - 10, "it passes between two advances"
    assert work.line() == "generating: 12 of 40 images, 2 min 10 s so far, about 1 min 0 s left"
    now[0] = 1000.0
    assert work.left() == 0
    work.reach(40)
    assert work.done == 40
    assert work.left() == 0


def test_work_of_unknown_size_tells_no_time_left():
    work = Work("searching", 0, "forward-equivalents", clock=lambda: 0.0)
    work.advance(1500)
    assert work.line() == "searching: 1,500 forward-equivalents, 0.0 s so far"


def test_a_line_is_told_however_long_one_piece_takes(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with Reporting().progress("attacking", 10, "forward-equivalents", lambda: 5):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("attacking: 5 of 10 forward-equivalents, 0.") for line in lines)
    for reporting in (Reporting(quiet=True), Reporting(json=True)):
        with reporting.progress("attacking", 10, "images") as advance:
            assert advance is None
            time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_commands_tell_how_far_they_are(monkeypatch, capsys, folder, tmp_path):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    model = ["--model", str(folder)]
    sampled = [
        *model,
        "--prompt",
        "a dog",
        "--count",
        "6",
        "--batch",
        "2",
        "--steps",
        "8",
        "--out",
        str(tmp_path / "a"),
    ]
    assert main(["generate", *sampled]) == 0
    assert any("generating: 2 of 6 images, " in line for line in capsys.readouterr().err.splitlines())
    quick = ["--target", "dog", "--iterations", "6", "--sampling-steps", "4", "--templates", "{}"]
    assert main(["erase", "leco", *model, *quick, "--out", str(tmp_path / "b")]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("erasing with leco: ")]
    done, total = told[-1].removeprefix("erasing with leco: ").split(" forward-")[0].split(" of ")
    assert 0 < int(done) <= 1.5 * int(total), told[-1]


def test_a_plan_s_time_left_passes_while_a_job_runs(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    measure = {"metric": "fid", "version": 1, "settings": {}, "judge": "", "targets": [], "retain": []}
    one, other = (MeasureJob(images=images, **measure) for images in "ab")
    with live(Reporting()) as show:
        time.sleep(0.12)
        show(bench.Progress(done=1, total=3, running=(one, other), seconds_left=100.3))
        time.sleep(0.7)
        show(bench.Progress(done=3, total=3, running=(), seconds_left=0.0))
        time.sleep(0.12)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("0 jobs, 0.")
    assert lines[0].endswith("so far, nobody knows how long: planning")
    running = [line for line in lines if line.startswith("1/3 jobs, ")]
    assert running[0].endswith("about 1 min 40 s left: measure fid; measure fid")
    assert running[-1].endswith("about 1 min 40 s left: measure fid; measure fid")
    assert lines[-1].endswith("about 0.0 s left: finished")
