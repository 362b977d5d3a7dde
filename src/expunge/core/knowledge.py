"""What a method knew beside the names of its targets; methods are to be compared among those that knew the same."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

Kind = Literal["anchor", "phrases", "random_texts", "retain", "words", "oracles"]
"""What a setting can tell a method; see `Knowledge`."""
TUNING = frozenset(
    [
        *("lr", "decay", "optimizer", "betas", "eps", "weight_decay", "clip", "warmup", "cycles"),
        *("iterations", "epochs", "batch", "accumulation", "sampling", "guidance", "steps"),
        *("group", "layers", "rank", "alpha", "beta", "lamb", "flip"),
    ]
)
"""Settings that say how a method works and tell it nothing of any concept, whichever method has them."""


@final
@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What settings told a method; targets, retained words and images are its task's."""

    anchor: str | None = None
    """What a target becomes that has no anchor of its own; None for a method that knows no anchor."""
    phrases: Sequence[str] = ()
    """Phrases that words are put into."""
    random_texts: bool = False
    """Whether it was shown texts of random tokens, so as to leave other things as they were."""
    retain: Sequence[str] = ()
    """Words that it keeps, beside those of its task."""
    words: Sequence[str] = ()
    """Further texts about the concept: a list of unsafe words, prompts of a language model."""
    oracles: Sequence[str] = ()
    """Judges that it asks."""


def of_settings(plug_in: Any) -> Knowledge:
    """What the settings of a method tell it, as its class declares in ``knows``."""
    values: dict[str, list[Any]] = {kind: [] for kind in get_args(Kind)}
    for name, kind in type(plug_in).knows.items():
        values[kind].append(getattr(plug_in, name))
    return Knowledge(
        anchor=next((anchor for anchor in values["anchor"] if anchor is not None), None),
        phrases=_texts(values["phrases"]),
        random_texts=any(values["random_texts"]),
        retain=_texts(values["retain"]),
        words=_texts(values["words"]),
        oracles=_texts(values["oracles"]),
    )


def _texts(values: Sequence[str | Sequence[str] | None]) -> tuple[str, ...]:
    """The texts of several settings, each of which is a text, several, or none."""
    return tuple(text for value in values for text in ([value] if isinstance(value, str) else value or ()) if text)


def undeclared(cls: type) -> list[str]:
    """Settings of a method of which its class does not say whether they tell it anything; sorted.

    A class declares each of its fields in ``knows`` or in ``tuning``, if it is not in `TUNING`; one without these leaves all of
    them open.
    """
    knows: Mapping[str, Kind] | None = getattr(cls, "knows", None)
    tuning: Sequence[str] | None = getattr(cls, "tuning", None)
    names = {f.name for f in dataclasses.fields(cls)}
    if knows is None or tuning is None:
        return sorted(names) or ["knows"]
    return sorted(names - knows.keys() - set(tuning) - TUNING)
