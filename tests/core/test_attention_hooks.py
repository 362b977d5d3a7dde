"""Hooks that look at the cross-attention of layers, or change it, in our own loop and in a user's pipeline."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from expunge import backbones
from expunge.core.attention import AttentionHook
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance
from expunge.core.query import Query
from expunge.maths.attention import recorded
from states import STATES
from tiny import still, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

MAKERS = {"sd": tiny_pipeline, "sdxl": tiny_xl_pipeline}
SIZE = {"height": 16, "width": 16}
QUERIES = [Query(prompt=p, seed=i, guidance=3.0, steps=3) for i, p in enumerate(["a dog", "cat"])]


@pytest.fixture(params=MAKERS)
def pipe(request):
    return still(MAKERS[request.param]())


class Looking(AttentionHook):
    """Writes down what it is told, and changes nothing."""

    def __init__(self):
        self.seen = []

    def scores(self, scores, step):
        self.seen.append(step)
        return scores


class Scaling(AttentionHook):
    """Multiplies the probabilities of one layer."""

    def __init__(self, layer, factor):
        self.layer, self.factor = layer, factor

    def reads(self, layer, anatomy):
        return layer == self.layer

    def probabilities(self, probabilities, step):
        return self.factor * probabilities


class Reading(AttentionHook):
    """Has layers read the first token's values beside the text, at every place."""

    def __init__(self, factor):
        self.factor = factor

    def beside(self, step):
        return self.factor * step.values[:, :, :1].expand_as(step.queries)


class Shifting(AttentionHook):
    """Closes the second token to all layers, by its score."""

    def scores(self, scores, step):
        closed = torch.zeros(scores.shape[-1])
        closed[1] = -torch.inf
        return scores + closed


@dataclass(frozen=True, kw_only=True, eq=False)
class Attending(Guidance):
    """A guidance edit that hands out a hook."""

    eraser = "attending"
    hook: AttentionHook
    states: list = field(default_factory=list)

    def fields(self):
        return {"eraser": self.eraser}

    def attention(self, backbone, state):
        self.states.append(state)
        return self.hook


def called(pipe, **more):
    with torch.no_grad():
        noise = torch.cat([backbones.of(pipe).noise(q.seed) for q in QUERIES])
        return pipe(
            [q.prompt for q in QUERIES],
            latents=noise,
            num_inference_steps=3,
            guidance_scale=3.0,
            output_type="latent",
            **SIZE,
            **more,
        ).images.clone()


def by_hand(module, hidden, text, change=lambda p: p):
    """A layer's answer, head by head."""
    q, k, v = module.to_q(hidden), module.to_k(text), module.to_v(text)
    width = q.shape[-1] // module.heads
    parts = []
    for head in range(module.heads):
        some = slice(head * width, (head + 1) * width)
        scores = q[..., some] @ k[..., some].transpose(1, 2) / width**0.5
        parts.append(change(scores.softmax(-1)) @ v[..., some])
    return module.to_out[0](torch.cat(parts, -1))


def test_a_hook_that_only_looks_leaves_every_bit(pipe):
    backbone, looking = backbones.of(pipe), Looking()
    plain, theirs = backbone.generate(QUERIES).latents, called(pipe)
    with backbone.attending(looking):
        assert torch.equal(backbone.generate(QUERIES).latents, plain)
        assert torch.equal(called(pipe), theirs)
    assert {s.layer for s in looking.seen} == set(backbone.attentions())
    edit = Attending(hook=looking)
    with backbone.attached([edit]):
        assert torch.equal(backbone.generate(QUERIES).latents, plain)
        assert torch.equal(called(pipe), theirs)
    modules = [m for n in backbone.attentions() for m in backbone.parameter(f"{n}.weight")[0].modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules), "and nothing behind"


def test_steps_times_and_rows_are_told_right_in_our_loop_and_in_theirs(pipe):
    backbone = backbones.of(pipe)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(3)
    times = [float(t) for t in scheduler.timesteps]
    for run in (lambda: backbone.generate(QUERIES), lambda: called(pipe)):
        looking = Looking()
        edit = Attending(hook=looking)
        with backbone.attached([edit]):
            run()
        layers = len(backbone.attentions())
        assert len(looking.seen) == 3 * layers
        assert [s.index for s in looking.seen] == [i for i in range(3) for _ in range(layers)]
        for step in looking.seen:
            assert step.t.tolist() == pytest.approx([times[step.index]] * 4)
            assert step.prompted == slice(2, 4)
            assert step.queries.shape[0] == 4
        assert all(state is edit.states[0] for state in edit.states[:3]), "one state a generation"
    looking = Looking()
    with backbone.attending(looking), torch.no_grad():
        backbone.predict(backbone.noise(0), 40, backbone.encode(["dog"]))
    assert {(s.index, s.prompted == slice(None), s.t.tolist()[0]) for s in looking.seen} == {(None, True, 40)}


