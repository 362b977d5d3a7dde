"""One plan on models of several kinds: what it says otherwise for each, and what that comes to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.erasers.sld import SLD
from expunge.executors import bench
from expunge.jobs import (
    AnalyseJob,
    AttackJob,
    EraseJob,
    FisherJob,
    GenerateJob,
    MeasureJob,
    WantedJob,
    Workspace,
    in_order,
)
from expunge.plans.check import checked
from expunge.plans.expand import expanded
from expunge.plans.read import read_plan, typed
from expunge.stages import erase
from expunge.store import save_edit
from plans_of import SET, bench_words, opened, read_rows, tiny_plan, written
from tiny import tiny_flux_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

ESD_U = {"group": "esd-u", "iterations": 1, "sampling": {"sampling_steps": 2}}
KPOP = [f"kpop-{what}" for what in (*(f"table{n}" for n in range(2, 8)), *(f"fig{n}" for n in (1, 2, 4, 5)))]
DUO = [f"duo-{what}" for what in ("table1", "table2", "weapons", "fig3", "fig4")]
ARTISTS = ("Kelly McKernan", "Thomas Kinkade", "Tyler Edlin", "Kilian Eng", "Ajin: Demi Human")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder with the plans and with prompts as their users have them, where expunge runs."""
    (tmp_path / "benchmarks").symlink_to(Path(__file__).parents[2] / "benchmarks")
    for name, prompt in (("i2p", "a nude"), ("ring_a_bell", "a nude"), ("coco_30k", "a cat on a mat")):
        (tmp_path / f"{name}.csv").write_text(f"prompt,evaluation_seed\n{prompt},7\n")
    lines = [f"a city by {artist},{artist},{seed}" for seed, artist in enumerate(ARTISTS)]
    (tmp_path / "artists.csv").write_text("\n".join(["prompt,artist,evaluation_seed", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_group_that_came_to_mean_others_is_not_taken_from_an_old_store(tmp_path):
    """``esd-u`` of SDXL became its script's: edits and Fisher files of the old group have other keys; none else changes."""
    tiny_xl_pipeline().save_pretrained(tmp_path / "xl")
    photos = str(written(tmp_path / "photos.toml", json.loads(json.dumps(SET).replace("dog", "tench"))))
    on = {"about": "SDXL.", "set": photos, "metrics": [{"name": "esr-psr", "judge": "imagenet:weights=random"}]}
    esd = {"eraser": "esd", "preset": False, "settings": ESD_U}
    sa = {"surrogate": "a picture", "surrogate_images": 1, "group": "esd-u", "iterations": 1, "batch": 1}
    rows = {
        "esd-u": esd,
        "esd-x": {**esd, "settings": {**ESD_U, "group": "xattn"}},
        "sa": {"eraser": "selective-amnesia", "preset": False, "settings": sa, "fisher": "stays"},
    }
    wish = {"group": "esd-u", "replay": ["a plant"], "count": 1, "images": 1, "timesteps": 1, "rows": 1}
    grid = {"method": list(rows), "split": ["a"], "seed": [0]}
    plan = tiny_plan(tmp_path, grid=grid, method=rows, fisher={"stays": wish}, on={"sdxl": on})
    for model, counted in (("testbed", 0), (str(tmp_path / "xl"), 1)):
        jobs = in_order(m.job for m in expanded(checked(read_plan(plan, model))))
        named = {f"{j.eraser} {j.settings['group']}": j for j in jobs if isinstance(j, EraseJob)}
        named["fisher"] = next(j for j in jobs if isinstance(j, FisherJob))
        assert named.pop("esd xattn").redefined == 0
        assert {name: job.redefined for name, job in named.items()} == dict.fromkeys(named, counted)
        assert len(named) == 3
        for job in named.values():
            assert ("redefined" in job.as_json()) is bool(counted)
            assert (replace(job, redefined=0).key == job.key) is not bool(counted)
            assert type(job).from_json(job.as_json()).key == job.key


def test_a_plan_runs_on_another_kind_of_model_by_its_name(folder, tmp_path, capsys):
    photos = json.loads(json.dumps(SET).replace("dog", "tench"))
    on = {
        "about": "The same on Stable Diffusion.",
        "set": str(written(tmp_path / "photos.toml", photos)),
        "metrics": [{"name": "esr-psr", "judge": "imagenet:weights=random"}],
        "others": {},
        "image_dtype": "float32",
    }
    rows = {"others": {"set": "everyday"}, "method__kpop__controls": [], "grid__method": ["original", "kpop"]}
    plan = tiny_plan(tmp_path, **rows, on={"sd": on})
    said = ["bench", str(plan), "--store", str(tmp_path / "store"), "--workers", "1", "--quiet"]
    own = read_plan(plan)
    assert (own.model, own.about) == ("testbed", "A small plan.")
    assert read_plan(plan, "testbed") == own
    assert main([*said, "--model", str(folder), "--out", str(tmp_path / "sd")]) == 0
    table = (tmp_path / "sd" / "table.md").read_text()
    assert table.startswith("The same on Stable Diffusion.")
    assert "others" not in table
    records = read_rows(tmp_path / "sd" / "records.jsonl")
    assert {r["provenance"]["instrument"]["weights"] for r in records if r["metric"] == "esr@1"} == {"random"}
    assert {c for r in records for c in r["concepts"]} <= {"church", "tench", "radio"}

    capsys.readouterr()
    tiny_plan(tmp_path, **rows)
    assert main([*said, "--model", str(folder), "--out", str(tmp_path / "none")]) == 2
    assert "of kind sd: expected a table [on.sd] in it" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    for bad, expected in (
        ({"sd": {"set": "x"}}, "an about of its own"),
        ({"sd": {"about": "x", "model": "y"}}, "and no model"),
        ({"sd": {"about": "x", "metric": ["ner"]}}, "did you mean 'metrics'"),
        ({"sdx": {"about": "x"}}, "did you mean 'sdxl'"),
        ({"testbed": {"about": "x"}}, "expected another kind of model"),
    ):
        with pytest.raises(ExpungeError, match=expected):
            read_plan(tiny_plan(tmp_path, on=bad))


@pytest.mark.parametrize("name", [*KPOP, *DUO])
def test_every_plan_of_the_papers_can_be_planned_on_stable_diffusion(name, folder, root):
    plan = read_plan(Path("benchmarks") / f"{name}.toml", str(folder))
    measured = expanded(checked(plan))
    steps = in_order(m.job for m in measured)
    assert steps
    assert '"testbed' not in json.dumps([job.as_json() for job in steps]), "nothing of the testbed judges photographs"
    said = (plan.about, plan.figures, plan.histograms, plan.claims)
    assert "estbed" not in str(said)
    of_rows: dict[str, set[str]] = {}
    for m in measured:
        of_rows.setdefault(m.method, set()).update(job.key for job in in_order([m.job]) if isinstance(job, EraseJob))
    erasures = [frozenset(keys) for row, keys in of_rows.items() if row != "original"]
    assert len(set(erasures)) == len(erasures), "two rows are the same erasure"
    for claim in plan.claims:
        assert set(claim.rows) <= set(plan.grid.method)


def test_duo_s_table_4_runs_on_a_tiny_stable_diffusion_3(root, tmp_path):
    """The committed plan, with one image and one update of everything, and networks that are in the box."""
    tiny_sd3_pipeline(t5=False).save_pretrained(tmp_path / "sd3")
    plan = read_plan(Path("benchmarks") / "duo-table1.toml", str(tmp_path / "sd3"))
    assert plan.about.startswith("DUO's Table 4 on Stable Diffusion 3")
    betas = {"beta=1000": 1000.0, "beta=500": 500.0, "beta=250": 250.0}
    assert plan.grid.method == ("original", *betas)
    jobs = in_order(m.job for m in expanded(checked(plan)))
    erased = {job.built().beta: job.built() for job in jobs if isinstance(job, EraseJob)}
    assert erased.keys() == set(betas.values())
    for beta, eraser in erased.items():  # the authors' base rate for SD3, scaled by 100 / beta
        assert (eraser.lr, eraser.iterations) == (pytest.approx(3e-5 * 100 / beta), 1000)

    captions = "prompt,evaluation_seed\n" + "".join(f"a cat {word},{7 + n}\n" for n, word in enumerate("abcd"))
    (root / "coco_30k.csv").write_text(captions)
    cheap = {"iterations": 1, "batch": 1, "rank": 2}
    source = json.loads(json.dumps(plan.source))
    source |= {
        "count": 1,
        "steps": 2,
        "image_dtype": "float32",
        "metrics": ["clip-score"],
        "claims": [],
        "also": [source["also"][1]],
    }
    source["also"][0]["metrics"] = [{"name": "fid", "minimum": 2}, "clip-score"]
    source["figures"][0]["lines"][0]["metrics"] = ["fid_testbed"]
    for name, beta in betas.items():
        source["method"][name] |= {"settings": {"beta": beta, **cheap}}
    pairs = source["pairs"]["pairs"]
    source["pairs"]["pairs"] = {name: pairs[name] for name in ("unsafe", "safe")} | {"count": 1}
    small = replace(typed("plan", source), model=str(tmp_path / "sd3"))
    rows = bench.run(small, tmp_path / "store", tmp_path / "out")
    fid = {r["method"]: r["value"] for r in rows if r["group"] == "coco_30k" and r["metric"].startswith("fid_testbed")}
    assert fid.keys() == {"original", *betas}
    (curve,) = (tmp_path / "out" / "figures").glob("*.json")
    assert [line["name"] for line in json.loads(curve.read_text())["series"]] == ["DUO"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A folder of a tiny FLUX."""
    folder = tmp_path_factory.mktemp("flux") / "model"
    tiny_flux_pipeline().save_pretrained(folder)
    return str(folder)


def on_flux(folder, flux, methods, **changes):
    """A plan on FLUX whose judge never saw an image."""
    photos = str(written(folder / "photos.toml", json.loads(json.dumps(SET).replace("dog", "tench"))))
    metrics = [{"name": "esr-psr", "judge": "imagenet:weights=random"}]
    rows = {f"method__{name}": {"eraser": name, "preset": False} for name in methods}
    grid = {"method": ["original", *methods], "split": ["a"], "seed": [0]}
    made = {
        "model": flux,
        "set": photos,
        "metrics": metrics,
        "method": {},
        **rows,
        "grid": grid,
        "image_dtype": "float32",
    }
    return tiny_plan(folder, **{**made, **changes})


def test_flux_makes_pairs_for_all_rows_where_a_method_acts_through_them(flux, tmp_path):
    """At twice the cost; where none does, it makes none, and keys are those from before there was the setting."""
    looks = {"analyses": [{"name": "closeness", "judge": "imagenet:weights=random"}]}
    for methods, asked, scale in ((["uce"], {}, 1.0), (["uce", "sld"], {}, 4.0), (["sld"], {"true_cfg": 2.5}, 2.5)):
        asked = {**asked, **looks}
        jobs = in_order(m.job for m in expanded(checked(read_plan(on_flux(tmp_path, flux, methods, **asked)))))
        drawn = [job for job in jobs if isinstance(job, GenerateJob)]
        assert {query.true_cfg for job in drawn for query in job.queries()} == {scale}
        assert {job.cost.forward for job in drawn} == {2 * (1 + (scale > 1)) * 3}, "three prompts of two steps"
        looking = [job for job in jobs if isinstance(job, AnalyseJob)]
        assert {job.true_cfg for job in looking} == {scale}, "analyses draw as the table does"
        assert {"true_cfg" in job.as_json() for job in (*drawn, *looking)} == {scale != 1}


@pytest.mark.parametrize("true_cfg", [None, 3.0])
def test_what_flux_takes_is_foreseen_with_a_pair_and_without(flux, tmp_path, true_cfg):
    """For an attack's images, and for those that a method learns from, which are made as the model ships."""
    few = {"eraser": "ca", "preset": False, "settings": {"anchor": "a thing", "anchor_images": 2, "iterations": 1}}
    given = {"attacks": [{"name": "continuation", "share": 0.5, "count": 1}], "method__ca": few}
    given |= {} if true_cfg is None else {"true_cfg": true_cfg}
    jobs = in_order(m.job for m in expanded(checked(read_plan(on_flux(tmp_path, flux, ["uce", "ca"], **given)))))
    at = Workspace(store=tmp_path / "store")
    costly = [job for job in jobs if isinstance(job, AttackJob | GenerateJob | WantedJob)]
    assert {type(job) for job in costly} == {AttackJob, GenerateJob, WantedJob}
    # images that are continued have steps behind them, which a plan does not know of
    costly = [job for job in costly if getattr(job, "queries_job", None) is None]
    for job in jobs:
        if not isinstance(job, MeasureJob):
            job.finish(at)
    took = [(job.room, job.describe(), job.result(at)["cost"]["forward"]) for job in costly]
    assert [(job.room, job.describe(), job.cost.forward) for job in costly] == took


def test_a_method_that_would_do_nothing_is_refused(flux, tmp_path):
    with pytest.raises(
        ExpungeError, match="'sld' acts through a pair of predictions, and none is made at true_cfg 1: exp"
    ):
        expanded(checked(read_plan(on_flux(tmp_path, flux, ["sld"], true_cfg=1.0))))
    weak = {"grid__method": ["original", "sld"], "method__sld": {"eraser": "sld"}}
    with pytest.raises(ExpungeError, match="none is made at guidance 1: expected more than 1"):
        expanded(checked(read_plan(tiny_plan(tmp_path, guidance=1.0, **weak))))
    with pytest.raises(
        ExpungeError, match="true_cfg 3 for a testbed model, which makes pairs anyway: expected guidance"
    ):
        expanded(checked(read_plan(tiny_plan(tmp_path, true_cfg=3.0, **weak))))
    with pytest.raises(ExpungeError, match=r"true_cfg is 0\.0"):
        checked(read_plan(tiny_plan(tmp_path, true_cfg=0.0, **weak)))


def test_a_method_that_acts_through_a_pair_changes_what_flux_draws(flux, tmp_path):
    """The same seeds give other pixels."""
    plan = on_flux(tmp_path, flux, ["negative-prompt"], metrics=["prior-distance"], count=1)
    assert main(bench_words(plan, "--quiet")) == 0
    rows = read_rows(tmp_path / "out" / "records.jsonl")
    erased = {r["metric"]: r for r in rows if r["provenance"]["method"] == "negative-prompt"}
    assert {r["provenance"]["sampling"]["true_cfg"] for r in erased.values()} == {4.0}
    assert all(r["value"] > 0 for r in erased.values()), erased
    assert main(["report", str(tmp_path / "out"), "--store", str(tmp_path / "store"), "--quiet"]) == 0
    assert "true_cfg 4" in (tmp_path / "out" / "report.html").read_text()


def test_finished_edits_and_controls_that_act_through_a_pair_have_one(flux, tmp_path):
    edit = erase.run(backbones.load(flux), "sld", SLD(), [Concept(name="church")], [])
    save_edit(edit, tmp_path / "sld.safetensors")
    given = {"sld": {"edits": [str(tmp_path / "sld.safetensors")]}}
    plan = checked(read_plan(on_flux(tmp_path, flux, ["uce"], method=given, grid__method=["original", "sld"])))
    assert plan.need_pairs == ["sld"]
    assert {q.true_cfg for m in expanded(plan) for q in m.job.upstream[0].queries()} == {4.0}
    inside = {"grid__method": ["kpop"], "method__sld": {"eraser": "sld"}, "method__kpop__controls": ["own", "sld"]}
    assert opened(tiny_plan(tmp_path, **inside)).need_pairs == ["sld"]
    with pytest.raises(ExpungeError, match="'sld' acts through a pair of predictions"):
        expanded(opened(tiny_plan(tmp_path, **inside, guidance=1.0)))
