"""Stable Diffusion XL and 3: the real classes at tiny random configurations, saved to disk and loaded with no network."""

import json
import shutil
import warnings

import pytest
import torch

import expunge
from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError
from expunge.core.query import Query
from expunge.erasers.adv_unlearn import AdvUnlearn
from expunge.erasers.ca import CA
from expunge.erasers.few_shot import FewShot
from expunge.maths.trajectories import Sampling
from expunge.stages import erase
from expunge.testing import check_eraser
from small import SETTINGS
from tiny import tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

MAKERS = {
    "sdxl": tiny_xl_pipeline,
    "sdxl that reads its empty prompt": lambda: tiny_xl_pipeline(zeros=False),
    "sd3": tiny_sd3_pipeline,
    "sd3 without t5": lambda: tiny_sd3_pipeline(t5=False),
}
CALL = {"num_inference_steps": 3, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    places = {}
    for name, make in MAKERS.items():
        places[name] = tmp_path_factory.mktemp("family") / "model"
        make().save_pretrained(places[name])
    return places


@pytest.mark.parametrize("name", MAKERS)
def test_generates_what_the_diffusers_pipeline_generates(saved, name):
    ours = backbones.load(str(saved[name]))
    assert ours.family == name.split()[0]
    assert ours.image_size == (16, 16)
    queries = [Query(prompt=p, seed=s, guidance=5.0, steps=3) for p, s in (("dog", 3), ("church", 4))]
    generators = [torch.Generator().manual_seed(q.seed) for q in queries]
    theirs = (
        MAKERS[name]()([q.prompt for q in queries], generator=generators, guidance_scale=5.0, output_type="np", **CALL)
    ).images
    difference = ours.generate(queries).pixels.float() - torch.from_numpy(theirs) * 255
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("method", Catalog("erasers").entries())
def test_every_eraser_keeps_its_promises_or_says_in_a_sentence_that_it_cannot(saved, name, method):
    backbone = backbones.load(str(saved[name]))
    two_tails = {"tokens": "all"} if (method, name) == ("rece", "sd3") else {}  # whose default is refused there
    eraser = erase.build(method, {**SETTINGS.get(method, {}), **two_tails}, None)
    missing = [c for c in eraser.requires if not backbone.supports(c)]
    if missing:
        with pytest.raises(ExpungeError, match=f"needs {missing[0]}, which .* has not"):
            erase.run(backbone, method, eraser, [Concept(name="church")], [])
        return
    edit = check_eraser(eraser, backbone)
    named = ("unet.", "transformer.", "text_encoder")
    named += ("locations",) if method == "geom-erasing" else ()  # its tokens
    named += ("mean", "spread", "weight.", "bias.") if method == "gie" else ()  # its network
    assert not edit.tensors() or all(n.startswith(named) for n in edit.tensors())


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize("method", ["negative-prompt", "sld", "spm", "esd"])
def test_reaches_a_pipeline_the_user_holds_and_leaves_it(saved, name, method):
    pipe = MAKERS[name]()
    ours = backbones.load(str(saved[name]))
    call = {**CALL, "guidance_scale": 5.0, "output_type": "latent", "latents": ours.noise(5)}
    plain = pipe("dog", **call).images
    settings = {**SETTINGS.get(method, {}), **({"level": "max"} if method == "sld" else {})}
    edit = expunge.erase(pipe, "church", method=method, settings=settings)
    edit.attach(pipe)
    theirs = pipe("dog", **call).images
    with ours.attached([edit]):
        expected = ours.generate([Query(prompt="dog", seed=5, guidance=5.0, steps=3)]).latents
    effect = (theirs - plain).abs().max()
    assert effect > 1e-4
    assert (theirs - expected).abs().max() < max(1e-3, 0.01 * effect)
    if method == "negative-prompt":
        edit.detach(pipe)
        assert torch.allclose(theirs, pipe("dog", negative_prompt="church", **call).images, atol=1e-4)
        edit.attach(pipe)
    edit.detach(pipe)
    assert torch.equal(pipe("dog", **call).images, plain)


def test_esd_u_on_sdxl_is_what_the_authors_script_for_it_trains(saved):
    """Linear and convolution layers within blocks, but for cross-attention and embeddings."""
    ours = backbones.load(str(saved["sdxl"]))
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = [n for n, m in ours.component("unet").named_modules() if isinstance(m, kinds)]
    chosen = [n for n in layers if "attn2" not in n and "emb" not in n and "block" in n]
    assert {n.removeprefix("unet.").rpartition(".")[0] for n in ours.group("esd-u")} == set(chosen)
    left = set(ours.group("full")) - set(ours.group("esd-u"))
    assert {"unet.conv_out.weight", "unet.time_embedding.linear_1.weight", "unet.conv_in.weight"} <= left
    assert any("time_emb_proj" in n for n in left)


@pytest.mark.parametrize("name", ["sdxl", "sdxl that reads its empty prompt"])
def test_every_arm_has_the_same_answer_to_the_empty_prompt(saved, name):
    """A bank keeps what its trajectories were guided with; without a bank it is asked for anew."""
    ours = backbones.load(str(saved[name]))
    null, task = ours.unconditional(), Task(targets=[Concept(name="church")])
    zeros = name == "sdxl"
    assert bool((null.embeds == 0).all()) is zeros
    assert bool((null.pooled == 0).all()) is zeros
    sampling = Sampling(arm="bank", sampling_steps=4, trajectories=1)
    with torch.no_grad():
        points = sampling.source(ours, ours.encode(["church"]), null, task, "esd", 2).draw(0, 2)
        asked = ours.predict(points.x, points.t, null)
        encoded = ours.predict(points.x, points.t, ours.encode([""]))
    assert torch.allclose(points.null, asked, atol=1e-5)
    assert torch.allclose(points.null, encoded, atol=1e-5) is not zeros


def test_a_trajectory_of_the_flow_ends_where_the_pipeline_s_does(saved):
    ours = backbones.load(str(saved["sd3"]))
    x = ours.noise(5)
    with torch.no_grad():
        cond, null = ours.encode(["dog"]), ours.unconditional()
        for index, t in enumerate(ours.timesteps(3)):
            x = ours.step_back(x, ours.guided(x, t, index, cond, null, 5.0, {}).combined, t, 3)
    assert torch.allclose(x, ours.generate([Query(prompt="dog", seed=5, guidance=5.0, steps=3)]).latents, atol=1e-5)


def test_the_flow_s_noise_and_truth_are_a_straight_line(saved):
    ours = backbones.load(str(saved["sd3"]))
    x0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    here, further = (ours.add_noise(x0, noise, torch.tensor([t, t])) for t in (300, 500))
    assert torch.allclose(here, 0.7 * x0 + 0.3 * noise, atol=1e-6)
    assert torch.allclose(further - here, 0.2 * ours.truth(x0, noise, torch.tensor([300, 300])), atol=1e-6)


def test_ids_one_hot_rows_and_given_embeddings_encode_alike(saved):
    for name in ("sdxl", "sd3"):
        ours = backbones.load(str(saved[name]))
        ids = ours.tokenize(["a dog", ""])
        words, by_ids = ours.encode(["a dog", ""]), ours.encode(ids)
        soft = ours.embed(torch.nn.functional.one_hot(ids, len(ours.components()["tokenizer"])).float())
        assert torch.allclose(soft, ours.embed(ids), atol=1e-5)
        assert torch.allclose(words.embeds, by_ids.embeds, atol=1e-5)
        given = soft.clone().requires_grad_()
        spliced = ours.encode(ids, given)
        assert torch.allclose(spliced.embeds, words.embeds, atol=1e-5)
        assert torch.allclose(spliced.pooled, words.pooled, atol=1e-4)
        (gradient,) = torch.autograd.grad(spliced.embeds.sum() + spliced.pooled.square().sum(), given)
        assert gradient.abs().sum() > 0


def test_groups_of_the_transformer(saved):
    ours = backbones.load(str(saved["sd3"]))
    every = ours.group("full")
    text = {n for n in every if "attn.add_" in n or "to_add_out" in n}
    assert set(ours.group("xattn")) == text
    assert len(text) >= 2 * 7
    assert {n.rsplit(".", 2)[1] for n in ours.group("xattn-strict")} == {"add_k_proj", "add_v_proj"}
    assert not text & set(ours.group("noxattn"))
    assert not any(p in n for n in ours.group("noxattn") for p in ("time_text_embed", "transformer.proj_out"))
    assert {n.split(".attn.")[1].split(".")[0] for n in ours.group("attn")} == {"to_q", "to_k", "to_v", "to_out"}
    (reads,) = ours.tensors(ours.text_inputs()).values()
    assert reads.shape == (32, 96)
    with pytest.raises(ExpungeError, match="unknown parameter group"):
        ours.group("selfattn")


@pytest.mark.parametrize("group", ["text-last", "text-mlp-last-attn"])
@pytest.mark.parametrize("name", ["sdxl", "sd3", "sd3 without t5"])
def test_groups_of_a_last_layer_are_of_the_last_that_is_read(saved, name, group):
    """A text's vectors are the last layer's but one; what a pooled vector follows alone is no last layer either."""
    ours = backbones.load(str(saved[name]))
    names = ours.group(group)
    assert {n.split(".")[0] for n in names} == {"text_encoder", "text_encoder_2"}
    learned = {n: t.clone().requires_grad_() for n, t in ours.tensors(names).items()}
    with ours.weights(learned):
        cond = ours.encode(["a dog"])
        told = torch.rand(cond.embeds.shape, generator=torch.Generator().manual_seed(0)) * cond.embeds
        vectors = torch.autograd.grad(told.sum(), list(learned.values()), retain_graph=True, allow_unused=True)
        whole = torch.autograd.grad(told.sum() + cond.pooled.square().sum(), list(learned.values()))
    # one number added to all keys changes no softmax
    assert all(g.abs().max() > 0 for n, g in zip(names, whole, strict=True) if not n.endswith("k_proj.bias"))
    unseen = [n for n, g in zip(names, vectors, strict=True) if g is None]
    assert all("layers.1.mlp." in n for n in unseen)
    assert bool(unseen) is (group == "text-mlp-last-attn"), "feed-forward layers of pooled vectors learn as well"
    assert not [n for n in names if name == "sdxl" and n.startswith("text_encoder.encoder.layers.1.")], (
        "nothing reads it"
    )
    assert {group, group.removeprefix("text-")} <= set(ours.redefined), "few-shot's name for it, too"


@pytest.mark.parametrize("eraser", [FewShot(), AdvUnlearn(), CA(group="embedding")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("name", ["sdxl", "sd3", "sd3 without t5"])
def test_methods_that_train_clip_say_that_t5_reads_on(saved, name, eraser):
    ours = backbones.load(str(saved[name]))
    for model in (ours, backbones.of(MAKERS[name]())):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            eraser.check(model)
        assert ["T5 as well, which stays as it is" in str(w.message) for w in heard] == (
            [True] if name == "sd3" else []
        )
    assert not ours._parts.built("text_encoder_3"), "nothing is read for it"


def test_a_model_of_another_family_is_refused_in_a_line(saved, tmp_path):
    wrong = tmp_path / "wrong"
    shutil.copytree(saved["sdxl"], wrong)
    index = json.loads((wrong / "model_index.json").read_text())
    (wrong / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ExpungeError, match="holds the UNet of Stable Diffusion XL"):
        backbones.load(str(wrong))
    (wrong / "model_index.json").write_text(json.dumps({**index, "_class_name": "KolorsPipeline"}))
    with pytest.raises(ExpungeError, match="holds a KolorsPipeline: expected one of StableDiffusionPipeline"):
        backbones.load(str(wrong))
    edit = expunge.erase(tiny_pipeline(), "church", settings={"anchor": "cat"})
    with pytest.raises(ExpungeError, match="edit"):
        edit.attach(tiny_xl_pipeline())
    assert backbones.kind_of(str(saved["sdxl"])) == "sdxl"
    assert backbones.kind_of(str(saved["sd3"])) == "sd3"


def test_a_hub_model_s_kind_is_read_from_its_index(hub):
    hub("models", "model_index.json", json.dumps({"_class_name": "StableDiffusionXLPipeline"}), main=False)
    assert backbones.kind_of("owner/name") == "sd", "what cannot be had"
    assert backbones.kind_of("owner/name", "a" * 40) == "sdxl", "of a revision, which nothing else names"
    hub("models", "model_index.json", json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    assert backbones.kind_of("owner/name") == "sdxl", "asked again, once it is there"
    assert backbones.kind_of("owner/other") == "sd"
