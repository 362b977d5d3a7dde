"""What metrics say of their own numbers, for whoever draws tables."""

from fnmatch import fnmatchcase
from typing import get_args

import pytest

from expunge.core.catalog import Catalog
from expunge.results.group import Kind

SAID = ("meanings", "margins", "shares", "headline")


@pytest.mark.parametrize("name", Catalog("metrics").entries())
def test_what_a_metric_says_is_written_out(name):
    entry = Catalog("metrics").entry(name)
    cls = entry.load()
    for attribute in SAID:
        if attribute in vars(cls):
            assert entry.literals[attribute] == getattr(cls, attribute), "read from its source as it is"
    assert set(cls.headline) <= {"any", *get_args(Kind)} - {"set", "paper", "key", "split"}


def test_the_numbers_that_a_table_shows_of_other_groups():
    headline = Catalog("metrics").literals("headline")

    def shown(number, kind):
        patterns = [p for by_kind in headline.values() for p in (*by_kind.get("any", ()), *by_kind.get(kind, ()))]
        return any(fnmatchcase(number, pattern) for pattern in patterns)

    for number, kinds in (
        ("esr@1", {"further", "attack", "after"}),
        ("psr@1", {"further", "attack", "after", "others"}),
        ("psr@5", {"further", "attack"}),
        ("valid_rate", {"attack"}),
        ("valid_rate_kept", set()),
        ("ner@0.5", {"further", "attack"}),
        ("ner@0.3", set()),
        ("dsr", {"further", "attack"}),
        ("became@dog", set()),
        ("clip_testbed_erased", {"further", "attack", "after", "others", "analysis"}),
        ("prior_preservation_testbed_sd", {"further", "attack", "after", "others", "analysis"}),
        ("styled_kept", {"further", "attack", "after", "others", "analysis"}),
        ("artist_kept", set()),
        ("fid_testbed", {"further", "attack", "after", "others", "analysis"}),
    ):
        assert {k for k in ("further", "attack", "after", "others", "analysis") if shown(number, k)} == kinds, number
