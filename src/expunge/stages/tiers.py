"""Tiers: an attack's own settings, lowered until it fits into a time on this machine, and what was given up for that."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch

from expunge.core.attack import Attack
from expunge.core.backbone import Backbone
from expunge.core.concept import Concept
from expunge.core.cost import Cost, predictions
from expunge.core.errors import ExpungeError
from expunge.core.guidance import guidances
from expunge.core.query import Query
from expunge.settings import presets
from expunge.stages.check import pair_for

FEWEST = 8
"""Queries down to which queries are given up first: an attack on few queries is still the attack."""
PART = 10
"""A setting is lowered to one part in so many before fewer than `FEWEST` queries are attacked."""
ROOM = 0.8
"""The part of a budget that is planned: decoding, judging and loading take the rest."""
QUICK = 0.5
"""Seconds of a prediction below which it is timed again, with as many rows as the attack has."""
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(budget: str) -> float:
    """Seconds in a budget such as ``90s``, ``10m`` or ``1h``.

    Raises:
        ExpungeError: for anything else, and for no time at all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    seconds = 0.0 if match is None else float(match[1]) * UNITS[match[2]]
    if not seconds:
        raise ExpungeError(f"--budget {budget}: expected a time of more than nothing, such as 1m, 10m or 1h")
    return seconds


# what this machine does in a second -----------------------------------------------------------------------------------
class Rate(NamedTuple):
    """Seconds that a model takes here."""

    forward: float
    """For a row of a prediction; where an attached edit changes guided predictions, for a whole guided one."""
    trained: float
    """For a row forward and backward."""
    text: float
    """For encoding a text."""
    drawn: float
    """For a row of the model's own prediction in an image that it draws, with all that an attached edit asks beside it."""
    bare: float
    """For a row of the model without its edits."""

    def of_original(self) -> "Rate":
        """What the model takes without its edits."""
        return self._replace(forward=self.bare, trained=min(self.trained, 3 * self.bare), drawn=self.bare)

    def seconds(self, cost: Cost, texts: int = 0) -> float:
        """What some evaluations of an attack's own should take."""
        return self.forward * cost.forward + self.trained * cost.trained + self.text * texts


def measured(backbone: Backbone, rows: int = 8) -> Rate:
    """How long the model, with the edits that are attached to it, takes for ``rows`` at a time: by a few timed predictions."""
    with torch.no_grad():
        cond, null = backbone.encode([""]), backbone.unconditional()
        texts = _timed(lambda: backbone.encode([""] * rows)) / rows
    scale, steps = presets.generation(backbone)
    steered, pair = bool(guidances(backbone.edits)), pair_for(backbone, backbone.edits)

    def predicted(count: int, *, whole: bool = steered) -> Callable[[], Any]:
        x, t = torch.cat([backbone.noise(i) for i in range(count)]).to(cond.embeds), backbone.timesteps(steps)[0]
        if whole:
            return lambda: backbone.guided(x, t, 0, cond.expand(count), null, scale, {}, pair)
        return lambda: backbone.predict(x, t, cond)

    def back(count: int) -> None:
        x = torch.cat([backbone.noise(i) for i in range(count)]).to(cond.embeds).requires_grad_(True)
        torch.autograd.grad(backbone.predict(x, 1, cond).float().sum(), x)

    with torch.no_grad():
        one = _timed(predicted(1), 1)
        count = rows if one < QUICK else 1
        forward = one if count == 1 else _timed(predicted(count)) / count
        bare = _timed(predicted(count, whole=False)) / count if steered else forward
    trained = 3 * forward if one >= QUICK or steered else _timed(lambda: back(count)) / count
    each = predictions(backbone.supports("distilled"), scale, pair) if steered else 1
    return Rate(forward, trained, texts, drawn=forward / each, bare=bare)


def _timed(work: Callable[[], Any], times: int = 3) -> float:
    """Seconds that a piece of work takes once it is warm: the median of a few."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if torch.accelerator.is_available():  # CUDA, MPS and others answer before they are done
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    once()
    return median(once() for _ in range(times))


# what fits ------------------------------------------------------------------------------------------------------------
class Tier(NamedTuple):
    """What of an attack fits into a budget."""

    attack: Attack[Any]
    """The attack, with its budget setting lowered."""
    queries: list[Query]
    seconds: float
    """What it should take."""
    given_up: Mapping[str, tuple[int, int]]
    """What was lowered, from the attack's own to what fits: its setting, and ``queries``; empty if all of it fits."""

    def line(self) -> str:
        """What was given up."""
        lowered = [f"{name} {own:,} -> {now:,}" for name, (own, now) in self.given_up.items()]
        return f"{', '.join(lowered) or 'nothing given up'} (about {self.seconds:.3g} s)"

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {"seconds": round(self.seconds, 1), "given_up": {k: list(v) for k, v in self.given_up.items()}}


