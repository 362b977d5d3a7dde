"""`--help` of every command and plug-in: readable, whole, and true to the dataclasses it is read from."""

import dataclasses
import re
import subprocess
import sys
import typing

import pytest

from expunge.cli import COMMANDS, main
from expunge.cli.help import plain
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.settings.described import REQUIRED, UNKNOWN, described

TAKES = {name: command.plug_ins for name, command in COMMANDS.items() if command.plug_ins}
PLUG_INS = [(name, plug_in) for name, kind in TAKES.items() for plug_in in Catalog(kind).entries()]


@pytest.mark.parametrize("words", [*((name,) for name in COMMANDS), *PLUG_INS, ("list-itself",)], ids=" ".join)
def test_no_markup_and_no_gaps(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["list"] if words == ("list-itself",) else [*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert not re.search(r":\w+:`|``|\.\. \w+::|options options|\\[a-z]", text)
    for line, after in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        assert line.strip() or not after.startswith(" " * 20), "an empty line inside an option's text"
    if len(words) == 2 or words[0] not in (*TAKES, "list-itself"):  # a list has a line for each, however long
        assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize(("command", "name"), PLUG_INS)
def test_settings_are_those_of_the_class(command, name, capsys):
    cls = Catalog(TAKES[command]).load(name)
    entry = Catalog(TAKES[command]).entry(name)
    read = {option.path: option for group in described(entry.module, entry.class_name) for option in group.options}
    real = dict(leaves(cls()))
    assert set(read) == set(real)
    told = {path: option.default for path, option in read.items() if option.default is not UNKNOWN}
    assert told == {path: real[path] for path in told}
    assert len(told) == len(read), "no default is hidden"
    main([command, name, "--help"])
    text = capsys.readouterr().out
    assert all(
        f"{option.flag} " in text or f"{option.flag}\n" in text or f"{option.flag}," in text for option in read.values()
    )


def leaves(settings, above=()):
    for field in dataclasses.fields(settings):
        value, path = getattr(settings, field.name), (*above, field.name)
        yield from leaves(value, path) if dataclasses.is_dataclass(value) else [(path, value)]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_those_of_the_class(name):
    module, _, function = COMMANDS[name].home.partition(":")
    full = f"expunge.cli.{module}"
    cls = getattr(__import__(full, fromlist=[module]), function.strip("_").capitalize())
    read = {option.path: option for group in described(full, cls.__name__) for option in group.options}
    assert set(read) == set(names(cls))
    assert all(option.text for option in read.values())
    assert REQUIRED not in {option.default for option in read.values() if option.flag in ("--json", "--quiet")}


def names(cls, above=()):
    for name, kind in typing.get_type_hints(cls).items():
        nested = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "_fields")
        yield from names(kind, (*above, name)) if nested else [(*above, name)]


@pytest.mark.parametrize("command", TAKES)
def test_a_command_with_a_plug_in_lists_them_all(command, capsys):
    main([command])
    alone = capsys.readouterr().out
    main([command, "--help"])
    assert capsys.readouterr().out == alone
    assert all(f"\n  {name} " in alone for name in Catalog(TAKES[command]).entries())
    assert main([command, "uec", "--help"]) == 2


def test_text_without_markup():
    assert plain("a ``b`` of\n\n   :math:`\\max(\\mathrm{cos}, 0)` and :class:`D`") == "a b of max(cos, 0) and D"


def test_a_module_without_source_is_refused():
    with pytest.raises(ExpungeError, match="has no source"):
        described("expunge.nowhere", "Nothing")


def test_families_are_those_of_the_classes():
    from expunge import backbones
    from expunge.cli.families import families

    known = {cls.family: cls for cls in backbones.FAMILIES.values()}
    for name, lacking in families().items():
        needed = Catalog("erasers").load(name).requires
        assert lacking == {f: ", ".join(c for c in needed if c not in cls.capabilities) for f, cls in known.items()}


NOTHING_HEAVY = """
import sys
sys.argv[1:] = {words!r}
from expunge.cli import main
code = main()
sys.stderr.write(" ".join(name for name in {heavy!r} if name in sys.modules))
sys.exit(code)
"""


def imported(words, heavy, start="from expunge.cli import main\ncode = main()"):
    code = NOTHING_HEAVY.format(words=[str(w) for w in words], heavy=heavy)
    code = code.replace("from expunge.cli import main\ncode = main()", start)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


@pytest.mark.parametrize(
    "words",
    [["--help"], ["list"], ["list", "--families"], ["generate", "--help"], ["erase", "kpop", "--help"]],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(words):
    assert imported(words, ["torch", "diffusers", "transformers", "numpy", "dataclasses", "tyro"]) == []


def test_images_of_the_testbed_are_made_without_what_is_not_needed(tmp_path):
    own = "from expunge.cli import main, startup\nstartup.own_process()\ncode = main()"
    words = ["generate", "--concept", "church", "--count", 1, "--quiet", "--out", tmp_path / "o"]
    assert imported(words, ["torch._dynamo", "scipy.stats", "scipy.optimize", "torchvision", "peft"], own) == []
