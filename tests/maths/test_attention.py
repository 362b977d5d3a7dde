import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from expunge.core.attention import attention_map
from expunge.core.conditioning import InjectedPrompt
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.core.texts import words_of
from expunge.erasers.sld import SafetyGuidance
from expunge.maths.attention import ReadBeside, recorded


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def by_hand(q, k, bias=0.0):
    """One head: exponentials of the scores, each over their sum, place by place."""
    rows = []
    for place in q:
        weights = torch.stack([torch.exp((place * key).sum() / len(place) ** 0.5) for key in k]) * torch.exp(
            torch.as_tensor(bias)
        )
        rows.append(weights / weights.sum())
    return torch.stack(rows)


def test_a_map_is_the_softmax_of_scaled_scores():
    q, k, bias = drawn(2, 3, 5, 4), drawn(2, 3, 7, 4) * 2, drawn(2, 1, 1, 7)
    found = attention_map(q, k, bias)
    for row in range(2):
        for head in range(3):
            assert torch.allclose(found[row, head], by_hand(q[row, head], k[row, head], bias[row, 0, 0]), atol=1e-6)
    v = drawn(2, 3, 7, 6)
    assert torch.allclose(found @ v, scaled_dot_product_attention(q, k, v, bias.expand(2, 3, 5, 7)), atol=1e-6)


class Watch:
    """Inputs and outputs of every cross-attention layer, as diffusers' own modules have them."""

    def __init__(self, backbone):
        unet = backbone.components()["unet"]
        self.seen = {}
        self.handles = [
            unet.get_submodule(n.removeprefix("unet.")).register_forward_hook(self.heard(n), with_kwargs=True)
            for n in backbone.attentions()
        ]

    def heard(self, name):
        return lambda module, args, kwargs, out: self.seen.setdefault(name, []).append((module, args[0], kwargs, out))

    def stop(self):
        for handle in self.handles:
            handle.remove()


