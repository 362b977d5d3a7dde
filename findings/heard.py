"""What libraries say while something runs: warnings but for deprecations, and log records of that level and above."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("diffusers", "transformers", "peft", "optimum", "DeepCache", "tomesd")
"""Their loggers may keep what is said to themselves, and may be told to be quiet."""

BESIDE = ("No LoRA keys associated to CLIPTextModel", "The configuration file of this scheduler")
"""What is said of any LoRA of a UNet alone, and of any new pipeline of tiny parts: not kept."""


class Kept(logging.Handler):
    """Keeps the messages."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.said.append(record.getMessage())


@contextmanager
def heard() -> Iterator[list[str]]:
    """The messages of what runs inside."""
    said: list[str] = []
    loggers = [logging.getLogger(name) for name in ("", *LIBRARIES)]
    before = [(logger.level, logger.propagate) for logger in loggers]
    handler = Kept(said)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # of what other packages will do some day
        warnings.showwarning = lambda message, *_: said.append(str(message))
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.WARNING)
            logger.propagate = False
        try:
            yield said
        finally:
            said[:] = [line for line in said if not line.startswith(BESIDE)]
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)
                logger.propagate = propagate
