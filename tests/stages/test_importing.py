"""Import: an edit of a peer's file does what that file does when it is loaded as its authors load it."""

import json
import os
from collections import OrderedDict

import peft
import pytest
import torch
from safetensors.torch import save_file

from expunge import backbones
from expunge.cli import main
from expunge.core.adapter import Adapter
from expunge.core.edit import Weights
from expunge.core.errors import ExpungeError
from expunge.stages import export, importing
from expunge.store import load_edit, save_edit
from tiny import still, tiny_pipeline, tiny_xl_pipeline

CALL = {"num_inference_steps": 3, "height": 16, "width": 16, "guidance_scale": 5.0, "output_type": "latent"}


def image(pipe):
    return pipe("a dog", generator=torch.Generator().manual_seed(0), **CALL).images


def turned(module, part, dtype=torch.float32):
    """Some parameters of a module, changed, by their own names: what a method publishes."""
    return {n: (-t).to(dtype).contiguous() for n, t in module.named_parameters() if part in n}


def esd(path, dtype=torch.bfloat16):
    tensors = turned(tiny_pipeline().unet, ".attn2.", dtype)
    save_file(tensors, path)
    return tensors


def nested(path):
    """As ESD's older code saves: what torch pickles, the tensors of each module by its name."""
    held = OrderedDict()
    for name, tensor in turned(tiny_pipeline().unet, ".attn2.").items():
        module, _, leaf = name.rpartition(".")
        held.setdefault(f"unet.{module}", OrderedDict())[leaf] = tensor
    torch.save(held, path)


