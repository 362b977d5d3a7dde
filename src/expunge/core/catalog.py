"""The folder is the registry: every module or package of ``erasers/`` is an eraser, and so on; third parties add entry points.

Listing and help read names and docstrings with `ast`, so they import no method and survive a broken one.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
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


def read_entry(name: str, module: str, class_name: str = "") -> Entry:
    """Describe a plug-in from its source; a broken one is described by its problem."""
    try:
        tree = ast.parse(_source(module).read_text())
        cls = _plug_in_class(tree)
        if class_name:
            cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), cls)
        if cls is None:
            raise ExpungeError("its module defines no class")
        title, arxiv = _paper(cls)
        summary = (ast.get_docstring(cls, clean=False) or "").strip().split("\n")[0]
    except Exception as error:
        return Entry(name=name, module=module, class_name="", summary="", paper="", arxiv="", problem=str(error))
    return Entry(name=name, module=module, class_name=cls.name, summary=summary, paper=title, arxiv=arxiv)


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

    def entries(self) -> dict[str, Entry]:
        """Every plug-in by name, sorted."""
        folder = Path(__file__).parent.parent / self.kind
        modules = [*folder.glob("*.py"), *(package.parent for package in folder.glob("*/__init__.py"))]
        names = sorted(p.stem for p in modules if not p.stem.startswith("_"))
        found = {n.replace("_", "-"): read_entry(n.replace("_", "-"), f"expunge.{self.kind}.{n}") for n in names}
        for name, module, class_name in _announced(f"expunge.{self.kind}"):
            found.setdefault(name, read_entry(name, module, class_name))
        return dict(sorted(found.items()))

    def entry(self, name: str) -> Entry:
        """The plug-in called ``name``.

        Raises:
            ExpungeError: if there is none, with the nearest name.
        """
        entries = self.entries()
        if name not in entries:
            raise unknown({"analyses": "analysis"}.get(self.kind, self.kind.removesuffix("s")), name, entries)
        return entries[name]

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


def backbone_of(model: Any) -> Any:
    """The backbone around ``model``: itself, or the one that belongs to a pipeline (made at the first call, kept on it)."""
    return importlib.import_module("expunge.backbones").of(model)


def store() -> Any:
    """The module that knows the file formats; it lies above this room, so it is looked up, not imported."""
    return importlib.import_module("expunge.store")
