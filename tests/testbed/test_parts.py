"""A testbed's folder with a part of another testbed in it is refused by that part's name, when the part is first used."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge import backbones, testbed
from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.judges.testbed import Testbed
from expunge.testbed import clip
from expunge.testbed.parts import Parts


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped testbed, in use."""
    folder = tmp_path / "testbed"
    shutil.copytree(testbed.SHIPPED, folder)
    monkeypatch.setattr(testbed, "FOLDER", folder)
    caches = (testbed._parts, testbed.vocabulary, clip._space, clip._partner, clip._reader)
    for cached in caches:
        cached.cache_clear()
    yield folder
    for cached in caches:
        cached.cache_clear()


def without_list(folder: Path) -> None:
    """Make it a testbed of an expunge that did not list parts."""
    mark = folder / "expunge.json"
    mark.write_text(json.dumps({k: v for k, v in json.loads(mark.read_text()).items() if k != "parts"}))


def nudged(file: Path) -> None:
    """Other weights of the same shapes, as of a network that was trained again."""
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    save_file({**tensors, name: tensors[name] + 0.25}, file)


def test_every_shipped_file_is_listed_with_its_hash_and_none_is_left_over():
    stored = {p.relative_to(testbed.SHIPPED).as_posix(): p for p in testbed.SHIPPED.rglob("*") if p.is_file()}
    mark = json.loads(stored.pop("expunge.json").read_text())
    assert mark["parts"] == {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in stored.items()}


@pytest.mark.parametrize("name", ["judge_a", "judge_b", "partner", "features"])
def test_a_network_of_the_same_shapes_is_refused(copy: Path, name: str):
    nudged(copy / "networks" / f"{name}.safetensors")
    with pytest.raises(
        ExpungeError, match=rf"networks/{name}.safetensors' is not this testbed's: expected the file of"
    ):
        testbed.network(name)


def test_a_plan_is_refused_before_a_foreign_judge_judges(copy: Path):
    nudged(copy / "networks" / "judge_a.safetensors")
    with pytest.raises(ExpungeError, match=r"judge_a.safetensors' is not this testbed's"):
        Testbed().identity()
    assert Testbed("b").identity(), "which is its own"


@pytest.mark.parametrize("listed", [True, False])
def test_a_judge_that_tells_other_styles_apart_is_refused(copy: Path, listed: bool):
    file = copy / "networks" / "judge_a.safetensors"
    tensors = load_file(file)
    more = {n: torch.cat([t, t[:5]]) for n, t in tensors.items() if n.startswith("heads.style.")}
    save_file({**tensors, **more}, file)
    if not listed:
        without_list(copy)
    why = "is not this testbed's" if listed else "tells 16 styles apart: expected 11, as '.*vocabulary.json' names"
    with pytest.raises(ExpungeError, match=rf"judge_a.safetensors' {why}"):
        testbed.network("judge_a")


def test_a_vocabulary_of_another_testbed_is_refused(copy: Path):
    file = copy / "vocabulary.json"
    words = json.loads(file.read_text())
    words["styles"] = ["pencil", *words["styles"]]
    file.write_text(json.dumps(words))
    with pytest.raises(ExpungeError, match=r"vocabulary.json' is not this testbed's"):
        Testbed()
    without_list(copy)
    testbed._parts.cache_clear()
    with pytest.raises(ExpungeError, match=r"judge_a.safetensors' tells 11 styles apart: expected 12"):
        Testbed().scores(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))


