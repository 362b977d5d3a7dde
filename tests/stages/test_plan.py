"""Orders of erasure and keys of others, in tiny plans on the testbed."""

import json
from pathlib import Path

import pytest
import torch

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.stages import erase, jobs
from expunge.stages.plan import read_plan
from expunge.stages.planner import SALT, Planner, flattened
from expunge.store import EDIT, KEY, load_edit, read_set

SET = """
about = "Three objects."
concepts = ["church", "dog", "radio"]
[splits]
a = ["church", "dog"]
[dev]
seed = 1
[dev.prompts]
church = ["a church"]
dog = ["a dog"]
radio = ["a radio"]
[test]
seed = 9
[test.prompts]
church = ["image of a church"]
dog = ["image of a dog"]
radio = ["image of a radio"]
"""
PLAN = """
about = "A small plan."
set = "{set}"
count = 1
control_count = 1
[grid]
method = ["steps"]
seed = {seeds}
[method.steps]
eraser = "kpop"
order = "sequential"
controls = {controls}
preset = false
settings = {{ iterations = 2, lr = 1e-3, prompt_lr = 0.1, sampling = {{ sampling_steps = 2 }} }}
{more}
"""
pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")


@pytest.fixture
def write(tmp_path):
    """A plan's file, with some of its words changed."""
    (tmp_path / "three.toml").write_text(SET)

    def written(controls='["own"]', seeds="[0]", more="", change=("", "")):
        file = tmp_path / "plan.toml"
        text = PLAN.format(set=tmp_path / "three.toml", controls=controls, seeds=seeds, more=more)
        file.write_text(text.replace(*change) if change[0] else text)
        return file

    return written


def words(plan, tmp_path):
    return ["bench", str(plan), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--quiet"]


def rows(tmp_path, name):
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]


def test_targets_are_erased_one_after_another_and_measured_after_each(write, tmp_path):
    plan = write()
    planned = flattened(Planner(read_plan(plan)).planned())
    first, second = (p for p in planned if p.job["room"] == "erase")
    assert (first.job["targets"], second.job["targets"]) == (["church"], ["dog"])
    assert "on" not in first.job
    assert second.job["on"] == [first.key]
    assert main(words(plan, tmp_path)) == 0
    store = tmp_path / "store"
    places = [jobs.folder(p.key, "erase", store) for p in (first, second)]
    one, two = (load_edit(place / EDIT) for place in places)
    assert two.requires == (one.id,)

    backbone = backbones.load("testbed")
    eraser = erase.build("kpop", first.job["settings"], None)
    with backbone.attached([one]):
        by_hand = erase.run(backbone, "kpop", eraser, [Concept(name="dog")], [], 0, SALT)
    assert by_hand.id == two.id, "the second is an erasure of the model that the first left"
    keys = [load_edit(place / KEY) for place in places]
    for key in keys:
        with backbone.attached([one, two, key]):
            assert backbone.edits[-1].id == key.id, "each key is at home on the whole stack"

    by = {(r["group"], r["metric"]): r for r in rows(tmp_path, "summary.jsonl")}
    numbers = {g: (by[g, "esr@1"]["n"], by[g, "psr@1"]["n"]) for g in ("after 1", "after 2", "set")}
    assert numbers == {"after 1": (1, 2), "after 2": (2, 1), "set": (2, 1)}
    assert [by[f"key: own after {n}", "esr@1"]["n"] for n in (1, 2)] == [1, 2]
    spent = [jobs.result(p.job, store)["cost"] for p in (first, second)]
    assert by["set", "esr@1"]["erase_equivalents"] == sum(c["forward"] + 3 * c["trained"] for c in spent)
    records = rows(tmp_path, "records.jsonl")
    last = [r for r in records if r["provenance"]["group"] == "after 2" and r["metric"] == "esr@1"]
    assert [r["concepts"] for r in last] == [["church"], ["dog"]], "a record for each target so far"
    assert all(r["provenance"]["edits"] == [one.id, two.id] for r in last)
    returned = [r for r in records if r["provenance"]["group"] == "key: own after 2" and r["metric"] == "esr@1"]
    assert [(r["concepts"], r["provenance"]["key"] != "") for r in returned] == [(["church"], True), (["dog"], True)]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "after 1 esr@1" in table
    assert "own after 2" in table


def test_what_a_joint_erasure_is_called_does_not_change(write):
    job = next(p.job for p in flattened(Planner(read_plan(write(change=("sequential", "joint")))).planned()))
    assert job["targets"] == ["church", "dog"]
    assert set(job) == {
        *("room", "eraser", "version", "settings", "targets", "retain", "seed", "salt"),
        *("model", "model_sha256", "dtype"),
    }


