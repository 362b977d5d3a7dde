"""Words on the command line into dataclasses of options, and into a plug-in's settings."""

import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from expunge.core.errors import ExpungeError, check_finite
from expunge.settings.described import REQUIRED, Group, Option, described
from expunge.settings.worded import converted, wanted

T = TypeVar("T")
Positional = Annotated[T, "Positional"]
"""A field that is given without its name."""
Repeated = Annotated[T, "Repeated"]
"""A tuple to which each use of the option adds one value."""


class Given(typing.NamedTuple):
    """What was given on the command line, by the paths of the fields; nothing of what was not."""

    options: dict[str, Any]
    settings: dict[str, Any]
    """Those of a plug-in."""


def parse(cls: type[T], argv: Sequence[str], prog: str) -> T:
    """Options of a command from ``argv``.

    Raises:
        ExpungeError: naming the word that is wrong, and what was expected; "did you mean" for an unknown option.
    """
    groups = described(cls.__module__, cls.__name__)
    return built(cls, parsed(groups, [], argv, prog).options)


def parsed(options: Sequence[Group], settings: Sequence[Group], argv: Sequence[str], prog: str) -> Given:
    """What ``argv`` gives of a command's options and a plug-in's settings; see `parse`."""
    own = [(option, 0) for group in options for option in group.options]
    theirs = [(option, 1) for group in settings for option in group.options]
    flags: dict[str, tuple[Option, int]] = {}
    for option, of in [*own, *theirs]:
        for flag in () if option.positional else (option.flag, option.short):
            if flag and flag in flags:
                raise ExpungeError(f"{prog}: {flag} is an option of the command and a setting: expected other names")
            flags[flag] = (option, of)
    given = Given({}, {})
    for option, of, words in _uses(flags, [o for o, _ in own if o.positional], argv, prog):
        _put(given[of], option, _value(option, words, prog))
    for option, of in [*own, *theirs]:
        if option.default is REQUIRED and not _has(given[of], option.path):
            raise ExpungeError(f"{prog}: {option.flag} is missing: expected {_first(option.text)} (see {prog} --help)")
    return given


def _first(text: str) -> str:
    """The first sentence of an option's text, to go on a sentence with."""
    sentence = re.split(r"[.;:](?:\s|$)", " ".join(text.split()))[0]
    return sentence[:1].lower() + sentence[1:]


def _uses(
    flags: Mapping[str, tuple[Option, int]], positional: list[Option], argv: Sequence[str], prog: str
) -> Iterator[tuple[Option, int, list[str]]]:
    """Each use of an option in ``argv``, with the words that belong to it."""
    rest, free = list(argv), list(positional)
    while rest:
        word = rest.pop(0)
        if not is_flag(word):
            if not free:
                raise _unknown(word, flags, prog)
            several = free[0].kind.name == "many"
            yield (free[0] if several else free.pop(0)), 0, [word]
            continue
        name, sign, value = word.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        no = name.startswith("--no-") and name not in flags
        option, of = flags.get("--" + name[5:] if no else name, (None, 0))
        if option is None or (no and option.kind.name != "bool"):
            raise _unknown(word, flags, prog)
        if option.kind.name == "bool":
            if sign:
                raise ExpungeError(f"{prog}: {word}: expected {name} without a value, or --no-{name[2:]}")
            yield option, of, ["" if no else "yes"]
            continue
        words = [value] if sign else []
        several = option.kind.name == "many" and not option.repeated
        while rest and not sign and not is_flag(rest[0]) and (several or not words):
            words.append(rest.pop(0))
        if not words and not several:
            raise ExpungeError(f"{prog}: {name} has no value: expected {wanted(option)}")
        yield option, of, words


def is_flag(word: str) -> bool:
    """Whether a word names an option: it begins with a hyphen, and is neither a number nor a hyphen alone."""
    return bool(re.match(r"--?[^\d.\s-]", word)) and word.lower() not in ("-inf", "-infinity", "-nan")


def _unknown(word: str, flags: Mapping[str, Any], prog: str) -> ExpungeError:
    import difflib

    near = difflib.get_close_matches(word, [flag for flag in flags if flag], n=1, cutoff=0.5)
    return ExpungeError(
        f"{prog}: unknown option '{word}': " + (f"did you mean '{near[0]}'?" if near else f"see {prog} --help")
    )


def _value(option: Option, words: list[str], prog: str) -> Any:
    """The value that words give, checked to be finite."""
    if option.kind.name == "bool":
        return bool(words[0])
    inner = option.kind.of[0] if option.kind.name == "many" else option.kind
    values: list[Any] = []
    for word in words:
        try:
            values.append(converted(inner, word))
        except ValueError as error:
            what = f"{prog}: {option.flag} '{word}'"
            raise ExpungeError(f"{what}: expected {wanted(option)} (see {prog} --help)") from error
    check_finite(f"{prog}: {option.flag}", values)
    return tuple(values) if option.kind.name == "many" else values[0]


def _put(table: dict[str, Any], option: Option, value: Any) -> None:
    """Put a value under its path; an option that is repeated, or takes the words without a name, adds to what it has."""
    *above, name = option.path
    for part in above:
        table = table.setdefault(part, {})
    adds = option.repeated or (option.positional and option.kind.name == "many")
    table[name] = (*table.get(name, ()), *value) if adds else value


def _has(table: Mapping[str, Any], path: Sequence[str]) -> bool:
    for name in path:
        if name not in table:
            return False
        table = table[name]
    return True


def built(cls: type[T], given: Mapping[str, Any]) -> T:
    """A class of options with those nested in it, from what was given."""
    nested = {name: kind for name, kind in typing.get_type_hints(cls).items() if _has_options(kind)}
    whole = {**given, **{name: built(inner, given.get(name, {})) for name, inner in nested.items()}}
    return cls(**whole)


def _has_options(kind: Any) -> bool:
    """Whether a kind is a class of options itself: a dataclass, or a tuple with named fields."""
    return hasattr(kind, "__dataclass_fields__") or hasattr(kind, "_fields")
