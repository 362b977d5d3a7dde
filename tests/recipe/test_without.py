"""The recipe without some concepts: what the denoiser sees, and every stage of it at a size that a test can wait for."""

import json

import numpy as np
import pytest
import torch
from test_recipe import art, bank  # noqa: F401 (fixtures)

from expunge import backbones, testbed
from expunge.core.errors import ExpungeError
from expunge.recipe import __main__ as recipe
from expunge.recipe import artwork, captions, denoiser, without

LACKS = ["church", "ink style", "weapon"]
WEAPONS = [name for name, about in testbed.vocabulary()["objects"].items() if about["category"] == "weapon"]


def test_concepts_are_objects_categories_and_styles_as_a_bank_numbers_them(art):  # noqa: F811
    """By the recipe's own list, whose order is the artwork's."""
    spec = artwork.specification()
    assert list(spec["objects"]) == art.names
    assert [*spec["styles"]] == art.hands
    away = without.gone(without.named("weapon, ink style,church"))
    assert [art.names[i] for i in away.objects] == [n for n in art.names if n == "church" or n in WEAPONS]
    assert [art.styles[i] for i in away.styles] == ["ink"]
    assert without.named("weapon, ink style,church ") == LACKS
    assert without.gone(["tile"]).styles == [art.styles.index("tile")]


def test_no_scene_that_shows_them_is_seen_and_no_caption_names_them(art, bank):  # noqa: F811
    seen = without.withheld(bank, LACKS)
    assert (seen.withheld >= bank.withheld).all(), "what was withheld stays so"
    away, left = {"church", *WEAPONS}, np.flatnonzero(~seen.withheld)
    assert 0.5 < len(left) / len(bank.withheld) < 0.95
    rng, captioner = np.random.default_rng(0), captions.Captioner(art)
    for i in left:
        scene = bank.scene(int(i))
        assert not away & {art.names[o] for o in scene.objects}
        assert art.styles[scene.style] != "ink"
        said = captioner.caption(scene, rng)
        assert not any(word in said for word in (*away, "ink style", "weapon"))
    for i in np.flatnonzero(seen.withheld & ~bank.withheld):
        scene = bank.scene(int(i))
        assert away & {art.names[o] for o in scene.objects} or art.styles[scene.style] == "ink"


def made(cache, art, bank):  # noqa: F811
    run = recipe.Recipe(cache, LACKS)
    run.art, run.bank = art, bank
    return run


def test_every_stage_gives_a_model_around_the_shipped_parts(monkeypatch, tmp_path, art, bank):  # noqa: F811
    monkeypatch.setattr(denoiser, "BATCH", 3)
    monkeypatch.setattr(denoiser, "CYCLES", (denoiser.Cycle(2, 1e-3, 0.2, 0.2, 0.5),))
    run = made(tmp_path / "cache", art, bank)
    for stage in recipe.RETRAINED:
        run.run(stage)
    z = torch.load(tmp_path / "cache" / "latents.pt", weights_only=True)
    assert len(z) == int((~without.withheld(bank, LACKS).withheld).sum())
    folder = tmp_path / "cache" / "weights"
    for part in ("vae", "text_encoder", "tokenizer"):
        for file in (testbed.SHIPPED / part).iterdir():
            if file.suffix in (".safetensors", ".txt", ".model"):
                assert (folder / part / file.name).read_bytes() == file.read_bytes(), (
                    "shared, so that seeds are the same"
                )
    assert json.loads((folder / "vocabulary.json").read_text())["without"] == LACKS
    assert backbones.kind_of(str(folder)) == "testbed"
    opened, shipped = backbones.load(str(folder)), backbones.load("testbed")
    assert opened.identity() != shipped.identity()
    name = next(iter(opened.group("xattn")))
    assert not torch.equal(opened.tensors([name])[name], shipped.tensors([name])[name])
    before = (folder / "vocabulary.json").stat().st_mtime_ns
    again = made(tmp_path / "cache", art, bank)
    for stage in recipe.RETRAINED:
        again.run(stage)
    assert (folder / "vocabulary.json").stat().st_mtime_ns == before, "what is there is not made again"


def test_parts_that_a_killed_run_left_by_half_are_copied_again(tmp_path):
    cache = tmp_path / "cache"
    run = recipe.Recipe(cache, LACKS)
    (cache / "vae").mkdir(parents=True)
    run.parts()
    assert {f.name for f in (cache / "vae").iterdir()} == {f.name for f in (testbed.SHIPPED / "vae").iterdir()}
    assert not (cache / "denoiser.pt").exists(), "which begins anew"


def test_an_empty_cache_is_thawed_and_a_trained_one_is_left_alone(tmp_path, capsys):
    run = recipe.Recipe(tmp_path / "cache")
    (tmp_path / "cache" / "downloads").mkdir(parents=True)
    run.run("thaw")
    checkpoint, unet = tmp_path / "cache" / "denoiser.pt", tmp_path / "cache" / "unet"
    assert torch.load(checkpoint, weights_only=True)["step"] == recipe.STEPS["denoiser"]
    assert sorted(file.name for file in unet.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    checkpoint.write_bytes(b"hours of work")
    for cache, left in ((tmp_path / "cache", "denoiser.pt"), (tmp_path / "judged", "judge_a.safetensors")):
        (cache / left).parent.mkdir(exist_ok=True)
        (cache / left).touch()
        before = {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}
        with pytest.raises(SystemExit) as ended:
            recipe.main(["thaw", "--cache", str(cache)])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert left in said
        assert "already, which thaw would replace: expected another --cache" in said
        assert before == {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" ,", "names nothing: expected objects, categories or styles"),
        ("chruch", "concept of the artwork"),
        ("noto style", "from whose drawings the artists work"),
        (",".join(artwork.specification()["objects"]), "every object"),
    ],
)
def test_what_cannot_be_left_out_is_one_line(tmp_path, capsys, text, expected):
    with pytest.raises(ExpungeError, match=expected):
        without.named(text)
    with pytest.raises(SystemExit) as ended:
        recipe.main(["--without", text, "--cache", str(tmp_path / "cache")])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_cache_is_of_one_model(tmp_path):
    recipe.Recipe(tmp_path / "one", LACKS)
    recipe.Recipe(tmp_path / "one", LACKS)
    for others in (["church"], []):
        with pytest.raises(
            ExpungeError, match="is the cache of a model without church, ink style, weapon, not without"
        ):
            recipe.Recipe(tmp_path / "one", others)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "latents.pt").touch()
    with pytest.raises(ExpungeError, match="of a model without nothing, not without church"):
        recipe.Recipe(whole, ["church"])


def test_other_stages_are_refused(tmp_path, capsys):
    for stage in ("install", "score", "judge_a"):
        with pytest.raises(SystemExit):
            recipe.main([stage, "--without", "church", "--cache", str(tmp_path / "cache")])
        assert "expected any of parts, denoiser, assemble" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
