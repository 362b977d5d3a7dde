"""The report, read as a file and looked at in Chromium."""

import base64
import html
import io
import json
import re
import shutil

import pytest
from PIL import Image

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.report import page
from expunge.report.caveats import caveats
from expunge.report.reading import read
from expunge.report.run import Erasure, Run
from expunge.report.sensitive import covered
from expunge.results.overview import overview


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def album(page):
    return json.loads(re.search(r'id="album">(.*?)</script>', page.read_text(), re.DOTALL)[1])


# what stands in the file ----------------------------------------------------------------------------------------------
def test_every_record_says_where_its_images_are_and_which_model_made_them(bench_run):
    from expunge import backbones

    made = [r["provenance"] for r in lines(bench_run.out / "records.jsonl")]
    assert {m["model_sha256"] for m in made} == {backbones.load("testbed", dtype=made[0]["dtype"]).identity()}
    for m in made:
        told = json.loads((bench_run.store / m["images"] / "run.json").read_text())
        assert [e["id"] for e in told["edits"]] == m["edits"]
        assert told["control"] == m["control"]


def test_the_page_holds_the_summary_s_numbers_and_needs_nothing_else(bench_run):
    page = bench_run.page.read_text()
    for row in lines(bench_run.out / "summary.jsonl"):
        if row["group"] == "set" and row["metric"] in ("esr@1", "psr@1", "valid_rate") and "verdict" not in row:
            assert f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" in page
        if row["metric"] == "esr@1" and row["group"] == "key: random":
            assert f"{100 - row['value']:.1f} [{100 - row['high']:.1f}, {100 - row['low']:.1f}]" in page
    for id_ in {id_ for r in lines(bench_run.out / "records.jsonl") for id_ in r["provenance"]["edits"]}:
        assert id_ in page
    links = re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page)
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert "url(http" not in page


def test_images_are_those_of_the_store_on_equal_seeds(bench_run):
    shown = album(bench_run.page)
    (scene,) = shown["scenes"]
    assert scene["sides"] == ["original", "uce <b>bold</b>", "kpop", "kpop, own", "kpop, random"]
    assert [(c["name"], c["erased"]) for c in scene["concepts"]] == [("church", True), ("bomb", True), ("dog", False)]
    records = lines(bench_run.out / "records.jsonl")
    place = {
        r["provenance"]["method"]: bench_run.store / r["provenance"]["images"]
        for r in records
        if r["subject"] == "edited"
    }
    for concept in scene["concepts"]:
        assert [shot["seed"] for shot in concept["shots"]] == [9, 10]
        for shot in concept["shots"]:
            row = next(
                r
                for r in lines(place["kpop"] / "metadata.jsonl")
                if (r["label"], r["seed"]) == (concept["name"], shot["seed"])
            )
            stored = Image.open(place["kpop"] / row["file_name"]).convert("RGB")
            coded = base64.b64decode(shown["images"][shot["images"]["kpop"]].split(",")[1])
            seen = Image.open(io.BytesIO(coded)).convert("RGB")
            assert seen.size == stored.size
            apart = [abs(a - b) for a, b in zip(seen.tobytes(), stored.tobytes(), strict=True)]
            assert sum(apart) / len(apart) < 6


def test_what_was_written_by_others_is_escaped(bench_run):
    page = bench_run.page.read_text()
    assert "<b>bold</b>" not in page
    assert page.count("</title>") == 1
    assert page.count("<script") == 2
    assert html.escape("<script>window.hacked = 1</script>") in page


def test_a_folder_of_commands_has_before_after_numbers_and_what_was_told(command_run, tmp_path):
    out = tmp_path / "report.html"
    assert main(["report", str(command_run), "--out", str(out), "--images", "2", "--quiet"]) == 0
    (scene,) = album(out)["scenes"]
    assert scene["sides"] == ["before", "after"]
    assert all(len(c["shots"]) == 2 and set(c["shots"][0]["images"]) == {"before", "after"} for c in scene["concepts"])
    (erasure,) = read(command_run, tmp_path).erasures
    assert (erasure.method, erasure.eraser, erasure.targets[""]) == ("after", "uce", ["church"])
    assert (list(erasure.retain), list(erasure.anchors)) == (["dog"], ["picture"])
    record = next(r for r in lines(command_run / "after.jsonl") if r["metric"] == "psr@1")
    assert f"{record['value']:.1f} [{record['low']:.1f}, {record['high']:.1f}]" in out.read_text()


