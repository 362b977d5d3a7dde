"""What the page shows of a run is what its files hold."""

import base64
import io
import json
import os
import re

import pytest
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.store.listing import read_listed
from expunge.web import showing


def test_images_are_the_store_s_on_equal_seeds_before_erased_and_recovered(finished):
    seen = showing.shown(finished.kpop, finished.served).album
    (scene,) = seen.scenes
    assert scene["sides"] == ["original", "kpop", "kpop, own"]
    assert [showing.titled(side) for side in scene["sides"]] == ["before", "erased (kpop)", "recovered (own key)"]
    assert [(c["name"], c["erased"], len(c["shots"])) for c in scene["concepts"]] == [
        ("bomb", True, 1),
        ("dog", False, 1),
    ]
    told = json.loads((finished.served.root / finished.kpop / "sides.json").read_text())["sides"]
    for concept in scene["concepts"]:
        (shot,) = concept["shots"]
        for side in told:
            if side["group"] != "set":
                continue
            listed = read_listed(finished.served.store / side["folder"])
            (stored,) = [one for one in listed if (one.label, one.seed) == (concept["name"], shot["seed"])]
            coded = base64.b64decode(seen.images[shot["images"][side["method"]]].split(",")[1])
            was, shown = (Image.open(f).convert("RGB").tobytes() for f in (stored.path, io.BytesIO(coded)))
            apart = [abs(a - b) for a, b in zip(was, shown, strict=True)]
            assert sum(apart) / len(apart) < 6


def test_what_is_unsafe_is_covered_and_the_rest_is_not(finished):
    page = finished.desk.images(finished.uce)
    assert page.count("xp-covered") == 2  # the bomb, before and after
    assert page.count("<img") == 4
    assert 'class="xp-frame xp-covered"' in finished.desk.gallery()
    assert "xp-covered" in finished.desk.compared(finished.both, 0.5)


def test_where_a_run_stands_is_told_by_its_files(finished, tmp_path):
    at = showing.standing(finished.uce, finished.desk.runner)
    assert (at.state, at.line, at.share) == ("finished", "finished", 100)
    file = finished.served.root / finished.uce / "progress.json"
    whole = file.read_text()
    told = json.loads(whole)
    try:
        file.write_text(json.dumps({**told, "done": 1, "total": 4}))
        at = showing.standing(finished.uce, finished.desk.runner)
        assert (at.state, at.line, at.share) == ("stopped", "stopped: its process was killed", 25)
        file.write_text("{")
        assert showing.standing(finished.uce, finished.desk.runner).state == "stopped"
    finally:
        file.write_text(whole)


def test_numbers_are_the_summary_s(finished):
    page = finished.desk.numbers(finished.kpop)
    rows = [
        json.loads(line) for line in (finished.served.root / finished.kpop / "summary.jsonl").read_text().splitlines()
    ]
    asked = [r for r in rows if r.get("group") == "set" and r["metric"] == "esr@1" and "verdict" not in r]
    assert len(asked) == 2
    for row in asked:
        assert f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" in page
    assert f'href="report/{finished.kpop}"' in page


def test_the_slider_s_ends_are_the_model_and_the_whole_edit(finished):
    """At 0 both sides are the original's image, at 1 those of the runs themselves, between them neither."""
    edits, none = showing.compared(finished.both, 0.0, finished.served)
    assert edits == ["bomb-uce", "bomb-kpop"]
    before = showing.shown(finished.uce, finished.served).album
    (shot,) = next(c for c in before.scenes[0]["concepts"] if c["name"] == "bomb")["shots"]
    first = next(pair for pair in none if pair.concept == "bomb")
    assert first.left == first.right == before.images[shot["images"]["original"]]
    whole = next(p for p in showing.compared(finished.both, 1.0, finished.served)[1] if p.concept == "bomb")
    assert whole.left == before.images[shot["images"]["uce"]]
    half = next(p for p in showing.compared(finished.both, 0.5, finished.served)[1] if p.concept == "bomb")
    assert half.left not in (whole.left, first.left)
    with pytest.raises(ExpungeError, match="compares nothing"):
        showing.compared(finished.uce, 1.0, finished.served)


