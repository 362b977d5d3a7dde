"""Weights of a published network: its official ones, a file's, or random ones for trying things out."""

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import NamedTuple, TypeVar
from urllib.error import URLError

import torch
from torch import Tensor, nn

from expunge.core.digest import sha256
from expunge.core.errors import ExpungeError

OFFICIAL, RANDOM = "official", "random"
Net = TypeVar("Net", bound=nn.Module)


class Loaded(NamedTuple):
    """Tensors, and what a record says of them."""

    tensors: Mapping[str, Tensor]
    origin: str
    """``official``, or ``sha256:…`` of the file."""


def package(name: str, extra: str, needed_by: str) -> ModuleType:
    """An optional package.

    Raises:
        ExpungeError: naming the extra that has it, if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExpungeError(f"{needed_by} needs {name}, which is not installed: expected expunge[{extra}]") from error


def load(weights: str, url: str, what: str) -> Loaded:
    """The tensors of ``official`` weights, from their address or torch's cache, or those of a file in PyTorch's format.

    Raises:
        ExpungeError: if they cannot be had, or the file holds no tensors by name.
    """
    try:
        if weights == OFFICIAL:
            found = torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, weights_only=True)
        else:
            found = torch.load(weights, map_location="cpu", weights_only=True)
    except (URLError, OSError) as error:
        place = f"'{weights}'" if weights != OFFICIAL else f"from {url}"
        raise ExpungeError(
            f"weights of {what} cannot be had {place}: expected a network, or the path of a file"
        ) from error
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ExpungeError(f"'{weights}' holds no weights of {what}: expected a PyTorch file of tensors") from error
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ExpungeError(f"'{weights}' holds no weights of {what}: expected tensors by name")
    return Loaded(found, origin(weights))


def origin(weights: str) -> str:
    """What a record says of weights: ``official``, ``random``, or ``sha256:…`` of the file."""
    return weights if weights in (OFFICIAL, RANDOM) else f"sha256:{_sha256(Path(weights))}"


def identity(weights: str) -> str:
    """What tells a file's weights from others at its path; empty for official and random ones."""
    return "" if weights in (OFFICIAL, RANDOM) else origin(weights)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def _sha256(path: Path) -> str:
    try:
        state = path.stat()
        return _digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise ExpungeError(f"no weights '{path}': expected official, random, or the path of a file") from error


def fill(net: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Put ``tensors`` into ``net``.

    Raises:
        ExpungeError: if a name is missing or unknown, or a shape differs.
    """
    try:
        net.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise misfit(what, error) from error


def misfit(what: str, error: RuntimeError) -> ExpungeError:
    """The error for tensors that a network does not take."""
    return ExpungeError(f"the weights are not of {what}: expected its tensors ({' '.join(str(error).split())[:160]})")


def untrained(build: Callable[[], Net]) -> Net:
    """A network as ``build`` makes it, with the same random weights every time; nobody else's random numbers move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return still(build())


def still(net: Net) -> Net:
    """``net`` without gradients and training behaviour."""
    return net.eval().requires_grad_(False)
