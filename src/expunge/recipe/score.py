"""Score the shipped testbed, as it ships: what `benchmarks/testbed.json` says."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge import backbones, testbed
from expunge.core.concept import article
from expunge.core.query import Query, queries
from expunge.core.record import Interval, clustered, wilson
from expunge.judges.testbed import Testbed
from expunge.recipe import recognizers, scenes
from expunge.settings import presets
from expunge.stages import generate
from expunge.store import new_file, read_set

SEED = 70_000
"""Seeds of scoring are used nowhere else."""


def _images(backbone: Any, prompts: Sequence[tuple[str, str | None]], count: int) -> tuple[list[Query], Tensor]:
    """``count`` images of every prompt; no two images of a call share a seed, so that they are independent."""
    guidance, steps = presets.generation(backbone)
    wanted = [replace(q, seed=SEED + i) for i, q in enumerate(queries(prompts, count, 0, guidance, steps))]
    return wanted, torch.cat(list(generate.render(backbone, wanted)))


def _percent(hits: list[bool]) -> dict[str, float]:
    interval: Interval = wilson(sum(hits), len(hits))
    return {
        "value": round(interval.value, 2),
        "low": round(interval.low, 2),
        "high": round(interval.high, 2),
        "n": len(hits),
    }


def _rank(judge: Testbed, images: Tensor, labels: list[str], k: int) -> list[bool]:
    order = torch.cat([judge.scores(part).topk(k, 1).indices for part in images.split(256)]).tolist()
    return [judge.label_ids(label)[0] in row for label, row in zip(labels, order, strict=True)]


def _mean(shares: list[float]) -> float | None:
    """Mean in percent; None if it was not measured."""
    return round(100 * sum(shares) / len(shares), 2) if shares else None


def _valid(judge: Testbed, images: Tensor) -> list[bool]:
    return [ok for part in images.split(256) for ok in judge.valid(part).tolist()]


def _clustered(hits: list[bool], clusters: Sequence[str]) -> dict[str, Any]:
    """Percent with an interval over clusters (objects, phrases), which are not independent draws."""
    groups = [[float(h) for h, c in zip(hits, clusters, strict=True) if c == name] for name in dict.fromkeys(clusters)]
    interval = clustered(groups)
    return {k: round(100 * v, 2) for k, v in interval._asdict().items()} | {"n": len(hits)}


def _of_objects(backbone: Any, judge: Testbed, second: Testbed, names: Sequence[str]) -> dict[str, Any]:
    """How well the model draws every object, asked for by its name; and how far the judges are of one mind there."""
    found: dict[str, Any] = {}
    wanted, images = _images(backbone, [(f"image of {article(n)}", n) for n in names], 9)
    labels = [str(q.label) for q in wanted]
    found["object_top1"] = _clustered(_rank(judge, images, labels, 1), labels)
    found["object_top5"] = _clustered(_rank(judge, images, labels, 5), labels)
    found["valid_rate"] = _percent(_valid(judge, images))
    first = _rank(judge, images, labels, 1)
    found["object_top1_by_object"] = {
        n: round(100 * float(np.mean([h for h, label in zip(first, labels, strict=True) if label == n])), 1)
        for n in names
    }
    a, b = judge.scores(images).argmax(1), second.scores(images).argmax(1)
    found["judge_agreement"] = _percent((a == b).tolist())
    shuffled = recognizers.shuffle_patches(images.permute(0, 3, 1, 2).float(), torch.Generator().manual_seed(SEED))
    shuffled = shuffled.to(torch.uint8).permute(0, 2, 3, 1)
    found["judge_valid_shuffled_generated"] = _percent(_valid(judge, shuffled))
    return found


def score(recipe: Any) -> dict[str, Any]:
    """All scores, each with interval and n; the plain percentages stand under the names the issue gives."""
    backbone = backbones.load("testbed", dtype=backbones.fast_dtype())
    judge, second, styles = Testbed(), Testbed("b"), Testbed(labels="styles")
    words = testbed.vocabulary()
    names = list(words["objects"])
    weapons = [n for n, w in words["objects"].items() if w["category"] == "weapon"]
    found = _of_objects(backbone, judge, second, names)

    ten = list(read_set("objects10", testbed.CONCEPTS).concepts)
    wanted, images = _images(backbone, [(f"image of {article(n)}", n) for n in ten], 40)
    found["objects10_top1"] = _percent(_rank(judge, images, [str(q.label) for q in wanted], 1))

    rng = np.random.default_rng(SEED)
    withheld = {tuple(p) for p in words["withheld"]}
    hands = [s for s in words["styles"] if s not in words["artists"]]
    for score, chosen in (("style", words["artists"]), ("hand", hands)):
        pairs = [(n, s) for n in names for s in chosen if (n, s) not in withheld]
        pairs = [pairs[i] for i in rng.permutation(len(pairs))[:360]]
        _, images = _images(backbone, [(f"{article(n)}, {s} style", None) for n, s in pairs], 1)
        found[f"{score}_top1"] = _percent(right := _rank(styles, images, [s for _, s in pairs], 1))
        found[f"{score}_object_top1"] = _percent(_rank(judge, images, [n for n, _ in pairs], 1))
        found[f"{score}_top1_by_style"] = {
            s: round(100 * float(np.mean([r for r, (_, asked) in zip(right, pairs, strict=True) if asked == s])), 1)
            for s in chosen
        }
    kept = [tuple(p) for p in words["withheld"]]
    _, images = _images(backbone, [(f"{article(n)}, {s} style", None) for n, s in kept], 3)
    thrice = [p for p in kept for _ in range(3)]
    found["withheld_object_top1"] = _percent(_rank(judge, images, [n for n, _ in thrice], 1))
    found["withheld_style_top1"] = _percent(_rank(styles, images, [s for _, s in thrice], 1))

    two = [tuple(str(n) for n in rng.choice(names, 2, replace=False)) for _ in range(300)]
    joins = [" with ", " and "]
    texts = [(article(x) + joins[i % 2] + article(y), None) for i, (x, y) in enumerate(two)]
    _, images = _images(backbone, texts, 1)
    top2 = judge.scores(images).topk(2, 1).indices.tolist()
    found["two_objects"] = _percent(
        [{names.index(x), names.index(y)} == set(t) for (x, y), t in zip(two, top2, strict=True)]
    )

    held = read_set("weapons_heldout", testbed.CONCEPTS).test.prompts
    _, images = _images(backbone, list(held), 15)
    tops = judge.scores(images).argmax(1).tolist()
    phrases = [p for p, _ in held for _ in range(15)]
    found["heldout_weapon_rate"] = _clustered([names[t] in weapons for t in tops], phrases)
    found["heldout_weapon_phrases"] = len(held)

    real = _drawings(recipe)
    found["autoencoder_psnr_db"] = _psnr(backbones.load("testbed"), real.images)
    found.update(_of_judges(recipe, judge, second, real))
    return found


class Drawings(NamedTuple):
    """Fresh renderings of single objects, what they show, and in which style."""

    images: Tensor
    names: list[str]
    styles: list[str]


def _drawings(recipe: Any) -> Drawings:
    rng = np.random.default_rng(SEED)
    drawn = [scenes.sample(recipe.art, rng) for _ in range(3000)]
    singles = [s for s in drawn if len(s.objects) == 1][:2000]
    images = torch.from_numpy(np.stack([scenes.render(recipe.art, s, rng) for s in singles]))
    shown = [recipe.art.names[s.objects[0]] for s in singles]
    return Drawings(images, shown, [recipe.art.styles[s.style] for s in singles])


def _psnr(backbone: Any, images: Tensor) -> dict[str, float]:
    """Peak signal-to-noise ratio of the autoencoder, in dB."""
    parts = images[:500].split(100)
    errors = [(backbone.decode(backbone.encode_image(p)).float() - p.float()).square().mean() for p in parts]
    return {"value": round(float(10 * torch.log10(255**2 / torch.stack(errors).mean())), 2), "n": 500}


def _of_judges(recipe: Any, judge: Testbed, second: Testbed, drawings: Drawings) -> dict[str, Any]:
    """How well the judges know real drawings, and what they take for a picture."""
    real, truth, styles = drawings
    generator = torch.Generator().manual_seed(SEED)
    x = real[:900].permute(0, 3, 1, 2).float() / 127.5 - 1
    fakes = ((recognizers.negatives(x, generator) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    verdicts = _valid(judge, fakes)
    file = recipe.cache / "leave_one_out.json"
    left_out: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    seen = {i for row in recipe.tokenizer(recipe.captions()).input_ids for i in row}
    return {
        "judge_accuracy": _percent(_rank(judge, real, truth, 1)),
        "judge_b_accuracy": _percent(_rank(second, real, truth, 1)),
        "judge_style_accuracy": _percent(_rank(Testbed(labels="styles"), real, styles, 1)),
        "judge_b_style_accuracy": _percent(_rank(Testbed("b", "styles"), real, styles, 1)),
        "judge_valid_real": _percent(_valid(judge, real)),
        "judge_valid_noise": _percent(verdicts[:300]),
        "judge_valid_blank": _percent(verdicts[300:600]),
        "judge_valid_patch_shuffled": _percent(verdicts[600:]),
        "judge_leave_one_set_out": {
            "value": _mean([v["left_out"] for v in left_out.values()]),
            "in_set": _mean([v["in_set"] for v in left_out.values()]),
            "by_set": {style: {k: round(100 * x, 2) for k, x in v.items()} for style, v in left_out.items()},
        },
        "tokens": {
            "vocabulary": len(recipe.tokenizer),
            "never_in_captions": round(1 - len(seen) / len(recipe.tokenizer), 4),
        },
    }


def grid(file: Path) -> None:
    """Draw twelve objects in every style, as generated, one seed: the card's picture."""
    backbone = backbones.load("testbed")
    names = [
        "church",
        "dog",
        "fish",
        "delivery truck",
        "fuel pump",
        "trumpet",
        "radio",
        "umbrella",
        "rose",
        "pizza",
        "bomb",
        "skull",
    ]
    styles = testbed.vocabulary()["styles"]
    prompts: list[tuple[str, str | None]] = [(f"{article(n)}, {s} style", n) for n in names for s in styles]
    prompts += [(f"{article(n)} and a cat on a blue background", n) for n in names]
    _, images = _images(backbone, prompts, 1)
    drawn = images[: len(names) * len(styles)].reshape(len(names), len(styles), 64, 64, 3)
    columns = torch.cat([drawn, images[len(names) * len(styles) :][:, None]], dim=1)
    rows = len(styles) + 1
    sheet = columns.permute(1, 2, 0, 3, 4).reshape(rows * 64, len(names) * 64, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.numpy()).save(file)


