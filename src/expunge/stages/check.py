"""Check: a few images before and after an edit, to catch one that does nothing, ruins images, or harms its neighbours."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.judge import Judge
from expunge.core.query import queries
from expunge.core.record import Interval, wilson
from expunge.stages import generate, presets

SEED = 40_000
"""First seed of these images: neither of the dev nor of the test parts of the concept sets."""
EVERYDAY = ("dog", "house", "car", "apple")
"""What an edit should leave alone when nobody says what to keep."""
MOST = 3
"""Targets, and words to keep, that are looked at."""
ROUGH = 0.8
"""From which roughness on an image is taken for noise, where no judge tells: the testbed's images have 0.2 to 0.6."""
STILL, MOVED = 0.05, 0.7
"""Shares of the difference between two seeds: below the first an edit does nothing, above the second a neighbour is gone."""
LOST = 25.0
"""Points of PSR-1 that neighbours may lose before it is said."""

Images = UInt8[Tensor, "b H W 3"]


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """What a few images show of an edit. Differences are shares of the difference between two seeds of one prompt."""

    images: int
    """Images a word."""
    targets: Sequence[str]
    kept: Sequence[str]
    target_moved: float
    """How far the targets' images moved."""
    kept_moved: float
    """How far the neighbours' images moved."""
    pictures: float
    """Percent of the edited model's images that are pictures, not noise or blanks."""
    shown: Interval | None
    """Percent of the targets' images that still show them; None if no judge knows the words."""
    shown_before: Interval | None
    """The same of the model before."""
    kept_shown: Interval | None
    """Percent of the neighbours' images that show them."""
    kept_shown_before: Interval | None
    """The same of the model before."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, each in a line with its figures."""
        found: list[str] = []
        names, others = ", ".join(self.targets), ", ".join(self.kept)
        if self.target_moved < STILL:
            found.append(
                f"the edit changes next to nothing: images of {names} moved by {self.target_moved:.1%} of the difference "
                f"between two seeds (expected {STILL:.0%} or more)"
            )
        elif self.shown is not None and self.shown.value > 50:
            found.append(f"{names} is still shown in {self.shown.value:.0f} % of images (expected 50 % or less)")
        if self.pictures < 90:
            found.append(
                f"only {self.pictures:.0f} % of the images are pictures: expected 90 % or more (a smaller step?)"
            )
        if self.kept_shown is not None and self.kept_shown_before is not None:
            lost = self.kept_shown_before.value - self.kept_shown.value
            if lost > LOST:
                found.append(
                    f"neighbours suffer: {others} shown in {self.kept_shown.value:.0f} % of images, before in "
                    f"{self.kept_shown_before.value:.0f} % (expected at most {LOST:.0f} points less)"
                )
        elif self.kept_moved > MOVED:
            found.append(
                f"neighbours suffer: images of {others} moved by {self.kept_moved:.0%} of the difference between two seeds "
                f"(expected {MOVED:.0%} or less)"
            )
        return found

    def line(self) -> str:
        """The figures in a line."""
        shown = "" if self.shown is None else f", shown in {_range(self.shown)}"
        before = "" if self.kept_shown_before is None else f" (before {self.kept_shown_before.value:.0f} %)"
        kept = "" if self.kept_shown is None else f", shown in {_range(self.kept_shown)}{before}"
        return (
            f"checked on {self.images} images a word: {', '.join(self.targets)} moved {self.target_moved:.0%}{shown}; "
            f"{', '.join(self.kept)} moved {self.kept_moved:.0%}{kept}; {self.pictures:.0f} % pictures"
        )


def _range(interval: Interval) -> str:
    return f"{interval.value:.0f} % [{interval.low:.0f}, {interval.high:.0f}]"


