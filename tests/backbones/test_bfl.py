"""FLUX's transformer as one file, in the names of Black Forest Labs: read, and written."""

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers as theirs_of
from safetensors.torch import load_file, save_file

import expunge
from expunge import backbones
from expunge.backbones import bfl
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.stages import export, importing
from ldm_models import unlike
from tiny import tiny_flux_pipeline

ASKED = [Query(prompt="dog", seed=5, guidance=3.5, steps=2)]


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def released(request, tmp_path_factory):
    """A diffusers folder, and its transformer as one file."""
    place = tmp_path_factory.mktemp("flux")
    pipe = unlike(tiny_flux_pipeline(told=request.param))
    pipe.save_pretrained(place / "folder")
    save_file(bfl.written(dict(pipe.transformer.named_parameters())), place / "flux1.safetensors")
    return place


def test_files_are_laid_out_as_diffusers_reads_them():
    """At the released width, which is all that their reader knows; every matrix is one column wide, so that it fits here."""
    with torch.device("meta"):
        net = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    generator = torch.Generator().manual_seed(0)
    ours = {n: torch.randn(len(p), *[1] * (p.ndim - 1), generator=generator) for n, p in net.named_parameters()}
    for front in ("", bfl.PREFIX):
        read = theirs_of({f"{front}{key}": tensor for key, tensor in bfl.written(ours).items()})
        assert read.keys() == ours.keys()
        assert all(torch.equal(read[name], ours[name]) for name in ours)


def test_a_file_with_the_folder_of_all_else_is_the_folder(released, tmp_path):
    folder, file = released / "folder", released / "flux1.safetensors"
    whole, ours = backbones.load(str(folder)), backbones.load(str(file), layout=str(folder))
    assert (ours.family, ours.kind) == ("flux", whole.kind)
    assert backbones.kind_of(str(file)) == whole.kind
    reads = ours.text_inputs() + ours.pooled_inputs() + ours.group("attn")
    wanted, got = whole.stored(reads), ours.stored(reads)
    assert all(torch.equal(got[name], wanted[name]) for name in reads)
    assert not ours._parts.built("transformer"), "read by name"
    assert torch.allclose(
        ours.generate(ASKED).latents, whole.generate(ASKED).latents, atol=1e-5
    )  # memory lies otherwise
    assert ours.identity() != whole.identity()
    prefixed = {f"{bfl.PREFIX}{k}": v for k, v in load_file(file).items()}
    save_file({**prefixed, "vae.encoder.conv_in.bias": torch.zeros(1)}, tmp_path / "comfy.safetensors")
    with pytest.warns(ExpungeWarning, match="1 tensors of other components, which are not read"):
        comfy = backbones.load(str(tmp_path / "comfy.safetensors"), layout=str(folder))
    assert torch.equal(comfy.generate(ASKED).latents, ours.generate(ASKED).latents)


def test_eight_bit_weights_are_multiplied_out_in_their_rows(released, tmp_path):
    folder = released / "folder"
    stored = load_file(released / "flux1.safetensors")
    key = "single_blocks.1.linear1.weight"
    scale = stored[key].abs().amax() / 448
    eight = {
        **stored,
        key: (stored[key] / scale).to(torch.float8_e4m3fn),
        "single_blocks.1.linear1.scale_weight": scale,
    }
    save_file(eight, tmp_path / "fp8.safetensors")
    ours = backbones.load(str(tmp_path / "fp8.safetensors"), layout=str(folder))
    names = [f"transformer.single_transformer_blocks.1.{n}.weight" for n in ("attn.to_k", "proj_mlp")]
    wanted = backbones.load(str(folder)).stored(names)
    for name, tensor in ours.stored(names).items():
        assert (tensor - wanted[name]).abs().max() < 0.07 * wanted[name].abs().max()


def test_an_edited_transformer_is_written_as_one_file_that_reads_back(released, tmp_path):
    folder = released / "folder"
    backbone = backbones.load(str(folder))
    edit = expunge.erase(backbone, "dog", settings={"anchor": "cat"})
    export.to_file(backbone, [edit], tmp_path / "out")
    again = backbones.load(str(tmp_path / "out" / "model.safetensors"), layout=str(folder))
    with backbone.attached([edit]):
        expected = backbone.generate(ASKED).latents
    assert torch.allclose(again.generate(ASKED).latents, expected, atol=1e-5)
    assert not torch.allclose(backbone.generate(ASKED).latents, expected, atol=1e-4)
    few = expunge.erase(backbone, "dog", method="few-shot", settings={"lr": 1e-3})
    with pytest.raises(ExpungeError, match="a single file of FLUX holds the transformer alone"):
        export.to_file(backbone, [few], tmp_path / "text")


def test_the_authors_bare_weights_are_imported(released, tmp_path):
    """UCE's and ESD's scripts for FLUX save replaced tensors by the transformer's own names."""
    backbone = backbones.load(str(released / "folder"))
    edit = expunge.erase(backbone, "dog", settings={"anchor": "cat"})
    save_file({n.removeprefix("transformer."): t for n, t in edit.tensors().items()}, tmp_path / "uce.safetensors")
    imported = importing.run(backbone, tmp_path / "uce.safetensors", method="uce", targets=["dog"])
    assert all(torch.equal(t, edit.tensors()[n]) for n, t in imported.tensors().items())
    assert imported.tensors().keys() == edit.tensors().keys()


def test_what_is_not_whole_or_of_another_model_is_refused_by_name(released, tmp_path):
    folder, stored = released / "folder", load_file(released / "flux1.safetensors")
    with pytest.raises(ExpungeError, match="holds FLUX's transformer alone, and --model-layout is nothing"):
        backbones.load(str(released / "flux1.safetensors"))

    def refused(name, change, words):
        tensors = dict(stored)
        change(tensors)
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ExpungeError, match=words):
            backbones.load(str(tmp_path / f"{name}.safetensors"), layout=str(folder)).generate(ASKED)

    refused("absent", lambda t: t.pop("double_blocks.1.txt_mlp.0.bias"), "has no 'double_blocks.1.txt_mlp.0.bias'")
    strange = {"double_blocks.7.txt_mlp.0.bias": torch.zeros(2)}
    refused("strange", lambda t: t.update(strange), "has a 'double_blocks.7.txt_mlp.0.bias', which the transformer")
    refused(
        "shape", lambda t: t.update({"img_in.bias": torch.zeros(3)}), r"'x_embedder.bias' is \(3,\): expected \(32,\)"
    )
