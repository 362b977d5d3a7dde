"""What people said of a sheet's images, beside what a judge says of them and beside each other."""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from expunge.core.digest import sha256
from expunge.core.errors import ExpungeError, unknown
from expunge.core.record import Interval, wilson
from expunge.report.labelling import NO_PICTURE, NONE
from expunge.store.atomic import FORMAT, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.core.judge import Judge

BATCH = 100


@final
@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one person, or a judge, says the items show."""

    who: str
    said: Mapping[int, str]
    """A choice by item; items that were left out are absent."""


@final
@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two agree on the items that both answered."""

    one: str
    other: str
    percent: Interval
    """Items with the same answer, with Wilson's interval."""
    kappa: float | None
    """Cohen's; None where chance alone would agree on everything."""
    n: int
    confusion: Mapping[str, Mapping[str, int]]
    """Items by the answer of ``one``, then of ``other``."""

    def as_json(self) -> dict[str, Any]:
        """One line of JSON Lines."""
        numbers = {name: round(value, 3) for name, value in self.percent._asdict().items()}
        kappa = None if self.kappa is None else round(self.kappa, 4)
        pair = {"format": FORMAT, "metric": "agreement", "unit": "%", "one": self.one, "other": self.other}
        return {**pair, **numbers, "kappa": kappa, "n": self.n, "confusion": self.confusion}


def read(files: Sequence[Path], key: Path, judge: str | None = "testbed") -> list[Agreement]:
    """The agreement of each person with the judge (if one is named), and of each two people.

    Raises:
        ExpungeError: if answers are damaged, of another sheet, or an image has changed since; or nobody is to be compared.
    """
    sheet = read_json(key)
    if sheet.get("format") != FORMAT or not {"sheet", "choices", "items"} <= set(sheet):
        raise ExpungeError(f"'{key}' is no key of a sheet: expected the file that `expunge label` wrote beside it")
    people = [answers(file, sheet) for file in files]
    twice = [who for who, n in Counter(person.who for person in people).items() if n > 1]
    if twice:
        raise ExpungeError(f"two files hold answers of '{twice[0]}': expected one for each person")
    pairs = list(combinations(people, 2))
    if judge is None and not pairs:
        raise ExpungeError("one person and no judge: expected a judge, or answers of several people")
    if judge is not None:
        wanted = sorted({item for person in people for item in person.said})
        machine = judged(judge, sheet, wanted)
        pairs = [*((person, machine) for person in people), *pairs]
    return [agreement(one, other, sheet["choices"]) for one, other in pairs]


def answers(file: Path, key: Mapping[str, Any]) -> Answers:
    """The answers in a JSON or CSV file that a sheet saved.

    Raises:
        ExpungeError: if it is damaged, of another sheet, or says what could not be chosen.
    """
    sheet, who, said = _saved(file)
    if sheet != key["sheet"]:
        raise ExpungeError(f"'{file}' answers sheet '{sheet}': expected answers of sheet '{key['sheet']}'")
    items = {item["item"] for item in key["items"]}
    for item, choice in said.items():
        if item not in items:
            raise ExpungeError(f"'{file}' answers item {item}: expected items from 1 to {len(items)}")
        if choice not in key["choices"]:
            raise unknown(f"answer in '{file}':", choice, key["choices"])
    if not said:
        raise ExpungeError(f"'{file}' holds no answers: expected one or more")
    return Answers(who=who or file.stem, said=said)


