"""Plans become jobs: pure JSON, each once, in an order in which they can be run."""

import json

import pytest

from expunge.cli import main
from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError
from expunge.jobs import AttackJob, EraseJob, GenerateJob, Job, MeasureJob
from expunge.jobs.job import key_of
from expunge.judges.testbed import Testbed
from expunge.plans.check import RUNS
from expunge.plans.images import OTHER_SEEDS
from expunge.store import read_set
from plans_of import bench_words, jobs_of, measurements_of, opened, read_rows, tiny_plan, written

CLASS = {
    "about": "A class, whose name is no word that a model is told.",
    "concepts": ["animal", "weapon"],
    "dev": {"seed": 1, "prompts": {"animal": ["a dog"], "weapon": ["a bomb"]}},
    "test": {"seed": 9, "prompts": {"animal": ["a dog", "a fish"], "weapon": ["a bomb"]}},
}


def measurements(folder, **changes):
    return measurements_of(tiny_plan(folder, **changes))


def jobs(folder, kind=Job, **changes):
    """The plan's jobs of a kind."""
    return [job for job in jobs_of(tiny_plan(folder, **changes)) if isinstance(job, kind)]


def plan(folder, **changes):
    return opened(tiny_plan(folder, **changes))


def test_a_job_s_key_is_of_what_changes_its_result():
    job = {"room": "erase", "model": "testbed", "model_sha256": "a", "seed": 0}
    assert key_of(job) == key_of({**job, "model": "/elsewhere/testbed"})
    assert len({key_of({**job, **c}) for c in ({}, {"model_sha256": "b"}, {"seed": 1}, {"room": "generate"})}) == 4


def test_an_erasure_that_asks_a_judge_is_another_one_with_another_judge(tmp_path):
    settings = {"attributes": ["ink style", "tile style"], "images": 1, "steps_of_images": 2, "iterations": 1}
    asks = {"eraser": "debias", "settings": settings}
    found = {j.eraser: j.as_json() for j in jobs(tmp_path, EraseJob, grid__method=["uce", "asks"], method__asks=asks)}
    assert found["debias"]["judge"] == Testbed(network="b", labels="styles").identity() != ""
    assert "judge" not in found["uce"], "keys of erasures that ask nobody stay"


def test_the_images_of_a_method_are_made_once_for_all_metrics(tmp_path):
    two = ["esr-psr", {"name": "esr-psr", "judge": "testbed:network=b"}]
    every = {
        "grid__method": ["original", "uce", "kpop"],
        "grid__seed": [0, 1],
        "method__kpop__controls": ["own", "random"],
    }
    planned = jobs(tmp_path, metrics=two, **every)
    rooms = [job.room for job in planned]
    assert rooms.count("erase") == 1 + 2, "a closed form has no training seeds"
    assert rooms.count("measure") == 2 * rooms.count("generate")
    for job in planned:
        again = type(job).from_json(json.loads(json.dumps(job.as_json())))
        assert (again.as_json(), again.key) == (job.as_json(), job.key), "jobs are pure JSON"
    seen = set()
    for p in planned:
        assert all(u.key in seen for u in p.upstream)
        seen.add(p.key)


def test_every_image_is_made_with_the_plan_s_guidance_and_steps(tmp_path):
    planned = jobs(tmp_path, grid__method=["kpop"], guidance=2.5, steps=3, analyses=["closeness"])
    asked = [job for job in planned if hasattr(job, "guidance")]
    assert {job.room for job in asked} == {"generate", "analyse"}
    assert {(job.guidance, job.steps) for job in asked} == {(2.5, 3)}


def test_the_original_in_another_precision_is_a_row_and_a_scale(tmp_path):
    precise = {"image_dtype": "bfloat16", "metrics": ["prior-distance"]}
    measured = measurements(tmp_path, grid__method=["original", "original in float32"], **precise)
    own, scale = (next(m.job for m in measured if m.method == n) for n in ("original", "original in float32"))
    image, against = scale.upstream
    assert (image.dtype, list(image.edits)) == ("float32", [])
    assert against.key == own.upstream[0].key, "on equal seeds"
    assert own.upstream[1].seed != own.upstream[0].seed, "on other seeds"
    with pytest.raises(ExpungeError, match="did you mean 'float32'"):
        measurements(tmp_path, grid__method=["original", "original in float31"], **precise)


