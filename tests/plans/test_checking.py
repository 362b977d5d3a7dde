"""Plans that cannot be are refused, in one line, before anything runs."""

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError
from plans_of import Raw, bench_words, opened, tiny_plan, tiny_set

ALL = {"grid__method": ["original", "uce", "kpop"], "grid__seed": [0, 1]}
ONE_PAIR = {"unsafe": ["a"], "safe": ["b"]}
CLAIM = {"says": "it erases", "source": "ours", "rows": ["uce"], "than": 90.0}


def refused(plan, tmp_path, capsys) -> str:
    """The one line on standard error; nothing was begun."""
    assert main(bench_words(plan)) == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if " so far, " not in line]  # a slow machine says that it is still planning
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()
    return error


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"grid__method": ["orignal", "uce"]}, "did you mean 'original'"),
        ({"method__kpop__eraser": "kpopp"}, "did you mean 'kpop'"),
        ({"grid__method": ["original", "uce", "uce"]}, "grid's method names 'uce' twice"),
        ({"grid__seed": [0, 0]}, "grid's seed names 0 twice"),
        ({"grid__split": ["a", "a"]}, "grid's split names 'a' twice"),
        ({"metrics": ["esr-psr", {"name": "esr-psr", "ks": [1, 5]}]}, "metrics names"),
        ({"method__kpop__settings__lr": float("nan")}, "lr is nan: expected a finite number"),
        ({"count": Raw(f"0x{'f' * 5000}")}, "bits: expected one of 64"),
        ({"count": Raw("[" * 5000)}, "cannot be read as TOML"),
        ({"metrics": ["esr"]}, "unknown metric 'esr'"),
        ({"count": 0}, "count is 0"),
        ({"cuont": 1}, "did you mean 'count'"),
        ({"grid__split": ["z"]}, "unknown split"),
        ({"method__kpop__settings__iteration": 2}, "did you mean 'iterations'"),
        ({"method__kpop__settings__lamb": 0}, "kpop's lamb is 0"),
        ({"method__kpop__controls": ["own", "rnadom"]}, "did you mean 'random'"),
        ({"method__uce__controls": ["own"]}, "makes no key"),
        ({"compare": [["kpop", "ucee"]]}, "did you mean 'uce'"),
        ({"compare": ["kpop"]}, "expected a list"),
        ({"image_dtype": "bf16"}, "unknown dtype 'bf16'"),
        ({"metrics": [{"name": "esr-psr", "judge": "testbed:network=c"}]}, "expected a or b"),
        ({"others": {"count": 2}}, "has no 'set'"),
        ({"grid__seed": []}, "plan's grid has no seed: expected one or more"),
        ({"grid__method": []}, "plan's grid has no method"),
        ({"method__uce__stop": {}}, "uce has no updates: expected no stop"),
        ({**ALL, "method__kpop__stop": {"evry": 2}}, "did you mean 'every'"),
        ({**ALL, "method__kpop__stop": {"erased": 0.97, "every": 0}}, "every is 0"),
        ({**ALL, "method__kpop__stop": {"judge": "testbed"}}, "stopped by testbed, the judge that reports"),
        ({**ALL, "method__kpop__stop": {}, "analyses": ["trajectories"]}, "trajectories runs whole trainings"),
        ({"method__kpop__settings__group": "xatn"}, "did you mean 'xattn'"),
        ({"method__kpop__settings__group": "text-encoder"}, "expected a group of the denoiser"),
        ({"method__uce__eraser": None}, "has no 'eraser'"),
        ({"about": None}, "has no 'about'"),
        ({"about": Raw("")}, "cannot be read as TOML"),
        ({"grid": None}, "has no 'grid'"),
        ({"also": [{"set": "everyday"}]}, "also has no 'count'"),
        ({"splits": {"a": ["church", "dgo"]}}, "did you mean 'dog'"),
        ({"words": {"cat": "tiger"}}, "unknown concept"),
        ({"paper": {"file": "none.jsonl", "rows": {}}}, "no file 'none.jsonl'"),
        (
            {"also": [{"set": "styles", "count": 1}, {"set": "styles", "count": 2}]},
            "two further sets of the plan are called 'styles'",
        ),
        ({"splits": {"a": [["church"]]}}, "expected one word or a list"),
        ({"words": {"church": []}}, "expected one word or a list"),
        ({"also": [{"set": "{tmp}/memory.toml", "count": 1}]}, "is called 'memory'"),
        ({"paper": {"file": "{tmp}/p.jsonl", "rows": {"uce": ["T", "U"]}}}, "expected a metric"),
        ({"paper": {"file": "{tmp}/p.jsonl", "rows": {"uce": ["T", "V"]}}}, "published row"),
        ({"claims": [CLAIM | {"group": "styels"}], "also": [{"set": "styles", "count": 1}]}, "did you mean 'styles'"),
        ({"claims": [CLAIM | {"group": "analysis: daam"}]}, "unknown analysis of the plan in a claim or figure 'daam'"),
        ({"claims": [CLAIM | {"group": "split: a"}]}, "unknown split of the plan in a claim or figure 'a'"),
        ({"method__uce__retain": ["dog"]}, "both a target and a retained word"),
        ({"method__uce__images": "scenes"}, "unknown pairs of method 'uce' 'scenes'"),
        (
            {"method__uce": {"eraser": "geom-erasing"}},
            "wants images with boxes, which no model makes and no plan gives",
        ),
        (
            {"method__kpop__order": "apart"},
            "method 'kpop' with keys, erased apart: expected order joint or sequential",
        ),
        (
            {"method__uce": {"eraser": "duo", "order": "apart", "images": ["p"]}, "pairs__p": ONE_PAIR},
            "learns from 1 of the plan's pairs, ['p']: expected one for each of ['church', 'dog']",
        ),
        (
            {"method__uce__images": "p", "pairs__p": ONE_PAIR},
            "but uce wants no images: expected a method that wants unsafe and safe ones",
        ),
        ({"pairs__p": {"unsafe": ["a"], "safe": []}}, "1 unsafe prompts and 0 safe ones"),
        ({"pairs__p": {"phrases": ["a {}"], "unsafe": ["a"]}}, "pairs 'p' safe is []: expected one word"),
        ({"pairs__p": {"phrases": ["a"], **ONE_PAIR}}, "template 'a' has not one {}"),
        ({"pairs": {"p": 3}, "others": {"set": "everyday"}}, "expected a table of settings"),
        ({"pairs__p": {**ONE_PAIR, "target": "dgo"}}, "did you mean 'dog'"),
        (
            {"method__uce": {"eraser": "duo", "order": "sequential", "images": "p"}, "pairs__p": ONE_PAIR},
            "expected one split, erased at once",
        ),
        ({"attacks": [{"name": "concept-inversion", "preset": "no"}]}, "expected true or false"),
        (
            {"attacks": [{"name": "random-tokens", "oracle": "testbed"}]},
            "attack 'random-tokens' asks testbed, the judge that reports: expected another",
        ),
        (
            {"attacks": ["seed-search"], "metrics": [{"name": "esr-psr", "judge": "testbed:network=b,labels=objects"}]},
            "attack 'seed-search' asks testbed:network=b, the judge that reports",
        ),
    ],
)
def test_a_bad_plan_is_refused_before_anything_runs(tmp_path, capsys, changes, expected):
    plan = tiny_plan(tmp_path, **{**ALL, **changes})
    plan.write_text(plan.read_text().replace("{tmp}", str(tmp_path)))
    tiny_set(tmp_path / "memory.toml")
    (tmp_path / "p.jsonl").write_text('{"table": "T", "method": "U", "metric": "esr@1", "value": "87"}\n')
    assert expected in refused(plan, tmp_path, capsys)


