"""Claims across hosts: one of many gets a name, and what its owner leaves when it dies goes to one other."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ExpungeError
from expunge.store.leases import Leases
from expunge.store.places import Place
from expunge.store.places import place as reached
from s3 import serving

NAMES = [f"job-{number}" for number in range(5)]


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path: Path) -> Iterator[Place]:
    """A folder of claims."""
    if request.param == "folder":
        yield reached(str(tmp_path))
        return
    with serving() as server:
        yield reached(f"s3://{server.bucket}/claims")


def all_at_once(many: list[Any], do: Callable[[Any], Any]) -> list[Any]:
    """What ``do`` gives for each, in threads that start together."""
    ready = threading.Barrier(len(many))

    def begun(one: Any) -> Any:
        ready.wait()
        return do(one)

    with ThreadPoolExecutor(len(many)) as pool:
        return list(pool.map(begun, many))


def test_one_of_many_creates_a_name(place: Place):
    for name in NAMES:
        won = all_at_once([f"{n}".encode() for n in range(6)], lambda who: place.create(name, who))  # noqa: B023
        assert sum(won) == 1
        assert place.read(name) == b"%d" % won.index(True)


def test_one_of_many_runs_gets_a_job_and_keeps_it(place: Place):
    with Leases(place) as a, Leases(place) as b, Leases(place) as c, Leases(place) as d:
        got = all_at_once([a, b, c, d], lambda lease: [name for name in NAMES if lease.take(name)])
        assert sorted(name for names in got for name in names) == sorted(NAMES)
        assert [lease.take(NAMES[0]) for lease in (a, b, c, d)] == [NAMES[0] in names for names in got]


def test_what_a_dead_owner_had_goes_to_one_other_once_its_lease_is_over(place: Place):
    with Leases(place, seconds=3600.0) as silent, Leases(place, seconds=0.6) as a, Leases(place, seconds=0.6) as b:
        assert all(silent.take(name) for name in NAMES)
        assert not any(all_at_once([a, b], lambda lease: lease.take(NAMES[0])))
        time.sleep(0.7)
        got = all_at_once([a, b], lambda lease: [name for name in NAMES if lease.take(name)])
        assert sorted(name for names in got for name in names) == sorted(NAMES)
        assert not silent.take(NAMES[0]), "it woke up, and its claim is another's"


def test_who_is_heard_of_keeps_what_it_has(place: Place):
    with Leases(place, seconds=1.2) as owner, Leases(place, seconds=1.2) as other:
        assert owner.take("job")
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert not other.take("job")
            time.sleep(0.1)


def test_who_leaves_frees_what_it_has_at_once_and_what_is_done_is_no_longer_claimed(place: Place):
    with Leases(place) as other:
        with Leases(place) as owner:
            assert owner.take("left")
            assert owner.take("done")
            owner.end("done")
            assert not other.take("left")
            assert other.take("done"), "what is done has no claims"
        assert other.take("left")
        other.end("left")
    assert [name for name in place.names() if "left" in name] == []


def test_a_claim_without_a_name_is_one_that_is_being_written_until_its_lease_is_over(tmp_path: Path):
    (tmp_path / "job.1").touch()
    with Leases(reached(str(tmp_path)), seconds=0.5) as lease:
        assert not lease.take("job")
        time.sleep(0.6)
        assert lease.take("job")
        assert (tmp_path / "job.2").is_file()


def test_a_run_that_ends_where_nobody_hears_it_is_no_error():
    """And what it had stays claimed until its lease is over."""
    with serving() as server:
        place = reached(f"s3://{server.bucket}/claims")
        with Leases(place) as owner:
            assert owner.take("job")
            server.refuses = True
            with pytest.raises(ExpungeError, match="cannot be used"):
                owner.take("other")
        server.refuses = False
        with Leases(place) as other:
            assert not other.take("job")
            assert other.take("other")
