"""Which files of a folder or a hub repository are read; what other files are said to be."""

import io
import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from expunge import backbones
from expunge.backbones.hub import download
from expunge.backbones.weight_files import Weights, chosen, wanted
from expunge.core.errors import ExpungeError, ExpungeWarning
from tiny import tiny_pipeline

STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "dtype", "expected"),
    [
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.bin"], "float32", (f"{STEM}.safetensors", None)),
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], "float16", (f"{STEM}.fp16.safetensors", "fp16")),
        ([f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"], "bfloat16", (f"{STEM}.safetensors", None)),
        ([f"{STEM}.bf16.safetensors", f"{STEM}.fp16.safetensors"], "bfloat16", (f"{STEM}.bf16.safetensors", "bf16")),
        ([f"{STEM}.bf16.safetensors"], "float32", (f"{STEM}.bf16.safetensors", "bf16")),
        ([f"{STEM}.non_ema.safetensors", f"{STEM}.bin"], "float32", (f"{STEM}.bin", None)),
        ([f"{STEM}.non_ema.safetensors"], "float16", (f"{STEM}.non_ema.safetensors", "non_ema")),
        ([f"{STEM}.fp16.bin"], "float32", (f"{STEM}.fp16.bin", "fp16")),
        (
            [f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16-00001-of-00002.safetensors"],
            "float32",
            (f"{STEM}.safetensors.index.fp16.json", "fp16"),
        ),
        (["model.onnx", "flax_model.msgpack"], "float32", None),
    ],
)
def test_the_weights_of_a_component_are_chosen_by_precision(names, dtype, expected):
    found = chosen("unet", names, dtype)
    assert found == (None if expected is None else Weights(*expected))


def test_a_text_encoder_s_files_have_transformers_names():
    assert chosen("text_encoder", ["pytorch_model.bin"], "float32") == Weights("pytorch_model.bin", None)
    assert chosen("text_encoder_2", ["model.fp16.safetensors"], "float32") == Weights("model.fp16.safetensors", "fp16")
    assert chosen("text_encoder", [f"{STEM}.safetensors"], "float32") is None


def test_of_weights_in_one_file_and_in_several_each_library_s_own_are_read(tmp_path):
    """What is saved over the original in smaller files leaves both: what pipelines draw with is what is opened."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    original = {part: _sum(getattr(pipe, part)) for part in ("unet", "text_encoder")}
    for part in original:
        for p in getattr(pipe, part).parameters():
            p.data.mul_(2)
        getattr(pipe, part).save_pretrained(tmp_path / part, max_shard_size="20KB")
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert _sum(theirs.unet) == pytest.approx(2 * original["unet"])
    assert _sum(theirs.text_encoder) == pytest.approx(original["text_encoder"]), (
        "transformers reads what was there before"
    )
    parts = backbones.load(str(tmp_path))._parts
    index, single = f"{STEM}.safetensors.index.json", f"{STEM}.safetensors"
    with pytest.warns(ExpungeWarning, match=f"twice.*'{index}' is read, as diffusers does, and '{single}' is not"):
        assert _sum(parts.get("unet")) == _sum(theirs.unet)
    index, single = "model.safetensors.index.json", "model.safetensors"
    with pytest.warns(ExpungeWarning, match=f"twice.*'{single}' is read, as transformers does, and '{index}' is not"):
        assert _sum(parts.get("text_encoder")) == _sum(theirs.text_encoder)
    taken = {f"{file.parent.name}/{file.name}" for file in parts.all_files()}
    assert {f"unet/{STEM}.safetensors.index.json", "text_encoder/model.safetensors"} <= taken
    assert not {f"unet/{STEM}.safetensors", "text_encoder/model.safetensors.index.json"} & taken, (
        "nor are they exported"
    )


def test_an_index_that_a_save_in_one_file_left_stops_diffusers_and_not_transformers(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    for part in ("unet", "text_encoder"):
        getattr(pipe, part).save_pretrained(tmp_path / part)
        assert [f.name for f in (tmp_path / part).glob("*.index.json")], "it stays, and its files go"
    with pytest.raises(FileNotFoundError, match="required according to the checkpoint index"):
        UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    with pytest.raises(ExpungeError, match=rf"is not there \(a save in one file leaves it beside '{STEM}.safetensors'"):
        backbones.load(str(tmp_path))._parts.get("unet")
    (tmp_path / "unet" / f"{STEM}.safetensors.index.json").unlink()
    parts = backbones.load(str(tmp_path))._parts
    with warnings.catch_warnings(record=True) as caught:
        assert _sum(parts.get("unet")) == _sum(pipe.unet)
        assert _sum(parts.get("text_encoder")) == _sum(pipe.text_encoder)
    assert not [w for w in caught if "twice" in str(w.message)]


def test_of_a_repository_with_weights_twice_those_are_fetched_that_are_read():
    shards = [f"{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    texts = ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "model.safetensors"]
    files = ["model_index.json", *(f"text_encoder/{n}" for n in texts)]
    files += [f"unet/{n}" for n in (*shards, f"{STEM}.safetensors.index.json", f"{STEM}.safetensors")]
    with pytest.warns(ExpungeWarning, match="of the repository holds weights twice") as caught:
        found = wanted(files, "float32")
    assert len(caught) == 2
    assert found == ["model_index.json", "text_encoder/model.safetensors", *sorted(
        f"unet/{n}" for n in (*shards, f"{STEM}.safetensors.index.json"))]  # fmt: skip


def _sum(module):
    return float(sum(p.detach().abs().double().sum() for p in module.parameters()))


SD15 = [
    ".gitattributes",
    "README.md",
    "v1-5-pruned.ckpt",
    "v1-5-pruned.safetensors",
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    *(f"tokenizer/{n}" for n in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")),
    *(f"text_encoder/{n}" for n in ("config.json", "model.fp16.safetensors", "model.safetensors", "pytorch_model.bin")),
    *(f"unet/{STEM}{v}.{e}" for v in ("", ".fp16", ".non_ema") for e in ("bin", "safetensors")),
    "unet/config.json",
    *(f"vae/{STEM}{v}.{e}" for v in ("", ".fp16") for e in ("bin", "safetensors")),
    "vae/config.json",
]
"""A repository of every variant."""


def weights(files, dtype):
    return [f for f in wanted(files, dtype) if f.endswith((".safetensors", ".bin"))]


def test_of_a_hub_repository_each_component_is_fetched_once():
    assert weights(SD15, "float32") == [
        "text_encoder/model.safetensors",
        f"unet/{STEM}.safetensors",
        f"vae/{STEM}.safetensors",
    ]
    assert weights(SD15, "float16") == [
        "text_encoder/model.fp16.safetensors",
        f"unet/{STEM}.fp16.safetensors",
        f"vae/{STEM}.fp16.safetensors",
    ]
    rest = {f for f in SD15 if f.endswith((".json", ".txt")) and not f.startswith("safety_checker")}
    assert rest == {f for f in wanted(SD15, "float32") if f.endswith((".json", ".txt"))}


def test_a_repository_of_half_precision_only_is_fetched_in_any_precision():
    only = [f for f in SD15 if not f.endswith((".bin", ".ckpt")) and (".fp16" in f or not f.endswith(".safetensors"))]
    assert weights(only, "float32") == weights(only, "float16") == weights(SD15, "float16")
    pickles = [f for f in SD15 if not f.endswith(".safetensors") and ".fp16" not in f and "non_ema" not in f]
    assert weights(pickles, "float32") == ["text_encoder/pytorch_model.bin", f"unet/{STEM}.bin", f"vae/{STEM}.bin"]


def test_shards_of_the_chosen_variant_are_fetched():
    shards = {
        None: [f"transformer/{STEM}-0000{i}-of-00002.safetensors" for i in (1, 2)],
        "fp16": [f"transformer/{STEM}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)],
        "bf16": [f"transformer/{STEM}-0000{i}-of-00002.bf16.safetensors" for i in (1, 2)],
    }
    index = {v: f"transformer/{STEM}.safetensors.index{f'.{v}' if v else ''}.json" for v in shards}
    files = ["model_index.json", *index.values(), *(f for some in shards.values() for f in some)]
    for dtype, variant in (("float32", None), ("float16", "fp16")):
        assert weights(files, dtype) == sorted(shards[variant])
    files = ["model_index.json", index["bf16"], *shards["bf16"]]
    assert weights(files, "float32") == sorted(shards["bf16"])


def test_a_repository_of_a_single_file_says_how_it_is_opened():
    with pytest.raises(ExpungeError, match=r"download 'model\.safetensors' and give its path"):
        wanted(["README.md", "model.safetensors"], "float32")
    with pytest.raises(ExpungeError, match=r"expected a diffusers folder$"):
        wanted(["README.md"], "float32")


def test_what_was_fetched_before_opens_without_a_network(hub):
    hub("models", "model_index.json", "{}")
    assert (download("owner/name", None, "float32") / "model_index.json").read_text() == "{}"
    with pytest.raises(ExpungeError, match="'owner/other' is neither a folder here nor could it be fetched"):
        download("owner/other", None, "float32")


def checkpoint():
    packed = io.BytesIO()
    torch.save({"state_dict": {"x": torch.zeros(1)}}, packed)
    return packed.getvalue()


def old_checkpoint():
    packed = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, packed, _use_new_zipfile_serialization=False)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.gguf", b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
        ("x.ckpt", checkpoint(), "a PyTorch checkpoint .*from_single_file"),
        ("x.pt", old_checkpoint(), "a PyTorch checkpoint"),
        ("x.onnx", b"\x08\x08\x12\x07pytorch" + bytes(64), "an ONNX graph"),
        (
            "x.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
            "Git LFS pointer.*lfs pull",
        ),
        ("x.safetensors", b"<!DOCTYPE html>\n<html><body>401</body></html>", "a web page"),
        ("x.safetensors", b"  <html lang='en'>", "a web page"),
        ("x.safetensors", b'{"error": "Repository not found"}', 'a text that begins \'{"error": "Repos'),
        ("x.safetensors", b"Access to model x is restricted.", "a text that begins 'Access to model x"),
        ("x.safetensors", b"", "is empty"),
        ("x.safetensors", b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
        ("x.safetensors", bytes(range(200, 256)), "damaged"),
    ],
)
def test_a_file_of_another_kind_is_named_as_what_it_is(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExpungeError, match=words) as caught:
        backbones.load(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_is_not_taken_for_another_whatever_its_header_s_length(tmp_path):
    for extra in range(0, 256, 8):
        save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"pad": "-" * extra})
        with pytest.raises(ExpungeError, match="another kind: expected a whole"):
            backbones.load(str(tmp_path / "x.safetensors"))
