"""Model classes imported without what they import for nothing: the same classes, and the usual way where that goes wrong."""

import subprocess
import sys

CODE = """
import sys
from expunge.backbones import lean
{before}
lean.import_model_classes()
import diffusers, torch, transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import import_utils
print("torch._dynamo" in sys.modules, import_utils is not None, transformers.CLIPTextModel.__name__)
small = dict(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, sample_size=4)
torch.manual_seed(0)
unet = UNet2DConditionModel(**small, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
                            attention_head_dim=4)
x, text = torch.ones(1, 4, 4, 4), torch.ones(1, 3, 8)
print(round(float(unet(x, 5, text).sample.double().sum()), 6))
"""


def run(before: str = "") -> list[str]:
    words = [sys.executable, "-c", CODE.format(before=before)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def test_classes_are_the_same_and_another_release_is_imported_as_usual():
    lean = run()
    usual = run("lean.import_model_classes = lambda: None")
    broken = run("lean._stand_ins = lambda: {'diffusers.utils': __import__('types').ModuleType('diffusers.utils')}")
    assert lean[0] == "False", "no TorchDynamo"
    assert usual[0] == broken[0] == "True"
    assert lean[1:] == usual[1:] == broken[1:]