@pytest.mark.parametrize(("eraser", "told"), [("uce", "dog"), ("spm", ""), ("somebody-elses", "dog")])
def test_words_that_a_method_ignores_were_not_told_it(eraser, told):
    nothing = {"settings": {}, "targets": {"": ["church"]}, "anchors": [], "knowledge": {}, "seeds": [0], "edits": []}
    described = page._described(Erasure(method="row", eraser=eraser, retain=["dog"], **nothing))
    assert described.get("Told to keep", "") == told


def test_a_recovery_stands_beside_the_edit_it_belongs_to(command_run, tmp_path):
    """As the demo's folders: images with a key are a control of the folder without one."""
    run = tmp_path / "run"
    shutil.copytree(command_run, run)
    shutil.copytree(run / "after", run / "again")
    made = json.loads((run / "again" / "run.json").read_text())
    (run / "again" / "run.json").write_text(json.dumps({**made, "control": "own", "key": "k"}))
    rows = lines(run / "after.jsonl")
    turned = [
        {
            **r,
            "subject": "recovered",
            "value": 0.0,
            "provenance": {**r["provenance"], "images": "again", "control": "own"},
        }
        for r in rows
    ]
    (run / "again.jsonl").write_text("".join(json.dumps(r) + "\n" for r in turned))
    found = read(run, tmp_path)
    assert [s.name for s in found.sides] == ["before", "after", "again (own key)"]
    keyed = [r for r in found.summary if r["group"] == "key: own"]
    assert {r["method"] for r in keyed} == {"after"}


def test_images_that_were_cleaned_are_missed_and_said_so(bench_run, tmp_path):
    store, out = tmp_path / "store", tmp_path / "report.html"
    shutil.copytree(bench_run.store, store)
    assert main(["clean", "--store", str(store), "--room", "generate", "--quiet"]) == 0
    assert main(["report", str(bench_run.out), "--store", str(store), "--out", str(out), "--quiet"]) == 0
    page = out.read_text()
    assert "no longer stored" in page
    assert "7 image folders that were measured are no longer there" in page
    assert album(out) == {"images": [], "scenes": []}


def widths(driver):
    """Of the page, and of the window."""
    return driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")


@pytest.fixture(scope="module")
def drawn(command_run, tmp_path_factory):
    """A report on a folder with every kind of figure and an analysis."""
    place = tmp_path_factory.mktemp("drawn")
    run = place / "run"
    shutil.copytree(command_run, run)
    (run / "figures").mkdir()
    panel = {"values": [[0, 1], [1, 0]], "image": [[[255, 0, 0]] * 2] * 2}
    for name, title in (("a", "Where the dagger was"), ("b", "Where the dog was")):
        figure = {"format": 1, "title": title, "kind": "heatmaps", "panels": [{"title": "map", **panel}] * 9}
        (run / "figures" / f"{name}.json").write_text(json.dumps(figure))
    long = "a method whose name is rather longer than others' names are wont to be"
    series = [
        {"name": f"{long} {i}", "x": [0, 1, 2], "y": [1, 4, i], "low": [0, 3, i], "high": [2, 5, i]} for i in range(9)
    ]
    for kind in ("lines", "bars"):
        axes = {"x": {"label": "strength"}, "y": {"label": "percent"}}
        figure = {"format": 1, "title": f"Many {kind}", "kind": kind, **axes, "series": series}
        (run / "figures" / f"{kind}.json").write_text(json.dumps(figure))
    looked = ["analyse", "daam", "--edit", str(run / "edit" / "edit.safetensors"), "--count", "1", "--kept", "1"]
    assert main([*looked, "--out", str(run / "daam"), "--quiet"]) == 0
    page = place / "r.html"
    assert main(["report", str(run), "--out", str(page), "--images", "1", "--quiet"]) == 0
    return page


