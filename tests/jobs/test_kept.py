"""Results that were damaged by hand, cut off or lost by half: they are made again, not believed, to the same numbers."""

import contextlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.executors import bench
from expunge.jobs import Job, kept
from plans_of import bench_words, jobs_of, measurements_of, read_rows, store_of, tiny_plan, without_times


def cut(file: Path) -> None:
    """Keep the first half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.rglob(pattern))[0]


def half_of_the_images(folder: Path) -> None:
    for file in sorted(folder.rglob("*.png"))[::2]:
        file.unlink()


def without_its_seconds(folder: Path) -> None:
    """A result that is an object, and not all of one."""
    content = json.loads((folder / "result.json").read_text())
    del content["seconds"]
    (folder / "result.json").write_text(json.dumps(content))


def a_line_less(folder: Path) -> None:
    """A list of images that is cut off where a line ends, which is a list of fewer images."""
    file = first(folder, "metadata.jsonl")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a result of images": ("generate", lambda folder: cut(folder / "result.json")),
    "an empty object": ("measure", lambda folder: (folder / "result.json").write_text("{}")),
    "a result by half": ("erase", without_its_seconds),
    "an empty result": ("erase", lambda folder: (folder / "result.json").write_text("")),
    "a result of a measurement": ("measure", lambda folder: cut(folder / "result.json")),
    "an edit": ("erase", lambda folder: cut(folder / "edit.safetensors")),
    "a lost edit": ("erase", lambda folder: (folder / "edit.safetensors").unlink()),
    "a private key": ("erase", lambda folder: cut(folder / "key.safetensors")),
    "an image": ("generate", lambda folder: cut(first(folder, "*.png"))),
    "half of the images": ("generate", half_of_the_images),
    "a list of images": ("generate", a_line_less),
    "what made the images": ("generate", lambda folder: cut(first(folder, "run.json"))),
    "queries": ("attack", lambda folder: cut(first(folder, "queries.json"))),
    "learned words": ("attack", lambda folder: cut(first(folder, "*.safetensors"))),
    "a figure": ("analyse", lambda folder: cut(first(folder, "figures/*.json"))),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan that was run to its end, beside its store and its results."""
    inversion = {"name": "concept-inversion", "iterations": 1, "images": 1, "batch": 1}
    rows = {"grid__method": ["original", "kpop"], "analyses": ["closeness"], "attacks": [inversion]}
    plan = tiny_plan(tmp_path_factory.mktemp("whole"), **rows)
    assert main(bench_words(plan, "--quiet")) == 0
    return plan


@pytest.fixture
def plan(whole: Path, tmp_path: Path) -> Path:
    """The same in a place of its own, where a test may damage it."""
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "plan.toml"


def of_room(plan: Path, room: str, holds: str = "*") -> Job:
    """A job of a room whose folder holds such a file."""
    return next(job for job in jobs_of(plan) if job.room == room and any(job.folder(store_of(plan)).rglob(holds)))


def records(plan: Path) -> list:
    return without_times(read_rows(plan.parent / "out" / "records.jsonl"))


def waiting(plan: Path) -> list[Job]:
    return bench.waiting(measurements_of(plan), store_of(plan))


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_result_is_not_believed_and_only_its_job_is_to_be_done_again(plan: Path, what: str):
    assert waiting(plan) == []
    room, damage = DAMAGES[what]
    job = of_room(plan, room, "key.safetensors" if what == "a private key" else "*")
    damage(job.folder(store_of(plan)))
    assert job.result(store_of(plan)) is None
    assert "is damaged" in job.damage(store_of(plan))
    assert [again.key for again in waiting(plan)] == [job.key]


def test_everything_damaged_at_once_is_made_again_to_the_same_numbers(plan: Path, capsys: pytest.CaptureFixture[str]):
    expected, at = records(plan), store_of(plan)
    pictures = {p: p.read_bytes() for p in at.store.rglob("*.png")}
    for room in ("generate", "erase", "attack", "measure", "analyse"):
        cut(of_room(plan, room).folder(at) / "result.json")
    half_of_the_images(jobs_of(plan)[-1].folder(at))
    for file in ("records.jsonl", "summary.jsonl", "table.md"):
        cut(plan.parent / "out" / file)
    assert main(bench_words(plan, "--quiet")) == 0
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "result.json' is damaged: expected one JSON object" in told[0]
    assert told[0].endswith("(and 4 more): made again")
    assert records(plan) == expected
    assert {p: p.read_bytes() for p in at.store.rglob("*.png")} == pictures
    assert waiting(plan) == []


