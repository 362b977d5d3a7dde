"""Every kind of edit in every state of a pipeline: what it should do there, computed without expunge, or a refusal.

The table of docs/compatibility.md is `TABLE`.
"""

from pathlib import Path

import pytest
import torch

import expunge
from expunge import backbones
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.erasers.eiup import ErasurePrompt
from expunge.erasers.gie import Inhibited
from expunge.erasers.kpop.recovery import Recovery
from expunge.erasers.sld import SafetyGuidance
from expunge.erasers.spm import Transport
from states import STATES
from tiny import tiny_flux_pipeline, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

KINDS = ("weights", "adapter", "gated adapter", "negative prompt", "sld", "key", "gie")
YES, NO, IDLE = "works", "refused", "no effect, and says so"
TABLE = {state: dict.fromkeys(KINDS, YES) for state in STATES}
for kind in ("key", "gie"):
    TABLE["SD3"][kind] = NO
for kind in ("negative prompt", "sld"):
    TABLE["LCM (no guidance)"][kind] = IDLE
for kind in ("sld", "gie"):  # which ask questions of their own
    TABLE["perturbed attention (PAG)"][kind] = NO
    TABLE["DeepCache"][kind] = NO
for kind in KINDS[2:]:
    TABLE["self-attention guidance (SAG)"][kind] = NO
for kind in ("adapter", "gated adapter", "key", "gie"):
    TABLE["fused projections"][kind] = NO
for kind in ("key", "gie"):
    TABLE["compiled"][kind] = NO
    TABLE["compiled, the whole UNet"][kind] = NO
for kind in ("gated adapter", "key"):  # no text that was seen gave such vectors
    TABLE["long embeddings"][kind] = NO
    TABLE["compel, with weights"][kind] = NO
for state in ("LoRA fused", "quantised (quanto)", "quantised (torchao)", "offloaded (sequential)", "layerwise casting"):
    for kind in KINDS[:3]:
        TABLE[state][kind] = NO

SCALE = 5.0
NEAR = 2e-3
"""Of the change that an edit makes: how far its image may be from the one computed without expunge."""


def shot(state, prompt="a dog", negative="", extended=None, guidance=SCALE):
    """The final latents of a call; ``extended`` are vectors that follow the texts'."""
    call = {"num_inference_steps": 3, "guidance_scale": guidance, "output_type": "latent", **state.call}
    words = {"prompt": prompt, **({"negative_prompt": negative} if negative else {})}
    if state.embeds is not None:
        words = state.embeds(state.pipe, prompt, negative)
    if extended is not None:
        words = longer(state, prompt, negative, extended)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return state.pipe(**words, **call, generator=generator).images.clone()


def longer(state, prompt, negative, tokens):
    """Texts that the prompt of a key follows: what it does where all layers read it."""
    if state.embeds is not None:
        given = state.embeds(state.pipe, prompt, negative)
    elif hasattr(state.pipe, "text_encoder_2"):
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        given = dict(zip(names, state.pipe.encode_prompt(prompt, do_classifier_free_guidance=True), strict=True))
    else:
        pair = state.pipe.encode_prompt(prompt, "cpu", 1, True, negative or None)
        given = {"prompt_embeds": pair[0], "negative_prompt_embeds": pair[1]}
    given = {n: t for n, t in given.items() if t is not None}
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        if name in given:
            given[name] = torch.cat([given[name], tokens[None].to(given[name])], 1)
    return given


def told(state, negative="", extended=None):
    """An image with another negative prompt, or longer texts, which a ControlNet does not read: an edit is the denoiser's."""
    if not hasattr(state.pipe, "controlnet"):
        return shot(state, negative=negative, extended=extended)
    pair = state.pipe.encode_prompt("a dog", "cpu", 1, True, negative or None)
    texts = torch.cat([pair[1], pair[0]])
    if extended is not None:
        texts = torch.cat([texts, extended.expand(2, -1, -1)], 1)

    def exchange(_, args, kwargs):
        return args, kwargs | {"encoder_hidden_states": texts}

    handle = state.pipe.unet.register_forward_pre_hook(exchange, with_kwargs=True)
    image = shot(state)
    handle.remove()
    return image


