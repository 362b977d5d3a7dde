"""The promises of `expunge.testing` on everything the catalogs find."""

import dataclasses
import json

import pytest
import torch

from expunge import backbones
from expunge.core.analysis import Analysis, Study
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.eraser import Eraser, Step
from expunge.core.judge import Judge
from expunge.core.metric import Metric, share
from expunge.core.query import queries
from expunge.erasers.uce import UCE
from expunge.stages import analyse, erase, measure
from expunge.stages import attack as attacks
from expunge.testing import BrokenPromiseError, check_analysis, check_attack, check_eraser, check_metric

SHORT = {"iterations": 3, "batch": 2, "lr": 1e-3, "sampling": {"sampling_steps": 4}}
SETTINGS = {
    "uce": {"anchor": "cat"},
    "esd": SHORT,
    "kpop": {**SHORT, "prompt_lr": 0.1, "k": 3},
    "leco": SHORT,
    "spm": {**SHORT, "warmup": 0},
    "sld": {"warmup": 0},
    "few-shot": {"lr": 1e-3},
    "duo": {"iterations": 3, "batch": 2, "pairs": 3, "rank": 4},
    "ca": {"anchor": "cat", "anchor_images": 3, "iterations": 3, "batch": 2, "lr": 1e-3},
}
JUDGES = {"imagenet": "imagenet:weights=random"}
OF_METRICS = {"fid": {"minimum": 3}, "kid": {"minimum": 3}, "lpips": {"weights": "random"}}


@pytest.mark.parametrize("name", Catalog("erasers").entries())
def test_eraser(name, backbone):
    check_eraser(erase.build(name, SETTINGS.get(name, {}), None), backbone)


ANALYSES = {
    "daam": {"count": 2},
    "closeness": {"count": 1, "objects": ["dog", "radio", "cat", "bus", "guitar"]},
    "prompt-mass": {"count": 1},
    "trajectories": {"every": 2, "count": 2},
}


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


@pytest.fixture(scope="module")
def study(testbed):
    """A study of the testbed with a word half erased by KPOP, the key, and the training itself."""
    settings = {**SETTINGS["kpop"], "place": "down-mid-up"}
    eraser = erase.build("kpop", settings, None)
    edit = erase.run(testbed, "kpop", eraser, erase.concepts("church"), ["dog"], salt="s")
    again = analyse.training(testbed, "kpop", settings, erase.concepts("church"), ["dog"], 0, "s")
    how = {"prompt": lambda word: f"image of a {word}", "guidance": 4.0, "steps": 4, "batch": 4}
    return Study(targets=["church"], retain=["dog"], edits=[edit], key=edit.key, training=again, **how)


@pytest.mark.parametrize("name", Catalog("analyses").entries())
def test_analysis(name, testbed, study):
    check_analysis(analyse.build(name, ANALYSES.get(name, {})), testbed, study)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Careless(Analysis):
    """Forgets to take an edit off. Deviations: none known."""

    paper = UCE.paper

    def findings(self, backbone, study):
        backbone.attach(study.edits[0])

    def images(self, targets, retain, eraser):
        return 0


def test_the_contract_catches_an_analysis_that_leaves_traces(testbed, study):
    with pytest.raises(BrokenPromiseError, match="leaves the model as it was"):
        check_analysis(Careless(), testbed, study)
    testbed.detach(study.edits[0])


ATTACKS = {"concept-inversion": {"iterations": 2, "images": 3, "batch": 2, "accumulation": 2, "templates": ["a {}"]}}


@pytest.mark.parametrize("name", Catalog("attacks").entries())
@pytest.mark.parametrize("edited", [False, True])
def test_attack(name, edited, backbone):
    attack = attacks.build(name, ATTACKS.get(name, {}))
    asked = queries([("a church", "church"), ("a dog", "dog")], 2, 5, 3.0, 2)
    edit = erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], []) if edited else None
    with backbone.attached([] if edit is None else [edit]):
        check_attack(attack, backbone, asked)


