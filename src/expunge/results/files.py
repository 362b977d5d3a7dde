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
FIGURES = "figures"
"""The folder of figures, each a JSON file."""


def figure_file(title: str) -> str:
    """The file that a figure of that title is written to."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", title) + ".json"
