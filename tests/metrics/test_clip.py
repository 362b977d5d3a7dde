"""CLIP scores against transformers' own logits and torchmetrics, on a tiny random CLIP saved to disk; and the testbed's."""

import dataclasses
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from expunge import testbed
from expunge.core.errors import ExpungeError
from expunge.metrics.clip_score import ClipScore
from expunge.metrics.style_alignment import StyleAlignment
from expunge.pretrained.clip import clip
from expunge.store import read_images
from tiny import tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words = tokenizer()
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    net = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    )
    eyes = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    path = tmp_path_factory.mktemp("clip") / "tiny"
    net.save_pretrained(path)
    transformers.CLIPProcessor(image_processor=eyes, tokenizer=words).save_pretrained(path)
    return path


def logits(folder, shots):
    """Cosines of each image and its prompt, as the whole model gives them."""
    net, processor = transformers.CLIPModel.from_pretrained(folder), transformers.CLIPProcessor.from_pretrained(folder)
    with torch.no_grad():
        read = processor(
            images=[s.pixels().permute(2, 0, 1) for s in shots],
            text=[s.prompt for s in shots],
            padding=True,
            truncation=True,
            max_length=16,
            return_tensors="pt",
        )
        return (net(**read).logits_per_image / net.logit_scale.exp()).diagonal()


def test_equals_the_whole_model_s_cosines(images, folder):
    shots = read_images(images)
    found = {m.metric: m for m in ClipScore(model=str(folder)).measure(shots, ["church"], ["dog", "radio"])}
    wanted = logits(folder, shots).clamp_min(0)
    assert bool((wanted > 0).any())
    assert found["clip_erased"].per_image == pytest.approx(wanted[:3].tolist(), abs=1e-5)
    assert found["clip_kept"].interval.value == pytest.approx(100 * float(wanted[3:].mean()), abs=1e-3)
    assert found["clip_kept"].unit == "100 cos"
    assert found["clip_kept"].instrument["weights"] == f"sha256:{ClipScore(model=str(folder)).identity()}"
    every = clip(str(folder)).similarity(torch.stack([s.pixels() for s in shots]), [s.prompt for s in shots])
    assert every.shape == (len(shots), len(shots))
    assert every.diagonal().tolist() == pytest.approx(logits(folder, shots).tolist(), abs=1e-5)


class _Unwrapped(torch.nn.Module):
    """A CLIP as torchmetrics 1.9 knows it: transformers 5 gives features in an object, and it expects them bare."""

    def __init__(self, net):
        super().__init__()
        self.net, self.config = net, net.config

    def get_image_features(self, pixel_values):
        return self.net.get_image_features(pixel_values).pooler_output

    def get_text_features(self, ids, mask):
        return self.net.get_text_features(ids, mask).pooler_output


def test_equals_torchmetrics(images, folder):
    from torchmetrics.functional.multimodal import clip_score

    net, processor = transformers.CLIPModel.from_pretrained(folder), transformers.CLIPProcessor.from_pretrained(folder)
    ours = clip(str(folder))
    for shot in [dataclasses.replace(s, prompt=p) for s in read_images(images)[:3] for p in ("a dog", "church", "x y")]:
        theirs = clip_score(shot.pixels().permute(2, 0, 1), shot.prompt, lambda: (_Unwrapped(net), processor))
        assert 100 * ours.scores([shot], [shot.prompt])[0] == pytest.approx(float(theirs.detach()), abs=1e-3)


def test_a_long_prompt_is_cut_and_keeps_its_end(folder):
    texts = clip(str(folder)).texts
    assert torch.allclose(
        texts(["a b c d e f g h i j k l m n o p q"]), texts(["a b c d e f g h i j k l m n"]), atol=1e-6
    )
    assert not torch.allclose(texts(["a b c"]), texts(["a b d"]), atol=1e-4)


def test_a_vocabulary_reads_as_its_entries(folder):
    entries = clip(str(folder)).entries()
    words = tokenizer()
    assert len(entries) == len(words)
    assert entries[words.get_vocab()["dog</w>"]] == "dog"
    assert entries.count("a") == 2, "within a word, and at its end"
    assert {"church", "dog", "a"} <= set(clip("testbed").entries())


def test_images_of_several_sizes(folder, images):
    shots = read_images(images)
    tall = dataclasses.replace(shots[1], pixels=lambda: shots[1].pixels().repeat(2, 1, 1))
    assert len(clip(str(folder)).scores([shots[0], tall], ["a", "b"])) == 2


