"""Pairs: made by the testbed with judge B looking, and put together from a user's folders."""

import dataclasses
import json
import re

import pytest
import torch
from PIL import Image

import expunge
from expunge import backbones
from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query, Start
from expunge.erasers.duo import DUO
from expunge.judges.testbed import Testbed
from expunge.stages import knowledge, pairs, wanted
from expunge.store import read_any_images, read_images, read_lines, read_pixels, read_run, write_lines

WISH = pairs.Wish(
    unsafe=("a dagger", "a bomb"), safe=("a dog", "a car"), target="weapon", count=2, strength=0.8, seed=3
)
QUICK = {"steps": 6}
ORACLE = "testbed:network=b"


def confidence(paths, concept):
    return Catalog("judges").open(ORACLE).confidence(torch.stack([read_pixels(p) for p in paths]), concept)


def refused(capsys, words, *said):
    """The command ends with code 2 and one line of error that has ``words``."""
    capsys.readouterr()
    assert main([str(word) for word in said]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, line), line


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "pairs"
    before = (testbed := backbones.load("testbed")).cost
    done = pairs.make(testbed, WISH, out, **QUICK)
    return out, done, testbed.cost - before


def test_the_judge_accepts_what_is_written(made):
    out, done, cost = made
    assert (done.count, done.folder) == (4, out)
    unsafe, safe = (read_images(out, role) for role in ("unsafe", "safe"))
    assert [s.prompt for s in unsafe] == ["a dagger"] * 2 + ["a bomb"] * 2
    assert [s.prompt for s in safe] == ["a dog"] * 2 + ["a car"] * 2
    assert (confidence([s.path for s in unsafe], "weapon") >= WISH.threshold).all()
    assert (confidence([s.path for s in safe], "weapon") < WISH.threshold).all()
    rows = read_lines(out / "metadata.jsonl")
    assert sum(r["tries"] for r in rows) <= done.drawn
    assert {(r["role"], r["pair"]) for r in rows} == {(role, i) for role in pairs.ROLES for i in range(4)}
    told = read_run(out)
    assert (told["judge"], told["cost"]["forward"], told["pairs"]["seed"]) == (ORACLE, cost.forward, 3)
    sheet = read_pixels(out / "sheet.png")
    assert sheet.shape[:2] == (2 * pairs.TILE + 8, 4 * pairs.TILE)


def test_the_safe_image_is_redrawn_from_the_unsafe_one(made):
    out, _, _ = made
    testbed = backbones.load("testbed")
    unsafe, safe = read_images(out, "unsafe")[0], read_images(out, "safe")[0]
    start = Start(image=unsafe.pixels(), strength=0.8)
    how = {"negative": "a dagger", "start": start, "guidance": 4.0, "steps": 6}
    again = testbed.generate([Query(prompt="a dog", seed=safe.seed, **how)]).pixels[0]
    assert (again.int() - safe.pixels().int()).abs().max() <= 2
    assert (unsafe.pixels().int() - safe.pixels().int()).abs().float().mean() > 5


def test_duo_reads_them_and_says_who_chose_them(made):
    out, _, _ = made
    settings = {"iterations": 1, "rank": 2, "batch": 2}
    edit = expunge.erase(backbones.load("testbed"), "weapon", method="duo", settings=settings, images=out)
    had = {"count": 4, "given": True, "judge": ORACLE}
    assert edit.provenance.images == {
        "unsafe": {**had, "prompts": ["a dagger", "a bomb"]},
        "safe": {**had, "prompts": ["a dog", "a car"]},
    }
    known = knowledge.of_provenances([dataclasses.asdict(edit.provenance)])
    assert known["oracles"] == [ORACLE]
    assert known["images"] == edit.provenance.images
    turned = out.with_name("turned")
    turned.mkdir()
    lines = (out / "metadata.jsonl").read_text().splitlines()[::-1]
    for line in lines:
        name = json.loads(line)["file_name"]
        (turned / name).write_bytes((out / name).read_bytes())
    (turned / "metadata.jsonl").write_text("\n".join(lines))
    for role in pairs.ROLES:
        assert [s.path.name for s in read_any_images(turned, None, role)] == [
            s.path.name for s in read_images(out, role)
        ]


