"""Who only reads needs no torch: a report is written in a process where importing torch fails."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "transformers"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, NoTorch())
from expunge.cli import main
import expunge.report.agreement, expunge.results.summary, expunge.web.server, expunge.web.desk

sys.exit(main(sys.argv[1:]))
"""
SOURCES = str(Path(__file__).parents[2] / "src")


def without_torch(*words: object) -> str:
    """What the command line says in such a process; an error ends the test."""
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_report_of_a_plan_is_the_same_without_torch(bench_run, tmp_path):
    page = tmp_path / "report.html"
    without_torch("report", bench_run.out, "--store", bench_run.store, "--out", page, "--quiet")
    assert page.read_bytes() == bench_run.page.read_bytes()


def test_what_single_commands_wrote_is_reported_without_torch(command_run, tmp_path):
    page = tmp_path / "report.html"
    without_torch("report", command_run, "--out", page, "--images", 1)
    assert "esr@1" in page.read_text()


def test_a_sheet_for_people_is_written_without_torch(images, tmp_path):
    without_torch("label", images, "--out", tmp_path / "sheet.html")
    assert (tmp_path / "sheet.key.json").is_file()


def test_a_figure_is_drawn_without_torch(tmp_path):
    series = '[{"name": "a", "x": [1], "y": [2]}]'
    (tmp_path / "f.json").write_text(f'{{"format": 1, "title": "T", "kind": "lines", "series": {series}}}')
    without_torch("figure", tmp_path / "f.json", "--out", tmp_path / "f.svg")
    assert "<svg" in (tmp_path / "f.svg").read_text()
