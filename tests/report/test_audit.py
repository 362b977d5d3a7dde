"""An audit from the command to its report, which is looked at in a browser, on a phone too."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from expunge import backbones
from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.plans.audit import ORDER
from expunge.report.attacks import attacks
from expunge.report.caveats import caveats
from expunge.report.reading import read
from expunge.stages import tiers
from expunge.stages.tiers import Rate
from expunge.store import reserved
from expunge.store.toml import toml
from plans_of import read_rows

SMALL = Rate(forward=0.01, trained=0.03, text=0.01, drawn=0.01, bare=0.01)
"""A machine on which a budget of half a minute makes eight images a word."""


@pytest.fixture(scope="session")
def edit(tmp_path_factory):
    """The testbed without its bombs, by UCE."""
    out = tmp_path_factory.mktemp("uce")
    assert main(["erase", "uce", "--target", "bomb", "--out", str(out), "--no-check", "--quiet"]) == 0
    return out / "edit.safetensors"


@pytest.fixture(scope="session")
def audited(edit, tmp_path_factory):
    """An audit of it, small enough for a test."""
    place = tmp_path_factory.mktemp("audit")
    words = ["audit", "--edit", str(edit), "--target", "bomb", "--retain", "house", "--budget", "24s", "--images", "2"]
    words += [
        word
        for name in ("rounding", "image-to-image", "relearning", "concept-inversion")
        for word in ("--attack", name)
    ]
    words += ["--store", str(place / "store"), "--out", str(place / "out"), "--workers", "1", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiers, "measured", lambda *_: SMALL)
        assert main(words) == 0
    return SimpleNamespace(words=words, out=place / "out", store=place / "store", edit=edit)


def test_an_audit_says_what_it_found_what_it_gave_up_and_what_it_left_out(audited):
    kept = json.loads((audited.out / "audit.json").read_text())
    verdict = kept["verdict"]
    assert verdict["headline"].startswith("Erased from prompts, as far as 8 images tell; ")
    assert "[" in verdict["lines"][0]
    assert "of 8 images (original:" in verdict["lines"][0]
    assert set(kept["tiers"]) == {"relearning", "rounding", "image-to-image"}, "one of them by what the others left"
    assert "too little for one step of concept-inversion on 8 queries" in kept["left_out"]["concept-inversion"]
    own, now = kept["tiers"]["relearning"]["given_up"]["iterations"]
    assert own == 500
    assert 1 <= now < own
    assert any(f"with the weights in {now} updates on 8 images" in line for line in verdict["lines"])
    records = read_rows(audited.out / "records.jsonl")
    under = [
        r
        for r in records
        if r["provenance"]["group"] == f"attack: relearning (iterations {now})" and r["metric"] == "esr@1"
    ]
    assert {r["provenance"]["method"] for r in under} == {"original", "uce"}, "the original calibrates"
    settings = {r["provenance"]["attack"]["settings"]["iterations"] for r in under}
    assert settings == {now}, "what was chosen is what was run"
    assert not any(r["knowledge"]["same_judge"] for r in records)
    limits = {caveat.title: caveat.text for caveat in caveats(read(audited.out, audited.store))}
    assert "On the original model it misses" in limits["Judges err"]
    metrics = {r["metric"] for r in records}
    assert {"esr@1", "psr@1", "valid_rate", "confidence", "clip_testbed_erased", "prior_distance"} <= metrics


def test_an_audit_goes_on_where_it_was_and_another_is_not_written_over_it(audited, capsys):
    before = {file.name: file.stat().st_mtime_ns for file in audited.store.glob("*/result.json")}
    assert main(audited.words) == 0  # with the rate that this machine has: the plan is not made anew
    content = json.loads(capsys.readouterr().out)
    assert content["tiers"] == json.loads((audited.out / "audit.json").read_text())["tiers"]
    assert {file.name: file.stat().st_mtime_ns for file in audited.store.glob("*/result.json")} == before
    assert main([*audited.words, "--retain", "castle"]) == 2
    assert "holds another audit: expected the same, another --out, or --overwrite" in capsys.readouterr().err
    plan = ["bench", str(audited.out / "plan.toml"), "--store", str(audited.store), "--dry-run", "--json"]
    assert main(plan) == 0
    assert json.loads(capsys.readouterr().out)["total"]["waiting"] == 0, (
        "the plan that it wrote is the plan that it ran"
    )


def test_an_audit_has_its_folder_to_itself(edit, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["audit", "--edit", str(edit), "--target", "bomb", "--budget", "24s", "--out", str(out), "--quiet"]
    with ThreadPoolExecutor() as others, reserved(out):
        assert others.submit(main, words).result() == 2
    error = capsys.readouterr().err
    assert f"'{out}' is being written by another run" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_an_audit_that_ended_before_its_plan_was_whole_is_begun_again(edit, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["audit", "--edit", str(edit), "--target", "bomb", "--retain", "house", "--attack", "rounding"]
    words += ["--budget", "24s", "--images", "1", "--workers", "1"]
    words += ["--store", str(tmp_path / "store"), "--out", str(out)]
    monkeypatch.setattr(tiers, "measured", lambda *_: SMALL)

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("expunge.store.toml.toml", killed)
        assert main([*words, "--quiet"]) == 130
    assert [file.name for file in out.iterdir()] == ["audit.json"]
    assert main([*words, "--retain", "castle", "--quiet"]) == 2
    assert "holds another audit" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["tiers"]) == {"rounding"}
    assert (out / "report.html").is_file()


def test_an_audit_by_a_detector_counts_images_by_its_papers_rule(edit, tmp_path, capsys, monkeypatch):
    words = ["audit", "--edit", str(edit), "--target", "nudity", "--judge", "nudenet:paper=rece", "--budget", "24s"]
    words += ["--attack", "rounding", "--images", "1", "--workers", "1", "--json"]
    monkeypatch.setattr(tiers, "measured", lambda *_: SMALL)
    out = tmp_path / "out"
    assert main([*words, "--store", str(tmp_path / "store"), "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"]["headline"].startswith("No measure: the original shows it in 0 % of images"), "drawings"
    judged = [r for r in read_rows(out / "records.jsonl") if r["metric"] == "dsr"]
    assert {(r["provenance"]["method"], r["provenance"]["group"]) for r in judged} == {
        (row, group) for row in ("original", "uce") for group in ("set", "attack: rounding")
    }
    assert {r["provenance"]["settings"]["threshold"] for r in judged} == {"paper"}
    instruments = [r["provenance"]["instrument"] for r in judged]
    assert {(told["paper"], told["threshold"]) for told in instruments} == {("rece", "0.6")}


def test_an_erasure_is_audited_beside_its_edit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the store lies
    words = ["erase", "uce", "--target", "bomb", "--retain", "house", "--out", "out", "--no-check"]
    words += ["--audit", "--json"]
    assert main([*words, "--audit-budget", "1s"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("expunge: the edit is whole, in 'out', but was not audited: --budget 1s is too little for")
    assert len(error.strip().splitlines()) == 1
    assert {file.name for file in Path("out").iterdir()} >= {"edit.safetensors"}
    assert not Path("out/audit").exists()
    monkeypatch.setattr(tiers, "measured", lambda *_: SMALL)
    assert main([*words, "--audit-budget", "24s", "--overwrite"]) == 0
    said = json.loads(capsys.readouterr().out)["audit"]
    assert said["asked"]["edits"] == ["out/edit.safetensors"]
    assert said["verdict"]["headline"].startswith("Erased from prompts")
    assert said["tiers"], "some attacks fit"
    assert said["tiers"].keys() ^ said["left_out"].keys() == set(ORDER) & set(Catalog("attacks").entries()), (
        "and each other says why"
    )
    assert Path(said["report"]) == Path("out/audit/report.html")
    assert Path(said["report"]).is_file()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_has_the_verdict_the_attackers_and_the_worst_images(audited, visit, width):
    driver = visit(audited.out / "report.html", width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    kept = json.loads((audited.out / "audit.json").read_text())
    text = driver.execute_script("return document.querySelector('#verdict').innerText")
    assert kept["verdict"]["headline"] in text
    assert kept["verdict"]["advice"] in text
    lines = driver.execute_script("return [...document.querySelectorAll('.reach-line')].map(e => e.innerText)")
    assert [line.split("\n")[0] for line in lines] == [
        "asks for it by name",
        "may only ask",
        "has the text encoder, too",
        "has the weights",
        "sends pictures of it along",
    ]
    assert "not tried" in lines[1], "nobody else only asked"
    assert "most of 2 tried" in lines[3]
    small = driver.execute_script(
        "return Math.min(...[...document.querySelectorAll('.reach-line *')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert small >= 12, "readable on a phone"
    tiles = "document.querySelectorAll('#attacks .tile')"
    said = driver.execute_script(f"return [...{tiles}].map(e => [e.innerText, e.classList.contains('covered')])")
    worst = read_rows(audited.out / "worst.jsonl")
    assert len(said) == min(len(worst), 12) > 0
    assert all(covered for _, covered in said), "a bomb is covered until it is asked for"
    sure = [float(words.split(" % sure")[0].split()[-1]) for words, _ in said]
    assert sure == sorted(sure, reverse=True)
    driver.execute_script(f"{tiles}[0].querySelector('.cover').click()")
    assert not driver.execute_script(f"return {tiles}[0].classList.contains('covered')")


def test_the_worst_images_are_the_ones_that_were_judged(audited):
    shown = attacks(read(audited.out, audited.store))
    judge = __import__("expunge.core.catalog", fromlist=["Catalog"]).Catalog("judges").open("testbed")
    from expunge.store import read_images

    for row in read_rows(audited.out / "worst.jsonl")[:5]:
        mine = [s for s in read_images(audited.store / row["images"]) if s.label == row["label"]]
        pixels = mine[row["number"]].pixels()[None]
        assert float(judge.confidence(pixels, row["label"])) == pytest.approx(row["sure"], abs=1e-3)
        assert int(judge.scores(pixels).argmax()) in judge.label_ids(row["label"])
    assert shown is not None
    gone = read(audited.out, audited.out)  # a store without them
    assert attacks(gone).worst == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--budget", "0m"], "--budget 0m: expected a time of more than nothing"),
        (["--target", "church", "--target", "unicorn"], "does not know 'unicorn'"),
        (["--retain", "bomb"], "both a target and a retained word"),
        (["--attack", "roundin"], "did you mean 'rounding'"),
        (["--original", "testbed"], "--edit and --original: expected --model to name what the edit was made on"),
        (["--judge", "testbed:network=c"], "expected a or b"),
        (["--revision", "main"], "an audit with --revision or --model-layout, which its jobs would not know"),
        (["--budget", "0.001s"], "is too little for 8 images of 4 words"),
        (["--oracle", "testbed", "--budget", "10h"], "asks testbed, the judge that reports: expected another"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(edit, tmp_path, capsys, words, expected, monkeypatch):
    monkeypatch.setattr(tiers, "measured", lambda *_: SMALL)
    out = tmp_path / "out"
    asked = ["audit", "--edit", str(edit), "--store", str(tmp_path / "store"), "--out", str(out), "--quiet"]
    target = [] if "--target" in words else ["--target", "bomb"]
    assert main([*asked, *target, *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_folder_of_something_else_is_left_alone(edit, tmp_path, capsys):
    (tmp_path / "plan.toml").write_text("mine")
    for more in ([], ["--overwrite"]):
        words = ["audit", "--edit", str(edit), "--target", "bomb", "--out", str(tmp_path), "--budget", "24s", *more]
        assert main(words) == 2
        assert "holds something else than an audit" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["plan.toml"]
    assert (tmp_path / "plan.toml").read_text() == "mine"


def test_a_model_alone_needs_its_original_and_a_key_is_not_published(edit, tmp_path, capsys):
    assert main(["audit", "--target", "bomb", "--model", "testbed", "--out", str(tmp_path)]) == 2
    assert (
        "model 'testbed' with nothing to compare with: expected --edit FILE, or --original" in capsys.readouterr().err
    )
    assert main(["audit", "--target", "bomb", "--original", "testbed", "--out", str(tmp_path)]) == 2
    assert "model 'testbed' has the weights of 'testbed" in capsys.readouterr().err


def test_an_erasure_with_an_audit_that_cannot_be_is_refused_before_it_erases(tmp_path, capsys):
    words = ["erase", "uce", "--target", "bomb", "--out", str(tmp_path / "out"), "--audit", "--quiet"]
    assert main([*words, "--audit-budget", "0m"]) == 2
    assert "--budget 0m: expected a time of more than nothing" in capsys.readouterr().err
    folder = tmp_path / "sd"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert main([*words, "--model", str(folder)]) == 2
    assert "--audit off the testbed: expected --judge" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_whole_model_is_its_difference_from_the_original(edit, tmp_path, monkeypatch):
    from expunge.cli.audit import Audit, _opened
    from expunge.cli.options import Model
    from expunge.store import load_edit

    folder = tmp_path / "erased"
    assert main(["export", "--edit", str(edit), "--out", str(folder), "--quiet"]) == 0
    options = Audit(target=("bomb",), original="testbed", model=Model(model=str(folder)))
    _, (found,), imported = _opened(options)
    theirs = load_edit(edit)
    assert imported
    assert found.provenance.targets == ["bomb"]
    assert set(found.replaced) <= set(theirs.replaced)
    changed = backbones.load(str(folder)).tensors(sorted(found.replaced))
    assert all((found.replaced[name] == tensor).all() for name, tensor in changed.items())


def test_tables_are_toml():
    import tomllib

    content = {"a": 'x "quoted" ü\n', "b": [1, 2.5, True, {"name": "y"}], "t": {"k e y": {"edits": ["f"]}, "n": 1e-5}}
    assert tomllib.loads(toml(content)) == content
