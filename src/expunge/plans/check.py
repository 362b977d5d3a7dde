"""What in a plan contradicts something else in it, found before anything runs."""

from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError, check_counts, check_positive, each_once, unknown
from expunge.plans.check_methods import check_methods
from expunge.plans.opened import OpenedPlan, opened
from expunge.plans.plugins import PlannedAttack
from expunge.plans.schema import ORIGINAL, Plan, precision_of
from expunge.results.files import figure_file
from expunge.results.group import Group
from expunge.stages import knowledge, pairs

RUNS = 1_000
"""How far apart the draws and seeds of an attack's runs are."""


def checked(plan: Plan) -> OpenedPlan:
    """``plan`` with all that it names opened, none of it in contradiction.

    Raises:
        ExpungeError: for an unknown method, eraser, metric, setting, set or split, or what does not go together.
    """
    _check_numbers(plan)
    read = opened(plan)
    _check_compared(plan)
    _check_models(read)
    _check_groups(read)
    _check_attacks(read)
    _check_attacked_rows(read)
    for wish in plan.pairs.values():
        pairs.judge_of(wish, read.kind)
    _check_more(read)
    _check_prompts(read)
    _check_labels(read)
    _check_histograms(read)
    check_methods(read)
    _check_nameless(read)
    return read


def _check_numbers(plan: Plan) -> None:
    check_counts("plan", count=plan.count, control_count=plan.control_count, attack_runs=plan.attack_runs)
    if plan.steps is not None:
        check_counts("plan", steps=plan.steps)
    if plan.guidance is not None:
        check_positive("plan", guidance=plan.guidance)
    if plan.true_cfg is not None:
        check_positive("plan", true_cfg=plan.true_cfg)
    seeds = plan.grid.seed
    for axis, given in (("method", plan.grid.method), ("seed", seeds)):
        if not given:
            raise ExpungeError(f"plan's grid has no {axis}: expected one or more")
    if plan.attacks and max(seeds) - min(seeds) >= RUNS:
        raise ExpungeError(f"attacks with training seeds {list(seeds)}: expected them within {RUNS} of each other")


def _check_compared(plan: Plan) -> None:
    """What the table is compared with and drawn as names rows of the plan."""
    for pair in each_once("plan's compare", plan.compare):
        if len(pair) != 2:
            raise ExpungeError(f"plan's compare names {list(pair)}: expected pairs of methods")
        for name in pair:
            if name not in plan.grid.method:
                raise unknown("method of the grid to compare", name, plan.grid.method)
    for named in (*plan.claims, *plan.figures, *plan.histograms):
        named.check(plan.grid.method)
    files = [figure_file(figure.title) for figure in (*plan.figures, *plan.histograms)]
    for name in files:
        if files.count(name) > 1:
            raise ExpungeError(f"two figures of the plan would be '{name}': expected titles that differ in words")


def _check_models(read: OpenedPlan) -> None:
    """Refuse another model of another kind, a reference that nothing compares with, and a metric that lacks one."""
    for other in read.plan.other_models:
        kind = backbones.kind_of(other)
        if kind != read.kind:
            raise ExpungeError(
                f"model '{other}' is of kind {kind}, and the plan's '{read.plan.model}' of kind {read.kind}: expected a model "
                "that is there, of the same kind"
            )
    metrics = (*read.metrics, *(metric for shown in read.more for metric in shown.metrics))
    asks = next((metric.name for metric in metrics if metric.against == "reference"), None)
    if asks is not None and not read.plan.reference:
        raise ExpungeError(
            f"metric '{asks}' in a plan without a reference: expected one, such as reference = \"FOLDER\""
        )
    if asks is None and read.plan.reference:
        raise ExpungeError(
            f"plan's reference '{read.plan.reference}', and no metric compares with it: expected reference-distance among its "
            "metrics"
        )


def _check_groups(read: OpenedPlan) -> None:
    """Claims and figures may name only what the plan measures."""
    known = {
        "attack": [place.name for attack in read.attacks for place in _places(attack)],
        "analysis": [a.name for a in read.analyses],
        "split": list(read.chosen) if read.plan.by_split else [],
        "further": read.groups,
    }
    asked = [claim.group for claim in read.plan.claims]
    asked += [
        group
        for curve in read.plan.figures
        for group in (curve.x_group, *(g for line in curve.read for g in line.all_groups))
    ]
    for group in map(Group.parse, asked):
        if group.kind in known and group.name not in known[group.kind]:
            what = "group" if group.kind == "further" else group.kind
            raise unknown(f"{what} of the plan in a claim or figure", group.name, known[group.kind])


def _places(attack: PlannedAttack) -> list[Group]:
    """The groups of the table that an attack has numbers in."""
    return [attack.group, *((attack.group.doubled, attack.group.change) if attack.stronger else ())]


