"""Figures: what stands in the SVG is what stands in the JSON."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.core.figure import Figure
from expunge.report import figures

AXES = {"x": {"label": "update", "log": True}, "y": {"label": "cosine"}}
LINES = {
    "format": 1,
    "title": "Cosine of $p$ & <b>text</b>",
    "note": "",
    "kind": "lines",
    **AXES,
    "series": [
        {"name": "kpop", "x": [1, 10, 100], "y": [0.1, 0.2, 0.4], "low": [0, 0.1, 0.3], "high": [0.2, 0.3, 0.5]},
        {"name": "esd", "x": [1, 10, 100], "y": [0.3, None, 0.1]},
    ],
}
BARS = {
    "format": 1,
    "title": "What it became",
    "kind": "bars",
    "series": [{"name": "kpop", "x": ["dog", "fish"], "y": [10, 20]}, {"name": "esd", "x": ["fish"], "y": [30]}],
}
SCATTER = {
    "format": 1,
    "title": "Damage",
    "kind": "scatter",
    "series": [{"name": "kpop", "x": [0.5, 0.6], "y": [-3, -4], "labels": ["dog", "cat"]}],
}
RED, BLUE = [255, 0, 0], [0, 0, 255]
HEATMAPS = {
    "format": 1,
    "title": "Where",
    "kind": "heatmaps",
    "panels": [
        {"title": "church", "values": [[0, 1], [2, 3]], "image": [[RED, BLUE]] * 2},
        {"title": "dog", "values": [[1, 1]]},
    ],
}


def svg(content):
    """A figure's JSON, drawn."""
    return figures.svg(Figure.from_json(content))


def words(text):
    return [
        " ".join("".join(found.itertext()).split())
        for found in ET.fromstring(text).iter()
        if found.tag.endswith("text")
    ]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (LINES, {"Cosine of $p$ & <b>text</b>", "update", "cosine", "kpop", "esd", "1", "10", "100"}),
        (BARS, {"What it became", "dog", "fish", "kpop", "esd"}),
        (SCATTER, {"Damage", "dog", "cat"}),
        (HEATMAPS, {"Where", "church", "dog"}),
    ],
)
def test_all_words_are_there_as_text_and_the_drawing_is_always_the_same(figure, expected):
    drawn = svg(figure)
    assert expected <= set(words(drawn))
    assert drawn == svg(json.loads(json.dumps(figure)))
    assert "<b>" not in drawn
    assert "currentColor" in drawn or "currentcolor" in drawn


NAMES = (
    "by beta (1000, 500)",
    "by random texts kept (7, 1.5, 0)",
    "without, by lambda (1000, 30)",
    "KPOP",
    "ESD",
    "UCE",
)


@pytest.mark.parametrize("names", [NAMES, NAMES[:2], ["KPOP", "ESD", "UCE", "CA"], ["x" * 60, "y" * 70]])
def test_a_legend_stays_within_its_figure(names):
    drawn = ET.fromstring(svg({**LINES, "series": [{"name": name, "x": [1, 2], "y": [0, 1]} for name in names]}))
    width = float(drawn.get("viewBox").split()[2])
    at = {t.text: t.get("x") for t in drawn.iter("{http://www.w3.org/2000/svg}text")}
    starts = {name: float(at[name]) for name in names}
    assert all(start > 0 and start + 4.3 * len(name) < width for name, start in starts.items())
    assert len({round(start) for start in starts.values()}) > 1 or max(map(len, names)) > 50, "and not in one column"


def test_two_figures_on_a_page_share_no_id():
    ids = [re.findall(r' id="([^"]*)"', svg({**figure, "title": "x"})) for figure in (LINES, BARS, SCATTER, HEATMAPS)]
    flat = [name for found in ids for name in found]
    assert len(flat) == len(set(flat)) > 0


def test_bars_are_as_high_as_their_values():
    drawn = ET.fromstring(svg(BARS))
    heights = []
    for path in drawn.iter("{http://www.w3.org/2000/svg}path"):
        if "#3a86c8" in path.get("style", "") or "#e07b39" in path.get("style", ""):
            numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
            heights.append(max(numbers[1::2]) - min(numbers[1::2]))
    heights = [h for h in heights if h > 12]  # the legend's patches are lower
    assert [h / heights[0] for h in heights] == pytest.approx([1, 2, 3], abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2: expected 1"),
        ({"kind": "line"}, "did you mean 'lines'"),
        ({"series": []}, "no list of series"),
        ({"series": [{"name": "a", "x": [1, 2], "y": [1]}]}, "2 x and 1 y"),
        ({"series": [{"name": "a", "x": [1], "y": ["1"]}]}, "'1' among its y"),
        ({"series": [{"name": "a", "x": [None], "y": [1]}]}, "None among its x"),
        ({"series": [{"name": "a", "x": [1], "y": [1], "low": [1]}]}, "both or neither"),
        ({"series": [{"name": "a", "x": [1], "y": [1], "labels": 3}]}, "labels '3': expected a list of words"),
        ({"x": "update"}, "x axis 'update'"),
        ({"x": {"log": True}, "series": [{"name": "a", "x": [0, 1], "y": [1, 2]}]}, " 0 on the logarithmic x axis"),
        ({"y": {"log": True}, "series": [{"name": "a", "x": [1, 2], "y": [1, -2]}]}, "-2 on the logarithmic y axis"),
        ({"series": [{"name": "a", "x": [1], "y": [10**400]}]}, "among its y: expected numbers up to 1e[+]100"),
        ({"kind": "heatmaps", "panels": [{"title": "a", "values": [[1, 2], [3]]}]}, "expected a rectangle"),
        ({"kind": "heatmaps", "panels": [{"title": "a", "values": [[1]], "image": [[[0, 0, 256]]]}]}, "from 0 to 255"),
        ({"kind": "heatmaps", "panels": [{"title": "a", "values": [[1]], "image": 3}]}, "from 0 to 255"),
    ],
)
def test_a_damaged_figure_is_one_line(change, message):
    with pytest.raises(ExpungeError, match=message) as error:
        svg({**LINES, **change})
    assert "\n" not in str(error.value)


def test_the_command_writes_a_file(tmp_path, capsys):
    (tmp_path / "figure.json").write_text(json.dumps(SCATTER))
    command = ["figure", str(tmp_path / "figure.json"), "--out", str(tmp_path / "figure.svg")]
    assert main(command) == 0
    assert "Damage" in words((tmp_path / "figure.svg").read_text())
    assert main(command) == 2
    (tmp_path / "figure.json").write_text("[")
    assert main([*command, "--overwrite"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert "Damage" in (tmp_path / "figure.svg").read_text(), "the earlier file is left"
