"""What a dataclass of options says of itself, read from its source: nothing is imported, so `--help` waits for nothing.

Commands and plug-ins are read alike. A class's attribute docstrings are the help; annotations are read as far as settings go
(plain kinds, choices, tuples, unions, dataclasses of their own); names are followed through assignments and imports.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.errors import ExpungeError

PLAIN = ("str", "int", "float", "bool", "Path")
"""Kinds that a word on the command line is made of directly."""
UNKNOWN = object()
"""A default that cannot be told without running the code."""
REQUIRED = object()
"""In the place of a default, where there is none."""


class Kind(NamedTuple):
    """What a value is: one of `PLAIN`, ``none``, ``any``, a ``choice`` of values, ``many`` of a kind, a ``union`` of kinds."""

    name: str
    of: tuple[Any, ...] = ()


class Option(NamedTuple):
    """One option of a command or setting of a plug-in."""

    path: tuple[str, ...]
    """Names of the fields that lead to it, its own last."""
    kind: Kind
    default: Any
    """Its value if it is not given; `REQUIRED`, or `UNKNOWN`."""
    text: str
    """Its attribute docstring."""
    positional: bool = False
    repeated: bool = False
    """Whether each use takes one value more, as in ``--edit A --edit B``."""
    short: str = ""
    """Another name for its flag."""
    of: str = ""
    """The plug-in that its flag names, too, since a command has an option of the same name."""

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        name = f"{self.of}-{self.path[-1]}" if self.of else self.path[-1]
        return name.upper() if self.positional else "--" + name.replace("_", "-")


class Group(NamedTuple):
    """The options of one dataclass."""

    title: str
    """First line of its docstring."""
    options: tuple[Option, ...]


class Source:
    """A module as its source tells: the names it defines, assigns or imports."""

    def __init__(self, module: str) -> None:
        path = _located(module)
        self.names: dict[str, Any] = {}
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                self.names[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.names[node.target.id] = node.value
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                home = ".".join([*above, *([node.module] if node.module else [])])
                self.names |= {alias.asname or alias.name: (home, alias.name) for alias in node.names}

    def resolved(self, name: str) -> "tuple[Source, ast.AST] | None":
        """The class or the value behind a name, and the module it is in; None if the sources do not tell."""
        found = self.names.get(name)
        if isinstance(found, tuple):
            home, there = found
            return source(home).resolved(there) if _readable(home) else None
        return None if found is None else (self, found)


@cache
def source(module: str) -> Source:
    """The source of a module, by its full name."""
    return Source(module)


def _readable(module: str) -> bool:
    try:
        return _located(module).suffix == ".py" and module.partition(".")[0] not in ("torch", "typing", "jaxtyping")
    except ExpungeError:
        return False


def _located(module: str) -> Path:
    """The file of a module, found without importing the packages it is in."""
    first, *rest = module.split(".")
    spec = find_spec(first)
    path = None if spec is None or spec.origin is None else Path(spec.origin)
    for part in rest:
        if path is None or path.name != "__init__.py":
            path = None
            break
        package, alone = path.parent / part / "__init__.py", path.parent / f"{part}.py"
        path = package if package.is_file() else alone if alone.is_file() else None
    if path is None:
        raise ExpungeError(f"module '{module}' has no source: expected one, as its settings are read from it")
    return path


def described(module: str, name: str) -> list[Group]:
    """The options of a dataclass and of those nested in it, in order; its own first.

    Raises:
        ExpungeError: if there is no such class.
    """
    found = source(module).resolved(name)
    if found is None or not isinstance(found[1], ast.ClassDef):
        raise ExpungeError(f"module '{module}' has no class '{name}'")
    return list(_groups(found[0], found[1], (), {}))


def _groups(home: Source, cls: ast.ClassDef, path: tuple[str, ...], defaults: dict[str, Any]) -> Iterator[Group]:
    """A class's own options and then those of its nested classes; ``defaults`` stand over its own."""
    own: list[Option] = []
    nested: list[Group] = []
    for where, field, text in _fields(home, cls):
        name = ast.unparse(field.target)
        inner = _class_of(where, field.annotation)
        if inner is None:
            option = _option(where, field, (*path, name), text)
            own.append(option._replace(default=defaults[name]) if name in defaults else option)
        else:
            nested += _groups(*inner, (*path, name), _made_with(where, field.value))
    return iter([Group((ast.get_docstring(cls, clean=False) or "").strip().split("\n")[0], tuple(own)), *nested])


