"""The judge of backgrounds, on scenes whose background is known."""

import pytest
import torch

from expunge import testbed
from expunge.backbones import load
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.judges.backgrounds import Backgrounds

COLOURS = testbed.vocabulary()["backgrounds"]


def plain(colour, side=64):
    return torch.tensor(colour, dtype=torch.uint8).expand(1, side, side, 3).clone()


@pytest.mark.parametrize("name", COLOURS)
def test_a_plain_colour_with_something_on_it_is_that_background(name):
    image = plain(COLOURS[name])
    image[:, 10:50, 20:64] = 0  # an object that reaches the right edge
    judge = Backgrounds()
    frame = 64 * 64 - 58 * 58
    assert judge.labels[int(judge.scores(image).argmax())] == name
    assert judge.confidence(image, f"{name} background").item() == pytest.approx(1 - 40 * 3 / frame, abs=1e-4)


def test_a_colour_out_of_reach_is_no_background():
    assert Backgrounds().scores(plain((0, 0, 0))).max() == 0
    noise = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    assert Backgrounds().scores(noise).max() < 0.2


def test_shades_within_reach_are_of_the_nearest_colour():
    shade = tuple(level - 10 for level in COLOURS["blue"])
    assert Backgrounds().confidence(plain(shade), "blue").item() == 1


def test_the_testbed_s_own_backgrounds_are_told():
    """What a prompt asks for is seen, and seldom what it does not."""
    queries = [
        Query(prompt=f"a dog on a {name} background", seed=i, guidance=4.0, steps=8) for i, name in enumerate(COLOURS)
    ]
    pixels = load("testbed").generate(queries).pixels
    judge = Backgrounds()
    right = (judge.scores(pixels).argmax(1) == torch.arange(len(COLOURS))).float().mean()
    assert right >= 0.75


def test_an_unknown_background_is_refused():
    with pytest.raises(ExpungeError, match="concept for judge 'backgrounds'"):
        Backgrounds().label_ids("red background")