def _saved(file: Path) -> tuple[str, str, dict[int, str]]:
    """Sheet, person and answers of a file."""
    try:
        if file.suffix == ".csv":
            with file.open(newline="", encoding="utf-8-sig") as opened:  # spreadsheets begin a file with a mark
                rows = list(csv.DictReader(opened))
            for number, row in enumerate(rows, 1):
                if None in row or None in row.values():
                    raise ValueError(f"answer {number} has more or fewer fields than the first line names")
            said = {int(row["item"]): row["answer"] for row in rows}
            return rows[0]["sheet"], rows[0]["person"], said
        content = read_json(file)
        said = {int(item): str(choice) for item, choice in content["answers"].items()}
        return str(content["sheet"]), str(content["person"]), said
    except (csv.Error, OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ExpungeError(f"'{file}' is damaged: expected answers that a sheet saved ({error})") from error


def judged(name: str, key: Mapping[str, Any], items: Sequence[int]) -> Answers:
    """What a judge says: the choice that its likeliest label means, ``none``, or ``no picture``.

    A judge is a network: this is the one thing in this room that needs torch, and it imports it when it is called.

    Raises:
        ExpungeError: if it does not know a choice, or an image is not what was shown.
    """
    import torch

    from expunge.core.catalog import Catalog
    from expunge.core.judge import Judge
    from expunge.store.pixels import read_pixels

    judge: Judge = Catalog("judges").open(name)
    concepts = [c for c in key["choices"] if c not in (NONE, NO_PICTURE)]
    means = {i: c for c in reversed(concepts) for i in judge.label_ids(c)}
    rows = [row for row in key["items"] if row["item"] in set(items)]
    said: dict[int, str] = {}
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        pixels = [read_pixels(_unchanged(row)) for row in batch]
        if len({p.shape for p in pixels}) > 1:
            raise ExpungeError(f"images of {len({p.shape for p in pixels})} sizes: expected one size for a judge")
        stacked = torch.stack(pixels)
        with torch.no_grad():
            valid = judge.valid(stacked)
            if judge.ranks:
                first = [means.get(label, NONE) for label in judge.scores(stacked).argmax(1).tolist()]
            else:
                first = _detected(judge, stacked, concepts)
        for row, label, ok in zip(batch, first, [True] * len(batch) if valid is None else valid.tolist(), strict=True):
            said[row["item"]] = label if ok else NO_PICTURE
    return Answers(who=f"judge {name}", said=said)


def _detected(judge: "Judge", images: "Tensor", concepts: Sequence[str]) -> list[str]:
    """Of what a detector sees in each image, the concept that it is surest of; none where it sees none of them."""
    sure = [judge.confidence(images, concept).tolist() for concept in concepts]
    seen = [judge.shows(images, concept).tolist() for concept in concepts]
    found: list[str] = []
    for i in range(len(images)):
        there = [(sure[c][i], concept) for c, concept in enumerate(concepts) if seen[c][i]]
        found.append(max(there)[1] if there else NONE)
    return found


def _unchanged(row: Mapping[str, Any]) -> Path:
    path = Path(row["file"])
    if not path.is_file() or sha256(path) != row["sha256"]:
        raise ExpungeError(f"'{path}' is gone or has changed: expected the image that was labelled")
    return path


def agreement(one: Answers, other: Answers, choices: Sequence[str]) -> Agreement:
    """How far two agree.

    Raises:
        ExpungeError: if they have no item in common.
    """
    both = sorted(set(one.said) & set(other.said))
    if not both:
        raise ExpungeError(f"{one.who} and {other.who} answered no item in common: expected one or more")
    counts = Counter((one.said[item], other.said[item]) for item in both)
    same = sum(n for (a, b), n in counts.items() if a == b)
    return Agreement(
        one=one.who,
        other=other.who,
        percent=wilson(same, len(both)),
        kappa=kappa(counts),
        n=len(both),
        confusion={
            a: {b: counts[a, b] for b in choices if counts[a, b]} for a in choices if any(counts[a, b] for b in choices)
        },
    )


def kappa(counts: Mapping[tuple[str, str], int]) -> float | None:
    r"""Cohen's kappa (1960, Educ. Psychol. Meas. 20:37), from how often each pair of answers was given.

    .. math:: \kappa = \frac{p_o - p_e}{1 - p_e},\quad p_e = \sum_k p_{k\cdot}\, p_{\cdot k}
    """
    n = sum(counts.values())
    ones, others = Counter[str](), Counter[str]()
    for (a, b), count in counts.items():
        ones[a] += count
        others[b] += count
    observed = sum(count for (a, b), count in counts.items() if a == b) / n
    expected = sum(ones[k] * others[k] for k in ones) / n**2
    return None if math.isclose(expected, 1) else (observed - expected) / (1 - expected)


def table(agreements: Sequence[Agreement]) -> str:
    """Agreements as text: a line a pair, and what each pair saw differently most often."""
    lines = [f"{'':32} {'agree %':>22} {'kappa':>7} {'n':>6}"]
    for a in agreements:
        percent = f"{a.percent.value:.1f} [{a.percent.low:.1f}, {a.percent.high:.1f}]"
        shown = "–" if a.kappa is None else f"{a.kappa:.3f}"
        lines.append(f"{a.one + ', ' + a.other:32} {percent:>22} {shown:>7} {a.n:>6}")
        apart = Counter({(x, y): n for x, row in a.confusion.items() for y, n in row.items() if x != y})
        lines += [f"    {n} x {x} for {a.one}, {y} for {a.other}" for (x, y), n in apart.most_common(3)]
    return "\n".join(lines)