def _fields(home: Source, cls: ast.ClassDef) -> Iterator[tuple[Source, ast.AnnAssign, str]]:
    """The fields of a dataclass with their docstrings, inherited ones first."""
    for base in cls.bases:
        found = home.resolved(base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef) and found[1].decorator_list:
            yield from _fields(found[0], found[1])
    for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and _head(node.annotation) != "ClassVar"
        ):
            said = after.value if isinstance(after, ast.Expr) else None
            yield home, node, str(said.value) if isinstance(said, ast.Constant) else ""


def _head(node: ast.expr) -> str:
    """The name that an annotation begins with: ``tuple`` of ``tuple[int, ...]``."""
    node = node.value if isinstance(node, ast.Subscript) else node
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _class_of(home: Source, annotation: ast.expr) -> tuple[Source, ast.ClassDef] | None:
    """The dataclass that an annotation names, if it names one."""
    if not isinstance(annotation, ast.Name) or annotation.id in PLAIN:
        return None
    found = home.resolved(annotation.id)
    return (found[0], found[1]) if found is not None and isinstance(found[1], ast.ClassDef) else None


def _option(home: Source, field: ast.AnnAssign, path: tuple[str, ...], text: str) -> Option:
    marks: set[str] = set()
    kind = _kind(home, field.annotation, marks)
    default = _default(home, field.value)
    short = next((m for m in marks if m.startswith("-")), "")
    return Option(path, kind, default, text, "Positional" in marks, "Repeated" in marks, short)


def _kind(home: Source, node: ast.expr, marks: set[str]) -> Kind:
    """What an annotation says a value is; `Positional`, `Repeated` and a short flag on the way go into ``marks``."""
    if isinstance(node, ast.Constant):
        return Kind("none") if node.value is None else _kind(home, ast.parse(str(node.value), mode="eval").body, marks)
    if isinstance(node, ast.BinOp):
        return _union([_kind(home, node.left, marks), _kind(home, node.right, marks)])
    if isinstance(node, ast.Subscript):
        return _subscripted(home, node, marks)
    name = _head(node)
    if name in PLAIN:
        return Kind(name)
    found = home.resolved(name)
    return Kind("any") if found is None or not isinstance(found[1], ast.expr) else _kind(found[0], found[1], marks)


def _subscripted(home: Source, node: ast.Subscript, marks: set[str]) -> Kind:
    head = _head(node)
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if head == "Literal":
        return Kind("choice", tuple(ast.literal_eval(e) for e in inside))
    if head in ("tuple", "list", "Sequence"):
        return Kind("many", (_kind(home, inside[0], marks),))
    if head == "Optional":
        return _union([_kind(home, inside[0], marks), Kind("none")])
    if head == "Union":
        return _union([_kind(home, e, marks) for e in inside])
    if head in ("Positional", "Repeated"):
        marks.add(head)
    if head == "Annotated":
        marks |= {str(e.value) for e in inside[1:] if isinstance(e, ast.Constant)}
    return _kind(home, inside[0], marks) if head in ("Positional", "Repeated", "Annotated") else Kind("any")


def _union(kinds: list[Kind]) -> Kind:
    """One kind of several; those that refuse most words come first, so that 1 is a number where it may be one."""
    flat = [one for kind in kinds for one in (kind.of if kind.name == "union" else (kind,))]
    order = ("none", "choice", "bool", "int", "float", "many", "Path", "str", "any")
    return Kind("union", tuple(sorted(flat, key=lambda kind: order.index(kind.name))))


def _default(home: Source, node: ast.expr | None) -> Any:
    """The value of a default as far as the source tells it."""
    if node is None:
        return REQUIRED
    if isinstance(node, ast.Call):
        given = {k.arg: k.value for k in node.keywords}
        if _head(node.func) == "field":
            return _default(home, given["default"]) if "default" in given else UNKNOWN
        return _default(home, node.args[0]) if _head(node.func) == "Path" and node.args else UNKNOWN
    if isinstance(node, ast.Name):
        found = home.resolved(node.id)
        return UNKNOWN if found is None or not isinstance(found[1], ast.expr) else _default(found[0], found[1])
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN


def _made_with(home: Source, node: ast.expr | None) -> dict[str, Any]:
    """What a nested dataclass is made with: ``{"steps": 30}`` of ``field(default_factory=lambda: Sampling(steps=30))``."""
    given = node.keywords if isinstance(node, ast.Call) else []
    factory = next((k.value for k in given if k.arg == "default_factory"), None)
    made = factory.body if isinstance(factory, ast.Lambda) else None
    return {k.arg: _default(home, k.value) for k in made.keywords if k.arg} if isinstance(made, ast.Call) else {}
