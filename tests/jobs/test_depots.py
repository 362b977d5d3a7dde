"""Depots: what is put there is whole or not there, the first of two is believed, and what a kill left goes."""

import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from expunge.core.errors import ExpungeError
from expunge.executors.serial import Serial
from expunge.jobs import Workspace, kept
from expunge.jobs.depots import Depot, ObjectStore, SharedFolder, levelled
from expunge.jobs.kept import BESIDE, RESULT
from expunge.store import write_json
from expunge.store.places import Place
from s3 import serving
from small_jobs import Log, assert_alike, some_jobs

NAME = "generate-0123456789abcdef01234567"


@pytest.fixture(params=["folder", "s3"])
def depot(request, tmp_path: Path) -> Iterator[Depot]:
    if request.param == "folder":
        (tmp_path / "depot").mkdir()
        yield SharedFolder(tmp_path / "depot")
        return
    with serving() as server:
        yield ObjectStore(f"s3://{server.bucket}/depot")


def made(folder: Path, seconds: float = 1.0) -> Path:
    """A job's folder, with a private file and one further down."""
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "0.png").write_bytes(bytes(range(256)) * 50)
    (folder / "key.safetensors").write_text("secret")
    (folder / "key.safetensors").chmod(0o600)
    about = {"format": 1, "job": {}, "seconds": seconds, "cost": {}, BESIDE: kept.beside(folder)}
    write_json(folder / RESULT, about)
    return folder


def fetched(depot: Depot, into: Path) -> Path:
    store = depot.reading(into)
    depot.fetch(NAME, store)
    return store / NAME


def left(depot: Depot) -> list[str]:
    """All that lies in a depot, but what jobs are put as."""
    if isinstance(depot, SharedFolder):
        return [path.name for path in depot.path.iterdir() if path.name != NAME]
    files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    return sorted(path.rpartition("/")[2] for path in files.find(depot.url.removeprefix("s3://")))


def test_what_is_put_comes_back_to_the_last_bit(depot: Depot, tmp_path: Path):
    assert not depot.has(NAME)
    job = made(tmp_path / "job")
    depot.put(NAME, job, "first")
    assert depot.has(NAME)
    there = fetched(depot, tmp_path / "here")
    for file in ("images/0.png", "key.safetensors", RESULT):
        assert (there / file).read_bytes() == (job / file).read_bytes()
    assert stat.S_IMODE((there / "key.safetensors").stat().st_mode) == 0o600
    assert kept.whole(there) is not None
    assert fetched(depot, tmp_path / "here") == there, "and again, where it is already"


def test_the_first_of_many_that_put_the_same_is_believed_and_the_others_leave_nothing(depot: Depot, tmp_path: Path):
    ready = threading.Barrier(4)
    failed: list[BaseException] = []

    def put(number: int) -> None:
        folder = made(tmp_path / f"job{number}", float(number))
        ready.wait()
        try:
            depot.put(NAME, folder, f"try{number}")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=put, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    result = kept.read(fetched(depot, tmp_path / "here"))
    assert result is not None
    depot.put(NAME, made(tmp_path / "late", 99.0), "late")
    assert kept.read(fetched(depot, tmp_path / "elsewhere")) == result
    assert left(depot) == ([] if isinstance(depot, SharedFolder) else ["done.json", left(depot)[1]])


def test_what_a_killed_try_left_does_not_count_and_goes_with_the_next(depot: Depot, tmp_path: Path):
    if isinstance(depot, SharedFolder):
        (depot.path / f".{NAME}.partial-dead").mkdir()
        (depot.path / f".{NAME}.partial-dead" / RESULT).touch()
    else:
        files = fsspec.filesystem("s3")
        files.pipe_file(f"{depot.url}/{NAME}/dead.tar", b"half")
    assert not depot.has(NAME)
    depot.put(NAME, made(tmp_path / "job"), "next")
    assert left(depot) == ([] if isinstance(depot, SharedFolder) else ["done.json", "next.tar"])


