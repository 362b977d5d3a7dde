"""The leaderboard of committed plans: what is the plan's is told from what is not, in the file and in Chromium."""

import html
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from expunge import backbones
from expunge.cli import main
from expunge.executors.asked import answered_in
from expunge.report import leaderboard, of_benchmarks
from expunge.report.standings import standings, verdicts
from expunge.testbed import KNOWN, VERSION, version_of
from plans_of import read_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PLANS = ("kpop-leakage", "kpop-fig4", "duo-weapons", "attributes", "uce-dev")
"""Of today's plan, with claims; twice of testbed-1; not run; of today's plan, without claims.

What is earlier, or not run, is made so here (`put`): the tests hold whichever committed plans are run again."""
EARLIER, NOT_RUN = ("kpop-fig4", "duo-weapons"), ("attributes",)
ON_TESTBED_1 = {"images": "generate-" + "0" * 24 + "/images", "model_sha256": "82d62abe815f6798" + "0" * 48}


def put(folder, *names):
    """Copies of committed plans and their results, some as if they were made on testbed-1, some without."""
    folder.mkdir(exist_ok=True)
    for name in names:
        for file in BENCHMARKS.glob(f"{name}.*"):
            if name not in NOT_RUN or file.suffix == ".toml":
                shutil.copy(file, folder / file.name)
        if name in EARLIER:
            rows = read_rows(folder / f"{name}.jsonl")
            for row in rows:
                if "images" in row.get("provenance", {}):
                    row["provenance"].update(ON_TESTBED_1)
            write_rows(folder / f"{name}.jsonl", rows)
    return folder


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Some committed plans, and their page, with a plan among them whose name is markup."""
    place = tmp_path_factory.mktemp("board")
    folder, page = put(place / "plans", *PLANS), place / "page.html"
    text = (folder / "attributes.toml").read_text()
    (folder / "attributes.toml").write_text(re.sub(r'^about = "', 'about = "<script>window.hacked = 1</script> ', text))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(BENCHMARKS.parent)
        assert main(["report", str(folder), "--out", str(page), "--quiet"]) == 0
        answered = answered_in(folder)
    return SimpleNamespace(
        folder=folder,
        page=page,
        answered=answered,
        kept=of_benchmarks.with_answers(of_benchmarks.read(folder), answered),
    )


def summary(name):
    return [row for row in read_rows(BENCHMARKS / f"{name}.jsonl") if "provenance" not in row]


# what is the plan's ---------------------------------------------------------------------------------------------------
def test_versions_of_the_testbed_are_told_by_their_files():
    assert version_of(backbones.load("testbed").identity()) == VERSION
    assert sorted(KNOWN.values()) == ["testbed-1", VERSION]
    assert version_of("0" * 64) == ""


def test_results_count_where_they_are_of_the_jobs_that_the_plan_asks_for_today(board):
    plans = {kept.name: set(kept.methods) for kept in board.kept}
    for name in ("kpop-leakage", "uce-dev"):
        assert board.answered[name] == plans[name]
    assert board.answered["duo-weapons"] == board.answered["kpop-fig4"] == frozenset()
    assert "attributes" not in board.answered


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("erase_scale = 0.5", "erase_scale = 0.6", 1),
        ("count = 12", "count = 13", 7),
        ('about = "', 'about = "More. ', 0),
        ('set = "objects10_dev"', 'set = "objects10_dev"\nmetrics = [{ name = "esr-psr", ks = [1, 3] }]', 7),
    ],
    ids=["a setting", "a count", "only words", "how it is measured"],
)
def test_results_of_an_earlier_text_do_not_count_for_rows_that_it_changed(
    before, after, changed, tmp_path, monkeypatch
):
    folder = put(tmp_path / "plans", "uce-dev")
    text = (folder / "uce-dev.toml").read_text()
    assert text.count(before) == 1, "a place to change"
    (folder / "uce-dev.toml").write_text(text.replace(before, after))
    monkeypatch.chdir(BENCHMARKS.parent)
    methods = set(of_benchmarks.read(folder)[0].methods)
    assert len(methods - answered_in(folder)["uce-dev"]) == changed
    assert len(methods) == 7


@pytest.mark.parametrize(
    ("said", "changed"), [({"version": 0}, 1), ({"measured_by": "0" * 64}, 1), ({"version": 1}, 0)]
)
def test_results_of_another_version_of_a_metric_or_of_other_weights_do_not_count(said, changed, tmp_path, monkeypatch):
    folder = put(tmp_path / "plans", "uce-dev")
    rows = read_rows(folder / "uce-dev.jsonl")
    one = next(row["provenance"] for row in rows if "provenance" in row and row["provenance"]["metric"] == "esr-psr")
    one.update(said)
    write_rows(folder / "uce-dev.jsonl", rows)
    monkeypatch.chdir(BENCHMARKS.parent)
    assert 7 - len(answered_in(folder)["uce-dev"]) == changed


def test_a_row_has_the_summary_s_numbers_costs_and_what_it_was_told(board):
    rows = {row.method: row for row in standings(board.kept) if row.plan == "kpop-leakage"}
    for line in summary("kpop-leakage"):
        if line["group"] == "set" and line["metric"] == "esr@1" and "verdict" not in line and "claim" not in line:
            row = rows[line["method"]]
            cell = row.cells[0]
            assert (cell.value, cell.low, cell.high) == (line["value"], line["low"], line["high"])
            assert cell.note == f"n = {line['n']}, {line['training_seeds']} seed{'s' * (line['training_seeds'] > 1)}"
            assert row.testbed == VERSION
            assert row.now
            if "erase_equivalents" in line:
                costs = [cell.text for cell in row.cells]
                assert f"{line['erase_equivalents']:,.0f}" in costs
                assert f"{line['erase_seconds']:,.1f}" in costs
    assert rows["original"].kinds == ["nothing (the original)"]
    assert rows["spm"].kinds == ["targets only"]
    assert rows["uce"].kinds == ["anchor"]
    key = next(
        r for r in summary("kpop-leakage") if (r["method"], r["group"], r["metric"]) == ("kpop", "key: own", "esr@1")
    )
    assert rows["kpop"].cells[5].value == pytest.approx(100 - key["value"])


def test_twice_the_budget_another_model_and_fisher_information_have_their_place(board):
    """A row under an attack, as only some were doubled; one that is another model; and one with Fisher information."""
    (kept,) = [one for one in board.kept if one.name == "uce-dev"]
    of = {"method": "paper-first", "training_seeds": 1, "splits": 1, "n": 60}

    def number(group, value):
        return {**of, "group": group, "metric": "dsr", "value": value, "low": value, "high": value}

    first = next(i for i, row in enumerate(kept.summary) if row["method"] == "paper-first")
    taken = {**kept.summary[first], "fisher_equivalents": 4321.0}
    summary = [*kept.summary[:first], taken, *kept.summary[first + 1 :]]
    summary += [number("attack: p4d", 60.0), number("attack: p4d, doubled", 20.0)]
    plan = {**kept.plan, "method": {**kept.plan["method"], "original": {"model": "runs/retrained/weights"}}}
    rows = {
        row.method: row for row in standings([of_benchmarks.Kept(**{**vars(kept), "summary": summary, "plan": plan})])
    }
    assert rows["paper-first"].cells[4].value == 60.0
    assert "4,321" in [cell.text for cell in rows["paper-first"].cells]
    assert rows["original"].kinds == ["nothing (another model)"]


def test_claims_are_judged_by_results_of_the_plan_alone(board):
    claims = list(verdicts(board.kept))
    committed = {row["claim"]: row["claim_verdict"] for row in summary("kpop-leakage") if "claim" in row}
    assert {c.says: c.verdict for c in claims if c.plan == "kpop-leakage"} == committed
    assert "not measured" not in committed.values()
    weapons = [c for c in claims if c.plan == "duo-weapons"]
    assert {c.verdict for c in weapons} == {"not measured"}
    earlier = [c for c in weapons if c.earlier_verdict]
    kept = {row["claim"]: row["claim_verdict"] for row in summary("duo-weapons") if "claim" in row}
    assert {c.says.split(") ")[-1] if c.says.startswith("(") else c.says: c.earlier_verdict for c in earlier} == kept
    assert {c.testbed for c in earlier} == {"testbed-1"}
    assert all(c.measured.value is None for c in weapons)
    assert all(c.earlier.value is None for c in claims if c.plan == "kpop-leakage")


def with_claim(kept, **changes):
    claims = [{**kept.plan["claims"][0], **changes}]
    return of_benchmarks.Kept(**{**vars(kept), "plan": {**kept.plan, "claims": claims}})


def test_a_claim_is_judged_by_the_rule_that_the_plan_has_now(board):
    """How near is equal, and that something resists, are no words of the row that was kept."""
    (kept,) = [one for one in board.kept if one.name == "kpop-leakage"]
    row = next(r for r in kept.summary if r["method"] == "kpop - esd" and (r["group"], r["metric"]) == ("set", "esr@1"))
    assert row["training_seeds"] >= 2
    judged = {"claim": "alike", "method": "kpop - esd", "group": "set", "metric": "esr@1", "expected": "equal"}
    judged |= {name: row[name] for name in ("value", "low", "high", "n", "training_seeds")}
    one = of_benchmarks.Kept(**{**vars(kept), "summary": [*kept.summary, {**judged, "claim_verdict": "fails"}]})
    said = {"says": "alike", "rows": ["kpop", "esd"], "group": "set", "metric": "esr@1", "expected": "equal"}
    wide = max(abs(row["low"]), abs(row["high"])) + 1
    assert [c.verdict for c in verdicts([with_claim(one, **said, within=wide)])] == ["holds"]
    assert [c.verdict for c in verdicts([with_claim(one, **said, within=0.01)])] == ["undecided"]


def test_a_claim_of_other_words_or_another_limit_is_not_measured(board):
    (kept,) = [one for one in board.kept if one.name == "kpop-leakage"]
    measured = len([c for c in verdicts([kept]) if c.verdict != "not measured"])
    assert measured == len(kept.plan["claims"])
    for name, value in (
        ("says", "other words"),
        ("expected", "lower"),
        ("than", 1.0),
        ("metric", "psr@5"),
        ("group", "others"),
    ):
        claim = {**kept.plan["claims"][0], name: value}
        other = of_benchmarks.Kept(
            name=kept.name, plan={**kept.plan, "claims": [claim]}, records=kept.records, summary=kept.summary,
            answered=kept.answered,
        )  # fmt: skip
        assert [c.verdict for c in verdicts([other])] == ["not measured"], name


# the file -------------------------------------------------------------------------------------------------------------
def test_the_page_needs_nothing_else_and_links_to_the_plans(board):
    page = board.page.read_text()
    links = set(re.findall(r"""(?:src|href)=["']([^"']+)""", page))
    assert not [link for link in links if re.match(r"[a-z]+:", link) and not link.startswith("data:")]
    for link in links:
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in page, link
        elif not link.startswith("data:"):
            assert (board.page.parent / link).is_file(), link
    for name in PLANS:
        assert f"plans/{name}.toml" in links
    assert "url(http" not in page
    assert html.escape("<script>window.hacked = 1</script>") in page
    assert page.count("<script") == 1


def test_states_are_counted(board, tmp_path, capsys, monkeypatch):
    counts = leaderboard.write(board.kept, tmp_path / "o.html")
    assert dict(counts) == {"measured": 2, "earlier results only": 2, "not measured yet": 1}
    partly = [
        of_benchmarks.Kept(**{**vars(kept), "answered": list(kept.answered)[:2]})
        for kept in board.kept
        if kept.answered
    ]
    assert dict(leaderboard.write(partly, tmp_path / "p.html")) == {"measured in part": 2}


def test_a_plan_whose_model_is_not_here_ends_no_page(tmp_path):
    folder = put(tmp_path / "plans", "kpop-fig4")
    file = folder / "kpop-fig4.toml"
    rows = file.read_text().replace('method = ["original"', 'method = ["original", "retrained"')
    file.write_text(rows + '\n[method.retrained]\nmodel = "runs/nowhere/weights"\n')
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html"), "--quiet"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "It wants the model &#39;runs/nowhere/weights&#39;, which is not here." in page
    assert answered_in(folder) == {"kpop-fig4": frozenset()}


def test_bad_input_is_one_line(tmp_path, capsys):
    folder = tmp_path / "plans"
    for name, text, message in (
        ("b.toml", "about = ", "cannot be read as TOML"),
        ("b.toml", 'about = "x"\nset = "y"\n', "has no 'grid'"),
        ("a.toml", 'about = "x"\nset = "y"\n[grid]\nmethod = []\n[[claims]]\nsays = "z"\n', "a claim of plan"),
        ("a.jsonl", '{"method": "x"}\n', "has no 'group'"),
        ("a.jsonl", '{"provenance": {}}\n', "a record in"),
        ("a.jsonl", "nonsense\n", "line 1 is damaged"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "a.toml").write_text('about = "x"\nset = "objects10"\n[grid]\nmethod = ["original"]\n')
        (folder / name).write_text(text)
        assert main(["report", str(folder)]) == 2, text
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (folder / "report.html").exists()
    (folder / "a.jsonl").unlink()
    (folder / "report.html").write_text("mine")
    assert main(["report", str(folder)]) == 2
    assert (folder / "report.html").read_text() == "mine"


# what a reader sees ---------------------------------------------------------------------------------------------------
SHOWN = """return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].filter(r => r.checkVisibility())
  .map(r => [r.dataset.plan, r.cells[0].firstChild.textContent, r.dataset.testbed])"""


def shown(driver, table="standings"):
    return [tuple(row) for row in driver.execute_script(SHOWN, table)]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_no_wider_than_the_window_and_its_tables_can_be_read_out(board, visit, width):
    driver = visit(board.page, width)
    wide = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1] == width
    assert driver.execute_script("return window.hacked") is None
    named = "[...document.querySelectorAll('input,select,button')].every(e => e.labels?.length || e.ariaLabel || e.textContent)"
    assert driver.execute_script(f"return {named}"), "every control has a name"
    marked = """return [...document.querySelectorAll('table')].every(t =>
      [...t.tHead.rows[0].cells].every(c => c.scope === 'col') && [...t.tBodies[0].rows].every(r => r.cells[0].scope === 'row')
      && t.closest('[role=region][aria-label][tabindex="0"]'))"""
    assert driver.execute_script(marked)
    stuck = "const c = document.querySelector('#standings tbody th'); c.closest('.scroll').scrollLeft = 400;"
    assert driver.execute_script(f"{stuck} return c.getBoundingClientRect().left >= 0")
    asked = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in asked if not name.startswith("data:")] == []


