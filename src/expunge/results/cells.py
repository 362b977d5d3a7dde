"""The values behind every number of a table, and the number's interval."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from expunge.core.record import Interval, Runs, hull, in_percent, mean_of, of_attacks, share_of, wilson
from expunge.results.finished import Finished, Value
from expunge.results.group import Group


class CellKey(NamedTuple):
    """What a number of a table is of."""

    method: str
    group: Group
    metric: str
    """With its settings in brackets, where they differ from the metric's defaults."""


RUN = ", run "
"""What stands between a label and the run of an attack."""
Values = Mapping[int, Mapping[str, Sequence[Value]]]
"""Values by training seed and split."""
Cells = dict[CellKey, dict[int, dict[str, list[Value]]]]
"""Values by cell, training seed and split."""


def cells(finished: Sequence[Finished], once: bool) -> Cells:
    """The values behind every number of the table; ``once`` counts an image once, whatever splits it serves.

    Under an attack that finds one thing for all its images the label says which run of it, too.
    """
    values_at: Cells = {}
    counted: set[tuple[CellKey, str, str]] = set()
    for one in finished:
        for record, values in zip(one.records, one.values, strict=True):
            if record["metric"].startswith("became@") or not values:
                continue
            cell = CellKey(one.method, one.group, record["metric"] + one.variant)
            kept = values_at.setdefault(cell, {}).setdefault(one.seed, {}).setdefault(one.split, [])
            run = f"{RUN}{one.run}" if one.group.searched else ""
            named = [v._replace(label=f"{v.label}{run}", images=one.images) for v in values]
            kept.extend(v for v in named if not (once and (cell, one.images, v.label) in counted))
            counted.update((cell, one.images, v.label) for v in named)
    return values_at


def points(finished: Sequence[Finished]) -> set[CellKey]:
    """The places whose values are differences already, in points."""
    return {
        CellKey(one.method, one.group, record["metric"] + one.variant)
        for one in finished
        for record in one.records
        if record.get("unit") == "points"
    }


def flat(runs: Values) -> list[float]:
    """All values, one by one."""
    return [one.value for one in _each(runs)]


def _each(runs: Values) -> list[Value]:
    return [one for by_split in runs.values() for values in by_split.values() for one in values]


def interval(group: Group, runs: Values, *, signed: bool) -> Interval:
    """A share's interval, or a mean's, of which Wilson says nothing; an attack's images count by its runs.

    Args:
        group: what the values are of.
        runs: the values.
        signed: whether they are differences.
    """
    values = flat(runs)
    if signed or not set(values) <= {0.0, 1.0}:
        return mean(group, runs)
    return hull(wilson(sum(values), len(values)), share(group, runs))


def mean(group: Group, runs: Values) -> Interval:
    """The interval of a mean of values that are no shares, in percent."""
    prompts = _of_prompts(group, runs)
    return in_percent(mean_of(_clusters(runs, prompts), prompts=prompts))


def share(group: Group, runs: Values, least: float = 0.0) -> Interval:
    """The interval of a mean of shares, as a fraction, or of their differences (``least`` is -1).

    Images of a single prompt say no more of an attack that finds a text for each than one run does of an attack; nor do
    images of one concept of which nobody knows the prompts that were attacked.
    """
    prompts = _of_prompts(group, runs)
    clusters = _clusters(runs, prompts, at_once=group.at_once)
    names = {name for by_split in clusters.values() for values in by_split.values() for name, _ in values}
    unknown = group.rewords and not prompts
    together = group.searched or (len(names) < 2 and (group.by_prompt or unknown))
    return of_attacks(clusters, least) if together else share_of(clusters, least, prompts=prompts)


def _of_prompts(group: Group, runs: Values) -> bool:
    """Whether prompts are the clusters: where all values are of one concept, and say their prompts.

    (All images of a run of an attack that found one thing for them stand or fall together, whatever their prompts.)
    """
    values = _each(runs)
    return not group.searched and len({v.label for v in values}) == 1 and all(v.prompt for v in values)


def _clusters(runs: Values, prompts: bool, *, at_once: bool = False) -> Runs:
    """The values, each with its cluster: its concept, its prompt, or (``at_once``) the run of an attack that found it."""

    def cluster(value: Value) -> str:
        if at_once:
            return value.label.rpartition(RUN)[2]
        return value.prompt if prompts else value.label

    return {
        seed: {split: [(cluster(v), v.value) for v in values] for split, values in by_split.items()}
        for seed, by_split in runs.items()
    }
