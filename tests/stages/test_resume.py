"""Erasures and images that are killed in the middle go on to what they would have been, bit for bit."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge import backbones
from expunge.cli import main
from expunge.core.concept import Concept
from expunge.core.errors import ExpungeError
from expunge.core.query import queries
from expunge.stages import demo, erase, generate, resume
from expunge.stages.filters import Filter
from expunge.store import RESUME, Checkpoints, load_edit, read_json

TRAINED = {
    "esd": {"iterations": 5, "lr": 1e-3, "sampling": {"sampling_steps": 2}},
    "kpop": {"iterations": 5, "lr": 1e-3, "prompt_lr": 0.1, "batch": 2, "sampling": {"sampling_steps": 2}},
}


class Killed(BaseException):
    """Stands in for a kill: nothing catches it."""


def erased(backbone, method, file, resume=False, kill=None, salt="s", every=0.0, **changed):
    def stop(step):
        if step.index == kill:
            raise Killed

    eraser = erase.build(method, {**TRAINED[method], **changed}, None)
    points = Checkpoints(file, resume=resume, every=every)
    how = {"salt": salt, "on_step": stop, "checkpoints": points}
    return erase.run(backbone, method, eraser, [Concept(name="church")], ["dog"], **how)


@pytest.mark.parametrize("method", list(TRAINED))
def test_an_erasure_killed_in_the_middle_goes_on_to_the_same_edit_and_key(backbone, tmp_path, method):
    whole = erased(backbone, method, tmp_path / "whole")
    file = tmp_path / "torn"
    with pytest.raises(Killed):
        erased(backbone, method, file, kill=3)
    assert file.stat().st_mode & 0o777 == 0o600
    resumed = erased(backbone, method, file, resume=True, salt="another secret, not to be used")
    assert resumed.id == whole.id
    assert all(torch.equal(resumed.tensors()[n], t) for n, t in whole.tensors().items())
    if whole.key is not None:
        assert resumed.key.id == whole.key.id
        assert resumed.key.requires == (resumed.id,)
    assert resumed.provenance.salt_sha256 == whole.provenance.salt_sha256
    assert resumed.provenance.cost.equivalents >= whole.provenance.cost.equivalents


def test_the_last_update_is_not_written_down_since_nothing_could_go_on_from_it(backbone, tmp_path):
    whole = erased(backbone, "esd", tmp_path / "c")
    assert erased(backbone, "esd", tmp_path / "c", resume=True).id == whole.id


def test_a_checkpoint_of_another_erasure_or_a_damaged_one_is_refused(backbone, tmp_path):
    file = tmp_path / "c"
    with pytest.raises(Killed):
        erased(backbone, "esd", file, kill=3)
    with pytest.raises(ExpungeError, match="another model, method, setting"):
        erased(backbone, "esd", file, resume=True, lr=1e-4)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ExpungeError, match="damaged"):
        erased(backbone, "esd", file, resume=True)
    erased(backbone, "esd", file, every=1000.0)
    assert not file.exists(), "a run that begins anew sweeps it"


def test_an_erasure_that_leaves_all_bounds_stops_there_and_says_what_to_lower(backbone, tmp_path):
    seen = []
    eraser = erase.build("esd", {"iterations": 50, "lr": 1e30, "sampling": {"sampling_steps": 2}}, None)
    with pytest.raises(ExpungeError, match=r"esd .*(nan|inf).* less than lr 1e\+30"):
        erase.run(backbone, "esd", eraser, [Concept(name="church")], [], on_step=seen.append)
    assert len(seen) < 5


def test_a_model_of_nan_is_refused_by_the_tensor_s_name(backbone):
    name = backbone.text_inputs()[0]
    module, key = backbone.parameter(name)
    with torch.no_grad():
        module._parameters[key][0, 0] = float("nan")
    with pytest.raises(ExpungeError, match=f"tiny holds NaN or infinity in '{name}'"):
        erase.run(backbone, "uce", erase.build("uce", {}, None), [Concept(name="church")], [])
    with pytest.raises(ExpungeError, match=f"tiny holds NaN or infinity in '{name}'"):
        list(generate.render(backbone, queries([("a dog", None)], 1, 0, 2.0, 2)))


def asked(backbone, count=5):
    return queries([("a church", "church"), ("a dog", "dog")], count, 3, 2.0, 2)


def images(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*") if not p.name.startswith(".")}


@pytest.mark.parametrize("by", [None, Filter(words=("dog",)), Filter(words=("church",))])
def test_images_killed_in_the_middle_go_on_to_the_same_folder(backbone, tmp_path, monkeypatch, by):
    whole = generate.to_folder(backbone, [], asked(backbone), tmp_path / "whole", batch=2, by=by)
    made = []

    def stop(n):
        made.append(n)
        if len(made) == 2:
            raise Killed

    with pytest.raises(Killed):
        generate.to_folder(backbone, [], asked(backbone), tmp_path / "torn", batch=2, by=by, on_batch=stop)
    partial = tmp_path / ".torn.partial"
    done = read_json(partial / RESUME)["rows"]
    assert 0 < done < 10
    more = []
    torn = generate.to_folder(
        backbone, [], asked(backbone), tmp_path / "torn", batch=2, by=by, resume=True, on_batch=more.append
    )
    assert images(torn) == images(whole), "run.json with its cost, metadata and pixels"
    assert not partial.exists()


def test_a_model_whose_files_were_replaced_is_another(folder, tmp_path):
    """Also where the matrices that read text are the same, as in two models exported to one folder."""
    place = tmp_path / "model"
    shutil.copytree(folder, place)

    def told():
        backbone = backbones.load(str(place))
        return resume.of_images(backbone, [], asked(backbone), 2)

    first = told()
    assert told() == first
    (place / "notes.txt").write_text("no part of the model")
    assert told() == first
    weights = place / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({n: t + 1 for n, t in tensors.items()}, weights)
    assert told() != first


def test_images_of_something_else_are_not_gone_on_with(backbone, tmp_path):
    made = []

    def stop(n):
        made.append(n)
        if len(made) == 2:
            raise Killed

    with pytest.raises(Killed):
        generate.to_folder(backbone, [], asked(backbone), tmp_path / "o", batch=2, on_batch=stop)
    same = {"queries": asked(backbone), "batch": 2, "split": "test"}
    for changed in ({"batch": 3}, {"queries": asked(backbone, 4)}, {"split": "dev"}):
        how = {**same, **changed}
        with pytest.raises(ExpungeError, match="of another model, edit, prompt or setting"):
            generate.to_folder(backbone, [], out=tmp_path / "o", resume=True, **how)
        assert not (tmp_path / "o").exists()
    generate.to_folder(backbone, [], out=tmp_path / "o", resume=True, **same)  # which a wrong one has not cost


@pytest.mark.parametrize("why", ["full disk", "NaN"])
def test_a_late_error_costs_no_finished_batch(backbone, tmp_path, why):
    made = []

    def fail(n):
        made.append(n)
        if len(made) == 2:
            raise OSError(errno.ENOSPC, "No space left on device") if why == "full disk" else ExpungeError("a NaN")

    with pytest.raises(ExpungeError) as caught:
        generate.to_folder(backbone, [], asked(backbone), tmp_path / "o", batch=2, on_batch=fail)
    assert caught.value.__notes__ == [
        f"what is finished of '{tmp_path / 'o'}' is kept, and --resume of the same command goes on with it"
    ]
    assert read_json(tmp_path / ".o.partial" / RESUME)["rows"] > 0
    whole = generate.to_folder(backbone, [], asked(backbone), tmp_path / "whole", batch=2)
    torn = generate.to_folder(backbone, [], asked(backbone), tmp_path / "o", batch=2, resume=True)
    assert images(torn) == images(whole)


def test_a_run_killed_between_the_folder_and_its_name_is_gone_on_with(folder, tmp_path, capsys):
    words = ["generate", "--model", folder, "--prompt", "dog", "--count", "2", "--steps", "2", "--batch", "1", "--out"]
    words = [*map(str, words), str(tmp_path / "o")]
    assert main(words) == 0
    whole = images(tmp_path / "o")
    (tmp_path / "o").rename(tmp_path / ".o.partial")
    (tmp_path / "o").mkdir()  # as a kill leaves it
    assert main([*words, "--resume"]) == 0, capsys.readouterr().err
    assert images(tmp_path / "o").keys() == whole.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o"]
    assert main([*words, "--resume"]) == 2
    (tmp_path / "empty").mkdir()
    assert main([*words[:-1], str(tmp_path / "empty")]) == 2, "an empty folder of somebody's"


def test_a_demo_goes_on_with_what_is_there(tmp_path, monkeypatch):
    short = {"iterations": 1, "batch": 2, "sampling": {"sampling_steps": 2, "trajectories": 2}}
    told = []

    def tell(line):
        told.append(line)
        if "random key" in line and len(told) < 6:
            raise Killed

    with pytest.raises(Killed):
        demo.run("church", tmp_path / "out", 1, False, tell, short)
    before = load_edit(tmp_path / "out" / "edit.safetensors").id
    pixels = images(tmp_path / "out" / "original")
    told[:] = ["x"] * 6
    records = demo.run("church", tmp_path / "out", 1, False, tell, short, resume=True)
    assert told[6:] == ["1 images: erased, with a random key"]
    assert load_edit(tmp_path / "out" / "edit.safetensors").id == before
    assert images(tmp_path / "out" / "original") == pixels
    assert len({r.provenance["images"] for r in records}) == 4
    with pytest.raises(ExpungeError, match="holds another demo"):
        demo.run("dog", tmp_path / "out", 1, False, tell, short, resume=True)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")]
)
def test_signals_end_like_ctrl_c_and_the_next_run_goes_on(folder, tmp_path, number, code, word):
    words = [
        "generate",
        "--model",
        folder,
        "--prompt",
        "dog",
        "--count",
        "24",
        "--steps",
        "20",
        "--batch",
        "2",
        "--out",
        tmp_path / "o",
    ]
    command = [sys.executable, "-m", "expunge.cli", *map(str, words)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / ".o.partial" / RESUME).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code, error.decode()
    assert (
        error.decode()
        .strip()
        .endswith(
            f"expunge: {word}: what is finished of '{tmp_path / 'o'}' is kept, and --resume of the same command goes on with it"
        )
    )
    done = read_json(tmp_path / ".o.partial" / RESUME)["rows"]
    assert 0 < done < 24
    assert not (tmp_path / ".o.lock").exists()
    if number == signal.SIGTERM:
        assert main([*map(str, words), "--resume", "--quiet"]) == 0
        lines = (tmp_path / "o" / "metadata.jsonl").read_text().splitlines()
        assert [json.loads(line)["seed"] for line in lines] == list(range(24))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["o"]


def test_a_secret_is_never_shown(backbone, tmp_path, capsys):
    secret = "f00d" * 8
    edit = erased(backbone, "kpop", tmp_path / "c", salt=secret)
    edit.key.save(tmp_path / "key.safetensors")
    for words in (["show"], ["show", "--json"]):
        assert main([*words, str(tmp_path / "key.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert secret not in shown
    assert edit.provenance.salt_sha256 in shown
    assert secret not in repr(edit.key)
    assert load_edit(tmp_path / "key.safetensors").salt == secret
    task = erase.prepared(backbone, erase.build("esd", {}, None), [Concept(name="church")], [], 0, secret)
    assert secret not in repr(task)
    assert dataclasses.is_dataclass(task)
