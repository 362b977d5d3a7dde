import numpy as np
import pytest
import torch

from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.adapter import Adapter
from expunge.core.concept import Concept
from expunge.core.conditioning import Conditioning
from expunge.core.edit import Weights
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.erasers.spm import Transport
from expunge.erasers.uce import UCE
from expunge.stages import erase
from expunge.store import load_edit, save_edit
from tiny import tiny_pipeline

GUIDED = {"seed": 5, "guidance": 4.0, "steps": 3}


def factors(backbone, rank=1, seed=0, layers=None):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers or backbone.layers("transformer"):
        out, *taken = backbone.tensors([f"{layer}.weight"])[f"{layer}.weight"].shape
        found[f"{layer}.down"] = torch.randn((rank, *taken), generator=generator)
        found[f"{layer}.up"] = 0.1 * torch.randn((out, rank, *(1 for _ in taken[1:])), generator=generator)
    return found


def latents(backbone, *prompts):
    return backbone.generate([Query(prompt=p, **GUIDED) for p in prompts]).latents


def test_stands_beside_every_linear_and_convolution_of_the_transformer_blocks(backbone):
    unet = backbone.components()["unet"]
    expected = {
        f"unet.{block}.{name}"
        for block, transformer in unet.named_modules()
        if block.endswith(("attentions.0", "attentions.1"))
        for name, m in transformer.named_modules()
        if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    }
    assert set(backbone.layers("transformer")) == expected
    assert any(isinstance(unet.get_submodule(n.removeprefix("unet.")), torch.nn.Conv2d) for n in expected)
    with pytest.raises(ExpungeError, match="expected one of attn, selfattn, transformer"):
        backbone.layers("resnet")


def test_equals_weights_with_the_change_in_them_and_is_fused_to_them(backbone):
    adapter = Adapter(factors(backbone, rank=2), scale=0.5)
    base = backbone.tensors([f"{n}.weight" for n in adapter.layers])
    merged = {
        name: base[name]
        + 0.5 * torch.einsum("or...,ri...->oi...", adapter.tensors()[f"{n}.up"], adapter.tensors()[f"{n}.down"])
        for n in adapter.layers
        for name in [f"{n}.weight"]
    }
    fused = adapter.fused(base)
    assert all(torch.allclose(fused[n], merged[n], atol=1e-5) for n in merged)
    plain = latents(backbone, "church")
    with backbone.attached([adapter]):
        beside = latents(backbone, "church")
    with backbone.attached([Weights(merged, base_sha256={})], any_base=True):
        inside = latents(backbone, "church")
    assert torch.allclose(beside, inside, atol=1e-3)
    assert not torch.allclose(beside, plain, atol=1e-2)
    assert torch.equal(latents(backbone, "church"), plain), "and leaves no trace"


def test_strength_scales_and_several_add_up(backbone):
    one, two = factors(backbone, seed=1), factors(backbone, seed=2)
    both = {n: torch.cat([one[n], two[n] * (0.5 if n.endswith("up") else 1)], int(n.endswith("up"))) for n in one}
    with backbone.attached([Adapter(both)]):
        together = latents(backbone, "church")
    first, second = Adapter(one), Adapter(two)
    backbone.attach(first)
    backbone.attach(second, strength=0.5)
    assert torch.allclose(latents(backbone, "church"), together, atol=1e-3)
    backbone.detach(first)
    backbone.detach(second)


def spm_gate(backbone, prompt, concept):
    """Facilitated transport, from the definition, in numpy."""
    a, b = (backbone.encode([text]).embeds.detach().numpy().astype(np.float64).ravel() for text in (prompt, concept))
    marks = set(backbone.tokenize([""])[0].tolist())
    words, others = (set(backbone.tokenize([text])[0].tolist()) - marks for text in (prompt, concept))
    return max(a @ b / np.sqrt((a @ a) * (b @ b)), len(words & others) / len(others))


def test_each_row_opens_the_gate_as_far_as_its_own_prompt_does(backbone):
    adapter = Adapter(factors(backbone, rank=2), gate=Transport([["church"], ["dog", "1 2"]]))
    prompts = ["church", "a dog", "zzz 1", ""]
    opened = adapter.gate.opened(backbone, backbone.encode(prompts))
    expected = [
        [spm_gate(backbone, p, "church"), max(spm_gate(backbone, p, "dog"), spm_gate(backbone, p, "1 2"))]
        for p in prompts
    ]
    assert torch.allclose(opened, torch.tensor(expected).float(), atol=1e-5)
    assert opened[0, 0] == pytest.approx(1, abs=1e-6)
    with backbone.attached([adapter]):
        mixed = latents(backbone, *prompts)
        alone = torch.cat([latents(backbone, p) for p in prompts])
    assert torch.allclose(mixed, alone, atol=1e-4), "rows of one batch do not open each other's gates"
    for row, prompt in enumerate(
        prompts
    ):  # the definition: the r-th component is scaled by the r-th gate, in both halves
        scaled = {
            n: t * opened[row].view(-1, *(1 for _ in t.shape[1:])) if n.endswith(".down") else t
            for n, t in adapter.tensors().items()
        }
        with backbone.attached([Adapter(scaled)]):
            assert torch.allclose(mixed[row : row + 1], latents(backbone, prompt), atol=1e-3)