def test_the_key_of_another_seed_is_tried_in_this_one_s_model(write, tmp_path):
    plan = write('["own", "other seed"]', "[0, 7]", change=('order = "sequential"', ""))
    planned = Planner(read_plan(plan)).planned()
    images = {p.upstream[0].key: (p, p.upstream[0].job) for p in planned if p.group == "key: other seed"}
    erased = {p.key: p.job["seed"] for p in flattened(planned) if p.job["room"] == "erase"}
    tried = {(p.seed, erased[job["edits"][0]], erased[job["key"]], job["control"]) for p, job in images.values()}
    assert tried == {(0, 0, 7, "other seed"), (7, 7, 0, "other seed")}
    assert main(words(plan, tmp_path)) == 0
    shown = {r["group"]: r["n"] for r in rows(tmp_path, "summary.jsonl") if r["metric"] == "esr@1"}
    assert shown["key: other seed"] == 4
    assert "that of another seed" in (tmp_path / "out" / "table.md").read_text()


def test_every_image_is_made_with_the_plan_s_guidance_and_steps(write):
    change = ("control_count = 1\n", "control_count = 1\nguidance = 2.5\nsteps = 3\nanalyses = ['closeness']\n")
    plan = write(change=change)
    plan.write_text(plan.read_text().replace('order = "sequential"\n', ""))
    made = [p.job for p in flattened(Planner(read_plan(plan)).planned()) if "guidance" in p.job]
    assert {job["room"] for job in made} == {"generate", "analyse"}
    assert {(job["guidance"], job["steps"]) for job in made} == {(2.5, 3)}


def test_prompts_that_a_metric_cannot_read_are_refused_before_images_are_made(write, tmp_path):
    """Its own, and those of attacks and keys, which ask without naming what they ask for."""
    joint = ('order = "sequential"\n', 'metrics = ["style-alignment"]\n')
    for controls, more, expected in (
        ('["own"]', "", None),
        ('["own"]', "attacks = ['concept-inversion']\n", "prompt 'a picture': expected it to name the artist 'church'"),
        ('["own", "neutral"]', "", "prompt 'a picture': expected it to name the artist 'church'"),
    ):
        plan = write(controls=controls, change=(joint[0], ""))
        plan.write_text(plan.read_text().replace("count = 1\ncontrol", joint[1] + more + "count = 1\ncontrol"))
        if expected is None:
            Planner(read_plan(plan))
        else:
            with pytest.raises(ExpungeError, match=expected):
                Planner(read_plan(plan))
    plan = write(controls='["own"]', change=(joint[0], ""))
    plan.write_text(plan.read_text().replace("count = 1\ncontrol", joint[1] + "count = 1\ncontrol"))
    (tmp_path / "three.toml").write_text(SET.replace("image of a dog", "image of a hound"))
    with pytest.raises(ExpungeError, match="prompt 'image of a hound': expected it to name the artist 'dog'"):
        Planner(read_plan(plan))


@pytest.mark.parametrize(
    ("controls", "change", "expected"),
    [
        ('["other seed"]', ("", ""), "control other seed in a grid of one"),
        ('["other"]', ("", ""), "control other and sequential keys"),
        ('["own"]', ("sequential", "squential"), "did you mean 'sequential'"),
        ('["own"]', ("control_count = 1\n", "control_count = 1\nsteps = 0\n"), "plan's steps is 0"),
        (
            '["own"]',
            ("control_count = 1\n", "control_count = 1\nguidance = 0.0\n"),
            "guidance is 0.0: expected a positive",
        ),
    ],
)
def test_plans_that_cannot_be_are_refused(write, controls, change, expected):
    with pytest.raises(ExpungeError, match=expected):
        Planner(read_plan(write(controls, change=change)))


def test_a_shared_prompt_is_not_exchanged(write):
    shared = write("__", change=("prompt_lr = 0.1", 'prompt_lr = 0.1, prompt_scope = "shared"'))
    text = shared.read_text().replace('order = "sequential"\n', "")
    shared.write_text(text.replace("controls = __\n", ""))
    assert "other" not in Planner(read_plan(shared)).controls("steps", ["church", "dog"])
    shared.write_text(text.replace("__", '["other"]'))
    with pytest.raises(ExpungeError, match="control other and shared keys"):
        Planner(read_plan(shared))


