"""The kinds of prompt that KPOP learns, against the UNet called by hand."""

import copy
import dataclasses

import pytest
import torch

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.conditioning import InjectedPrompt
from expunge.core.eraser import Task, settings_of
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.erasers.kpop import KPOP, injected
from expunge.erasers.kpop.network import random_network
from expunge.erasers.kpop.prompts import last_word, spoken, words_of
from expunge.maths.trajectories import Sampling
from expunge.stages import erase
from expunge.store import load_edit, save_edit
from expunge.testing import check_eraser
from tiny import tiny_pipeline, tiny_xl_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.ExpungeWarning")
SHORT = KPOP(iterations=1, batch=2, k=3, lr=1e-3, prompt_lr=0.1, sampling=Sampling(sampling_steps=4))
TASK = Task(targets=[Concept(name="church")], seed=1, salt="secret")
TWO = Task(targets=[Concept(name="church"), Concept(name="dog")], seed=4, salt="s")
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2"


def raw(backbone, points, embeds, keys=None, values=None):
    """The UNet without expunge; its middle block reads ``[C; keys] W_k`` and ``[C; values] W_v`` by the formula."""
    unet = backbone.components()["unet"]
    layer, forward = unet.get_submodule(LAYER), unet.get_submodule(LAYER).forward
    split = lambda a: a.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # noqa: E731
    longer = lambda c, p: torch.cat([c, p.expand(len(c), -1, -1)], 1)  # noqa: E731

    def attend(z, encoder_hidden_states):
        q = split(layer.to_q(z))
        k = split(layer.to_k(longer(encoder_hidden_states, keys)))
        v = split(layer.to_v(longer(encoder_hidden_states, values)))
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return layer.to_out[0](mixed.transpose(1, 2).flatten(2))

    if keys is not None:
        layer.forward = lambda hidden, encoder_hidden_states, **_: attend(hidden, encoder_hidden_states)
    try:
        return unet(points.x, points.t, encoder_hidden_states=embeds.expand(len(points.x), -1, -1)).sample
    finally:
        layer.forward = forward


def points_of(backbone, eraser, task=TASK):
    with torch.no_grad():
        cond, null = backbone.encode([t.name for t in task.targets]), backbone.encode([""])
    return eraser.sampling.source(backbone, cond, null, task, "kpop", eraser.batch).draw(0, eraser.batch)


def adam(p, g):
    """The first update of Adam at rate 0.1."""
    return (p - 0.1 * g / (g.abs() + 1e-8)).detach()


@pytest.fixture
def text(backbone):
    with torch.no_grad():
        return lambda *words: backbone.encode(list(words)).embeds


def one_iteration(backbone, eraser, text, told, start):
    """Losses and the new prompt of one iteration on one target by Eq. 5 to 7; ``told(p)`` predicts with a prompt."""
    points = points_of(backbone, eraser)
    with torch.no_grad():
        wanted, goal = raw(backbone, points, text("church")), raw(backbone, points, text(eraser.neutral))
    p = start.requires_grad_()
    transfer = ((told(points, p) - wanted) ** 2).mean()  # Eq. 5
    (g,) = torch.autograd.grad(transfer, p)
    moved = adam(p, g)  # Eq. 6
    with torch.no_grad():
        terms = (
            ((raw(backbone, points, text("church")) - goal) ** 2).mean(),
            ((told(points, moved) - wanted) ** 2).mean(),
        )  # Eq. 7
    return {"transfer": transfer.item(), "erase": terms[0].item(), "keep": terms[1].item()}, moved


def test_a_pair_of_prompts_is_keys_and_values_by_equations_5_to_7(backbone, text):
    eraser = dataclasses.replace(SHORT, prompt_values="own")
    start = torch.randn((2, 3, 32), generator=TASK.generator("prompt", "church"))
    told = lambda points, p: raw(backbone, points, text("church"), p[0], p[1])  # noqa: E731
    losses, moved = one_iteration(backbone, eraser, text, told, start)
    (step,) = eraser.steps(backbone, TASK)
    assert dict(step.losses) == pytest.approx(losses, rel=1e-3)
    assert torch.allclose(step.key(step.edit()).prompts["church"], moved, atol=1e-3)
    assert not torch.allclose(moved[0], moved[1], atol=0.1)


