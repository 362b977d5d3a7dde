"""FLUX: the real classes at tiny random configurations, told the scale of guidance (dev) and not (schnell)."""

import json
import shutil
from dataclasses import replace

import diffusers
import pytest
import torch
from accelerate import init_empty_weights

import expunge
from expunge import backbones
from expunge.backbones import flux
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.erasers.few_shot import FewShot
from expunge.maths.free_tokens import free_tokens, vocabulary
from expunge.settings import presets
from expunge.stages import attack, erase
from expunge.testing import check_attack, check_eraser
from small import SETTINGS
from tiny import FLUX_READS, tiny_flux_pipeline

MAKERS = {"flux": tiny_flux_pipeline, "flux-schnell": lambda: tiny_flux_pipeline(told=False)}
CALL = {"num_inference_steps": 3, "height": 16, "width": 16, "max_sequence_length": FLUX_READS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    places = {}
    for name, make in MAKERS.items():
        places[name] = tmp_path_factory.mktemp("family") / "model"
        make().save_pretrained(places[name])
    return places


def latents_of(pipe, prompts, seeds, **call):
    """What the pipeline samples, unpacked."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    out = pipe(prompts, generator=generators, output_type="latent", **{**CALL, **call}).images
    return diffusers.FluxPipeline._unpack_latents(out, 16, 16, pipe.vae_scale_factor)


# sampling -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MAKERS)
def test_samples_what_the_diffusers_pipeline_samples(saved, name):
    ours, pipe = backbones.load(str(saved[name])), MAKERS[name]()
    assert (ours.family, ours.kind, ours.image_size) == ("flux", name, (16, 16))
    asked = [Query(prompt=p, seed=s, guidance=3.5, steps=3) for p, s in (("A dog", 3), ("the church", 4))]
    theirs = latents_of(pipe, ["A dog", "the church"], [3, 4], guidance_scale=3.5)
    before = ours.cost
    got = ours.generate(asked)
    assert (got.latents - theirs).abs().max() < 1e-4
    assert (ours.cost - before).forward == 2 * 3, "no pair of predictions"
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    images = pipe(["A dog", "the church"], generator=generators, guidance_scale=3.5, output_type="np", **CALL).images
    assert (got.pixels.float() - torch.from_numpy(images) * 255).abs().max() <= 1


@pytest.mark.parametrize("name", MAKERS)
def test_true_guidance_is_the_pipeline_s_pair(saved, name):
    ours, pipe = backbones.load(str(saved[name])), MAKERS[name]()
    query = Query(prompt="dog", seed=3, guidance=2.0, steps=3, negative="the cat", true_cfg=4.0)
    theirs = latents_of(pipe, ["dog"], [3], guidance_scale=2.0, true_cfg_scale=4.0, negative_prompt="the cat")
    before = ours.cost
    got = ours.generate([query]).latents
    assert (got - theirs).abs().max() < 1e-4
    assert (ours.cost - before).forward == 2 * 3
    alone = ours.generate([Query(prompt="dog", seed=3, guidance=2.0, steps=3)]).latents
    assert (got - alone).abs().max() > 1e-3


def test_the_scale_is_told_to_dev_and_unknown_to_schnell(saved):
    for name, differs in (("flux", True), ("flux-schnell", False)):
        ours = backbones.load(str(saved[name]))
        few, much = (ours.generate([Query(prompt="dog", seed=3, guidance=g, steps=2)]).latents for g in (1.0, 6.0))
        assert torch.equal(few, much) != differs
    assert ours.told_scale == 1


def test_levels_are_bent_by_the_size_of_the_image_and_schnell_s_are_not(saved):
    dev, schnell = (backbones.load(str(saved[name])) for name in MAKERS)
    assert torch.allclose(torch.tensor(schnell.timesteps(4)), torch.tensor([1000.0, 750.0, 500.0, 250.0]))
    mu = 0.5 + (1.15 - 0.5) * (16 - 256) / (4096 - 256)  # 16 places
    expected = [1000 * torch.tensor(mu).exp() / (torch.tensor(mu).exp() + (1 / s - 1)) for s in (1, 0.75, 0.5, 0.25)]
    assert torch.allclose(torch.tensor(dev.timesteps(4)), torch.stack(expected), rtol=1e-5)


def test_latents_are_packed_as_the_pipeline_packs_them():
    x = torch.randn(2, 4, 6, 8)
    theirs = diffusers.FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(flux.packed(x), theirs)
    assert torch.equal(flux.unpacked(theirs, 6, 8), x)
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32)
    assert torch.equal(flux.places(6, 8), ids)


def test_goes_on_from_an_image_and_follows_its_trajectory(saved):
    ours = backbones.load(str(saved["flux"]))
    query = Query(prompt="dog", seed=5, guidance=3.0, steps=4)
    whole = ours.generate([query]).latents
    rest = ours.generate([Query(prompt="dog", seed=5, guidance=3.0, steps=4, start=ours.begun(query, 2))]).latents
    assert torch.allclose(whole, rest, atol=1e-4)
    x = ours.noise(5)
    with torch.no_grad():
        cond, null = ours.encode(["dog"]), ours.unconditional()
        for index, t in enumerate(ours.timesteps(4)):
            x = ours.step_back(x, ours.guided(x, t, index, cond, null, 3.0, {}).combined, t, 4)
    assert torch.allclose(x, whole, atol=1e-5)


# text -----------------------------------------------------------------------------------------------------------------
def test_texts_are_read_as_the_pipeline_reads_them(saved):
    ours, pipe = backbones.load(str(saved["flux"])), tiny_flux_pipeline()
    embeds, pooled, _ = pipe.encode_prompt(["A dog", ""], max_sequence_length=FLUX_READS)
    for given in (["A dog", ""], ours.tokenize(["A dog", ""])):
        got = ours.encode(given)
        assert torch.allclose(got.embeds, embeds, atol=1e-5)
        assert torch.allclose(got.pooled, pooled, atol=1e-5)
    assert ours.filler == "the"
    assert ours.spell(ours.tokenize(["A dog"])) == ["A dog"], "case is kept"
    assert "dog" in ours.spell(ours.spellable()[:, None])


def test_a_word_s_own_vectors_learned_are_the_word(saved):
    ours = backbones.load(str(saved["flux"]))
    plain = ours.encode(["the dog on the dog"])
    vectors = ours.word_vectors("dog")
    assert vectors.shape == (1, 40 + 32)
    learned = ours.encode_learned(["the <v> on the <v>"], "<v>", vectors)
    assert torch.allclose(learned.embeds, plain.embeds, atol=1e-5)
    assert torch.allclose(learned.pooled, plain.pooled, atol=1e-5)
    other = ours.encode_learned(["the <v> on the <v>"], "<v>", ours.word_vectors("cat"))
    assert (other.embeds - plain.embeds).abs().max() > 1e-3
    assert (other.pooled - plain.pooled).abs().max() > 1e-3
    given = vectors.clone().requires_grad_()
    cond = ours.encode_learned(["<v>"], "<v>", given)
    (gradient,) = torch.autograd.grad(cond.embeds.square().sum() + cond.pooled.square().sum(), given)
    assert gradient[0, :40].abs().sum() > 0, "T5's"
    assert gradient[0, 40:].abs().sum() > 0, "CLIP's"
    with pytest.raises(ExpungeError, match=r"of 7 numbers .*: expected 40 \(T5's\), or 72"):
        ours.encode_learned(["<v>"], "<v>", torch.zeros(1, 7))


def test_one_hot_rows_and_given_embeddings_encode_alike(saved):
    ours = backbones.load(str(saved["flux"]))
    ids = ours.tokenize(["the dog", ""])
    soft = ours.embed(torch.nn.functional.one_hot(ids, ours.vocabulary).float())
    assert torch.allclose(soft, ours.embed(ids), atol=1e-6)
    words, spliced = ours.encode(ids), ours.encode(ids, soft)
    assert torch.allclose(words.embeds, spliced.embeds, atol=1e-5)
    assert torch.equal(words.pooled, spliced.pooled)
    drawn = ours.random_texts(5, torch.Generator().manual_seed(0))
    assert set(ours.end(drawn).tolist()) <= {1, 2, 3}


# anatomy --------------------------------------------------------------------------------------------------------------
def test_groups_of_double_and_single_blocks(saved):
    ours = backbones.load(str(saved["flux"]))
    every = ours.group("full")
    text = {n for n in every if "attn.add_" in n or "to_add_out" in n or "norm_added" in n}
    assert set(ours.group("xattn")) == text
    assert not any("single_" in n for n in text), "single blocks have no projections of the text's own"
    assert {n.rsplit(".", 2)[1] for n in ours.group("xattn-strict")} == {"add_k_proj", "add_v_proj"}
    assert not text & set(ours.group("noxattn"))
    assert {n.split(".")[1] for n in ours.group("attn")} == {"transformer_blocks", "single_transformer_blocks"}
    assert {n.split(".")[1] for n in ours.group("double")} == {"transformer_blocks"}
    assert {n.split(".")[1] for n in ours.group("single")} == {"single_transformer_blocks"}
    modules = dict(ours.component("transformer").named_modules())
    theirs = [n for n, m in modules.items() if isinstance(m, torch.nn.Linear) and "attn" in n]  # ESD's authors' rule
    assert {n.rpartition(".")[0] for n in ours.group("esd-x")} == {f"transformer.{n}" for n in theirs}
    strict = [n for n in theirs if "to_k" in n or "to_v" in n]
    assert {n.rpartition(".")[0] for n in ours.group("esd-x-strict")} == {f"transformer.{n}" for n in strict}
    reads = ours.tensors([*ours.text_inputs(), *ours.pooled_inputs()])
    assert [t.shape[1] for t in reads.values()] == [40, 32]
    assert len(ours.layers("double")) + len(ours.layers("single")) == len(ours.layers("transformer"))
    with pytest.raises(ExpungeError, match="whose words T5 reads"):
        ours.group("text-embedding")
    with pytest.warns(
        ExpungeWarning, match=r"few-shot trains CLIP's text encoders, and .* reads prompts with T5 as well"
    ):
        FewShot().check(ours)
    with pytest.raises(ExpungeError, match="unknown parameter group"):
        ours.group("selfattn")


@pytest.mark.parametrize(("told", "count"), [(True, 11_901_408_320), (False, 11_891_178_560)])
def test_the_released_sizes_have_as_many_parameters_as_published(told, count):
    with init_empty_weights():
        net = diffusers.FluxTransformer2DModel(guidance_embeds=told)
    assert sum(p.numel() for p in net.parameters()) == count
    names = [f"transformer.{n}" for n, _ in net.named_parameters()]
    counted = {group: sum(map(rule, names)) for group, rule in flux._GROUPS.items()}
    assert counted["xattn"] == 19 * (4 * 2 + 2)
    assert counted["esd-x"] == 19 * 8 * 2 + 38 * 3 * 2
    assert counted["double"] + counted["single"] < len(names) == counted["full"]


# edits ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("method", Catalog("erasers").entries())
def test_every_eraser_keeps_its_promises_or_says_in_a_sentence_that_it_cannot(saved, name, method):
    backbone = backbones.load(str(saved[name]))
    eraser = erase.build(method, SETTINGS.get(method, {}), None)
    missing = [c for c in eraser.requires if not backbone.supports(c)]
    if missing:
        with pytest.raises(ExpungeError, match=f"needs {missing[0]}, which .* has not"):
            erase.run(backbone, method, eraser, [Concept(name="church")], [])
        return
    edit = check_eraser(eraser, backbone)
    named = ("transformer.", "text_encoder", "locations")
    assert not edit.tensors() or all(n.startswith(named) for n in edit.tensors())


def test_uce_answers_as_the_closed_form_for_t5_and_for_clip(saved):
    ours = backbones.load(str(saved["flux"]))
    settings = {"anchor": "cat", "tokens": "last", "lamb": 0.3, "preserve_scale": 0.7, "preserve_empty": False}
    edit = expunge.erase(ours, "the dog", retain=["the cat"], method="uce", settings=settings)
    pipe = tiny_flux_pipeline()
    read = {
        text: pipe.encode_prompt(text, max_sequence_length=FLUX_READS)[:2] for text in ("the dog", "cat", "the cat")
    }
    last = {text: len(pipe.tokenizer_2(text).input_ids) - 2 for text in read}  # the last word's piece, before </s>
    names = ("context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight")
    assert {n.removeprefix("transformer.") for n in edit.tensors()} == set(names)
    for which, name in enumerate(names):
        c = {t: (e[0, last[t]] if which == 0 else p[0]).double() for t, (e, p) in read.items()}
        old = pipe.transformer.get_parameter(name).double()
        eye = 0.3 * torch.eye(len(c["cat"]), dtype=torch.float64)
        wanted = old @ (torch.outer(c["cat"], c["the dog"]) + 0.7 * torch.outer(c["the cat"], c["the cat"]) + eye)
        given = torch.outer(c["the dog"], c["the dog"]) + 0.7 * torch.outer(c["the cat"], c["the cat"]) + eye
        assert torch.allclose(edit.tensors()[f"transformer.{name}"].double(), wanted @ given.inverse(), atol=1e-5)


@pytest.mark.parametrize("method", ["uce", "esd", "leco", "duo"])
def test_reaches_a_pipeline_the_user_holds_and_leaves_it(saved, method):
    pipe, ours = tiny_flux_pipeline(), backbones.load(str(saved["flux"]))
    plain = latents_of(pipe, ["dog"], [5])
    edit = expunge.erase(ours, "church", method=method, settings=SETTINGS[method])
    edit.attach(pipe)
    theirs = latents_of(pipe, ["church"], [5], guidance_scale=3.5)
    with ours.attached([edit]):
        expected = ours.generate([Query(prompt="church", seed=5, guidance=3.5, steps=3)]).latents
    assert (theirs - expected).abs().max() < 1e-4
    edit.detach(pipe)
    assert torch.equal(latents_of(pipe, ["dog"], [5]), plain)
    assert (latents_of(pipe, ["church"], [5], guidance_scale=3.5) - theirs).abs().max() > 1e-6


@pytest.mark.parametrize("method", ["negative-prompt", "sld", "spm"])
def test_edits_that_steer_reach_a_pipeline_that_asks_for_its_pair_in_two_calls(saved, method):
    pipe, ours = tiny_flux_pipeline(), backbones.load(str(saved["flux"]))
    call = {"guidance_scale": 2.0, "true_cfg_scale": 4.0, "negative_prompt": ""}
    plain = latents_of(pipe, ["church"], [5], **call)
    extra = {"negative-prompt": {}, "sld": {"level": "max"}, "spm": {**SETTINGS["spm"], "lr": 0.1}}[method]
    edit = expunge.erase(pipe, "church" if method == "spm" else "cat", method=method, settings=extra)
    edit.attach(pipe)
    theirs = latents_of(pipe, ["church"], [5], **call)
    with ours.attached([edit]):
        query = Query(prompt="church", seed=5, guidance=2.0, steps=3, true_cfg=4.0)
        expected = ours.generate([query]).latents
    effect = (theirs - plain).abs().max()
    assert effect > 1e-4
    assert (theirs - expected).abs().max() < max(1e-4, 0.01 * effect)
    if method != "spm":
        with pytest.warns(ExpungeWarning, match="expected a negative_prompt and true_cfg_scale above 1"):
            latents_of(pipe, ["church"], [5], guidance_scale=2.0)
    edit.detach(pipe)
    assert torch.equal(latents_of(pipe, ["church"], [5], **call), plain)


def test_guidance_edits_need_the_pair_that_is_asked_for(saved):
    ours = backbones.load(str(saved["flux"]))
    edit = expunge.erase(ours, "cat", method="negative-prompt")
    asked = {"prompt": "dog", "seed": 3, "guidance": 2.0, "steps": 2}
    plain = ours.generate([Query(**asked)]).latents
    with ours.attached([edit]):
        with pytest.warns(ExpungeWarning, match="a negative-prompt edit has no effect at true_cfg 1"):
            assert torch.equal(ours.generate([Query(**asked)]).latents, plain)
        steered = ours.generate([Query(**asked, true_cfg=4.0)]).latents
    theirs = latents_of(
        tiny_flux_pipeline(),
        ["dog"],
        [3],
        num_inference_steps=2,
        guidance_scale=2.0,
        true_cfg_scale=4.0,
        negative_prompt="cat",
    )
    assert (steered - theirs).abs().max() < 1e-4
    with pytest.warns(ExpungeWarning, match="the negative prompt 'cat' has no effect at true_cfg 1"):
        ours.generate([Query(**asked, negative="cat")])


def test_an_attack_on_an_edit_that_acts_through_the_pair_is_refused(saved):
    """Without a true_cfg there is no pair: its images would be those of the model without the edit."""
    ours = backbones.load(str(saved["flux"]))
    edit = expunge.erase(ours, "church", method="negative-prompt")
    asked = [Query(prompt="church", label="church", seed=5, guidance=2.0, steps=2)]
    settings = attack.build("seed-search", {"tries": 1}, None)
    with pytest.raises(ExpungeError, match=r"acts through a pair of predictions, and .* is asked without one"):
        attack.run(ours, "seed-search", settings, [edit], [Concept(name="church")], asked)
    assert ours.edits == []


def test_what_a_distilled_model_cannot_give_is_refused_in_a_line(saved):
    ours = backbones.load(str(saved["flux"]))
    with pytest.raises(ExpungeError, match=r"a bank on .*: expected arm online-student"):
        expunge.erase(ours, "dog", method="esd", settings={"sampling": {"arm": "bank"}})
    with pytest.raises(ExpungeError, match="true_cfg 3 for testbed, whose guidance is a pair"):
        backbones.load("testbed").generate([Query(prompt="a", seed=1, guidance=2.0, steps=2, true_cfg=3.0)])


def test_every_kind_has_its_presets(saved):
    steps = {name: presets.generation(backbones.load(str(place))) for name, place in saved.items()}
    assert steps == {"flux": (3.5, 28), "flux-schnell": (0.0, 4)}
    assert {name: backbones.kind_of(str(place)) for name, place in saved.items()} == {n: n for n in saved}
    for method, kind in (("uce", "flux"), ("esd", "flux"), ("esd", "flux-schnell"), ("duo", "flux")):
        erase.build(method, presets.eraser(method, kind), None)


# files ----------------------------------------------------------------------------------------------------------------
def test_a_transformer_for_more_than_latents_is_refused(saved, tmp_path):
    shutil.copytree(saved["flux"], tmp_path / "fill")
    file = tmp_path / "fill" / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "in_channels": 96}))
    with pytest.raises(ExpungeError, match="a transformer of 96 input channels: expected 16"):
        backbones.load(str(tmp_path / "fill"))
    pipe = tiny_flux_pipeline()
    pipe.transformer.register_to_config(in_channels=96)
    with pytest.raises(ExpungeError, match="96 input channels"):
        backbones.of(pipe)


# attacks --------------------------------------------------------------------------------------------------------------
def test_concept_inversion_learns_words_for_t5_and_clip(saved):
    ours = backbones.load(str(saved["flux"]))
    edit = expunge.erase(ours, "dog", settings={"anchor": "cat"})
    settings = {"images": 2, "iterations": 3, "batch": 2, "accumulation": 1, "lr": 0.1, "vectors": 2, "steps": 3}
    asked = [Query(prompt="the dog", label="dog", seed=3, guidance=3.5, steps=2)]
    for search in ("gradient", "random"):
        method = attack.build("concept-inversion", {**settings, "search": search, "initial": "cat"})
        with ours.attached([edit]):
            answer = check_attack(method, ours, [replace(q, prompt="the church", label="church") for q in asked])
        word = answer.queries[0].learned
        assert word.vectors.shape == (2, 40 + 32)
        begun = ours.word_vectors("cat")
        assert (word.vectors[:, :40] - begun[:, :40]).abs().max() > 1e-3, "T5's"
        assert (word.vectors[:, 40:] - begun[:, 40:]).abs().max() > 1e-3, "CLIP's"


def test_attacks_that_search_tokens_search_t5_s(saved):
    ours = backbones.load(str(saved["flux"]))
    words = vocabulary(ours)
    assert sorted(ours.spell(words.ids[:, None])) == ["cat", "dog", "the"]
    free = free_tokens(ours, "p4d", [[None, "dog", None]])
    cat = words.ids[ours.spell(words.ids[:, None]).index("cat")].repeat(2)
    assert free.texts(ours, cat) == ["cat dog cat"]
    read, plain = free.read(ours, cat, ours.embed(cat[None])[0]), ours.encode(["cat dog cat"])
    assert torch.allclose(read.embeds, plain.embeds, atol=1e-5)
    assert torch.allclose(read.pooled, plain.pooled, atol=1e-5), "CLIP reads them written out"
    with pytest.raises(ExpungeError, match=f"no more than the {FLUX_READS - 1} tokens that"):
        free_tokens(ours, "p4d", [[None] * FLUX_READS])


def test_a_cache_in_the_blocks_is_refused_by_what_asks_questions_of_its_own():
    """An answer to the edit's question would be kept for the pipeline's, and the other way round."""
    from diffusers import FirstBlockCacheConfig

    pipe = tiny_flux_pipeline()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    edit = expunge.erase(pipe, "church", method="sld")
    with pytest.raises(ExpungeError, match="keeps what it computed"):
        edit.attach(pipe)
    with pytest.raises(ExpungeError, match="switched off first"):
        expunge.erase(pipe, "church", method="esd", settings={"iterations": 1, "sampling": {"sampling_steps": 2}})
    pipe.transformer.disable_cache()
    edit.attach(pipe)
    edit.detach(pipe)
