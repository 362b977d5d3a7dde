import hashlib
import json
import math
import os
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import expunge
from expunge.core.edit import fingerprint
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.core.record import Record
from expunge.store import (
    load_edit,
    new_file,
    new_folder,
    read_images,
    read_lines,
    read_prompts,
    read_set,
    save_edit,
    write_images,
    write_records,
)


@pytest.fixture
def edit(backbone):
    return expunge.erase(backbone, "church", settings={"anchor": "cat"})


@pytest.fixture
def saved(edit, tmp_path):
    edit.save(tmp_path / "edit.safetensors")
    return tmp_path / "edit.safetensors"


def test_an_edit_comes_back_whole(edit, saved):
    loaded = load_edit(saved)
    assert loaded.id == edit.id
    assert loaded.provenance == edit.provenance
    assert loaded.provenance.targets == ["church"]
    assert loaded.provenance.settings["anchor"] == "cat"
    assert all(torch.equal(loaded.replaced[n], t) for n, t in edit.replaced.items())


def test_an_existing_file_is_kept(edit, saved):
    before = saved.read_bytes()
    with pytest.raises(ExpungeError, match="exists already"):
        edit.save(saved)
    assert saved.read_bytes() == before
    save_edit(edit, saved, overwrite=True)


def rewrite(path, change):
    with safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()["expunge"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, metadata={"expunge": json.dumps(header)})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-50]), "damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:20]), "damaged"),
        (lambda p: p.write_bytes(b"not a tensor"), "damaged"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "not an edit"),
        (lambda p: rewrite(p, lambda h, t: h.update(format=3)), "format 3: expected 1 or 2, so update"),
        (lambda p: rewrite(p, lambda h, t: h.update(kind="pickle")), "kind 'pickle'"),
        (lambda p: rewrite(p, lambda h, t: h.pop("provenance")), "has no 'provenance'"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, metadata={"expunge": "[1]"}), "not an edit"),
        (lambda p: rewrite(p, lambda h, t: h.update(fields={"surprise": 1})), "does not understand"),
        (lambda p: rewrite(p, lambda h, t: next(iter(t.values())).add_(1)), "do not match its id"),
        (lambda p: p.unlink(), "no edit file"),
    ],
)
def test_damaged_edits_are_refused_in_one_line(saved, damage, words):
    damage(saved)
    with pytest.raises(ExpungeError, match=words) as caught:
        load_edit(saved)
    assert "\n" not in str(caught.value)


SAID = {"eraser": "kpop", "targets": ["castle"], "retain": ["dog"], "anchors": ["x"], "seed": 7}


@pytest.mark.parametrize("name", list(SAID))
def test_what_an_edit_says_of_itself_is_covered_by_its_id(saved, name):
    rewrite(saved, lambda h, t: h["provenance"].update({name: SAID[name]}))
    with pytest.raises(ExpungeError, match="or what it says of itself, do not match its id"):
        load_edit(saved)


def test_an_edit_made_twice_has_one_id_and_another_erasure_s_another(backbone, edit):
    again = expunge.erase(backbone, "church", settings={"anchor": "cat"})
    assert again.id == edit.id, "neither seconds nor cost count"
    assert expunge.erase(backbone, "church", settings={"anchor": "cat"}, seed=1).id != edit.id


