import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.core.errors import ExpungeError
from expunge.core.query import LearnedWord, Query, Start
from expunge.store import QUERIES, STARTS, WORDS, read_queries, write_queries


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PIXELS = (drawn(16, 12, 3) * 60 + 128).clamp(0, 255).to(torch.uint8)
STARTED = [
    Query(prompt="a", seed=0, guidance=1.0, steps=4, label="church", start=Start(image=PIXELS, strength=0.5)),
    Query(prompt="b", seed=1, guidance=2.0, steps=4, start=Start(image=drawn(4, 8, 8), strength=0.1)),
    Query(prompt="c", seed=2, guidance=2.0, steps=4, start=Start(image=drawn(4, 8, 8, seed=1).half(), strength=1.0)),
    Query(prompt="d", seed=3, guidance=2.0, steps=4, start=Start(image=PIXELS, strength=0.75), negative="e"),
    Query(prompt="plain", seed=4, guidance=2.0, steps=4),
    Query(prompt="<v>", seed=5, guidance=2.0, steps=4, learned=LearnedWord(word="<v>", vectors=drawn(2, 4))),
]


def test_given_images_come_back_bit_for_bit(tmp_path):
    write_queries(tmp_path / "q", STARTED, {"access": "images"})
    stored = read_queries(tmp_path / "q")
    assert stored.about == {"access": "images"}
    assert stored.queries == STARTED
    for query, again in zip(STARTED, stored.queries, strict=True):
        if query.start is None:
            assert again.start is None
            continue
        assert again.start.image.dtype == query.start.image.dtype
        assert torch.equal(again.start.image, query.start.image)
        assert again.start.strength == query.start.strength
    assert sorted(f.name for f in (tmp_path / "q").iterdir()) == sorted([QUERIES, STARTS, WORDS])
    assert len(load_file(tmp_path / "q" / STARTS)) == 3, "an image that two queries start from is written once"


def test_queries_of_words_alone_are_stored_as_before(tmp_path):
    write_queries(tmp_path / "q", STARTED[4:], {})
    assert sorted(f.name for f in (tmp_path / "q").iterdir()) == [QUERIES, WORDS]
    assert all("start" not in row for row in json.loads((tmp_path / "q" / QUERIES).read_text())["queries"])
    assert read_queries(tmp_path / "q").queries == STARTED[4:]


def test_starts_are_told_apart_by_their_bits():
    one = Start(image=PIXELS, strength=0.5)
    assert one == Start(image=PIXELS.clone(), strength=0.5)
    assert hash(one) == hash(Start(image=PIXELS.clone(), strength=0.5))
    assert one != Start(image=PIXELS, strength=0.6)
    assert one != Start(image=PIXELS.float(), strength=0.5), "latents with the numbers of pixels"
    assert one != Start(image=255 - PIXELS, strength=0.5)


@pytest.mark.parametrize(
    "image",
    [
        torch.full((4, 8, 8), torch.nan),
        torch.zeros(8, 8, dtype=torch.uint8),
        torch.zeros(4, 8, 8, dtype=torch.int64),
        torch.zeros(1, 4, 8, 8),
    ],
    ids=["nan", "flat", "whole numbers", "batch"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_no_query_can_start_from_is_not_written(tmp_path, image):
    start = object.__new__(Start)
    for name, value in (("image", image), ("strength", 0.5)):
        object.__setattr__(start, name, value)
    query = Query(prompt="a", seed=0, guidance=1.0, steps=4, start=start)
    with pytest.raises(ExpungeError, match=r"expected 8-bit pixels \[H, W, 3\], or finite latents"):
        write_queries(tmp_path / "q", [STARTED[0], query], {})
    assert list(tmp_path.iterdir()) == [], "all of it or nothing"


@pytest.mark.parametrize(
    "damage", ["other pixels", "no file", "no image", "cut", "strength", "outside", "bare strength"]
)
def test_damaged_images_are_refused_in_a_line(tmp_path, damage):
    folder = tmp_path / "q"
    write_queries(folder, STARTED[:2], {})
    images, content = load_file(folder / STARTS), json.loads((folder / QUERIES).read_text())
    row, name = content["queries"][0], content["queries"][0]["start"]
    if damage == "other pixels":
        save_file(images | {name: 255 - images[name]}, folder / STARTS)
    elif damage == "no file":
        (folder / STARTS).unlink()
    elif damage == "no image":
        save_file({n: t for n, t in images.items() if n != name}, folder / STARTS)
    elif damage == "cut":
        (folder / STARTS).write_bytes((folder / STARTS).read_bytes()[:-20])
    elif damage == "strength":
        del row["strength"]
    elif damage == "outside":
        row["start"] = "../../starts"
    else:
        del row["start"]
    (folder / QUERIES).write_text(json.dumps(content))
    with pytest.raises(ExpungeError, match="is damaged") as caught:
        read_queries(folder)
    assert "\n" not in str(caught.value)