def test_an_equal_pair_is_a_tied_prompt(backbone):
    points, p = points_of(backbone, SHORT), torch.randn(2, 3, 32)
    with torch.no_grad():
        cond = backbone.encode(["church", "dog"])
        tied, pair, other = (
            backbone.predict(points.x, points.t, injected(cond, tokens, "down-mid-up"))
            for tokens in (p, torch.stack([p, p], 1), torch.stack([p, p.flip(1)], 1))
        )
    assert torch.allclose(tied, pair, atol=1e-6)
    assert not torch.allclose(tied, other, atol=1e-4)


def test_rows_without_a_pair_are_as_without_it_and_batches_keep_pairs(backbone):
    points = points_of(backbone, SHORT)
    with torch.no_grad():
        plain = backbone.encode(["church", "dog"])
        mixed = injected(plain, torch.randn(2, 2, 3, 32), "mid-up", torch.tensor([True, False]))
        without, given = (backbone.predict(points.x, points.t, c) for c in (plain, mixed))
        both = mixed.join(mixed).rows(torch.tensor([0, 3]))
        again = backbone.predict(points.x, points.t, both)
    assert torch.allclose(without[1], given[1], atol=1e-5)
    assert not torch.allclose(without[0], given[0], atol=1e-4)
    assert torch.allclose(again, given, atol=1e-5)
    tied = dataclasses.replace(mixed, prompt=dataclasses.replace(mixed.prompt, values=None))
    with pytest.raises(ExpungeError, match="expected both or neither"):
        mixed.join(tied)
    assert isinstance(mixed.prompt, InjectedPrompt)


def test_one_prompt_for_all_learns_at_every_concept_s_points(backbone, text):
    eraser = dataclasses.replace(SHORT, batch=4, prompt_scope="shared", neutral="cat")
    points = points_of(backbone, eraser, TWO)
    assert len(points.concept.unique()) == 2, "another seed would show both concepts"
    c = text("church", "dog")[points.concept]
    p = torch.randn((3, 32), generator=TWO.generator("shared prompt")).requires_grad_()
    with torch.no_grad():
        wanted = raw(backbone, points, c)
    loss = ((raw(backbone, points, c, p, p) - wanted) ** 2).mean()
    (g,) = torch.autograd.grad(loss, p)
    (step,) = eraser.steps(backbone, TWO)
    assert step.losses["transfer"] == pytest.approx(loss.item(), rel=1e-4)
    key = step.key(step.edit())
    assert torch.allclose(key.prompts["church"], adam(p, g), atol=1e-3)
    assert torch.equal(key.prompts["church"], key.prompts["dog"])
    assert list(key.concepts) == ["church", "dog"]
    with pytest.raises(ExpungeError, match="one prompt for church, dog"):
        key.rotated()


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
def test_a_token_that_is_a_word_s_own_embedding_reads_as_that_word(make):
    backbone = backbones.of(make())
    ids = backbone.tokenize(["a church zzz", "church"])
    dog = backbone.embed(backbone.tokenize(["dog"]))[:, 1:2]
    last = [last_word(row, words_of(backbone, ["church"])[0]) for row in ids.tolist()]
    with torch.no_grad():
        said = spoken(backbone, ids, dog.expand(2, -1, -1), last)
        written = backbone.encode(["a church dog zzz", "church dog"])
    assert torch.allclose(said.embeds, written.embeds, atol=1e-5)
    if written.pooled is not None:
        assert torch.allclose(said.pooled, written.pooled, atol=1e-5)
    assert torch.equal(said.tokens, ids), "which concept it names is still to be seen"


