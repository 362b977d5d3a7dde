"""Prompt files in the shapes that they are published in: read whole, or refused with the line."""

import csv
import io
import json

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.store import read_prompts


@pytest.fixture
def write(tmp_path):
    def put(text, name="prompts.csv", encoding="utf-8"):
        (tmp_path / name).write_text(text, encoding=encoding, newline="")
        return tmp_path / name

    return put


def read(path, **how):
    return [(q.prompt, q.seed, q.label) for q in read_prompts(path, 7.5, 10, **how)]


ROWS = [
    ("a church, old", "11", "church"),
    ("", "12", "dog"),
    ('a "dog"\non two lines', "13", "dog"),
    ("  a; b\t", "14", ""),
]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_the_csv_module_writes_is_read_whole(write, delimiter, ending, encoding):
    text = io.StringIO()
    table = csv.writer(text, delimiter=delimiter, lineterminator=ending)
    table.writerows([("prompt", "evaluation_seed", "class"), *ROWS])
    found = read(write(text.getvalue(), encoding=encoding))
    assert found == [(prompt.strip(), int(seed), label or None) for prompt, seed, label in ROWS]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("Prompt,Evaluation_Seed,Class", "a,1,b"),
        ("text,seed,classes", "a,1,b"),
        ("adv_prompt,sd_seed,target", "a,1,b"),
        ("sensitive prompt,SD seed,concept", "a,1,b"),
        ("case,Original,seed,profession", "0,a,1,b"),
        ("caption,seed,categories", "a,1.0,b"),
        (" prompt , seed , artist ", " a , 1. , b "),
    ],
)
def test_columns_by_the_names_that_files_give_them(write, header, row):
    assert read(write(f"{header}\n{row}\n")) == [("a", 1, "b")]


def test_columns_by_choice_and_seeds_by_number(write):
    file = write("wording,noise,is nude,pick\na,5,1,1\nb,6,0,2\nc,7,1,3\n")
    chosen = {"prompt": "Wording", "seed": "noise"}
    assert read(file, columns=chosen) == [("a", 5, None), ("b", 6, None), ("c", 7, None)]
    assert read(file, columns=chosen, label="x") == [("a", 5, "x"), ("b", 6, "x"), ("c", 7, "x")]
    with pytest.warns(
        ExpungeWarning, match="2 of 3 rows have a 1 in is nude and are labelled 'is nude', the others nothing"
    ):
        assert [label for *_, label in read(file, columns={**chosen, "label": "is_nude"})] == [
            "is nude",
            None,
            "is nude",
        ]
    with pytest.warns(ExpungeWarning, match="labelled 'nudity'"):
        named = read(file, columns={**chosen, "label": "is_nude"}, label="nudity")
    assert [label for *_, label in named] == ["nudity", None, "nudity"]
    assert [q.guidance for q in read_prompts(file, 7.5, 10, columns={**chosen, "guidance": "pick"})] == [1.0, 2.0, 3.0]
    assert [seed for _, seed, _ in read(write("text\na\nb\na\n"), seed_from=40)] == [40, 41, 42]
    assert read(write("a church\n\nan old church, left\n", "list.txt"), seed_from=0) == [
        ("a church", 0, None),
        ("an old church, left", 1, None),
    ]


def test_an_attack_s_set_is_read_by_its_adversarial_column_and_lacks_what_it_lacks(write):
    file = write("prompt,adv_prompt,guidance\na,b,9\n")
    with pytest.warns(ExpungeWarning, match="prompts are read from adv_prompt, not from prompt"):
        (found,) = read_prompts(file, 7.5, 10, row_guidance=True, seed_from=3, attack_set=True)
    assert (found.prompt, found.seed, found.guidance) == ("b", 3, 9.0)
    with pytest.raises(ExpungeError, match="no column evaluation_seed"):
        read(file)
    seeded = write("sensitive prompt,seed\na,5\n")
    (found,) = read_prompts(seeded, 7.5, 10, row_guidance=True, seed_from=3, attack_set=True)
    assert (found.prompt, found.seed, found.guidance) == ("a", 5, 7.5), "the file's seed, and the scale for all"
    with pytest.raises(ExpungeError, match="no column evaluation_guidance"):
        read(seeded, row_guidance=True)


