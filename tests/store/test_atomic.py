"""Nothing lost: who may write where, what a killed run leaves, and renames that replace nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from expunge.core.errors import ExpungeError
from expunge.store import (
    RESUME,
    claimed,
    new_file,
    new_folder,
    read_json,
    read_lines,
    reserved,
    write_json,
    write_lines,
)
from expunge.store import atomic as module

WRITER = """
import sys, time
from pathlib import Path
from expunge.store import new_folder, write_json
out, pause = Path(sys.argv[1]), float(sys.argv[2])
with new_folder(out, overwrite="overwrite" in sys.argv) as folder:
    print("writing", flush=True)
    for i in range(20):
        (folder / f"{i}.txt").write_text(sys.argv[3])
        time.sleep(pause / 20)
    write_json(folder / "run.json", {"of": sys.argv[3]})
"""


def writer(out: Path, pause: float, word: str, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(out), str(pause), word, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def content(folder: Path) -> set[str]:
    return {p.read_text() for p in folder.glob("*.txt")}


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_a_folder_that_came_into_being_meanwhile_is_kept_and_so_is_the_work(tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(ExpungeError, match=r"out' exists by now: .* whole, and in '.*out-2'"),
        new_folder(out) as folder,
    ):
        (folder / "ours").write_text("hours of work")
        out.mkdir()
        (out / "theirs").write_text("of somebody else")
    assert [p.name for p in out.iterdir()] == ["theirs"]
    assert (tmp_path / "out-2" / "ours").read_text() == "hours of work"
    assert hidden(tmp_path) == []


def test_an_empty_folder_that_came_into_being_is_not_replaced_either(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ExpungeError, match="exists by now"), new_folder(out) as folder:
        (folder / "ours").write_text("x")
        out.mkdir()
        made = out.stat().st_ino
    assert out.stat().st_ino == made
    assert (tmp_path / "out-2" / "ours").exists()


def test_what_is_overwritten_is_looked_at_again_when_it_is_replaced(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "run.json").write_text("{}")
    with pytest.raises(ExpungeError, match="cannot be replaced"), new_folder(out, overwrite=True) as folder:
        (folder / "run.json").write_text("{}")
        (out / "run.json").unlink()
        (out / "thesis.tex").write_text("years of work")
    assert (out / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "out-2" / "run.json").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_came_into_being_meanwhile_is_kept_and_so_is_the_work(tmp_path, monkeypatch, links):
    def linkless(*_):
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", linkless)
    path = tmp_path / "edit.safetensors"
    with pytest.raises(ExpungeError, match=r"edit-2\.safetensors"), new_file(path, mode=0o600) as temporary:
        temporary.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert (tmp_path / "edit-2.safetensors").read_text() == "ours"
    assert (tmp_path / "edit-2.safetensors").stat().st_mode & 0o777 == 0o600
    assert hidden(tmp_path) == []


def test_of_two_runs_to_one_place_the_second_is_refused_at_once(tmp_path):
    out = tmp_path / "deep" / "out"
    first = writer(out, 3.0, "first")
    assert first.stdout is not None
    first.stdout.readline()
    with pytest.raises(ExpungeError, match="being written by another run"), new_folder(out):
        pass
    with pytest.raises(ExpungeError, match="being written by another run"), reserved(out):
        pass
    assert first.wait() == 0
    assert content(out) == {"first"}
    assert hidden(out.parent) == []


def test_threads_of_one_process_keep_each_other_out_and_nested_claims_do_not(tmp_path):
    taken = []

    def other():
        with claimed(tmp_path / "out", wait=False) as ours:
            taken.append(ours)

    with reserved(tmp_path / "out"), new_folder(tmp_path / "out") as folder:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        (folder / "x").write_text("x")
    assert taken == [False]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_refused_or_failed_run_leaves_no_folder_on_the_way(tmp_path):
    with pytest.raises(RuntimeError), reserved(tmp_path / "a" / "b" / "out"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_swept_and_a_live_one_s_is_not(tmp_path):
    out = tmp_path / "out"
    run = writer(out, 30.0, "killed")
    assert run.stdout is not None
    run.stdout.readline()
    run.kill()
    run.wait()
    assert hidden(tmp_path) == [".out.lock", ".out.partial"]
    live = writer(tmp_path / "other", 2.0, "live")
    assert live.stdout is not None
    live.stdout.readline()
    (tmp_path / ".out.settings").write_text("the user's own")
    with new_folder(out) as folder:
        assert not any(folder.iterdir())
    assert live.wait() == 0
    assert hidden(tmp_path) == [".out.settings"]


def test_a_run_killed_while_it_replaced_a_folder_gives_the_old_one_back(tmp_path):
    old = tmp_path / ".out.partial.old"
    old.mkdir()
    (old / "run.json").write_text("{}")
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(ExpungeError, match="exists already"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "run.json").exists()
    assert not old.exists()


def test_an_interrupted_folder_that_says_how_far_it_is_stays_to_be_resumed(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught, new_folder(out) as folder:
        (folder / "1").write_text("one")
        (folder / RESUME).write_text("{}")
        raise KeyboardInterrupt
    assert "--resume" in caught.value.__notes__[0]
    with new_folder(out, resume=True) as folder:
        assert (folder / "1").read_text() == "one"
    assert [p.name for p in out.iterdir()] == ["1"]
    with pytest.raises(ExpungeError), new_folder(tmp_path / "bad") as folder:  # nothing is finished: nothing is left
        (folder / "half").write_text("")
        raise ExpungeError("bad")
    assert hidden(tmp_path) == []


def test_killed_at_random_moments_nothing_is_lost_and_two_at_a_time_do_not_mix(tmp_path):
    """What is at the place is always one whole folder, the old one or a new one; a last run always succeeds."""
    out, draw = tmp_path / "out", random.Random(19)
    whole = {"old"}
    first = writer(out, 0.0, "old")
    assert first.wait() == 0
    for number in range(8):
        runs = [writer(out, 0.2, f"{number}{side}", "overwrite") for side in "ab"]
        whole |= {f"{number}a", f"{number}b"}
        assert runs[0].stdout is not None
        runs[0].stdout.readline()  # it writes, or was refused
        time.sleep(draw.uniform(0.0, 0.25))
        runs[0].send_signal(signal.SIGKILL)
        for run in runs:
            _, told = run.communicate()
            assert run.returncode in (0, 1, -9), told
        if out.exists():
            (only,) = content(out)
            assert only in whole
            assert read_json(out / "run.json") == {"of": only}
            assert len(list(out.glob("*.txt"))) == 20
    last = writer(out, 0.0, "last", "overwrite")
    assert last.wait() == 0
    assert content(out) == {"last"}
    assert hidden(tmp_path) == []


def test_without_locks_runs_do_not_share_a_temporary_and_nothing_is_swept(tmp_path, monkeypatch):
    from expunge.store import locks

    monkeypatch.setattr(locks, "fcntl", None)
    out = tmp_path / "out"
    with pytest.raises(ExpungeError, match="out-2"), new_folder(out) as one:
        with new_folder(out) as other:
            assert one != other
            (other / "x").write_text("other")
        (one / "x").write_text("one")
    assert (out / "x").read_text() == "other"
    assert (tmp_path / "out-2" / "x").read_text() == "one"


@pytest.mark.parametrize("name", ["n" * 256, "n" * 253, "é" * 130])
def test_names_that_are_too_long_are_one_line(tmp_path, name):
    for write in (new_file, new_folder, reserved):
        with pytest.raises(ExpungeError, match="cannot be written") as caught, write(tmp_path / name):
            pass
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "[" * 100_000, "[1]", "\xff", '{"a": ' + "9" * 5000 + "}"],
)
def test_json_that_is_none_is_refused(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin-1"))
    for read in (read_json, read_lines):
        with pytest.raises(ExpungeError, match=r"a\.json"):
            read(file)


def test_numbers_that_are_none_are_not_written(tmp_path):
    with pytest.raises(ExpungeError, match="NaN or infinite"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    with pytest.raises(ExpungeError, match="NaN or infinite"):
        write_lines(tmp_path / "a.jsonl", [{"a": 1}, {"a": float("inf")}])
    assert list(tmp_path.iterdir()) == []


def test_lines_end_at_line_ends_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_lines(tmp_path / "a.jsonl") == [{"prompt": "a\u2028b"}]
    assert module.parsed("{}") == {}