def _check_attacked_rows(read: OpenedPlan) -> None:
    """Attacks name rows of the plan; claims, rows that are attacked, and one that resists with twice the budget, too."""
    for attack in read.attacks:
        rows, doubled = attack.rows or read.plan.grid.method, attack.doubled or ()
        for what, named, known in (("", attack.rows or (), read.plan.grid.method), (" with doubled", doubled, rows)):
            for row in named:
                if row not in known:
                    raise unknown(f"row of attack '{attack.name}'{what}", row, known)
                if precision_of(row) is not None:
                    raise ExpungeError(
                        f"attack '{attack.name}'{what} on row '{row}': expected {ORIGINAL} or a method, and no precision"
                    )
    at = [(attack, place, str(place)) for attack in read.attacks for place in _places(attack)]
    for claim in read.plan.claims:
        for attack, place, name in at:
            rows = [row for row in claim.rows if name == claim.group and place not in dict(attack.on(row))]
            if place != attack.group.change and rows:
                raise ExpungeError(f"claim '{claim.says}' of '{name}' names row '{rows[0]}', which it is not run on")
            for row in claim.resisting if name == claim.group else ():
                if attack.group.doubled not in dict(attack.on(row)):
                    raise ExpungeError(
                        f"claim '{claim.says}' says that '{row}' resists {name}: expected that attack doubled for this row"
                    )


def _check_attacks(read: OpenedPlan) -> None:
    """The table must tell attacks apart; runs of one must differ in something."""
    for attack in read.attacks:
        alike = any(not built.draws and not built.keeps_seeds for built in attack.runs)
        if read.plan.attack_runs > 1 and alike:
            raise ExpungeError(
                f"attack_runs is {read.plan.attack_runs}, and each run of {attack.name} would ask the same: expected 1"
            )
    called = [a.group.name for a in read.attacks]
    for name in called:
        if called.count(name) > 1:
            raise ExpungeError(
                f"two attacks of the plan are both '{name}' in the table: expected settings that tell them apart"
            )
    judges = [metric.settings.get("judge") for metric in read.metrics]
    for attack in read.attacks:
        for oracle in attack.runs[0].knowledge().oracles:
            if any(knowledge.same_judge(judge, [oracle]) for judge in judges):
                raise ExpungeError(f"attack '{attack.name}' asks {oracle}, the judge that reports: expected another")


def _check_more(read: OpenedPlan) -> None:
    names = [shown.group for shown in read.more]
    for name in names:
        if names.count(name) > 1:
            raise ExpungeError(f"two further sets of the plan are called '{name}': expected each once")


def _check_prompts(read: OpenedPlan) -> None:
    """Refuse a target, or a kept concept that a metric asks for, for which the plan's part of its set has no prompt."""
    targets = [target for split in read.chosen for target in read.splits[split]]
    kept = read.set.concepts if any(metric.asks_kept for metric in read.metrics) else ()
    shown = {concept for _, concept in read.prompts()}
    for concept in (*targets, *kept):
        if concept not in shown:
            raise ExpungeError(
                f"set '{read.plan.set}' has no prompt for '{concept}' in its part {read.plan.part}: expected one or more"
            )


def _check_labels(read: OpenedPlan) -> None:
    """Refuse a concept that a metric's judge does not know, or prompts that it cannot read, before anything is trained."""
    own = (read.metrics, read.set.concepts, read.prompts())
    erased = {c for targets in read.splits.values() for c in (*targets, *read.words(targets))}
    for metrics, concepts, prompts in [own, *((f.metrics, f.concepts, f.part.prompts) for f in read.more)]:
        for metric in metrics:
            metric.check(prompts)
            judge = metric.settings.get("judge")
            if judge is not None:
                known = Catalog("judges").open(judge)
                asked = concepts if metric.asks_kept else erased.intersection(concepts)
                for concept in metric.settings.get("concepts") or asked:
                    known.label_ids(concept)


def _check_histograms(read: OpenedPlan) -> None:
    """Refuse bars of images whose detections nothing counts, or two metrics do."""
    gone = {c for targets in read.splits.values() for c in (*targets, *read.words(targets))}
    counted = {"set": read.metrics, **{str(f.group): f.metrics for f in read.more if gone.intersection(f.concepts)}}
    for bars in read.plan.histograms:
        if [metric.name for metric in counted.get(bars.group, ())].count("ner") != 1:
            raise ExpungeError(
                f"histogram '{bars.title}' of '{bars.group}': expected a set with targets and the metric 'ner' once"
            )


def _check_nameless(read: OpenedPlan) -> None:
    """Refuse a metric that reads what prompts name, where attacks or keys ask for a target without naming it."""
    for targets in (read.splits[split] for split in read.chosen):
        if read.attacks or any("neutral" in read.controls(name, targets) for name in read.plan.method):
            for metric in read.metrics:
                metric.check([(read.plan.neutral, target) for target in targets])
