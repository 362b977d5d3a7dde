"""A plan with all that it names opened: sets read, plug-ins built, rows of papers looked up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.concept import ConceptSet, Part
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, settings_of
from expunge.core.errors import ExpungeError, check_counts, each_once, unknown
from expunge.plans.plugins import (
    PlannedAnalysis,
    PlannedAttack,
    PlannedMetric,
    planned_analysis,
    planned_attack,
    planned_metric,
)
from expunge.plans.schema import (
    ASKED,
    CONTROLS,
    FAST,
    ORIGINAL,
    Fresh,
    MoreImages,
    Others,
    Plan,
    Published,
    precision_of,
)
from expunge.results.group import Group
from expunge.stages import erase
from expunge.store import header_of, read_lines, read_set
from expunge.testbed import CONCEPTS


class MoreShown(NamedTuple):
    """Prompts beside those of the plan's own set, read."""

    group: Group
    part: Part
    concepts: Sequence[str]
    images: int
    """Images a prompt."""
    metrics: Sequence[PlannedMetric]


@final
@dataclass(frozen=True, kw_only=True)
class OpenedPlan:
    """A plan's sets, plug-ins and published rows. `checked` says that they do not contradict each other."""

    plan: Plan
    kind: str
    """Of its model, as ``presets.toml`` calls it."""
    image_dtype: str
    """Precision of generation on this machine."""
    set: ConceptSet
    splits: Mapping[str, tuple[str, ...]]
    """Targets by split."""
    metrics: Sequence[PlannedMetric]
    analyses: Sequence[PlannedAnalysis]
    attacks: Sequence[PlannedAttack]
    more: Sequence[MoreShown]
    """Further sets of prompts."""
    erasers: Mapping[str, Eraser]
    """By method; none of those whose edits are finished, or that are another model."""
    fresh: Mapping[int, Eraser]
    """What learns fresh keys, by the number of its updates."""
    published: Sequence[dict[str, Any]] = field(default=(), repr=False)
    """Rows of papers, as the summary has them."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """The splits of the grid."""
        return self.plan.grid.split or tuple(self.splits)

    @property
    def groups(self) -> list[str]:
        """The sets that the table's numbers may be of."""
        return ["set", "memory", *(str(shown.group) for shown in self.more)]

    @property
    def part(self) -> Part:
        """The plan's part of its own set."""
        return self.set.part(self.plan.part)

    @property
    def need_pairs(self) -> list[str]:
        """Methods of the grid, and of their controls, whose edits do nothing where no pair of predictions is made."""
        methods, known = self.plan.method, Catalog("erasers").literals("needs_pair")
        rows = [name for name in self.plan.grid.method if name in methods]
        rows += [control for name in rows for control in methods[name].controls or () if control in methods]

        def needs(name: str) -> bool:
            if name in self.erasers:
                return self.erasers[name].needs_pair
            return any(known.get(str(header_of(file)["fields"].get("eraser"))) for file in methods[name].edits)

        return [name for name in rows if needs(name)]

    def prompts(self) -> list[tuple[str, str]]:
        """The set's prompts in the plan's part, each with its concept."""
        return list(self.part.prompts)

    def words(self, targets: Sequence[str]) -> list[str]:
        """The words that erasers are told for ``targets``."""
        return words(self.plan, targets)

    def kept(self, targets: Sequence[str]) -> list[str]:
        """The set's concepts beside ``targets``."""
        return [c for c in self.set.concepts if c not in targets]

    def retained(self, name: str, kept: Sequence[str]) -> list[str]:
        """The words that method ``name`` is told to keep, where the plan keeps the concepts ``kept``."""
        retain = self.plan.method[name].retain
        return list(retain) if isinstance(retain, tuple) else self.words(kept if retain else [])

    def alone(self, name: str) -> bool:
        """Whether each key of a method holds one prompt only."""
        return self.plan.method[name].order == "sequential" or self.erasers[name].shares_key

    def trained(self, name: str) -> bool:
        """Whether a row is a method that depends on the training seed."""
        return name in self.erasers and self.erasers[name].cost(1, 1) != Cost()

    def controls(self, name: str, targets: Sequence[str]) -> Sequence[str]:
        """The recoveries to try with the key of method ``name``."""
        given = self.plan.method[name].controls
        if given is not None or name not in self.erasers or not self.erasers[name].has_key:
            return given or ()
        alone = len(targets) < 2 or self.alone(name)
        left_out = ("neutral", "other") if self.plan.words else ("other",) if alone else ()
        return [c for c in CONTROLS if c not in left_out]


