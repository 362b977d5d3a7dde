"""Pages that repeat what the code knows say the same; lines are short, and links lead somewhere."""

import re
import shlex
import tomllib
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest

from expunge.cli import COMMANDS
from expunge.cli.families import table
from expunge.cli.parsing import parsed
from expunge.cli.plug_ins import settings_beside
from expunge.core.catalog import Catalog
from expunge.plans.schema import Fresh, Grid, Method, MoreImages, Named, Others, Plan, Published
from expunge.results.claims import Claim
from expunge.results.curves import Curve, Line
from expunge.results.histograms import Histogram
from expunge.settings.described import described
from expunge.stages.pairs import Wish
from expunge.stages.stopping import Stop

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks" / "README.md"
FINDINGS = ROOT / "findings" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", BENCHMARKS, FINDINGS, *sorted((ROOT / "docs").rglob("*.md"))]
PLAN = {
    "## The plan": Plan,
    "## Grid": Grid,
    "## Methods": Method,
    "### Stop": Stop,
    "## Fresh": Fresh,
    "## Others": Others,
    "## Also": MoreImages,
    "## Paper": Published,
    "## Pairs": Wish,
    "## Claims": Claim,
    "## Figures": Curve,
    "### Lines": Line,
    "## Histograms": Histogram,
}
"""The sections of the plans' reference, and what each is of."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> list[tuple[int, str]]:
    """The numbered lines of a page that stand in no block of code."""
    lines, code = [], False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            lines.append((number, line))
    return lines


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    plain = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", line.lstrip("# ")) for _, line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_short(page):
    """Under 160 characters; but for tables, code, and where links lead."""
    lines = [(n, re.sub(r"\]\([^)]*\)", "]", line)) for n, line in prose(page) if not line.startswith("|")]
    assert [n for n, line in lines if len(line) >= 160] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_pages_and_headings(page):
    text = re.sub(r"`[^`]*`", "", "\n".join(line for _, line in prose(page)))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def commands(page: Path) -> list[str]:
    """What a page's blocks of code call `expunge` with, that has no placeholder in it."""
    text, blocks = page.read_text(), []
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL):
        blocks += block.replace("\\\n", " ").splitlines()
    found = [re.match(r"\s*(?:\$ |[A-Z_]+=\S+ )*expunge (.*)", line) for line in blocks]
    return [one[1] for one in found if one and "…" not in one[1] and "--help" not in one[1]]


COMMANDS_IN_PAGES = [(name(page), line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS_IN_PAGES, ids=[f"{page}: {line[:60]}" for page, line in COMMANDS_IN_PAGES]
)
def test_commands_in_pages_are_read(page, line):
    """Each option is one of the command's, or of its plug-in's, with a value of its kind; nothing is run."""
    command, *words = shlex.split(line, comments=True)
    home, plug_ins = COMMANDS[command].home, COMMANDS[command].plug_ins
    module, _, function = home.partition(":")
    options = described(f"expunge.cli.{module}", function.strip("_").capitalize())
    settings = settings_beside(options, plug_ins, words.pop(0)) if plug_ins else []
    parsed(options, settings, words, f"expunge {command}")


def test_pages_have_commands():
    assert len(COMMANDS_IN_PAGES) > 100


def test_the_page_of_findings_names_each_script():
    scripts = {file.name for file in FINDINGS.parent.glob("*.sh")} - {"run.sh"}
    assert set(re.findall(r"^\| \[\w+\]\((\w+\.sh)\)", FINDINGS.read_text(), re.MULTILINE)) == scripts


def _default(field: Field[Any]) -> str:
    """How the reference writes a default."""
    value = field.default
    if field.default_factory is not MISSING:
        value = field.default_factory()
    if value is MISSING:
        return "required"
    if value is None or value in ((), {}, ""):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(_toml, value))}]`"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    value = value.name if isinstance(value, Named) else value
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize(("heading", "of"), PLAN.items(), ids=PLAN)
def test_the_reference_of_plans_has_every_entry_with_its_default(heading, of):
    page = (ROOT / "docs" / "plans-reference.md").read_text()
    section = re.split(r"\n##+ ", page.split(f"\n{heading}\n")[1])[0]
    rows = [[cell.strip() for cell in line.split(" | ")] for line in section.splitlines() if line.startswith("| `")]
    shown = {row[0].strip("| `"): row[2] for row in rows}
    assert {"phrases": "none", **shown} == {
        "phrases": "none",
        **{f.name: _default(f) for f in fields(of) if f.compare},
    }


def test_the_table_of_families_is_what_the_command_prints():
    page = (ROOT / "docs" / "models.md").read_text()
    shown = page.split("<!-- families -->")[1].split("<!-- /families -->")[0].strip()
    assert shown == table()


def test_every_eraser_has_a_row_in_the_readme_and_a_source():
    readme, sources = (ROOT / "README.md").read_text(), (ROOT / "docs" / "sources.md").read_text()
    for name, entry in Catalog("erasers").entries().items():
        assert f"| `{name}` |" in readme, name
        assert entry.arxiv in sources, name


def test_every_metric_and_judge_has_a_row():
    page = (ROOT / "docs" / "metrics.md").read_text()
    for name in [*Catalog("metrics").entries(), *Catalog("judges").entries()]:
        assert f"`{name}`" in page, name


def test_every_analysis_has_a_section():
    page = (ROOT / "docs" / "analyses.md").read_text()
    for name in Catalog("analyses").entries():
        assert f"\n## {name}: " in page, name


def test_the_picture_of_rooms_is_what_import_linter_checks():
    """The rooms of the diagram, line by line, are the layers of the contract, from the top."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn = [line for line in page.split("```text\n")[1].split("```")[0].splitlines() if line.strip(" |")]
    rooms = [{room for room in re.split(r"[, ]+", line[:52]) if room} for line in drawn]
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = [set(re.findall(r"expunge\.(\w+)", layer)) for layer in contract["layers"]]
    assert rooms == layers
    assert "ignore_imports" not in contract


def test_every_committed_plan_has_a_line_that_says_what_it_shows():
    lines = re.findall(r"^\| `([\w-]+)` \| [^|]{20,} \|", BENCHMARKS.read_text(), re.M)
    assert sorted(lines) == sorted(path.stem for path in BENCHMARKS.parent.glob("*.toml"))
