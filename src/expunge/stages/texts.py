"""Texts as a model reads them: cut at its context, and without the marks of other programs."""

import re
import warnings
from collections.abc import Sequence

from expunge.core.backbone import Backbone
from expunge.core.errors import ExpungeError, ExpungeWarning

MARKS = re.compile(
    r"\([^()]+:\s*-?\d*\.?\d+\s*\)|\[[^\[\]]+\]|\(\([^()]+\)\)|<(?:lora|lyco|hypernet):[^<>]+>|\bBREAK\b"
)
"""Weights and tags in prompts written for A1111 and its kin."""


def check_words(backbone: Backbone, words: Sequence[str]) -> None:
    """Refuse targets, anchors and retained words of which the model would not read the end; warn of marks in them.

    Raises:
        ExpungeError: naming the first, and what is cut.
    """
    for word, lost in zip(words, backbone.cut(words), strict=True):
        if lost:
            raise ExpungeError(
                f"'{_short(word)}' is longer than {backbone.name}'s text encoder reads, which cuts '{_short(lost)}': "
                "expected a shorter text"
            )
    _tell_of_marks(words)


def tell_of(backbone: Backbone, prompts: Sequence[str]) -> None:
    """Warn, once, of prompts of which the model does not read the end, and of marks that it reads as plain text."""
    known = list(dict.fromkeys(filter(None, prompts)))
    cut = [(prompt, lost) for prompt, lost in zip(known, backbone.cut(known), strict=True) if lost]
    if cut:
        prompt, lost = map(_short, cut[0])
        long = f"{len(cut)} of {len(known)} prompts are longer than {backbone.name}'s text encoder reads"
        warnings.warn(f"{long}: of '{prompt}' it cuts '{lost}'", ExpungeWarning, stacklevel=3)
    _tell_of_marks(known)


def _tell_of_marks(texts: Sequence[str]) -> None:
    marked = [(text, match[0]) for text in texts if (match := MARKS.search(text))]
    if marked:
        text, mark = map(_short, marked[0])
        weighted = f"weights and tags of other programs are read as plain text, in {len(marked)} of {len(texts)} texts"
        warnings.warn(f"{weighted}: '{mark}' in '{text}'", ExpungeWarning, stacklevel=4)


def _short(text: str) -> str:
    """The beginning and the end of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:28]} ... {line[-28:]}"
