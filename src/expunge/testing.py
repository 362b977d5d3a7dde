"""Promises that every plug-in keeps, for your own tests: `check_eraser`, `check_attack`, `check_metric`."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from expunge.core.attack import Attack
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept
from expunge.core.edit import Edit, Weights, fingerprint
from expunge.core.eraser import Eraser, Task, settings_of
from expunge.core.errors import ExpungeError
from expunge.core.metric import Metric, Shot
from expunge.core.query import Query
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


def _snapshot(backbone: Backbone) -> str:
    return fingerprint(backbone.tensors([*backbone.group("full"), *backbone.group("text-encoder")]))


def check_eraser(eraser: Eraser, backbone: Backbone, task: Task | None = None) -> Edit:
    """Check what every eraser promises, on a small backbone; returns its edit.

    It leaves the model as it was; the same seed gives the same edit; the edit changes what is generated or at least what is
    predicted; it survives saving and loading; attaching it twice is refused; detaching it is bit-exact.

    Raises:
        BrokenPromiseError: naming the promise.
    """
    task = task or Task(targets=[Concept(name="church")], retain=["dog"])
    _settings_object(eraser)
    try:
        json.dumps(settings_of(eraser))
    except TypeError as error:
        raise BrokenPromiseError("settings are JSON") from error
    before = _snapshot(backbone)
    last = list(eraser.steps(backbone, task))
    _promise(bool(last), "an eraser yields at least one step")
    edit = last[-1].edit
    _promise(_snapshot(backbone) == before and not backbone.edits, "erasing leaves the model as it was")
    again = list(eraser.steps(backbone, task))[-1].edit
    _promise(again.id == edit.id, "the same seed gives the same edit")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.safetensors"
        save_edit(edit, path)
        loaded = load_edit(path)
    _promise(loaded.id == edit.id and type(loaded) is type(edit), "an edit survives saving and loading")
    _check_attached(loaded, backbone, task, before)
    return edit


def _check_attached(edit: Edit, backbone: Backbone, task: Task, before: str) -> None:
    asked = [Query(prompt=t.name, seed=3, guidance=3.0, steps=2) for t in task.targets]
    plain = backbone.generate(asked).latents
    backbone.attach(edit)
    try:
        backbone.attach(edit)
    except ExpungeError:
        pass
    else:
        raise BrokenPromiseError("attaching twice is refused")
    if isinstance(edit, Weights):
        now = backbone.tensors(list(edit.replaced))
        _promise(
            all(torch.equal(now[n], edit.replaced[n].to(now[n])) for n in now),
            "one edit's tensors are the model's, bit for bit",
        )
    changed = backbone.generate(asked).latents
    _promise(bool(changed.isfinite().all()), "an edited model gives finite images")
    _promise(not torch.equal(plain, changed), "an edit changes what its target's prompt gives")
    backbone.detach(edit)
    _promise(_snapshot(backbone) == before, "detaching is bit-exact")
    _promise(torch.equal(backbone.generate(asked).latents, plain), "after detaching the same seed gives the same image")


def check_attack(attack: Attack, backbone: Backbone, queries: Sequence[Query]) -> list[Query]:
    """Check what every attack promises: it leaves the model as it was, and gives the same queries for the same seed."""
    _settings_object(attack)
    before = _snapshot(backbone)
    targets = [Concept(name="church")]
    found = list(attack.queries(backbone, targets, queries, seed=0))
    _promise(_snapshot(backbone) == before, "attacking leaves the model as it was")
    _promise(found == list(attack.queries(backbone, targets, queries, seed=0)), "the same seed gives the same queries")
    return found


def check_metric(metric: Metric, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str]) -> None:
    """Check what every metric promises: finite values inside their intervals, and the same ones in any order of images."""
    _settings_object(metric)
    found = metric.measure(shots, targets, retain)
    _promise(bool(found), "a metric measures something")
    for m in found:
        value, low, high = m.interval
        _promise(low <= value <= high, f"{m.metric}'s value lies in its interval")
        _promise(len(m.per_image) == m.n > 0, f"{m.metric} keeps its values per image")
    turned = metric.measure(list(reversed(shots)), targets, retain)
    same = {m.metric: round(m.interval.value, 9) for m in found} == {
        m.metric: round(m.interval.value, 9) for m in turned
    }
    _promise(same, "the order of images does not matter")