def test_the_gallery_has_every_run_and_leaves_out_what_cannot_be_read(finished):
    broken = finished.served.root / "web" / "broken"
    broken.mkdir()
    (broken / "plan.toml").write_text("not = [toml")
    try:
        page = finished.desk.gallery()
    finally:
        (broken / "plan.toml").unlink()
        broken.rmdir()
    links = re.findall(r'href="\?run=([^"]+)"', page)
    assert set(links) == {finished.uce, finished.kpop, finished.both}


def test_numbers_of_an_earlier_text_do_not_stand_beside_a_run_that_was_begun_since(finished):
    folder = finished.served.root / finished.uce
    assert showing.shown(finished.uce, finished.served).numbers
    was, whole = ((folder / name).stat().st_mtime for name in ("sides.json", "summary.jsonl"))
    os.utime(folder / "sides.json", (whole + 60, whole + 60))
    try:
        begun = showing.shown(finished.uce, finished.served)
        assert not begun.numbers
        assert begun.album.scenes
    finally:
        os.utime(folder / "sides.json", (was, was))


def test_a_run_of_the_command_line_is_shown_too(finished, tmp_path):
    """One that nobody watched, from its records alone."""
    import shutil

    made = finished.served.root / "bench" / "mine"
    shutil.copytree(finished.served.root / finished.uce, made)
    for name in ("plan.toml", "sides.json", "progress.json"):
        (made / name).unlink()
    try:
        assert "bench/mine" in finished.served.runs()
        assert showing.standing("bench/mine", finished.desk.runner).state == "finished"
        (scene,) = showing.shown("bench/mine", finished.served).album.scenes
        assert scene["sides"] == ["original", "uce"]
        (made / "report.html").write_text("its owner's")
        assert "<title>" in finished.desk.report("bench/mine")
        assert (made / "report.html").read_text() == "its owner's"
    finally:
        shutil.rmtree(made)


def test_words_of_a_run_are_escaped(finished):
    folder = finished.served.root / "web" / "marked"
    folder.mkdir()
    plan = (finished.served.root / finished.uce / "plan.toml").read_text()
    (folder / "plan.toml").write_text(
        re.sub("about = .*", "about = '<script>window.hacked = 1</script>'", plan, count=1)
    )
    try:
        pages = [finished.desk.gallery(), finished.desk.progress(finished.desk.standing("web/marked"))]
    finally:
        (folder / "plan.toml").unlink()
        folder.rmdir()
    for page in pages:
        assert "<script" not in page
        assert "&lt;script&gt;" in page


def test_a_side_that_leads_out_of_the_store_is_refused(finished):
    file = finished.served.root / finished.uce / "sides.json"
    whole = file.read_text()
    told = json.loads(whole)
    told["sides"][0]["folder"] = "../../secret"
    try:
        file.write_text(json.dumps(told))
        with pytest.raises(ExpungeError, match="lead out of"):
            showing.shown(finished.uce, finished.served)
    finally:
        file.write_text(whole)


def test_a_report_is_made_once_and_again_when_numbers_are_newer(finished):
    import os

    page = finished.desk.report(finished.uce)
    assert "<title>" in page
    file = finished.served.root / finished.uce / "report.html"
    made = file.stat().st_mtime_ns
    finished.desk.report(finished.uce)
    assert file.stat().st_mtime_ns == made
    summary = finished.served.root / finished.uce / "summary.jsonl"
    os.utime(summary, (file.stat().st_mtime + 10, file.stat().st_mtime + 10))
    finished.desk.report(finished.uce)
    assert file.stat().st_mtime_ns > made
    file.unlink()