@torch.no_grad()
def test_the_testbed_s_towers_are_the_recipe_s(images):
    shots = read_images(images)
    shared = {k: v.float() for k, v in load_file(testbed.FOLDER / "networks" / "shared_space.safetensors").items()}
    config = transformers.CLIPTextConfig.from_pretrained(testbed.FOLDER / "text_encoder")
    tower = transformers.CLIPTextModelWithProjection(config).eval().float()
    stored = load_file(testbed.FOLDER / "text_encoder" / "model.safetensors")
    state = {f"text_model.{k.removeprefix('text_model.')}": v.float() for k, v in stored.items()}
    tower.load_state_dict(state | {"text_projection.weight": shared["text"]})
    words = transformers.CLIPTokenizer.from_pretrained(testbed.FOLDER / "tokenizer")
    ids = words(["image of a church"], padding="max_length", max_length=40, return_tensors="pt").input_ids
    ours, unit = clip("testbed"), torch.nn.functional.normalize
    assert torch.allclose(ours.texts(["image of a church"]), unit(tower(input_ids=ids).text_embeds), atol=1e-5)
    pixels = shots[0].pixels()[None]
    features = testbed.network("partner").features(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    wanted = torch.nn.functional.linear((features - shared["mean"]) / shared["std"], shared["weight"])
    assert torch.allclose(ours.images(pixels), unit(wanted), atol=1e-5)


def test_the_testbed_s_clip_knows_what_it_sees(images):
    shots = read_images(images)
    found = {m.metric: m.interval.value for m in ClipScore().measure(shots, ["church"], ["dog", "radio"])}
    swapped = {"church": "image of a dog", "dog": "image of a radio", "radio": "image of a church"}
    wrong = [dataclasses.replace(s, prompt=swapped[str(s.label)]) for s in shots]
    other = {m.metric: m.interval.value for m in ClipScore().measure(wrong, ["church"], ["dog", "radio"])}
    assert set(found) == {"clip_testbed_erased", "clip_testbed_kept"}
    assert all(found[name] > other[name] + 10 for name in found)


def test_no_such_clip_is_one_line(tmp_path):
    for name, words in (
        (str(tmp_path), "cannot be loaded as a CLIP"),
        ("nobody/nothing", "hub id that can be fetched"),
    ):
        with pytest.raises(ExpungeError, match=words) as caught:
            clip(name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_a_clip_that_lacks_tensors_is_refused_by_their_name(folder, tmp_path):
    """Transformers makes them up, and says so in a report only."""
    tensors = load_file(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "part")
    (tmp_path / "part" / "model.safetensors").unlink()
    kept = {k: t for k, t in tensors.items() if not k.startswith("text_projection")}
    save_file(kept, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExpungeError, match=r"cannot be loaded as a CLIP.*it has no 'text_projection.weight'"):
        clip(str(tmp_path / "part"))


@pytest.mark.parametrize(
    ("prompt", "artist", "content"),
    [
        ("a dog, ink style", "ink style", "a dog"),
        ("The Witch's House by Kelly McKernan", "Kelly McKernan", "The Witch's House"),
        ("a barn, in the style of Van Gogh, at night", "van gogh", "a barn, at night"),
        ("Van Gogh painting of a barn", "Van Gogh", "painting of a barn"),
        ("A Van Gogh-inspired barn", "Van Gogh", "A barn"),
        ("Van Gogh-inspired art of a barn", "Van Gogh", "art of a barn"),
        ("Van Gogh inspired art of a barn", "Van Gogh", "art of a barn"),
        ("Van Gogh's barn", "Van Gogh", "barn"),
        ("A barn, with lights inspired by Van Gogh's style.", "Van Gogh", "A barn, with lights."),
        ("A barn, in the style of Van Gogh.", "Van Gogh", "A barn."),
        ("Build a barn with a Van Gogh touch", "Van Gogh", "Build a barn"),
        ("A barn in Ajin: Demi Human style", "Ajin: Demi Human", "A barn"),
        ("Painting of an Ajin's barn", "Ajin: Demi Human", "Painting of an barn"),
    ],
)
def test_content_is_the_prompt_without_the_artist(prompt, artist, content):
    assert StyleAlignment().content(prompt, artist) == content


def test_style_alignment_equals_three_clip_scores(images, folder):
    shots = [dataclasses.replace(s, prompt=f"a tree by {s.label}") for s in read_images(images)]
    found = {m.metric: m for m in StyleAlignment(model=str(folder)).measure(shots, ["church"], ["dog", "radio"])}
    texts = {"both": "a tree by {}", "artist": "{}", "content": "a tree"}
    scores = {}
    for name, text in texts.items():
        told = [dataclasses.replace(s, prompt=text.format(s.label)) for s in shots]
        scores[name] = logits(folder, told).clamp_min(0)
        assert found[f"{name}_erased"].per_image == pytest.approx(scores[name][:3].tolist(), abs=1e-5)
        assert found[f"{name}_kept"].per_image == pytest.approx(scores[name][3:].tolist(), abs=1e-5)
    for name in ("content", "artist"):
        above = found[f"above_{name}_kept"]
        assert above.per_image == pytest.approx((scores["both"] - scores[name])[3:].tolist(), abs=1e-5)
        means = [float(100 * scores[text][3:].mean()) for text in ("both", name)]
        assert (above.interval.value, above.unit) == (pytest.approx(means[0] - means[1], abs=1e-3), "points")
    styled = (scores["both"] > scores["content"]).float()
    assert list(found["styled_erased"].per_image) == styled[:3].tolist()
    assert found["styled_kept"].interval.value == pytest.approx(100 * float(styled[3:].mean()))


def test_a_prompt_without_its_artist_is_refused():
    with pytest.raises(ExpungeError, match=r"prompt 'a dog': expected it to name the artist 'Ajin'"):
        StyleAlignment().content("a dog", "Ajin")
    with pytest.raises(ExpungeError, match="and something to show"):
        StyleAlignment().content("Ajin", "Ajin")
    with pytest.raises(ExpungeError, match=r"phrase 'by': expected one \{\}"):
        StyleAlignment(phrases=("by",))