def test_a_metric_that_compares_gets_the_original_s_images_and_other_seeds_for_the_original(tmp_path):
    planned = measurements(tmp_path, metrics=["esr-psr", "prior-distance"])
    compared = {m.method: m.job for m in planned if m.job.metric == "prior-distance"}
    assert compared["uce"].reference == compared["original"].images != compared["original"].reference


def test_a_metric_is_left_out_where_it_has_nothing_to_look_at(tmp_path):
    metrics = ["esr-psr", "ner", "fid", "prior-distance"]
    rows = {"grid__method": ["original", "uce", "kpop"], "others": {"set": "everyday"}}
    planned = [m for m in measurements(tmp_path, metrics=metrics, **rows) if isinstance(m.job, MeasureJob)]
    groups = {name: {str(m.group) for m in planned if m.job.metric == name} for name in ("esr-psr", "ner", "fid")}
    assert groups["esr-psr"] >= {"set", "others"}
    assert groups["ner"] == {g for g in groups["esr-psr"] if g != "others"}, "nobody is erased among the others"
    assert groups["fid"] == {"set", "others"}, "what a key brings back keeps nothing"
    fids = {(m.method, str(m.group)): m.job for m in planned if m.job.metric == "fid"}
    assert fids["original", "set"].reference == fids["uce", "set"].reference != fids["original", "set"].images, (
        "sets are compared on other seeds, the original's too"
    )
    (distance,) = [m for m in planned if (m.method, str(m.group), m.job.metric) == ("uce", "set", "prior-distance")]
    assert distance.job.reference == fids["original", "set"].images, "pairs stay on equal seeds beside sets"


@pytest.mark.parametrize(("eraser", "settings"), [("few-shot", {}), ("ca", {"group": "embedding", "anchor": "cat"})])
def test_a_plan_takes_methods_whose_groups_are_not_the_denoiser_s(tmp_path, eraser, settings):
    erasures = jobs(tmp_path, EraseJob, method__uce={"eraser": eraser, "settings": settings})
    assert eraser in {job.eraser for job in erasures}


def test_what_a_joint_erasure_is_called_does_not_change(tmp_path):
    job = jobs(tmp_path, EraseJob, grid__method=["kpop"])[0].as_json()
    assert job["targets"] == ["church", "dog"]
    assert set(job) == {
        *("room", "eraser", "version", "settings", "targets", "retain", "seed", "salt"),
        *("model", "model_sha256", "dtype"),
    }


def test_a_class_is_erased_by_its_words(tmp_path):
    rows = {
        "grid": {"method": ["uce", "rest", "kpop"]},
        "splits": {"all": "animal"},
        "words": {"animal": ["dog", "fish"], "weapon": "bomb"},
        "method__uce__retain": ["radio"],
        "method__rest": {"eraser": "uce", "retain": True},
        "method__kpop__controls": None,
    }
    written(tmp_path / "class.toml", CLASS)
    erasures = jobs(tmp_path, EraseJob, set=str(tmp_path / "class.toml"), **rows)
    assert all(job.targets == ["dog", "fish"] for job in erasures)
    assert [job.retain for job in erasures] == [["radio"], ["bomb"], []]
    keys = [job for job in jobs(tmp_path, GenerateJob, set=str(tmp_path / "class.toml"), **rows) if job.control]
    assert keys, "a class has recoveries"
    assert all(job.only is None for job in keys), "a text gets the prompt of the word that it names"
    read = plan(tmp_path, set=str(tmp_path / "class.toml"), **rows)
    assert read.controls("kpop", ["animal"]) == ["none", "own", "random", "original"]
    hidden = {**rows, "words": {"animal": "poodle", "weapon": "bomb"}}
    with pytest.raises(ExpungeError, match="no prompt for 'animal' has one of its words"):
        plan(tmp_path, set=str(tmp_path / "class.toml"), **hidden)


def test_a_claim_names_an_attack_as_the_table_does(tmp_path):
    inversion = {"name": "concept-inversion", "apart": True, "prompts": ["a {}", "{}"]}
    claim = {"says": "x", "rows": ["uce", "original"], "group": "attack: concept-inversion", "metric": "esr@1"}
    planned = measurements(tmp_path, attacks=[inversion], claims=[claim])
    assert {str(m.group) for m in planned if m.group.kind == "attack"} == {claim["group"]}
    with pytest.raises(
        ExpungeError, match=r"in a claim or figure 'concept-inversion': did you mean .concept-inversion .lr 0\.1"
    ):
        plan(tmp_path, attacks=[{**inversion, "lr": 0.1}], claims=[claim])
    with pytest.raises(ExpungeError, match="expected them within 1000 of each other"):
        plan(tmp_path, attacks=[inversion], grid__seed=[0, 1000])


