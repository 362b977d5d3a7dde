"""Model cards: what the hub reads of them by its own classes, and that nothing stands in them that was not measured."""

import json
import math

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
    assert found == [("esr", 97.5, "prompts", "test"), ("esr", 55.0, "attack-relearning", "test")]
    first, second = data.eval_results
    assert first.metric_args["interval_95"] == [90.0, 99.0]
    assert first.metric_args["n"] == 40
    assert first.metric_args["measured_by"] == {"metric": "esr-psr", "settings": {"judge": "testbed"}}
    assert (first.metric_name, second.metric_name) == ("esr@1, %", "esr@1 (judge testbed), %")
    assert "| edited | test | esr@1 | 97.5 % | 90.0 to 99.0 | 40 |" in card.text
    assert "| edited, under relearning | test | esr@1 (judge testbed) | 55.0 %" in card.text
    assert "| original | test | esr@1 | 12.0 %" in card.text
    for line in ("asked to remove: church", "asked to keep: dog", "method: uce (", "Use it responsibly"):
        assert line in card.text
    assert "licence: creativeml-openrail-m, as its publisher says" in card.text


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
