"""What in a plan contradicts something else in it, found before anything runs."""

from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, check_targets
from expunge.core.eraser import Eraser, Marked, settings_of
from expunge.core.errors import ExpungeError, check_counts, check_positive, each_once, unknown
from expunge.maths.fisher import REPLAY, shows, unshown
from expunge.plans.opened import OpenedPlan, opened
from expunge.plans.plugins import PlannedAttack
from expunge.plans.schema import ASKED, CONTROLS, KEYLESS, ORIGINAL, Method, Plan, precision_of
from expunge.results.files import figure_file
from expunge.results.group import Group
from expunge.stages import erase, knowledge, pairs, stopping

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
    _check_pairs(read)
    _check_fisher(read)
    _check_needs(read)
    for name in read.erasers:
        _check_method(read, name)
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


def _check_pairs(read: OpenedPlan) -> None:
    """Refuse pairs that a method cannot learn from."""
    for name, method in read.plan.method.items():
        if method.images is None:
            continue
        given = [method.images] if isinstance(method.images, str) else list(method.images)
        for pairs_name in given:
            if pairs_name not in read.plan.pairs:
                raise unknown(f"pairs of method '{name}'", pairs_name, read.plan.pairs)
        if method.order == "sequential" or len(read.chosen) > 1:
            raise ExpungeError(
                f"method '{name}' learns from pairs {given} for targets one after another, or several splits: "
                "expected one split, erased at once or apart"
            )
        words = [w for split in read.chosen for w in read.words(read.splits[split])]
        if method.order == "joint" and len(given) != 1:
            raise ExpungeError(f"method '{name}' learns from pairs {given}, erased at once: expected the name of one")
        if method.order == "apart" and len(given) != len(words):
            raise ExpungeError(
                f"method '{name}' learns from {len(given)} of the plan's pairs, {given}: expected one for each of {words}"
            )
        wanted = set(read.erasers[name].needs([Concept(name=word) for word in read.words(read.set.concepts)]))
        if wanted != set(pairs.ROLES):
            wants = f"{' and '.join(sorted(wanted))} images" if wanted else "no images"
            raise ExpungeError(
                f"method '{name}' learns from pairs {given}, but {method.eraser} wants {wants}: expected a method "
                f"that wants {' and '.join(pairs.ROLES)} ones"
            )


def _check_fisher(read: OpenedPlan) -> None:
    """Refuse Fisher information that a method does not take, or that is of images of what it erases."""
    for name, method in read.plan.method.items():
        if method.fisher is None:
            continue
        if method.fisher not in read.plan.fisher:
            raise unknown(f"fisher of method '{name}'", method.fisher, read.plan.fisher)
        eraser = read.erasers[name]
        own = getattr(eraser, "fisher", "") if "fisher" in type(eraser).files else None
        if own is None or method.order == "sequential":
            which = f"{method.eraser} takes none" if own is None else "each step is on another model"
            raise ExpungeError(
                f"method '{name}' holds to fisher '{method.fisher}', but {which}: expected a method that takes a Fisher file, "
                "and targets erased at once or apart"
            )
        if own:
            raise ExpungeError(
                f"method '{name}' with fisher '{method.fisher}' and the file '{own}': expected one of them"
            )
        # a stand-in for the file, which the eraser may not use
        held = erase.build(method.eraser, {**settings_of(eraser), "fisher": method.fisher}, None)
        for split in read.chosen:
            _check_shown(read, name, method.fisher, held, split)


def _check_shown(read: OpenedPlan, name: str, of: str, eraser: Eraser, split: str) -> None:
    """Refuse Fisher information ``of`` images that show a target, or not what is kept, as the eraser would after the pass."""
    targets, retain = read.words(read.splits[split]), read.retained(name, read.kept(read.splits[split]))
    wish = read.plan.fisher[of]
    prompts = wish.prompts()[: wish.images]  # of all that are made, those of the pass
    for word in targets:
        named = next((prompt for prompt in prompts if shows(prompt, word, retain)), None)
        if named is not None:
            raise ExpungeError(
                f"fisher '{of}' is of images with the prompt '{named}', which names the target '{word}' of method '{name}': "
                "expected other prompts"
            )
    wanted = eraser.keeps([Concept(name=word) for word in targets], retain).get(REPLAY, ())
    lost = unshown(retain, [*prompts, *(one for one in wanted if isinstance(one, str))])
    if lost is not None:
        raise ExpungeError(
            f"method '{name}' keeps '{lost}', which no image of fisher '{of}' shows, and none that it replays: expected "
            "prompts with all that it keeps"
        )


def _check_needs(read: OpenedPlan) -> None:
    """Have erasers that make their own images refuse targets that they lack something for; and refuse those that make none."""
    for name, eraser in read.erasers.items():
        if read.plan.method[name].images is None:
            for split in read.chosen:
                needs = eraser.needs([Concept(name=word) for word in read.words(read.splits[split])])
                marks = [wish.marks for wishes in needs.values() for wish in wishes if isinstance(wish, Marked)]
                if marks:
                    raise ExpungeError(
                        f"method '{name}' wants images with {marks[0]}, which no model makes and no plan gives: expected "
                        "another eraser, or a script"
                    )