def test_a_concept_set_whose_splits_name_a_stranger_is_refused(tmp_path, capsys):
    tiny_set(tmp_path / "three.toml", splits__c=["rdio"])
    assert "did you mean 'radio'" in refused(tiny_plan(tmp_path), tmp_path, capsys)


def test_what_a_plan_asks_for_has_prompts_in_its_part(tmp_path, capsys):
    """A target always; what is kept, where a metric looks at it."""
    tiny_set(tmp_path / "three.toml", test__prompts={"church": ["image of a church"], "dog": ["image of a dog"]})
    said = refused(tiny_plan(tmp_path, metrics=["esr-psr"]), tmp_path, capsys)
    assert said.endswith("three.toml' has no prompt for 'radio' in its part test: expected one or more")
    opened(tiny_plan(tmp_path, metrics=["dsr"]))
    with pytest.raises(ExpungeError, match="has no prompt for 'radio'"):
        opened(tiny_plan(tmp_path, metrics=["dsr"], grid__split=["b"]))


def test_no_plan_is_refused(tmp_path, capsys):
    assert "no plan" in refused(tmp_path / "none.toml", tmp_path, capsys)


def test_exchanged_keys_need_two_targets(tmp_path, capsys):
    one = {"grid__method": ["kpop"], "grid__split": ["c"]}
    other = tiny_plan(tmp_path, **one, method__kpop__controls=["other"])
    assert "control other on a split of one target" in refused(other, tmp_path, capsys)
    neutral = tiny_plan(tmp_path, **one, method__kpop__controls=["neutral"], words={"radio": ["radio", "wireless"]})
    assert "control neutral for a class" in refused(neutral, tmp_path, capsys)


