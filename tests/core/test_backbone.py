import pytest
import torch

from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.edit import Weights, fingerprint
from expunge.core.errors import ExpungeError
from expunge.core.query import Query

ONE = [Query(prompt="dog", seed=1, guidance=3.0, steps=2)]


def random_edit(backbone, names, seed=0):
    base = backbone.tensors(names)
    generator = torch.Generator().manual_seed(seed)
    return backbone.edit_of({n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()})


def snapshot(backbone):
    return fingerprint(backbone.tensors(backbone.group("full")))


def test_last_detach_is_bit_exact_in_any_order(backbone):
    before = snapshot(backbone)
    names = backbone.text_inputs()
    edits = [random_edit(backbone, names, 0), random_edit(backbone, names[:3], 1), random_edit(backbone, names[2:], 2)]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        for edit in edits:
            backbone.attach(edit)
        for i in order:
            backbone.detach(edits[i])
        assert snapshot(backbone) == before


def test_detaching_one_of_two_leaves_the_other_bit_for_bit(backbone):
    names = backbone.text_inputs()
    first, second = random_edit(backbone, names, 0), random_edit(backbone, names, 1)
    backbone.attach(first)
    backbone.attach(second)
    backbone.detach(first)
    now = backbone.tensors(names)
    assert all(torch.equal(now[n], second.replaced[n]) for n in names)


def test_stacked_edits_add_their_differences_to_the_base(backbone):
    name = backbone.text_inputs()[0]
    base = backbone.tensors([name])[name].clone()
    first, second = random_edit(backbone, [name], 0), random_edit(backbone, [name], 1)
    backbone.attach(first, strength=0.5)
    backbone.attach(second)
    expected = base + 0.5 * (first.replaced[name] - base) + (second.replaced[name] - base)
    assert torch.allclose(backbone.tensors([name])[name], expected, atol=1e-6)
    module, key = backbone.parameter(name)
    assert torch.equal(getattr(module, key).data, backbone.tensors([name])[name])


def test_an_edit_made_on_top_of_another_gives_what_it_was_made_to_give(backbone):
    name = backbone.text_inputs()[0]
    backbone.attach(random_edit(backbone, [name], 0))
    wanted = torch.ones_like(backbone.tensors([name])[name])
    on_top = backbone.edit_of({name: wanted})
    assert on_top.requires == (backbone.edits[0].id,)
    backbone.attach(on_top)
    assert torch.allclose(backbone.tensors([name])[name], wanted, atol=1e-6)


def test_an_edit_needs_the_ones_it_was_made_on(backbone):
    name = backbone.text_inputs()[0]
    first = random_edit(backbone, [name], 0)
    backbone.attach(first)
    second = random_edit(backbone, [name], 1)
    backbone.attach(second)
    with pytest.raises(ExpungeError, match="needed by"):
        backbone.detach(first)
    backbone.detach(second)
    backbone.detach(first)
    with pytest.raises(ExpungeError, match="made on top of"):
        backbone.attach(second)


def test_refuses_another_base_by_hash_unless_told(backbone, other_folder):
    other = StableDiffusion.from_folder(other_folder, name="other")
    edit = random_edit(backbone, backbone.text_inputs())
    with pytest.raises(ExpungeError, match="another base"):
        other.attach(edit)
    assert other.edits == []
    other.attach(edit, any_base=True)


@pytest.mark.parametrize("change", ["name", "shape"])
def test_refuses_tensors_that_do_not_fit_even_when_told(backbone, change):
    name = backbone.text_inputs()[0]
    tensor = backbone.tensors([name])[name]
    replaced = {"unet.nothing.weight": tensor} if change == "name" else {name: tensor[:1]}
    with pytest.raises(ExpungeError, match="expected"):
        backbone.attach(Weights(replaced, base_sha256={}), any_base=True)


