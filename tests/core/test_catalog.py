import subprocess
import sys

import pytest

from expunge.core.catalog import KINDS, Catalog, read_entry
from expunge.core.errors import ExpungeError


def test_every_module_of_a_folder_is_listed_without_importing_it():
    entries = Catalog("erasers").entries()
    assert list(entries) == sorted(entries)
    assert entries["uce"].class_name == "UCE"
    assert entries["uce"].arxiv == "2308.14761"
    assert (entries["kpop"].class_name, entries["kpop"].arxiv) == ("KPOP", "2403.12326"), "a package"
    assert entries["negative-prompt"].class_name == "NegativePrompt"
    assert all(e.summary and not e.problem for kind in KINDS for e in Catalog(kind).entries().values())


def test_unknown_names_get_the_nearest_one():
    with pytest.raises(ExpungeError, match="unknown eraser 'uec': did you mean 'uce'"):
        Catalog("erasers").load("uec")


def announce(path, point):
    """A distribution that announces an eraser, as an installer writes it."""
    info = path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[expunge.erasers]\n{point}\n")


@pytest.mark.parametrize(("text", "words"), [("class Broken(:\n", "invalid syntax"), ("x = 1\n", "defines no class")])
def test_a_broken_plug_in_is_listed_with_its_problem(tmp_path, monkeypatch, text, words):
    (tmp_path / "third_party_eraser.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    announce(tmp_path, "third = third_party_eraser:Broken")
    entries = Catalog("erasers").entries()
    assert words in entries["third"].problem
    assert not entries["uce"].problem
    with pytest.raises(ExpungeError, match="cannot be used"):
        Catalog("erasers").load("third")


def test_a_paper_in_keywords_or_in_part_is_read(tmp_path, monkeypatch):
    (tmp_path / "odd_eraser.py").write_text(
        'class Odd:\n    """Odd."""\n    paper: int = Paper(title="T", arxiv="1.2")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = read_entry("odd", "odd_eraser", "Odd")
    assert (entry.arxiv, entry.problem) == ("1.2", "")


def test_a_third_party_s_plug_in_loads(tmp_path, monkeypatch):
    (tmp_path / "good_eraser.py").write_text('class Good:\n    """Does good."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert read_entry("good", "good_eraser", "Good").summary == "Does good."
    announce(tmp_path, "good = good_eraser:Good")
    assert Catalog("erasers").load("good").__name__ == "Good"


def test_what_a_class_writes_out_is_read_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "plain_metric.py").write_text(
        "raise RuntimeError('imported')\n"
        "class Plain:\n"
        '    """Counts."""\n'
        '    meanings: ClassVar[Mapping[str, str]] = {"n": "How " "many."}\n'
        '    headline = {"any": ("n@*", 3.5)}\n'
        "    margins: ClassVar = dict(n=3)\n"
        '    judge: str = "testbed"\n'
        "    paper: ClassVar[Paper]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    literals = read_entry("plain", "plain_metric", "Plain").literals
    assert literals["meanings"] == {"n": "How many."}
    assert literals["headline"] == {"any": ("n@*", 3.5)}
    assert not {"margins", "judge"} & literals.keys(), "what is computed, or a setting"


def test_metrics_say_what_their_numbers_mean_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from expunge.core.catalog import Catalog\n"
        "assert Catalog('metrics').literals('margins') == {'esr-psr': {'esr': 3.0, 'psr': 5.0}}\n"
        "meanings = Catalog('metrics').literals('meanings')\n"
        "assert meanings['dsr']['dsr'].startswith('Images of an attack')\n"
        "told = ['clip-score', 'confidence', 'dsr', 'esr-psr', 'icr', 'ner', 'prior-distance', 'reference-distance']\n"
        "assert sorted(meanings) == told\n"
        "assert set(Catalog('metrics').literals('headline')) == set(Catalog('metrics').entries())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
