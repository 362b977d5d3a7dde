"""Which erasers work on which families of models, as their sources tell: neither is imported."""

import ast
from collections.abc import Iterator

from expunge.core.catalog import Catalog
from expunge.settings.described import Source, source

HOME = "expunge.backbones"


def families() -> dict[str, dict[str, str]]:
    """For each eraser and model family what the method lacks there; empty where it works."""
    known = dict(_capabilities())
    lacking: dict[str, dict[str, str]] = {}
    for name, entry in Catalog("erasers").entries().items():
        if not entry.problem:
            requires = _read(source(entry.module), entry.class_name, "requires")
            needed = () if requires is None else ast.literal_eval(requires)
            lacking[name] = {family: ", ".join(c for c in needed if c not in has) for family, has in known.items()}
    return lacking


def table() -> str:
    """The same as a table in Markdown."""
    found = families()
    names = list(next(iter(found.values())))
    rows = [
        [name, *(f"no: it has no {lacking}" if lacking else "yes" for lacking in found[name].values())]
        for name in found
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [["method", *names], ["---"] * (len(names) + 1), *rows])


def _capabilities() -> Iterator[tuple[str, frozenset[str]]]:
    """The families that ``backbones.FAMILIES`` lists, and what their models have."""
    home = source(HOME)
    listed = next(node for node in ast.walk(home.names["FAMILIES"]) if isinstance(node, ast.Tuple))
    for cls in listed.elts:
        name = ast.unparse(cls)
        family, has = _read(home, name, "family"), _read(home, name, "capabilities")
        if family is not None and isinstance(has, ast.Call):
            yield ast.literal_eval(family), frozenset(ast.literal_eval(has.args[0]))


def _read(home: Source, cls: str, attribute: str) -> ast.expr | None:
    """The value that a class, or the nearest above it that does, gives to an attribute in its body."""
    found = home.resolved(cls)
    if found is None or not isinstance(found[1], ast.ClassDef):
        return None
    for node in found[1].body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == attribute and value is not None:
            return value
    above = (_read(found[0], ast.unparse(base), attribute) for base in found[1].bases)
    return next((value for value in above if value is not None), None)