def test_erasures_can_stand_on_closed_forms_too(write, tmp_path):
    """UCE after UCE: both edits touch the same matrices, and the stack adds their changes up."""
    plan = write(change=('eraser = "kpop"', 'eraser = "uce"'))
    text = plan.read_text().replace('controls = ["own"]\n', "")
    plan.write_text("\n".join(line for line in text.splitlines() if not line.startswith("settings")))
    assert main(words(plan, tmp_path)) == 0
    one, two = (p for p in flattened(Planner(read_plan(plan)).planned()) if p.job["room"] == "erase")
    edits = [load_edit(jobs.folder(p.key, "erase", tmp_path / "store") / EDIT) for p in (one, two)]
    backbone = backbones.load("testbed")
    names = list(edits[0].replaced)
    base = backbone.stored(names)
    with backbone.attached(edits):
        now = backbone.tensors(names)
    for name in names:
        both = base[name] + sum(e.replaced[name] - base[name] for e in edits)
        assert torch.allclose(now[name], both, atol=1e-5), name


def test_fresh_keys_are_learned_on_every_method_s_model_and_counted(write, tmp_path, capsys):
    more = """
[method.uce]
eraser = "uce"
controls = ["fresh"]
[fresh]
preset = false
settings = { prompt_lr = 0.1, sampling = { sampling_steps = 2, arm = "bank" } }
updates = [1, 3]
"""
    plan = write('["own", "fresh"]', more=more, change=('method = ["steps"]', 'method = ["steps", "uce"]'))
    planned = flattened(Planner(read_plan(plan)).planned())
    learned = {(p.job["settings"]["iterations"], tuple(p.job["edits"])) for p in planned if p.job["room"] == "relearn"}
    erased = {p.job["eraser"]: [] for p in planned if p.job["room"] == "erase"}
    for p in planned:
        if p.job["room"] == "erase":
            erased[p.job["eraser"]].append(p.key)
    assert learned == {(n, tuple(keys)) for n in (1, 3) for keys in erased.values()}
    shown = [p.job for p in planned if p.job["room"] == "generate" and p.job["control"] == "fresh"]
    relearned = {p.key for p in planned if p.job["room"] == "relearn"}
    assert {(job["key_room"], job["key"] in relearned) for job in shown} == {("relearn", True)}
    assert not any("key_room" in p.job for p in planned if p.job.get("control") == "own")
    assert main(words(plan, tmp_path)) == 0
    by = {(r["method"], r["group"], r["metric"]): r for r in rows(tmp_path, "summary.jsonl")}
    for method in ("steps", "uce"):
        for updates in (1, 3):
            row = by[method, f"key: fresh {updates}", "esr@1"]
            spent = {
                p.key: jobs.result(p.job, tmp_path / "store")["cost"]
                for p in planned
                if p.job["room"] == "relearn" and p.job["settings"]["iterations"] == updates
            }
            assert row["n"] == 2
            assert {c["trained"] for c in spent.values()} == {updates}
            assert row["relearn_equivalents"] in {c["forward"] + 3 * c["trained"] for c in spent.values()}
    assert "fresh 3 updates" in (tmp_path / "out" / "table.md").read_text()
    capsys.readouterr()
    assert main(["bench", str(plan), "--store", str(tmp_path / "store"), "--dry-run"]) == 0
    assert "a fresh key by kpop seed 0: church, dog" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("controls", "more", "expected"),
    [
        ('["fresh"]', '[fresh]\neraser = "uce"', "fresh with uce, which makes no key"),
        ('["fresh"]', "[fresh]\nupdates = [0]", "kpop's iterations is 0"),
        ('["fresh"]', "[fresh]\nsteps = 1", "unknown setting"),
        ('["own"]', '[method.uce]\neraser = "uce"\ncontrols = ["own", "fresh"]', "no others than none and fresh"),
    ],
)
def test_fresh_keys_that_cannot_be_are_refused(write, controls, more, expected):
    with pytest.raises(ExpungeError, match=expected):
        Planner(read_plan(write(controls, more=more)))


ON = """
[on.sd]
about = "The same on Stable Diffusion."
set = "{set}"
metrics = [{{ name = "esr-psr", judge = "imagenet:weights=random" }}]
others = {{}}
"""
PHOTOS = SET.replace("dog", "tench")


