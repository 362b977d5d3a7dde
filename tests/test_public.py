import subprocess
import sys

import expunge


def test_every_public_name_is_there():
    for name in expunge.__all__:
        assert getattr(expunge, name) is not None
    assert set(expunge.__all__) == set(expunge._HOMES)


def test_importing_expunge_imports_no_torch():
    code = "import sys, expunge; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_s_five_lines():
    from conftest import tiny_pipeline

    pipe = tiny_pipeline()
    edit = expunge.erase(pipe, "church", method="uce", retain=["dog"])
    edit.attach(pipe)
    assert pipe("a church", num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    edit.detach(pipe)
