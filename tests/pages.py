"""Commands that a page shows: run as they are written, and held to the lines that the page says they print."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from expunge.cli import main

LEFT_OUT = "…"
"""A line of a page in the place of lines that it does not show."""


class Shown(NamedTuple):
    """A command of a page, and the lines of its output that the page shows."""

    words: list[str]
    output: list[str]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[Shown]:
    """The commands of a page's ``console`` blocks, each behind a ``$`` (a backslash carries on), with what stands below it."""
    found: list[Shown] = []
    for line in "".join(blocks(text, "console")).replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            program, *words = shlex.split(line[2:], comments=True)
            assert program == "expunge", line
            found.append(Shown(words, []))
        elif line.strip() not in ("", LEFT_OUT):
            found[-1].output.append(line)
    return found


def run(shown: Shown, cheaper: Mapping[str, Sequence[str]], capsys) -> str:
    """Run a command and return what it prints, which must have all lines that the page shows, in order.

    ``cheaper`` are options to add, by what the command begins with. Lines are alike when their first words are, whatever
    numbers stand in them: figures differ between processors, and with cheaper options.
    """
    words = list(shown.words)
    more = [options for begin, options in cheaper.items() if " ".join(words).startswith(begin)]
    assert main([*words, *(option for options in more for option in options)]) == 0, (words, capsys.readouterr().err)
    printed = capsys.readouterr().out
    left = iter(map(_kind, printed.splitlines()))
    for line in shown.output:
        assert _kind(line) in left, (words, line, printed)
    return printed


def _kind(line: str) -> str:
    """What a line is of: its first word, without its numbers."""
    return re.sub(r"\d+([.,]\d+)*", "#", (line.split() or [""])[0])
