"""What a model is trained without: its denoiser sees no scene that shows it, and so no caption of one."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.core.errors import ExpungeError, unknown
from expunge.recipe.artists import ARTISTS, HANDS
from expunge.recipe.artwork import specification
from expunge.recipe.scenes import Bank


class Gone(NamedTuple):
    """Concepts as a bank numbers them."""

    objects: list[int]
    styles: list[int]


def named(text: str) -> list[str]:
    """The concepts of a list with commas, in the order of the alphabet.

    Raises:
        ExpungeError: as `gone`, and if there is none.
    """
    concepts = sorted({word.strip() for word in text.split(",") if word.strip()})
    if not concepts:
        raise ExpungeError(
            f"--without '{text}' names nothing: expected objects, categories or styles, with commas between"
        )
    gone(concepts)
    return concepts


def gone(concepts: Sequence[str]) -> Gone:
    """The objects and styles that ``concepts`` name: objects, categories of them (weapon), or styles (ink style).

    Raises:
        ExpungeError: for a concept that the artwork does not have, a hand whose drawings the artists work from, or if nothing
            is left.
    """
    spec = specification()
    names, categories = list(spec["objects"]), [category for _, category in spec["objects"].values()]
    known = [*spec["styles"], *ARTISTS]
    objects, styles = set[int](), set[int]()
    for concept in concepts:
        style = concept.removesuffix(" style")
        if concept in names:
            objects.add(names.index(concept))
        elif concept in categories:
            objects.update(i for i, category in enumerate(categories) if category == concept)
        elif style in HANDS:
            raise ExpungeError(
                f"--without '{concept}', from whose drawings the artists work, so that their scenes show it, too: expected "
                f"another style than {', '.join(HANDS)}"
            )
        elif style in known:
            styles.add(known.index(style))
        else:
            raise unknown("concept of the artwork", concept, [*names, *dict.fromkeys(categories), *known])
    if len(objects) == len(names):
        raise ExpungeError("--without every object: expected some that the model learns to draw")
    return Gone(sorted(objects), sorted(styles))


def withheld(bank: Bank, concepts: Sequence[str]) -> Bank:
    """``bank`` with every scene withheld that shows one of ``concepts``, alone or beside something else."""
    away = gone(concepts)
    shown = np.isin(bank.objects, away.objects).any(1) | np.isin(bank.styles, away.styles)
    return dataclasses.replace(bank, withheld=bank.withheld | shown)
