"""Model cards: what the hub reads of them by its own classes, and that nothing stands in them that was not measured."""

import json
import math
import os

import pytest
from huggingface_hub import ModelCard

import expunge
from expunge import backbones
from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.stages import export
from expunge.stages.card import Told, read_told
from tiny import tiny_pipeline


@pytest.fixture(scope="module")
def held():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def edit(held):
    return expunge.erase(held, "church", retain=["dog"], settings={"anchor": "cat"})


def record_of(edit, **changed):
    """A record as `expunge measure` writes it, of the model with ``edit``."""
    one = {"metric": "esr@1", "value": 97.5, "low": 90.0, "high": 99.0, "n": 40, "unit": "%", "split": "test"}
    provenance = {"edits": [edit.id], "strength": 1.0, "metric": "esr-psr", "settings": {"judge": "testbed"}}
    whose = {"subject": "edited", "model": "StableDiffusionPipeline", "concepts": ["church"], "provenance": provenance}
    return {"format": 1, **one, **whose, **changed}


def original(edit):
    return record_of(edit, subject="original", value=12.0, provenance={"edits": [], "strength": None})


def attacked(edit, value=55.0):
    provenance = {**record_of(edit)["provenance"], "attack": {"attack": "relearning"}, "variant": " (judge testbed)"}
    return record_of(edit, value=value, provenance=provenance)


def write(held, edit, out, **told):
    export.to_folder(backbones.of(held), [edit], out, told=Told(**told))
    return ModelCard.load(out / "README.md")


def test_the_hub_s_own_classes_read_what_was_measured_and_nothing_else(held, edit, tmp_path):
    recovered = record_of(edit, subject="recovered", value=77.0)
    nothing = record_of(edit, metric="confidence", value=math.nan)
    records = [record_of(edit), original(edit), attacked(edit), recovered, nothing]
    told = {"records": records, "license": "creativeml-openrail-m", "base_model": "owner/name"}
    card = write(held, edit, tmp_path / "out", **told)
    data = card.data
    assert (data.license, data.base_model, data.base_model_relation) == (
        "creativeml-openrail-m",
        "owner/name",
        "finetune",
    )
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
    assert data.model_name == "owner/name without church"
    found = [(r.metric_type, r.metric_value, r.dataset_config, r.dataset_split) for r in data.eval_results]
    assert found == [
        ("esr", 97.5, "prompts: church", "test"),
        ("esr", 55.0, "attack: relearning: church", "test"),
    ]
    first, second = data.eval_results
    assert first.metric_args["interval_95"] == [90.0, 99.0]
    assert first.metric_args["n"] == 40
    assert first.metric_args["measured_by"] == {"metric": "esr-psr", "settings": {"judge": "testbed"}}
    assert (first.metric_name, second.metric_name) == ("esr@1, %", "esr@1 (judge testbed), %")
    assert "| edited | church | test | esr@1 | 97.5 % | 90.0 to 99.0 | 40 |" in card.text
    assert "| edited, attack: relearning | church | test | esr@1 (judge testbed) | 55.0 %" in card.text
    assert "| original | church | test | esr@1 | 12.0 %" in card.text
    for line in ("asked to remove: church", "asked to keep: dog", "method: uce (", "Use it responsibly"):
        assert line in card.text
    assert "licence: creativeml-openrail-m, as its publisher says" in card.text


def placed(edit, number, value, group, **more):
    """A record as a plan or an audit has it, of a group of its table."""
    known = {**record_of(edit)["provenance"], "group": group, "retain_measured": ["dog", "tree"], **more}
    return record_of(edit, metric=number, value=value, provenance=known)