def _check_method(read: OpenedPlan, name: str) -> None:
    """Refuse a strength, an order or a control that the method cannot have."""
    method, eraser = read.plan.method[name], read.erasers[name]
    _check_strength(read, name, method)
    _check_stop(read, name, method)
    if method.order == "apart":
        if eraser.has_key:
            raise ExpungeError(f"method '{name}' with keys, erased apart: expected order joint or sequential")
        for split in read.chosen:
            check_targets([Concept(name=word) for word in read.words(read.splits[split])], [])
    for control in each_once(f"plan's controls of '{name}'", method.controls or ()):
        _check_control(read, name, control)
    unnamed = _unnamed(read) if read.controls(name, read.set.concepts) else None
    if unnamed is not None:
        raise ExpungeError(
            f"method '{name}' with keys, and no prompt for '{unnamed}' has one of its words: expected no controls"
        )
    if not (eraser.has_key or set(method.controls or ()) <= set(KEYLESS)):
        raise ExpungeError(
            f"method '{name}' has controls, but {method.eraser} makes no key: expected no others than "
            f"{' and '.join(KEYLESS)}"
        )


def _check_strength(read: OpenedPlan, name: str, method: Method) -> None:
    """Refuse a strength that is none, or scales nothing, or that steps, analyses or a key learned anew ignore."""
    check_positive(f"method '{name}'", strength=method.strength)
    if method.strength != 1.0 and not read.erasers[name].scales:
        raise ExpungeError(
            f"method '{name}' with strength {method.strength}, and no weights to scale: expected strength 1"
        )
    looked = [named.name for named in read.analyses]
    looked += [word for word in (*(method.controls or ()), method.order) if word in ("fresh", "sequential")]
    if method.strength != 1.0 and looked:
        raise ExpungeError(f"method '{name}' with strength {method.strength} and {looked[0]}: expected strength 1")


def _check_stop(read: OpenedPlan, name: str, method: Method) -> None:
    """Refuse a stop of what is not trained, one by the judge that reports, or an analysis along a training that it ends."""
    if method.stop is None:
        return
    if not read.trained(name):
        raise ExpungeError(f"method '{name}' with a stop, and {method.eraser} has no updates: expected no stop")
    words = [word for split in read.chosen for word in read.words(read.splits[split])]
    oracle = stopping.as_json(method.stop, read.kind, words)["judge"]
    for metric in (*read.metrics, *(metric for shown in read.more for metric in shown.metrics)):
        if knowledge.same_judge(metric.settings.get("judge"), [oracle]):
            raise ExpungeError(f"method '{name}' stopped by {oracle}, the judge that reports: expected another")
    along = [planned.name for planned in read.analyses if planned.analysis.needs == "training"]
    if along:
        raise ExpungeError(f"method '{name}' with a stop, and {along[0]} runs whole trainings: expected no stop")


def _check_control(read: OpenedPlan, name: str, control: str) -> None:
    """Refuse a recovery that is none, or cannot be made here."""
    known = (*CONTROLS, *ASKED, *read.plan.method)
    if control not in known:
        raise unknown(f"control of method '{name}'", control, known)
    if control == "other":
        _check_exchange(read, name)
    if control == "other seed" and len(read.plan.grid.seed) < 2:
        raise ExpungeError(f"method '{name}' with control other seed in a grid of one: expected two or more")
    if control in ("neutral", "other") and read.plan.words:
        raise ExpungeError(
            f"method '{name}' with control {control} for a class of several words: expected another control"
        )


def _check_exchange(read: OpenedPlan, name: str) -> None:
    """Refuse the control that exchanges prompts where a key has none to exchange."""
    if any(len(read.splits[s]) < 2 for s in read.chosen):
        raise ExpungeError(f"method '{name}' with control other on a split of one target: expected two or more")
    if read.alone(name):
        how = "sequential" if read.plan.method[name].order == "sequential" else "shared"
        raise ExpungeError(f"method '{name}' with control other and {how} keys: expected a key of several prompts")


def _unnamed(read: OpenedPlan) -> str | None:
    """A class none of whose prompts holds one of its words, so that its keys are never used."""
    for concept, words in read.plan.words.items():
        prompts = [p for p, c in read.prompts() if c == concept]
        if not any(word in prompt for word in words for prompt in prompts):
            return concept
    return None


def _check_nameless(read: OpenedPlan) -> None:
    """Refuse a metric that reads what prompts name, where attacks or keys ask for a target without naming it."""
    for targets in (read.splits[split] for split in read.chosen):
        if read.attacks or any("neutral" in read.controls(name, targets) for name in read.plan.method):
            for metric in read.metrics:
                metric.check([(read.plan.neutral, target) for target in targets])
