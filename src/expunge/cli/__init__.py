"""The command line: a file a command, imported when it is asked for; `--help` imports none of them."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

from expunge.core.errors import ExpungeError, ExpungeWarning, unknown


class Command(NamedTuple):
    """A command, as far as it is known before its file is imported."""

    summary: str
    home: str
    """``module:function``; the module's dataclass of options is called as the function is, with a capital letter."""
    plug_ins: str = ""
    """The kind of plug-in that it takes as its first word."""


COMMANDS = {
    "demo": Command("erase a concept from the model in the box, and show it", "demo:demo"),
    "erase": Command("remove concepts: METHOD --target WORDS --out FOLDER", "erase:erase", "erasers"),
    "pairs": Command("make pairs of unsafe and safe images, for methods that learn from them", "pairs:pairs"),
    "fisher": Command("measure what a model's parameters matter to images that stay, for erasers", "fisher:fisher"),
    "attack": Command(
        "look for queries that bring an erased concept back: METHOD --edit FILE", "attack:attack", "attacks"
    ),
    "generate": Command("make images with a model and its edits", "generate:generate"),
    "measure": Command("measure a folder of images: METRIC --images FOLDER", "measure:measure", "metrics"),
    "analyse": Command(
        "look into an edited model, or along an erasure: NAME --edit FILE --out FOLDER", "analyse:analyse", "analyses"
    ),
    "screen": Command("look through a folder of images for concepts and words", "screen:screen"),
    "recover": Command("give an erased model a concept back with its private key", "recover:recover"),
    "bench": Command("run a plan: a grid of methods, concepts and seeds", "bench:bench"),
    "audit": Command("measure, attack and judge a finished edit: --edit FILE --target WORDS", "audit:audit"),
    "clean": Command("show what finished jobs take on disk, and free it", "clean:clean"),
    "report": Command("show a run as one HTML file, or a folder of plans as a leaderboard: RUN", "report:report"),
    "submit": Command("check results of a committed plan before they are sent: FOLDER", "submit:submit"),
    "serve": Command("erase, look, attack and report in a browser: FOLDER", "serve:serve"),
    "label": Command("have people label images blind, and compare them with a judge", "label:label"),
    "figure": Command("draw a figure's JSON as SVG: FILE", "figure:figure"),
    "export": Command("write the edited model as a diffusers folder, one file or a LoRA", "export:export"),
    "import": Command("make an edit of what others publish: FILE --out FOLDER", "import_:import_"),
    "show": Command("show what an edit file holds and how it was made", "show:show"),
    "list": Command("list erasers, attacks, metrics, judges, analyses and concept sets", "list_:list_"),
}


def usage() -> str:
    """The text of ``expunge --help``."""
    rows = "\n".join(f"  {name:10} {command.summary}" for name, command in COMMANDS.items())
    return (
        "expunge removes concepts from text-to-image diffusion models, and shows what was removed and what was kept.\n\n"
        f"usage: expunge COMMAND [options]\n\ncommands:\n{rows}\n\nexpunge COMMAND --help lists a command's options."
    )


def _call(name: str, words: Sequence[str]) -> None:
    """Run a command, or say what it can do."""
    command = COMMANDS[name]
    if "--help" in words or "-h" in words or (command.plug_ins and not words):
        from expunge.cli.help import of_command

        _say(of_command(name, command.home, command.plug_ins, words))
        return
    module, _, function = command.home.partition(":")
    getattr(import_module(f"expunge.cli.{module}"), function)(list(words))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


SIGNALS = {"SIGTERM": "terminated", "SIGHUP": "hung up"}
"""What ends a command as Ctrl-C does, by the systems that have it, and what is said of it."""


class _Ended(KeyboardInterrupt):
    """A signal that asks a command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal end a command as Ctrl-C does: what is unfinished is cleaned up or kept to be resumed.

    A signal that is ignored (`nohup`) stays so.
    """

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        raise _Ended(number)

    told = sys.unraisablehook

    def again(dropped: Any) -> None:
        """Send a signal once more that Python dropped, since it came while something was taken away (a `__del__`)."""
        if not isinstance(dropped.exc_value, _Ended):
            told(dropped)
            return
        signal.signal(dropped.exc_value.number, end)
        later = threading.Timer(0.05, os.kill, (os.getpid(), dropped.exc_value.number))
        later.daemon = True
        later.start()

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    ours = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, end) for n in numbers if ours and signal.getsignal(n) == signal.SIG_DFL}
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = told
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C, 143 or 129 for SIGTERM or SIGHUP."""
    argv = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings(), _ended_by_signals():
        shown = warnings.showwarning
        warnings.showwarning = lambda message, category, *more, **named: (
            sys.stderr.write(f"expunge: warning: {message}\n")
            if issubclass(category, ExpungeWarning)
            else shown(message, category, *more, **named)
        )
        return _run(argv)


def _run(argv: list[str]) -> int:
    """One command, with its errors turned into exit codes."""
    try:
        if not argv or argv[0] in ("-h", "--help"):
            _say(usage())
            return 0
        if argv[0] == "--version":
            from importlib.metadata import version

            _say(f"expunge {version('expunge')}")
            return 0
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS)
        _call(argv[0], argv[1:])
    except ExpungeError as error:
        sys.stderr.write("expunge: " + " ".join(f"{error}{_notes(error)}".split()) + "\n")
        return 2
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, _Ended) else signal.SIGINT
        sys.stderr.write(f"expunge: {SIGNALS.get(signal.Signals(number).name, 'interrupted')}{_notes(error)}\n")
        return 128 + number
    return 0


def _notes(error: BaseException) -> str:
    """What is left of a run's work, in the same line."""
    return "".join(f": {note}" for note in getattr(error, "__notes__", ()))


def entry() -> None:
    """What the ``expunge`` script runs."""
    from expunge.cli import startup

    startup.own_process()
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code > 128:
        # An interrupt that passed through an extension module's own exec() makes CPython end by the signal even when it
        # was handled; everything is written and closed by now, so leave at once with the code that was promised.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
