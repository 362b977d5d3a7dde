"""The metrics, attacks and analyses that a plan names, opened."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from expunge.core.analysis import Analysis
from expunge.core.attack import Attack
from expunge.core.eraser import settings_of
from expunge.core.errors import ExpungeError, check_counts, each_once
from expunge.plans.read import APART, COUNT, DOUBLED, ROWS, words_of
from expunge.plans.schema import Named, precision_of
from expunge.results.group import Group
from expunge.stages import analyse, attack, measure, tiers


class PlannedMetric(NamedTuple):
    """A metric that a plan names."""

    name: str
    settings: dict[str, Any]
    version: int
    judge: str
    """What its judge, or the weights it uses itself, are told by, so that retrained ones measure again."""
    variant: str
    paired: bool
    """Whether it compares images with others."""
    against: str
    """Whose those are: the original's, or the plan's reference's."""
    asks_kept: bool
    """Whether its judge must know retained concepts too."""
    any_reference: bool
    """Whether it compares sets of images, and not image by image."""
    about: str
    """Which images it cannot do without: targets, kept, either."""
    check: Callable[[Sequence[tuple[str, str | None]]], None]
    """Refuses prompts whose images it could not measure."""


class PlannedAttack(NamedTuple):
    """An attack that a plan names."""

    name: str
    runs: Sequence[Attack[Any]]
    """One for each of its runs on a row and training seed."""
    variant: str
    each: int | None = None
    """Queries a prompt; the plan's ``control_count`` if not given."""
    rows: Sequence[str] | None = None
    """The rows of the plan that are attacked; all if not given."""
    stronger: Sequence[Attack[Any]] = ()
    """Its runs with twice the budget."""
    doubled: Sequence[str] | None = ()
    """The rows that are attacked by these, too; all if None."""

    @property
    def group(self) -> Group:
        """Its images' place in the table."""
        return Group(kind="attack", name=f"{self.name}{self.variant}")

    def on(self, row: str) -> list[tuple[Group, Sequence[Attack[Any]]]]:
        """Its runs on a row of the plan, with their place in the table: as it is, and with twice the budget.

        The model in another precision is not attacked.
        """
        if precision_of(row) is not None or (self.rows is not None and row not in self.rows):
            return []
        again = self.stronger and (self.doubled is None or row in self.doubled)
        return [(self.group, self.runs), *([(self.group.doubled, self.stronger)] if again else [])]


class PlannedAnalysis(NamedTuple):
    """An analysis that a plan names."""

    name: str
    analysis: Analysis
    judge: str
    """What its judge is told by."""
    variant: str


def planned_metric(named: Named) -> PlannedMetric:
    """A metric with its settings."""
    built = measure.build(named.name, dict(named.settings))
    settings = settings_of(built)
    return PlannedMetric(
        name=named.name,
        settings=settings,
        version=built.version,
        judge=measure.measured_by(built),
        variant=named.variant,
        paired=built.paired,
        against=built.against,
        asks_kept=built.asks_kept,
        any_reference=built.any_reference,
        about=built.about,
        check=built.check,
    )


def planned_attack(named: Named, kind: str, runs: int = 1) -> PlannedAttack:
    """An attack with the preset of a kind of model, unless its table says ``preset = false``.

    With ``apart = true`` each of its ``prompts`` is attacked alone, ``runs`` times. ``rows`` names the rows that are attacked,
    ``doubled`` those that are attacked with twice its budget, too (true: all).
    """
    settings = dict(named.settings)
    flags = {flag: settings.pop(flag, default) for flag, default in (("preset", True), (APART, False))}
    for flag, value in flags.items():
        if not isinstance(value, bool):
            raise ExpungeError(f"attack '{named.name}' with {flag} {value!r}: expected true or false")
    preset = kind if flags["preset"] else None
    count = settings.pop(COUNT, None)
    if count is not None:
        if type(count) is not int:
            raise ExpungeError(f"attack '{named.name}' with count {count!r}: expected a whole number")
        check_counts(f"attack '{named.name}'", count=count)
    rows = None if ROWS not in settings else _rows(named.name, ROWS, settings.pop(ROWS))
    doubled = settings.pop(DOUBLED, False)
    alone = [settings]
    if flags[APART]:
        prompts = words_of(f"{named.name} prompts", settings.get("prompts", []))
        alone = [{**settings, "prompts": [prompt]} for prompt in prompts]
    built = [attack.build(named.name, one, preset) for one in alone]
    again = rows if doubled is True else _rows(named.name, DOUBLED, doubled)
    stronger = [_stronger(named.name, one) for one in built] if again != () else []
    return PlannedAttack(named.name, built * runs, named.variant, count, rows, stronger * runs, again)


def _rows(name: str, flag: str, value: Any) -> tuple[str, ...]:
    """Rows that an attack's table names; none for false."""
    if value is False:
        return ()
    if not isinstance(value, list | tuple) or not value or not all(isinstance(row, str) for row in value):
        also = ", true or false" if flag == DOUBLED else ""
        raise ExpungeError(f"attack '{name}' with {flag} {value!r}: expected a list of rows of the plan{also}")
    return each_once(f"{flag} of attack '{name}'", value)


def _stronger(name: str, built: Attack[Any]) -> Attack[Any]:
    """An attack with twice its budget."""
    if not built.spends:
        raise ExpungeError(
            f"attack '{name}' with {DOUBLED}, and it has no budget to double: expected an attack with one"
        )
    return tiers.spending(built, 2 * getattr(built, built.spends))


def planned_analysis(named: Named) -> PlannedAnalysis:
    """An analysis with its settings."""
    built = analyse.build(named.name, named.settings)
    return PlannedAnalysis(named.name, built, measure.instrument_of(settings_of(built)), named.variant)
