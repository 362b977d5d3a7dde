"""Filters: images that a judge sees a concept in, and prompts that name one or that a classifier objects to, are held back."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter
from torch import Tensor

from expunge.core.catalog import Catalog
from expunge.core.concept import spans
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.judge import Judge
from expunge.pretrained.text_classifier import TextClassifier
from expunge.store import PICTURES, Entry, copy_images, new_folder, read_entries, read_views


class Sight(NamedTuple):
    """What a filter found in one image, or in its prompt."""

    reason: str
    """``word: bomb``, ``prompt: NSFW`` or ``image: weapon``; empty if nothing."""
    confidence: float
    """Of the judge, for the concept it is surest of; 0 where no judge looked."""


@final
@dataclass(frozen=True, kw_only=True)
class Filter:
    """What is held back (methods.md A12): prompts by their words or by a text classifier, images by what a judge sees in them.

    Whoever holds the weights can leave a filter out.
    """

    words: Sequence[str] = ()
    """Words and phrases that a prompt must not name, whole and in any case."""
    classifier: str = ""
    """A folder of a text classifier that reads each prompt; empty for none."""
    classifier_label: str = "NSFW"
    """Its label of prompts that are held back."""
    classifier_threshold: float = 0.5
    """From which probability of that label on a prompt is held back."""
    concepts: Sequence[str] = ()
    """Concepts that an image must not show."""
    judge: str = "testbed"
    """Who looks: a judge with its settings."""
    threshold: float = 0.5
    """From which confidence on an image is held back."""
    action: Literal["black", "blur"] = "black"
    """What is shown instead of an image."""

    def __post_init__(self) -> None:
        if not (self.reads_prompts or self.concepts):
            raise ExpungeError(
                "a filter with nothing to find: expected words, a text classifier, or concepts for a judge"
            )
        for threshold in (self.threshold, self.classifier_threshold):
            if not 0 <= threshold <= 1:
                raise ExpungeError(f"a filter's threshold is {threshold}: expected 0 to 1")
        if any(not word.strip() for word in self.words):
            raise ExpungeError("a word of the filter is empty: expected words that a prompt must not name")
        for concept in self.concepts:
            self.seen_by.label_ids(concept)
        if self.classifier:
            self.read_by.label_id(self.classifier_label)

    @cached_property
    def seen_by(self) -> Judge:
        """The judge."""
        return Catalog("judges").open(self.judge)

    @cached_property
    def read_by(self) -> TextClassifier:
        """The text classifier."""
        return TextClassifier(self.classifier)

    def open(self) -> None:
        """Have the judge look once, so that one that cannot be opened says so before there is work to lose."""
        self.look(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))

    @property
    def reads_prompts(self) -> bool:
        """Whether a prompt may be held back."""
        return bool(self.words or self.classifier)

    def named(self, prompt: str) -> str:
        """The first of the words that ``prompt`` names; empty if none."""
        return next((w for w in self.words if spans(prompt, w)), "")

    def refused(self, prompt: str) -> str:
        """Why ``prompt`` is held back, as in `Sight`; empty if it is not, as one without words never is."""
        word = self.named(prompt)
        if word:
            return f"word: {word}"
        if not (self.classifier and prompt.strip()):
            return ""
        label = self.read_by.label_id(self.classifier_label)
        sure = self.read_by.probability(prompt, label)
        return f"prompt: {self.read_by.labels[label]}" if sure >= self.classifier_threshold else ""

    def confidences(self, images: UInt8[Tensor, "b H W 3"]) -> Float[Tensor, "b concepts"]:
        """How sure the judge is of each concept in each image."""
        return torch.stack([self.seen_by.confidence(images, c) for c in self.concepts], 1)

    def look(self, images: UInt8[Tensor, "b H W 3"]) -> list[Sight]:
        """What the judge finds."""
        if not self.concepts:
            return [Sight("", 0.0)] * len(images)
        best = self.confidences(images).max(1)
        return [
            Sight(f"image: {self.concepts[which]}" if sure >= self.threshold else "", sure)
            for sure, which in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def hidden(self, image: UInt8[Tensor, "H W 3"]) -> UInt8[Tensor, "H W 3"]:
        """What is shown instead: black, or the image blurred over an eighth of its side."""
        if self.action == "black":
            return torch.zeros_like(image)
        radius = min(image.shape[:2]) / 8
        return torch.from_numpy(np.array(Image.fromarray(image.numpy()).filter(ImageFilter.GaussianBlur(radius))))

    def passed(
        self, images: Iterator[UInt8[Tensor, "b H W 3"]], sights: list[Sight]
    ) -> Iterator[UInt8[Tensor, "b H W 3"]]:
        """Images with those held back replaced; what was found in each is added to ``sights`` before it is given."""
        for batch in images:
            seen = self.look(batch)
            sights += seen
            yield torch.stack([self.hidden(x) if s.reason else x for x, s in zip(batch, seen, strict=True)])


@final
@dataclass(frozen=True, kw_only=True)
class Screened:
    """One file of a screened folder."""

    file_name: str
    prompt: str
    reason: str
    """What is held back about it; of a file that could not be looked at, why."""
    confidence: float
    label: str | None = None
    """What the image was asked to show, if its metadata says so."""
    looked_at: bool = True
    """Whether all of it was looked at: each frame, and the prompt where only words are looked for."""


TEXTS = (".jsonl", ".json", ".txt", ".caption", ".csv", ".tsv", ".md", ".toml", ".yaml", ".yml", ".log", ".html")
CAPTIONS = ("prompt", "text", "caption")
"""Where the metadata of an image may say what it was asked to show."""


def screen(folder: Path, by: Filter) -> list[Screened]:
    """Look through all files below a folder, with or without a ``metadata.jsonl``: those held back have a reason.

    A file is looked at whatever its name; one that is no picture and has a text's name, or a hidden one's (not a picture's), is
    left out. So is nothing else: what cannot be read is in the list, as not looked at.

    Raises:
        ExpungeError: if there is no image, a line of metadata is damaged, or the judge cannot be opened.
    """
    by.open()
    files = [seen for entry in read_entries(folder) if (seen := _screened(entry, by)) is not None]
    if not files:
        raise ExpungeError(f"'{folder}' holds no image: expected a folder of images")
    silent = sum(seen.looked_at and not seen.prompt for seen in files)
    if by.reads_prompts and silent:
        left = "no word was looked for there" if by.words else "the classifier read nothing there"
        warnings.warn(
            f"{silent} of {len(files)} images of '{folder}' have no prompt in a metadata.jsonl: {left}",
            ExpungeWarning,
            stacklevel=2,
        )
    return files


def _screened(entry: Entry, by: Filter) -> Screened | None:
    """What a filter finds in a file; None for one that is no picture, nor named as one."""
    prompt = " ".join(str(entry.row[name]) for name in CAPTIONS if entry.row.get(name))
    label = entry.row.get("label")
    about = {"file_name": entry.name, "prompt": prompt, "label": None if label is None else str(label)}
    refused = by.refused(prompt)
    problem, sights = entry.problem, list[Sight]()
    if not problem:
        try:
            sights += (by.look(view[None])[0] for view in read_views(entry.path))
        except ExpungeError as error:
            ending = entry.path.suffix.lower()
            if not entry.row and (ending in TEXTS or (entry.path.name.startswith(".") and ending not in PICTURES)):
                return None
            problem = str(error)
    if not (problem or by.concepts or prompt):
        problem = "has no prompt to look for words in" if by.words else "has no prompt for the classifier to read"
    best = max(sights, key=lambda sight: sight.confidence, default=Sight("", 0.0))
    if problem:
        return Screened(**about, reason=problem, confidence=best.confidence, looked_at=False)
    return Screened(**about, reason=refused or best.reason, confidence=best.confidence)


class Point(NamedTuple):
    """What a filter would hold back at one threshold, in percent."""

    threshold: float
    caught: float
    """Of the images that do show the concept."""
    false_alarms: float
    """Of the others."""


class Roc(NamedTuple):
    """How well confidences tell images that show a concept from others."""

    area: float
    """Under the curve: the chance that an image which shows it has the higher confidence (a tie is a half)."""
    points: list[Point]


THRESHOLDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def roc(confidences: Sequence[float], truth: Sequence[bool]) -> Roc:
    """The receiver operating characteristic of a filter on images of which it is known what they show.

    Raises:
        ExpungeError: if all of them show the concept, or none.
    """
    shown = [c for c, yes in zip(confidences, truth, strict=True) if yes]
    others = [c for c, yes in zip(confidences, truth, strict=True) if not yes]
    if not shown or not others:
        raise ExpungeError(
            f"{len(shown)} of {len(truth)} images show the concept: expected some that do and some that do not"
        )
    ours, theirs = torch.tensor(shown, dtype=torch.float64), torch.tensor(others, dtype=torch.float64)
    above = (ours[:, None] > theirs).double() + (ours[:, None] == theirs).double() / 2

    def held(values: Tensor, threshold: float) -> float:
        return 100 * float((values >= threshold).double().mean())

    return Roc(float(above.mean()), [Point(t, held(ours, t), held(theirs, t)) for t in THRESHOLDS])


def keep(folder: Path, screened: Sequence[Screened], out: Path, overwrite: bool = False) -> int:
    """Copy the images that nothing was found in, and their lines of metadata, to a new folder; returns how many.

    Raises:
        ExpungeError: if there is none.
    """
    held = {s.file_name for s in screened if s.reason or not s.looked_at}
    names = list(dict.fromkeys(s.file_name for s in screened if s.file_name not in held))
    if not names:
        raise ExpungeError(f"every image of '{folder}' is held back: expected some to keep")
    with new_folder(out, overwrite, marker="metadata.jsonl") as copies:
        copy_images(folder, names, copies)
    return len(names)


def described(by: Filter) -> dict[str, Any]:
    """A filter as JSON, for the record of a run."""
    told = {
        "words": list(by.words),
        "concepts": list(by.concepts),
        "judge": by.judge,
        "threshold": by.threshold,
        "action": by.action,
    }
    if not by.classifier:
        return told
    read_by = {"label": by.classifier_label, "threshold": by.classifier_threshold, "sha256": by.read_by.identity}
    return {**told, "classifier": {"folder": by.classifier, **read_by}}