def words(plan: Plan, targets: Sequence[str]) -> list[str]:
    """The words that erasers are told for ``targets``."""
    return [word for target in targets for word in plan.words.get(target, (target,))]


def opened(plan: Plan) -> OpenedPlan:
    """Open all that ``plan`` names.

    Raises:
        ExpungeError: for an unknown method, plug-in, setting, set, split or published row.
    """
    _check_names(plan)
    own = read_set(plan.set, CONCEPTS)
    splits = plan.splits or own.splits or {"all": own.concepts}
    _check_splits(plan, own, splits)
    kind = backbones.kind_of(plan.model)
    metrics = [planned_metric(named) for named in plan.metrics]
    analyses = [planned_analysis(named) for named in plan.analyses]
    each_once("plan's metrics", [(m.name, m.settings) for m in metrics])
    each_once("plan's analyses", [(a.name, settings_of(a.analysis)) for a in analyses])
    others = [] if plan.others is None else [_others(plan, own, plan.others, metrics)]
    more = [*others, *(_more(plan, entry, metrics) for entry in plan.also)]
    erasers = {
        name: erase.build(m.eraser, m.settings, kind if m.preset else None)
        for name, m in plan.method.items()
        if m.eraser
    }
    asked = any("fresh" in (m.controls or ()) for m in plan.method.values())
    return OpenedPlan(
        plan=plan,
        kind=kind,
        image_dtype=backbones.fast_dtype() if plan.image_dtype == FAST else plan.image_dtype,
        set=own,
        splits=splits,
        metrics=metrics,
        analyses=analyses,
        attacks=[planned_attack(named, kind, plan.attack_runs) for named in plan.attacks],
        more=more,
        erasers=erasers,
        fresh=_fresh(plan.fresh or Fresh(), kind) if asked or plan.fresh is not None else {},
        published=[] if plan.paper is None else _published(plan, plan.paper),
    )


def _check_names(plan: Plan) -> None:
    """Refuse an axis with a name twice, or a row that is no method."""
    for axis in ("method", "split", "seed"):
        each_once(f"plan's grid's {axis}", getattr(plan.grid, axis))
    for name in plan.grid.method:
        if name != ORIGINAL and precision_of(name) is None and name not in plan.method:
            raise unknown("method of the plan", name, [ORIGINAL, *plan.method])
    for name in plan.method:
        if name in (ORIGINAL, *CONTROLS, *ASKED) or precision_of(name) is not None:
            raise ExpungeError(f"a method is called '{name}': expected another name than original or a control's")