def target(state):
    """The pipeline that an edit is attached to."""
    return getattr(state.pipe, "first", state.pipe)


def plain_like(state):
    """The same model as it was loaded, on which edits are made."""
    maker = tiny_sd3_pipeline if hasattr(state.pipe, "transformer") else tiny_pipeline
    if hasattr(state.pipe, "text_encoder_2") and hasattr(state.pipe, "unet"):
        maker = tiny_xl_pipeline
    pipe = maker()
    if hasattr(state.pipe, "unet") and state.pipe.unet.config.time_cond_proj_dim:
        pipe = STATES["LCM (no guidance)"]().pipe
    return backbones.of(pipe)


def weights_edit(plain):
    names = plain.group("xattn-strict")
    return plain.edit_of({n: -t for n, t in plain.tensors(names).items()})


def adapter_edit(plain, gate=None):
    generator, factors = torch.Generator().manual_seed(3), {}
    for layer in plain.layers("attn"):
        out, taken = plain.tensors([f"{layer}.weight"])[f"{layer}.weight"].shape
        factors[f"{layer}.down"] = torch.randn((1, taken), generator=generator) * 0.3
        factors[f"{layer}.up"] = torch.randn((out, 1), generator=generator) * 0.3
    return plain.adapter_of(factors, gate=gate)


def held_owner(module, name):
    """The module that runs a layer, inside what a LoRA wraps around it."""
    found = module.get_submodule(name)
    return getattr(found, "base_layer", found)


@torch.no_grad()
def written(state, edit):
    """The image with an edit's tensors, or its low-rank changes, written into the modules by hand."""
    pipe = target(state)
    part = "transformer" if hasattr(pipe, "transformer") else "unet"
    module = getattr(getattr(pipe, part), "_orig_mod", getattr(pipe, part))
    for name, tensor in edit.tensors().items():
        if edit.kind == "weights":
            held_owner(module, name.removeprefix(f"{part}.").removesuffix(".weight")).weight.copy_(tensor)
        elif name.endswith(".down"):
            up = edit.tensors()[f"{name.removesuffix('.down')}.up"]
            weight = held_owner(module, name.removeprefix(f"{part}.").removesuffix(".down")).weight
            weight.add_(up @ tensor)
    if getattr(module, "original_attn_processors", None):
        module.fuse_qkv_projections()
    return shot(state)


def width_of(state):
    return state.pipe.unet.config.cross_attention_dim if hasattr(state.pipe, "unet") else 8


def inhibited(backbone, says):
    """An edit of gie whose network says the same to every image."""
    numbers, width = max(1, len(backbone.attentions())), backbone.encode(["cat"]).embeds.shape[-1]
    network = {"mean": torch.zeros(1, 1, numbers), "spread": torch.ones(1, 1, numbers)}
    for i, (taken, given) in enumerate([(numbers, 64), (64, 32), (32, 1)]):
        network |= {f"weight.{i}": torch.zeros(1, taken, given), f"bias.{i}": torch.full((1, 1, given), says)}
    return Inhibited(text="cat", weight=-9.0, early=1.0, features="layers", width=width, network=network)


def case(state, kind):
    """The edit of a kind, and the image that it should give, computed by other means."""
    plain, fresh = plain_like(state), state
    if kind == "weights":
        edit = weights_edit(plain)
        return edit, lambda: written(fresh, edit)
    if kind == "adapter":
        edit = adapter_edit(plain)
        return edit, lambda: written(fresh, edit)
    if kind == "gated adapter":  # whose gate the word opens whole
        same = adapter_edit(plain)
        return adapter_edit(plain, gate=Transport([["dog"]])), lambda: written(fresh, same)
    if kind == "negative prompt":
        edit = expunge.erase(plain, "cat", method="negative-prompt")
        return edit, lambda: told(fresh, negative="cat")
    if kind == "sld":  # steering away from what the prompt itself says takes nothing away
        return SafetyGuidance(
            text="a dog", warmup=0, scale=5.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7
        ), (lambda: shot(fresh))
    if kind == "gie":  # whose network says nothing
        return inhibited(plain, 0.0), lambda: shot(fresh)
    tokens = torch.randn((3, width_of(state)), generator=torch.Generator().manual_seed(5)) * 3
    return Recovery(prompts={"dog": tokens}, place="down-mid-up", salt="s"), lambda: told(fresh, extended=tokens)


