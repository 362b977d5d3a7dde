"""`benchmarks/gpu.py` without a GPU: the same code on the CPU, and that its checks are made."""

import json
import sys
from pathlib import Path

import pytest
import torch

from expunge.core.stack import Stack

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu as script

    yield script
    sys.modules.pop("gpu", None)


def run(gpu, out, *stages, minutes=60):
    words = ["--device", "cpu", "--size", "tiny", "--minutes", str(minutes), "--out", str(out)]
    code = gpu.main([*words, *(word for stage in stages for word in ("--stage", stage))])
    return code, json.loads(out.read_text()) if out.exists() else None


def test_without_cuda_it_says_so_in_a_line_and_writes_nothing(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 0
    line = capsys.readouterr().out
    assert "is skipped" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "gpu.json").exists()


def test_on_the_cpu_it_runs_the_same_code(gpu, tmp_path):
    code, result = run(gpu, tmp_path / "gpu.json", "check uce", "check sld", "full esd")
    assert code == 0, result
    assert result["passed"] is True
    assert result["device"].startswith("cpu")
    assert (result["seed"], result["left_out"]) == (0, [])
    assert result["versions"]["torch"] == torch.__version__
    checked, steered, whole = (result["stages"][name] for name in ("check uce", "check sld", "full esd"))
    assert checked["off"] == {"edit": 0.0, "latents": 0.0}, "the CPU is as the CPU"
    assert set(checked["attached"]) == {"model", "pipeline"}
    assert all(steered["attached"]["pipeline"].values())
    assert whole["update_seconds"] > 0
    assert whole["peak_bytes"] > 0
    assert whole["evaluations"][-1] > 3, "frozen and trained predictions, and those on the way"
    copies = whole["copies_of_last_update"]
    assert (copies["to_device"], copies["to_host"]) == (0, 0)
    assert copies["numbers_read"] > 0


def test_a_stage_that_is_none_is_refused_and_what_is_there_stays(gpu, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    out.write_text("{}")
    with pytest.raises(SystemExit) as ended:
        run(gpu, out, "check uec")
    assert ended.value.code == 2
    assert "'check uec': expected any of check uce, check esd" in capsys.readouterr().err
    assert out.read_text() == "{}"


def test_a_stage_alone_is_written_nowhere_unless_told_where(gpu, tmp_path, monkeypatch):
    """On CUDA, where all stages together are written to the committed file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    written = []

    def measure(place, minutes, only, out):
        written.append(out)
        return {"stages": {"check uce": {"passed": True}}, "left_out": [], "passed": True}

    monkeypatch.setattr(gpu, "measure", measure)
    out = tmp_path / "gpu.json"
    for words in (["--stage", "check uce"], ["--stage", "check uce", "--out", str(out)], []):
        assert gpu.main(words) == 0
    assert written == [None, out, gpu.RESULT]


def test_stages_for_which_there_is_no_time_are_named(gpu, tmp_path, capsys):
    code, result = run(gpu, tmp_path / "gpu.json", "check uce", "full uce", minutes=0.01)
    assert code == 1, "nothing was run, so nothing passed"
    assert not result["passed"]
    assert result["left_out"] == ["check uce", "full uce"]
    assert "no time was left for: check uce, full uce" in capsys.readouterr().out


def test_a_stage_that_outlasts_the_time_is_given_up(gpu, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.FORESEEN, "check", 0.0)
    code, result = run(gpu, tmp_path / "gpu.json", "check esd", minutes=0.005)
    assert result["left_out"] == ["check esd (begun)"]
    assert code == 1


def test_an_edit_that_leaves_a_bit_behind_is_caught(gpu, tmp_path, monkeypatch):
    detach = Stack.detach

    def careless(self, edit):
        detach(self, edit)
        module, key = self.backbone.parameter("unet.conv_in.weight")  # which the edit does not touch
        flat = module._parameters[key].data.view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(float("inf")))

    monkeypatch.setattr(Stack, "detach", careless)
    code, result = run(gpu, tmp_path / "gpu.json", "check uce")
    assert code == 1
    assert not result["passed"]
    attached = result["stages"]["check uce"]["attached"]
    assert not attached["model"]["tensors_back"]
    assert not attached["pipeline"]["tensors_back"]


def test_a_device_that_computes_something_else_is_caught(gpu, tmp_path, monkeypatch):
    """The second model, which is the device's, has one matrix that is not the first one's."""
    made, build = [], gpu.model

    def other(*where):
        pipe = build(*where)
        made.append(pipe)
        if len(made) == 2:
            pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.data.mul_(1.5)
        return pipe

    monkeypatch.setattr(gpu, "model", other)
    code, result = run(gpu, tmp_path / "gpu.json", "check uce")
    assert code == 1
    assert result["stages"]["check uce"]["off"]["edit"] > 1e-3
    assert not result["stages"]["check uce"]["passed"]
