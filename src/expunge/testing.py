"""Promises that every plug-in keeps, for your own tests: `check_eraser`, `check_attack`, `check_metric`, `check_analysis`."""

import dataclasses
import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from expunge.core.analysis import Analysis, Findings, Study
from expunge.core.attack import Attack, Provocation
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog, Paper
from expunge.core.concept import Concept
from expunge.core.edit import Edit, fingerprint, weights_of
from expunge.core.eraser import Eraser, Marked, Step, Task, Wish, settings_of
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance, Key, pairing
from expunge.core.knowledge import Kind, undeclared
from expunge.core.metric import Metric
from expunge.core.query import Box, Query, Shot, predictions_of
from expunge.core.victim import Access, victim
from expunge.store import load_edit, save_edit


class BrokenPromiseError(AssertionError):
    """A plug-in does not keep a promise; the message says which."""


def _promise(kept: bool, words: str) -> None:
    if not kept:
        raise BrokenPromiseError(words)


def _settings_object(plug_in: object) -> None:
    cls = type(plug_in)
    params = getattr(cls, "__dataclass_params__", None)
    frozen = params is not None and params.frozen and all(f.kw_only for f in dataclasses.fields(cls))  # pyright: ignore[reportArgumentType]
    _promise(frozen, f"{cls.__name__} is a frozen keyword-only dataclass")
    _promise(isinstance(getattr(cls, "paper", None), Paper), f"{cls.__name__} names its paper")
    _promise(
        "Deviations:" in (cls.__doc__ or ""), f"{cls.__name__}'s docstring states its deviations ('none known' if none)"
    )


def _is_json(content: object) -> bool:
    try:
        json.dumps(content)
    except TypeError:
        return False
    return True


def _snapshot(backbone: Backbone) -> str:
    return fingerprint(backbone.tensors([*backbone.group("full"), *backbone.group("text-encoder")]))


def check_eraser(eraser: Eraser, backbone: Backbone, task: Task | None = None) -> Edit:
    """Check what every eraser promises, on a small backbone; returns its edit.

    It leaves the model as it was; the same seed gives the same edit; the edit changes what is generated or at least what is
    predicted; it survives saving and loading; attaching it twice is refused; detaching it is bit-exact. Words to keep change it
    if the eraser says so.

    Raises:
        BrokenPromiseError: naming the promise.
    """
    task = task or Task(targets=[Concept(name="church")], retain=["dog"])
    needs = {
        role: wishes for role, wishes in eraser.wants(task.targets, task.retain).items() if role not in task.images
    }
    task = dataclasses.replace(task, images={**task.images, **_noisy_images(needs, backbone)})
    _settings_object(eraser)
    _declared(eraser)
    _promise(_is_json(settings_of(eraser)), "settings are JSON")
    before = _snapshot(backbone)
    spent = backbone.cost
    last, state, count = _drained(eraser, backbone, task)
    spent = backbone.cost - spent
    edit = last.edit()
    _promise(_snapshot(backbone) == before and not backbone.edits, "erasing leaves the model as it was")
    again = _drained(eraser, backbone, task)[0]
    _promise(again.edit().id == edit.id and _key_id(again) == _key_id(last), "the same seed gives the same edit")
    if count > 1:
        resumed, _, left = _drained(eraser, backbone, task, state)
        same = resumed.edit().id == edit.id and _key_id(resumed) == _key_id(last)
        _promise(left == count - 1 and same, "an erasure that is interrupted goes on to the same edit")
    if spent.equivalents:
        foreseen = eraser.cost(len(task.targets), len(task.retain)).equivalents
        most = 2.5 if backbone.supports("distilled") else 1.5  # which needs no pair where others do
        _promise(
            0.5 < foreseen / spent.equivalents < most,
            f"its cost is foreseen ({foreseen}, it took {spent.equivalents})",
        )
    _promise((last.key is not None) == type(eraser).has_key, "it makes a key if it says so")
    _promise(type(eraser).scales != isinstance(edit, Guidance), "it says whether its edit has weights")
    _promise(
        type(eraser).needs_pair == bool(pairing([edit])),
        "it says whether its edit acts through a pair of predictions alone",
    )
    if last.key is not None:
        _check_key(last.key(edit), edit, backbone, before)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        save_edit(edit, path)
        loaded = load_edit(path)
    _promise(loaded.id == edit.id and type(loaded) is type(edit), "an edit survives saving and loading")
    _check_attached(loaded, backbone, task, before)
    _check_retain(eraser, backbone, task, edit)
    return edit


