"""Export: a model with its edits fused, as a plain diffusers folder that needs no expunge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.backbones.parts import quiet
from expunge.backbones.stable_diffusion import StableDiffusion
from expunge.core.adapter import Adapter
from expunge.core.backbone import Backbone
from expunge.core.edit import Edit
from expunge.core.errors import ExpungeError
from expunge.store import FORMAT, MODEL, new_folder, write_json

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [concept-erasure, expunge]
---

# {model} with concepts removed

Made by [expunge](https://pypi.org/project/expunge). Loads without it:
`StableDiffusionPipeline.from_pretrained("this folder")`.

{edits}
## How it was measured

This card states what was done, not how well it worked: measure the folder with `expunge generate --model .` and
`expunge measure`, and put the records here before you publish.

The safety checker of the base model, if it had one, is not in this folder.

## What this does not show

- That the concept cannot be reached by other words, learned embeddings, images or fine-tuning.
- That concepts nobody measured are unharmed.
- Anything about the base model's own licence and limits: see its card.
"""
EDIT = """## Edit {id}

- removed: {targets}
- asked to keep: {retain}
- method: {eraser} ({settings})
- seed {seed}, {seconds} s, {equivalents} forward-equivalents, expunge {version}
- sha256 of the base's own values of the replaced tensors, as float32: `{base}`

"""


def to_folder(
    backbone: Backbone, edits: Sequence[Edit], out: Path, *, any_base: bool = False, overwrite: bool = False
) -> Path:
    """Write the edited model as a diffusers folder with a model card; the backbone is left as it was.

    Raises:
        ExpungeError: if an edit has no weights to fuse, or the model is not one that diffusers can save.
    """
    if not isinstance(backbone, StableDiffusion):
        raise ExpungeError(f"a {backbone.family} model cannot be exported: expected Stable Diffusion 1.x or 2.x")
    fused = [as_weights(backbone, e) for e in edits]
    with new_folder(out, overwrite, marker=MODEL) as folder:
        with backbone.attached(fused, any_base=any_base), quiet():
            from diffusers import StableDiffusionPipeline

            none: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
            pipe = StableDiffusionPipeline(**backbone.components(), **none, requires_safety_checker=False)
            pipe.save_pretrained(folder, safe_serialization=True)
        write_json(folder / MODEL, {"format": FORMAT, "kind": backbone.kind, "edits": [e.id for e in edits]})
        (folder / "README.md").write_text(card(backbone, edits))
    return out


def as_weights(backbone: Backbone, edit: Edit) -> Edit:
    """An edit that replaces weights: itself, or an adapter's change in the layers that it stands beside.

    Raises:
        ExpungeError: for an adapter with gates and for guidance, which no weights can hold.
    """
    if isinstance(edit, Adapter):
        return backbone.edit_of(edit.fused(backbone.tensors([f"{name}.weight" for name in edit.layers])))
    if edit.kind != "weights":
        raise ExpungeError(
            f"edit {edit.id} is a {edit.kind} edit, which has no weights to fuse: expected weights or an adapter"
        )
    return edit


def card(backbone: Backbone, edits: Sequence[Edit]) -> str:
    """The model card: what was removed from what, by what."""
    described = ""
    for edit in edits:
        p = edit.provenance
        if p is None:
            described += f"## Edit {edit.id}\n\nOf unknown origin: its file carries no provenance.\n\n"
            continue
        described += EDIT.format(
            id=edit.id,
            targets=", ".join(p.targets),
            retain=", ".join(p.retain) or "nothing by name",
            eraser=p.eraser,
            settings=", ".join(f"{k} {v}" for k, v in p.settings.items()),
            seed=p.seed,
            seconds=p.seconds,
            equivalents=p.cost.equivalents,
            version=p.expunge,
            base=edit.fields()
            .get("base_sha256", {})
            .get("float32", "unknown (an adapter fits every model of its shape)"),
        )
    return CARD.format(model=backbone.name, edits=described or "No edit: the model as it was.\n\n")