def test_rows_that_differ_by_strength_share_an_erasure(tmp_path):
    half = {"eraser": "uce", "retain": True, "strength": 0.5}
    rows = {"grid__method": ["uce", "half"], "compare": [["half", "uce"]], "attacks": ["concept-inversion"]}
    steps = jobs(tmp_path, **rows, method__half=half)
    by = {kind: [job for job in steps if isinstance(job, kind)] for kind in (EraseJob, AttackJob, GenerateJob)}
    assert len(by[EraseJob]) == 1
    assert [job.as_json().get("strength") for job in by[AttackJob]] == [None, 0.5]
    assert [job.as_json().get("strength") for job in by[GenerateJob]] == [None, None, 0.5, 0.5], (
        "the images, and those of the attack"
    )
    with pytest.raises(ExpungeError, match=r"method .half. with strength 0\.5 and closeness"):
        plan(tmp_path, **rows, method__half=half, analyses=["closeness"])
    for bad, expected in (
        ({"strength": 0.0}, "positive number"),
        ({"strength": float("nan")}, "finite number"),
        ({"order": "sequential"}, "0.5 and sequential"),
    ):
        with pytest.raises(ExpungeError, match=expected):
            plan(tmp_path, **rows, method__half={**half, **bad})
    with pytest.raises(ExpungeError, match=r"method .half. with strength 0\.5, and no weights to scale"):
        plan(tmp_path, **rows, method__half={"eraser": "sld", "strength": 0.5})


def test_phrases_of_pairs_are_all_combinations(tmp_path):
    table = {"phrases": ["image of {}", "{}"], "unsafe": ["a bomb", "a dagger"], "safe": ["a dog", "a cat", "a fish"]}
    wish = plan(tmp_path, pairs__p={**table, "count": 2}).plan.pairs["p"]
    assert (len(wish.unsafe), len(set(zip(wish.unsafe, wish.safe, strict=True))), wish.count) == (12, 12, 2)
    assert wish.unsafe[:4] == ("image of a bomb",) * 3 + ("a bomb",)
    assert wish.safe[2:5] == ("image of a fish", "a dog", "a cat")


def test_what_pairs_show_is_not_counted_as_never_named(tmp_path):
    others = {"others": {"set": "everyday"}}
    free = plan(tmp_path, **others).more[0].concepts
    shown = plan(tmp_path, **others, pairs__p={"unsafe": ["a bomb"], "safe": ["a red rose"]}).more[0].concepts
    assert set(free) - set(shown) == {"rose"}


def test_a_published_csv_is_a_set_with_the_rows_own_seeds(tmp_path):
    file = tmp_path / "i2p.csv"
    file.write_text("prompt,sd_seed\na church,7\na church,8\n")
    read = read_set(str(file), tmp_path, "church")
    assert read.part("test").prompts == (("a church", "church"),) * 2
    assert (read.name, read.concepts, read.splits, read.part("test").seeds) == ("i2p", ("church",), {}, (7, 8))
    with pytest.raises(ExpungeError, match="does not say what 'a church' asks for"):
        read_set(str(file), tmp_path)
    also = {"set": str(file), "count": 1, "label": "church", "metrics": ["esr-psr", "prior-distance"]}
    planned = [m.job for m in measurements(tmp_path, also=[also]) if (str(m.group), m.method) == ("i2p", "uce")]
    (shown,) = {job.upstream[0].key: job.upstream[0] for job in planned}.values()
    assert [(q.prompt, q.seed) for q in shown.queries()] == [("a church", 7), ("a church", 8)]
    two = tmp_path / "two.csv"
    two.write_text("prompt,sd_seed,label\na church,7,church\na rose,8,rose\na dog,9,dog\n")
    free = [m.job for m in measurements(tmp_path, others={"set": str(two), "count": 1}) if str(m.group) == "others"]
    asked = {(q.prompt, q.seed) for job in free for q in job.upstream[0].queries()}
    assert asked == {("a rose", 8)}, "what the plan names is left out with its seed"
    with pytest.raises(ExpungeError, match="has nothing that the plan does not name"):
        two.write_text("prompt,sd_seed,label\na church,7,church\n")
        plan(tmp_path, others={"set": str(two), "count": 1})
    with pytest.raises(ExpungeError, match="with part 'dev': expected test"):
        plan(tmp_path, also=[also], part="dev")
    with pytest.raises(ExpungeError, match="with label 'church': expected one for a CSV only"):
        plan(tmp_path, also=[{**also, "set": "everyday"}])


