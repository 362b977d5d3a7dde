"""The promises of `expunge.testing` on everything the catalogs find."""

import dataclasses
import json

import pytest
import torch

from expunge import backbones
from expunge.core.analysis import Analysis, Study
from expunge.core.attack import Attack, Provocation
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.eraser import Eraser, Step, settings_of
from expunge.core.errors import ExpungeError
from expunge.core.judge import Judge
from expunge.core.metric import Metric, share
from expunge.core.query import LearnedWord, queries
from expunge.core.victim import BlackBox, GrayBox, WhiteBox
from expunge.erasers.uce import UCE
from expunge.stages import analyse, erase, measure
from expunge.stages import attack as attacks
from expunge.testing import BrokenPromiseError, check_analysis, check_attack, check_eraser, check_metric
from small import SETTINGS
from tiny import tiny_safety_checker

ANCHOR = {"anchor": "anchor"}
JUDGES = {"imagenet": "imagenet:weights=random"}
OF_METRICS = {"fid": {"minimum": 3}, "kid": {"minimum": 3}, "lpips": {"weights": "random"},
              "icr": {"concepts": ["watermark"]}}  # fmt: skip


@pytest.mark.parametrize("name", Catalog("erasers").entries())
def test_eraser(name, backbone):
    check_eraser(erase.build(name, SETTINGS.get(name, {}), None), backbone)


@pytest.mark.parametrize("name", Catalog("erasers").entries())
def test_the_judge_in_an_eraser_s_settings_is_told_and_nothing_else(name):
    """The testbed's CLIP never changes, and a gradient's bound named ``clip`` is none."""
    settings = settings_of(erase.build(name, SETTINGS.get(name, {}), None))
    assert set(measure.told_by(settings)) == settings.keys() & {"judge"}


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


ATTACKS = {
    "concept-inversion": {"iterations": 2, "images": 3, "batch": 2, "accumulation": 2, "templates": ["a {}"]},
    "image-to-image": {"images": 3},
    "relearning": {"iterations": 2, "images": 3},
    "seed-search": {"tries": 3},
    "random-tokens": {"tries": 3},
    "ring-a-bell": {"population": 4, "generations": 2, "k": 4, "templates": ["a {}"]},
    "sneaky-prompt": {"limit": 2, "sure": 1.0, "longest": 3, "size": 4},
    "pund": {"epochs": 3, "bins": 2, "images": 2, "harden": 1, "harden_lr": 1e-2},
    "p4d": {"iterations": 3, "look": 2, "tokens": 4, "images": 2, "clip": "testbed"},
    "unlearn-diff-atk": {"steps": 2, "iterations": 2, "images": 2},
}


@pytest.mark.parametrize("name", Catalog("attacks").entries())
@pytest.mark.parametrize("edited", [False, True])
def test_attack(name, edited, backbone, prompt_file):
    files = {"prompt-set": {"attack_set": str(prompt_file)}}
    attack = attacks.build(name, {**ATTACKS.get(name, {}), **files.get(name, {})})
    asked = queries([("a church", "church"), ("a dog", "dog")], 2, 5, 3.0, 2)
    edit = erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], []) if edited else None
    with backbone.attached([] if edit is None else [edit]):
        check_attack(attack, backbone, asked)


