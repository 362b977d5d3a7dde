"""The folder that is served: what is in it, and that nothing outside is reached."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from expunge.core.errors import ExpungeError
from expunge.results.files import PLAN
from expunge.store.atomic import MODEL

TESTBED = "testbed"
"""The model in the box, as plans call it."""
INDEX = "model_index.json"
"""The file in a diffusers folder that makes it one."""
OURS, BENCH, STORE = "web", "bench", "store"
"""Folders of the served one: runs of the page, runs of the command line, and finished jobs of both."""
WRITTEN = "plan.toml"
"""The plan that the page wrote for a run of its own."""
DEEP = 3
"""How many folders below the served one a model may lie."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@final
@dataclass(frozen=True, kw_only=True)
class Served:
    """A folder of runs and models."""

    root: Path
    """Absolute, without links on the way."""

    @classmethod
    def opened(cls, folder: Path) -> "Served":
        """The folder, which is made if only it itself is missing.

        Raises:
            ExpungeError: if it cannot be read and written.
        """
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ExpungeError(f"'{folder}' cannot be served: {error.strerror}; expected a folder") from error
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise ExpungeError(f"'{folder}' cannot be served: expected a folder that may be read and written")
        return cls(root=folder.resolve())

    @property
    def store(self) -> Path:
        """Finished jobs."""
        return self.root / STORE

    def inside(self, text: str) -> Path:
        """A path below the served folder that somebody typed.

        Raises:
            ExpungeError: if it leads out of it, by its words or by a link.
        """
        relative = Path(text)
        if not text.strip() or "\0" in text or relative.is_absolute() or ".." in relative.parts:
            raise ExpungeError(f"path {text[:200]!r}: expected one within the served folder")
        try:
            whole = (self.root / relative).resolve()
        except (OSError, RuntimeError) as error:
            raise ExpungeError(f"path {text[:200]!r}: expected one that can be followed") from error
        if not whole.is_relative_to(self.root):
            raise ExpungeError(f"path {text[:200]!r} leads out of the served folder: expected one within it")
        return whole

    # models -----------------------------------------------------------------------------------------------------------
    def models(self) -> list[str]:
        """The model in the box, and the diffusers folders below the served one, as plans call them."""
        return [TESTBED, *(f"./{path.relative_to(self.root).as_posix()}" for path in sorted(self._model_folders()))]

    def _model_folders(self) -> Iterator[Path]:
        left = [(self.root, 0)]
        while left:
            folder, depth = left.pop()
            if (folder / INDEX).is_file():
                yield folder
            elif depth < DEEP:
                try:
                    with os.scandir(folder) as entries:
                        below = [e for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
                except PermissionError:  # such as a volume's lost+found
                    continue
                left += [(Path(e.path), depth + 1) for e in below if depth or e.name not in (OURS, BENCH, STORE)]

    def check_model(self, model: str) -> str:
        """``model`` if it is one that may be chosen.

        Raises:
            ExpungeError: if it is none.
        """
        if model != TESTBED and not (self.inside(model) / INDEX).is_file():
            raise ExpungeError(f"no model '{model[:200]}': expected testbed, or a diffusers folder in the served one")
        return model

    def is_testbed(self, model: str) -> bool:
        """Whether a model is the one in the box, or an edited copy of it, so that its words and its judge are known."""
        if model == TESTBED:
            return True
        marked = self.inside(model) / MODEL
        return marked.is_file() and '"testbed"' in marked.read_text(encoding="utf-8", errors="replace")

    # runs -------------------------------------------------------------------------------------------------------------
    def run(self, name: str) -> Path:
        """The folder of a run by its name, ``web/church-uce`` or ``bench/plan``.

        Raises:
            ExpungeError: if it is no such name, there is none, or it leads out of the served folder.
        """
        where, _, own = name.partition("/")
        if where not in (OURS, BENCH) or not NAME.fullmatch(own):
            raise ExpungeError(f"no run {name[:120]!r}: expected {OURS}/NAME or {BENCH}/NAME")
        folder = self.inside(name)
        if not folder.is_dir():
            raise ExpungeError(f"no run '{name}' in the served folder: expected one of its runs")
        return folder

    def runs(self) -> list[str]:
        """The names of all runs, newest first."""
        found: dict[str, float] = {}
        for where, mark in ((OURS, WRITTEN), (BENCH, PLAN)):
            for file in (self.root / where).glob(f"*/{mark}"):
                name = f"{where}/{file.parent.name}"
                if NAME.fullmatch(file.parent.name) and file.resolve().is_relative_to(self.root):
                    found[name] = file.stat().st_mtime
        return sorted(found, key=lambda name: (-found[name], name))

    def new_run(self, wanted: str) -> str:
        """The name of a new run, whose folder is made: ``wanted`` in plain letters, with a number if it is taken."""
        plain = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")[:60] or "run"
        for number in range(1, 10_000):
            own = plain if number == 1 else f"{plain}-{number}"
            try:
                (self.root / OURS / own).mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise ExpungeError(f"'{self.root / OURS / own}' cannot be made: {error.strerror}") from error
            return f"{OURS}/{own}"
        raise ExpungeError(f"9,999 runs are called {plain}: expected some to be deleted")
