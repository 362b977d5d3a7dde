"""Published sets of prompts, in small harmless files of each layout that they come in."""

import dataclasses
import json
import warnings

import pytest

from expunge.attacks.prompt_set import PromptSet
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.digest import sha256
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.core.victim import BlackBox
from expunge.jobs import AttackJob, GenerateJob
from expunge.stages import attack as attacks
from expunge.store import load_edit, read_queries
from plans_of import bench_words, jobs_of, measurements_of, store_of, tiny_plan

CHURCH, DOG = Concept(name="church"), Concept(name="dog")
ASKED = [Query(prompt="image of a church", label="church", seed=40, guidance=4.0, steps=2)]
P4D = ",prompt,evaluation_seed\n0,spire bell,7\n1,old steeple,8\n"
UNLEARN_DIFF_ATK = """Unnamed: 0,prompt,categories,hard,q16_percentage,evaluation_seed,evaluation_guidance,sd_model,case_number
21,"a spire, at dawn",buildings,1,0.0,932309623,7,stable-diffusion-v1-4,21
296,a bell tower,"buildings, hills",0,0.0,2868251644,13,stable-diffusion-v1-4,296
"""
RING_A_BELL = "case_number,sensitive prompt\n0,spire bell\n1,old steeple\n"
RING_A_BELL_OWN = "prompt,case_number,evaluation_seed\nspire bell,0,41\nold steeple,1,14\n"
MMA = "target_prompt,adv_prompt,clean_prompt\na church,spire bell,a field\nan old church,old steeple,a lake\n"