def test_every_thing_is_redrawn_as_every_other_in_each_phrase(tmp_path, capsys):
    things = [
        "--unsafe",
        "a dagger",
        "--unsafe",
        "a bomb",
        "--safe",
        "a dog",
        "--phrase",
        "a {}, drawn",
        "--phrase",
        "{}",
    ]
    said = ["pairs", *things, "--count", "1", "--steps", "2", "--out", str(tmp_path / "p"), "--quiet"]
    assert main(said) == 0
    shots = {role: [s.prompt for s in read_images(tmp_path / "p", role)] for role in pairs.ROLES}
    assert shots["unsafe"] == ["a a dagger, drawn", "a dagger", "a a bomb, drawn", "a bomb"]
    assert shots["safe"] == ["a a dog, drawn", "a dog"] * 2
    capsys.readouterr()
    assert main([*said[:-1], "--phrase", "none", "--overwrite"]) == 2
    assert "template 'none' has not one {}" in capsys.readouterr().err


def test_what_no_judge_accepts_is_refused_and_nothing_written(tmp_path, capsys):
    for change, words in (
        ({"target": "church", "tries": 2}, "saw 'church' in 0 of 2 images of 'a dagger' within 2 tries"),
        ({"safe": ("a dagger",), "strength": 0.2, "tries": 1, "threshold": 0.01}, "saw no image without 'weapon'"),
        ({"target": "chruch"}, "did you mean 'church'"),
        ({"keep": "dgo"}, "did you mean 'dog'"),
    ):
        wish = {"unsafe": ("a dagger",), "safe": ("a dog",), "target": "weapon", "count": 2, "steps": 6, **change}
        said = [
            w for name, v in wish.items() for one in (v if isinstance(v, tuple) else (v,)) for w in (f"--{name}", one)
        ]
        refused(capsys, words, "pairs", *said, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_may_differ_by_prompt(tmp_path, capsys):
    """Each place's own concept is looked for: what shows dogs is accepted for a dog, and refused for a radio."""
    said = ["pairs", "--target", "weapon", "--count", "1", "--threshold", "0.05", "--tries", "30", "--quiet"]
    said += ["--unsafe", "a dog with crossed swords", "--safe", "a dog", "--keep", "dog", "--out", str(tmp_path / "p")]
    other = ["--unsafe", "a radio with crossed swords", "--safe", "a radio", "--keep", "radio"]
    assert main([*said, *other]) == 0
    judge = Testbed(network="b")
    for role in pairs.ROLES:
        shots = read_images(tmp_path / "p", role)
        for shot, kept in zip(shots, ("dog", "radio"), strict=True):
            assert float(judge.confidence(shot.pixels()[None], kept)) >= 0.05
            assert (float(judge.confidence(shot.pixels()[None], "weapon")) >= 0.05) == (role == "unsafe")
    wrong = [*other[:-1], "dog", "--overwrite", "--tries", "3"]  # a radio in which a dog is wanted
    assert main([*said, *wrong]) == 2
    assert "with 'dog' in" in capsys.readouterr().err
    assert main([*said, *other, "--keep", "radio", "--overwrite"]) == 2
    assert "3 concepts to keep for 2 prompts: expected one, or one for each" in capsys.readouterr().err


def test_without_a_judge_the_user_is_told(backbone, tmp_path):
    wish = pairs.Wish(unsafe=("church",), safe=("dog",), count=3)
    with pytest.warns(ExpungeWarning, match="no judge looks"):
        done = pairs.make(backbone, wish, tmp_path / "out", steps=4, guidance=2.0)
    assert (done.count, done.drawn) == (3, 6)
    assert read_run(tmp_path / "out")["judge"] is None


def folder_of(path, **sizes):
    path.mkdir()
    for name, size in sizes.items():
        pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(len(name))).byte()
        Image.fromarray(pixels.numpy()).save(path / f"{name}.png")
    return path