def answered(module, maps, text, rows):
    """What a layer answers if ``maps`` are its attention: A V, through its own last projection."""
    values = module.to_v(text[-rows:]).unflatten(-1, (module.heads, -1)).transpose(1, 2)
    return module.to_out[0]((maps @ values).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("prompted", [None, [True, True], [True, False]])
@torch.no_grad()
def test_recorded_maps_are_those_that_made_the_layers_outputs(backbone, prompted):
    cond = backbone.encode(["a church", "dog"])
    if prompted is not None:
        rows = torch.tensor(prompted)
        prompt = InjectedPrompt(tokens=drawn(2, 3, 32), rows=rows, blocks=("mid", "up"))
        cond = cond.__class__(embeds=cond.embeds, tokens=cond.tokens, prompt=prompt)
    x = torch.cat([backbone.noise(0), backbone.noise(1)])
    watch = Watch(backbone)
    with recorded(backbone, 2) as recording:
        backbone.predict(x, 501, cond)
    watch.stop()
    maps = recording.maps()
    assert set(maps) == set(backbone.attentions())
    for name, found in maps.items():
        module, _, kwargs, out = watch.seen[name][0]
        text = kwargs["encoder_hidden_states"]
        longer = prompted is not None and backbone.attentions()[name].block != "down"
        assert found.shape[-1] == text.shape[1] == 16 + 3 * longer
        assert torch.allclose(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-5)
        assert torch.allclose(answered(module, found, text, 2), out, atol=1e-5), name
        if longer:
            assert (found[..., 16:].sum(-1) > 0).flatten(1).all(1).tolist() == prompted, "closed rows read no prompt"


@torch.no_grad()
def test_of_guided_pairs_the_prompts_half_is_averaged_over_steps(backbone):
    asked = [Query(prompt=p, seed=i, guidance=3.0, steps=3) for i, p in enumerate(["a church", "dog"])]
    plain = backbone.generate(asked).latents
    watch = Watch(backbone)
    with recorded(backbone, 2, columns=[1, 2]) as recording:
        assert torch.equal(backbone.generate(asked).latents, plain), "recording changes nothing"
    watch.stop()
    for name, found in recording.maps().items():
        assert len(watch.seen[name]) == 3
        steps = []
        for module, hidden, kwargs, _ in watch.seen[name]:
            q, k = module.to_q(hidden[2:]), module.to_k(kwargs["encoder_hidden_states"][2:])
            heads = range(module.heads)
            width = q.shape[-1] // module.heads
            parts = [slice(h * width, (h + 1) * width) for h in heads]
            steps.append(torch.stack([torch.stack([by_hand(q[b][:, p], k[b][:, p]) for p in parts]) for b in range(2)]))
        assert torch.allclose(found, torch.stack(steps).mean(0)[..., [1, 2]], atol=1e-5), name


def test_what_an_edit_asks_on_the_way_is_not_recorded(backbone):
    """SLD asks for its own text in each step; within its warm-up that changes no image, nor may it change a map."""
    asked = [Query(prompt=p, seed=i, guidance=3.0, steps=3) for i, p in enumerate(["a church", "dog"])]
    edit = SafetyGuidance(text="a gun", warmup=9, scale=100.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.5)
    maps, evaluations = [], []
    for edits in ([], [edit]):
        before = backbone.cost
        with backbone.attached(edits), recorded(backbone, 2) as recording:
            backbone.generate(asked)
        maps.append(recording.maps())
        evaluations.append((backbone.cost - before).forward)
    assert evaluations == [12, 18], "it asks"
    assert all(torch.equal(maps[0][name], maps[1][name]) for name in maps[0])


def test_nothing_is_left_behind_and_mistakes_are_told(backbone):
    layers = [backbone.parameter(f"{n}.weight")[0] for n in backbone.attentions()]
    with pytest.raises(ExpungeError, match="no attention was recorded"), recorded(backbone, 1) as recording:
        recording.maps()
    assert not any(m._forward_hooks for layer in layers for m in layer.modules())
    with pytest.raises(ExpungeError, match="expected 3 or more"), recorded(backbone, 3), torch.no_grad():
        backbone.predict(backbone.noise(0), 1, backbone.encode(["dog"]))
    assert not any(m._forward_hooks for layer in layers for m in layer.modules())
    with pytest.raises(ExpungeError, match="same injected prompt"), recorded(backbone, 1), torch.no_grad():
        cond = backbone.encode(["dog"])
        backbone.predict(backbone.noise(0), 1, cond)
        prompt = InjectedPrompt(tokens=drawn(1, 3, 32), rows=torch.tensor([True]), blocks=("mid",))
        backbone.predict(backbone.noise(0), 1, cond.__class__(embeds=cond.embeds, prompt=prompt))


def test_each_row_reads_another_text_by_its_own_weights_and_its_own_timestep(backbone):
    x, t = torch.cat([backbone.noise(seed) for seed in range(3)]), torch.tensor([900, 100, 900])
    with torch.no_grad():
        cond, other = backbone.encode(["a cat"]).expand(3), backbone.encode(["dog"]).embeds
        words = words_of(backbone, "dog")
        weights = torch.tensor([-2.0, -2.0, 0.0])[:, None].expand(3, words.stop - words.start)
        plain = backbone.predict(x, t, cond)
        with backbone.attending(ReadBeside(other, words, weights, earliest=500.0)):
            read = backbone.predict(x, t, cond)
        with backbone.attending(ReadBeside(other, words, weights[:1], earliest=500.0)):
            alike = backbone.predict(x, t, cond)
    assert (read[0] - plain[0]).abs().max() > 1e-3
    assert torch.equal(read[1:], plain[1:]), "too late, and a weight of nothing"
    assert torch.allclose(alike[:2], read[:2], atol=1e-6)
    assert (alike[2] - plain[2]).abs().max() > 1e-3, "one weight for all"
