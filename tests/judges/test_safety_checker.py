"""Diffusers' own class at a tiny random size: the judge's scores and verdicts against others computed here."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from expunge.cli import main
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.judges.safety_checker import CONCEPTS, SPECIAL, SafetyChecker
from tiny import tiny_safety_checker

FAR = 1.5
"""A threshold that no cosine reaches."""


@pytest.fixture(scope="module")
def parts():
    return tiny_safety_checker()


@pytest.fixture
def place(parts, tmp_path):
    """The checker's own folder."""
    for part in parts:
        part.save_pretrained(tmp_path / "checker")
    return tmp_path / "checker"


@pytest.fixture(scope="module")
def pixels():
    """Four pictures of blocks, which the tower tells apart better than noise."""
    blocks = torch.randint(0, 256, (4, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


def cosines(parts, pixels):
    """Of each image with each concept, the special-care ones last, in double precision."""
    net, processor = parts
    read = processor([x.permute(2, 0, 1) for x in pixels], return_tensors="pt")["pixel_values"]
    e = net.visual_projection(net.vision_model(read).pooler_output).double().numpy()
    c = torch.cat([net.concept_embeds, net.special_care_embeds]).double().numpy()
    return (e @ c.T) / (np.linalg.norm(e, axis=1)[:, None] * np.linalg.norm(c, axis=1))


def with_thresholds(place, concepts, special):
    """The folder with other thresholds."""
    file = place / "model.safetensors"
    tensors = load_file(file)
    tensors["concept_embeds_weights"] = torch.as_tensor(concepts, dtype=torch.float32)
    tensors["special_care_embeds_weights"] = torch.as_tensor(special, dtype=torch.float32)
    file.unlink()  # what is read from it may be mapped
    save_file(tensors, file, metadata={"format": "pt"})
    return place


def test_scores_are_cosines_over_thresholds_and_special_care_adds_to_the_concepts(parts, place, pixels):
    cos = cosines(parts, pixels)
    limits = np.quantile(cos, 0.6, axis=0)
    limits[CONCEPTS:] = [FAR, np.sort(cos[:, CONCEPTS + 1])[2:].mean(), FAR]  # one image of four is above
    with_thresholds(place, limits[:CONCEPTS], limits[CONCEPTS:])
    raw = cos - limits
    care = 0.01 * (raw[:, CONCEPTS:] > 0).any(1)
    assert sorted(care) == [0, 0, 0, 0.01]
    raw[:, :CONCEPTS] += care[:, None]
    judge = Catalog("judges").open(f"safety-checker:path={place},rule=exact")
    assert np.abs(judge.scores(pixels).numpy() - raw).max() < 2e-6
    assert np.abs(SafetyChecker(str(place)).scores(pixels).numpy() - raw.round(3)).max() < 1e-3 + 1e-6
    assert judge.confidence(pixels, "unsafe").tolist() == (raw[:, :CONCEPTS] > 0).any(1).tolist()
    assert judge.confidence(pixels, "concept 4").tolist() == (raw[:, 4] > 0).tolist()
    assert judge.confidence(pixels, "special care 1").tolist() == (care > 0).tolist()
    found = [[d.label for d in image] for image in judge.detections(pixels, ["unsafe"])]
    assert found == [[f"concept {k}" for k in range(CONCEPTS) if row[k] > 0] for row in raw]


CASES = [  # a concept's margin, a special-care one's, and whether the image is unsafe: rounded, exact
    (0.001, -1, True, True),
    (0.0003, -1, False, True),  # 0.0003 is 0.000
    (-0.0003, -1, False, False),
    (-0.005, 0.02, True, True),  # unsafe by special care alone
    (-0.005, -0.02, False, False),
    (-0.005, 0.0003, False, True),  # special care is rounded too
    (-0.011, 0.02, False, False),
    (-1, 0.02, False, False),  # special care alone is not unsafe
]


@pytest.mark.parametrize(("concept", "special", "rounded", "exact"), CASES)
def test_verdicts_are_those_of_diffusers_on_either_side_of_its_borders(
    parts, place, pixels, concept, special, rounded, exact
):
    """Its pipelines round in numpy (``forward``); its ONNX export does not (``forward_onnx``)."""
    net, processor = parts
    (cos,) = cosines(parts, pixels[:1])
    limits, care = np.full(CONCEPTS, FAR), np.full(SPECIAL, FAR)
    limits[5], care[2] = cos[5] - concept, cos[CONCEPTS + 2] - special
    with_thresholds(place, limits, care)
    theirs = type(net).from_pretrained(place)
    read = processor([pixels[0].permute(2, 0, 1)], return_tensors="pt")["pixel_values"]
    picture = torch.ones(1, 3, 8, 8)
    published = {
        "rounded": theirs(read, picture.clone())[1][0],
        "exact": bool(theirs.forward_onnx(read, picture.clone())[1][0]),
    }
    assert published == {"rounded": rounded, "exact": exact}
    for rule, verdict in published.items():
        judge = SafetyChecker(str(place), rule)
        assert judge.confidence(pixels[:1], "unsafe").tolist() == [float(verdict)]
        assert judge.instrument()["rule"] == rule


def test_there_are_as_many_concepts_as_in_diffusers(parts):
    net, _ = parts
    assert (len(net.concept_embeds), len(net.special_care_embeds)) == (CONCEPTS, SPECIAL)


OLD = {"crop_size": 224, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_resize": True}
OLD |= {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 224}
OLD |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


@pytest.mark.parametrize("kind", ["own folder", "whole model", "bin", "half precision"])
def test_folders_as_they_are_published(parts, tmp_path, pixels, kind):
    """With names from before transformers 5.6, which have one level more, and a preprocessor's settings from before 4.26."""
    net, _ = parts
    folder = tmp_path / "model" / "safety_checker"
    eyes = tmp_path / "model" / "feature_extractor" if kind == "whole model" else folder
    eyes.mkdir(parents=True)
    net.save_pretrained(folder)
    small = {"crop_size": 32, "size": 32}
    (eyes / "preprocessor_config.json").write_text(json.dumps(OLD | small))
    tensors = load_file(folder / "model.safetensors")
    older = {k.replace("vision_model.", "vision_model.vision_model."): t.clone() for k, t in tensors.items()}
    older["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (folder / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(older, folder / "pytorch_model.bin")
    else:
        half = kind == "half precision"
        stored = {k: t.half() if half and t.is_floating_point() else t for k, t in older.items()}
        save_file(stored, folder / f"model{'.fp16' if half else ''}.safetensors", metadata={"format": "pt"})
    judge = SafetyChecker(str(tmp_path / "model" if kind == "whole model" else folder), "exact")
    limits = torch.cat([net.concept_embeds_weights, net.special_care_embeds_weights]).numpy()
    off = np.abs(judge.scores(pixels).numpy() - (cosines(parts, pixels) - limits)).max()
    assert off < (2e-3 if kind == "half precision" else 2e-6)
    assert len(judge.identity()) == 64


def test_other_weights_are_another_judge(place):
    before = SafetyChecker(str(place)).identity()
    with_thresholds(place, np.full(CONCEPTS, FAR), np.full(SPECIAL, FAR))
    assert SafetyChecker(str(place)).identity() != before == before


def test_it_is_a_filter(parts, place, pixels, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, x in enumerate(pixels):
        Image.fromarray(x.numpy()).save(pictures / f"{i}.png")
    cos = cosines(parts, pixels)
    limits = np.full(CONCEPTS, FAR)
    limits[7] = np.sort(cos[:, 7])[2:].mean()  # between the two highest of four
    with_thresholds(place, limits, np.full(SPECIAL, FAR))
    asked = ["screen", "--images", pictures, "--hold-concept", "unsafe", "--hold-judge", f"safety-checker:path={place}"]
    assert main([*map(str, asked), "--json"]) == 0
    (held,) = json.loads(capsys.readouterr().out)["held"]
    assert (held["file_name"], held["reason"], held["confidence"]) == (f"{cos[:, 7].argmax()}.png", "image: unsafe", 1)


def lacking(place, *names):
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    kept = {k: t for k, t in tensors.items() if not k.startswith(names)}
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["concept_embeds", "special_care"], "it has no 'concept_embeds', nor 3 others"),
        (["concept_embeds_weights"], "it has no 'concept_embeds_weights')"),
        (["visual_projection"], "it has no 'visual_projection.weight')"),
    ],
)
def test_a_folder_without_its_concepts_or_thresholds_is_refused_once(place, images, tmp_path, capsys, names, said):
    lacking(place, *names)
    judge = ["--hold-concept", "unsafe", "--hold-judge", f"safety-checker:path={place}"]
    found = ["--out", str(tmp_path / "found.jsonl")]
    assert main(["screen", "--images", str(images), *judge, *found]) == 2
    out, error = capsys.readouterr()
    assert said in error
    assert "expected a folder of a StableDiffusionSafetyChecker" in error
    assert error.count("\n") == 1, "and not a line of each image"
    assert out == ""
    assert main(["generate", "--prompt", "a dog", *judge, "--out", str(tmp_path / "made"), "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checker"], "nothing was begun"


def test_what_cannot_work_is_one_line(place, tmp_path, monkeypatch):
    opened = Catalog("judges").open
    with pytest.raises(ExpungeError, match="judge safety-checker has no weights: expected safety-checker:path=FOLDER"):
        opened("safety-checker")
    with pytest.raises(ExpungeError, match="unknown rule of judge safety-checker 'round': did you mean 'rounded'"):
        opened(f"safety-checker:path={place},rule=round")
    with pytest.raises(
        ExpungeError, match=r"none' holds no safety checker: expected config.json and model.safetensors"
    ):
        opened(f"safety-checker:path={tmp_path / 'none'}")
    with pytest.raises(ExpungeError, match="unknown concept for judge 'safety-checker': 'nudity'"):
        opened(f"safety-checker:path={place}").label_ids("nudity")
    (place / "preprocessor_config.json").rename(tmp_path / "aside")
    with pytest.raises(ExpungeError, match=r"does not say how images are read: expected preprocessor_config.json"):
        opened(f"safety-checker:path={place}")
    (tmp_path / "aside").rename(place / "preprocessor_config.json")
    (place / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ExpungeError, match=r"cannot be loaded as a safety checker: expected a folder of a StableDiff"):
        opened(f"safety-checker:path={place}").scores(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ExpungeError, match=r"judge safety-checker needs torchvision.*expected expunge\[metrics\]"):
        opened(f"safety-checker:path={place}").scores(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
