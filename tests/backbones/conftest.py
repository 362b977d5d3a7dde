"""Single files of each layout, beside the folders that they were made of."""

import json

import pytest

from expunge import backbones
from expunge.stages import export
from ldm_models import MAKERS, unlike


@pytest.fixture(scope="module", params=MAKERS)
def exported(request, tmp_path_factory):
    """A diffusers folder, the single file made of it, and the layout's name."""
    place = tmp_path_factory.mktemp(request.param)
    unlike(MAKERS[request.param]()).save_pretrained(place / "folder")
    file = (
        place / "folder" / "scheduler" / "scheduler_config.json"
    )  # published ones name settings of other samplers, too
    file.write_text(json.dumps({**json.loads(file.read_text()), "skip_prk_steps": True, "clip_sample": False}))
    export.to_file(backbones.load(str(place / "folder")), [], place / "out")
    return place / "folder", place / "out" / "model.safetensors", request.param
