"""Groups are written one way and read back the same."""

import pytest

from expunge.results.group import SET, Group

WRITTEN = {
    "set": Group(kind="set"),
    "others": Group(kind="others"),
    "memory": Group(kind="memory"),
    "paper": Group(kind="paper"),
    "coco": Group(kind="further", name="coco"),
    "my: set": Group(kind="further", name="my: set"),
    "after noon": Group(kind="further", name="after noon"),
    "key: own": Group(kind="key", control="own"),
    "key: other seed": Group(kind="key", control="other seed"),
    "key: own after 3": Group(kind="key", control="own", step=3),
    "key: fresh 300": Group(kind="key", control="fresh", step=300),
    "key: esd-x": Group(kind="key", control="esd-x"),
    "attack: concept-inversion (tokens 2, steps 5)": Group(kind="attack", name="concept-inversion (tokens 2, steps 5)"),
    "analysis: daam": Group(kind="analysis", name="daam"),
    "after 2": Group(kind="after", step=2),
    "split: split-1": Group(kind="split", name="split-1"),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_group_is_read_and_written_alike(text: str):
    assert Group.parse(text) == WRITTEN[text]
    assert str(WRITTEN[text]) == text


def test_only_the_last_own_key_and_fresh_ones_count_as_recovery():
    assert [t for t in WRITTEN if WRITTEN[t].recovered] == ["key: own", "key: fresh 300"]
    assert Group.parse("set") == SET