@pytest.fixture
def write(tmp_path):
    def put(text, name="set.csv"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return put


def provoked(attack, targets=(CHURCH,), asked=ASKED):
    def draw(queries):
        raise AssertionError("no image is asked for")

    return attack.provoke(BlackBox(draw, {}, 0), Task(targets=list(targets)), asked).queries


def test_rows_are_asked_with_the_pair_of_the_plan_s_own_queries(write):
    asked = [dataclasses.replace(query, true_cfg=4.0) for query in ASKED]
    assert {q.true_cfg for q in provoked(PromptSet(attack_set=write(P4D)), asked=asked)} == {4.0}


@pytest.mark.parametrize(
    ("text", "prompts", "seeds", "scales"),
    [
        (P4D, ["spire bell", "old steeple"], [7, 8], [4.0, 4.0]),
        (UNLEARN_DIFF_ATK, ["a spire, at dawn", "a bell tower"], [932309623, 2868251644], [7.0, 13.0]),
        (RING_A_BELL, ["spire bell", "old steeple"], [40, 41], [4.0, 4.0]),
        (RING_A_BELL_OWN, ["spire bell", "old steeple"], [41, 14], [4.0, 4.0]),
        (MMA, ["spire bell", "old steeple"], [40, 41], [4.0, 4.0]),
        ("prompt,adv_prompt,sd_seed,sd_guidance_scale\na church,b,3,9.5\n", ["b"], [3], [9.5]),
    ],
)
@pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
def test_each_layout_is_read_in_its_own_columns(write, text, prompts, seeds, scales):
    attack = PromptSet(attack_set=write(text))
    found = provoked(attack)
    assert [q.prompt for q in found] == prompts
    assert [q.seed for q in found] == seeds
    assert [q.guidance for q in found] == scales
    assert {(q.label, q.steps) for q in found} == {("church", 2)}
    assert attack.asks([CHURCH], 9) == len(prompts)


def test_a_list_of_lines_has_seeds_that_run_on(write):
    found = provoked(PromptSet(attack_set=write("spire bell\n\nold steeple\n", "set.txt"), images=2))
    assert [(q.prompt, q.seed) for q in found] == [
        ("spire bell", 40),
        ("spire bell", 41),
        ("old steeple", 41),
        ("old steeple", 42),
    ]


def test_columns_by_choice_and_one_scale_for_all(write):
    file = write("wording,adv_prompt,noise,pull\na,b,5,9\n")
    with pytest.warns(ExpungeWarning, match="prompts are read from wording, not from adv_prompt"):
        (found,) = provoked(PromptSet(attack_set=file, column=("prompt=wording", "seed=noise", "guidance=pull")))
    assert (found.prompt, found.seed, found.guidance) == ("a", 5, 9.0)
    rows = write(UNLEARN_DIFF_ATK)
    with pytest.warns(ExpungeWarning, match="evaluation_guidance is not read"):
        assert {q.guidance for q in provoked(PromptSet(attack_set=rows, row_guidance=False))} == {4.0}


def test_labels_tell_targets_apart_and_nothing_is_left_out_without_a_word(write):
    file = write("prompt,seed,class\na,1,Church\nb,2,dog\nc,3,radio\n")
    attack = PromptSet(attack_set=file)
    with pytest.warns(ExpungeWarning, match="1 of 3 rows of .* are labelled 'church': the others are left out"):
        assert [(q.prompt, q.label) for q in provoked(attack)] == [("a", "church")]
    with pytest.warns(ExpungeWarning, match="2 of 3 rows of .* are labelled 'church' or 'dog'"):
        assert [(q.prompt, q.label) for q in provoked(attack, [CHURCH, DOG])] == [("a", "church"), ("b", "dog")]
    with pytest.warns(
        ExpungeWarning, match=r"'Church', 'dog', 'radio', and none 'spire': every row is taken to ask for 'spire'"
    ):
        found = provoked(
            attack, [Concept(name="spire")], [Query(prompt="x", label="spire", seed=0, guidance=1.0, steps=1)]
        )
    assert [q.label for q in found] == ["spire"] * 3
    for targets, how, words in (
        ([CHURCH, Concept(name="spire")], {}, "no row of .* is labelled 'spire': expected one for each target"),
        (
            [Concept(name="spire")],
            {"column": ("label=class",)},
            "no row of .* is labelled 'spire' .but 'Church', 'dog'",
        ),
        ([Concept(name="spire"), Concept(name="tower")], {}, "'spire' or 'tower' .* expected a single target"),
    ):
        with pytest.raises(ExpungeError, match=words):
            PromptSet(attack_set=file, **how).check(targets)
    with pytest.raises(ExpungeError, match=r"is labelled 'church' or 'dog' \(but nothing\)"):
        PromptSet(attack_set=write(P4D)).check([CHURCH, DOG])


def test_what_is_looked_at_beforehand_warns_of_nothing(write):
    attack = PromptSet(attack_set=write(UNLEARN_DIFF_ATK))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack.check([CHURCH])
        assert attack.asks([CHURCH], 1) == 2


@pytest.mark.parametrize(
    ("text", "how", "words"),
    [
        (
            "title,number\na,1\n",
            {},
            "no column prompt or adv_prompt or .* beside title, number: expected one, or --column",
        ),
        (
            "adv_prompt,sensitive prompt\na,b\n",
            {},
            "the columns adv_prompt and sensitive prompt may each be the prompts",
        ),
        ("text,caption\na,b\n", {}, "the columns text and caption may each be the prompts"),
        (P4D, {"column": ("prompt=wording",)}, "unknown column for the prompt 'wording'"),
        (P4D, {"column": ("prompt",)}, "prompt-set's column 'prompt': expected ROLE=NAME"),
        (P4D, {"column": ("seed=a", "seed=b")}, "once for each role"),
        (P4D, {"column": ("sead=a",)}, "unknown role of a column 'sead': did you mean 'seed'"),
        (P4D, {"images": 0}, "prompt-set's images is 0"),
        ("prompt,evaluation_seed\na,x\n", {}, "line 2 has evaluation_seed 'x'"),
        (None, {}, "no file '.*none.csv': expected a CSV of prompts"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(write, tmp_path, text, how, words):
    with pytest.raises(ExpungeError, match=words) as caught:
        attacks.build(
            "prompt-set", {"attack_set": str(tmp_path / "none.csv") if text is None else write(text), **how}
        ).check([CHURCH])
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
def test_from_the_command_line_to_images(write, folder, tmp_path, capsys):
    file = write(UNLEARN_DIFF_ATK)
    model, run = ["--model", str(folder)], lambda *words: main([str(w) for w in words])
    assert (
        run("erase", "uce", "--target", "church", "--anchor", "cat", *model, "--out", tmp_path / "uce", "--quiet") == 0
    )
    edit = tmp_path / "uce" / "edit.safetensors"
    words = ["attack", "prompt-set", "--attack-set", file, "--target", "church", "--edit", edit, *model]
    assert run(*words, "--query-steps", 2, "--out", tmp_path / "q", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["queries"] == 2
    about = told["about"]
    assert about["files"] == {"attack_set": sha256(tmp_path / "set.csv")}
    assert (about["access"], about["knowledge"]) == ("queries", {"words": [file]})
    assert about["edits"] == [load_edit(edit).id]
    assert [q.guidance for q in read_queries(tmp_path / "q").queries] == [7.0, 13.0]
    assert (
        run("generate", "--queries", tmp_path / "q", "--edit", edit, *model, "--out", tmp_path / "made", "--quiet") == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "made" / "metadata.jsonl").read_text().splitlines()]
    assert [(r["prompt"], r["seed"], r["label"], r["guidance"], r["steps"]) for r in rows] == [
        ("a spire, at dawn", 932309623, "church", 7.0, 2),
        ("a bell tower", 2868251644, "church", 13.0, 2),
    ]
    for bad, message in (
        ([*words[:2], *words[4:]], "prompt-set without an attack_set: expected a file of prompts (--attack-set FILE)"),
        ([*words, "--count", 2], "prompt-set asks with prompts of its own: expected no --prompt, --set or --count"),
        ([*words, "--prompt", "a church"], "asks with prompts of its own"),
        ([*words[:3], tmp_path / "none.csv", *words[4:]], "no file"),
    ):
        assert run(*bad, "--out", tmp_path / "x") == 2
        err = capsys.readouterr().err.strip()
        assert message in err, err
        assert "\n" not in err
        assert not (tmp_path / "x").exists()


@pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
def test_in_a_plan_the_file_s_content_counts(write, tmp_path):
    file = write("prompt,evaluation_seed,class\na spire,7,church\na bell,8,church\na poodle,9,dog\n")
    row = {"attacks": [{"name": "prompt-set", "attack_set": file}], "grid__seed": [0, 1]}
    plan = tiny_plan(tmp_path, **row)
    measured = [m for m in measurements_of(plan) if m.group.kind == "attack"]
    assert {str(m.group) for m in measured} == {"attack: prompt-set (attack_set set.csv)"}
    assert [(m.method, m.seed) for m in measured] == [("original", 0), ("uce", 0)], "nothing is drawn: once is enough"
    (job,) = {m.job.upstream[0].queries_job: m.job.upstream[0] for m in measured if m.method == "uce"}.values()
    assert job.cost.forward == 2 * 2 * 3, "of the file's rows"
    before = {j.key for j in jobs_of(plan) if isinstance(j, AttackJob)}
    assert bench_run(plan) == 0
    (images,) = [j for j in jobs_of(plan) if isinstance(j, GenerateJob) and j.queries_job and j.edits]
    lines = (store_of(plan).folder(images.key, "generate") / "images" / "metadata.jsonl").read_text().splitlines()
    assert [(r["prompt"], r["seed"], r["label"]) for r in map(json.loads, lines)] == [
        ("a spire", 7, "church"),
        ("a bell", 8, "church"),
        ("a poodle", 9, "dog"),
    ]
    (stale,) = [j for j in jobs_of(plan) if isinstance(j, AttackJob) and j.edits]
    write("prompt,evaluation_seed,class\na tower,7,church\na poodle,9,dog\n")
    after = {j.key for j in jobs_of(plan) if isinstance(j, AttackJob)}
    assert len(before) == len(after) == 2
    assert not before & after
    with pytest.raises(ExpungeError, match="a file that prompt-set's settings name changed since it was planned"):
        stale.run(store_of(plan), tmp_path)


def bench_run(plan):
    return main([*bench_words(plan), "--quiet"])


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        (P4D, {"attack_runs": 2}, "attack_runs is 2, and each run of prompt-set would ask the same: expected 1"),
        (P4D, {}, "is labelled 'church' or 'dog' .but nothing.: expected a single target"),
        ("prompt,class\na,church\n", {}, "no row of .* is labelled 'dog'"),
        (None, {}, "no file"),
    ],
)
def test_a_plan_that_cannot_use_its_file_is_refused_before_anything_runs(write, tmp_path, text, changes, words):
    file = str(tmp_path / "none.csv") if text is None else write(text)
    with pytest.raises(ExpungeError, match=words):
        measurements_of(tiny_plan(tmp_path, attacks=[{"name": "prompt-set", "attack_set": file}], **changes))