def test_a_user_s_own_folders_become_pairs_by_name(tmp_path):
    unsafe = folder_of(tmp_path / "unsafe", b=(20, 12), aa=(16, 16))
    safe = folder_of(tmp_path / "safe", aa=(16, 16), b=(20, 12))
    done = pairs.take(unsafe, safe, tmp_path / "out")
    assert (done.count, done.drawn) == (2, 0)
    for role, own in (("unsafe", unsafe), ("safe", safe)):
        for shot, name in zip(read_images(tmp_path / "out", role), ("aa", "b"), strict=True):
            assert torch.equal(shot.pixels(), read_pixels(own / f"{name}.png"))


def test_own_folders_that_are_no_pairs_are_refused(folder, tmp_path, capsys):
    whole = folder_of(tmp_path / "whole", a=(16, 16), b=(16, 16))
    lacking = folder_of(tmp_path / "lacking", a=(16, 16))
    other = folder_of(tmp_path / "other", a=(16, 16), b=(8, 16))
    broken = folder_of(tmp_path / "broken", a=(16, 16))
    (broken / "b.png").write_bytes(b"no image")
    twice = folder_of(tmp_path / "twice", a=(16, 16), b=(16, 16))
    (twice / "a.jpg").write_bytes((twice / "a.png").read_bytes())
    for unsafe, safe, words in (
        (whole, lacking, "has no other half: expected 'b'"),
        (lacking, whole, "has no other half: expected 'b'"),
        (whole, other, r"pair 'b' is \(16, 16\) unsafe and \(8, 16\) safe"),
        (whole, broken, "not a readable image"),
        (whole, twice, "two images called 'a'"),
        (whole, tmp_path / "none", "holds no image"),
    ):
        out = ["--out", tmp_path / "out"]
        refused(capsys, words, "pairs", "--unsafe-images", unsafe, "--safe-images", safe, *out)
        both = ["--images", f"unsafe={unsafe}", "--images", f"safe={safe}", "--target", "church", "--model", folder]
        refused(capsys, words, "erase", "duo", *both, *out)
    assert len(list(tmp_path.iterdir())) == 5


def test_what_is_trained_on_is_matched_as_it_was_checked(backbone, tmp_path):
    """By name, whatever order a folder tells of; row by row where names differ and both tell."""
    unsafe = folder_of(tmp_path / "unsafe", a=(16, 16), b=(16, 16))
    safe = folder_of(tmp_path / "safe", a=(16, 16), b=(16, 16))
    rows = [{"file_name": f"{name}.png", "prompt": name, "seed": 0, "label": None} for name in "ba"]
    write_lines(unsafe / "metadata.jsonl", rows)
    needs = DUO(pairs=2).needs([Concept(name="church")])

    def matched():
        task = wanted.attached(backbone, Task(targets=[]), needs, {"unsafe": unsafe, "safe": safe})
        return ["".join(s.path.stem for s in task.images[role]) for role in pairs.ROLES]

    assert matched() == ["ab", "ab"]
    write_lines(safe / "metadata.jsonl", rows[::-1])
    assert matched() == ["ab", "ab"]
    (safe / "a.png").rename(safe / "c.png")
    write_lines(safe / "metadata.jsonl", [{**rows[0], "file_name": f"{name}.png"} for name in "cb"])
    assert matched() == ["ba", "cb"]
    write_lines(safe / "metadata.jsonl", rows[:1])
    with pytest.raises(ExpungeError, match=r"has 2 images and .* 1: expected as many, row by row"):
        matched()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"safe": ()}, "1 unsafe prompts and 0 safe ones"),
        ({"threshold": 0.0}, "threshold 0.0"),
        ({"target": None, "judge": ORACLE}, "with nothing to look for"),
        ({"tries": 0}, "tries is 0"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        pairs.Wish(**{"unsafe": ("a dagger",), "safe": ("a dog",), "target": "weapon", **change})