def test_a_folder_whose_result_was_deleted_is_made_again(plan: Path):
    """As a kill leaves it in the middle of deleting it."""
    job = of_room(plan, "measure")
    (job.folder(store_of(plan)) / "result.json").unlink()
    (job.folder(store_of(plan)) / "left").write_text("x")
    assert [again.key for again in waiting(plan)] == [job.key]
    expected = records(plan)
    assert main(bench_words(plan, "--quiet")) == 0
    assert records(plan) == expected
    assert not (job.folder(store_of(plan)) / "left").exists()


def test_what_was_deleted_by_half_is_a_leftover(plan: Path, capsys: pytest.CaptureFixture[str]):
    store, folder = store_of(plan).store, of_room(plan, "generate").folder(store_of(plan))
    (folder / "result.json").unlink()
    (store / "generate-of-mine").mkdir()
    assert main(["clean", "--room", "leftovers", "--store", str(store), "--json"]) == 0
    assert "leftovers" not in json.loads(capsys.readouterr().out)["rooms"]
    assert not folder.exists()
    assert (store / "generate-of-mine").is_dir(), "a user's own"


def test_results_of_an_expunge_that_did_not_count_files_are_believed(plan: Path):
    for file in store_of(plan).store.glob("*/result.json"):
        content = json.loads(file.read_text())
        assert content.pop("beside") == kept.beside(file.parent)
        file.write_text(json.dumps(content))
    assert waiting(plan) == []


@contextlib.contextmanager
def opened_without_end() -> Iterator[None]:
    """As many open files as this process may have: the next cannot be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for one in taken:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_result_that_cannot_be_read_now_is_an_error_and_not_made_again(plan: Path):
    """With no file left to open, which says nothing of what the file holds."""
    job, at = of_room(plan, "measure"), store_of(plan)
    file = job.folder(at) / "result.json"
    before = file.read_bytes()
    for asked in (job.result, job.damage, job.finish):
        with opened_without_end():
            with pytest.raises(ExpungeError) as caught:
                asked(at)
            said = str(caught.value)
        assert said == f"'{file}' cannot be read: Too many open files"
    assert file.read_bytes() == before
    assert job.result(at) is not None


def test_a_folder_that_cannot_be_looked_into_is_an_error(plan: Path, tmp_path: Path):
    """A loop of links stands in for it: root may look into all else."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    job, at = of_room(plan, "generate"), store_of(plan)
    (job.folder(at) / "more").symlink_to(tmp_path / "loop")
    with pytest.raises(ExpungeError, match=r"more' cannot be read: Too many levels of symbolic links"):
        job.result(at)
    assert job.folder(at).is_dir()


@pytest.mark.parametrize("name", [".DS_Store", "._result.json", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/a.png"])
def test_what_file_managers_leave_is_no_damage(plan: Path, name: str):
    folder = of_room(plan, "generate").folder(store_of(plan))
    for place in (folder, folder / "images"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("x")
    assert waiting(plan) == []
    (folder / "images" / "mine.png").write_text("x")
    assert len(waiting(plan)) == 1, "any other file is"


def test_a_damaged_result_of_another_plan_is_in_nobody_s_way(plan: Path):
    other = store_of(plan).store / f"generate-{'0' * 24}"
    other.mkdir()
    (other / "result.json").write_text('{"job": ')
    cut(of_room(plan, "measure").folder(store_of(plan)) / "result.json")
    assert main(bench_words(plan)) == 0, "also where times are told, which are those of the store"


def test_a_damaged_copy_of_the_plan_is_refused_until_told_otherwise(plan: Path, capsys: pytest.CaptureFixture[str]):
    cut(plan.parent / "out" / "plan.json")
    assert main(bench_words(plan, "--quiet")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "plan.json' is damaged" in line
    assert "--changed, which writes it anew" in line
    assert main(bench_words(plan, "--quiet", "--changed")) == 0
    assert main(bench_words(plan, "--quiet")) == 0


def test_images_that_were_cut_off_are_not_gone_on_with(folder: Path, tmp_path: Path):
    """`generate --resume` begins anew where what a killed run left is damaged."""
    from expunge import backbones
    from expunge.core.query import queries
    from expunge.stages import generate

    model, asked = backbones.load(str(folder)), queries([("a church", None)], 4, 0, 3.0, 2)
    expected = generate.to_folder(model, [], asked, tmp_path / "whole", batch=2)

    def stop(_: int) -> None:
        if (tmp_path / ".torn.partial" / ".resume.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate.to_folder(model, [], asked, tmp_path / "torn", batch=2, on_batch=stop)
    cut(first(tmp_path / ".torn.partial", "*.png"))
    with pytest.warns(ExpungeWarning, match="images in '.*' were damaged: begun anew"):
        generate.to_folder(model, [], asked, tmp_path / "torn", batch=2, resume=True)
    assert {p.name: p.read_bytes() for p in expected.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "torn").iterdir()
    }
