"""Check: a few images before and after an edit, to catch one that does nothing, ruins images, or harms its neighbours."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from expunge import testbed
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import fill
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.guidance import pairing
from expunge.core.judge import Judge
from expunge.core.query import queries
from expunge.core.record import Interval, wilson
from expunge.settings import presets
from expunge.stages import generate
from expunge.stages.verdict import Check, Seen, mean

SEED = 40_000
"""First seed of these images: neither of the dev nor of the test parts of the concept sets."""
EVERYDAY = ("dog", "house", "car", "apple")
"""What an edit should leave alone when nobody says what to keep; the testbed has words of its own, near the targets."""
MOST = 3
"""Targets, and words to keep, that are looked at."""
ROUGH = 0.8
"""From which roughness on an image is taken for noise, where no judge tells: the testbed's images have 0.2 to 0.6."""
ORACLES = {"testbed": "testbed:network=b"}
"""Who decides if nobody is named, by kind of model: never the judge that reports."""
Images = UInt8[Tensor, "b H W 3"]


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
    kept = neighbours(targets, retain, backbone.kind)
    words = [*aims, *kept]
    name = judge or ("testbed" if backbone.kind == "testbed" else None)
    asked: Judge | None = None if name is None else Catalog("judges").open(name)
    knows = {word: asked if asked is not None and known(asked, word) else None for word in words}
    pair = pair_for(backbone, [*backbone.edits, edit])
    before = look(backbone, [], words, count, true_cfg=pair)
    after = look(backbone, [edit], words, count, true_cfg=pair)
    seen = [
        Seen(
            word=word,
            moved=_difference(before[word], after[word]) / max(_between(before[word]), 1e-6),
            before=rate([shown(knows[word], word, before[word])]),
            after=rate([shown(knows[word], word, after[word])]),
        )
        for word in words
    ]
    pictures_before, pictures = (
        100 * mean([float(ok) for word in words for ok in _pictures(asked, side[word])]) for side in (before, after)
    )
    return Check(
        images=count,
        judge=name if any(knows.values()) else None,
        targets=seen[: len(aims)],
        kept=seen[len(aims) :],
        more=len(targets) - len(aims),
        pictures=pictures,
        pictures_before=pictures_before,
    )


def enough(images: int) -> int:
    """``images`` a word, if they are enough.

    Raises:
        ExpungeError: for fewer than two.
    """
    if images < 2:
        raise ExpungeError(f"a check on {images} images a word: expected 2 or more, whose difference is the measure")
    return images


def neighbours(targets: Sequence[str], retain: Sequence[str], kind: str = "") -> list[str]:
    """What should stay as it is: the words to keep, or what the model draws well; none that shares a word with a target.

    On the testbed these are near the targets in kind.
    """
    aims = {word for target in targets for word in target.lower().split()}
    usual = testbed.near(targets) if kind == "testbed" else EVERYDAY
    apart = [[w for w in words if not aims & set(w.lower().split())][:MOST] for words in (retain, usual)]
    return apart[0] or apart[1]


def warn(check: Check) -> None:
    """Say what is wrong."""
    for line in check.problems:
        warnings.warn(line, ExpungeWarning, stacklevel=3)


def pair_for(backbone: Backbone, edits: Sequence[Edit]) -> float:
    """Scale of a distilled model's pair of predictions where one of some edits acts through it alone; 1, none, otherwise."""
    return presets.true_cfg(backbone) if pairing(edits) else 1.0


def look(
    backbone: Backbone,
    edits: Sequence[Edit],
    words: Sequence[str],
    count: int,
    seed: int = SEED,
    true_cfg: float = 1.0,
) -> Mapping[str, Images]:
    """``count`` images of each word, with ``edits`` attached; the same seeds for every word.

    ``true_cfg`` is the scale of a distilled model's pair of predictions, 1 for none.
    """
    guidance, steps = presets.generation(backbone)
    template = presets.check_prompt(backbone)
    asked = queries([(fill(template, w), w) for w in words], count, seed, guidance, steps, true_cfg=true_cfg)
    with backbone.attached(edits):
        pixels = torch.cat(list(generate.render(backbone, asked)))
    return dict(zip(words, pixels.split(count), strict=True))


def known(judge: Judge, word: str) -> bool:
    """Whether a judge can tell what ``word`` names."""
    try:
        judge.label_ids(word)
    except ExpungeError:
        return False
    return True


def oracle(given: str | None, kind: str, of: str) -> str:
    """The judge that settings are chosen by, which never reports: the one that is ``given``, or that of the kind of model.

    Raises:
        ExpungeError: if nobody is given, and there is none; ``of`` says for what.
    """
    name = given or ORACLES.get(kind)
    if name is None:
        raise ExpungeError(f"no judge is named for {of}: expected one that tells what its images show (--judge)")
    return name


def judge_of(name: str, words: Sequence[str]) -> Judge:
    """The judge that is called so, which knows all words.

    Raises:
        ExpungeError: naming one that it does not know.
    """
    judge: Judge = Catalog("judges").open(name)
    for word in words:
        if not known(judge, word):
            raise ExpungeError(f"judge {name} does not know '{word}': expected one that knows targets and neighbours")
    return judge


def _difference(a: Images, b: Images) -> float:
    return float((a.float() - b.float()).abs().mean())


def _between(images: Images) -> float:
    """Mean difference between images of one prompt and different seeds."""
    return mean([_difference(a[None], b[None]) for a, b in pairwise(images)])


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
    valid = None if judge is None else judge.valid(images)
    return valid.tolist() if valid is not None else [0 < rough < ROUGH for rough in roughness(images).tolist()]


def shown(judge: Judge | None, word: str, images: Images) -> list[bool] | None:
    """Whether each image shows ``word``, as the judge has it; None without one."""
    return None if judge is None else judge.shows(images, word).tolist()


def rate(shown: Sequence[list[bool] | None]) -> Interval | None:
    """The share of images that show what they should, in percent."""
    known = [s for seen in shown if seen is not None for s in seen]
    return wilson(sum(known), len(known)) if known else None