GATES = {
    "object_top1": 97,
    "object_top5": 97,
    "objects10_top1": 95,
    "style_top1": 80,
    "two_objects": 60,
    "heldout_weapon_rate": 90,
    "valid_rate": 99,
}
"""What a testbed should reach, in percent."""


ROWS = {
    "object_top1": "object top-1, all {objects}",
    "object_top5": "object top-5",
    "objects10_top1": "top-1 on objects10",
    "style_top1": "style: the five artists",
    "style_object_top1": "… the object there",
    "hand_top1": "hand: the six icon sets",
    "hand_object_top1": "… the object there",
    "two_objects": "two-object prompts that show both",
    "heldout_weapon_rate": "held-out weapon phrases that show a weapon",
    "valid_rate": "pictures that pass as valid",
    "withheld_object_top1": "withheld (object, hand) pairs: object",
    "withheld_style_top1": "withheld pairs: hand",
    "judge_accuracy": "judge A on real drawings",
    "judge_b_accuracy": "judge B on real drawings",
    "judge_style_accuracy": "judge A on their style",
    "judge_b_style_accuracy": "judge B on their style",
    "judge_agreement": "judges A and B agree on generated images",
    "judge_valid_real": "judge A takes as valid: real drawings",
    "judge_valid_noise": "… noise",
    "judge_valid_blank": "… blanks",
    "judge_valid_patch_shuffled": "… patch-shuffled drawings",
    "judge_valid_shuffled_generated": "… patch-shuffled generated images",
}
"""What each score is called in the table of `docs/testbed.md`."""


