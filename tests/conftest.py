"""Real diffusers and transformers classes at a tiny random configuration, saved to disk and loaded with no network."""

import os
import socket
from pathlib import Path

# torch and numpy read it when they are imported; the processes that tests start inherit it
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from shapes import check_shapes_where_named

check_shapes_where_named()  # before expunge is imported; fixtures import it, so that the process that hands tests out need not


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many workers for ``-n auto`` as this process may use cores: xdist's own count is of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_collection_modifyitems(items):
    """Warnings that are meant for users are no errors, wherever they are attributed to; a test's own filters come after."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default::expunge.core.errors.ExpungeWarning"), append=False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Where something had imported torch before this file asked for one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def local(self, address):
        """Connect to this machine, where a browser's driver listens, and to no other."""
        if not isinstance(address, str) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError("tests use no network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


REVISION = "a" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts a file into the hub's cache, of ``models`` or ``datasets`` called ``owner/name``; nothing else is to be had."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(kind: str, name: str, text: str, main: bool = True) -> None:
        stored = tmp_path / "hub" / f"{kind}--owner--name"
        file = stored / "snapshots" / REVISION / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        (stored / "refs").mkdir(exist_ok=True)
        if main:
            (stored / "refs" / "main").write_text(REVISION)

    return put


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    from tiny import tiny_pipeline

    path = tmp_path_factory.mktemp("tiny") / "sd"
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory) -> Path:
    """Another base of the same shape."""
    from tiny import tiny_pipeline

    path = tmp_path_factory.mktemp("tiny") / "other"
    tiny_pipeline(seed=1).save_pretrained(path)
    return path


@pytest.fixture
def backbone(folder):
    from expunge.backbones.stable_diffusion import StableDiffusion

    return StableDiffusion.from_folder(folder, name="tiny")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Three testbed images each of a church, a dog and a radio."""
    from expunge import backbones
    from expunge.core.query import queries
    from expunge.stages import generate

    asked = queries([(f"image of a {c}", c) for c in ("church", "dog", "radio")], 3, 0, 4.0, 4)
    return generate.to_folder(backbones.load("testbed"), [], asked, tmp_path_factory.mktemp("images") / "images")