def _check_splits(plan: Plan, own: ConceptSet, splits: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse concepts and splits that the plan's set does not have."""
    for name, concepts in {**splits, plan.set: own.concepts}.items():
        each_once(f"plan's split '{name}'" if name in splits else f"set '{name}'", concepts)
    for concept in [*(c for targets in splits.values() for c in targets), *plan.words]:
        if concept not in own.concepts:
            raise unknown(f"concept of {plan.set}", concept, own.concepts)
    for name in plan.grid.split:
        if name not in splits:
            raise unknown(f"split of {plan.set}", name, splits)
    _part(plan, plan.set, own)


def _part(plan: Plan, name: str, read: ConceptSet) -> Part:
    """The plan's part of a set that was read by ``name``; a published file of prompts has no other than test."""
    if name.endswith(".csv") and plan.part != "test":
        raise ExpungeError(f"set '{name}' with part '{plan.part}': expected test, as a CSV has one part only")
    return read.part(plan.part)


def _more(plan: Plan, entry: MoreImages, own: Sequence[PlannedMetric]) -> MoreShown:
    """A further set, read and checked."""
    check_counts("plan's also", count=entry.count)
    metrics = own if entry.metrics is None else [planned_metric(named) for named in entry.metrics]
    each_once("plan's metrics", [(m.name, m.settings) for m in metrics])
    if entry.label is not None and not entry.set.endswith(".csv"):
        raise ExpungeError(f"set '{entry.set}' with label '{entry.label}': expected one for a CSV only")
    read = read_set(entry.set, CONCEPTS, entry.label)
    group = Group.parse(read.name)
    if group.kind != "further":
        raise ExpungeError(
            f"a further set of the plan is called '{read.name}': expected another name than set, others, memory, paper, "
            "or one that begins like another group"
        )
    return MoreShown(group, _part(plan, entry.set, read), read.concepts, entry.count, metrics)


def _others(plan: Plan, own: ConceptSet, others: Others, metrics: Sequence[PlannedMetric]) -> MoreShown:
    """The prompts for what no method of the plan is told, nor the plan's own set names."""
    check_counts("plan's others", count=others.count)
    listed = [w for m in plan.method.values() if not isinstance(m.retain, bool) for w in m.retain]
    part = read_set(others.set, CONCEPTS).part(plan.part)
    shown = [f" {p} " for wish in plan.pairs.values() for p in (*wish.unsafe, *wish.safe)]
    seen = {c for _, c in part.prompts if any(f" {c} " in p for p in shown)}
    named = {*own.concepts, *words(plan, own.concepts), *listed, *seen}
    rest = part.where(lambda concept: concept not in named)
    if not rest.prompts:
        raise ExpungeError(
            f"plan's others '{others.set}' has nothing that the plan does not name: expected other concepts"
        )
    concepts = sorted({concept for _, concept in rest.prompts})
    return MoreShown(Group(kind="others"), rest, concepts, others.count, metrics)


def _fresh(fresh: Fresh, kind: str) -> dict[int, Eraser]:
    """What learns fresh keys, by the number of its updates."""
    preset = kind if fresh.preset else None
    base = erase.build(fresh.eraser, fresh.settings, preset)
    if not base.has_key:
        raise ExpungeError(f"plan's fresh with {fresh.eraser}, which makes no key: expected a method with keys")
    if not each_once("plan's fresh updates", fresh.updates):
        return {int(settings_of(base)["iterations"]): base}
    return {
        updates: erase.build(fresh.eraser, {**fresh.settings, "iterations": updates}, preset)
        for updates in fresh.updates
    }


def _published(plan: Plan, paper: Published) -> list[dict[str, Any]]:
    """The published figures of the plan's rows."""
    lines = read_lines(Path(paper.file))
    rows: list[dict[str, Any]] = []
    for name, at in paper.rows.items():
        if name not in plan.grid.method:
            raise unknown("method of the grid with published figures", name, plan.grid.method)
        row = [r for r in lines if [r.get("table"), r.get("method")] == at]
        if not row:
            tables = [str([r.get("table"), r.get("method")]) for r in lines]
            raise unknown(f"published row of '{name}'", str(at), list(dict.fromkeys(tables)))
        bad = [r for r in row if not isinstance(r.get("metric"), str) or not isinstance(r.get("value"), int | float)]
        if bad:
            raise ExpungeError(f"published row {bad[0]} of '{name}': expected a metric and a number as its value")
        rows += [{**r, "method": name, "published_as": at[1], "group": "paper"} for r in row]
    return rows