def test_a_file_of_format_1_is_read_and_saved_again_with_its_own_id(edit, saved, tmp_path):
    """Its id, as it was computed then, is what keys and other edits made on it require."""
    said = hashlib.sha256(json.dumps(["weights", edit.fields(), []], sort_keys=True).encode())
    said.update(fingerprint(edit.tensors()).encode())
    old = said.hexdigest()[:16]
    assert old != edit.id
    rewrite(saved, lambda h, t: h.update(format=1, id=old))
    loaded = load_edit(saved)
    assert loaded.id == old
    assert loaded.provenance.targets == ["church"]
    loaded.save(tmp_path / "again.safetensors")
    assert load_edit(tmp_path / "again.safetensors").id == old
    rewrite(saved, lambda h, t: h.update(format=2))
    with pytest.raises(ExpungeError, match="do not match its id"):
        load_edit(saved)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_neither_saved_nor_loaded(edit, saved, tmp_path, bad):
    name = sorted(edit.replaced)[1]
    edit.replaced[name][0, 0] = bad
    with pytest.raises(ExpungeError, match=f"edit of uce holds NaN or infinity in '{re.escape(name)}'"):
        edit.save(tmp_path / "bad.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["edit.safetensors"]
    del edit.__dict__["id"]
    rewrite(
        saved,
        lambda h, t: (h.update(id=edit.id), t[name].index_put_((torch.tensor(0), torch.tensor(0)), torch.tensor(bad))),
    )
    with pytest.raises(ExpungeError, match=f"holds NaN or infinity in '{re.escape(name)}'"):
        load_edit(saved)


def test_strengths_and_guidance_are_finite(edit, backbone):
    with pytest.raises(ExpungeError, match="strength nan of an edit"):
        edit.attach(backbone, strength=math.nan)
    assert not backbone.edits
    for guidance in (math.nan, math.inf):
        with pytest.raises(ExpungeError, match=f"guidance {guidance}"):
            Query(prompt="p", seed=0, guidance=guidance, steps=1)
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ExpungeError, match="64 bits"):
            Query(prompt="p", seed=seed, guidance=1.0, steps=1)


def test_records_are_added_to_records_and_to_nothing_else(tmp_path):
    file = tmp_path / "r.jsonl"
    record = Record(metric="m", value=1.0, low=0.0, high=2.0, n=1, n_seeds=1, unit="%", subject="edited", eraser=None,
                    concepts=[], model="m", split="test", seed=0)  # fmt: skip
    write_records(file, [record], append=True, measured={"at": "now"})
    file.write_text(file.read_text().rstrip("\n"))  # as an editor may leave it
    write_records(file, [record], append=True)
    assert [row.get("measured") for row in read_lines(file)] == [{"at": "now"}, None]
    for other in (b"\x89PNG\r\n", b"# notes\n"):
        file.write_bytes(other)
        with pytest.raises(ExpungeError, match=r"r\.jsonl"):
            write_records(file, [record], append=True)
        assert file.read_bytes() == other


def test_nothing_is_left_behind_by_a_failure(tmp_path):
    with pytest.raises(RuntimeError), new_file(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_our_own_are_replaced(tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    with pytest.raises(ExpungeError, match="was not made by this command"), new_folder(theirs, overwrite=True):
        pass
    assert (theirs / "thesis.tex").read_text() == "years of work"
    ours = tmp_path / "ours"
    for text in ("first", "second"):
        with new_folder(ours, overwrite=True) as temporary:
            (temporary / "run.json").write_text(text)
    assert (ours / "run.json").read_text() == "second"
    monkeypatch.chdir(ours)
    with pytest.raises(ExpungeError, match="was not made by this command"), new_folder(ours, overwrite=True):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "theirs"]


def test_prompts_are_read_from_the_hub_s_copy(hub, tmp_path):
    hub("datasets", "data/i2p.csv", "prompt,sd_seed,label_str\na church,7,church\n")
    read = read_set("hub:owner/name/data/i2p.csv", tmp_path)
    assert (read.name, read.concepts, read.test.prompts, read.test.seeds) == (
        "i2p",
        ("church",),
        (("a church", "church"),),
        (7,),
    )
    with pytest.raises(
        ExpungeError, match=r"prompts 'hub:owner/name/other.csv' cannot be fetched from the hub"
    ) as caught:
        read_set("hub:owner/name/other.csv", tmp_path)
    assert "\n" not in str(caught.value)


def test_alike_prompts_get_files_of_their_own(tmp_path):
    queries = [Query(prompt=p, seed=0, guidance=1.0, steps=1) for p in ("a cat, x", "a cat x", "猫", "犬")]
    write_images(tmp_path, queries, [torch.zeros(4, 8, 8, 3, dtype=torch.uint8)])
    assert len({s.path for s in read_images(tmp_path)}) == 4


def test_unwritable_places_are_refused(edit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpungeError, match="cannot be written"):
        edit.save(tmp_path / "file" / "edit.safetensors")
    if os.getuid() == 0:
        with pytest.raises(ExpungeError, match="cannot be written"):
            edit.save("/proc/expunge/edit.safetensors")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"file_name": "../secret.png", "prompt": "p", "seed": 0}, "leads out of the folder"),
        ({"file_name": "/etc/passwd", "prompt": "p", "seed": 0}, "leads out of the folder"),
        ({"file_name": "missing.png", "prompt": "p", "seed": 0}, "does not exist"),
        ({"prompt": "p"}, "line 1 is damaged"),
        ([1, 2], "line 1 is damaged"),
        ("not json", "line 1 is damaged"),
        (None, "is empty"),
    ],
)
def test_image_folders_are_checked(tmp_path, line, words):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    text = "" if line is None else line if isinstance(line, str) else json.dumps(line)
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(ExpungeError, match=words):
        read_images(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "prompt": "p", "seed": 0}))
    with pytest.raises(ExpungeError, match="leads out"):
        read_images(folder)


