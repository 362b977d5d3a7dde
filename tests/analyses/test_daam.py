import math

import pytest
import torch

from expunge import backbones
from expunge.analyses.daam import Daam, dispersion, heat, mass, object_mask
from expunge.core.analysis import Study
from expunge.core.errors import ExpungeError
from expunge.erasers.uce import UCE
from expunge.maths.attention import columns_of, recorded
from expunge.recipe.scenes import BACKGROUNDS
from expunge.stages import erase


def test_entropy_is_a_share_of_a_uniform_map_s():
    one, even, halves = torch.zeros(4, 4), torch.full((4, 4), 0.3), torch.zeros(4, 4)
    one[1, 2], halves[:, :2] = 0.7, 5.0
    found = dispersion(torch.stack([one, even, halves]))
    assert found.tolist() == pytest.approx([0, 1, math.log(8) / math.log(16)], abs=1e-6)


def test_mass_counts_places_as_far_as_the_object_covers_them():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :4], mask[0, 4:, 4:6] = True, True  # the first quarter whole, half of the last
    assert mass(maps, mask).tolist() == pytest.approx([(1 + 4 / 2) / 10])


def test_an_object_is_what_differs_from_the_border_s_colour():
    pixels = torch.zeros(len(BACKGROUNDS), 64, 64, 3, dtype=torch.uint8)
    expected = torch.zeros(len(BACKGROUNDS), 64, 64, dtype=torch.bool)
    for row, colour in enumerate(BACKGROUNDS.values()):
        pixels[row] = torch.tensor(colour)
        pixels[row, 10:40, 0:30] = torch.tensor([90, 60, 30])  # it may touch the border
        pixels[row, 50, 50] = pixels[row, 50, 50] - 20  # noise of the autoencoder
        expected[row, 10:40, 0:30] = True
    assert torch.equal(object_mask(pixels, 40.0), expected)


def cubic(x):
    """Keys's kernel with a = -0.75, as image libraries and PyTorch have it."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_a_layer_s_map_is_enlarged_by_a_cubic_and_never_negative():
    maps = torch.rand(1, 1, 16, generator=torch.Generator().manual_seed(0)) ** 4
    grid = maps[0, 0].reshape(4, 4)
    found = heat(maps, (8, 8))[0, 0]
    for y in range(8):
        for x in range(8):
            v, u = (y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5
            near = [
                (i, j)
                for i in range(math.floor(v) - 1, math.floor(v) + 3)
                for j in range(math.floor(u) - 1, math.floor(u) + 3)
            ]
            value = sum(grid[min(max(i, 0), 3), min(max(j, 0), 3)] * cubic(v - i) * cubic(u - j) for i, j in near)
            assert found[y, x] == pytest.approx(max(float(value), 0.0), abs=1e-5)
    assert (found == 0).any(), "the cubic overshoots below zero here"
    with pytest.raises(ExpungeError, match="coarser grid"):
        heat(torch.rand(1, 1, 15), (8, 8))


def study(targets=("church",), retain=("dog",), prompt="a picture of a {}", **more):
    given = {"guidance": 4.0, "steps": 2, "batch": 2, "seed": 5, **more}
    return Study(targets=targets, retain=retain, prompt=lambda word: prompt.replace("{}", word), **given)


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


def test_numbers_are_those_of_the_recorded_maps(testbed):
    what = study(targets=("delivery truck",), prompt="a {} on a white background")
    found = {m.metric: m for m in Daam(count=3, foreground="none").findings(testbed, what).measurements}
    values = []
    prompt = "a delivery truck on a white background"
    columns = columns_of(testbed, prompt, "delivery truck")
    assert columns == [2, 3], "after the start and the article"
    for asked in (what.queries(["delivery truck"], 3)[:2], what.queries(["delivery truck"], 3)[2:]):
        with recorded(testbed, len(asked)) as recording:
            testbed.generate(asked)
        layers = []
        for name, maps in recording.maps().items():
            if ".mid_block" not in name:
                side = round(maps.shape[2] ** 0.5)
                word = (maps[..., 2] + maps[..., 3]) / 2
                grid = word.reshape(*word.shape[:2], side, side)
                layers.append(torch.nn.functional.interpolate(grid, (16, 16), mode="bicubic").clamp(min=0))
        merged = torch.cat(layers, 1).mean(1).flatten(1)
        shares = merged / merged.sum(1, keepdim=True)
        values += (-(shares * shares.log()).sum(1) / math.log(256)).tolist()
    assert list(found["entropy_erased"].per_image) == pytest.approx(values, abs=1e-5)
    assert found["entropy_erased"].interval.value == pytest.approx(100 * sum(values) / 3, abs=1e-3)


def test_an_edit_is_compared_with_the_original_seed_by_seed(testbed):
    edit = erase.run(testbed, "uce", UCE(anchor="a picture"), erase.concepts("church"), ["dog"])
    what = study(edits=[edit])
    daam = Daam(count=2)
    plain = {m.metric: list(m.per_image) for m in daam.findings(testbed, study()).measurements}
    found = daam.findings(testbed, what)
    both = {m.metric: list(m.per_image) for m in found.measurements}
    for measure in ("entropy_erased", "entropy_kept", "mass_erased", "mass_kept"):
        differences = [e - o for e, o in zip(both[measure], plain[measure], strict=True)]
        assert both[f"{measure}_change"] == pytest.approx(differences, abs=1e-6)
        assert any(abs(d) > 1e-4 for d in differences), measure
    bars = found.figures["entropy"]
    assert [s.name for s in bars.series] == ["erased", "kept"]
    assert list(bars.series[0].x) == ["original", "edited"]
    assert bars.series[0].y[1] - bars.series[0].y[0] == pytest.approx(
        100 * sum(both["entropy_erased_change"]) / 2, abs=1e-4
    )
    titles = [p.title for p in found.figures["heat"].panels]
    assert titles == ["church, original", "church, edited", "dog, original", "dog, edited"]
    for panel in found.figures["heads"].panels:
        flat = [v for row in panel.values for v in row]
        assert (min(flat), max(flat)) == (0, 1)


def test_an_edited_image_without_its_object_takes_the_original_s_mask(testbed):
    daam = Daam(count=2)
    white = torch.full((2, 64, 64, 3), 255, dtype=torch.uint8)
    original = testbed.generate(study().queries(["church"], 2)).pixels
    seen = {state: {"church": daam._seen(testbed, study(), "church")} for state in ("original", "edited")}
    seen["original"]["church"] = seen["original"]["church"]._replace(pixels=original)
    seen["edited"]["church"] = seen["edited"]["church"]._replace(pixels=white)
    masks = daam._masks(seen)
    assert masks["original"]["church"].any()
    assert torch.equal(masks["edited"]["church"], object_mask(original, daam.margin))


def test_a_prompt_without_the_word_and_a_model_without_plain_backgrounds_are_refused(testbed, backbone):
    with pytest.raises(ExpungeError, match="does not name 'church'"):
        Daam(count=1).findings(testbed, study(prompt="a picture"))
    with pytest.raises(ExpungeError, match="expected foreground none"):
        Daam(count=1).findings(backbone, study())
