"""All that the page can do, in words and HTML: what it shows of a run, and what it sets going."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final
from urllib.parse import quote

from expunge.core.errors import ExpungeError
from expunge.core.times import duration
from expunge.report import page as report
from expunge.report.reading import read
from expunge.report.templating import rendered
from expunge.results.files import REPORT, SUMMARY
from expunge.web import showing, wishes
from expunge.web.processes import Runner
from expunge.web.served import OURS, Served
from expunge.web.wishes import Wish

TEMPLATES = Path(__file__).parent / "templates"


@final
@dataclass(frozen=True, kw_only=True)
class Desk:
    """The page's own work on a served folder."""

    runner: Runner

    @property
    def served(self) -> Served:
        """The folder."""
        return self.runner.served

    # what is shown ----------------------------------------------------------------------------------------------------
    def opened(self, asked: str) -> str:
        """The run to show: the one asked for, or what is going on, or the newest; empty if there is none.

        Raises:
            ExpungeError: if there is no run of the name asked for.
        """
        if asked:
            return self.standing(asked).name
        return self.runner.running() or next(iter(self.served.runs()), "")

    def standing(self, name: str) -> showing.Standing:
        """Where a run stands."""
        return showing.standing(name, self.runner)

    def progress(self, at: showing.Standing) -> str:
        """Where a run stands, as HTML."""
        return _page("progress.html", at=at, duration=duration)

    def images(self, name: str) -> str:
        """The images that a run has made so far, as HTML."""
        seen = showing.shown(name, self.served).album
        return _page("images.html", scenes=seen.scenes, images=seen.images, titled=showing.titled)

    def numbers(self, name: str) -> str:
        """What was measured, as HTML; empty before the end."""
        return _page("numbers.html", numbers=showing.shown(name, self.served).numbers, report=f"report/{quote(name)}")

    def gallery(self) -> str:
        """All runs, as HTML."""
        return _page("gallery.html", cards=showing.cards(self.runner))

    def compared(self, name: str, strength: float) -> str:
        """Two edits at a strength, as HTML."""
        edits, pairs = showing.compared(name, strength, self.served)
        return _page("compared.html", edits=edits, pairs=pairs, strength=f"{strength:g}")

    def ours(self, name: str) -> bool:
        """Whether a run is one of the page's, which may be gone on with."""
        return self._methods(name) > 0

    def erases(self, name: str) -> bool:
        """Whether it is one of the page's that erased one thing by one method, which may be attacked and compared."""
        return self._methods(name) == 1

    def erasures(self) -> list[str]:
        """Those runs, newest first."""
        return [name for name in self.served.runs() if self.erases(name)]

    def comparisons(self) -> list[str]:
        """The runs of the page that compare two edits, newest first."""
        return [name for name in self.served.runs() if self._methods(name) > 1]

    def _methods(self, name: str) -> int:
        """How many rows of methods the page wrote into a run's plan; 0 for what is the command line's, or damaged."""
        try:
            return len(wishes.read_plan(name, self.served)["method"])
        except ExpungeError:
            return 0

    def report(self, name: str) -> str:
        """The report of a run, made anew if its numbers are newer.

        Raises:
            ExpungeError: if it has no results yet.
        """
        folder, (where, _, own_name) = self.served.run(name), name.partition("/")
        file = (
            folder / REPORT if where == OURS else self.served.root / OURS / f".{own_name}.html"
        )  # theirs stays as it is
        own = file.is_file() and not file.is_symlink()
        if not own or not (folder / SUMMARY).is_file() or file.stat().st_mtime <= (folder / SUMMARY).stat().st_mtime:
            run = read(folder, self.served.store)
            file.parent.mkdir(exist_ok=True)
            report.write(run, file, overwrite=True)
        return file.read_text(encoding="utf-8")

    # what is done -----------------------------------------------------------------------------------------------------
    def erase(self, wish: Wish) -> str:
        """Erase a concept; the name of the run."""
        self._check_free()
        return self._begun(wishes.erasure(wish, self.served))

    def attack(self, name: str, attack: str, words: Mapping[str, str]) -> str:
        """Attack what a run erased."""
        self._check_free()
        wishes.attacked(name, attack, words, self.served, instead=self.runner.unbegun(name))
        return self._begun(name)

    def compare(self, names: Sequence[str], count: int) -> str:
        """Show the edits of two runs at several strengths; the name of the new run."""
        self._check_free()
        return self._begun(wishes.comparison(names, count, self.served))

    def go_on(self, name: str) -> str:
        """Go on with a run that was stopped."""
        wishes.read_plan(name, self.served)
        return self._begun(name)

    def cancel(self, name: str) -> None:
        """End a run; what is finished of it is kept."""
        self.runner.cancel(name)

    def _begun(self, name: str) -> str:
        self.runner.start(name)
        return name

    def _check_free(self) -> None:
        """Refuse to write a plan that could not be begun."""
        going = self.runner.running()
        if going is not None:
            raise ExpungeError(f"'{going}' is going on: expected it to end, or to be cancelled")


def _page(template: str, **values: object) -> str:
    return rendered(template, TEMPLATES, **values)
