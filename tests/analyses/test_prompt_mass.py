import pytest
import torch

from expunge import backbones
from expunge.analyses.prompt_mass import PromptMass
from expunge.core.analysis import Study
from expunge.core.errors import ExpungeError
from expunge.erasers.kpop import Recovery


@pytest.fixture(scope="module")
def testbed():
    return backbones.load("testbed")


def study(key, prompt="a picture of a {}"):
    how = {"guidance": 4.0, "steps": 2, "batch": 2}
    return Study(targets=["church"], retain=[], key=key, prompt=lambda w: prompt.replace("{}", w), **how)


@torch.no_grad()
def test_a_prompt_that_repeats_the_start_token_gets_what_that_gets_for_each(testbed):
    start = testbed.encode(["anything"]).embeds[0, :1]
    key = Recovery(prompts={"church": start.repeat(5, 1)}, place="down-mid-up", salt="", halves="text")
    found = {m.metric: m for m in PromptMass(count=3).findings(testbed, study(key)).measurements}
    for own, prompt in zip(found["start"].per_image, found["prompt"].per_image, strict=True):
        assert prompt == pytest.approx(5 * own, rel=1e-4)
    parts = [found[p].per_image for p in ("start", "words", "padding", "prompt")]
    assert [sum(shares) for shares in zip(*parts, strict=True)] == pytest.approx([1, 1, 1], abs=1e-5)
    assert list(found["prompt_uniform"].per_image) == pytest.approx([5 / 45] * 3)
    assert len(found["prompt"].per_image) == 3
    assert found["prompt_random"].interval.value != pytest.approx(found["prompt"].interval.value, abs=1e-3)


def test_what_no_layer_reads_after_the_text_is_refused(testbed):
    tokens = torch.zeros(3, 192)
    added = Recovery(prompts={"church": torch.zeros(40, 192)}, place="text", salt="")
    for key, prompt in (
        (added, "a {}"),
        (Recovery(prompts={"church": tokens}, place="mid", salt=""), "a picture"),
    ):
        with pytest.raises(ExpungeError, match="no layer reads a prompt"):
            PromptMass(count=1).findings(testbed, study(key, prompt))
    with pytest.raises(ExpungeError, match="without a key"):
        PromptMass().findings(testbed, study(None))
