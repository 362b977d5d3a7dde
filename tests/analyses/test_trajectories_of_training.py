import statistics
from itertools import pairwise

import pytest
import torch

from expunge import backbones
from expunge.analyses.trajectories import Trajectories, cosine, movement, rise
from expunge.core.analysis import Study, Training
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.erasers.esd import ESD
from expunge.erasers.kpop import KPOP
from expunge.maths.trajectories import Sampling
from expunge.pretrained import clip as pretrained
from expunge.testbed import clip

SHORT = {"iterations": 5, "batch": 1, "lr": 1e-3, "sampling": Sampling(sampling_steps=2)}


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


def similarity(pixels, texts):
    return clip.image_vectors(pixels) @ clip.text_vectors(texts).T


def study(eraser, targets=("church",)):
    task = Task(targets=[Concept(name=t) for t in targets], retain=["dog"], seed=4, salt="s")
    how = {"prompt": lambda w: f"image of a {w}", "guidance": 4.0, "steps": 2, "batch": 3, "seed": 11}
    return Study(targets=targets, retain=["dog"], training=Training(eraser=eraser, task=task), **how)


def test_a_prompt_s_cosine_is_of_means_or_the_largest_of_pairs():
    generator = torch.Generator().manual_seed(0)
    p, e = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    pairs = [float(a @ b / a.norm() / b.norm()) for a in p for b in e]
    a, b = sum(p) / 3, sum(e) / 5
    assert cosine(p, e, "max") == pytest.approx(max(pairs), abs=1e-6)
    assert cosine(p, e, "mean") == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-6)


def test_movement_and_rise_are_of_a_curve_s_steps_after_its_first():
    curve = [0.5, 0.4, 0.45, 0.1, 0.2]
    assert movement(curve) == pytest.approx((0.05 + 0.35 + 0.1) / 3)
    assert rise(curve) == pytest.approx((0.05 + 0.1) / 3)
    early, back = [0.6, 0.1, 0.1, 0.1], [0.6, 0.1, 0.3, 0.1]
    assert (movement(early), rise(early)) == (0, 0), "one early drop is no instability, however deep"
    assert (movement(back), rise(back)) == (pytest.approx(0.2), pytest.approx(0.1))
    assert rise([0.4, 0.3, 0.2, 0.1]) == 0, "a steady fall moves, and never up"


def test_alignment_is_that_of_images_drawn_with_each_checkpoint_s_edit(testbed):
    eraser = ESD(**SHORT)
    what = study(eraser, ("church", "radio"))
    found = Trajectories(every=2, count=2).findings(testbed, what)
    edits = [s.edit() for s in eraser.steps(testbed, what.training.task)]
    curves = {"(x_e, c_e)": [], "(x_e, c_n)": [], "(x_n, c_n)": []}
    per_target = {"church": [], "radio": []}

    def images(prompt):
        return testbed.generate([Query(prompt=prompt, seed=11 + i, guidance=4.0, steps=2) for i in range(2)]).pixels

    for edit in (None, edits[1], edits[3], edits[4]):
        with testbed.attached([] if edit is None else [edit]):
            neutral = similarity(images("a picture"), ["a picture"])
            ee, en = [], []
            for word in per_target:
                drawn = images(f"image of a {word}")
                own = similarity(drawn, [f"image of a {word}"])
                per_target[word].append(float(own.mean()))
                ee.append(own)
                en.append(similarity(drawn, ["a picture"]))
        for pair, values in (("(x_e, c_e)", ee), ("(x_e, c_n)", en), ("(x_n, c_n)", [neutral])):
            curves[pair].append(100 * float(torch.cat(values).mean()))
    lines = {s.name: s for s in found.figures["alignment"].series}
    for pair, expected in curves.items():
        assert list(lines[pair].x) == [0, 2, 4, 5]
        assert list(lines[pair].y) == pytest.approx(expected, abs=0.02), pair
    by = {m.metric: m for m in found.measurements}
    assert by["clip_ee"].instrument == pretrained.clip("testbed").instrument
    assert by["clip_ee"].interval.value == pytest.approx(curves["(x_e, c_e)"][-1], abs=0.02)
    change = curves["(x_e, c_e)"][-1] - curves["(x_e, c_e)"][0]
    assert by["clip_ee_change"].interval.value == pytest.approx(change, abs=0.04)
    moved = [statistics.fmean(abs(b - a) for a, b in pairwise(c[1:])) for c in per_target.values()]
    assert list(by["clip_ee_movement"].per_image) == pytest.approx(moved, abs=3e-4)
    assert list(by["clip_ee_movement"].labels) == ["church", "radio"]
    up = [statistics.fmean(max(0.0, b - a) for a, b in pairwise(c[1:])) for c in per_target.values()]
    assert list(by["clip_ee_rise"].per_image) == pytest.approx(up, abs=3e-4)
    assert "prompt_cosine" not in by, "ESD has no prompt"
    assert "prompt" not in found.figures


def test_prompts_are_followed_from_the_first_update_on(testbed):
    eraser = KPOP(**SHORT, prompt_lr=0.3, k=3)
    what = study(eraser)
    found = Trajectories(every=4, count=1, texts=("church", "a face")).findings(testbed, what)
    keys = [s.key(s.edit()) for s in eraser.steps(testbed, what.training.task)]
    with torch.no_grad():
        texts = testbed.encode(["church", "a face"]).embeds
    for series, text in zip(found.figures["prompt"].series, texts, strict=True):
        expected = [cosine(keys[i].prompts["church"], text, "mean") for i in (0, 3, 4)]
        assert list(series.x) == [1, 4, 5]
        assert list(series.y) == pytest.approx(expected, abs=1e-4)
    own = {m.metric: m for m in found.measurements}["prompt_cosine"]
    assert own.interval.value == pytest.approx(100 * found.figures["prompt"].series[0].y[-1], abs=0.01)
    with pytest.raises(ExpungeError, match="without a training"):
        Trajectories().findings(
            testbed, Study(targets=["church"], retain=[], prompt=str, guidance=1.0, steps=1, batch=1)
        )
