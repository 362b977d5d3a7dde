"""What presets must not change unnoticed."""

from expunge.settings import presets
from expunge.stages import wanted


def test_pictures_that_methods_and_attacks_learn_from_are_drawn_as_those_of_stored_jobs():
    """The keys of their jobs say neither guidance and steps nor the version of the drawing.

    Whoever changes one here raises the version of each eraser that wants pictures, and of each attack that needs some.
    """
    drawn = {kind: (row["guidance"], row["steps"]) for kind, row in presets._presets()["generate"].items()}
    unets = {"testbed": (4.0, 8), "sd": (7.5, 50), "sdxl": (5.0, 50)}
    assert drawn == {**unets, "sd3": (7.0, 28), "flux": (3.5, 28), "flux-schnell": (0.0, 4)}
    assert wanted.VERSION == 1
