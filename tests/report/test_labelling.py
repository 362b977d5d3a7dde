"""Sheets, answered with keys in Chromium, and read back."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.report import agreement
from expunge.report.agreement import Answers, kappa
from expunge.report.labelling import write_sheet
from expunge.store import read_pixels


@pytest.fixture
def sheet(images, tmp_path):
    """Two copies of the same folder: 18 images."""
    command = ["label", str(images), str(images), "--out", str(tmp_path / "sheet.html"), "--quiet"]
    assert main(command) == 0
    return tmp_path / "sheet.html", tmp_path / "sheet.key.json"


def told(key):
    return json.loads(key.read_text())


def saved(key, who, said, path):
    path.write_text(json.dumps({"format": 1, "sheet": told(key)["sheet"], "person": who, "answers": said}))
    return path


def never_opened(visit, page, width=1280):
    """The sheet, without what other tests answered: theirs shows the same images."""
    driver = visit(page, width)
    driver.execute_script("localStorage.clear()")
    driver.refresh()
    return driver


def kept(driver):
    """What the browser keeps of sheets."""
    return driver.execute_script("return Object.values(localStorage).join()")


def test_the_sheet_tells_nothing_of_what_is_in_the_key(sheet, images):
    page, key = sheet[0].read_text(), told(sheet[1])
    assert key["choices"] == ["church", "dog", "radio", "none", "no picture"]
    assert len(key["items"]) == 18
    assert len(json.loads(re.search(r'id="sheet">(.*?)</script>', page)[1])["images"]) == 18
    for secret in ("image of a", ".png", str(images), "seed"):
        assert secret not in page
    labels = [item["label"] for item in key["items"]]
    assert labels != sorted(labels)


def test_the_order_is_the_seed_s(images, tmp_path):
    orders = []
    for number, seed in enumerate((1, 1, 2)):
        made = write_sheet([images], [], tmp_path / f"{number}.html", tmp_path / f"{number}.json", seed)
        orders.append([item["file"] for item in made["items"]])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    some = write_sheet([images, images], ["dog"], tmp_path / "s.html", tmp_path / "s.json", count=2)
    assert (len(some["items"]), some["choices"]) == (4, ["dog", "none", "no picture"])
    one = write_sheet([images], [], tmp_path / "o.html", tmp_path / "o.json", count=1)
    assert one["choices"] == ["church", "dog", "radio", "none", "no picture"], "an image offers more than its own label"


def test_answered_with_keys_saved_and_read_back(sheet, visit, browser, tmp_path, capsys):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    page, key = sheet
    driver = never_opened(visit, page, 390)
    press = lambda *keys: ActionChains(driver).send_keys(*keys).perform()  # noqa: E731
    driver.find_element(By.ID, "who").send_keys('Ann "A"')
    press("1")
    driver.find_element(By.ID, "start").click()
    press("1", "2", "n", "x")
    press(Keys.ARROW_LEFT, "3")  # the fourth was a mistake
    assert driver.find_element(By.ID, "place").text.startswith("Image 5 of 18; 4 answered")
    # a browser hands its storage over from one page to another in its own time, and not if the first is closed too early
    earlier = driver.current_window_handle
    driver.switch_to.new_window("tab")
    WebDriverWait(driver, 60, 1).until(lambda driver: '"4":"radio"' in kept(visit(page, 390)), "answers are kept")
    later = driver.current_window_handle
    driver.switch_to.window(earlier)
    driver.close()
    driver.switch_to.window(later)
    driver.find_element(By.ID, "start").click()
    assert driver.find_element(By.ID, "place").text.startswith("Image 5 of 18; 4 answered"), "progress is kept"
    driver.find_element(By.CSS_SELECTOR, "#choices button[value='dog']").click()
    across = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert across[0] <= across[1]
    for kind in ("json", "csv"):
        driver.find_element(By.ID, kind).click()
    files = [browser.downloads / f"answers-Ann-A-1.{kind}" for kind in ("json", "csv")]
    WebDriverWait(driver, 60).until(lambda _: all(f.is_file() and f.stat().st_size for f in files))
    said = {1: "church", 2: "dog", 3: "none", 4: "radio", 5: "dog"}
    read = [agreement.answers(file, told(key)) for file in files]
    assert [r.said for r in read] == [said, said]
    assert {r.who for r in read} == {'Ann "A"1'}

    other = saved(key, "Bob", {**said, 5: "church", 6: "dog"}, tmp_path / "bob.json")
    out = tmp_path / "agreement.jsonl"
    words = ["label", "--read", str(files[0]), "--read", str(other), "--key", str(key), "--out", str(out)]
    assert main(words) == 0
    assert "80.0 [" in capsys.readouterr().out
    rows = {(r["one"], r["other"]): r for r in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == {('Ann "A"1', "judge testbed"), ("Bob", "judge testbed"), ('Ann "A"1', "Bob")}
    between = rows['Ann "A"1', "Bob"]
    assert (between["value"], between["n"]) == (80.0, 5)
    assert between["confusion"]["dog"] == {"church": 1, "dog": 1}
    assert rows["Bob", "judge testbed"]["n"] == 6


def test_a_page_that_was_open_already_goes_on_where_another_stopped(sheet, visit, browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    driver = never_opened(visit, sheet[0])
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    visit(sheet[0]).find_element(By.ID, "who").send_keys("Ann")
    driver.find_element(By.ID, "start").click()
    ActionChains(driver).send_keys("1", "2").perform()
    second = driver.current_window_handle
    driver.switch_to.window(first)
    WebDriverWait(driver, 60).until(lambda driver: '"2":"dog"' in kept(driver), "both answers are kept")
    driver.find_element(By.ID, "start").click()
    assert driver.find_element(By.ID, "place").text.startswith("Image 3 of 18; 2 answered")
    assert '"person":"Ann"' in kept(driver)
    driver.switch_to.window(second)
    driver.close()
    driver.switch_to.window(first)


def test_the_judge_s_answers_are_its_likeliest_labels(sheet):
    key = told(sheet[1])
    judge = Catalog("judges").open("testbed")
    found = agreement.judged("testbed", key, [1, 2, 3, 9]).said
    assert set(found) == {1, 2, 3, 9}
    for item, said in found.items():
        pixels = read_pixels(Path(key["items"][item - 1]["file"]))[None]
        top = judge.labels[int(judge.scores(pixels)[0].argmax())]
        expected = top if top in ("church", "dog", "radio") else "none"
        assert said == (expected if bool(judge.valid(pixels)[0]) else "no picture")


def test_kappa_is_one_minus_observed_over_expected_disagreement():
    """As scikit-learn computes it, from the matrix of disagreements."""
    draw = np.random.default_rng(0)
    matrix = draw.integers(0, 20, (4, 4))
    expected = np.outer(matrix.sum(0), matrix.sum(1)) / matrix.sum()
    apart = 1 - np.eye(4)
    reference = 1 - (apart * matrix).sum() / (apart * expected.T).sum()
    counts = {(str(i), str(j)): int(matrix[i, j]) for i in range(4) for j in range(4)}
    assert kappa(counts) == pytest.approx(reference, abs=1e-12)
    assert kappa({("a", "a"): 20, ("a", "b"): 5, ("b", "a"): 10, ("b", "b"): 15}) == pytest.approx(0.4)
    assert kappa({("a", "a"): 7}) is None


def test_only_what_both_answered_counts():
    one, other = Answers(who="a", said={1: "x", 2: "y"}), Answers(who="b", said={2: "y", 3: "x"})
    found = agreement.agreement(one, other, ["x", "y"])
    assert (found.n, found.percent.value, found.confusion) == (1, 100.0, {"y": {"y": 1}})
    with pytest.raises(ExpungeError, match="no item in common"):
        agreement.agreement(one, Answers(who="c", said={9: "x"}), ["x", "y"])


def test_bad_input_is_one_line(sheet, images, tmp_path, capsys):
    page, key = sheet
    good = saved(key, "Ann", {1: "dog"}, tmp_path / "good.json")
    odd = saved(key, "Bob", {1: "cat"}, tmp_path / "odd.json")
    far = saved(key, "Cid", {99: "dog"}, tmp_path / "far.json")
    empty = saved(key, "Dan", {}, tmp_path / "empty.json")
    other = tmp_path / "other.json"
    other.write_text(good.read_text().replace(told(key)["sheet"], "0" * 16))
    (tmp_path / "bad.csv").write_text("item\n")
    head, whose = "sheet,person,item,answer\n", told(key)["sheet"]
    (tmp_path / "short.csv").write_text(f"{head}{whose},ann,1,dog\n{whose},ann,3\n")
    (tmp_path / "long.csv").write_text(f"{head}{whose},ann,1,dog,cat\n")
    new = [str(images), "--out", str(tmp_path / "new.html"), "--count"]
    read = ["--key", str(key)]
    for words, message in (
        ([], "expected folders of images"),
        ([str(images)], "without --out"),
        ([str(images), "--out", str(page)], "exists already"),
        ([*new, "-1"], "-1 images of each folder: expected 1 or more"),
        ([*new, "0"], "0 images of each folder: expected 1 or more"),
        (["--read", str(good)], "without --key"),
        (["--read", str(good), "--key", str(good)], "no key of a sheet"),
        (["--read", str(good), *read, "--judge", "None"], "one person and no judge"),
        (["--read", str(odd), *read], "unknown answer"),
        (["--read", str(far), *read], "item 99"),
        (["--read", str(empty), *read], "holds no answers"),
        (["--read", str(other), *read], "expected answers of sheet"),
        (["--read", str(tmp_path / "bad.csv"), *read], "is damaged"),
        (
            ["--read", str(tmp_path / "short.csv"), *read],
            "is damaged: expected answers that a sheet saved (answer 2 has",
        ),
        (
            ["--read", str(tmp_path / "long.csv"), *read],
            "is damaged: expected answers that a sheet saved (answer 1 has",
        ),
        (["--read", str(good), "--read", str(good), *read], "two files hold answers of 'Ann'"),
    ):
        assert main(["label", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_answers_that_a_spreadsheet_saved_again_are_read(sheet, tmp_path):
    """It marks the file's beginning, and names may have letters beyond ASCII."""
    file, key = tmp_path / "answers.csv", told(sheet[1])
    file.write_bytes(f"sheet,person,item,answer\r\n{key['sheet']},Zoë,1,dog\r\n".encode("utf-8-sig"))
    assert agreement.answers(file, key) == Answers(who="Zoë", said={1: "dog"})
