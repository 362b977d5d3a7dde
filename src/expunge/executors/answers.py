"""What a process that did a job tells the one that asked: times, warnings, or what went wrong."""

import builtins
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.jobs import Job

TIMES = ("seconds", "seconds_of_images")
"""What is told of a result."""


def answer(do: Callable[..., Mapping[str, Any]], *given: Any) -> dict[str, Any]:
    """Do a job by ``do`` of what is ``given``; returns what is to be told of its result, its warnings, or its error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExpungeWarning)
        try:
            result = do(*given)
            told: dict[str, Any] = {name: result[name] for name in TIMES if name in result}
        except ExpungeError as error:
            told = {"error": str(error)}
        except Exception:
            told = {"fault": traceback.format_exc()}
    return {**told, "warnings": [(w.category.__name__, str(w.message)) for w in caught]}


def check(job: Job, told: Mapping[str, Any]) -> None:
    """Warn of what an answer warns of.

    Raises:
        ExpungeError: the job's own.
        RuntimeError: with the traceback of any other error that the job ended in.
    """
    for category, line in told["warnings"]:
        kind = ExpungeWarning if category == ExpungeWarning.__name__ else getattr(builtins, category, RuntimeWarning)
        warnings.warn(line, kind, stacklevel=2)
    if "error" in told:
        raise ExpungeError(told["error"])
    if "fault" in told:
        raise RuntimeError(f"job {job.key[:8]} ({job.room}: {job.describe()}) failed in a worker:\n{told['fault']}")
