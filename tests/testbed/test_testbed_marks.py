"""Marks on images: where they are, how a place that looks like one is found, and how often that is right."""

import pytest
import torch

from expunge import backbones
from expunge.core.errors import ExpungeError
from expunge.judges.marks import Marks
from expunge.metrics.icr import ICR
from expunge.store import read_images
from expunge.testbed.marks import composed, correlations, mark, marks

NAMES = list(marks())


def noise(seed=0, size=(64, 64)):
    return torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(seed)).byte()


def by_loops(image, pattern, y, x):
    """Normalised cross-correlation of one stretch of an image, as it is defined."""
    height, width = pattern.shape
    stretch = image[y : y + height, x : x + width].double().mean(-1)
    a, b = stretch - stretch.mean(), pattern.double() - pattern.double().mean()
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.mark.parametrize("name", NAMES)
def test_a_mark_is_drawn_in_its_box_and_nowhere_else(name):
    image = noise()
    for seed in range(5):
        out, box = composed(image, name, seed)
        again = composed(image, name, seed)
        assert torch.equal(out, again.pixels)
        assert box == again.box
        changed = (out != image).any(-1).nonzero()
        (top, left), (bottom, right) = changed.amin(0).tolist(), changed.amax(0).tolist()
        assert box.x <= left
        assert box.y <= top
        assert right < box.x + box.width
        assert bottom < box.y + box.height
        assert box.inside(64, 64)
        assert (box.height, box.width) == tuple(mark(name).pattern.shape)
        assert box.label == name
    assert len({composed(image, name, seed).box for seed in range(20)}) > 10, "at random places"


@pytest.mark.parametrize("name", NAMES)
def test_correlation_is_the_definition_s_at_every_place(name):
    image, pattern = noise(3), mark(name).pattern
    found = correlations(image[None], name)[0]
    assert tuple(found.shape) == (64 - pattern.shape[0] + 1, 64 - pattern.shape[1] + 1)
    for y, x in ((0, 0), (5, 9), (found.shape[0] - 1, found.shape[1] - 1)):
        assert float(found[y, x]) == pytest.approx(by_loops(image, pattern, y, x), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_mark_is_found_where_it_was_drawn(name):
    grey = torch.full((64, 64, 3), 128, dtype=torch.uint8)
    for seed in range(3):
        out, box = composed(grey, name, seed)
        found = correlations(out[None], name)[0]
        assert divmod(int(found.argmax()), found.shape[1]) == (box.y, box.x)
        assert float(found.max()) == pytest.approx(1, abs=2e-3)
    assert correlations(grey[None], name).abs().max() < 1e-6, "nothing on even ground"


@pytest.fixture(scope="module")
def drawings(images):
    """Images of the testbed, of which none is marked."""
    return torch.stack([shot.pixels() for shot in read_images(images)])


def found_by(judge, images, name):
    return judge.confidence(images, name) > ICR().threshold


@pytest.mark.parametrize("name", NAMES)
def test_the_judge_finds_its_mark_and_no_other_through_the_autoencoder_too(drawings, name):
    judge, testbed = Marks(), backbones.load("testbed")
    assert not found_by(judge, drawings, name).any(), "false alarms on the testbed's own images"
    marked = torch.stack([composed(image, name, seed).pixels for seed, image in enumerate(drawings)])
    with torch.no_grad():
        coded = testbed.decode(testbed.encode_image(marked))
    for shown in (marked, coded):
        assert found_by(judge, shown, name).all()
        for other in set(NAMES) - {name}:
            assert not found_by(judge, shown, other).any()


def test_scores_are_those_of_each_label():
    image = composed(noise(1), "qr code", 0).pixels[None]
    judge = Marks()
    assert list(judge.labels) == NAMES
    scores = judge.scores(image)[0]
    assert int(scores.argmax()) == NAMES.index("qr code")
    for label, score in zip(judge.labels, scores, strict=True):
        assert float(judge.confidence(image, label)) == pytest.approx(max(0.0, float(score)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ExpungeError, match="the mark 'text' is 42 x 14, the image 20 x 20: expected a larger one"):
        composed(noise(size=(20, 20)), "text", 0)
    with pytest.raises(ExpungeError, match="the mark 'text' is 42 x 14 and the images 20 x 20"):
        correlations(noise(size=(20, 20))[None], "text")
    with pytest.raises(ExpungeError, match="unknown mark 'stamp'"):
        composed(noise(), "stamp", 0)
    with pytest.raises(ExpungeError, match="'barcode'"):
        Marks().confidence(noise()[None], "barcode")
