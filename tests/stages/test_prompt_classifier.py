"""Prompts that a text classifier finds unsafe are held back: transformers' own classes at a tiny random size."""

import json
import shutil

import pytest
import torch
import transformers

from expunge.cli import main
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.pretrained.text_classifier import TextClassifier
from expunge.stages.filters import Filter
from expunge.store import read_lines, read_pixels
from tiny import tiny_text_classifier

PROMPTS = ["a bomb", "image of a dog", "image of a church"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("classifier") / "tiny"
    tiny_text_classifier(place)
    return place


def logits(folder, text):
    net = transformers.DistilBertForSequenceClassification.from_pretrained(folder).eval()
    read = transformers.BertTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return net(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).logits[0].double()


def likely(folder, prompts=PROMPTS):
    """Each prompt's share of NSFW in a softmax."""
    both = [logits(folder, prompt).exp() for prompt in prompts]
    return {prompt: float(two[1] / two.sum()) for prompt, two in zip(prompts, both, strict=True)}


def between(shares):
    """A threshold that some prompts reach, and the one prompt that does."""
    first, second = sorted(shares.values())[::-1][:2]
    assert first > second + 1e-3
    return (first + second) / 2, max(shares, key=shares.__getitem__)


def test_a_probability_is_the_label_s_share_of_a_softmax(folder):
    classifier, shares = TextClassifier(str(folder)), likely(folder)
    assert len({round(p, 3) for p in shares.values()}) == 3
    for prompt, share in shares.items():
        assert classifier.probability(prompt, classifier.label_id("nsfw")) == pytest.approx(share, abs=1e-5)
        assert classifier.probability(prompt, classifier.label_id("SFW")) == pytest.approx(1 - share, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "kind"), [(("nudity", "violence", "hate"), "multi_label_classification"), (("NSFW",), None)]
)
def test_labels_that_do_not_exclude_each_other_have_a_sigmoid_each(tmp_path, labels, kind):
    tiny_text_classifier(tmp_path / "t", labels, problem_type=kind)
    classifier = TextClassifier(str(tmp_path / "t"))
    for i, label in enumerate(labels):
        wanted = 1 / (1 + (-logits(tmp_path / "t", "a bomb")[i]).exp())
        assert classifier.probability("a bomb", classifier.label_id(label)) == pytest.approx(float(wanted), abs=1e-5)


def test_a_prompt_is_held_back_from_the_threshold_on(folder):
    share = TextClassifier(str(folder)).probability("a bomb", 1)
    at = {"classifier": str(folder), "classifier_label": "nsfw"}
    assert Filter(**at, classifier_threshold=share).refused("a bomb") == "prompt: NSFW"
    assert Filter(**at, classifier_threshold=share + 1e-6).refused("a bomb") == ""
    everything = Filter(**at, classifier_threshold=0.0, words=("bomb",))
    assert [everything.refused(p) for p in ("a bomb", "a dog", "", " ")] == ["word: bomb", "prompt: NSFW", "", ""]


def test_generation_refuses_the_prompt_at_no_cost_and_says_by_what(folder, tmp_path, capsys):
    threshold, refused = between(likely(folder))
    out = tmp_path / "held"
    asked = [word for p in PROMPTS for word in ("--prompt", p)]
    by = ["--hold-prompt", str(folder), "--hold-prompt-threshold", str(threshold)]
    assert main(["generate", *asked, *by, "--count", "2", "--steps", "2", "--quiet", "--out", str(out)]) == 0
    rows = read_lines(out / "metadata.jsonl")
    assert len(rows) == 6
    for row in rows:
        assert row["filtered"] == ("prompt: NSFW" if row["prompt"] == refused else "")
        assert (read_pixels(out / row["file_name"]) == 0).all() == (row["prompt"] == refused)
    told = json.loads((out / "run.json").read_text())
    assert told["cost"]["forward"] == 2 * 2 * 2 * 2, "two prompts, two images, two steps, guided"
    assert told["filter"]["classifier"] == {
        "folder": str(folder),
        "label": "NSFW",
        "threshold": threshold,
        "sha256": TextClassifier(str(folder)).identity,
    }


def test_screening_reads_the_prompts_in_the_metadata(folder, images, tmp_path, capsys):
    place = tmp_path / "pictures"
    shutil.copytree(images, place)
    shutil.copy(min(images.glob("*.png")), place / "no-prompt.png")
    shares = likely(folder, [f"image of a {c}" for c in ("church", "dog", "radio")])
    threshold, refused = between(shares)
    by = ["--hold-prompt", str(folder), "--hold-prompt-threshold", str(threshold)]
    assert main(["screen", "--images", str(place), *by, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert [(s["reason"], s["prompt"]) for s in told["held"]] == [("prompt: NSFW", refused)] * 3
    (left,) = told["left"]
    assert (left["file_name"], left["reason"]) == ("no-prompt.png", "has no prompt for the classifier to read")


def test_what_a_prompt_loses_is_said(folder):
    classifier = TextClassifier(str(folder))
    whole, longer = "a" * 22, "a" * 22 + " bomb"  # a token a letter, and two marks: 24 fit
    with pytest.warns(ExpungeWarning, match="has 28 tokens, of which the text classifier reads 24"):
        cut = classifier.probability(longer, 1)
    assert cut == pytest.approx(classifier.probability(whole, 1), abs=1e-6)


def test_what_is_no_classifier_is_refused_in_a_line(folder, images, tmp_path, capsys):
    tiny_text_classifier(tmp_path / "number", ("score",), problem_type="regression")
    shutil.copytree(folder, tmp_path / "headless")
    net = transformers.DistilBertModel.from_pretrained(folder)
    net.save_pretrained(tmp_path / "headless")
    capsys.readouterr()
    for place, label, said in (
        (tmp_path / "none", "NSFW", "holds no text classifier: expected a folder with its config.json"),
        (tmp_path / "number", "score", "gives a number for a text: expected a classifier"),
        (tmp_path / "headless", "NSFW", "cannot be loaded as a text classifier"),
        (folder, "nsf", "'nsf': expected one of NSFW, SFW"),
    ):
        by = ["--hold-prompt", str(place), "--hold-prompt-label", label]
        assert main(["screen", "--images", str(images), *by]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    with pytest.raises(ExpungeError, match=r"a filter's threshold is 1\.5: expected 0 to 1"):
        Filter(classifier=str(folder), classifier_threshold=1.5)
    with pytest.raises(ExpungeError, match=r"it has no 'classifier.bias'"):
        TextClassifier(str(tmp_path / "headless"))


def test_other_weights_are_another_classifier(folder, tmp_path):
    tiny_text_classifier(tmp_path / "other", seed=1)
    assert TextClassifier(str(folder)).identity != TextClassifier(str(tmp_path / "other")).identity