def test_a_failed_attachment_leaves_nothing(backbone, monkeypatch):
    before = snapshot(backbone)
    edit = random_edit(backbone, backbone.text_inputs())
    owner, calls = type(backbone).parameter, []

    def failing(self, name):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return owner(self, name)

    monkeypatch.setattr(type(backbone), "parameter", failing)
    with pytest.raises(KeyboardInterrupt):
        backbone.attach(edit)
    assert backbone.edits == []
    assert snapshot(backbone) == before


def test_an_edit_is_a_copy(backbone):
    name = backbone.text_inputs()[0]
    tensor = torch.zeros_like(backbone.tensors([name])[name])
    edit = backbone.edit_of({name: tensor})
    tensor.add_(1)
    assert edit.replaced[name].abs().sum() == 0


def test_refuses_twice_and_unattached(backbone):
    edit = random_edit(backbone, backbone.text_inputs())
    backbone.attach(edit)
    with pytest.raises(ExpungeError, match="attached already"):
        backbone.attach(edit)
    backbone.detach(edit)
    with pytest.raises(ExpungeError, match="not attached"):
        backbone.detach(edit)


def test_edits_attach_alike_before_and_after_the_model_is_built(folder):
    late, early = (StableDiffusion.from_folder(folder, name="tiny") for _ in range(2))
    early.generate(ONE)
    edit = random_edit(early, early.text_inputs())
    for backbone in (late, early):
        backbone.attach(edit)
    assert torch.equal(late.generate(ONE).latents, early.generate(ONE).latents)


def test_weights_swaps_inside_and_restores_even_after_an_error(backbone):
    before = snapshot(backbone)
    name = backbone.text_inputs()[0]
    trained = torch.zeros_like(backbone.tensors([name])[name]).requires_grad_()
    cond = backbone.encode(["dog"])
    x = backbone.noise(0)
    plain = backbone.predict(x, 10, cond).detach()
    with pytest.raises(RuntimeError, match="stop"), backbone.weights({name: trained}):
        inside = backbone.predict(x, 10, cond)
        inside.square().mean().backward()
        raise RuntimeError("stop")
    assert trained.grad is not None
    assert trained.grad.abs().sum() > 0
    assert not torch.equal(inside, plain)
    assert snapshot(backbone) == before
    assert torch.equal(backbone.predict(x, 10, cond).detach(), plain)


def test_guided_combines_as_the_formula_says(backbone):
    x, cond, null = backbone.noise(0), backbone.encode(["dog"]), backbone.encode([""])
    with torch.no_grad():
        e_c, e_n = backbone.predict(x, 40, cond), backbone.predict(x, 40, null)
        guided = backbone.guided(x, 40, 0, cond, null, 7.5, {}).combined
    assert torch.allclose(guided, e_n + 7.5 * (e_c - e_n), atol=1e-4), "a batch of two rounds otherwise than one by one"
    assert not torch.allclose(guided, e_n + 6.5 * (e_c - e_n), atol=1e-3)


def test_cost_counts_rows(backbone):
    cond = backbone.encode(["dog", "cat", "fish"])
    x = backbone.noise(0).repeat(3, 1, 1, 1)
    with torch.no_grad():
        backbone.predict(x, 5, cond)
        backbone.guided(x, 5, 0, cond, backbone.encode([""]), 2.0, {})
    assert (backbone.cost.forward, backbone.cost.trained) == (9, 0)
    backbone.predict(x, 5, cond)
    assert backbone.cost.trained == 3
    assert backbone.cost.equivalents == 9 + 3 * 3


def test_random_texts_are_whole_texts_of_one_to_three_tokens(backbone):
    ids = backbone.random_texts(200, torch.Generator().manual_seed(0))
    start, end, *pad = backbone.tokenize([""])[0].tolist()
    lengths = backbone.end(ids) - 1
    assert set(lengths.tolist()) == {1, 2, 3}
    assert ids.max() < backbone.vocabulary
    for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
        assert row[0] == start
        assert row[length + 1] == end
        assert row[length + 2 :] == pad[length:]
        assert not {start, end} & set(row[1 : length + 1])
    words = {i for row in ids.tolist() for i in row[1:4]}
    assert len(words) > 20, "tokens of all the vocabulary"