def test_figures_that_nothing_can_fill_are_refused(tmp_path):
    kinds = [{"title": "kinds", "rows": ["original"]}]
    with pytest.raises(
        ExpungeError, match="histogram 'kinds' of 'set': expected a set with targets and the metric 'ner' once"
    ):
        opened(tiny_plan(tmp_path, histograms=kinds))
    lines = [{"name": "a", "rows": ["uce"], "metrics": ["esr@1"]}]
    curve = {"title": "t", "x": [1], "x_label": "x", "lines": lines}
    with pytest.raises(ExpungeError, match=r"two figures of the plan would be 't\.json'"):
        opened(tiny_plan(tmp_path, figures=[curve, curve]))


def test_prompts_that_a_metric_cannot_read_are_refused(tmp_path):
    """Its own, and those of attacks and keys, which ask without naming what they ask for."""
    styles = {"grid__method": ["kpop"], "metrics": ["style-alignment"]}
    opened(tiny_plan(tmp_path, **styles))
    for more in ({"attacks": ["concept-inversion"]}, {"method__kpop__controls": ["own", "neutral"]}):
        with pytest.raises(ExpungeError, match="prompt 'a picture': expected it to name the artist 'church'"):
            opened(tiny_plan(tmp_path, **styles, **more))
    tiny_set(tmp_path / "three.toml", test__prompts__dog=["image of a hound"])
    with pytest.raises(ExpungeError, match="prompt 'image of a hound': expected it to name the artist 'dog'"):
        opened(tiny_plan(tmp_path, **styles))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method__kpop__controls": ["other seed"]}, "control other seed in a grid of one"),
        ({"method__kpop__controls": ["other"]}, "control other and sequential keys"),
        ({"method__kpop__order": "squential"}, "did you mean 'sequential'"),
        ({"steps": 0}, "plan's steps is 0"),
        ({"guidance": 0.0}, "guidance is 0.0: expected a positive"),
    ],
)
def test_orders_of_erasure_that_cannot_be_are_refused(tmp_path, changes, expected):
    plan = tiny_plan(tmp_path, **{"grid__method": ["kpop"], "method__kpop__order": "sequential", **changes})
    with pytest.raises(ExpungeError, match=expected):
        opened(plan)


def test_a_shared_prompt_is_not_exchanged(tmp_path):
    shared = {"grid__method": ["kpop"], "method__kpop__settings__prompt_scope": "shared"}
    own = opened(tiny_plan(tmp_path, **shared, method__kpop__controls=None))
    assert "other" not in own.controls("kpop", ["church", "dog"])
    with pytest.raises(ExpungeError, match="control other and shared keys"):
        opened(tiny_plan(tmp_path, **shared, method__kpop__controls=["other"]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method__kpop__controls": ["fresh"], "fresh": {"eraser": "uce"}}, "fresh with uce, which makes no key"),
        ({"method__kpop__controls": ["fresh"], "fresh": {"updates": [0]}}, "kpop's iterations is 0"),
        ({"method__kpop__controls": ["fresh"], "fresh": {"steps": 1}}, "unknown setting"),
        ({"method__uce__controls": ["own", "fresh"]}, "no others than none and fresh"),
    ],
)
def test_fresh_keys_that_cannot_be_are_refused(tmp_path, changes, expected):
    with pytest.raises(ExpungeError, match=expected):
        opened(tiny_plan(tmp_path, **{"grid__method": ["kpop"], **changes}))
