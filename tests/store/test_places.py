"""Files by name in a folder or an object store: what is not there, what refuses, and what is gone in the middle."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from expunge.core.errors import ExpungeError
from expunge.store.places import Place
from expunge.store.places import place as reached
from s3 import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path: Path) -> Place:
    return reached(str(tmp_path) if request.param == "folder" else f"s3://{request.getfixturevalue('server').bucket}")


def test_files_come_back_and_go(place: Place, tmp_path: Path):
    assert place.create("a", b"first")
    assert not place.create("a", b"second")
    assert place.create("a", b"first"), "a request that was sent again finds its own"
    place.write("b", b"1")
    place.write("b", b"2")
    assert (place.read("a"), place.read("b"), place.read("c")) == (b"first", b"2", None)
    assert (place.has("b"), place.has("c")) == (True, False)
    mine, back = tmp_path / "mine" / "file", tmp_path / "mine" / "back"
    mine.parent.mkdir()
    mine.write_bytes(b"3")
    place.put("d", mine)
    assert place.get("d", back)
    assert back.read_bytes() == b"3"
    assert not place.get("c", back)
    assert {"a", "b", "d"} <= set(place.names())
    for name in ("a", "b", "c", "d"):
        place.delete(name)
    assert not {"a", "b", "d"} & set(place.names())


def test_a_folder_below_has_its_own_names(place: Place, tmp_path: Path):
    (tmp_path / "further").mkdir()
    below = place.below("further")
    below.write("a", b"1")
    assert place.read("a") is None
    assert place.read("further/a") == b"1"


def test_a_place_that_lets_a_name_be_created_twice_is_refused(server: Server):
    there = reached(f"s3://{server.bucket}")
    there.check_creates_once()
    server.conditions = False
    with pytest.raises(ExpungeError, match="lets a file be created twice: expected a store that refuses it"):
        there.check_creates_once()
    assert there.names() == []


ASKED: dict[str, Callable[[Place, Path], Any]] = {
    "create": lambda place, file: place.create("a", b"1"),
    "read": lambda place, file: place.read("a"),
    "write": lambda place, file: place.write("a", b"1"),
    "delete": lambda place, file: place.delete("a"),
    "put": lambda place, file: place.put("a", file),
    "get": lambda place, file: place.get("a", file),
    "has": lambda place, file: place.has("a"),
    "names": lambda place, file: place.names(),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_place_that_refuses_is_one_line(asked: str, server: Server, tmp_path: Path):
    there = reached(f"s3://{server.bucket}/depot")
    there.write("a", b"1")
    (tmp_path / "file").write_bytes(b"1")
    server.refuses = True
    with pytest.raises(ExpungeError) as told:
        ASKED[asked](there, tmp_path / "file")
    assert str(told.value).startswith(f"'s3://{server.bucket}/depot' cannot be used (")
    assert str(told.value).endswith("): expected a place that answers and can be written")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("asked", ["read", "put"])  # each is tried again for a while
def test_a_place_that_is_gone_is_one_line(asked: str, tmp_path: Path):
    with serving() as server:
        there = reached(f"s3://{server.bucket}/depot")
        there.write("a", b"1")
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(ExpungeError, match=r"^[^\n]* cannot be used [^\n]*$"):
        ASKED[asked](there, tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_of_this_machine_is_no_fault_of_the_place(tmp_path: Path):
    there = reached(str(tmp_path))
    there.write("a", b"1" * 100_000)
    with pytest.raises(OSError, match="No space left"):
        there.get("a", Path("/dev/full"))


def test_a_place_that_cannot_be_told_from_a_missing_file_is_not_taken_for_one():
    """fsspec's own ``exists`` takes any error for "no": a result would be deleted that is there."""

    class Mute(fsspec.spec.AbstractFileSystem):
        def info(self, path, **more):
            raise TimeoutError("no answer")

    mute = Mute()
    assert mute.exists("a") is False
    with pytest.raises(ExpungeError, match=r"'mute://' cannot be used \(no answer\)"):
        Place("mute://", mute, "").has("a")
