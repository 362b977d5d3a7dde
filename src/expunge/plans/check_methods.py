"""What in a plan's methods contradicts something else in it."""

from expunge.core.concept import Concept, check_targets
from expunge.core.eraser import Eraser, Marked, settings_of
from expunge.core.errors import ExpungeError, check_positive, each_once, unknown
from expunge.maths.fisher import REPLAY, shows, unshown
from expunge.plans.opened import OpenedPlan
from expunge.plans.schema import ASKED, CONTROLS, KEYLESS, Method
from expunge.stages import erase, knowledge, pairs, stopping


def check_methods(read: OpenedPlan) -> None:
    """Refuse a method of the plan that cannot be run as asked.

    Raises:
        ExpungeError: naming the method.
    """
    _check_pairs(read)
    _check_fisher(read)
    _check_needs(read)
    for name in read.erasers:
        _check_method(read, name)


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