def test_a_plan_runs_on_another_kind_of_model_by_its_name(write, folder, tmp_path, capsys):
    (tmp_path / "photos.toml").write_text(PHOTOS)
    more = ON.format(set=tmp_path / "photos.toml").replace("[on.sd]", "[on.sd]\nimage_dtype = 'float32'")
    change = ("[grid]", "others = { set = 'everyday' }\n[grid]")
    plan = write(controls="[]", more=more, change=change)
    plan.write_text(plan.read_text().replace('["steps"]', '["original", "steps"]'))
    said = ["bench", str(plan), "--store", str(tmp_path / "store"), "--quiet"]
    own = read_plan(plan)
    assert (own.model, own.about) == ("testbed", "A small plan.")
    assert read_plan(plan, "testbed") == own
    assert main([*said, "--model", str(folder), "--out", str(tmp_path / "sd")]) == 0
    table = (tmp_path / "sd" / "table.md").read_text()
    assert table.startswith("The same on Stable Diffusion.")
    assert "others" not in table
    records = [json.loads(line) for line in (tmp_path / "sd" / "records.jsonl").read_text().splitlines()]
    assert {r["provenance"]["instrument"]["weights"] for r in records if r["metric"] == "esr@1"} == {"random"}
    assert {c for r in records for c in r["concepts"]} <= {"church", "tench", "radio"}

    plan.write_text(plan.read_text()[: plan.read_text().index("[on.sd]")])
    capsys.readouterr()
    assert main([*said, "--model", str(folder), "--out", str(tmp_path / "none")]) == 2
    assert "of kind sd: expected a table [on.sd] in it" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    for bad, expected in (
        ("[on.sd]\nset = 'x'\n", "an about of its own"),
        ("[on.sd]\nabout = 'x'\nmodel = 'y'\n", "and no model"),
        ("[on.sd]\nabout = 'x'\nmetric = ['ner']\n", "did you mean 'metrics'"),
        ("[on.sdx]\nabout = 'x'\n", "did you mean 'sdxl'"),
        ("[on.testbed]\nabout = 'x'\n", "expected another kind of model"),
    ):
        plan.write_text(write(controls="[]").read_text() + bad)
        with pytest.raises(ExpungeError, match=expected):
            read_plan(plan)


def test_every_plan_of_the_paper_can_be_planned_on_stable_diffusion(folder, tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    (tmp_path / "benchmarks").symlink_to(root / "benchmarks")
    (tmp_path / "i2p.csv").write_text("prompt,evaluation_seed\na nude,7\n")
    (tmp_path / "coco_30k.csv").write_text("prompt,evaluation_seed\na cat on a mat,7\n")
    artists = ["Kelly McKernan", "Thomas Kinkade", "Tyler Edlin", "Kilian Eng", "Ajin: Demi Human"]
    lines = [f"a city by {artist},{artist},{seed}" for seed, artist in enumerate(artists)]
    (tmp_path / "artists.csv").write_text("\n".join(["prompt,artist,evaluation_seed", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    named = [f"kpop-{what}" for what in (*(f"table{n}" for n in range(2, 8)), *(f"fig{n}" for n in range(1, 7)))]
    for name in named:
        plan = read_plan(Path("benchmarks") / f"{name}.toml", str(folder))
        jobs_made = flattened(Planner(plan).planned())
        text = json.dumps([p.job for p in jobs_made])
        assert jobs_made, name
        assert '"testbed' not in text, f"{name}: nothing of the testbed judges photographs"
        said = (plan.about, plan.figures, plan.histograms, plan.claims)
        assert "estbed" not in str(said), name
        rows = Planner(plan)
        of_rows: dict[str, set[str]] = {}
        for m in rows.planned():
            of_rows.setdefault(m.method, set()).update(
                u.key for p in m.upstream for u in (p, *p.upstream) if u.job["room"] == "erase"
            )
        erasures = [frozenset(keys) for row, keys in of_rows.items() if row != "original"]
        assert len(set(erasures)) == len(erasures), f"{name}: two rows are the same erasure"
        for claim in rows.claims:
            assert set(claim.rows) <= set(rows.grid.method)


def test_a_published_csv_is_a_set_with_the_rows_own_seeds(write, tmp_path):
    file = tmp_path / "i2p.csv"
    file.write_text("prompt,sd_seed\na church,7\na church,8\n")
    read = read_set(str(file), tmp_path, "church")
    assert read.part("test").prompts == (("a church", "church"),) * 2
    assert (read.name, read.concepts, read.splits, read.part("test").seeds) == ("i2p", ("church",), {}, (7, 8))
    with pytest.raises(ExpungeError, match="does not say what 'a church' asks for"):
        read_set(str(file), tmp_path)
    also = f"[[also]]\nset = '{file}'\ncount = 1\nlabel = 'church'\nmetrics = ['esr-psr', 'prior-distance']"
    plan = write(controls="[]", more=also)
    (shown,) = {
        p.upstream[0].key: p.upstream[0].job for p in Planner(read_plan(plan)).planned() if p.group == "i2p"
    }.values()
    assert [(q.prompt, q.seed) for q in jobs._asked(shown)] == [("a church", 7), ("a church", 8)]
    plan.write_text(plan.read_text().replace("set =", "part = 'dev'\nset =", 1))
    with pytest.raises(ExpungeError, match="with part 'dev': expected test"):
        Planner(read_plan(plan))
    plan = write(controls="[]", more=also.replace(str(file), "everyday"))
    with pytest.raises(ExpungeError, match="with label 'church': expected one for a CSV only"):
        Planner(read_plan(plan))
