"""Commands in processes of their own that need not import torch again: each is forked off a process that has it."""

import multiprocessing
import os
import resource
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from expunge.cli import main

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "expunge.cli",
        "expunge.executors.bench",
        "expunge.backbones.stable_diffusion",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "transformers.models.clip.modeling_clip",
    ]
)


def _command(words: list[str], errors: str, largest: int | None) -> None:
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.exit(main(words))


def started(words: list[Any], errors: Path, largest: int | None = None) -> BaseProcess:
    """A command that has begun, its standard error in a file; ``largest`` limits the bytes of the files that it writes."""
    process = _server.Process(target=_command, args=([str(w) for w in words], str(errors), largest))
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    """The exit code of a command, once it has ended."""
    process.join(timeout=300)
    assert process.exitcode is not None, "it goes on and on"
    return process.exitcode
