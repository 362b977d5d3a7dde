"""`expunge import FILE`: an edit from what others publish."""

import dataclasses
from pathlib import Path

from expunge.cli.options import Model, Words
from expunge.cli.parsing import Positional, parse
from expunge.cli.reporting import Reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """Make an edit of what others publish: LoRAs, membranes of SPM's authors, bare weights (ESD, UCE), text encoders."""

    file: Positional[Path]
    """A .safetensors file, a file of tensors that torch wrote, or a folder with a config.json or of peft's LoRA."""
    out: Path
    """Folder for edit.safetensors."""
    target: Words = ()
    """What was removed, in words; repeat for several. A membrane says it itself."""
    method: str = "imported"
    """What removed it: noted in the edit."""
    gate: Words = ()
    """Words that open an adapter, where its file does not say them; repeat for several."""
    component: str | None = None
    """Which component the weights are of, where the names do not tell: unet, text_encoder, text_encoder_2."""
    overwrite: bool = False
    """Replace an existing edit."""
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def import_(argv: list[str]) -> None:
    """``expunge import FILE …``."""
    options = parse(Import, argv, "expunge import")
    from expunge.stages import importing as stage
    from expunge.store import EDIT, check_new

    path = options.out / EDIT
    check_new(path, options.overwrite)
    what = {"method": options.method, "targets": options.target, "gate": options.gate, "component": options.component}
    edit = stage.run(options.model.open(), options.file, **what)
    edit.save(path, options.overwrite)
    changed = len(edit.tensors())
    text = f"{path}: {edit.kind} edit {edit.id} of {changed} tensors from {options.file}"
    options.reporting.result({"edit": str(path), "id": edit.id, "kind": edit.kind, "tensors": changed}, text)
