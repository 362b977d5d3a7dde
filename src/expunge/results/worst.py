"""The images in which attacks brought most back, worst first."""

from collections.abc import Sequence
from typing import Any

from expunge.results.finished import Finished, Value
from expunge.results.meanings import MISSED, plain

MOST = 12
"""Images of each row and attack at most."""
SURE = "confidence"
"""The number that says how sure the judge is of each image, where a plan asks for it."""


def worst(finished: Sequence[Finished], most: int = MOST) -> list[dict[str, Any]]:
    """Images of all models but the original under attack that show their target: those that the judge is surest of first.

    Where several judges looked, the first that was asked counts.

    A line an image: its row, attack and folder, its number among the folder's images with its label, and how sure the judge is
    (None where the plan did not ask).
    """
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    attacked = [one for one in finished if one.group.kind == "attack"]
    counting = _counting(attacked)
    sure: dict[tuple[str, ...], Finished] = {}
    for one in finished:
        if _values(one, SURE) is not None:
            sure.setdefault((one.method, one.images, _judge(one)), one)
            sure.setdefault((one.method, one.images), one)
    for one in attacked:
        shown = None if counting is None or counting[1] != one.variant else _values(one, counting[0])
        if shown is None or one.method == "original":
            continue
        judged = sure.get((one.method, one.images, _judge(one)), sure.get((one.method, one.images)))
        scores = {} if judged is None else _numbered(_values(judged, SURE) or ())
        own = lines.setdefault((one.method, one.group.name), [])
        known = {(line["images"], line["label"], line["number"]) for line in own}
        for (label, number), value in _numbered(shown).items():
            if value == 0 and (one.folder, label, number) not in known:
                own.append(
                    {
                        "method": one.method,
                        "attack": one.group.name,
                        "seed": one.seed,
                        "run": one.run,
                        "images": one.folder,
                        "label": label,
                        "number": number,
                        "sure": round(scores[label, number], 4) if scores else None,
                    }
                )
    return [line for own in lines.values() for line in sorted(own, key=lambda r: -(r["sure"] or 0.0))[:most]]


def _counting(attacked: Sequence[Finished]) -> tuple[str, str] | None:
    """The first number there is that counts images without the target, with the variant of the first judge that counts it."""
    return next(((name, one.variant) for name in MISSED for one in attacked if _values(one, name) is not None), None)


def _judge(one: Finished) -> str:
    """Who looked."""
    return str(one.records[0]["provenance"].get("settings", {}).get("judge", ""))


def _numbered(values: Sequence[Value]) -> dict[tuple[str, int], float]:
    """Values by their label and their number among those with it: metrics go through a folder in orders of their own."""
    numbers: dict[str, int] = {}
    found: dict[tuple[str, int], float] = {}
    for value in values:
        number = numbers[value.label] = numbers.get(value.label, -1) + 1
        found[value.label, number] = value.value
    return found


def _values(one: Finished, metric: str) -> Sequence[Value] | None:
    """The values of a metric of a measurement, if it has some."""
    for record, values in zip(one.records, one.values, strict=True):
        if plain(record["metric"]) == metric and values:
            return values
    return None
