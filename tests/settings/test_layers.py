"""Dataclasses of settings, filled from layers of tables."""

from expunge.erasers.kpop import KPOP
from expunge.settings.layers import filled


def test_settings_are_filled_from_layers_the_later_over_the_earlier():
    eraser = filled(
        KPOP, "kpop", {"lr": 1, "sampling": {"arm": "bank", "reuse": 2}}, {"lr": 2, "sampling": {"reuse": 3}}
    )
    assert (eraser.lr, eraser.k) == (2.0, 10)
    assert (eraser.sampling.arm, eraser.sampling.reuse, eraser.sampling.sampling_steps) == ("bank", 3, 50)