FORMS = {
    "bare.safetensors": lambda path: save_file(turned(tiny_pipeline().unet, ".attn2."), path),
    "compiled.safetensors": lambda path: save_file(
        {f"unet._orig_mod.{n}": t for n, t in turned(tiny_pipeline().unet, ".attn2.").items()}, path
    ),
    "esd.pt": nested,
    "whole.pt": lambda path: torch.save(
        {"state_dict": {**tiny_pipeline().unet.state_dict(), **turned(tiny_pipeline().unet, ".attn2.")}, "epoch": 3},
        path,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_bare_weights_do_what_they_do_when_they_are_loaded(tmp_path, form):
    FORMS[form](tmp_path / form)
    edit = importing.run(backbones.of(tiny_pipeline()), tmp_path / form, method="esd", targets=["dog"])
    save_edit(edit, tmp_path / "edit.safetensors")
    edit = load_edit(tmp_path / "edit.safetensors")
    base, theirs, ours = (still(tiny_pipeline()) for _ in range(3))
    theirs.unet.load_state_dict(turned(tiny_pipeline().unet, ".attn2."), strict=False)
    plain = image(ours)
    edit.attach(ours)
    assert torch.equal(image(ours), image(theirs))
    assert not torch.allclose(image(base), image(theirs), atol=1e-2)
    edit.detach(ours)
    assert torch.equal(image(ours), plain)
    assert all(".attn2." in name for name in edit.replaced), "what is the base's own is not in the edit"
    made = edit.provenance
    assert (made.eraser, made.targets, made.settings["imported"]) == ("esd", ["dog"], form)


def test_a_folder_of_peft_does_what_it_does_when_peft_loads_it(tmp_path):
    """Which is nothing where diffusers loads it: its names are not the pipeline's."""
    theirs, ours = still(tiny_pipeline()), still(tiny_pipeline())
    plain = image(ours)
    torch.manual_seed(1)
    theirs.unet = peft.get_peft_model(
        theirs.unet, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    theirs.unet.save_pretrained(tmp_path / "lora")
    edit = importing.run(backbones.of(tiny_pipeline()), tmp_path / "lora", method="esd", targets=["dog"])
    edit.attach(ours)
    wanted = image(theirs)
    assert torch.allclose(image(ours), wanted, atol=1e-3)
    assert not torch.allclose(plain, wanted, atol=0.1)


def test_half_precision_is_kept_as_it_is_and_what_was_only_rounded_is_the_base_s(tmp_path):
    tensors = esd(tmp_path / "esd.safetensors")
    rounded = {n: t.bfloat16() for n, t in tiny_pipeline().unet.named_parameters() if ".attn1." in n}
    save_file({**tensors, **rounded}, tmp_path / "esd.safetensors")
    edit = importing.run(backbones.of(tiny_pipeline()), tmp_path / "esd.safetensors")
    assert {n.removeprefix("unet.") for n in edit.replaced} == set(tensors)
    assert all(torch.equal(edit.replaced[f"unet.{n}"], t.float()) for n, t in tensors.items())
    assert (edit.provenance.eraser, edit.provenance.targets) == ("imported", [])


@pytest.mark.parametrize("level", ["", "text_model."])
def test_a_text_encoder_s_folder_takes_the_place_of_the_model_s(tmp_path, level):
    theirs, ours = still(tiny_pipeline()), still(tiny_pipeline())
    for name, tensor in theirs.text_encoder.named_parameters():
        if ".mlp." in name:
            tensor.data.mul_(-1)
    theirs.text_encoder.save_pretrained(tmp_path / "unlearned")
    own = {f"{level}{n}": t.clone() for n, t in theirs.text_encoder.state_dict().items()}
    own[f"{level}embeddings.position_ids"] = torch.arange(16)[None]  # older transformers saved it
    save_file(own, tmp_path / "unlearned" / "model.safetensors")
    edit = importing.run(backbones.of(ours), tmp_path / "unlearned", method="advunlearn", targets=["dog"])
    assert all(".mlp." in name for name in edit.replaced)
    edit.attach(ours)
    assert torch.equal(image(ours), image(theirs))
    del own[f"{level}encoder.layers.0.mlp.fc1.weight"]
    save_file(own, tmp_path / "unlearned" / "model.safetensors")
    with pytest.raises(ExpungeError, match=r"has no 'text_encoder\..*layers\.0\.mlp\.fc1\.weight'"):
        importing.run(backbones.of(tiny_pipeline()), tmp_path / "unlearned")


def test_a_unet_s_folder_is_read_and_a_whole_model_is_not(tmp_path):
    theirs, ours = still(tiny_pipeline()), still(tiny_pipeline())
    theirs.unet.load_state_dict(turned(theirs.unet, ".attn2."), strict=False)
    theirs.save_pretrained(tmp_path / "model")
    edit = importing.run(backbones.of(ours), tmp_path / "model" / "unet")
    edit.attach(ours)
    assert torch.equal(image(ours), image(theirs))
    for folder, words in (
        ("model", "is a whole model"),
        ("model/vae", "holds the component 'AutoencoderKL'"),
        ("model/tokenizer", "config.json"),
    ):
        with pytest.raises(ExpungeError, match=words):
            importing.run(backbones.of(ours), tmp_path / folder)


def lora(path, metadata=None, rank=1):
    backbone = backbones.of(tiny_pipeline())
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in backbone.layers("attn"):
        out, taken = backbone.tensors([f"{layer}.weight"])[f"{layer}.weight"].shape
        flat = "lora_" + layer.replace(".", "_")
        tensors[f"{flat}.lora_down.weight"] = torch.randn(rank, taken, generator=generator)
        tensors[f"{flat}.lora_up.weight"] = 0.2 * torch.randn(out, rank, generator=generator)
        tensors[f"{flat}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path, metadata=metadata)


def test_a_membrane_is_of_this_base_and_says_what_it_removes(tmp_path, other_folder):
    lora(tmp_path / "spm.safetensors", {"prompts": "church,chapel", "rank": "1", "alpha": "1.0"})
    edit = importing.run(backbones.of(tiny_pipeline()), tmp_path / "spm.safetensors", method="spm")
    assert isinstance(edit, Adapter)
    assert (edit.gates, edit.provenance.targets) == ((("church", "chapel"),), ["church", "chapel"])
    with backbones.of(tiny_pipeline()).attached([edit]):
        pass
    with pytest.raises(ExpungeError, match="another base"):
        backbones.load(str(other_folder)).attach(edit)
    with pytest.raises(ExpungeError, match="'church' opens, with the gate 'dog'"):
        importing.run(backbones.of(tiny_pipeline()), tmp_path / "spm.safetensors", gate=["dog"])


def test_a_lost_gate_can_be_put_in(tmp_path):
    lora(tmp_path / "spm.safetensors")
    edit = importing.run(backbones.of(tiny_pipeline()), tmp_path / "spm.safetensors", gate=["church"])
    assert edit.gates == (("church",),)
    lora(tmp_path / "lora.safetensors", rank=2)
    plain = importing.run(backbones.of(tiny_pipeline()), tmp_path / "lora.safetensors", targets=["dog"])
    assert (plain.gates, plain.provenance.targets) == ((), ["dog"])
    export.lora_to_folder(backbones.of(tiny_pipeline()), [plain], tmp_path / "out", "kohya")
    assert "imported lora.safetensors" in (tmp_path / "out" / "README.md").read_text()


def test_a_component_is_asked_for_where_names_do_not_tell(tmp_path):
    made = still(tiny_xl_pipeline())
    tensors = turned(made.text_encoder_2, ".self_attn.q_proj.")
    save_file({n.removeprefix("text_model."): t for n, t in tensors.items()}, tmp_path / "text.safetensors")
    with pytest.raises(ExpungeError, match="may be of text_encoder, text_encoder_2: expected --component"):
        importing.run(backbones.of(made), tmp_path / "text.safetensors")
    edit = importing.run(backbones.of(made), tmp_path / "text.safetensors", component="text_encoder_2")
    assert all(name.startswith("text_encoder_2.") for name in edit.replaced)
    with pytest.raises(ExpungeError, match=r"has 'text_encoder\..* of shape \(48.*expected \(32"):
        importing.run(backbones.of(made), tmp_path / "text.safetensors", component="text_encoder")
    with pytest.raises(ExpungeError, match="unknown component 'text_encoder_9'"):
        importing.run(backbones.of(made), tmp_path / "text.safetensors", component="text_encoder_9")


class Runs:
    """What a pickle could run."""

    def __reduce__(self):
        return os.mkdir, ("/tmp/expunge-was-run",)


def save(path, name="mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", change=lambda t: -t, **more):
    weight = dict(tiny_pipeline().unet.named_parameters())[name].data
    save_file({name: change(weight).contiguous(), **more}, path)


BAD = {
    "no such file": (lambda p: None, "no file or folder"),
    "not safetensors": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "damaged or no safetensors",
    ),
    "a strange name": (
        lambda p: save(p, **{"mid_block.surprise": torch.ones(1)}),
        "1 of 2 tensors that .*'mid_block.surprise'",
    ),
    "another shape": (lambda p: save(p, change=lambda t: t[:8]), r"of shape \(8, 32\): expected \(64, 32\)"),
    "nothing changed": (lambda p: save(p, change=lambda t: t), "changes nothing"),
    "not a number": (lambda p: save(p, change=lambda t: t / 0 * 0), "not finite"),
    "whole numbers": (lambda p: save(p, change=lambda t: t.to(torch.int8)), "in torch.int8"),
    "an LDM checkpoint": (
        lambda p: save_file({"model.diffusion_model.out.2.bias": torch.ones(4)}, p),
        "in the LDM layout",
    ),
    "no tensor": (lambda p: save_file({}, p), "has 0 of 0 tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_an_edit_of_this_model_is_refused_in_a_line(tmp_path, case):
    make, words = BAD[case]
    make(tmp_path / "file.safetensors")
    with pytest.raises(ExpungeError, match=words) as caught:
        importing.run(backbones.of(tiny_pipeline()), tmp_path / "file.safetensors")
    assert "\n" not in str(caught.value)
    assert "file.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"unet.conv_in": Runs()}, "holds more than tensors, which could run code"),
        ({"unet.conv_in.weight": 3}, "holds 'unet.conv_in.weight' of type int"),
        ([torch.ones(1)], "holds a list"),
        (None, "damaged, or holds more than tensors"),
    ],
)
def test_pickles_of_more_than_tensors_are_refused_and_nothing_runs(tmp_path, held, words):
    file = tmp_path / "file.ckpt"
    if held is None:
        file.write_bytes(b"no pickle")
    else:
        torch.save(held, file)
    with pytest.raises(ExpungeError, match=words) as caught:
        importing.run(backbones.of(tiny_pipeline()), file)
    assert "\n" not in str(caught.value)
    assert not os.path.exists("/tmp/expunge-was-run")


def test_weights_of_another_family_are_refused_in_a_line(tmp_path):
    save_file(turned(tiny_xl_pipeline().unet, ".attn2.to_k"), tmp_path / "xl.safetensors")
    with pytest.raises(
        ExpungeError, match=r"tensors that .* does not have, such as .*: expected weights of a sd model"
    ):
        importing.run(backbones.of(tiny_pipeline()), tmp_path / "xl.safetensors")


def test_only_what_others_publish_is_imported_and_only_edits_are_attached(tmp_path):
    esd(tmp_path / "esd.safetensors")
    nested(tmp_path / "esd.pt")
    backbone = backbones.of(tiny_pipeline())
    for name in ("esd.safetensors", "esd.pt", ""):
        with pytest.raises(ExpungeError, match=r"not an edit.*`expunge import`"):
            load_edit(tmp_path / name)
    with pytest.raises(ExpungeError, match="no gate can open"):
        importing.run(backbone, tmp_path / "esd.safetensors", gate=["dog"])
    edit = importing.run(backbone, tmp_path / "esd.safetensors")
    assert isinstance(edit, Weights)
    save_edit(edit, tmp_path / "edit.safetensors")
    with pytest.raises(ExpungeError, match="is an edit of expunge"):
        importing.run(backbone, tmp_path / "edit.safetensors")


def test_from_the_command_line_to_images_and_a_model(folder, tmp_path, capsys):
    esd(tmp_path / "esd.safetensors")
    given = ["import", str(tmp_path / "esd.safetensors"), "--model", str(folder), "--out", str(tmp_path / "edit")]
    assert main([*given, "--method", "esd", "--target", "dog", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "weights"
    assert main(given) == 2
    assert "exists already" in capsys.readouterr().err
    edit = ["--model", str(folder), "--edit", told["edit"]]
    assert (
        main(
            ["generate", *edit, "--prompt", "a dog", "--steps", "2", "--count", "1", "--out", str(tmp_path / "images")]
        )
        == 0
    )
    assert main(["export", *edit, "--out", str(tmp_path / "model")]) == 0
    assert "- method: esd (imported esd.safetensors, sha256" in (tmp_path / "model" / "README.md").read_text()