@pytest.fixture
def prompt_file(tmp_path):
    """A set of prompts as papers publish them."""
    (tmp_path / "set.csv").write_text(
        "prompt,adv_prompt,evaluation_seed,evaluation_guidance\na,old church,11,9\nb,c,12,7\n"
    )
    return tmp_path / "set.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guessing(Attack[BlackBox]):
    """Asks with random words before the prompt, and keeps what a judge is surest of. Deviations: none known."""

    paper, access = UCE.paper, "queries"
    knows, tuning = {"oracle": "oracles"}, ("tries", "words", "more")
    oracle: str = "testbed"
    tries: int = 3
    words: tuple[str, ...] = ("old", "red", "big", "flat", "wet", "dim", "odd")
    more: int = 0
    """Images that it asks for beyond its budget."""

    def budget(self, targets, queries):
        return targets * self.tries

    def provoke(self, victim, task, queries):
        answers = []
        for target in task.targets:
            mine = [q for q in queries if q.label == target.name]
            generator = task.generator("guessing", target.name)
            drawn = torch.randint(0, len(self.words), (self.tries + self.more, 3), generator=generator).tolist()
            prompts = [" ".join(self.words[i] for i in row) + f" {target.name}" for row in drawn]
            pixels = victim.images([dataclasses.replace(mine[0], prompt=prompt) for prompt in prompts])
            best = prompts[int(victim.verdicts(pixels, "church").argmax())]
            answers += [dataclasses.replace(q, prompt=best) for q in mine]
        return Provocation(queries=answers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mimicking(Attack[GrayBox]):
    """Learns a word whose text reads like the target's, by gradients through the text encoder. Deviations: none known."""

    paper, access = UCE.paper, "text encoder"
    knows, tuning = {"initial": "words"}, ()
    initial: str = "dog"
    lr: float = 0.1
    iterations: int = 3

    def provoke(self, victim, task, queries):
        answers = []
        for target in task.targets:
            generator = task.generator("mimicking", target.name)
            with torch.no_grad():
                goal = victim.encode([f"a {target.name}"]).embeds
                start = victim.embed(victim.tokenize([self.initial]))[0, 1:2]
            word = start + 0.01 * torch.randn(start.shape, generator=generator)
            for _ in range(self.iterations):
                word = word.detach().requires_grad_(True)
                loss = (victim.encode_learned(["a <w>"], "<w>", word).embeds - goal).square().mean()
                word = word - self.lr * torch.autograd.grad(loss, word)[0].sign()
            learned = LearnedWord(word="<w>", vectors=word.detach())
            mine = [q for q in queries if q.label == target.name]
            answers += [dataclasses.replace(q, prompt="a <w>", learned=learned) for q in mine]
        return Provocation(queries=answers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shaking(Attack[WhiteBox]):
    """Moves weights a little, in another precision. Deviations: none known."""

    paper, access, knows, tuning = UCE.paper, "white box", {}, ("size",)
    size: float = 1e-3

    def provoke(self, victim, task, queries):
        names = victim.backbone.text_inputs()
        generator = task.generator("shaking")
        now = victim.backbone.tensors(names)
        moved = {n: t + self.size * torch.randn(t.shape, generator=generator).to(t) for n, t in now.items()}
        mine = [q for q in queries if q.label in {t.name for t in task.targets}]
        return Provocation(queries=mine, edit=victim.backbone.edit_of(moved), dtype="bfloat16")


ASKED = queries([("a church", "church"), ("a dog", "dog")], 2, 5, 3.0, 2)


@pytest.mark.parametrize("attack", [Mimicking(), Shaking()])
def test_attacks_on_a_text_encoder_and_on_weights_keep_the_promises(attack, backbone):
    check_attack(attack, backbone, ASKED)


def test_an_attack_that_can_only_ask_keeps_the_promises_and_its_budget(testbed):
    check_attack(Guessing(), testbed, ASKED)
    with pytest.raises(ExpungeError, match="asks for 4 images after 0: expected no more than its budget, 3"):
        check_attack(Guessing(more=1), testbed, ASKED)


def test_an_attack_that_wants_more_than_its_access_fails(backbone):
    class Peeking(Mimicking):
        """Wants to read. Deviations: none known."""

        access = "queries"

    class Grabbing(Shaking):
        """Wants to hold. Deviations: none known."""

        access = "text encoder"

    for greedy, lacking in ((Peeking(), "encode"), (Grabbing(), "backbone")):
        with pytest.raises(AttributeError, match=f"has no attribute '{lacking}'"):
            check_attack(greedy, backbone, ASKED)


def test_the_contract_catches_an_attack_that_answers_in_another_order(backbone):
    """Results take the n-th answer for the n-th query."""

    class Reversing(Mimicking):
        """Answers the last first. Deviations: none known."""

        def provoke(self, victim, task, queries):
            return Provocation(queries=[*reversed(super().provoke(victim, task, queries).queries)])

    with pytest.raises(BrokenPromiseError, match="its queries come in the order of those it was given"):
        check_attack(Reversing(), backbone, ASKED)


def test_the_contract_wants_an_attack_to_say_its_access_and_what_it_knows(backbone):
    body = {"__doc__": Shaking.__doc__, "provoke": Shaking.provoke}
    whole = {"paper": UCE.paper, "access": "white box", "knows": {}, "tuning": ("size",)}
    for lacking, complaint in (("access", "what access it needs"), ("tuning", "what its setting 'size' tells it")):
        told = {name: value for name, value in whole.items() if name != lacking}
        odd = dataclasses.make_dataclass(
            "Odd", [("size", float, 1e-3)], bases=(Attack,), namespace=body | told, frozen=True, kw_only=True
        )
        with pytest.raises(BrokenPromiseError, match=complaint):
            check_attack(odd(), backbone, ASKED)


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


@pytest.fixture(scope="module")
def open_judge(tmp_path_factory):
    """Opens a judge by its name."""
    folder = tmp_path_factory.mktemp("judges") / "safety-checker"
    for part in tiny_safety_checker():
        part.save_pretrained(folder)
    specs = {**JUDGES, "safety-checker": f"safety-checker:path={folder}"}
    return lambda name: Catalog("judges").open(specs.get(name, name))


@pytest.mark.parametrize("name", Catalog("judges").entries())
def test_judge(name, open_judge):
    judge = open_judge(name)
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

    paper, knows, tuning = UCE.paper, ANCHOR, ()
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

    paper, knows, tuning = UCE.paper, ANCHOR, ()
    anchor: str = "cat"

    def steps(self, backbone, task, resume=None):
        yield Step(index=0, edit=lambda: backbone.edit_of(backbone.tensors(backbone.text_inputs())))


def test_the_contract_catches_a_silent_no_op(backbone):
    with pytest.raises(BrokenPromiseError, match="changes what its target's prompt gives"):
        check_eraser(Idle(), backbone)


@pytest.mark.parametrize(("name", "ignores"), [("time", False), ("uce", True), ("selective-amnesia", True)])
def test_the_contract_catches_an_eraser_that_is_wrong_about_words_to_keep(backbone, monkeypatch, name, ignores):
    eraser = erase.build(name, SETTINGS.get(name, {}), None)
    monkeypatch.setattr(type(eraser), "heeds_retain", not ignores)
    with pytest.raises(BrokenPromiseError, match="it says whether it heeds words to keep"):
        check_eraser(eraser, backbone)


@pytest.mark.parametrize(("name", "deaf"), [("uce", {"preserve_scale": 0.0}), ("adv-unlearn", {"retain_weight": 0.0})])
def test_settings_that_make_an_eraser_deaf_to_words_to_keep(backbone, name, deaf):
    eraser = erase.build(name, {**SETTINGS.get(name, {}), **deaf}, None)
    assert not eraser.heeds_retain
    check_eraser(eraser, backbone)


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ({}, "what its setting 'anchor' tells it: in `knows`, or in `tuning` if nothing"),
        ({"knows": {}}, "what its setting 'anchor' tells it"),
        ({"knows": {}, "tuning": ()}, "what its setting 'anchor' tells it"),
        ({"knows": ANCHOR, "tuning": ("anchors",)}, "and none called 'anchors'"),
        ({"knows": ANCHOR, "tuning": ("anchor",)}, "'anchor' once, as knowledge or as tuning"),
        (
            {"knows": {"anchor": "hint"}, "tuning": ()},
            "knows one of anchor, phrases, random_texts, retain, words, oracles",
        ),
    ],
)
def test_the_contract_catches_an_eraser_that_does_not_say_what_it_knows(backbone, declared, complaint):
    def steps(self, backbone, task, resume=None):
        return UCE(anchor=self.anchor).steps(backbone, task, resume)

    body = {"paper": UCE.paper, "__doc__": "As UCE. Deviations: none known.", "steps": steps, **declared}
    quiet = dataclasses.make_dataclass(
        "Quiet", [("anchor", str, "cat")], bases=(Eraser,), namespace=body, frozen=True, kw_only=True
    )
    with pytest.raises(BrokenPromiseError, match=complaint):
        check_eraser(quiet(), backbone)


def test_targets_are_checked_before_anything_runs(backbone):
    import expunge

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
def test_a_judge_is_known_by_its_network(name, open_judge):
    assert open_judge(name).identity() == open_judge(name).identity()


def test_the_testbed_s_judges_are_told_apart():
    one, other, styles = (
        Catalog("judges").open(f"testbed:{how}") for how in ("network=a", "network=b", "labels=styles")
    )
    assert one.identity() == styles.identity() != other.identity()