@pytest.mark.parametrize("name", Catalog("metrics").entries())
def test_metric(name, images):
    from expunge.store import read_images

    check_metric(measure.build(name, OF_METRICS.get(name, {})), read_images(images), ["church"], ["dog"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetful(Metric):
    """Keeps the values of some of its images. Deviations: none known."""

    paper = UCE.paper
    keeps: int = 2

    def measure(self, shots, targets, retain, reference=()):
        whole = share("seen", shots, [1.0] * len(shots))
        some = {"per_image": whole.per_image[: self.keeps], "labels": whole.labels[: self.keeps]}
        return [dataclasses.replace(whole, **some)]


def test_the_contract_wants_every_image_s_value_or_none(images):
    from expunge.store import read_images

    shots = read_images(images)
    for keeps in (0, len(shots)):
        check_metric(Forgetful(keeps=keeps), shots, ["church"], ["dog"])
    with pytest.raises(BrokenPromiseError, match="a value for each of its images, or for none"):
        check_metric(Forgetful(keeps=2), shots, ["church"], ["dog"])


@pytest.mark.parametrize("name", Catalog("judges").entries())
def test_judge(name):
    judge = Catalog("judges").open(JUDGES.get(name, name))
    assert isinstance(judge, Judge)
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    scores = judge.scores(pixels)
    assert scores.shape == (3, len(judge.labels))
    assert torch.allclose(scores[1:2], judge.scores(pixels[1:2]), atol=1e-4), "images are judged one by one"
    valid = judge.valid(pixels)
    assert valid is None or valid.shape == (3,)
    assert all(i in judge.label_ids(label) for i, label in enumerate(judge.labels)), "a label names itself"
    sure = judge.confidence(pixels, judge.labels[0])
    assert sure.shape == (3,)
    assert bool(((sure >= 0) & (sure <= 1)).all())
    assert len(judge.detections(pixels, judge.labels[:2])) == 3
    json.dumps(judge.instrument())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vandal(Eraser):
    """Changes the model it was lent. Deviations: none known."""

    paper = UCE.paper
    anchor: str = "cat"

    def steps(self, backbone, task, resume=None):
        step: Step = next(iter(UCE(anchor=self.anchor).steps(backbone, task)))
        backbone.attach(step.edit())
        yield step


def test_the_contract_catches_an_eraser_that_leaves_traces(backbone):
    with pytest.raises(BrokenPromiseError, match="leaves the model as it was"):
        check_eraser(Vandal(), backbone)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idle(Eraser):
    """Does nothing. Deviations: none known."""

    paper = UCE.paper
    anchor: str = "cat"

    def steps(self, backbone, task, resume=None):
        yield Step(index=0, edit=lambda: backbone.edit_of(backbone.tensors(backbone.text_inputs())))


def test_the_contract_catches_a_silent_no_op(backbone):
    with pytest.raises(BrokenPromiseError, match="changes what its target's prompt gives"):
        check_eraser(Idle(), backbone)


def test_targets_are_checked_before_anything_runs(backbone):
    import expunge
    from expunge.core.errors import ExpungeError

    for targets, retain, words in [
        ([], [], "no target"),
        (["dog", "Dog "], [], "twice"),
        (["dog"], ["DOG"], "both a target and a retained"),
        (["dog"], [" "], "retained word is empty"),
    ]:
        with pytest.raises(ExpungeError, match=words):
            expunge.erase(backbone, targets, retain=retain)
    with pytest.raises(ExpungeError, match="target is empty"):
        Concept(name="  ")


@pytest.mark.parametrize("name", Catalog("judges").entries())
def test_a_judge_is_known_by_its_network(name):
    judges, name = Catalog("judges"), JUDGES.get(name, name)
    assert judges.open(name).identity() == judges.open(name).identity()


def test_the_testbed_s_judges_are_told_apart():
    one, other, styles = (
        Catalog("judges").open(f"testbed:{how}") for how in ("network=a", "network=b", "labels=styles")
    )
    assert one.identity() == styles.identity() != other.identity()