@torch.no_grad()
def test_what_a_hook_makes_of_the_probabilities_is_what_the_layer_answers(pipe):
    backbone = backbones.of(pipe)
    x, cond = backbone.noise(0), backbone.encode(["a dog"])
    for name in backbone.attentions():
        module, heard = backbone.parameter(f"{name}.weight")[0], []
        handle = module.register_forward_hook(
            lambda _, args, kwargs, out, heard=heard: heard.append((args[0], kwargs["encoder_hidden_states"], out)),
            with_kwargs=True,
        )
        with backbone.attending(Scaling(name, 0.25)):
            changed = backbone.predict(x, 40, cond)
        handle.remove()
        hidden, text, out = heard[0]
        assert torch.allclose(out, by_hand(module, hidden, text, lambda p: 0.25 * p), atol=1e-5)
        assert not torch.allclose(out, by_hand(module, hidden, text), atol=1e-4)
        assert not torch.equal(changed, backbone.predict(x, 40, cond))
        with backbone.attending(Scaling(name, 1.0)):
            assert torch.allclose(backbone.predict(x, 40, cond), backbone.predict(x, 40, cond), atol=1e-5)


@torch.no_grad()
def test_what_is_read_beside_the_text_is_added_to_the_layer_s_own_answer(pipe):
    backbone, heard = backbones.of(pipe), []
    x, cond = backbone.noise(0), backbone.encode(["a dog"])
    name = list(backbone.attentions())[-1]
    module = backbone.parameter(f"{name}.weight")[0]
    handle = module.register_forward_hook(
        lambda _, args, kwargs, out: heard.append((args[0], kwargs["encoder_hidden_states"], out)), with_kwargs=True
    )
    with backbone.attending(Reading(0.5), Scaling(name, 0.25)):
        backbone.predict(x, 40, cond)
    handle.remove()
    hidden, text, out = heard[0]

    def change(probabilities):
        first = torch.zeros(probabilities.shape[-1])
        first[0] = 0.5
        return 0.25 * probabilities + first

    assert torch.allclose(out, by_hand(module, hidden, text, change), atol=1e-5)
    plain = backbone.predict(x, 40, cond)
    with backbone.attending(Reading(0.0)):
        assert torch.equal(backbone.predict(x, 40, cond), plain), "nothing more leaves every bit"


@torch.no_grad()
def test_scores_are_changed_before_the_softmax_and_others_see_what_is_left(pipe):
    backbone = backbones.of(pipe)
    with backbone.attached([Attending(hook=Shifting())]), recorded(backbone, 2) as recording:
        ours = backbone.generate(QUERIES).latents
    for maps in recording.maps().values():
        assert (maps[..., 1] == 0).all()
        assert torch.allclose(maps.sum(-1), torch.ones(maps.shape[:-1]), atol=1e-5)
    backbone.attach(Attending(hook=Shifting()))
    assert torch.allclose(called(pipe), ours, atol=1e-4), "in a user's pipeline, too"


def test_gradients_flow_to_the_weights_and_the_text(pipe):
    backbone, maps = backbones.of(pipe), []

    class Kept(AttentionHook):
        def probabilities(self, probabilities, step):
            maps.append(probabilities[..., 1])
            return probabilities

    name, anatomy = next(iter(backbone.attentions().items()))
    trained = backbone.tensors([anatomy.k])[anatomy.k].clone().requires_grad_()
    cond = backbone.encode(["a dog"])
    embeds = cond.embeds.detach().requires_grad_()
    told = cond.__class__(embeds=embeds, pooled=cond.pooled, extra=cond.extra)
    with backbone.weights({anatomy.k: trained}), backbone.attending(Kept()):
        backbone.predict(backbone.noise(0), 40, told)
        loss = torch.stack([m.square().sum() for m in maps]).sum().sqrt()  # Forget-Me-Not's
        loss.backward()
    assert trained.grad.abs().sum() > 0
    assert embeds.grad.abs().sum() > 0
    other = backbone.tensors([anatomy.k])[anatomy.k].clone().requires_grad_()
    with backbone.weights({anatomy.k: other}), backbone.attending(Scaling(name, 0.5)):
        backbone.predict(backbone.noise(0), 40, told).square().mean().backward()
    assert other.grad.abs().sum() > 0, "through changed probabilities"