def test_a_number_says_which_images_it_is_of_and_what_these_were_asked_for(held, edit, tmp_path):
    inverted, doubled = (f"attack: concept-inversion (steps 50){end}" for end in ("", ", doubled"))
    attack = {"attack": {"attack": "concept-inversion", "settings": {"steps": 50}}}
    many = [f"object {i}" for i in range(10)]
    records = [
        placed(edit, "esr@1", 1.0, "set"),
        placed(edit, "psr@1", 2.0, "set"),
        placed(edit, "psr@1", 3.0, "others", retain_measured=many),
        placed(edit, "clip_kept", 4.0, "close"),
        placed(edit, "ner_kept@0.5", 5.0, "held-out"),
        placed(edit, "fid", 6.0, "coco", metric="fid", retain_measured=[]),
        placed(edit, "esr@1", 7.0, "keywords"),
        placed(edit, "esr@1", 8.0, inverted, **attack),
        placed(edit, "esr@1", 9.0, doubled, **attack, attack_run=1),
    ]
    card = write(held, edit, tmp_path / "out", records=records)
    few = f"{', '.join(many[:8])} and 2 more"
    expected = [
        ("edited, set", "church", "esr@1"),
        ("edited, set", "dog, tree", "psr@1"),
        ("edited, others", few, "psr@1"),
        ("edited, close", "dog, tree", "clip_kept"),
        ("edited, held-out", "dog, tree", "ner_kept@0.5"),
        ("edited, coco", "what should stay", "fid"),
        ("edited, keywords", "church", "esr@1"),
        (f"edited, {inverted}", "church", "esr@1"),
        (f"edited, {doubled}, run 1", "church", "esr@1"),
    ]
    for value, (whose, asked, metric) in enumerate(expected, 1):
        assert f"| {whose} | {asked} | test | {metric} | {value}.0 % |" in card.text
    read = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    found = {r.metric_value: (r.dataset_config, r.dataset_name) for r in read}
    for value, (whose, asked, _) in enumerate(expected, 1):
        group = whose.removeprefix("edited, ")
        assert found[value] == (f"{group}: {asked}", f"images for {asked}, {group} (made by the model itself)")


def test_no_path_of_this_machine_is_in_a_card(held, edit, tmp_path):
    """Of settings, judges, what tells numbers and attacks apart, the split, and an audit's words."""
    home = tmp_path / "home (old)" / "me"
    home.mkdir(parents=True)
    weights, judge = str(home / "alex.safetensors"), f"safety-checker:path={home / 'checker'},threshold=0.5"
    beside = os.path.relpath(home / "checker")
    (home / "checker").touch()
    settings = {"weights": weights, "judge": judge, "nested": [{"checker": beside}], "prompts": ["a man/woman"]}
    attack = {"attack": "prompt-set", "settings": {"path": "/srv/me/words.csv"}}
    made = {"settings": settings, "attack": attack, "variant": f" (weights {weights}, judge {judge}, near {beside})"}
    record = placed(edit, "lpips_kept", 0.5, "attack: prompt-set (path /srv/me/words.csv)", **made)
    record["split"] = "file:///srv/me/sets/mine.csv"
    verdict = {"headline": f"Measured by {judge}.", "advice": "", "lines": ["asked /srv/me/words.csv and/or others"]}
    card = write(held, edit, tmp_path / "out", records=[record], verdict=verdict)
    (result,) = card.data.eval_results
    for word in ("home (old)", "/srv", "me/", str(tmp_path)):
        assert word not in card.content
    short = "safety-checker:path=checker,threshold=0.5"
    assert result.metric_args["measured_by"]["settings"] == {
        "weights": "alex.safetensors",
        "judge": short,
        "nested": [{"checker": "checker"}],
        "prompts": ["a man/woman"],
    }
    assert result.metric_name == f"lpips_kept (weights alex.safetensors, judge {short}, near checker), %"
    assert "| edited, attack: prompt-set (path words.csv) | dog, tree | mine.csv |" in card.text
    assert f"**Measured by {short}.**" in card.text
    assert "- asked words.csv and/or others" in card.text


def test_without_records_and_terms_nothing_is_made_up(held, edit, tmp_path):
    card = write(held, edit, tmp_path / "out")
    assert card.data.eval_results is None
    assert "model-index" not in card.data.to_dict()
    assert card.data.license is None
    assert card.data.base_model is None
    assert "licence: not known here" in card.text
    assert "states what was done, not how well it worked" in card.text