def made(name):
    """A pipeline in a state."""
    if "torchao" in name:
        pytest.importorskip("torchao")  # which is in no extra: it warns at every import of diffusers
    return STATES[name]()


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_does_what_it_should_or_is_refused_in_a_line(name, kind, recwarn):
    if name == "layerwise casting" and not hasattr(torch, "float8_e4m3fn"):
        pytest.skip("no eight-bit floats here")
    if (name, kind) == ("compel, with weights", "sld"):
        pytest.skip("no text says what weighted words say; that SLD acts there, the next test shows")
    state = made(name)
    base = shot(state)
    edit, expected = case(STATES[name](), kind)
    wanted = TABLE[name][kind]
    recwarn.clear()
    if wanted == NO:
        with pytest.raises(ExpungeError) as refusal:
            edit.attach(target(state))
            shot(state)
        assert "\n" not in str(refusal.value)
        assert "expected" in str(refusal.value)
        assert not backbones.of(target(state)).edits or name.startswith(("long", "compel")), "a call tells"
        return
    edit.attach(target(state))
    got, right = shot(state), expected()
    said = [w for w in recwarn if issubclass(w.category, ExpungeWarning)]
    if wanted == IDLE:
        assert torch.equal(got, base)
        assert "no effect" in str(said[0].message)
    else:
        assert not said
        moved = float((right - base).norm())
        near = NEAR * moved if kind not in ("sld", "gie") else NEAR * float(base.norm())
        assert kind in ("sld", "gie") or moved > 0.005 * float(base.norm()), "the comparison shows something"
        assert float((got - right).norm()) <= near
    edit.detach(target(state))
    assert torch.equal(shot(state), base), "detached, the image is the state's own, bit for bit"


@pytest.mark.parametrize("name", [n for n in STATES if TABLE[n]["sld"] == YES])
def test_sld_does_something_where_the_words_differ(name):
    state = made(name)
    base = shot(state)
    edit = SafetyGuidance(text="cat", warmup=0, scale=50.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7)
    edit.attach(target(state))
    assert float((shot(state) - base).norm() / base.norm()) > 1e-3


@pytest.mark.parametrize("name", [n for n in STATES if TABLE[n]["gie"] == YES])
def test_gie_does_something_where_its_network_says_so(name):
    """As much as eiup does with that weight for every image."""
    state = made(name)
    base = shot(state)
    images = []
    for edit in (inhibited(plain_like(state), -9.0), ErasurePrompt(text="cat", weight=-9.0, early=1.0)):
        edit.attach(target(state))
        images.append(shot(state))
        edit.detach(target(state))
    moved = float((images[1] - base).norm())
    assert moved > 1e-3 * float(base.norm())
    assert float((images[0] - images[1]).norm()) <= NEAR * moved


@pytest.mark.parametrize("kind", [*KINDS, "attention"])
def test_an_edit_stays_when_attention_is_sliced_afterwards(kind):
    """Slicing replaces the processors of all attention layers."""
    state = STATES["as loaded"]()
    edit = case(state, kind)[0] if kind != "attention" else expunge.erase(tiny_pipeline(), "dog", method="eiup")
    if kind == "sld":
        edit = SafetyGuidance(text="cat", warmup=0, scale=50.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7)
    if kind == "gie":
        edit = inhibited(backbones.of(tiny_pipeline()), -9.0)
    base = shot(state)
    edit.attach(state.pipe)
    erased = shot(state)
    state.pipe.enable_attention_slicing()
    moved = float((erased - base).norm())
    assert moved > 1e-3 * float(base.norm())
    assert float((shot(state) - erased).norm()) <= NEAR * moved
    state.pipe.disable_attention_slicing()
    edit.detach(state.pipe)
    assert torch.equal(shot(state), base)


