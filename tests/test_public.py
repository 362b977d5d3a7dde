import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

import expunge


def test_every_public_name_is_there():
    for name in expunge.__all__:
        assert getattr(expunge, name) is not None
    assert set(expunge.__all__) == set(expunge._HOMES)


def test_dir_and_version_are_told_before_anything_is_imported():
    code = (
        "import sys, expunge; print(*dir(expunge)); print(expunge.__version__); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'expunge.core.backbone')))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert told == [" ".join(sorted([*expunge.__all__, "__version__"])), version("expunge")]
    with pytest.raises(AttributeError, match="has no attribute 'ersae'"):
        _ = expunge.ersae


def test_python_m_expunge_is_the_command():
    asked = [sys.executable, "-m", "expunge", "--version"]
    assert subprocess.run(asked, check=True, capture_output=True, text=True).stdout == f"expunge {version('expunge')}\n"
    wrong = subprocess.run([*asked[:3], "lst"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, "expunge: unknown command 'lst': did you mean 'list'?\n")


def test_importing_expunge_imports_no_torch():
    code = "import sys, expunge; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_s_five_lines(tmp_path):
    from tiny import tiny_pipeline

    pipe = tiny_pipeline()

    def image():
        generator = torch.Generator().manual_seed(0)
        return pipe("a church", generator=generator, num_inference_steps=2, output_type="pt").images

    plain = image()
    edit = expunge.erase(pipe, "church", method="uce", retain="dog")
    assert edit.provenance.retain == ["dog"]
    assert torch.equal(image(), plain), "pipe is left as it was"
    edit.attach(pipe)
    assert not torch.equal(image(), plain)
    edit.save(tmp_path / "church.safetensors")
    edit.detach(pipe)
    assert torch.equal(image(), plain)
    assert expunge.load_edit(tmp_path / "church.safetensors").id == edit.id
