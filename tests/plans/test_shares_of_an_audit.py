"""An audit's time is shared by its attacks: each has its part, and what one leaves goes to the others."""

import pytest

from expunge.attacks.rounding import Rounding
from expunge.core.errors import ExpungeError
from expunge.plans import audit
from expunge.plans.audit import Audit, _Ready, _share_out
from expunge.stages.tiers import Tier


def shared_out(left: float, needs: dict[str, tuple[float, float]]) -> tuple[dict[str, float], dict[str, str]]:
    """The seconds of each attack that fits, and why others do not; an attack needs a least, and takes a most."""

    def fitted(ready: _Ready, share: float) -> audit._Fit:
        least, most = needs[ready.name]
        if share < least:
            raise ExpungeError(f"{share:g} s are too little")
        seconds = min(share, most)
        tier = Tier(attack=ready.attack, queries=[], seconds=seconds, given_up={})
        return tier, {"name": ready.name, "seconds": seconds}, seconds

    made = Audit(plan={"attacks": []}, set={})
    _share_out(made, [_Ready(name, {}, Rounding()) for name in needs], left, fitted)
    assert list(made.tiers) == [entry["name"] for entry in made.plan["attacks"]]
    return {entry["name"]: entry["seconds"] for entry in made.plan["attacks"]}, made.left_out


@pytest.mark.parametrize(
    ("left", "needs", "have", "lack"),
    [
        (12.0, {"a": (1, 99), "b": (1, 99), "c": (1, 99)}, {"a": 4, "b": 4, "c": 4}, {}),
        (12.0, {"a": (1, 2), "b": (1, 99), "c": (1, 99)}, {"a": 2, "b": 5, "c": 5}, {}),
        # the first waits for what the others leave; the last one has no more than its share of it
        (18.0, {"a": (7, 99), "b": (1, 3), "c": (1, 99)}, {"b": 3, "c": 7.5, "a": 7.5}, {}),
        (18.0, {"a": (9, 99), "b": (1, 99), "c": (1, 99)}, {"b": 6, "c": 6}, {"a": "6 s are too little"}),
        # two that wait: the first of them has half of what is left, and the second all that is still there
        (
            20.0,
            {"a": (6, 99), "b": (9, 99), "c": (1, 8)},
            {"a": 20 / 3, "c": 20 / 3},
            {"b": "6.66667 s are too little"},
        ),
        (30.0, {"a": (12, 12), "b": (11, 99), "c": (1, 2)}, {"c": 2, "a": 12, "b": 16}, {}),
        # none fits its share: the first may have all of it, and leaves nothing to the second
        (10.0, {"a": (6, 99), "b": (20, 99)}, {"a": 10}, {"b": "5 s are too little"}),
        (10.0, {"a": (8, 99), "b": (6, 99)}, {"a": 10}, {"b": "5 s are too little"}),
        (10.0, {"a": (20, 99), "b": (6, 99)}, {"b": 10}, {"a": "10 s are too little"}),
    ],
)
def test_each_has_its_share_and_what_others_leave(left: float, needs: dict, have: dict, lack: dict):
    found, missing = shared_out(left, needs)
    assert found == pytest.approx(have)
    assert list(found) == list(have), "in this order"
    assert missing == lack