@pytest.mark.parametrize("hook", ["look", "scale"])
def test_checkpointed_gradients_are_those_of_the_whole(pipe, hook):
    backbone = backbones.of(pipe)
    name, anatomy = next(iter(backbone.attentions().items()))
    grads = []
    for checkpointing in (False, True):
        backbone.checkpointing = checkpointing
        trained = backbone.tensors([anatomy.v])[anatomy.v].clone().requires_grad_()
        with backbone.weights({anatomy.v: trained}):
            with backbone.attending(Scaling(name, 0.5) if hook == "scale" else Looking()):
                out = backbone.predict(backbone.noise(0), 40, backbone.encode(["a dog"]))
            out.square().mean().backward()  # when nobody attends any more
        grads.append(trained.grad)
    assert torch.allclose(*grads, atol=1e-6)
    assert grads[0].abs().sum() > 0


class Elsewhere(AttentionHook):
    """EIUP's weighing: another text's attention, from the same queries, is added with a weight."""

    def __init__(self, text: Tensor, weight: float):
        self.text, self.weight = text, weight

    def probabilities(self, probabilities, step):
        keys = step.project("k", self.text.expand(len(step.queries), -1, -1))
        own = (step.queries @ keys.transpose(-1, -2) / step.queries.shape[-1] ** 0.5).softmax(-1)
        return probabilities + self.weight * own


@torch.no_grad()
def test_a_hook_reads_another_text_with_the_layers_own_matrices(pipe):
    backbone = backbones.of(pipe)
    x, cond, other = backbone.noise(0), backbone.encode(["a dog"]), backbone.encode(["cat"]).embeds
    name = list(backbone.attentions())[-1]
    module, heard = backbone.parameter(f"{name}.weight")[0], []
    handle = module.register_forward_hook(
        lambda _, args, kwargs, out: heard.append((args[0], kwargs["encoder_hidden_states"], out)), with_kwargs=True
    )
    with backbone.attending(Elsewhere(other, -0.5)):
        backbone.predict(x, 40, cond)
    handle.remove()
    hidden, text, out = heard[0]
    q, k, c, v = module.to_q(hidden), module.to_k(text), module.to_k(other), module.to_v(text)
    width, parts = q.shape[-1] // module.heads, []
    for head in range(module.heads):
        some = slice(head * width, (head + 1) * width)
        maps = [(q[..., some] @ t[..., some].transpose(1, 2) / width**0.5).softmax(-1) for t in (k, c)]
        parts.append((maps[0] - 0.5 * maps[1]) @ v[..., some])
    assert torch.allclose(out, module.to_out[0](torch.cat(parts, -1)), atol=1e-5)


@pytest.mark.parametrize(
    "state", ["IP-Adapter", "LoRA loaded", "ControlNet", "attention slicing", "token merging (tomesd)"]
)
def test_in_a_pipeline_as_users_have_it(state):
    made = STATES[state]()
    backbone = backbones.of(made.pipe)
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", **made.call}

    def image():
        with torch.no_grad():
            return made.pipe("a dog", generator=torch.Generator().manual_seed(0), **call).images.clone()

    base, looking = image(), Looking()
    with backbone.attached([Attending(hook=looking)]):
        assert torch.equal(image(), base)
    assert looking.seen
    name = next(iter(backbone.attentions()))
    with backbone.attached([Attending(hook=Scaling(name, 1.0))]):
        assert torch.allclose(image(), base, atol=1e-3), "the same probabilities, computed by us"
    with backbone.attached([Attending(hook=Scaling(name, 0.0))]):
        assert not torch.allclose(image(), base, atol=1e-3)
    with backbone.attached([Attending(hook=Reading(0.0))]):
        assert torch.equal(image(), base)
    with backbone.attached([Attending(hook=Reading(0.5))]):
        assert not torch.allclose(image(), base, atol=1e-3)


def test_what_cannot_be_looked_at_is_refused(pipe):
    edit = Attending(hook=Looking())
    pipe.fuse_qkv_projections()
    with pytest.raises(ExpungeError, match=r"projections .* are fused"):
        edit.attach(pipe)
    backbone = backbones.of(pipe)
    with (
        backbone.attending(Looking()),
        torch.no_grad(),
        pytest.raises(ExpungeError, match="does not call its projections"),
    ):
        backbone.predict(backbone.noise(0), 40, backbone.encode(["dog"]))
    pipe.unfuse_qkv_projections()
    with pytest.raises(ExpungeError, match="has no cross-attention"):
        edit.attach(tiny_sd3_pipeline())
    other = backbones.of(tiny_sd3_pipeline())
    with pytest.raises(ExpungeError, match="has no cross-attention"), other.attending(Looking()):
        pass
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.raises(ExpungeError, match="looks at attention in the layers of a compiled unet"):
        edit.attach(pipe)