def test_what_no_longer_fits_goes_from_the_end_and_too_many_tokens_are_refused(backbone):
    ids = backbone.tokenize(["a z z z z z z z z z z z z z z z"])
    with torch.no_grad():
        said = spoken(backbone, ids, backbone.embed(backbone.tokenize(["dog"]))[:, 1:2], [1])
        written = backbone.encode(["a dog z z z z z z z z z z z z z z"])
    assert torch.allclose(said.embeds, written.embeds, atol=1e-5)
    with pytest.raises(ExpungeError, match="14 tokens among the words: expected at most 13"):
        spoken(backbone, ids, torch.zeros(1, 14, 32), [1])
    with pytest.raises(ExpungeError, match="expected at most"):
        next(iter(dataclasses.replace(SHORT, place="words", k=200).steps(backbone, TASK)))


def test_tokens_behind_the_words_learn_through_the_text_encoder_by_equations_5_to_7(backbone, text):
    """Against the textbook way: a text encoder whose vocabulary has grown by the new tokens."""
    eraser = dataclasses.replace(SHORT, place="words", prompt_std=0.5)
    old = backbone.components()["text_encoder"]
    table = old.get_input_embeddings().weight.detach()
    grown = copy.deepcopy(old)
    grown.resize_token_embeddings(len(table) + 3)
    ids = backbone.tokenize(["church"])[0].tolist()
    end = backbone.end(backbone.tokenize(["church"])).item()
    new = [len(table), len(table) + 1, len(table) + 2]
    ids = torch.tensor([[*ids[:end], *new, *ids[end:]][: len(ids)]])

    def told(points, p):
        rows = torch.cat([table, p])
        embeds = torch.func.functional_call(grown, {"embeddings.token_embedding.weight": rows}, (ids,))
        return raw(backbone, points, embeds.last_hidden_state)

    every = table[:: max(1, len(table) // 1024)]
    start = 0.5 * every.std() * torch.randn((3, 32), generator=TASK.generator("prompt", "church"))
    losses, moved = one_iteration(backbone, eraser, text, told, start)
    (step,) = eraser.steps(backbone, TASK)
    assert dict(step.losses) == pytest.approx(losses, rel=1e-3)
    key = step.key(step.edit())
    assert torch.allclose(key.prompts["church"], moved, atol=1e-3)
    x, t = torch.cat([backbone.noise(i) for i in range(2)]), torch.tensor([500, 500])
    with torch.no_grad():  # "a church" is read as "a church v1 v2 v3", and "zzz" as it is
        cond = backbone.encode(["a church", "zzz"])
        cond, null = key.conditioning(backbone, cond, backbone.encode([""]).expand(2), {})
        start, church = (
            backbone.tokenize(["a church"])[0].tolist(),
            backbone.end(backbone.tokenize(["a church"])).item(),
        )
        ids = torch.tensor([[*start[:church], *new, *start[church:]][: len(start)]])
        rows = torch.cat([table, key.prompts["church"]])
        mine = torch.func.functional_call(grown, {"embeddings.token_embedding.weight": rows}, (ids,)).last_hidden_state
    assert torch.allclose(cond.embeds[:1], mine, atol=1e-5)
    assert torch.equal(cond.embeds[1], text("zzz")[0])
    assert torch.equal(null.embeds[0], text("")[0])
    assert backbone.predict(x, t, cond).isfinite().all()


def test_a_key_among_the_words_needs_a_text_and_says_so(backbone):
    (step,) = dataclasses.replace(SHORT, place="words").steps(backbone, TASK)
    key = step.key(step.edit()).only_for("church")
    with torch.no_grad():
        bare = dataclasses.replace(backbone.encode(["church"]), tokens=None)
        with pytest.raises(ExpungeError, match="expected a text"):
            key.conditioning(backbone, bare, bare, {})
        other, _ = key.conditioning(backbone, backbone.encode(["zzz"]), bare, {})
        last = backbone.end(backbone.tokenize(["zzz"])).item() - 1
        expected = spoken(backbone, backbone.tokenize(["zzz"]), key.prompts["church"][None], [last])
    assert torch.allclose(other.embeds, expected.embeds, atol=1e-6), "behind a text that does not name it"
    with pytest.raises(ExpungeError, match="hides the words 'church'"):
        next(iter(dataclasses.replace(SHORT, place="words", templates=("{}es",)).steps(backbone, TASK)))


def f_phi(phi, c):
    """The network by PyTorch's own attention, one concept at a time."""
    made = []
    for text in c:
        read = torch.nn.functional.scaled_dot_product_attention(
            phi["queries"][None], (text @ phi["key"].T)[None], (text @ phi["value"].T)[None]
        )[0]
        hidden = torch.nn.functional.gelu(torch.nn.functional.linear(phi["queries"] + read, phi["in"], phi["bias"]))
        made.append(torch.nn.functional.linear(hidden, phi["out"]))
    return torch.stack(made)


@pytest.mark.parametrize("values", ["tied", "own"])
def test_one_network_makes_every_concept_s_prompt_and_eq_6_updates_it(backbone, text, values):
    eraser = dataclasses.replace(SHORT, batch=4, prompt_scope="amortised", prompt_values=values, prompt_lr=0.01)
    points, names = points_of(backbone, eraser, TWO), text("church", "dog")
    assert len(points.concept.unique()) == 2, "another seed would show both concepts"
    start = next(iter(dataclasses.replace(eraser, keep="frozen-prompt").steps(backbone, TWO)))
    phi = {n: w.clone().requires_grad_() for n, w in start.key(start.edit()).network.weights.items()}
    first = f_phi(phi, names)
    assert first.std().item() == pytest.approx(eraser.prompt_std, rel=1e-3), "prompts begin as large as random ones"
    assert not torch.allclose(first[0], first[1], atol=0.05), "each concept's is its own"
    with torch.no_grad():
        wanted = raw(backbone, points, names[points.concept])
    p = first[points.concept]
    keys, values_ = (p[:, :3], p[:, 3:]) if values == "own" else (p, p)
    loss = ((raw(backbone, points, names[points.concept], keys, values_) - wanted) ** 2).mean()  # Eq. 5
    gradients = torch.autograd.grad(loss, list(phi.values()))
    (step,) = eraser.steps(backbone, TWO)
    assert step.losses["transfer"] == pytest.approx(loss.item(), rel=1e-4)
    key = step.key(step.edit())
    for (name, old), g in zip(phi.items(), gradients, strict=True):
        clear = g.abs() > 1e-5
        moved = (key.network.weights[name] - old)[clear]
        assert torch.allclose(moved, -0.01 * g[clear].sign(), atol=1e-4), name  # Eq. 6 with Adam
    stored = torch.stack([key.prompts[n] for n in ("church", "dog")]).reshape(first.shape)
    assert torch.allclose(stored, f_phi(key.network.weights, names), atol=1e-5)


def test_a_network_is_small_at_stable_diffusion_s_size():
    texts = {"church": torch.randn(77, 768)}
    network = random_network(texts, (10, 768), 1.0, torch.Generator().manual_seed(0), texts["church"])
    assert sum(w.numel() for w in network.weights.values()) < 500_000
    assert network.prompts()["church"].shape == (10, 768)


KINDS = {
    "pair": {"prompt_values": "own"},
    "shared": {"prompt_scope": "shared"},
    "shared pair": {"prompt_scope": "shared", "prompt_values": "own"},
    "one token": {"k": 1},
    "longer than the text": {"k": 200, "prompt_values": "own"},
    "amortised": {"prompt_scope": "amortised"},
    "amortised pair": {"prompt_scope": "amortised", "prompt_values": "own", "place": "mid-up"},
    "amortised, added to the text": {"prompt_scope": "amortised", "place": "text"},
    "words": {"place": "words"},
    "shared words": {"place": "words", "prompt_scope": "shared", "k": 1},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_each_kind_keeps_an_eraser_s_promises(backbone, kind):
    """Among them that an interrupted run goes on bit for bit, and that a key survives saving."""
    check_eraser(dataclasses.replace(SHORT, iterations=3, **kind), backbone, TWO)


def recovered(backbone, *edits, prompt="a church"):
    with backbone.attached(list(edits)):
        return backbone.generate([Query(prompt=prompt, seed=5, guidance=3.0, steps=2)]).latents


def test_each_kind_s_key_opens_what_it_should_and_has_wrong_versions(backbone, kind, tmp_path):
    eraser = dataclasses.replace(SHORT, iterations=2, halves="text", **kind)
    edit = erase.run(backbone, "kpop", eraser, list(TWO.targets), [], seed=1, salt="of a test")
    save_edit(edit.key, tmp_path / "key.safetensors")
    key = load_edit(tmp_path / "key.safetensors")
    erased, own = recovered(backbone, edit), recovered(backbone, edit, key)
    assert not torch.allclose(own, erased, atol=1e-4)
    assert torch.equal(recovered(backbone, edit, edit.key), own)
    assert torch.allclose(recovered(backbone, edit, key.only_for("church")), own, atol=1e-5)
    assert torch.equal(recovered(backbone, edit, key, prompt="zzz"), recovered(backbone, edit, prompt="zzz"))
    wrong = key.random(3)
    for name, p in key.prompts.items():
        assert wrong.prompts[name].norm() == pytest.approx(p.norm().item(), rel=1e-4)
    assert not torch.allclose(recovered(backbone, edit, wrong), own, atol=1e-4)
    if not eraser.shares_key:
        other = recovered(backbone, edit, key.rotated())
        assert torch.allclose(other, recovered(backbone, edit, key.only_for("dog")), atol=1e-5)
        assert not torch.allclose(other, own, atol=1e-4)


def test_each_kind_s_key_works_in_the_user_s_own_pipeline(backbone, kind):
    eraser = dataclasses.replace(SHORT, iterations=2, halves="text", **kind)
    edit = erase.run(backbone, "kpop", eraser, list(TWO.targets), [], seed=1, salt="of a test")
    pipe = tiny_pipeline()
    edit.attach(pipe)
    edit.key.attach(pipe)
    call = {"guidance_scale": 3.0, "num_inference_steps": 2, "output_type": "latent"}
    texts = ["a church", "zzz", "red dog"]
    theirs = pipe(texts, latents=torch.cat([backbone.noise(5)] * 3), **call).images
    for row, prompt in enumerate(texts):
        assert torch.allclose(recovered(backbone, edit, edit.key, prompt=prompt), theirs[row : row + 1], atol=1e-3)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ExpungeError, match="prompt_values own with place text: expected a place after the text"):
        KPOP(prompt_values="own", place="text")


def test_settings_that_came_later_do_not_change_what_stored_results_are_called():
    said = settings_of(KPOP())
    assert "prompt_scope" not in said
    assert "prompt_values" not in said
    assert settings_of(KPOP(prompt_scope="shared")) == {**said, "prompt_scope": "shared"}


@pytest.mark.parametrize(
    "options",
    [["--prompt-values", "own"], ["--prompt-scope", "amortised"], ["--place", "words", "--k", "2", "--halves", "text"]],
)
def test_kinds_on_the_command_line(tmp_path, capsys, options):
    assert main(["erase", "kpop", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--prompt-scope" in told
    assert "--prompt-values" in told
    out = str(tmp_path / "kpop")
    small = ["--iterations", "2", "--batch", "1", "--sampling-steps", "2", "--no-check", "--quiet"]
    assert main(["erase", "kpop", "--target", "church", *options, *small, "--out", out]) == 0
    words = ["recover", "--edit", f"{out}/edit.safetensors", "--key", f"{out}/key.safetensors", "--quiet"]
    assert main([*words, "--count", "1", "--steps", "2", "--out", str(tmp_path / "images")]) == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 1
