"""An erasure ends where a judge that does not report sees that enough is erased, on the testbed."""

from dataclasses import asdict

import pytest
import torch

from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.cost import Cost
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.judges.testbed import Testbed
from expunge.stages import analyse, erase, knowledge, stopping
from expunge.stages.stopping import Stop
from expunge.store import Checkpoints

SHORT = {"templates": ["{}", "a {}"], "lr": 5e-4, "iterations": 24, "batch": 2,
         "sampling": {"arm": "bank", "sampling_steps": 4}}  # fmt: skip
CHURCH = [Concept(name="church")]


class Killed(BaseException):
    """Stands in for a kill: nothing catches it."""


def by_hand(backbone, edits, images):
    """Percent of images of a church, on a stop's seeds, that judge B takes as pictures of something else; and as pictures."""
    asked = [Query(prompt="a drawing of a church", seed=45_000 + i, guidance=4.0, steps=8) for i in range(images)]
    with backbone.attached(edits):
        pixels = backbone.generate(asked).pixels
    judge = Testbed(network="b")
    other, valid = judge.scores(pixels).argmax(1) != judge.labels.index("church"), judge.valid(pixels)
    return 100 * float((other & valid).float().mean()), 100 * float(valid.float().mean())


def test_an_erasure_ends_at_the_first_look_that_sees_enough_and_is_what_it_would_have_been_there():
    backbone = backbones.load("testbed")
    eraser = erase.build("esd", SHORT, None)
    edits, spent = {}, {}
    begun = backbone.cost

    def keep(step):
        edits[step.index + 1], spent[step.index + 1] = step.edit(), backbone.cost - begun

    erase.run(backbone, "esd", eraser, CHURCH, [], on_step=keep)
    edit = erase.run(backbone, "esd", eraser, CHURCH, [], stop=Stop(erased=75.0, every=4, images=4))
    said = edit.provenance.search
    looks = {look["updates"]: look["esr"] for look in said["looks"]}
    assert looks == {updates: by_hand(backbone, [edits[updates]], 4)[0] for updates in looks}
    *before, (updates, last) = looks.items()
    assert [u for u, _ in before] == list(range(4, updates, 4))
    assert all(esr < 75 for _, esr in before)
    assert before, "a rate at which the first look sees enough shows little"
    assert last >= 75
    assert (said["updates"], said["reached"]) == (updates, True)
    assert updates < 24
    assert all(torch.equal(edit.tensors()[n], t) for n, t in edits[updates].tensors().items())
    assert edit.provenance.cost == spent[updates] + Cost(forward=len(looks) * 4 * 2 * 8), "its looks are in its cost"
    assert knowledge.of_provenances([asdict(edit.provenance)])["oracles"] == ["testbed:network=b"]
    assert not backbone.edits
    with pytest.raises(ExpungeError, match=f"a judge ended esd after {updates} updates"):
        analyse.of_provenance(backbone, edit.provenance, None)


def slow(backbone, file, kill=None, resume=False, stop=None):
    """Nothing is erased at this rate."""

    def on_step(step):
        if step.index == kill:
            raise Killed

    eraser = erase.build("esd", {**SHORT, "lr": 1e-7, "iterations": 5}, None)
    how = {"on_step": on_step, "checkpoints": Checkpoints(file, resume=resume, every=0.0)}
    return erase.run(backbone, "esd", eraser, CHURCH, [], stop=stop or Stop(every=2, images=2), **how)


def test_a_judge_that_cannot_tell_pictures_goes_into_a_checkpoint_and_out_again(tmp_path, monkeypatch):
    backbone = backbones.load("testbed")
    monkeypatch.setattr(Testbed, "valid", lambda judge, images: None)
    with pytest.raises(Killed):
        slow(backbone, tmp_path / "checkpoint", kill=3)
    with pytest.warns(ExpungeWarning, match="ended after 5 updates"):
        edit = slow(backbone, tmp_path / "checkpoint", resume=True)
    assert [(look["updates"], look["valid"]) for look in edit.provenance.search["looks"]] == [
        (2, None),
        (4, None),
        (5, None),
    ]


def test_what_was_never_enough_ends_with_its_updates_and_a_killed_run_goes_on_to_the_same(tmp_path):
    backbone = backbones.load("testbed")
    with pytest.warns(ExpungeWarning, match=r"ended after 5 updates with ESR-1 0 by testbed:network=b: expected 97"):
        whole = slow(backbone, tmp_path / "whole")
    said = whole.provenance.search
    assert [look["updates"] for look in said["looks"]] == [2, 4, 5], "once more at the end"
    assert not said["reached"]
    with pytest.raises(Killed):
        slow(backbone, tmp_path / "torn", kill=4)
    with pytest.raises(ExpungeError, match="another model, method, setting"):
        slow(backbone, tmp_path / "torn", resume=True, stop=Stop(every=1, images=2))
    with pytest.warns(ExpungeWarning, match="ended after 5 updates"):
        resumed = slow(backbone, tmp_path / "torn", resume=True)
    assert resumed.provenance.search == said
    assert all(torch.equal(resumed.tensors()[n], t) for n, t in whole.tensors().items())


def test_ruined_images_are_not_erased_ones():
    """One step of all weights at a rate of 0.03 leaves noise, in which judge B sees no church either."""
    backbone = backbones.load("testbed")
    eraser = erase.build("esd", {**SHORT, "group": "full", "lr": 0.03, "iterations": 1}, None)
    with pytest.warns(ExpungeWarning, match="ended after 1 updates"):
        edit = erase.run(backbone, "esd", eraser, CHURCH, [], stop=Stop(every=1, images=4))
    said = edit.provenance.search
    assert not said["reached"]
    esr, valid = by_hand(backbone, [edit], 4)
    assert valid < 97
    assert (said["looks"][-1]["esr"], said["looks"][-1]["valid"]) == (esr, valid)


def test_a_stop_s_key_has_what_its_looks_are_made_with():
    words = ["church"]
    held = stopping.as_json(Stop(erased=75.0), "testbed", words)
    assert held["looks"] == {"prompt": "a drawing of a {}", "guidance": 4.0, "steps": 8}
    assert stopping.of_json(held) == Stop(erased=75.0, judge="testbed:network=b")


def test_a_stop_that_cannot_be_is_refused_in_a_line(backbone):
    for wrong, words in (({"erased": 0.0}, "erased is 0"), ({"erased": 101.0}, "erased is 101"), ({"every": 0}, "every is 0"),
                         ({"images": 0}, "images is 0")):  # fmt: skip
        with pytest.raises(ExpungeError, match=words):
            Stop(**wrong)
    eraser = erase.build("esd", {"iterations": 1}, None)
    with pytest.raises(ExpungeError, match="no judge is named for tiny"):
        erase.run(backbone, "esd", eraser, CHURCH, [], stop=Stop())
    with pytest.raises(ExpungeError, match="does not know 'a happy day'"):
        erase.run(backbones.load("testbed"), "esd", eraser, [Concept(name="a happy day")], [], stop=Stop())
