"""What is removed, what is kept, and the files that name both."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from expunge.core.errors import ExpungeError

OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
"""The 27 phrases of textual inversion (2208.01618), which papers use for objects."""

COCO_OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 object classes of COCO (1405.0312), which papers use as words to keep."""

PLURAL = frozenset({"grapes", "cherries", "scissors", "glasses", "crossed swords"})
"""Objects of the testbed that take no article."""


@final
@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something to remove."""

    name: str
    """The words that name it: ``church``, ``noto style``."""
    anchor: str | None = None
    """What it should become; None leaves the choice to the method."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ExpungeError("the target is empty: expected the words of the concept to remove, such as 'church'")


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a concept set: settings are chosen on dev, results are reported on test."""

    seed: int
    """First seed of the images."""
    prompts: tuple[tuple[str, str], ...]
    """Pairs of a prompt and the concept it asks for."""
    seeds: tuple[int, ...] = ()
    """First seed of each prompt's images, where a published file has them."""

    def where(self, asks: Callable[[str], bool]) -> "Part":
        """The prompts for concepts of which ``asks`` says yes, each with its own seed."""
        rows = [i for i, (_, concept) in enumerate(self.prompts) if asks(concept)]
        seeds = tuple(self.seeds[i] for i in rows) if self.seeds else ()
        return replace(self, prompts=tuple(self.prompts[i] for i in rows), seeds=seeds)

    def later(self, by: int) -> "Part":
        """The same prompts with all seeds ``by`` further on."""
        return replace(self, seed=self.seed + by, seeds=tuple(seed + by for seed in self.seeds))


@final
@dataclass(frozen=True, kw_only=True)
class ConceptSet:
    """A list of concepts with the prompts that ask for them."""

    name: str
    about: str
    concepts: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    """Concepts to erase, by split; the set's others are preserved."""
    dev: Part
    test: Part

    def part(self, name: str) -> Part:
        """``dev`` or ``test``.

        Raises:
            ExpungeError: for any other name.
        """
        if name not in ("dev", "test"):
            raise ExpungeError(f"unknown part '{name}': expected dev or test")
        return self.dev if name == "dev" else self.test


def same_words(one: str, other: str) -> bool:
    """Whether two texts are the same but for spaces and capitals."""
    return _plain(one) == _plain(other)


def _plain(words: str) -> str:
    return " ".join(words.lower().split())


def check_targets(targets: list[Concept], retain: list[str]) -> None:
    """Refuse an empty request, a target named twice, and a target that should also be kept.

    Raises:
        ExpungeError: naming the word at fault.
    """
    if not targets:
        raise ExpungeError("no target given: expected at least one concept to remove")
    names = [_plain(t.name) for t in targets]
    kept = {_plain(r) for r in retain}
    for name in names:
        if name in kept:
            raise ExpungeError(f"'{name}' is both a target and a retained word: expected it in one of the two lists")
        if names.count(name) > 1:
            raise ExpungeError(f"target '{name}' is given twice: expected each concept once")
    if "" in kept:
        raise ExpungeError("a retained word is empty: expected the words of a concept to keep")


def fill(template: str, concept: str) -> str:
    """Put ``concept`` into ``template``; after an "a" it gets the article it takes."""
    return template.replace("a {}", article(concept)) if "a {}" in template else template.replace("{}", concept)


def article(concept: str) -> str:
    """``concept`` with its indefinite article, where it takes one."""
    if concept in PLURAL or concept.split(" ", 1)[0] in ("a", "an", "the"):
        return concept
    return f"{'an' if concept[:1].lower() in 'aeiou' else 'a'} {concept}"


def phrases(templates: Sequence[str], word: str) -> list[str]:
    """``word`` in each template.

    Raises:
        ExpungeError: if there is no template, or one has not exactly one ``{}``.
    """
    bad = [t for t in templates if t.count("{}") != 1]
    if bad or not templates:
        raise ExpungeError(f"template '{bad[0] if bad else ''}' has not one {{}}: expected it where the concept goes")
    return [t.replace("{}", word) for t in templates]


def named(word: str) -> re.Pattern[str]:
    """What finds ``word`` in a prompt: whole, and in any case."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def spans(prompt: str, word: str) -> list[tuple[int, int]]:
    """Where ``prompt`` names ``word``."""
    return [m.span() for m in named(word).finditer(prompt)]