def test_a_shared_space_or_a_tokenizer_of_another_testbed_is_refused(copy: Path):
    (copy / "tokenizer" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ExpungeError, match=r"tokenizer_config.json' is not this testbed's"):
        clip.text_vectors(["a dog"])
    nudged(copy / "networks" / "shared_space.safetensors")
    with pytest.raises(ExpungeError, match=r"shared_space.safetensors' is not this testbed's"):
        clip.image_vectors(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("part", "use"),
    [
        ("unet/diffusion_pytorch_model.safetensors", lambda model: model.predict(model.noise(0)[None], 1, model.encode([""]))),
        ("unet/diffusion_pytorch_model.safetensors", lambda model: model.tensors(model.text_inputs())),
        ("vae/diffusion_pytorch_model.safetensors", lambda model: model.component("vae")),
        ("text_encoder/model.safetensors", lambda model: model.encode(["a dog"])),
        ("text_encoder/model.safetensors", lambda model: model.identity()),
    ],
)  # fmt: skip
def test_a_folder_named_as_model_is_refused_where_its_foreign_part_is_used(copy: Path, part: str, use):
    nudged(copy / part)
    with pytest.raises(ExpungeError, match=rf"{part}' is not this testbed's"):
        use(backbones.load(str(copy)))


def test_a_part_that_is_not_used_is_not_read(copy: Path):
    nudged(copy / "unet" / "diffusion_pytorch_model.safetensors")
    assert backbones.load(str(copy)).encode(["a dog"]) is not None


def test_a_unet_of_another_size_is_refused(copy: Path, folder: Path):
    shutil.rmtree(copy / "unet")
    shutil.copytree(folder / "unet", copy / "unet")
    with pytest.raises(
        ExpungeError, match=r"unet' reads 32 numbers a token, and the text encoder beside it writes 192"
    ):
        backbones.load(str(copy))
    width = copy / "unet" / "config.json"
    width.write_text(width.read_text().replace('"cross_attention_dim": 32', '"cross_attention_dim": 192'))
    with pytest.raises(ExpungeError, match=r"unet/config.json' is not this testbed's"):
        backbones.load(str(copy)).component("unet")


def test_weights_that_would_be_read_before_the_own_ones_are_refused(copy: Path):
    own = copy / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(own, own.with_suffix(".fp16.safetensors"))
    own.unlink()
    with pytest.raises(ExpungeError, match=r"fp16.safetensors' is no part of this testbed: expected a file that"):
        backbones.load(str(copy)).component("unet")


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is damaged"), ("[]", "is damaged"), ('{"parts": 3}', "no list of parts")]
)
def test_a_list_that_is_none_is_told_of(copy: Path, text: str, said: str):
    (copy / "expunge.json").write_text(text)
    with pytest.raises(ExpungeError, match=rf"expunge.json' (has )?{said}"):
        Parts(copy)


def test_a_network_of_another_architecture_or_a_damaged_one_is_one_line(copy: Path):
    without_list(copy)
    networks = copy / "networks"
    whole = (networks / "judge_a.safetensors").read_bytes()
    shutil.copy(networks / "partner.safetensors", networks / "judge_a.safetensors")
    with pytest.raises(
        ExpungeError, match=r"judge_a.safetensors' is of another network: expected the tensors of judge_a"
    ):
        testbed.network("judge_a")
    (networks / "judge_a.safetensors").write_bytes(whole[:5000])
    testbed._parts.cache_clear()
    with pytest.raises(ExpungeError, match=r"judge_a.safetensors' is damaged"):
        testbed.network("judge_a")


def test_from_the_command_line_it_is_one_line_and_exit_code_2(copy: Path, images: Path, tmp_path: Path):
    nudged(copy / "networks" / "judge_a.safetensors")
    command = [sys.executable, "-m", "expunge.cli", "measure", "esr-psr", "--images", str(images), "--target", "dog"]
    ran = subprocess.run(command, env={**os.environ, "EXPUNGE_TESTBED": str(copy)}, capture_output=True, text=True)
    assert (ran.returncode, len(ran.stderr.strip().splitlines())) == (2, 1), ran.stderr
    assert "judge_a.safetensors' is not this testbed's" in ran.stderr


def test_a_place_that_is_no_testbed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(testbed, "FOLDER", tmp_path / "nowhere")
    testbed._parts.cache_clear()
    testbed.vocabulary.cache_clear()
    try:
        assert main(["demo", "--out", str(tmp_path / "out")]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
        with pytest.raises(
            ExpungeError, match=r"nowhere/vocabulary.json' cannot be read: expected a file of the model"
        ):
            testbed.vocabulary()
    finally:
        testbed._parts.cache_clear()
        testbed.vocabulary.cache_clear()
