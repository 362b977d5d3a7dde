"""What the files in a folder of results are called."""

import re

PLAN = "plan.json"
"""The plan that a folder of results belongs to, as it was read."""
RECORDS = "records.jsonl"
"""A line a job and metric."""
SUMMARY = "summary.jsonl"
"""A line a method, group and metric, and one a paired difference, a claim and a published figure."""
TABLE = "table.md"
WORST = "worst.jsonl"
"""A line an image in which an attack brought a target back, for each row and attack the worst first."""
AUDIT = "audit.json"
"""What was asked of an audit, what its time left out, and its verdict."""
REPORT = "report.html"
"""The page of them."""
FIGURES = "figures"
"""The folder of figures, each a JSON file."""

PROGRESS = "progress.json"
"""Where a run stands that was asked to say so: jobs done and running, seconds left, and when it said that."""
SIDES = "sides.json"
"""Beside it: where in the store the images of each row will be, what they are of, and what should be gone in them."""


def figure_file(title: str) -> str:
    """The file that a figure of that title is written to."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", title) + ".json"
