"""Keys that are learned anew on an edited model, without the private one."""

import dataclasses

import pytest
import torch

from expunge.core.concept import Concept
from expunge.core.edit import Weights, fingerprint, fingerprints
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.erasers.kpop import KPOP, injected
from expunge.erasers.uce import UCE
from expunge.maths.trajectories import Sampling
from expunge.stages import erase, fresh_key
from expunge.store import load_edit, save_edit

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
CHURCH = [Concept(name="church")]
FRESH = KPOP(
    place="down-mid-up", k=4, batch=4, prompt_lr=0.3, iterations=1, sampling=Sampling(arm="bank", sampling_steps=4)
)
SHORT = {"iterations": 3, "batch": 2, "lr": 1e-2, "sampling": {"sampling_steps": 4}}
VICTIMS = {
    "kpop": {**SHORT, "prompt_lr": 0.1},
    "esd": SHORT,
    "uce": {"anchor": "cat"},
    "spm": {**SHORT, "warmup": 0},
}


def victim(backbone, name):
    return erase.run(backbone, name, erase.build(name, VICTIMS[name], None), CHURCH, [], seed=1, salt="private")


def of_text(backbone):
    """An edit of the text encoder alone, as of few-shot erasing or AdvUnlearn."""
    name = next(n for n in backbone.group("text-encoder") if n.endswith("fc1.weight"))
    base = backbone.tensors([name])
    return Weights({name: 3 * base[name]}, base_sha256=fingerprints(base))


def loss(backbone, edits, tokens, seed=7):
    """How far the model with ``edits`` and a prompt is from the original, at points that nothing was learned from."""
    x = torch.cat([backbone.noise(seed + i) for i in range(8)])
    t = torch.tensor([900, 700, 500, 300] * 2)
    with torch.no_grad():
        text = backbone.encode(["church"]).expand(8)
        wanted = backbone.predict(x, t, text)
        with backbone.attached(edits):
            text = backbone.encode(["church"]).expand(8)  # as the text encoder of the edited model reads it
            given = injected(text, tokens.expand(8, *tokens.shape), "down-mid-up") if tokens is not None else text
            return float(((backbone.predict(x, t, given) - wanted) ** 2).mean())


@pytest.mark.parametrize("name", VICTIMS)
def test_a_fresh_prompt_learns_on_any_method_s_model_which_stays_as_it_was(backbone, name, tmp_path):
    edit = victim(backbone, name)
    names = [*backbone.group("full"), *backbone.group("text-encoder")]
    before = fingerprint(backbone.tensors(names))
    eraser = dataclasses.replace(FRESH, iterations=30)
    key = fresh_key.learn(backbone, "kpop", eraser, CHURCH, [edit], seed=3)
    assert fingerprint(backbone.tensors(names)) == before
    assert not backbone.edits
    start = torch.randn((4, 32), generator=Task(targets=CHURCH, seed=3).generator("prompt", "church"))
    assert loss(backbone, [edit], key.prompts["church"]) < 0.8 * loss(backbone, [edit], start)
    assert key.requires == (edit.id,)
    assert key.provenance.cost == eraser.fresh_cost(1)
    save_edit(key, tmp_path / "key.safetensors")
    with backbone.attached([edit, load_edit(tmp_path / "key.safetensors")]):
        assert backbone.generate([Query(prompt="a church", seed=1, guidance=3.0, steps=1)]).latents.isfinite().all()


@pytest.mark.parametrize(
    ("arm", "edited"), [("bank", "uce"), ("online-student", "uce"), ("online-frozen", "uce"), ("bank", "text encoder")]
)
def test_an_update_is_equations_5_and_6_on_the_edited_model(backbone, arm, edited):
    edit = of_text(backbone) if edited == "text encoder" else victim(backbone, edited)
    eraser = dataclasses.replace(FRESH, sampling=Sampling(arm=arm, sampling_steps=4))
    task = Task(targets=CHURCH, seed=3)
    with torch.no_grad():
        text, null = backbone.encode(["church"]), backbone.encode([""])
        points = eraser.sampling.source(backbone, text, null, task, "fresh", 4).draw(0, 4)
        wanted = backbone.predict(points.x, points.t, text)  # the original's
    p = torch.randn((4, 32), generator=task.generator("prompt", "church")).requires_grad_()
    with backbone.attached([edit]):
        text = backbone.encode(["church"])
        answer = backbone.predict(points.x, points.t, injected(text.expand(4), p.expand(4, -1, -1), "down-mid-up"))
        (g,) = torch.autograd.grad(((answer - wanted) ** 2).mean(), p)  # Eq. 5
    assert g.norm() > 0
    key = eraser.fresh_key(backbone, task, [edit])
    assert torch.allclose(key.prompts["church"], p - 0.3 * g / (g.abs() + 1e-8), atol=2e-3)  # Eq. 6 with Adam


def test_a_fresh_key_knows_neither_seed_nor_secret_of_the_private_one(backbone):
    edit = victim(backbone, "kpop")
    settings = dataclasses.replace(FRESH, place="mid", k=10, prompt_lr=1e-9)
    fresh = fresh_key.learn(backbone, "kpop", settings, CHURCH, [edit], seed=1)
    own = edit.key.prompts["church"]
    assert not torch.allclose(fresh.prompts["church"], own, atol=0.5), "the same seed begins elsewhere"
    assert fresh.salt != edit.key.salt


def test_a_method_without_keys_learns_none(backbone):
    with pytest.raises(ExpungeError, match="UCE makes no key"):
        fresh_key.learn(backbone, "uce", UCE(), CHURCH, [], seed=0)
