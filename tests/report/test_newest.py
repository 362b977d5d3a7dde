"""A report counts what was measured last, and says what it leaves out."""

import json
import shutil

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.report.caveats import caveats
from expunge.report.reading import read
from expunge.stages import card
from expunge.store import read_lines, write_lines


@pytest.fixture
def run(images, tmp_path):
    """A folder with images, measured once."""
    shutil.copytree(images, tmp_path / "run" / "original")
    measured(tmp_path / "run", "church")
    return tmp_path / "run"


def measured(folder, target, *more):
    words = [
        "measure",
        "esr-psr",
        "--images",
        folder / "original",
        "--target",
        target,
        "--out",
        folder / "r.jsonl",
        "--quiet",
    ]
    assert main([*map(str, words), *more]) == 0


def test_what_is_measured_again_counts_once_and_the_report_says_so(run):
    once = read(run, run)
    assert once.outdated == 0
    measured(run, "church")
    twice = read(run, run)
    assert len(twice.records) == len(once.records)
    assert twice.outdated == len(once.records)
    assert min(r["measured"]["at"] for r in twice.records) > max(r["measured"]["at"] for r in once.records)
    assert [c.text[:3] for c in caveats(twice) if c.title == "Some records were left out"] == [f"{twice.outdated} r"]
    measured(run, "dog")  # which is another question
    assert len(read(run, run).records) > len(once.records)


def test_a_model_card_has_the_newest_alone_and_says_so(run):
    once = card.read_records([run / "r.jsonl"])
    measured(run, "church")
    with pytest.warns(ExpungeWarning, match=f"{len(once)} of {2 * len(once)} records are not in the card"):
        twice = card.read_records([run / "r.jsonl"])
    assert len(twice) == len(once)
    assert min(r["measured"]["at"] for r in twice) > max(r["measured"]["at"] for r in once)
    write_lines(run / "bad.jsonl", [{"measured": once[0]["measured"], "provenance": 1}])
    assert len(card.read_records([run / "bad.jsonl"])) == 1, "which the card refuses"


def test_records_of_images_that_were_replaced_are_left_out(run):
    once = read(run, run)
    lines = read_lines(run / "original" / "metadata.jsonl")
    write_lines(run / "original" / "metadata.jsonl", [{**row, "seed": row["seed"] + 1} for row in lines])
    assert read(run, run).outdated == len(once.records)
    measured(run, "church")
    assert len(read(run, run).records) == len(once.records)


def test_records_that_do_not_say_when_are_all_kept(run):
    """Those of an older expunge, of analyses, and of plans."""
    rows = read_lines(run / "r.jsonl")
    write_lines(run / "r.jsonl", [{k: v for k, v in row.items() if k != "measured"} for row in rows])
    assert len(read(run, run).records) == len(rows)


@pytest.mark.parametrize(
    "change", [{"provenance": 1}, {"value": "high"}, {"low": None}, {"knowledge": []}, {"concepts": "a"}]
)
def test_what_is_no_record_is_refused_in_one_line(run, change):
    rows = read_lines(run / "r.jsonl")
    (run / "r.jsonl").write_text(json.dumps({**rows[0], **change}) + "\n")
    with pytest.raises(ExpungeError, match=r"a record in '.*r\.jsonl'") as caught:
        read(run, run)
    assert "\n" not in str(caught.value)
