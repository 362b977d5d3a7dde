"""The folder is the registry: every module or package of ``erasers/`` is an eraser, and so on; third parties add entry points.

Listing and help read names and docstrings with `ast`, so they import no method and survive a broken one.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, final

from expunge.core.errors import ExpungeError, unknown

KINDS = ("erasers", "attacks", "metrics", "judges", "analyses")


class Paper(NamedTuple):
    """Where a method comes from."""

    title: str
    authors: str
    year: int
    arxiv: str
    """arXiv id; empty where there is no paper."""
    code: str = ""


class Entry(NamedTuple):
    """One plug-in, as far as its source tells without importing it."""

    name: str
    """Catalog and command-line name, in kebab case."""
    module: str
    class_name: str
    summary: str
    """First line of the class's docstring."""
    paper: str
    arxiv: str
    problem: str = ""
    """Why it cannot be used; empty if it can."""
    literals: Mapping[str, Any] = {}
    """Attributes of its class whose values its source writes out: words, numbers, and lists and tables of these."""

    def load(self) -> type:
        """Import the plug-in and return its class.

        Raises:
            ExpungeError: if it cannot be imported.
        """
        if self.problem:
            raise ExpungeError(f"'{self.name}' cannot be used: {self.problem}")
        try:
            return getattr(importlib.import_module(self.module), self.class_name)
        except Exception as error:
            raise ExpungeError(f"'{self.name}' cannot be imported: {error}") from error


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ExpungeError(f"plug-in module '{module}' not found")
    return Path(spec.origin)


def _parsed(file: Path) -> ast.Module:
    """A plug-in's source, which is read again when its file has changed."""
    now = file.stat()
    return _parsed_once(file, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=256)
def _parsed_once(file: Path, changed: int, size: int) -> ast.Module:
    return ast.parse(file.read_text())


def _plug_in_class(tree: ast.Module) -> ast.ClassDef | None:
    """The class that the module is about: the one with a ``paper`` or, failing that, the last public one."""
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    with_paper = [c for c in classes if _paper_call(c) is not None]
    return (with_paper or classes or [None])[-1]


def _paper_call(cls: ast.ClassDef) -> ast.Call | None:
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "paper":
            return node.value if isinstance(node.value, ast.Call) else None
    return None


def _paper(cls: ast.ClassDef) -> tuple[str, str]:
    call = _paper_call(cls)
    if call is None:
        return "", ""
    given = dict(zip(Paper._fields, call.args, strict=False)) | {k.arg: k.value for k in call.keywords}
    words = {k: v.value for k, v in given.items() if isinstance(v, ast.Constant)}
    return f"{words.get('title', '')} ({words.get('authors', '')}, {words.get('year', '')})", str(
        words.get("arxiv", "")
    )


def _literals(cls: ast.ClassDef) -> dict[str, Any]:
    """Class attributes that are written out, ``ClassVar`` or bare; not a dataclass's fields."""
    values: dict[str, Any] = {}
    for node in cls.body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and "ClassVar" in ast.dump(node.annotation)
        ):
            name, value = node.target.id, node.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        else:
            continue
        with suppress(ValueError, TypeError):
            values[name] = None if value is None else ast.literal_eval(value)
    return values


def read_entry(name: str, module: str, class_name: str = "") -> Entry:
    """Describe a plug-in from its source; a broken one is described by its problem."""
    try:
        tree = _parsed(_source(module))
        cls = _plug_in_class(tree)
        if class_name:
            cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), cls)
        if cls is None:
            raise ExpungeError("its module defines no class")
        title, arxiv = _paper(cls)
        summary = (ast.get_docstring(cls, clean=False) or "").strip().split("\n")[0]
    except Exception as error:
        return Entry(name=name, module=module, class_name="", summary="", paper="", arxiv="", problem=str(error))
    about = {"summary": summary, "paper": title, "arxiv": arxiv}
    return Entry(name=name, module=module, class_name=cls.name, literals=_literals(cls), **about)


def _announced(group: str) -> Iterator[tuple[str, str, str]]:
    """Name, module and class of the entry points in a group.

    `importlib.metadata` takes as long to import as all else that a list needs: it is asked only if a file names the group.
    """
    files = (f for path in dict.fromkeys(sys.path) for f in Path(path or ".").glob("*.*-info/entry_points.txt"))
    if any(group in file.read_text(errors="replace") for file in files):
        from importlib.metadata import entry_points

        yield from ((point.name, point.module, point.attr) for point in entry_points(group=group))


@final
class Catalog:
    """All plug-ins of one kind: the folder's and those that installed packages announce."""

    def __init__(self, kind: str) -> None:
        """Open the catalog of ``kind``, one of `KINDS`."""
        self.kind = kind

    def _own(self) -> dict[str, str]:
        """The folder's modules by name."""
        folder = Path(__file__).parent.parent / self.kind
        modules = [*folder.glob("*.py"), *(package.parent for package in folder.glob("*/__init__.py"))]
        names = sorted(p.stem for p in modules if not p.stem.startswith("_"))
        return {n.replace("_", "-"): f"expunge.{self.kind}.{n}" for n in names}

    def entries(self) -> dict[str, Entry]:
        """Every plug-in by name, sorted."""
        entries = {name: read_entry(name, module) for name, module in self._own().items()}
        for name, module, class_name in _announced(f"expunge.{self.kind}"):
            entries.setdefault(name, read_entry(name, module, class_name))
        return dict(sorted(entries.items()))

    def entry(self, name: str) -> Entry:
        """The plug-in called ``name``.

        Raises:
            ExpungeError: if there is none, with the nearest name.
        """
        own = self._own()
        if name in own:  # asking installed packages takes a tenth of a second
            return read_entry(name, own[name])
        entries = self.entries()
        if name not in entries:
            raise unknown({"analyses": "analysis"}.get(self.kind, self.kind.removesuffix("s")), name, entries)
        return entries[name]

    def literals(self, attribute: str) -> dict[str, Any]:
        """What each plug-in's class writes out as ``attribute``, by the plug-in's name, without importing it.

        Those that leave it to their base class, compute it, or cannot be used have none.
        """
        return {name: e.literals[attribute] for name, e in self.entries().items() if attribute in e.literals}

    def load(self, name: str) -> type:
        """Import the plug-in called ``name``."""
        return self.entry(name).load()

    def open(self, spec: str) -> Any:
        """An instance from a name with settings in words: ``testbed`` or ``testbed:labels=styles,network=b``.

        Raises:
            ExpungeError: for an unknown name or setting.
        """
        name, _, words = spec.partition(":")
        pairs = [word.partition("=") for word in words.split(",") if word]
        try:
            return self.load(name)(**{key.strip(): value.strip() for key, _, value in pairs})
        except TypeError as error:
            raise ExpungeError(f"'{spec}': {error}") from error
