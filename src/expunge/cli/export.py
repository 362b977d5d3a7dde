"""`expunge export`: an edited model that others load without expunge."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from expunge.cli.options import Attachment, Model, Paths
from expunge.cli.parsing import parse
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.lora import Layout


LORAS: "dict[str, Layout]" = {"lora": "diffusers", "lora-kohya": "kohya", "lora-bfl": "bfl"}
"""How a LoRA's layers are named, by layout."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model with its edits fused, or adapters as a LoRA: with a model card, and no expunge needed to load it."""

    layout: Literal["diffusers", "shards", "ldm", "lora", "lora-kohya", "lora-bfl"] = "diffusers"
    """A whole diffusers folder (shards: only the files that an edit touches are written, all others linked), or one file (ldm:
    A1111, ComfyUI); or the edits alone as a LoRA, in diffusers' names, kohya's, or those of Black Forest Labs (FLUX)."""
    records: Paths = ()
    """A .jsonl file of `expunge measure` whose figures go into the model card, the newest of each; or the folder of an audit or
    of a plan, of which those of these edits do, with an audit's verdict. Repeat for several."""
    license: str = ""
    """The licence's id on the hub, such as creativeml-openrail-m; that of the base model's card, if not given."""
    base_model: str = ""
    """The base model's id on the hub (owner/name); --model's, if that is one and this is not given."""
    push: str = ""
    """Send the folder to this repository of the Hugging Face hub (owner/name), which is made private; needs a token."""
    public: bool = False
    """With --push: a repository that everybody sees."""
    dry_run: bool = False
    """With --push: write the folder, and say what would be sent; nobody is asked."""
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
    from expunge.stages import card
    from expunge.stages import export as stage
    from expunge.store import check_new

    _check(options)
    terms: dict[str, Any] = {"license": options.license, "base_model": options.base_model}
    card.Told(**terms)  # which refuses what is none before anything is opened
    check_new(options.out, options.overwrite)
    edits, backbone = options.attachment.load(), options.model.open()
    told = card.read_told(options.records, backbone, edits, options.attachment.edits.strengths)
    told = dataclasses.replace(told, **terms)
    how = {"told": told, "overwrite": options.overwrite, **options.attachment.arguments()}
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
        names = LORAS[options.layout]
        stage.lora_to_folder(backbone, edits, options.out, names, **how)
        text = f"{options.out}: load it with pipe.load_lora_weights"
    lines = [text]
    content: dict[str, Any] = {"folder": str(options.out)}
    if options.push:
        content |= _pushed(options, lines)
    options.reporting.result(content, "\n".join(lines))


def _check(options: Export) -> None:
    """Refuse, before anything is written, what could not be sent."""
    if (options.public or options.dry_run) and not options.push:
        given = "--public" if options.public else "--dry-run"
        raise ExpungeError(f"export with {given} and no repository: expected --push OWNER/NAME")
    if options.push:
        from expunge.stages import publish

        (publish.check_name if options.dry_run else publish.check)(options.push)


def _pushed(options: Export, lines: list[str]) -> dict[str, Any]:
    """Send the folder, or say what would be sent."""
    from expunge.stages import publish

    sent = publish.files(options.out)
    lines += [f"  {file.bytes:>15,} bytes  {file.name}" for file in sent]
    kind = "public" if options.public else "private"
    whole = f"{len(sent)} files, {sum(file.bytes for file in sent):,} bytes"
    content: dict[str, Any] = {
        "repository": options.push,
        "public": options.public,
        "files": [f._asdict() for f in sent],
    }
    if options.dry_run:
        lines.append(f"would be sent to {options.push} ({kind}): {whole}. Nothing was sent.")
        return {**content, "sent": False}
    page = publish.push(options.out, options.push, public=options.public)
    lines.append(f"sent to {page} ({kind}): {whole}")
    return {**content, "sent": True, "page": page}