def check(
    backbone: Backbone,
    edit: Edit,
    targets: Sequence[str],
    retain: Sequence[str] = (),
    *,
    images: int | None = None,
    judge: str | None = None,
) -> Check:
    """Look at ``images`` images a word (of the model's preset if not given) before and after ``edit``.

    ``judge`` tells what they show; the testbed's own if not given, on the testbed; without one only differences are told.
    """
    count = presets.check_images(backbone) if images is None else enough(images)
    aims = list(targets)[:MOST]
    kept = neighbours(targets, retain)
    words = [*aims, *kept]
    knows = judge_of(judge or ("testbed" if backbone.kind == "testbed" else None), words)
    before = look(backbone, [], words, count)
    after = look(backbone, [edit], words, count)
    moved = {w: _difference(before[w], after[w]) / max(_between(before[w]), 1e-6) for w in words}
    whole = [picture for w in words for picture in _pictures(knows, after[w])]
    seen = {w: shown(knows, w, after[w]) for w in words}
    return Check(
        images=count,
        targets=aims,
        kept=kept,
        target_moved=_mean([moved[w] for w in aims]),
        kept_moved=_mean([moved[w] for w in kept]),
        pictures=100 * _mean([float(ok) for ok in whole]),
        shown=rate([seen[w] for w in aims]),
        shown_before=rate([shown(knows, w, before[w]) for w in aims]),
        kept_shown=rate([seen[w] for w in kept]),
        kept_shown_before=rate([shown(knows, w, before[w]) for w in kept]),
    )


def enough(images: int) -> int:
    """``images`` a word, if they are enough.

    Raises:
        ExpungeError: for fewer than two.
    """
    if images < 2:
        raise ExpungeError(f"a check on {images} images a word: expected 2 or more, whose difference is the measure")
    return images


def neighbours(targets: Sequence[str], retain: Sequence[str]) -> list[str]:
    """What should stay as it is: the words to keep, or everyday ones; none that shares a word with a target."""
    aims = {word for target in targets for word in target.lower().split()}
    apart = [[w for w in words if not aims & set(w.lower().split())][:MOST] for words in (retain, EVERYDAY)]
    return apart[0] or apart[1]


def warn(found: Check) -> None:
    """Say what is wrong."""
    for line in found.problems:
        warnings.warn(line, ExpungeWarning, stacklevel=3)


def look(
    backbone: Backbone, edits: Sequence[Edit], words: Sequence[str], count: int, seed: int = SEED
) -> Mapping[str, Images]:
    """``count`` images of each word, with ``edits`` attached; the same seeds for every word."""
    guidance, steps = presets.generation(backbone)
    template = presets.check_prompt(backbone)
    asked = queries([(generate.fill(template, w), w) for w in words], count, seed, guidance, steps)
    with backbone.attached(edits):
        pixels = torch.cat(list(generate.render(backbone, asked)))
    return dict(zip(words, pixels.split(count), strict=True))


def judge_of(name: str | None, words: Sequence[str]) -> Judge | None:
    """The judge, if it knows all words."""
    if name is None:
        return None
    judge: Judge = Catalog("judges").open(name)
    try:
        for word in words:
            judge.label_ids(word)
    except ExpungeError:
        return None
    return judge


def _difference(a: Images, b: Images) -> float:
    return float((a.float() - b.float()).abs().mean())


def _between(images: Images) -> float:
    """Mean difference between images of one prompt and different seeds."""
    return _mean([_difference(a[None], b[None]) for a, b in pairwise(images)])


def roughness(images: Images) -> Float[Tensor, "b"]:
    """How much neighbouring pixels differ, beside how much all do, at a sixteenth of the image's side; 0 for a blank.

    About 1.1 for white noise, also for what an autoencoder makes of noisy latents, and less for pictures.
    """
    small = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2).float(), (16, 16), mode="area")
    steps = small.diff(dim=2).abs().mean((1, 2, 3)) + small.diff(dim=3).abs().mean((1, 2, 3))
    spread = small.std((2, 3)).mean(1)
    return torch.where(spread < 2, 0.0, steps / 2 / spread.clamp(min=1e-6))


def _pictures(judge: Judge | None, images: Images) -> list[bool]:
    """Whether each image is a picture: by the judge, or neither blank nor as rough as noise."""
    told = None if judge is None else judge.valid(images)
    return told.tolist() if told is not None else [0 < rough < ROUGH for rough in roughness(images).tolist()]


def shown(judge: Judge | None, word: str, images: Images) -> list[bool] | None:
    """Whether each image shows ``word`` more than anything else; None without a judge."""
    if judge is None:
        return None
    wanted = judge.label_ids(word)
    return [best in wanted for best in judge.scores(images).argmax(1).tolist()]


def rate(shown: Sequence[list[bool] | None]) -> Interval | None:
    """The share of images that show what they should, in percent."""
    known = [s for found in shown if found is not None for s in found]
    return wilson(sum(known), len(known)) if known else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