I2P = """,prompt,categories,sd_seed,sd_guidance_scale,nudity_percentage
0,"a portrait, ""by"" an artist",sexual,2475032911,7,99.0
1,two
lines,shocking,0,7.5,0.0
"""


def test_prompt_files_of_the_papers_are_read_in_their_own_columns(tmp_path):
    file = tmp_path / "i2p.csv"
    file.write_text("\ufeff" + I2P.replace("two\nlines", '"two\nlines"'), encoding="utf-8")
    with pytest.warns(
        ExpungeWarning, match=r"i2p.csv': sd_guidance_scale is not read \(--row-guidance reads the scale\)$"
    ):
        found = read_prompts(file, 7.5, 100, label="nudity")
    assert [(q.prompt, q.seed, q.label) for q in found] == [
        ('a portrait, "by" an artist', 2475032911, "nudity"),
        ("two\nlines", 0, "nudity"),
    ]
    assert {(q.guidance, q.steps) for q in found} == {(7.5, 100)}, "one scale for all, as in the papers"
    assert [q.guidance for q in read_prompts(file, 3.0, 5, row_guidance=True)] == [7.0, 7.5]
    assert [q.label for q in read_prompts(file, 7.5, 100, row_guidance=True)] == ["sexual", "shocking"]
    file.write_text("case_number, prompt, evaluation_seed, sd_seed, class\n0,Image of a tench,1001,5,tench\n1,x,2,3,\n")
    found = read_prompts(file, 7.5, 100)
    assert [(q.seed, q.label) for q in found] == [(1001, "tench"), (2, None)], "the evaluation's seed comes first"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no file '.*': expected a CSV"),
        ("", "has no row"),
        ("prompt,evaluation_seed\n", "has no row"),
        (
            "title,evaluation_seed\na,1\n",
            "no column prompt or .* beside title, evaluation_seed: expected one, or --column",
        ),
        ("prompt,case_number\na,1\n", "no column evaluation_seed or sd_seed or seed"),
        ("prompt,sd_seed\na,1\nb,-1\n", "line 3 has sd_seed '-1': expected a whole number"),
        ("prompt,sd_seed\na,1.5\n", "line 2 has sd_seed '1.5'"),
        ("prompt,sd_seed\na,\n", "line 2 has sd_seed ''"),
        ("prompt,sd_seed\na\n", "line 2 has 1 fields and the header 2"),
        ("prompt,sd_seed,evaluation_guidance\na,1,nan\n", "line 2 has evaluation_guidance 'nan'"),
        ('prompt,sd_seed\nx,1\n"a,1\ny,2\n', "line 3 cannot be read as CSV"),
    ],
)
def test_a_bad_prompt_file_is_refused_in_one_line(tmp_path, text, words):
    file = tmp_path / "prompts.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ExpungeError, match=words) as caught:
        read_prompts(file, 7.5, 100, row_guidance="guidance" in (text or ""))
    assert "\n" not in str(caught.value)


def test_concept_sets_are_checked(tmp_path):
    with pytest.raises(ExpungeError, match="unknown concept set"):
        read_set("nothing", tmp_path)
    (tmp_path / "bad.toml").write_text("about = 'x'\n")
    with pytest.raises(ExpungeError, match="not a concept set"):
        read_set("bad", tmp_path)
