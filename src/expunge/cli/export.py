"""`expunge export`: an edited model that others load without expunge."""

import dataclasses
from pathlib import Path
from typing import Literal

from expunge.cli.options import Attachment, Model, Paths
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model with its edits fused, or adapters as a LoRA: with a model card, and no expunge needed to load it."""

    layout: Literal["diffusers", "shards", "ldm", "lora", "lora-kohya"] = "diffusers"
    """A whole diffusers folder (shards: only the files that an edit touches are written, all others linked), or one file (ldm:
    A1111, ComfyUI); or the edits alone as a LoRA, in two namings."""
    records: Paths = ()
    """A .jsonl file of `expunge measure` whose figures go into the model card, the newest of each; repeat for several."""
    out: Path
    """Folder for the model, or for the LoRA."""
    overwrite: bool = False
    """Replace an existing folder."""
    attachment: Attachment = dataclasses.field(default_factory=Attachment)
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def export(argv: list[str]) -> None:
    """``expunge export …``."""
    options = parse(Export, argv, "expunge export")
    from expunge.stages import export as stage
    from expunge.store import check_new

    check_new(options.out, options.overwrite)
    edits, backbone = options.attachment.load(), options.model.open()
    how = {"records": stage.read_records(options.records), "overwrite": options.overwrite}
    how |= options.attachment.arguments()
    if options.layout == "diffusers":
        stage.to_folder(backbone, edits, options.out, **how)
        text = f"{options.out}: load it with DiffusionPipeline.from_pretrained"
    elif options.layout == "shards":
        from expunge.stages import shards

        written = shards.to_folder(backbone, edits, options.out, **how)
        done = f"{written.bytes:,} bytes of tensors written, into copies of {written.files} files; all others linked"
        text = f"{options.out}: {done}"
    elif options.layout == "ldm":
        stage.to_file(backbone, edits, options.out, **how)
        text = f"{options.out / stage.WHOLE}: a checkpoint for A1111 and ComfyUI"
    else:
        names = "kohya" if options.layout == "lora-kohya" else "diffusers"
        stage.lora_to_folder(backbone, edits, options.out, names, **how)
        text = f"{options.out}: load it with pipe.load_lora_weights"
    options.reporting.result({"folder": str(options.out)}, text)