def fitted(
    name: str,
    attack: Attack[Any],
    targets: Sequence[Concept],
    queries: Sequence[Query],
    seconds: float,
    rate: Rate,
    *,
    each_step: int,
    picture: int,
    given: Sequence[str] = (),
) -> Tier:
    """The most of an attack that fits into ``seconds``.

    Queries are given up first, down to `FEWEST`; then its setting that `Attack.spends` names, down to a tenth; then queries
    down to one for each target; then that setting down to one. What costs the same with fewer queries keeps them.

    Args:
        name: of the attack, for errors.
        attack: its settings are never raised.
        targets: what it is to bring back.
        queries: for these; the first of every prompt are kept longest.
        seconds: the budget.
        rate: what the machine does.
        each_step: predictions in a step of a query's image.
        picture: evaluations of an image that the attack wants, as the model ships.
        given: roles of images that need not be made.

    Raises:
        ExpungeError: if one step on one query does not fit.
    """
    wanted = sum(len(wishes) for role, wishes in attack.needs(targets).items() if role not in given)
    own = getattr(attack, attack.spends) if attack.spends else 1

    def taken(setting: int, count: int) -> float:
        own_and_looks = _searching(spending(attack, setting), len(targets), first(queries, count), each_step, rate)
        return own_and_looks + rate.bare * picture * wanted

    most, least, part = len(queries), len(targets), max(1, own // PART)
    few = min(most, max(FEWEST, least))
    if taken(own, least) == taken(own, most):
        few = least = most
    room = ROOM * seconds
    for count, setting in (
        (_most(few, most, lambda n: taken(own, n) <= room), own),
        (few, _most(part, own, lambda n: taken(n, few) <= room)),
        (_most(least, few, lambda n: taken(part, n) <= room), part),
        (least, _most(1, part, lambda n: taken(n, least) <= room)),
    ):
        if count is not None and setting is not None:
            now = {attack.spends: (own, setting), "queries": (most, count)}
            given_up = {key: pair for key, pair in now.items() if key and pair[0] != pair[1]}
            return Tier(spending(attack, setting), first(queries, count), taken(setting, count), given_up)
    raise ExpungeError(
        f"a budget of {seconds:.3g} s is too little for one step of {name} on {least} "
        f"{'query' if least == 1 else 'queries'}, which takes about {taken(1, least) / ROOM:.3g} s here: expected more"
    )


def _searching(attack: Attack[Any], targets: int, queries: Sequence[Query], each_step: int, rate: Rate) -> float:
    """Seconds of an attack on some queries: its evaluations, the texts that it reads, and the images that it looks at."""
    steps = max((query.steps for query in queries), default=0)
    looks = each_step * steps * attack.budget(targets, len(queries))
    cost = attack.foreseen(targets, len(queries), steps, each_step) - Cost(forward=looks)
    rate = rate.of_original() if attack.on_original else rate
    prompts = len({(query.label, query.prompt) for query in queries})
    return rate.seconds(cost, attack.reads(targets, prompts)) + rate.drawn * looks


def spending(attack: Attack[Any], setting: int) -> Attack[Any]:
    """The attack with the setting that it spends at another value."""
    settings: Any = attack  # of a dataclass, as all attacks are
    return replace(settings, **{attack.spends: setting}) if attack.spends else attack


def first(queries: Sequence[Query], count: int) -> list[Query]:
    """``count`` of some queries in their order: of every target as many, of each its prompts' first seeds before second ones.

    So the choice depends on nothing but their number.
    """
    of_prompt: dict[tuple[str | None, str], int] = {}
    turns: list[tuple[int, int]] = []
    for place, query in enumerate(queries):
        prompt = (query.label, query.prompt)
        of_prompt[prompt] = of_prompt.get(prompt, -1) + 1
        turns.append((of_prompt[prompt], place))
    of_label: dict[str | None, int] = {}
    ranked: list[tuple[int, int]] = []
    for _, place in sorted(turns):
        label = queries[place].label
        of_label[label] = of_label.get(label, -1) + 1
        ranked.append((of_label[label], place))
    kept = {place for _, place in sorted(ranked)[:count]}
    return [query for place, query in enumerate(queries) if place in kept]


def _most(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number from ``low`` to ``high`` that fits, where all below one that fits do; None if ``low`` does not."""
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