def test_the_licence_is_the_base_model_s_own_where_its_folder_has_a_card(edit, held, tmp_path):
    held.save_pretrained(tmp_path / "base")
    page = "---\nlicense: other\nlicense_name: lab-terms\nlicense_link: https://example.org/terms\n---\n# base\n"
    (tmp_path / "base" / "README.md").write_text(page)
    backbone = backbones.load(str(tmp_path / "base"))
    export.to_folder(backbone, [edit], tmp_path / "out", any_base=True)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "lab-terms")
    assert "other lab-terms https://example.org/terms, as the base model's own card says" in card.text
    assert str(tmp_path) not in card.content, "no path of this machine is shown"
    assert "# base with edits" in card.text
    (tmp_path / "base" / "README.md").write_text("---\n[not: {yaml\n---\n")
    export.to_folder(backbone, [edit], tmp_path / "broken", any_base=True)
    assert ModelCard.load(tmp_path / "broken" / "README.md").data.license is None


def test_a_lora_s_card_says_that_it_stands_beside_its_base(held, tmp_path):
    settings = {"iterations": 1, "sampling": {"sampling_steps": 2}}
    lora = expunge.erase(held, "church", method="leco", settings=settings)
    backbone = backbones.of(held)
    export.lora_to_folder(backbone, [lora], tmp_path / "out", "diffusers", told=Told(base_model="owner/name"))
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.base_model, data.base_model_relation) == ("owner/name", "adapter")
    assert "lora" in data.tags


def audit(folder, edit, records, ids=None):
    """A folder as an audit leaves it."""
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    verdict = {"headline": "Erased from prompts.", "advice": "Keep it.", "lines": ["Asked for by name, 0 %."]}
    said = {"format": 1, "asked": {"ids": ids or [edit.id]}, "verdict": verdict}
    (folder / "audit.json").write_text(json.dumps(said))
    return folder


def test_a_folder_gives_the_records_of_these_edits_and_an_audit_s_verdict(held, edit, tmp_path):
    other = record_of(edit, value=1.0, provenance={"edits": ["somebody's"], "strength": 1.0})
    half = record_of(edit, value=2.0, provenance={"edits": [edit.id], "strength": 0.5})
    folder = audit(tmp_path / "audit", edit, [original(edit), other, half, record_of(edit), attacked(edit)])
    backbone = backbones.of(held)
    told = read_told([folder], backbone, [edit], 1.0)
    assert [r["value"] for r in told.records] == [12.0, 97.5, 55.0]
    card = write(held, edit, tmp_path / "out", records=told.records, verdict=told.verdict)
    assert "**Erased from prompts.** Keep it." in card.text
    assert "- Asked for by name, 0 %." in card.text
    (tmp_path / "other.jsonl").write_text(json.dumps(other) + "\n")
    one = read_told([tmp_path / "other.jsonl"], backbone, [edit], 1.0)
    with pytest.raises(ExpungeError, match="a record is of edits somebody's"):  # a file is taken whole, or refused
        export.to_folder(backbone, [edit], tmp_path / "bad", told=one)
    assert not (tmp_path / "bad").exists()
    bare = audit(tmp_path / "bare", edit, [original(edit), other])
    with pytest.raises(ExpungeError, match=f"has no record of {edit.id} on StableDiffusionPipeline"):
        read_told([bare], backbone, [edit], 1.0)
    with pytest.raises(ExpungeError, match=r"records\.jsonl"):
        read_told([tmp_path], backbone, [edit], 1.0)
    others = audit(tmp_path / "others", edit, [record_of(edit)], ids=["another"])
    assert not read_told([others], backbone, [edit], 1.0).verdict, "which is of another edit"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--license", "My own terms"], "licence 'My own terms': expected its id on the hub"),
        (["--base-model", "no-owner"], "base model 'no-owner': expected its id on the hub"),
    ],
)
def test_terms_that_are_none_are_refused_in_a_line_before_anything_is_opened(options, words, tmp_path, capsys):
    missing = ["--edit", str(tmp_path / "missing.safetensors")]
    assert main(["export", *missing, *options, "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()
