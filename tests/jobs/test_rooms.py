"""Rooms: what a cluster has to know of each."""

from expunge.jobs import ROOMS


def test_all_jobs_open_a_model_but_those_that_look_at_files():
    """A job that opens one and does not say so would find no GPU on a cluster, and tell that it ran on a CPU."""
    assert {name for name, room in ROOMS.items() if not room.opens_model} == {"given", "measure"}
