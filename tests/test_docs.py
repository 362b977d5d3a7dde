"""Pages that repeat what the code knows say the same."""

from pathlib import Path

from expunge.cli.families import table
from expunge.core.catalog import Catalog

ROOT = Path(__file__).parent.parent


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