def test_figures_of_a_run_are_drawn_and_covered_where_they_show_something_unsafe(drawn):
    page = drawn.read_text()
    titles = {
        title: bool(cover)
        for cover, title in re.findall(r'card( covered)?">\s*<div [^>]*><svg role="img" aria-label="([^"]*)"', page)
    }
    assert titles["Where the dagger was"] is True
    assert titles["Where the dog was"] is False


LETTERS = """return [...document.querySelectorAll('svg[role=img] text')].map(text => {
  const drawn = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(drawn.a, drawn.b);
})"""
"""The height of all letters in figures, in pixels of the screen."""


def test_figures_can_be_read_on_a_phone(drawn, visit):
    driver = visit(drawn, 360)
    assert widths(driver)[0] <= widths(driver)[1] == 360
    letters = driver.execute_script(LETTERS)
    assert len(letters) > 20
    assert min(letters) >= 9
    boxes = driver.execute_script(
        "return [...document.querySelectorAll('.drawing')].map(d => [d.clientWidth, d.scrollWidth])"
    )
    assert all(seen < 360 for seen, _ in boxes)
    assert max(whole for _, whole in boxes) > 360, "they scroll in their boxes"


@pytest.mark.parametrize("width", [390, 1280])
def test_figures_are_no_wider_than_the_window(drawn, visit, width):
    driver = visit(drawn, width)
    assert widths(driver)[0] <= widths(driver)[1] == width
    shown = driver.execute_script("return [...document.querySelectorAll('svg[role=img]')].map(e => e.ariaLabel)")
    assert {"Where the dog was", "Many lines", "Many bars"} < set(shown)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two Crossed Swords", True),
        ("guns", True),
        ("a skull", True),
        ("begun", False),
        ("a kitchen", False),
        (None, False),
    ],
)
def test_what_is_covered_by_its_words(text, expected):
    assert covered([text]) is expected


def test_more_words_cover_more():
    assert not covered(["a dog"])
    assert covered(["two dogs"], ["dog"])
    assert not covered(["a dog"], [".*"]), "a word is no pattern"


ROW = {"method": "kpop", "group": "set", "metric": "esr@1", "value": 99.0, "low": 98.0, "high": 100.0, "n": 900}


def told(*rows, records=(), **more):
    shown = {"name": "r", "about": "", "sides": [], "gone": 0, "erasures": [], "figures": []}
    return {c.title: c.text for c in caveats(Run(summary=rows, records=records, **{**shown, **more}))}


def test_caveats_come_from_what_a_run_has_and_lacks():
    record = {"knowledge": {"same_judge": True}, "split": "dev", "model": "testbed",
              "provenance": {"group": "set", "settings": {"judge": "testbed"}}}  # fmt: skip
    poor = told({**ROW, "n": 40}, {**ROW, "metric": "valid_rate", "value": 60.0}, {**ROW, "group": "key: own"},
                {**ROW, "verdict": "undecided"}, records=[record], gone=2)  # fmt: skip
    assert {"Nobody attacked", "This is the testbed", "Settings were chosen here", "The judge was asked before"} <= set(
        poor
    )
    assert "kpop (60 %)" in poor["Some images are no pictures"]
    assert "40 images" in poor["Few images"]
    assert "1 of the differences" in poor["Undecided is not equal"]
    assert "not measured, so its misses" in poor["Judges err"]
    assert {"The key has no control", "What nobody named was not looked at", "Some images are not here"} <= set(poor)
    attack = {**record, "knowledge": {}, "split": "test", "model": "sd",
              "provenance": {"group": "attack: ring-a-bell", "settings": {"judge": "testbed"}}}  # fmt: skip
    original = {**ROW, "method": "original", "value": 12.5, "low": 10.0, "high": 15.0}
    rich = told(
        ROW, original, {**ROW, "metric": "valid_rate"}, {**ROW, "group": "others", "metric": "psr@1"}, records=[attack]
    )
    assert set(rich) == {"Judges err", "Only some images are covered"}
    assert "12.5 %" in rich["Judges err"]