def test_reaches_a_pipeline_the_user_holds_with_every_prompt_s_own_gate(backbone):
    adapter = Adapter(factors(backbone), gate=Transport([["church"]]))
    pipe = tiny_pipeline()
    noise = torch.cat([backbone.noise(5)] * 2)
    call = {"latents": noise, "guidance_scale": 4.0, "num_inference_steps": 3, "output_type": "latent"}
    plain = pipe(["church", "zzz 1"], **call).images
    adapter.attach(pipe)
    theirs = pipe(["church", "zzz 1"], **call).images
    with backbone.attached([adapter]):
        assert torch.allclose(theirs, latents(backbone, "church", "zzz 1"), atol=1e-3)
    vectors = torch.randn(2, 16, 32)
    with pytest.raises(ExpungeError, match="an embedding has none"):
        pipe(prompt_embeds=vectors, negative_prompt_embeds=vectors, **call)
    adapter.detach(pipe)
    assert torch.equal(pipe(["church", "zzz 1"], **call).images, plain)


def test_a_gate_on_a_learned_embedding_is_refused(backbone):
    adapter = Adapter(factors(backbone), gate=Transport([["church"]]))
    with backbone.attached([adapter]), pytest.raises(ExpungeError, match="gate of 'church' reads the words"):
        backbone.predict(backbone.noise(0), 5, Conditioning(embeds=torch.randn(1, 16, 32)))


def test_gradients_reach_the_prompt_through_the_gate(backbone):
    adapter = Adapter(factors(backbone), gate=Transport([["church"]]))
    cond = backbone.encode(["a dog"])
    embeds = cond.embeds.detach().requires_grad_()
    adapter.gate.opened(backbone, Conditioning(embeds=embeds, tokens=cond.tokens)).sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().sum() > 0


def test_survives_saving_and_keeps_its_gates(backbone, tmp_path):
    adapter = Adapter(factors(backbone), scale=0.25, gate=Transport([["church", "chapel"]]))
    save_edit(adapter, tmp_path / "edit.safetensors")
    loaded = load_edit(tmp_path / "edit.safetensors")
    assert isinstance(loaded, Adapter)
    assert (loaded.id, loaded.scale, loaded.gates) == (adapter.id, 0.25, (("church", "chapel"),))


def test_what_does_not_fit_is_refused_in_a_line(backbone):
    good = factors(backbone)
    layer = next(n for n in good if n.endswith(".down")).removesuffix(".down")
    for change, words in (
        ({f"{layer}.down": torch.ones(1, 3, 1, 1)}, r"expected \(1, 32"),
        ({f"{layer}.down": torch.ones(2, 32)}, r"expected \[r, in"),
        ({"unet.nowhere.down": torch.ones(1, 3), "unet.nowhere.up": torch.ones(3, 1)}, "which tiny does not have"),
        ({f"{layer}.middle": torch.ones(1)}, "names in .down and .up"),
        ({f"{layer}.up": None}, "expected both"),
        (
            {f"base_layer.{layer}.{p}": good[f"{layer}.{p}"] for p in ("down", "up")},
            f"has '(base_layer.)?{layer}' twice, under two names: expected each layer once",
        ),
    ):
        changed = {n: t for n, t in {**good, **change}.items() if t is not None}
        with pytest.raises(ExpungeError, match=words):
            backbone.attach(Adapter(changed))
    with pytest.raises(ExpungeError, match="one for each gate"):
        Adapter(good, gate=Transport([["a"], ["b"]]))
    with pytest.raises(ExpungeError, match="no text"):
        Adapter(good, gate=Transport([[]]))
    with pytest.raises(ExpungeError, match="gates that read each prompt"):
        Adapter(good, gate=Transport([["church"]])).fused({})
    assert not backbone.edits


def test_an_adapter_knows_its_base_in_every_precision(folder, other_folder, backbone):
    own = backbone.adapter_of(factors(backbone))
    stranger = StableDiffusion.from_folder(other_folder, name="other")
    half = StableDiffusion.from_folder(folder, name="half", dtype="float16")
    of_half = half.adapter_of(factors(half))
    assert own.id != of_half.id
    for model in (backbone, half):
        for adapter in (own, of_half):
            with model.attached([adapter]):
                assert [e.id for e in model.edits] == [adapter.id]
    for adapter in (own, of_half):
        with pytest.raises(ExpungeError, match="another base"):
            stranger.attach(adapter)
    with stranger.attached([own], any_base=True):
        pass
    with stranger.attached([Adapter(factors(backbone))]):
        pass  # one that does not say


def test_an_adapter_made_on_another_edit_wants_it_but_is_known_by_the_base(backbone):
    below = erase.run(backbone, "uce", UCE(anchor="cat"), [Concept(name="church")], [])
    with backbone.attached([below]):
        made = backbone.adapter_of(factors(backbone))
    assert made.requires == (below.id,)
    assert made.base_sha256 == backbone.adapter_of(factors(backbone)).base_sha256
    with backbone.attached([below, made]):
        pass
    with pytest.raises(ExpungeError, match="made on top of"):
        backbone.attach(made)
