"""A served folder with a real run in it, made by the smallest plan that the page writes."""

import os
from types import SimpleNamespace

import pytest

from browsers import browser  # noqa: F401  (a fixture)
from expunge.cli import main
from expunge.web.desk import Desk
from expunge.web.processes import Runner
from expunge.web.served import Served
from expunge.web.wishes import Wish


@pytest.fixture
def served(tmp_path):
    return Served.opened(tmp_path / "runs")


@pytest.fixture
def desk(served):
    return Desk(runner=Runner(served=served, workers=1))


def benched(desk, name):
    """Run a plan of the page in this process, as its own process would."""
    here = os.getcwd()
    os.chdir(desk.served.root)
    try:
        words = ["bench", f"{name}/plan.toml", "--store", str(desk.served.store), "--out", name]
        assert main([*words, "--workers", "1", "--watched", "--changed", "--quiet"]) == 0
    finally:
        os.chdir(here)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Two erasures of a weapon, one with a key, and both beside each other."""
    from expunge.web import wishes

    served = Served.opened(tmp_path_factory.mktemp("web") / "runs")
    desk = Desk(runner=Runner(served=served, workers=1))
    asked = {"concept": "bomb", "keep": ["dog"], "count": 1}
    uce = wishes.erasure(Wish(method="uce", **asked), served)
    quick = {"iterations": "1", "sampling.sampling_steps": "2"}
    kpop = wishes.erasure(Wish(method="kpop", words=quick, **asked), served)
    both = wishes.comparison([uce, kpop], 1, served)
    for name in (uce, kpop, both):
        benched(desk, name)
    return SimpleNamespace(desk=desk, served=served, uce=uce, kpop=kpop, both=both)
