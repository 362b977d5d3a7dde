"""Networks of transformers' classes from a folder: with all of their tensors, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from expunge.core.errors import ExpungeError, reason
from expunge.pretrained.weights import still

HERE = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched, and no code of a folder runs."""


def network(cls: Any, folder: Path, what: str, variant: str | None = None) -> Any:
    """The network of class ``cls`` that a folder holds, in float32, without gradients.

    What a file lacks transformers fills at random, with no more than a report: here it is refused.

    Raises:
        ExpungeError: if the folder cannot be loaded, or lacks a tensor.
    """
    refused = f"'{folder}' cannot be loaded as {what}: expected a folder of a {cls.__name__}"
    how = {**HERE, "dtype": torch.float32, "variant": variant, "output_loading_info": True}
    try:
        with quietly():
            net, told = cls.from_pretrained(folder, **how)
    except Exception as error:  # a folder of something else makes the classes raise whatever they meet
        raise ExpungeError(f"{refused} ({reason(error)})") from error
    lost = sorted(told["missing_keys"])
    if lost:
        more = f", nor {len(lost) - 1} others" if len(lost) > 1 else ""
        raise ExpungeError(f"{refused} (it has no '{lost[0]}'{more})")
    return still(net)


def reader(cls: Any, folder: Path, what: str) -> Any:
    """The tokenizer or image processor of class ``cls`` that a folder holds.

    Raises:
        ExpungeError: if it cannot be loaded.
    """
    try:
        with quietly():
            return cls.from_pretrained(folder, **HERE)
    except Exception as error:
        raise ExpungeError(
            f"'{folder}' cannot be loaded as {what}: expected what a {cls.__name__} reads ({reason(error)})"
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from drawing progress bars and loading reports."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
