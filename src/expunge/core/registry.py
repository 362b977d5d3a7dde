"""What the rooms above lend to this one: the package registers it, so that nothing in here names a room above it."""

from collections.abc import Callable
from typing import Any

Opener = Callable[[Any], Any]
"""Gives the backbone around a model: itself, or the one that belongs to a pipeline."""
Saver = Callable[..., None]
"""Writes an edit to a path; ``overwrite`` says whether a file that exists is replaced."""
FisherReader = Callable[[Any], Any]
"""Reads a Fisher file."""
PromptReader = Callable[..., Any]
"""Reads a prompt file: a query for each row."""
_lent: dict[str, Callable[..., Any]] = {}


def register(*, opener: Opener, saver: Saver, fisher_reader: FisherReader, prompt_reader: PromptReader) -> None:
    """Lend what opens models, saves edits and reads files: functions that import what they need when they are called."""
    _lent.update(opener=opener, saver=saver, fisher_reader=fisher_reader, prompt_reader=prompt_reader)


def opener() -> Opener:
    """What gives the backbone around a model."""
    return _lent["opener"]


def saver() -> Saver:
    """What writes an edit to a file."""
    return _lent["saver"]


def fisher_reader() -> FisherReader:
    """What reads a Fisher file: its tensors, and what it says of itself."""
    return _lent["fisher_reader"]


def prompt_reader() -> PromptReader:
    """What reads a prompt file, as `expunge.store.read_prompts` does."""
    return _lent["prompt_reader"]