def test_what_is_given_up_is_deleted(depot: Depot):
    depot.discard(NAME, "never-begun")
    if isinstance(depot, SharedFolder):
        (depot.path / f".{NAME}.partial-dead").mkdir()
    else:
        fsspec.filesystem("s3").pipe_file(f"{depot.url}/{NAME}/dead.tar", b"half")
    depot.discard(NAME, "dead")
    assert left(depot) == []


def test_a_job_that_was_done_before_it_was_given_up_stays(depot: Depot, tmp_path: Path):
    """As where its worker dies, or the run is ended, between its last write and its answer."""
    depot.put(NAME, made(tmp_path / "job"), "a")
    depot.discard(NAME, "a")
    assert depot.has(NAME)
    assert (fetched(depot, tmp_path / "store") / "images" / "0.png").read_bytes() == bytes(range(256)) * 50


def test_a_job_that_was_given_up_before_it_was_done_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its archive was deleted between the two writes: a result that names it would stand for nothing."""
    with serving() as server:
        depot = ObjectStore(f"s3://{server.bucket}/depot")
        create = Place.create

        def late(*given: Any) -> bool:
            depot.discard(NAME, "a")
            return create(*given)

        monkeypatch.setattr(Place, "create", late)
        depot.put(NAME, made(tmp_path / "job"), "a")
        assert not depot.has(NAME)
        monkeypatch.setattr(Place, "create", create)
        depot.put(NAME, tmp_path / "job", "b")
        assert fetched(depot, tmp_path / "store").is_dir()


def test_a_depot_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ExpungeError, match="cannot be written: Not a directory"):
        SharedFolder(tmp_path / "file").leases()


@pytest.mark.parametrize("harm", ["changed", "lost", "nonsense"])
def test_a_damaged_archive_is_told_and_not_unpacked(harm: str, tmp_path: Path):
    with serving() as server:
        depot = ObjectStore(f"s3://{server.bucket}/depot")
        depot.put(NAME, made(tmp_path / "job"), "first")
        files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        path = f"{server.bucket}/depot/{NAME}/first.tar"
        if harm == "changed":
            content = bytearray(files.cat_file(path))
            content[3000] ^= 1
            files.pipe_file(path, bytes(content))
        elif harm == "lost":
            files.rm_file(path)
        else:
            files.pipe_file(f"{server.bucket}/depot/{NAME}/done.json", b"[]")
        with pytest.raises(ExpungeError, match=r"is damaged, as .*: expected it whole, or deleted to be made again"):
            fetched(depot, tmp_path / "here")
        assert not list((tmp_path / "here").rglob("*.png"))
        assert not list((tmp_path / "here").rglob(".*"))


def test_a_job_that_is_not_there_is_refused(tmp_path: Path):
    with serving() as server, pytest.raises(ExpungeError, match="to be done first"):
        fetched(ObjectStore(f"s3://{server.bucket}/depot"), tmp_path)


def test_a_place_that_is_none_or_cannot_be_used_is_one_line():
    with pytest.raises(ExpungeError, match="is no place that fsspec knows"):
        ObjectStore("nonsense://bucket").check()
    with (
        serving() as server,
        pytest.raises(ExpungeError, match=r"cannot be used \(The specified bucket does not exist"),
    ):
        ObjectStore(f"s3://not-{server.bucket}/depot").check()


def test_a_store_and_a_depot_are_brought_in_line(folder: Path, tmp_path: Path):
    jobs = some_jobs(folder)
    one, other = Workspace(store=tmp_path / "one"), Workspace(store=tmp_path / "other")
    Serial().run(jobs, one, Log())
    with serving() as server:
        depot = ObjectStore(f"s3://{server.bucket}/depot")
        depot.check()
        levelled(jobs[:2], one, depot)
        assert [depot.has(job.folder(one).name) for job in jobs] == [True, True, False, False]
        levelled(jobs, other, depot)
        assert [job.result(other) is not None for job in jobs] == [True, True, False, False]
        assert_alike(jobs[:2], one, other)