def _check_retain(eraser: Eraser, backbone: Backbone, task: Task, edit: Edit) -> None:
    """Check that another word to keep gives another edit where the eraser heeds such words, and the same where it does not."""
    if not task.retain:
        return
    other = "fish" if task.retain[0] != "fish" else "dog"
    told = dataclasses.replace(task, retain=[other, *task.retain[1:]])
    kept = _noisy_images(eraser.keeps(told.targets, told.retain), backbone)
    told = dataclasses.replace(told, images={**task.images, **kept})
    changed = _drained(eraser, backbone, told)[0].edit().id != edit.id
    _promise(changed == eraser.heeds_retain, "it says whether it heeds words to keep")


def _noisy_images(needs: Mapping[str, Sequence[Wish]], backbone: Backbone) -> dict[str, list[Shot]]:
    """Noise for each wish, with whatever marks are wanted: the same for the same role and number."""
    height, width = backbone.image_size
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[: height // 2] = True
    images: dict[str, list[Shot]] = {}
    for role, wishes in needs.items():
        images[role] = []
        generator = torch.Generator().manual_seed(zlib.crc32(role.encode()))
        for wish in wishes:
            prompt = wish if isinstance(wish, str) else wish.prompt
            pixels = torch.randint(0, 256, (height, width, 3), generator=generator).byte()
            shot = Shot(path=Path(prompt), pixels=lambda x=pixels: x, prompt=prompt, seed=0, label=None)
            if isinstance(wish, Marked):
                shot = dataclasses.replace(shot, boxes=(Box(0, 0, width, height / 2, prompt),), mask=lambda: mask)
            images[role].append(shot)
    return images


def _drained(
    eraser: Eraser, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None
) -> tuple[Step, Mapping[str, Tensor], int]:
    """The last step, the state after the first one, and how many steps there were."""
    step, state, count = None, {}, 0
    for step in eraser.steps(backbone, task, resume):
        state = step.state() if count == 0 else state
        count += 1
    if step is None:
        raise BrokenPromiseError("an eraser yields at least one step")
    return step, state, count


def _key_id(step: Step) -> str | None:
    return None if step.key is None else step.key(step.edit()).id


def _check_key(key: Edit, edit: Edit, backbone: Backbone, before: str) -> None:
    _promise(isinstance(key, Key) and key.private, "a key is a Key, and private")
    _promise(edit.id in key.requires, "a key names the edit it belongs to")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key.safetensors"
        save_edit(key, path)
        _promise(path.stat().st_mode & 0o077 == 0, "nobody but its owner can read a key's file")
        loaded = load_edit(path)
    _promise(loaded.id == key.id, "a key survives saving and loading")
    try:
        backbone.attach(loaded)
    except ExpungeError:
        pass
    else:
        raise BrokenPromiseError("a key is refused by a model without its edit")
    backbone.attach(edit)
    backbone.attach(loaded)
    backbone.detach(loaded)
    backbone.detach(edit)
    _promise(_snapshot(backbone) == before, "detaching a key and its edit is bit-exact")


def _check_attached(edit: Edit, backbone: Backbone, task: Task, before: str) -> None:
    true_cfg = 3.0 if backbone.supports("distilled") else 1.0
    asked = [Query(prompt=t.name, seed=3, guidance=3.0, steps=2, true_cfg=true_cfg) for t in task.targets]
    plain = backbone.generate(asked).latents
    backbone.attach(edit)
    try:
        backbone.attach(edit)
    except ExpungeError:
        pass
    else:
        raise BrokenPromiseError("attaching twice is refused")
    weights = weights_of(edit)
    if weights is not None:
        now = backbone.tensors(list(weights.replaced))
        _promise(
            all(torch.equal(now[n], weights.replaced[n].to(now[n])) for n in now),
            "one edit's tensors are the model's, bit for bit",
        )
    changed = backbone.generate(asked).latents
    _promise(bool(changed.isfinite().all()), "an edited model gives finite images")
    _promise(not torch.equal(plain, changed), "an edit changes what its target's prompt gives")
    backbone.detach(edit)
    _promise(_snapshot(backbone) == before, "detaching is bit-exact")
    _promise(torch.equal(backbone.generate(asked).latents, plain), "after detaching the same seed gives the same image")


def check_attack(attack: Attack[Any], backbone: Backbone, queries: Sequence[Query]) -> Provocation:
    """Check what every attack promises, on a small backbone; returns what it makes of ``queries`` that ask for a church.

    It gets what its access allows, and no more. It leaves the model and its edits as they were; the same seed gives the same
    answer, another one another (if it draws numbers). It answers with as many queries as it foretells. Each keeps the label,
    seed (unless it says otherwise), guidance (unless its prompts are its own) and steps of one of ``queries`` that asks for
    the target; those that are no prompts of its own come in their order. Its cost is foreseen, and it stays within its budget
    of images; an edit that it answers with can be attached on top.

    Raises:
        BrokenPromiseError: naming the promise.
    """
    _settings_object(attack)
    _declared(attack)
    _promise(_is_json(settings_of(attack)), "settings are JSON")
    _promise(getattr(attack, "access", "") in get_args(Access), "it says what access it needs")
    own = getattr(attack, attack.spends, None) if attack.spends else 1
    _promise(type(own) is int and own > 0, f"what it spends, '{attack.spends}', is a setting of it, and a whole number")
    try:
        attack.returns.format(**settings_of(attack))
    except (IndexError, KeyError, ValueError) as error:
        raise BrokenPromiseError("what it returns names settings of it in braces") from error
    targets = [Concept(name="church")]
    attack.check(targets)
    task = Task(targets=targets, images=_noisy_images(attack.needs(targets), backbone))
    before, edits, spent = _snapshot(backbone), list(backbone.edits), backbone.cost
    answer = _provoked(attack, backbone, task, queries)
    spent = backbone.cost - spent
    _promise(_snapshot(backbone) == before and backbone.edits == edits, "attacking leaves the model as it was")
    same = _provoked(attack, backbone, task, queries)
    _promise(_content(answer) == _content(same), "the same seed gives the same answer")
    other = _provoked(attack, backbone, dataclasses.replace(task, seed=1), queries)
    _promise(
        (_content(answer) != _content(other)) == attack.draws,
        "another seed gives another answer, unless it says that it draws nothing",
    )

    def kept_of(q: Query) -> tuple[Any, ...]:
        seed, guidance = q.seed if attack.keeps_seeds else None, None if attack.own_prompts else q.guidance
        return (q.label, seed, guidance, q.steps)

    asked = [kept_of(q) for q in queries if q.label == "church"]
    foretold = attack.asks(targets, len(asked))
    _promise(len(answer.queries) == foretold, f"it answers with as many queries as it says ({foretold})")
    answered = [kept_of(q) for q in answer.queries]
    kept = bool(answered) and all(one in asked for one in answered)
    _promise(kept, "its queries keep the label, the seed and the sampling of those it was given")
    ordered = attack.own_prompts or answered == asked
    _promise(ordered, "its queries come in the order of those it was given")
    if spent.equivalents:
        each_step = predictions_of(queries, backbone.supports("distilled"))
        foreseen = attack.foreseen(1, len(asked), queries[0].steps, each_step).equivalents
        near = abs(foreseen / spent.equivalents - 1) < 0.5
        _promise(near, f"its cost is foreseen ({foreseen}, it took {spent.equivalents})")
    if answer.edit is not None:
        with backbone.attached([answer.edit]):
            pass
        _promise(_snapshot(backbone) == before, "detaching its edit is bit-exact")
    return answer


def _provoked(attack: Attack[Any], backbone: Backbone, task: Task, queries: Sequence[Query]) -> Provocation:
    """An attack's answer, with the victim that its access, budget and oracles allow."""
    judges = {name: Catalog("judges").open(name) for name in attack.knowledge().oracles}
    names = {target.name for target in task.targets}
    budget = attack.budget(len(names), sum(q.label in names for q in queries))

    def draw(asked: Sequence[Query]) -> Tensor:
        return torch.cat([backbone.generate([query]).pixels for query in asked])

    return attack.provoke(victim(attack.access, backbone, draw, judges, budget), task, queries)


def _content(answer: Provocation) -> tuple[Sequence[Query], str | None, str | None]:
    return (list(answer.queries), None if answer.edit is None else answer.edit.id, answer.dtype)


def _declared(plug_in: Eraser | Attack[Any]) -> None:
    """Check that a method says of each of its settings whether it tells the method anything."""
    cls = type(plug_in)
    silent = undeclared(cls)
    _promise(
        not silent,
        f"{cls.__name__} declares what its setting '{', '.join(silent)}' tells it: in `knows`, or in `tuning` if nothing",
    )
    names = {f.name for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    stray = sorted((set(cls.knows) | set(cls.tuning)) - names)
    _promise(not stray, f"{cls.__name__} declares its own settings, and none called '{', '.join(stray)}'")
    twice = sorted(set(cls.knows) & set(cls.tuning))
    _promise(not twice, f"{cls.__name__} declares '{', '.join(twice)}' once, as knowledge or as tuning")
    odd = sorted(kind for kind in cls.knows.values() if kind not in get_args(Kind))
    _promise(not odd, f"{cls.__name__} knows one of {', '.join(get_args(Kind))} by a setting, not '{', '.join(odd)}'")


def check_metric(metric: Metric, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str]) -> None:
    """Check what every metric promises: finite values inside their intervals, and the same ones in any order of images.

    It keeps a value for each image, or none at all if its number exists only for the images together.
    """
    _settings_object(metric)
    beside = [dataclasses.replace(s, pixels=lambda s=s: s.pixels().flip(1)) for s in reversed(shots)] * metric.paired
    numbers = metric.measure(shots, targets, retain, beside)
    if metric.paired:
        alike = metric.measure(shots, targets, retain, list(reversed(shots)))
        apart = [m.interval.value for m in numbers] != [m.interval.value for m in alike]
        _promise(apart, "a metric that compares tells mirrored images from the same ones")
    _promise(bool(numbers), "a metric measures something")
    for m in numbers:
        value, low, high = m.interval
        _promise(low <= value <= high, f"{m.metric}'s value lies in its interval")
        kept = len(m.per_image) == len(m.labels) and len(m.labels) in (0, m.n) and m.n > 0
        _promise(kept, f"{m.metric} keeps a value for each of its images, or for none")
        _promise(_is_json(m.instrument), f"{m.metric} tells of its instrument in JSON")
    turned = metric.measure(list(reversed(shots)), targets, retain, beside)
    same = {m.metric: round(m.interval.value, 9) for m in numbers} == {
        m.metric: round(m.interval.value, 9) for m in turned
    }
    _promise(same, "the order of images does not matter")


def check_analysis(analysis: Analysis, backbone: Backbone, study: Study) -> Findings:
    """Check what every analysis promises: it leaves the model as it was, and the same study gives the same findings.

    Values lie in their intervals, and figures are JSON of the format that the report draws.

    Raises:
        BrokenPromiseError: naming the promise.
    """
    _settings_object(analysis)
    before = _snapshot(backbone)
    findings = analysis.findings(backbone, study)
    _promise(_snapshot(backbone) == before and not backbone.edits, "analysing leaves the model as it was")
    _promise(bool(findings.measurements) and bool(findings.figures), "an analysis finds numbers and figures")
    for m in findings.measurements:
        value, low, high = m.interval
        _promise(low <= value <= high, f"{m.metric}'s value lies in its interval")
        _promise(len(m.per_image) == len(m.labels) and m.n > 0, f"{m.metric} says of what its values are")
    drawn, again = (
        {name: f.as_json() for name, f in each.figures.items()}
        for each in (findings, analysis.findings(backbone, study))
    )
    for name, figure in drawn.items():
        try:
            json.dumps(figure, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BrokenPromiseError(f"figure {name} is JSON ({error})") from error
    _promise(drawn == again, "the same study gives the same findings")
    return findings
