"""The command line end to end, on the testbed and on a random-weight checkpoint."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import pytest
import torch

from expunge.cli import COMMANDS, main
from expunge.cli.plug_ins import settings_beside
from expunge.core.catalog import Catalog
from expunge.settings.described import described
from expunge.store import load_edit, read_images, read_pixels

FAST = ["--steps", "3", "--count", "2"]


def run(*words, code=0):
    assert main([str(w) for w in words]) == code


def test_erase_generate_measure_export_on_the_testbed(tmp_path, capsys):
    out = tmp_path / "uce"
    run("erase", "uce", "--target", "church", "--retain", "dog", "--out", out, "--json")
    assert json.loads(capsys.readouterr().out)["forward_equivalents"] == 0
    edit = out / "edit.safetensors"
    for name, options in (("before", []), ("after", ["--edit", edit])):
        run("generate", "--concept", "church", "--concept", "dog", *FAST, *options, "--out", tmp_path / name, "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "after" / "metadata.jsonl").read_text().splitlines()]
    assert [(r["label"], r["seed"]) for r in rows] == [("church", 0), ("church", 1), ("dog", 0), ("dog", 1)]
    assert rows[0]["prompt"] == "image of a church"
    made = json.loads((tmp_path / "after" / "run.json").read_text())
    assert made["cost"]["forward"] == 4 * 3 * 2
    capsys.readouterr()

    records = tmp_path / "records.jsonl"
    run("measure", "esr-psr", "--images", tmp_path / "before", "--target", "church", "--out", records, "--quiet")
    run("measure", "esr-psr", "--images", tmp_path / "after", "--out", records, "--json")
    shown = json.loads(capsys.readouterr().out)["records"]
    kept = [json.loads(line) for line in records.read_text().splitlines()]
    assert kept[-len(shown) :] == shown
    by = {(r["subject"], r["metric"]): r for r in kept}
    assert {"esr@1", "esr@5", "psr@1", "psr@5", "valid_rate", "valid_rate_kept"} <= {m for _, m in by}
    edited = by["edited", "esr@1"]
    assert edited["eraser"] == "uce"
    assert edited["concepts"] == ["church"]
    assert edited["knowledge"]["retain"] == ["dog"]
    assert edited["n"] == 2
    assert edited["low"] <= edited["value"] <= edited["high"]

    run("export", "--edit", edit, "--out", tmp_path / "model", "--quiet")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "image of a church",
        generator=torch.Generator().manual_seed(0),
        guidance_scale=rows[0]["guidance"],
        num_inference_steps=3,
        output_type="np",
    ).images[0]
    ours = read_pixels(tmp_path / "after" / rows[0]["file_name"]).float()
    assert (ours - torch.from_numpy(theirs) * 255).abs().max() <= 1
    plain = read_pixels(tmp_path / "before" / rows[0]["file_name"]).float()
    assert (ours - plain).abs().max() > 10, "the edit changes the image"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "asked to remove: church" in card
    assert "## Use it responsibly" in card


def test_the_same_commands_on_a_random_weight_checkpoint(folder, tmp_path, capsys):
    model = ["--model", folder]
    run("erase", "uce", *model, "--target", "church", "--anchor", "cat", "--out", tmp_path / "a")
    first = tmp_path / "a" / "edit.safetensors"
    run("erase", "uce", *model, "--target", "dog", "--anchor", "cat", "--on", first, "--out", tmp_path / "b")
    second = tmp_path / "b" / "edit.safetensors"
    both = ["--edit", first, "--edit", second]
    run("generate", *model, "--prompt", "dog", *both, *FAST, "--out", tmp_path / "images")
    run("generate", *model, "--prompt", "dog", "--edit", second, *FAST, "--out", tmp_path / "alone", code=2)
    assert "made on top of" in capsys.readouterr().err
    assert not (tmp_path / "alone").exists()
    run("export", *model, *both, "--out", tmp_path / "model")
    diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    run("show", second, "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["provenance"]["targets"] == ["dog"]


def test_prompts_of_a_paper_s_file_are_one_image_a_row_and_captions_need_no_label(folder, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("case_number,prompt,evaluation_seed,class\n0,a dog,7,dog\n1,a cat,9,cat\n")
    (tmp_path / "captions.csv").write_text("image_id,prompt,evaluation_seed\n139,a cat and a dog,5\n285,a tree,4\n")
    model = ["--model", folder, "--steps", 3, "--guidance", 2]
    run("generate", *model, "--prompts", tmp_path / "rows.csv", "--out", tmp_path / "rows")
    rows = [json.loads(line) for line in (tmp_path / "rows" / "metadata.jsonl").read_text().splitlines()]
    told = [(r["prompt"], r["seed"], r["label"], r["guidance"]) for r in rows]
    assert told == [("a dog", 7, "dog", 2.0), ("a cat", 9, "cat", 2.0)]
    run("generate", *model, "--prompt", "a dog", "--label", "dog", "--out", tmp_path / "none", code=2)
    assert "--label or --row-guidance without --prompts" in capsys.readouterr().err
    run("erase", "uce", "--model", folder, "--target", "dog", "--anchor", "cat", "--no-check", "--out", tmp_path / "e")
    edit = tmp_path / "e" / "edit.safetensors"
    run("generate", *model, "--prompts", tmp_path / "captions.csv", "--out", tmp_path / "before")
    run("generate", *model, "--prompts", tmp_path / "captions.csv", "--edit", edit, "--out", tmp_path / "after")
    capsys.readouterr()
    compared = ["--images", tmp_path / "after", "--reference", tmp_path / "before", "--json"]
    run("measure", "prior-preservation", *compared)
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert (record["metric"], record["n"], record["concepts"]) == ("prior_preservation_testbed", 2, ["dog"])
    assert record["value"] < 100
    run("measure", "esr-psr", "--images", tmp_path / "after", code=2)
    assert "no image is labelled" in capsys.readouterr().err


def test_negative_prompt_from_the_command_line(folder, tmp_path, capsys):
    run("erase", "negative-prompt", "--model", folder, "--target", "church", "--out", tmp_path / "np")
    edit = tmp_path / "np" / "edit.safetensors"
    run("generate", "--model", folder, "--prompt", "dog", "--edit", edit, *FAST, "--out", tmp_path / "images")
    run("export", "--model", folder, "--edit", edit, "--out", tmp_path / "model", code=2)
    assert "no weights to fuse" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


QUICK = ["--iterations", 2, "--lr", 1e-2]
ONLINE = [*QUICK, "--sampling-steps", 2]


@pytest.mark.parametrize(
    ("method", "settings", "refused"),
    [
        ("leco", [*ONLINE, "--templates", "{}"], None),
        ("spm", [*ONLINE, "--warmup", 0], "gates that read each prompt"),
        ("sld", ["--warmup", 0, "--level", "max"], "no weights to fuse"),
        ("eiup", ["--weight", -2], "no weights to fuse"),
        ("few-shot", ["--epochs", 1, "--lr", 1e-2, "--images", "{own}"], None),
        ("ca", [*QUICK, "--batch", 2, "--kind", "fixed", "--anchor", "cat", "--images", "church={own}"], None),
    ],
)
def test_every_kind_of_edit_from_the_command_line(folder, images, tmp_path, capsys, method, settings, refused):
    own = next(images.glob("*church*.png")).parent
    words = [str(word).replace("{own}", str(own)) for word in settings]
    run("erase", method, "--target", "church", "--model", folder, *words, "--out", tmp_path / "edit", "--quiet")
    edit = tmp_path / "edit" / "edit.safetensors"
    sampled = ["--model", folder, "--prompt", "a church", *FAST]  # SLD leaves the bare word alone: there eps_p is eps_S
    run("generate", *sampled, "--out", tmp_path / "before")
    run("generate", *sampled, "--edit", edit, "--out", tmp_path / "after")
    before, after = (read_pixels(min((tmp_path / name).glob("*.png"))).float() for name in ("before", "after"))
    assert (before - after).abs().max() > 0
    capsys.readouterr()
    out = tmp_path / "model"
    run("export", "--model", folder, "--edit", edit, "--out", out, code=2 if refused else 0)
    if refused:
        assert refused in capsys.readouterr().err
        assert not out.exists()
        return
    if method == "leco":
        run("export", "--model", folder, "--edit", edit, "--layout", "lora", "--out", tmp_path / "lora")
        assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()
    run("generate", "--model", out, *sampled[2:], "--out", tmp_path / "exported")
    exported = read_pixels(min((tmp_path / "exported").glob("*.png"))).float()
    assert (exported - after).abs().max() <= 2


def test_a_single_file_goes_in_and_comes_out_with_its_figures(folder, tmp_path, capsys):
    """Folder -> one file with a card of figures -> the same images with the file as the model."""
    model = ["--model", folder]
    run("erase", "uce", "--target", "dog", *model, "--anchor", "cat", "--out", tmp_path / "uce", "--quiet")
    edit = tmp_path / "uce" / "edit.safetensors"
    sampled = ["--concept", "dog", *FAST]
    run("generate", *model, *sampled, "--edit", edit, "--out", tmp_path / "after", "--quiet")
    records = tmp_path / "records.jsonl"
    run("measure", "esr-psr", "--images", tmp_path / "after", "--out", records, "--quiet")
    exported = ["export", *model, "--edit", edit, "--layout", "ldm", "--records", records]
    run(*exported, "--out", tmp_path / "one")
    assert "a checkpoint for A1111 and ComfyUI" in capsys.readouterr().out
    card = (tmp_path / "one" / "README.md").read_text()
    assert "| edited | dog | none | esr@1 |" in card
    file = tmp_path / "one" / "model.safetensors"
    run("generate", "--model", file, "--model-layout", folder, *sampled, "--out", tmp_path / "again", "--quiet")
    pairs = [[read_pixels(f).int() for f in sorted((tmp_path / n).glob("*.png"))] for n in ("after", "again")]
    assert all((a - b).abs().max() <= 1 for a, b in zip(*pairs, strict=True))
    for words, change in (
        ("expected those exported", [*exported[:3], "--layout", "ldm", "--records", records]),
        ("no file", [*exported[:5], "--records", tmp_path / "none.jsonl"]),
        ("has an AutoencoderTiny", ["export", "--layout", "ldm"]),
    ):
        run(*change, "--out", tmp_path / "bad", code=2)
        assert words in capsys.readouterr().err
        assert not (tmp_path / "bad").exists()


COUNTED = (("--count", "4"), ("--seed", "0"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["erase", "uec", "--target", "x"], "did you mean 'uce'"),
        (["erase", "uce", "--target", "x", "--out", "{tmp}/o", "--lamd", "1"], "did you mean '--lamb'"),
        (["erase", "uce", "--target", "x", "--out", "{tmp}/o", "--lamb", "half"], "--lamb 'half': expected a number"),
        (["erase", "uce", "--target", " ", "--out", "{tmp}/o"], "the target is empty"),
        (["erase", "uce", "--out", "{tmp}/o"], "target"),
        (["erase", "ca", "--target", "dog", "--out", "{tmp}/o", "--no-preset"], "ca has no anchor for 'dog'"),
        (["erase", "few-shot", "--target", "dog", "--images", "{tmp}", "--out", "{tmp}/o"], "holds no image"),
        (
            ["erase", "few-shot", "--target", "dog", "--images", "a", "--images", "b", "--out", "{tmp}/o"],
            "expected one folder, or TARGET=FOLDER",
        ),
        (["erase", "uce", "--target", "dog", "--retain", "dog", "--out", "{tmp}/o"], "both a target and a retained"),
        (["erase", "uce", "--target", "dog", "--model", "{tmp}/none", "--out", "{tmp}/o"], "no model "),
        (["erase", "uce", "--target", "dog", "--out", "{tmp}/file/o"], "cannot be written"),
        (["erase", "uce", "--target", "dog", "--out", "{tmp}/o", "--device", "gpu"], "is not to be had here"),
        (["generate", "--out", "{tmp}/o"], "nothing to generate"),
        (["generate", "--prompt", "a", "--out", "{tmp}/old"], "exists already"),
        (["generate", "--prompt", "a", "--steps", "0", "--out", "{tmp}/o"], "expected both to be 1 or more"),
        (["generate", "--set", "objects11", "--out", "{tmp}/o"], "did you mean 'objects10'"),
        (["generate", "--prompt", "a", "--edit", "{tmp}/file", "--out", "{tmp}/o"], "damaged"),
        (["generate", "--prompt", "a", "--batch", "0", "--out", "{tmp}/o"], "batch 0"),
        (["measure", "esr-psr", "--images", "{tmp}/old"], "not an image folder"),
        (["measure", "fidd", "--images", "{tmp}/old"], "did you mean 'fid'"),
        (["measure", "fid", "--images", "{tmp}/old"], "expected images to compare with (--reference)"),
        (["generate", "--prompts", "{tmp}/file", "--out", "{tmp}/o"], "has no row"),
        *(
            (
                ["generate", "--queries", "{tmp}/old", flag, value, "--out", "{tmp}/o"],
                f"/old' with {flag}: expected none of",
            )
            for flag, value in (*COUNTED, ("--steps", "4"), ("--guidance", "2"), ("--true-cfg", "1"))
        ),
        *(
            (
                ["generate", "--prompts", "{tmp}/file", flag, value, "--out", "{tmp}/o"],
                f"/file' with {flag}: expected neither",
            )
            for flag, value in COUNTED
        ),
        (["show", "{tmp}/file"], "damaged"),
        (["demo", "--target", "chruch", "--out", "{tmp}/o"], "did you mean 'church'"),
        (["pairs", "--unsafe", "a", "--out", "{tmp}/o"], "1 unsafe prompts and 0 safe ones"),
        (["pairs", "--unsafe-images", "{tmp}", "--out", "{tmp}/o"], "expected --unsafe-images and --safe-images"),
        (
            ["pairs", "--unsafe-images", "{tmp}", "--safe-images", "{tmp}/old", "--out", "{tmp}/o"],
            "holds no image",
        ),
        (["lst"], "did you mean 'list'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, capsys, words, message):
    (tmp_path / "file").write_text("x")
    (tmp_path / "old").mkdir()
    run(*[w.replace("{tmp}", str(tmp_path)) for w in words], code=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("expunge: ")
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "old"], "nothing half-written"


@pytest.mark.parametrize("command", [name for name, known in COMMANDS.items() if known.plug_ins])
def test_every_setting_of_every_plug_in_has_a_flag_of_its_own(command):
    kind, (module, _, function) = COMMANDS[command].plug_ins, COMMANDS[command].home.partition(":")
    options = described(f"expunge.cli.{module}", function.capitalize())
    for name in Catalog(kind).entries():
        both = [o for group in (*options, *settings_beside(options, kind, name)) for o in group.options]
        flags = [flag for o in both if not o.positional for flag in (o.flag, o.short) if flag]
        assert sorted(set(flags)) == sorted(flags), name


def test_a_setting_that_is_called_as_an_option_is_given_by_its_plug_in_s_name(folder, tmp_path, capsys):
    run("erase", "uce", "--target", "church", "--model", folder, "--out", tmp_path / "uce", "--quiet", "--no-check")
    words = [
        "--edit",
        tmp_path / "uce" / "edit.safetensors",
        "--strength",
        "0.5",
        "--target",
        "church",
        "--model",
        folder,
    ]
    more = ["--image-to-image-strength", "0.25", "--query-steps", "4", "--images", "1", "--count", "1"]
    run("attack", "image-to-image", *words, *more, "--out", tmp_path / "attack", "--quiet")
    said = json.loads((tmp_path / "attack" / "queries.json").read_text())["about"]
    assert (said["settings"]["strength"], said["strength"]) == (0.25, 0.5)
    capsys.readouterr()
    run("attack", "image-to-image", "--help")
    shown = capsys.readouterr().out
    assert "--strength NUMBER" in shown
    assert "--image-to-image-strength NUMBER" in shown


def test_a_concept_the_judge_does_not_know(folder, tmp_path, capsys):
    run("generate", "--model", folder, "--concept", "chuch", *FAST, "--out", tmp_path / "images")
    run("measure", "esr-psr", "--images", tmp_path / "images", "--target", "chuch", code=2)
    assert "did you mean 'church'" in capsys.readouterr().err


def test_several_loras_each_have_their_strength(folder, tmp_path, capsys):
    """In images, in a record, and in the model that is exported, which makes the same images without them."""
    quick = ["--pairs", 1, "--iterations", 1, "--batch", 1, "--rank", 1, "--base-lr", 1, "--model", folder]
    both = []
    for target in ("dog", "church"):
        run("erase", "duo", "--target", target, *quick, "--out", tmp_path / target, "--quiet")
        both += ["--edit", tmp_path / target / "edit.safetensors"]
    apart = ["--strength", "0.5", "--strength", "0.25"]
    asked = ["--concept", "church", *FAST, "--quiet"]
    images = {}
    for name, words in (("each", apart), ("all", ["--strength", "0.5"]), ("whole", [])):
        run("generate", "--model", folder, *asked, *both, *words, "--out", tmp_path / name)
        images[name] = read_images(tmp_path / name)[0].pixels().float()
    assert json.loads((tmp_path / "each" / "run.json").read_text())["strength"] == [0.5, 0.25]
    assert not torch.equal(images["each"], images["all"])
    assert not torch.equal(images["all"], images["whole"])
    for name in ("each", "all"):
        measured = ["measure", "esr-psr", "--images", tmp_path / name, "--target", "church", "--quiet"]
        run(*measured, "--out", tmp_path / f"{name}.jsonl")
    export = ["export", "--model", folder, *both, *apart, "--out", tmp_path / "model", "--quiet"]
    run(*export, "--records", tmp_path / "all.jsonl", code=2)
    assert "at strength 0.5: expected" in capsys.readouterr().err
    run(*export, "--records", tmp_path / "each.jsonl")
    assert ", at strength 0.25" in (tmp_path / "model" / "README.md").read_text()
    run("generate", "--model", tmp_path / "model", *asked, "--out", tmp_path / "exported")
    assert (read_images(tmp_path / "exported")[0].pixels().float() - images["each"]).abs().max() <= 1
    capsys.readouterr()
    run("generate", "--model", folder, *asked, *both, *apart, "--strength", "1", "--out", tmp_path / "no", code=2)
    assert "3 strengths for 2 edits: expected one, or one for each" in capsys.readouterr().err
    run("erase", "negative-prompt", "--target", "dog", "--model", folder, "--out", tmp_path / "text", "--quiet")
    text = ["--edit", tmp_path / "text" / "edit.safetensors"]
    for words in ([*text, "--strength", "0.5"], [*text, *both, "--strength", "0.5", "--strength", 1, "--strength", 1]):
        run("generate", "--model", folder, *asked, *words, "--out", tmp_path / "no", code=2)
        assert "strength 0.5 for a guidance edit: expected 1" in capsys.readouterr().err
    run("generate", "--model", folder, *asked, *text, *both, "--strength", "0.5", "--out", tmp_path / "mixed")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "method", [["uce", "--anchor", "cat"], ["duo", "--pairs", 1, "--iterations", 1, "--batch", 1, "--rank", 1]]
)
def test_edits_of_another_base_need_any_base(folder, other_folder, tmp_path, capsys, method):
    """Replaced tensors, and a LoRA."""
    run("erase", *method, "--model", folder, "--target", "dog", "--out", tmp_path)
    words = ["generate", "--model", other_folder, "--prompt", "a", "--edit", tmp_path / "edit.safetensors", *FAST]
    capsys.readouterr()
    run(*words, "--out", tmp_path / "no", code=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "another base" in line
    assert not (tmp_path / "no").exists()
    run(*words, "--any-base", "--out", tmp_path / "yes")
    run(*words, "--dtype", "float16", "--model", folder, "--out", tmp_path / "own")
    for layout in ("diffusers", "ldm", *(["lora"] if method[0] == "duo" else [])):
        export = ["export", "--model", other_folder, "--edit", tmp_path / "edit.safetensors", "--layout", layout]
        capsys.readouterr()
        run(*export, "--out", tmp_path / f"no-{layout}", code=2)
        assert "another base" in capsys.readouterr().err
        assert not (tmp_path / f"no-{layout}").exists()
        run(*export, "--any-base", "--out", tmp_path / f"yes-{layout}", "--quiet")


def test_help_takes_less_than_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert without_torch("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of its own: other work on the machine is not the command's
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_every_command_has_help_that_imports_neither_torch_nor_gradio():
    code = (
        "import sys; from expunge.cli import COMMANDS, main\n"
        "for name in COMMANDS: assert main([name, '--help']) == 0, name\n"
        "sys.exit(bool({'torch', 'gradio'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "diffusers", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from expunge.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*words):
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, words)], capture_output=True, text=True)


def test_show_and_list_need_no_torch_and_can_be_read(folder, tmp_path):
    run("erase", "uce", "--model", folder, "--target", "church", "--retain", "dog", "--anchor", "cat",
        "--check-images", 2, "--out", tmp_path, "--quiet")  # fmt: skip
    edit = tmp_path / "edit.safetensors"
    shown = without_torch("show", edit)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 120
    told = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines if "  " in line.strip())
    assert told["id"] == load_edit(edit).id
    assert (told["targets"], told["asked to keep"], told["lamb"], told["anchor"]) == ("church", "dog", "0.5", "cat")
    assert told["method"].startswith("uce, by expunge ")
    looked = json.loads((tmp_path / "check.json").read_text())
    assert told["verdict"]
    assert looked["verdict"].startswith(told["verdict"]), "what the look said"
    size = sum(t.numel() * t.element_size() for t in load_edit(edit).tensors().values())
    assert f"tensors: {len(load_edit(edit).tensors())}, {size / 1e6:.1f} MB" in lines
    whole = json.loads(without_torch("show", edit, "--json").stdout)
    held = {t["name"]: t["shape"] for t in whole["tensors"]}
    assert held == {name: list(t.shape) for name, t in load_edit(edit).tensors().items()}
    assert whole["check"]["edit"] == whole["id"]
    (tmp_path / "check.json").write_text((tmp_path / "check.json").read_text().replace(whole["id"], "another"))
    assert json.loads(without_torch("show", edit, "--json").stdout)["check"] is None, "it is of another edit"
    for words in (["list"], ["list", "--json"], ["--help"], ["show", "--help"]):
        assert without_torch(*words).returncode == 0
    wrong = without_torch("show", tmp_path / "check.json")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_list_names_what_exists(capsys):
    run("list", "--json")
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {"erasers", "attacks", "metrics", "judges"}
    assert {"name": "uce", "class": "UCE", "arxiv": "2308.14761"}.items() <= found["erasers"][-1].items()
    run("list")
    assert "negative-prompt" in capsys.readouterr().out


def test_ctrl_c_exits_130_and_leaves_nothing_but_what_resumes(folder, tmp_path):
    words = [
        "generate",
        "--model",
        folder,
        "--prompt",
        "dog",
        "--count",
        "5000",
        "--steps",
        "50",
        "--out",
        tmp_path / "o",
    ]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (a background job's children start deaf to it)
    command = [sys.executable, "-m", "expunge.cli", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heard)
    deadline = time.monotonic() + 60
    while not any(Path(tmp_path).iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error.decode()
    assert error.decode().strip().splitlines()[-1].startswith("expunge: interrupted")
    assert [p.name for p in tmp_path.iterdir()] in ([], [".o.partial"])


KPOP = ["--iterations", 2, "--sampling-steps", 2, "--lr", 1e-3, "--prompt-lr", 0.1, "--no-preset", "--quiet"]


def test_erase_with_a_key_and_recover_on_a_checkpoint_in_sd_s_layout(folder, tmp_path, capsys):
    out, model = tmp_path / "kpop", ["--model", folder]
    run("erase", "kpop", "--target", "church", "--target", "dog", *KPOP, *model, "--out", out)
    edit, key = out / "edit.safetensors", out / "key.safetensors"
    assert key.stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    run("show", edit, "--json")
    shown = capsys.readouterr().out
    salt = load_edit(key).salt
    run("show", key, "--json")
    told = capsys.readouterr().out
    run("show", key)
    assert all(salt not in text for text in (shown, told, capsys.readouterr().out))
    hidden = json.loads(told)["fields"]["salt_sha256"]
    assert hidden == json.loads(shown)["provenance"]["salt_sha256"] == hashlib.sha256(salt.encode()).hexdigest()

    sampled = ["--count", 1, "--steps", 2, *model, "--quiet"]
    run("generate", "--concept", "church", "--concept", "dog", "--edit", edit, *sampled, "--out", tmp_path / "erased")
    latents = {}
    for control in ("own", "random", "other"):
        place = tmp_path / control
        run("recover", "--edit", edit, "--key", key, "--control", control, *sampled, "--out", place)
        made = json.loads((place / "run.json").read_text())
        assert made["control"] == control
        assert [e["provenance"]["eraser"] for e in made["edits"]] == ["kpop"]
        latents[control] = [read_pixels(p) for p in sorted(place.glob("*.png"))]
    latents["erased"] = [read_pixels(p) for p in sorted((tmp_path / "erased").glob("*.png"))]
    assert all(len(images) == 2 for images in latents.values())
    assert not torch.equal(latents["own"][0], latents["random"][0])

    run("recover", "--edit", edit, "--key", key, "--concept", "chruch", *sampled, "--out", tmp_path / "no", code=2)
    assert "did you mean 'church'" in capsys.readouterr().err
    run("recover", "--edit", edit, "--key", edit, *sampled, "--out", tmp_path / "no", code=2)
    assert "expected the key.safetensors" in capsys.readouterr().err
    run("generate", "--prompt", "dog", "--edit", key, *sampled, "--out", tmp_path / "no", code=2)
    assert "expected that one to be attached first" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()

    first = json.loads(shown)["id"]
    run("erase", "kpop", "--target", "church", *KPOP, *model, "--out", out, "--overwrite")
    assert (out / f"key-{first}.safetensors").is_file(), "an old key is kept"
    run(
        "erase",
        "esd",
        "--target",
        "church",
        "--iterations",
        1,
        "--sampling-steps",
        2,
        *model,
        "--out",
        out,
        "--overwrite",
    )
    assert not key.exists(), "no key lies beside an edit that has none"


def test_bad_settings_of_trained_erasers(folder, tmp_path, capsys):
    for words, options in (
        ("kpop's lamb is 0.0", ["kpop", "--lamb", 0]),
        ("kpop's k is 0", ["kpop", "--k", 0]),
        ("did you mean 'xattn'", ["esd", "--group", "xatn"]),
        ("expected goal port", ["esd", "--erase-from", "dog"]),
        ("erased from 'Church ', which is itself", ["esd", "--goal", "port", "--erase-from", "Church "]),
        ("become 'church', which is itself: expected another anchor", ["uce", "--anchor", "church"]),
        ("become 'church', which is itself: expected another anchor", ["spm", "--surrogate", "church"]),
        ("duo's beta is 0.0: expected a positive number", ["duo", "--beta", 0]),
        ("duo's beta is -1.0: expected a positive number", ["duo", "--beta", -1]),
    ):
        run("erase", *options, "--target", "church", "--model", folder, "--out", tmp_path / "x", code=2)
        error = capsys.readouterr().err
        assert words in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


DROPPED = """
import os, signal, time
from expunge.cli import _ended_by_signals

class Leaving:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

with _ended_by_signals():
    Leaving()
    time.sleep(20)
    print("went on")
"""


def test_a_signal_that_comes_while_something_is_taken_away_ends_the_command_all_the_same():
    """Python drops what is raised in a `__del__`: a cancelled run went on for twenty seconds, or to its end."""
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=60)
    assert (ended.returncode != 0, ended.stdout) == (True, "")
    assert "SIGTERM" in ended.stderr
    assert time.monotonic() - start < 15