def test_earlier_results_are_not_shown_until_they_are_asked_for(board, visit):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    driver = visit(board.page)
    assert {(plan, made) for plan, _, made in shown(driver)} == {("kpop-leakage", VERSION), ("uce-dev", VERSION)}
    count = driver.find_element(By.ID, "methods-shown")
    assert count.get_attribute("role") == "status"
    assert count.text.startswith(f"{len(shown(driver))} of ")
    Select(driver.find_element(By.ID, "age")).select_by_visible_text("earlier ones, too")
    everything = shown(driver)
    assert {made for _, _, made in everything} >= {VERSION, "testbed-1"}
    assert count.text == f"{len(everything)} of {len(everything)} rows."
    Select(driver.find_element(By.ID, "testbed")).select_by_visible_text("testbed-1")
    assert {plan for plan, _, _ in shown(driver)} <= {"duo-weapons", "kpop-fig4"}
    assert all(
        "earlier result" in row.text
        for row in driver.find_elements(By.CSS_SELECTOR, "#standings tr:not([hidden]) th[scope=row]")
    )
    Select(driver.find_element(By.ID, "testbed")).select_by_index(0)
    Select(driver.find_element(By.ID, "plan")).select_by_visible_text("duo-weapons")
    assert {plan for plan, _, _ in shown(driver)} == {plan for plan, _, _ in shown(driver, "judged")} == {"duo-weapons"}
    Select(driver.find_element(By.ID, "verdict")).select_by_visible_text("holds")
    assert shown(driver, "judged") == []