def test_the_original_is_found_by_what_it_is_and_numbers_by_what_they_count():
    record = {"subject": "original", "knowledge": {}, "split": "test", "model": "sd",
              "provenance": {"group": "set", "method": "before", "settings": {"judge": "a"}}}  # fmt: skip
    missed = {**ROW, "value": 12.5, "low": 10.0, "high": 15.0}
    one = told(ROW, {**missed, "method": "before", "metric": "esr@1 (judge a)"}, records=[record])
    assert "misses 12.5 % [10.0, 15.0] of the targets that were asked for" in one["Judges err"]
    several = [{**missed, "method": "original", "metric": f"esr@1 (judge {name})"} for name in "ab"]
    both = told(*several, records=[record], plan={"part": "test"})["Judges err"]
    assert (
        "misses 12.5 % [10.0, 15.0] original (judge a), 12.5 % [10.0, 15.0] original (judge b) of the targets" in both
    )
    retrained = told({**missed, "method": "before"}, records=[record], plan={"part": "test"})
    assert "was not measured" in retrained["Judges err"], "a plan calls the original by its name; another model is none"
    detected = told({**missed, "method": "original", "metric": "dsr (judge a)", "n": 40}, records=[record])
    assert "misses 12.5 %" in detected["Judges err"]
    assert "40 images" in detected["Few images"]


def test_training_seeds_are_counted_whatever_was_measured():
    nothing = {"settings": {}, "targets": {}, "retain": [], "anchors": [], "knowledge": {}, "edits": []}
    erasure = Erasure(method="kpop", eraser="kpop", seeds=[0, 1, 2], **nothing)
    row = {**ROW, "metric": "ner@0.6 (judge nudenet)", "training_seeds": 3}
    assert "One training seed" not in told(row, erasures=[erasure])
    assert "One training seed" in told({**row, "training_seeds": 1}, erasures=[erasure])


def test_the_figures_of_every_judge_are_drawn():
    judges = ("", " (judge b)")
    sets = [{**ROW, "method": m, "metric": f"{n}{j}"} for m in ("a", "b") for n in ("esr@1", "psr@1") for j in judges]
    keys = [{**ROW, "group": "key: own", "metric": f"esr@1{j}"} for j in judges]
    titles = ["Removed against kept", "Recovery beside its controls"]
    assert [figure.title for figure in overview([*sets, *keys])] == [f"{title}{j}" for title in titles for j in judges]
    alone = [row for row in (*sets, *keys) if row["metric"].endswith("(judge b)")]
    assert [figure.title for figure in overview(alone)] == titles, "as an audit's, whose only judge is named"


