"""The text of `--help`: of the whole, of a command, of a command with one of its plug-ins."""

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from expunge.settings.described import REQUIRED, Group, Kind, Option, described
from expunge.settings.worded import otherwise, plain

COLUMN = 26
"""Where the texts of options begin."""
METAVARS = {"str": "TEXT", "int": "INT", "float": "NUMBER", "Path": "PATH", "any": "VALUE"}


def metavar(kind: Kind) -> str:
    """What stands for a value of a kind."""
    if kind.name == "choice":
        return "{" + ",".join(map(str, kind.of)) + "}"
    if kind.name == "union":
        return "|".join(metavar(one) for one in kind.of if one.name != "none")
    if kind.name == "many":
        return f"{metavar(kind.of[0])} ..."
    return METAVARS[kind.name]


def names(option: Option) -> str:
    """An option as it is written: ``--edit PATH``, ``--gated, --no-gated``, ``FILE``."""
    if option.positional:
        return option.flag + (" ..." if option.kind.name == "many" else "")
    if option.kind.name == "bool":
        return option.flag if option.default is False else f"{option.flag}, --no-{option.flag[2:]}"
    kind = option.kind.of[0] if option.repeated else option.kind
    return f"{option.short + ', ' if option.short else ''}{option.flag} {metavar(kind)}"


def _row(name: str, text: str, width: int) -> list[str]:
    first = f"  {name:{COLUMN - 2}}"
    lines = list(_broken(first.rstrip(), width)) if len(first) > COLUMN else []
    start = " " * COLUMN if lines else first
    whole = textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * COLUMN, break_on_hyphens=False)
    return [*lines, *whole.splitlines()]


def _broken(name: str, width: int) -> Iterator[str]:
    """A name in lines of a width: one with many choices goes on after a comma."""
    while len(name) > width and "," in name[:width]:
        end = name.rindex(",", 0, width) + 1
        yield name[:end]
        name = " " * 8 + name[end:]
    yield name


def _width() -> int:
    try:
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
    except (OSError, ValueError):  # no terminal (and `shutil`, which would say so, imports every archiver)
        columns = 100
    return max(60, min(columns, 120))


def listing(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, a line each."""
    return "\n".join(f"  {name:18} {plain(text)}" for name, text in rows)


def of_options(
    prog: str, title: str, sections: Sequence[tuple[str, Group]], presets: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The help of a command.

    Args:
        prog: what is typed: ``expunge erase uce``.
        title: what it does.
        sections: groups of options under their headings; empty ones are left out.
        presets: settings by kind of model, that stand over the defaults of the groups headed ``settings``.
    """
    width = _width()
    options = [option for _, group in sections for option in group.options]
    needed = [names(option) for option in options if option.default is REQUIRED or option.positional]
    usage = " ".join(["usage:", prog, *needed, "[options]"])
    lines = [
        textwrap.fill(usage, width, subsequent_indent="       ", break_on_hyphens=False, break_long_words=False),
        "",
        textwrap.fill(plain(title), width),
    ]
    for heading, group in sections:
        if group.options:
            lines += ["", textwrap.fill(f"{plain(heading).rstrip('.')}:", width)]
        for option in group.options:
            known = (presets or {}) if heading.startswith("settings") else {}
            lines += _row(names(option), plain(option.text) + otherwise(option, known), width)
    return "\n".join([*lines, "", "  -h, --help              show this and exit"])


TAKES = {"erasers": "METHOD", "attacks": "METHOD", "metrics": "METRIC", "analyses": "NAME"}
"""What stands for a plug-in of a kind."""


def of_command(name: str, home: str, plug_ins: str, words: Sequence[str]) -> str:
    """The help of a command: of one of its plug-ins, if ``words`` begin with its name.

    Args:
        name: of the command.
        home: its module and function.
        plug_ins: the kind of plug-in that it takes; empty if it takes none.
        words: what was typed after the command.

    Raises:
        ExpungeError: for a plug-in that there is not.
    """
    module, _, function = home.partition(":")
    options = described(f"expunge.cli.{module}", function.strip("_").capitalize())
    own, *nested = options
    sections = [("options", own), *((group.title, group) for group in nested)]
    if not plug_ins:
        return of_options(f"expunge {name}", own.title, sections)
    from expunge.core.catalog import Catalog

    catalog = Catalog(plug_ins)
    if not words or words[0].startswith("-"):
        rows = listing((entry.name, entry.summary or entry.problem) for entry in catalog.entries().values())
        prog = f"expunge {name} {TAKES[plug_ins]}"
        more = f"{prog} --help lists settings, too."
        return f"{of_options(prog, own.title, sections)}\n\n{plug_ins}:\n{rows}\n\n{more}"
    from expunge.cli.plug_ins import settings_beside
    from expunge.settings import presets

    settings, *inner = settings_beside(options, plug_ins, words[0])
    theirs = [("settings", settings), *((f"settings: {group.title}", group) for group in inner)]
    prog = f"expunge {name} {words[0]}"
    return of_options(prog, settings.title, [*theirs, *sections], presets.by_kind(plug_ins, words[0]))