def test_a_published_csv_as_the_plan_s_own_set_keeps_its_seeds_whatever_asks(tmp_path):
    """Its own images, those with a key and without one, those compared with, after each step, and of each run of an attack."""
    file = tmp_path / "set.csv"
    file.write_text("prompt,sd_seed,label\na church,7,church\nan old church,70,church\na dog,9,dog\n")
    steps = {"eraser": "kpop", "order": "sequential", "controls": ["own", "none", "neutral"]}
    planned = measurements(
        tmp_path,
        set=str(file),
        splits={"a": ["church", "dog"]},
        grid__method=["original", "steps"],
        method__steps=steps,
        attacks=[{"name": "seed-search", "tries": 1}],
        attack_runs=2,
        metrics=["esr-psr", "prior-distance"],
    )
    asked = {str(m.group): [] for m in planned}
    for m in planned:
        for job in (*m.job.upstream, *(j for images in m.job.upstream for j in images.upstream)):
            if isinstance(job, GenerateJob | AttackJob):
                asked[str(m.group)] += [(type(job).__name__, q.prompt, q.seed) for q in job.queries()]
    own = {"a church": 7, "an old church": 70, "a dog": 9}
    further = {
        seed - own[prompt] for _, prompt, seed in (one for each in asked.values() for one in each) if prompt in own
    }
    assert further == {0, OTHER_SEEDS, RUNS}
    assert {seed - own[p] for kind, p, seed in asked["attack: seed-search (tries 1)"] if kind == "AttackJob"} == {
        0,
        RUNS,
    }
    keyed = {group for group in asked if group.startswith(("key: ", "after "))}
    assert {"key: own", "key: none", "key: neutral", "after 1"} <= keyed
    first = read_set(str(file), tmp_path).part("test").seed
    assert {seed for kind, p, seed in asked["key: neutral"] if p == "a picture"} == {first}
    for group in keyed - {"key: neutral"}:
        assert asked[group], group
        assert {seed - own[p] for _, p, seed in asked[group]} <= {0, OTHER_SEEDS}, group


STOP = {"erased": 90.0, "every": 2, "images": 3}


def test_a_stop_is_part_of_an_erasure_with_its_judge_and_of_no_other(tmp_path):
    """Two updates and a look after them at three images of two targets, of eight steps with guidance."""
    (plain,) = jobs(tmp_path, EraseJob, grid__method=["kpop"])
    (stopped,) = jobs(tmp_path, EraseJob, grid__method=["kpop"], method__kpop__stop=STOP)
    assert "stop" not in plain.as_json()
    assert stopped.stop["judge"] == "testbed:network=b"
    assert stopped.stop["told_by"] == Testbed(network="b").identity()
    assert stopped.key != plain.key
    assert stopped.key == key_of({**plain.as_json(), "stop": dict(stopped.stop)})
    assert stopped.cost == plain.cost + Cost(forward=1 * 3 * 2 * 2 * 8)
    assert stopped.describe() == "kpop seed 0, to ESR-1 90: church, dog"


def test_the_table_says_where_trainings_ended(tmp_path):
    """Two updates at these rates erase nothing, so the trainings run to their end."""
    asked = {"grid__method": ["original", "kpop"], "method__kpop__stop": STOP, "method__kpop__settings__lr": 1e-7}
    plan = tiny_plan(tmp_path, **asked, method__kpop__controls=["own", "random"])
    assert main(bench_words(plan, "--quiet")) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| updates | stopped at enough, % |" in table
    assert "oracle" in table
    rows = read_rows(tmp_path / "out" / "summary.jsonl")
    (row,) = [r for r in rows if (r["method"], r["group"], r["metric"]) == ("kpop", "set", "esr@1")]
    assert (row["erase_updates"], row["erase_enough"]) == (2, 0)
    (gain,) = [r for r in rows if r["group"] == "key: own - random"]
    assert (gain["method"], gain["metric"], gain["n"]) == ("kpop", "recovery", 2)
    (one, *_) = [r for r in read_rows(tmp_path / "out" / "records.jsonl") if r["eraser"] == "kpop"]
    assert one["knowledge"]["oracles"] == ["testbed:network=b"]
    assert not one["knowledge"]["same_judge"]