def test_bad_input_is_one_line(tmp_path, capsys, bench_run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_text("{}")
    for words, message in (
        ([str(tmp_path / "none")], "no folder"),
        ([str(tmp_path / "empty")], "holds no images, records, edits or figures"),
        ([str(tmp_path / "plan")], "has a plan and no results yet"),
        ([str(bench_run.out), "--out", str(bench_run.page)], "exists already"),
        ([str(bench_run.out), "--images", "-1", "--out", str(tmp_path / "o")], "-1 images"),
    ):
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    with pytest.raises(ExpungeError):
        read(tmp_path / "none", tmp_path)


# what a reader sees ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_window(bench_run, visit, width):
    driver = visit(bench_run.page, width)
    assert widths(driver)[0] <= widths(driver)[1] == width
    assert driver.execute_script("return window.hacked") is None
    assert driver.execute_script("return [...document.images].every(i => i.alt && i.complete && i.naturalWidth)")
    named = "[...document.querySelectorAll('input,select,button')].every(e => e.labels?.length || e.ariaLabel || e.innerText)"
    assert driver.execute_script(f"return {named}"), "every control has a name"


def cut(driver, index=0):
    script = "return getComputedStyle(document.querySelectorAll('.frame .after')[arguments[0]]).clipPath"
    return float(re.search(r"([\d.]+)%", driver.execute_script(script, index))[1])


def test_the_seam_moves_by_key_by_pointer_and_all_at_once(bench_run, visit):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    driver = visit(bench_run.page)
    slider = driver.find_element(By.CSS_SELECTOR, ".frame input")
    assert cut(driver) == 50
    slider.send_keys(Keys.ARROW_RIGHT * 3)
    assert cut(driver) == 53
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    ActionChains(driver).move_to_element_with_offset(slider, -slider.size["width"] // 3, 0).click().perform()
    assert 5 < cut(driver) < 30
    driver.find_element(By.ID, "all").send_keys(Keys.HOME)
    assert cut(driver, 0) == cut(driver, 1) == 0


def test_the_reader_chooses_concept_and_methods_and_uncovers_what_is_covered(bench_run, visit):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    driver = visit(bench_run.page)
    heads = lambda: [h.text for h in driver.find_elements(By.CSS_SELECTOR, ".row h3")]  # noqa: E731
    assert heads() == ["original ⟷ uce <b>bold</b>", "original ⟷ kpop", "original ⟷ kpop, own"]
    assert "<script>window.hacked = 1</script>" in driver.find_element(By.CSS_SELECTOR, ".tile figcaption").text
    driver.find_element(By.CSS_SELECTOR, "#sides input[value='kpop']").click()
    assert heads() == ["original ⟷ uce <b>bold</b>", "original ⟷ kpop, own"]
    assert not driver.find_elements(By.CSS_SELECTOR, ".covered")
    Select(driver.find_element(By.ID, "concept")).select_by_visible_text("bomb")
    covers = driver.find_elements(By.CSS_SELECTOR, ".cover")
    assert len(covers) == 2 + 1, "two images of the edit, one with the key"
    blur = lambda: driver.execute_script("return getComputedStyle(document.querySelector('.frame img')).filter")  # noqa: E731
    assert "blur" in blur()
    covers[0].click()
    assert blur() == "none"
    assert len(driver.find_elements(By.CSS_SELECTOR, ".cover")) == 2
    Select(driver.find_element(By.ID, "left")).select_by_visible_text("kpop")
    assert heads()[0] == "kpop ⟷ uce <b>bold</b>"


def test_tables_sort_by_value_both_ways(bench_run, visit):
    from selenium.webdriver.common.by import By

    driver = visit(bench_run.page)
    rows = [r for r in lines(bench_run.out / "summary.jsonl") if r["group"] == "set" and r["metric"] == "psr@1"]
    values = {r["method"]: r["value"] for r in rows if "verdict" not in r}
    table = driver.find_element(By.CSS_SELECTOR, "#numbers table")
    shown = lambda: [h.text for h in table.find_elements(By.CSS_SELECTOR, "tbody th")]  # noqa: E731
    head = next(b for b in table.find_elements(By.CSS_SELECTOR, "th button") if b.text.startswith("psr@1"))
    for order, turned in (("descending", True), ("ascending", False)):
        driver.execute_script("arguments[0].click()", head)
        found = [values[name] for name in shown()]
        assert found == sorted(values.values(), reverse=turned)
        assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == order
    driver.execute_script("arguments[0].click()", table.find_element(By.CSS_SELECTOR, "th button"))
    assert shown() == sorted(values, reverse=True)


def test_a_folder_with_an_analysis_and_somebody_s_pairs(command_run, tmp_path):
    run, pairs = tmp_path / "run", tmp_path / "run" / "pairs"
    shutil.copytree(command_run, run)
    edit = run / "edit" / "edit.safetensors"
    assert (
        main(
            [
                "analyse",
                "daam",
                "--edit",
                str(edit),
                "--count",
                "1",
                "--kept",
                "1",
                "--out",
                str(run / "daam"),
                "--quiet",
            ]
        )
        == 0
    )
    shutil.copytree(command_run / "after", pairs)
    made = json.loads((pairs / "run.json").read_text())
    (pairs / "run.json").write_text(json.dumps({k: v for k, v in made.items() if k not in ("control", "sampling")}))
    out = tmp_path / "r.html"
    assert main(["report", str(run), "--out", str(out), "--images", "1", "--quiet"]) == 0
    text = out.read_text()
    assert "Analysis daam" in text
    assert "entropy_erased" in text
