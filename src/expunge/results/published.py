"""Published figures beside a plan's own numbers: where they come from, and what is known of them."""

from collections.abc import Sequence

from expunge.results.rows import Row, group_of

SAYS = ("table", "published_as", "source", "knowledge", "note")
"""What a published figure's line may say of itself."""


def sources(summary: Sequence[Row]) -> dict[str, list[str]]:
    """Where the published figures of each row of the table come from, in words."""
    words_of: dict[str, list[str]] = {}
    for row in summary:
        if group_of(row).kind == "paper":
            words = [str(row[name]) for name in SAYS if row.get(name)]
            words_of[row["method"]] = list(dict.fromkeys([*words_of.get(row["method"], []), *words]))
    return words_of
