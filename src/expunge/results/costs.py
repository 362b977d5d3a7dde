"""What erasures, the pairs and the Fisher information that they learned from, and fresh keys took."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from expunge.results.finished import End, Finished, Spent
from expunge.results.group import Group


class CostColumn(NamedTuple):
    """What an erasure took, as a column of a table."""

    name: str
    """As rows of a summary call it."""
    title: str
    unit: float
    digits: int

    def written(self, row: Mapping[str, Any]) -> str:
        """The number of a row that has it."""
        return f"{row[self.name] / self.unit:,.{self.digits}f}"


COSTS = (
    CostColumn("erase_equivalents", "forwards", 1, 0),
    CostColumn("pairs_equivalents", "pairs' forwards", 1, 0),
    CostColumn("fisher_equivalents", "Fisher's forwards", 1, 0),
    CostColumn("erase_updates", "updates", 1, 0),
    CostColumn("erase_enough", "stopped at enough, %", 1, 0),
    CostColumn("erase_seconds", "seconds", 1, 1),
    CostColumn("erase_peak_bytes", "peak MB", 1e6, 0),
    CostColumn("artefact_bytes", "artefact kB", 1e3, 0),
)


def costs(finished: Sequence[Finished]) -> dict[str, dict[str, Any]]:
    """What each method's erasures took: mean evaluations and bytes, median seconds; the peak of memory.

    An erasure in several steps took what they took together. Pairs and Fisher information, which serve several erasures, are
    told apart.
    """
    erasures: dict[str, dict[tuple[str, ...], Sequence[Spent]]] = {}
    shared: dict[str, dict[str, dict[str, int]]] = {"pairs": {}, "fisher": {}}
    for one in finished:
        if one.group.kind != "set":
            continue
        for what, several in (("pairs", one.pairs), ("fisher", one.fisher)):
            for job in several:
                shared[what].setdefault(one.method, {})[job.key] = job.cost.equivalents
        if one.erase:
            erasures.setdefault(one.method, {})[tuple(step.key for step in one.erase)] = one.erase
    taken: dict[str, dict[str, Any]] = {
        method: {
            "erase_equivalents": round(fmean(sum(s.cost.equivalents for s in steps) for steps in each.values()), 1),
            "erase_seconds": round(median(sum(s.seconds for s in steps) for steps in each.values()), 1),
            "artefact_bytes": round(fmean(sum(s.bytes for s in steps) for steps in each.values())),
        }
        | _ends([step.end for steps in each.values() for step in steps if step.end is not None])
        for method, each in erasures.items()
    }
    for what, by_method in shared.items():
        for method, equivalents in by_method.items():
            taken.setdefault(method, {})[f"{what}_equivalents"] = sum(equivalents.values())
    for one in finished:
        if one.peak_bytes is not None:
            taken.setdefault(one.method, {})["erase_peak_bytes"] = one.peak_bytes
    return taken


def _ends(ends: Sequence[End]) -> dict[str, float]:
    """After how many updates a judge ended trainings, on average, and the percentage in which it saw enough erased."""
    if not ends:
        return {}
    enough = 100 * fmean(end.enough for end in ends)
    return {"erase_updates": round(fmean(end.updates for end in ends), 1), "erase_enough": round(enough, 1)}


def fresh_key_costs(finished: Sequence[Finished]) -> dict[tuple[str, Group], dict[str, float]]:
    """What the fresh keys behind a row's recovery took, on average, by method and group."""
    taken: dict[tuple[str, Group], dict[str, int]] = {}
    for one in finished:
        for learned in one.fresh_keys:
            taken.setdefault((one.method, one.group), {})[learned.key] = learned.cost.equivalents
    return {cell: {"relearn_equivalents": round(fmean(each.values()), 1)} for cell, each in taken.items()}
