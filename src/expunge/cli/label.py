"""`expunge label`: what people see in images."""

import dataclasses
from pathlib import Path

from expunge.cli.options import Paths, Words
from expunge.cli.parsing import Positional, parse
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """Have people say what images show, blind to what made them; then compare them with a judge and with each other."""

    images: Positional[tuple[Path, ...]] = ()
    """Folders of images, for a new sheet."""
    out: Path | None = None
    """The sheet, an .html file; with --read, a .jsonl file for the agreements."""
    key: Path | None = None
    """What each item of the sheet is: written beside a new one (OUT.key.json if not given), and needed by --read."""
    choice: Words = ()
    """A label that may be chosen; repeat for several. The labels of the folders if not given."""
    count: int | None = None
    """Images of each folder, drawn at random; all if not given."""
    seed: int = 0
    """Seed of the order."""
    read: Paths = ()
    """Answers that a sheet saved (.json or .csv); repeat for several people."""
    judge: str | None = "testbed"
    """Whom people are compared with, as testbed:network=b; None for each other alone."""
    overwrite: bool = False
    """Replace earlier files."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def label(argv: list[str]) -> None:
    """``expunge label IMAGES…``, and ``expunge label --read ANSWERS``."""
    options = parse(Label, argv, "expunge label")
    if bool(options.images) == bool(options.read):
        raise ExpungeError("expunge label: expected folders of images for a new sheet, or --read with answers to one")
    if options.read:
        _read_labels(options)
        return
    from expunge.report.labelling import write_sheet

    if options.out is None:
        raise ExpungeError("a sheet without --out: expected the .html file to write")
    key = options.key or options.out.with_suffix(".key.json")
    sheet = write_sheet(
        options.images, options.choice, options.out, key, options.seed, options.count, options.overwrite
    )
    content = {"sheet": str(options.out), "key": str(key), "images": len(sheet["items"]), "choices": sheet["choices"]}
    text = f"{options.out}: {len(sheet['items'])} images to label\n{key}: the key, to keep from those who label"
    options.reporting.result(content, text)


def _read_labels(options: Label) -> None:
    from expunge.report import agreement
    from expunge.store import check_new, write_lines

    if options.key is None:
        raise ExpungeError("--read without --key: expected the key that was written beside the sheet")
    if options.out is not None:
        check_new(options.out, options.overwrite)
    agreements = agreement.read(options.read, options.key, options.judge)
    rows = [a.as_json() for a in agreements]
    if options.out is not None:
        write_lines(options.out, rows, overwrite=options.overwrite)
    options.reporting.result({"agreements": rows}, agreement.table(agreements))
