"""The demo's stage, with too few updates to erase anything."""

import pytest
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.stages import demo
from expunge.store import read_images

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
SHORT = {"iterations": 1, "batch": 2, "sampling": {"sampling_steps": 2, "trajectories": 2}}


def test_a_demo_of_no_images_is_refused_before_it_erases(tmp_path):
    with pytest.raises(ExpungeError, match="count is 0"):
        demo.run("church", tmp_path / "out", 0, False)
    assert not (tmp_path / "out").exists()


def test_the_demo_shows_and_measures_four_sides_on_equal_seeds(tmp_path):
    begun = []
    records = demo.run("church", tmp_path / "out", 1, False, begun.append, SHORT)
    assert len(begun) == 5
    assert {(r.provenance["images"], r.subject) for r in records} == {
        ("original", "original"),
        ("erased", "edited"),
        ("recovered", "recovered"),
        ("wrong-key", "recovered"),
    }
    keys = {r.provenance["images"]: r.provenance["key"] for r in records}
    assert keys["original"] is keys["erased"] is None
    assert len({keys["recovered"], keys["wrong-key"], None}) == 3
    with Image.open(tmp_path / "out" / "compare.png") as sheet:
        assert sheet.height == 24 + 10 * 128
        assert sheet.width > 4 * 128
    seeds = {name: [(s.prompt, s.seed) for s in read_images(tmp_path / "out" / name)] for name in demo.SIDES}
    assert seeds["original"] == seeds["erased"]
    assert seeds["recovered"] == seeds["wrong-key"] == seeds["original"][:1]
    head, *_, last = demo.table(tmp_path / "out", records).splitlines()
    assert all(title in head for title in demo.SIDES.values())
    assert last.endswith("compare.png")