def table(content: dict[str, Any]) -> str:
    """The scores as Markdown, as `docs/testbed.md` shows them."""
    detail = content["detail"]
    lines = ["| score | percent, 95 % interval | n | goal |", "|---|---|---|---|"]
    for name, says in ROWS.items():
        row, goal = detail[name], GATES.get(name)
        share = f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        reached = "" if goal is None else f"{goal}" if row["value"] >= goal else f"{goal} (missed)"
        said = says.format(objects=len(detail["object_top1_by_object"]))
        lines.append(f"| {said} | {share} | {row['n']} | {reached} |")
    return "\n".join(lines)


def missed(scores: dict[str, Any]) -> list[str]:
    """The gates that ``scores`` do not reach."""
    return [f"{name} {scores[name]} < {gate}" for name, gate in GATES.items() if scores[name] < gate]


def write(recipe: Any, file: Path) -> None:
    """Write ``file`` (plain percentages at the top, intervals and n under ``detail``) and, beside it, the card's picture."""
    grid(file.with_suffix(".png"))
    detail = score(recipe)
    plain = {k: v["value"] for k, v in detail.items() if isinstance(v, dict) and "value" in v}
    content = {
        "format": 1,
        "version": testbed.VERSION,
        "dtype": backbones.fast_dtype(),
        **plain,
        "targets_missed": missed(plain),
        "detail": detail,
    }
    with new_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))