def test_methods_are_shown_that_were_told_no_more(board, visit):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    driver = visit(board.page)
    before = {row for row in shown(driver) if row[0] == "kpop-leakage"}
    driver.find_element(By.CSS_SELECTOR, "[name=told][value=phrases]").send_keys(Keys.SPACE)
    after = {row for row in shown(driver) if row[0] == "kpop-leakage"}
    gone = {method for _, method, _ in before - after}
    told = {row.method: row.kinds for row in standings(board.kept) if row.plan == "kpop-leakage"}
    assert gone == {method for method, kinds in told.items() if "phrases" in kinds} >= {"esd", "kpop"}


def test_columns_sort_by_key_and_links_open_their_plan(board, visit):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    driver = visit(board.page)
    head = next(
        b for b in driver.find_elements(By.CSS_SELECTOR, "#standings th button") if b.text.startswith("forwards")
    )
    values = {(row.plan, row.method): row.cells[6].order for row in standings(board.kept) if row.now}
    for turned in (True, False):
        head.send_keys(Keys.ENTER)
        order = [values[plan, method] for plan, method, _ in shown(driver)]
        numbers = [number for number in order if number != "–"]
        assert numbers == sorted(numbers, reverse=turned)
        assert order[len(numbers) :] == ["–"] * (len(order) - len(numbers)), "what has no number comes last"
    plan = driver.find_element(By.ID, "plan-kpop-leakage")
    assert plan.get_attribute("open") is None
    driver.execute_script("document.querySelector(\"#standings a[href='#plan-kpop-leakage']\").click()")
    driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert plan.get_attribute("open") is not None
    assert "fresh" in plan.text
    assert json.loads(driver.execute_script("return document.querySelector('#standings tr[data-told]').dataset.told"))