@pytest.mark.parametrize(
    ("text", "how", "words"),
    [
        ("prompt,seed\na,b,1\n", {}, "line 2 has 3 fields and the header 2: expected as many .a text with a comma"),
        ('prompt,seed\n"a\nb",1\nc\n', {}, "line 4 has 1 fields and the header 2"),
        ('prompt,seed\n"a\nb",1\nc,1\n"d,1\ne,1\n', {}, "line 5 cannot be read as CSV"),
        ('prompt,seed\n"d,1\n"e",1\n', {}, "line 2 cannot be read as CSV"),
        ("prompt,seed,Prompt\na,1,b\n", {}, "names 'prompt' 2 times"),
        (
            "adv_prompt,text,seed\na,b,1\n",
            {},
            "the columns adv_prompt and text may each be the prompts: expected --column",
        ),
        (
            "text\na\n",
            {},
            "no column evaluation_seed .* beside text: expected one, or --column seed=NAME, or --seed-from N",
        ),
        ("text,seed\na,1\n", {"seed_from": 0}, "--seed-from beside the column seed"),
        ("text\na\n", {"seed_from": -1}, "from seed -1 on"),
        ("text,seed\na,1e3\n", {}, "line 2 has seed '1e3'"),
        ("text,seed\na,7.5\n", {}, "line 2 has seed '7.5'"),
        (
            "text,seed\na,1\n",
            {"columns": {"prompt": "texte"}},
            "unknown column for the prompt 'texte': did you mean 'text'",
        ),
        ("text,seed\na,1\n", {"columns": {"promt": "text"}}, "unknown role of a column 'promt': did you mean 'prompt'"),
        (
            "text,seed,kind\na,1,x\n",
            {"columns": {"label": "kind"}, "label": "y"},
            "label 'y' beside labels in the column kind",
        ),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", {}, "is a Git LFS pointer"),
        ("\na church on a hill\nan old church\n", {}, "no column prompt .* or a .txt of one prompt a line"),
        (" \n \n", {}, "has no row"),
    ],
)
def test_what_cannot_be_read_right_is_refused_in_one_line(write, text, how, words):
    with pytest.raises(ExpungeError, match=words) as caught:
        read(write(text), **how)
    assert "\n" not in str(caught.value)
    assert "prompts" in str(caught.value)


@pytest.mark.parametrize("name", ["prompts.parquet", "prompts.jsonl", "prompts.JSON", "prompts.csv.gz"])
def test_other_kinds_of_files_are_named(write, name):
    with pytest.raises(ExpungeError, match=r"expected .csv or .tsv .* or .txt"):
        read(write("{}", name))


def test_what_is_not_read_is_said_once(write, recwarn):
    file = write("prompt,adv_prompt,seed,class,artist,sd_image_width,negative_prompt,note\na,b,1,c,d,512,e,f\n")
    assert read(file) == [("a", 1, "c")]
    (told,) = [str(w.message) for w in recwarn]
    assert told == "; ".join(
        [
            f"'{file}': prompts are read from prompt, not from adv_prompt (--column prompt=NAME)",
            "labels are read from class, not from artist (--column label=NAME)",
            "sd_image_width, negative_prompt are not read",
        ]
    )


@pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
def test_columns_from_the_command_line(write, folder, tmp_path, capsys):
    file = write("sensitive prompt,mark\n,1\na dog,0\n")
    command = ["generate", "--model", str(folder), "--steps", "2", "--prompts", str(file), "--quiet"]
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert "--seed-from N" in capsys.readouterr().err
    chosen = ["--column", "prompt=sensitive prompt", "--column", "label=mark", "--seed-from", "3"]
    assert main([*command, *chosen, "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [(r["prompt"], r["seed"], r["label"]) for r in rows] == [("", 3, "mark"), ("a dog", 4, None)]
    for bad in (["--column", "prompt"], ["--column", "prompt="], ["--column", "seed=a", "--column", "seed=b"]):
        assert main([*command, *bad, "--out", str(tmp_path / "none")]) == 2
        assert "expected ROLE=NAME" in capsys.readouterr().err
    assert main([*command[:5], "--prompt", "a", "--seed-from", "1", "--out", str(tmp_path / "none")]) == 2
    assert "without --prompts" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