ALL = ("sd", "sdxl", "sd3", "flux")
ASKED = {
    "a capital": ({"prompt": "A photo of a Dog"}, ALL),  # which T5 tells apart, and CLIP does not
    "blanks": ({"prompt": "a  dog"}, ALL),
    "two prompts": ({"prompt": ["a dog", "Dog"]}, ALL),
    "two images": ({"prompt": "A dog", "num_images_per_prompt": 2}, ALL),
    "a long text": ({"prompt": "dog " + "a " * 30}, ("sd", "sdxl", "flux")),
    "a length": ({"prompt": "dog", "max_sequence_length": 64}, ("sd3", "flux")),
    "clip_skip": ({"prompt": "a dog", "clip_skip": 1}, ("sdxl", "sd3")),  # on SD diffusers itself fails: findings/
    "without T5": ({"prompt": "A dog", "max_sequence_length": 64}, ("sd3 without T5",)),
}
MAKERS = {"sd": tiny_pipeline, "sdxl": tiny_xl_pipeline, "sd3": tiny_sd3_pipeline, "flux": tiny_flux_pipeline}
MAKERS["sd3 without T5"] = lambda: tiny_sd3_pipeline(t5=False)


def one_step(pipe, **words):
    """An image of one step."""
    words = {"height": 32, "width": 32, "guidance_scale": 3.0, "num_inference_steps": 1, **words}
    return pipe(**words, output_type="latent", generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize(("asked", "family"), [(a, f) for a, (_, families) in ASKED.items() for f in families])
def test_a_gate_reads_every_plain_prompt(asked, family):
    """Its word opens it whole, however the rest is written: the image is that of the adapter without a gate."""
    words = ASKED[asked][0]
    edits = [adapter_edit(backbones.of(MAKERS[family]()), gate=gate) for gate in (Transport([["dog"]]), None)]
    images = []
    for edit in edits:
        pipe = MAKERS[family]()
        edit.attach(pipe)
        images.append(one_step(pipe, **words))
    moved = float((images[1] - one_step(MAKERS[family](), **words)).norm())
    assert moved > 0
    assert float((images[0] - images[1]).norm()) <= NEAR * moved


def test_a_gate_reads_a_shorter_text_after_a_longer_one():
    """T5's texts are as long as each call says."""
    pipe = MAKERS["flux"]()
    adapter_edit(backbones.of(pipe), gate=Transport([["dog"]])).attach(pipe)
    shorter = {"prompt": "dog", "max_sequence_length": 64}
    alone = one_step(pipe, **shorter)
    one_step(pipe, prompt="dog", max_sequence_length=128)
    assert torch.equal(one_step(pipe, **shorter), alone)


def cats(backbone, t5="a cat"):
    """Vectors of a cat, of which T5's are of another text."""
    cond, other = backbone.encode(["a cat"]), backbone.encode([t5])
    length = backbone.tokenize(["a cat"]).shape[1]
    embeds = torch.cat([cond.embeds[:, :length], other.embeds[:, length:]], 1)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": cond.pooled, "guidance_scale": 0.0}


REFUSED = {
    "prompt_2": lambda _: {"prompt": "a cat", "prompt_2": "a dog"},
    "prompt_3": lambda _: {"prompt": "a cat", "prompt_3": "a dog"},
    "more than CLIP reads": lambda _: {"prompt": "a cat " + "a " * 30 + "dog"},
    "embeddings": lambda backbone: (found := cats(backbone)) | {"prompt_embeds": found["prompt_embeds"] + 1.0},
    "embeddings of two texts": lambda backbone: cats(backbone, "a dog"),
}


@pytest.mark.parametrize(
    ("family", "asked"), [("sdxl", "prompt_2"), ("sdxl", "embeddings"), *(("sd3", asked) for asked in REFUSED)]
)
def test_a_gate_refuses_what_no_one_prompt_says(family, asked):
    pipe = MAKERS[family]()
    backbone = backbones.of(pipe)
    adapter_edit(backbone, gate=Transport([["dog"]])).attach(pipe)
    words = REFUSED[asked](backbone)
    one_step(pipe, prompt="a cat")  # whose words are known
    with pytest.raises(ExpungeError, match="expected a prompt that all text encoders read alike"):
        one_step(pipe, **words)


def test_the_page_shows_this_table():
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
    rows = [f"| {state} | {' | '.join(row[kind] for kind in KINDS)} |" for state, row in TABLE.items()]
    assert f"| pipeline | {' | '.join(KINDS)} |" in page
    for row in rows:
        assert row in page, f"docs/compatibility.md lacks: {row}"
