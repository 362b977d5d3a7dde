"""Edit files: safetensors with a JSON header; and LoRAs of somebody else's, read as adapters."""

from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.core.adapter import Adapter
from expunge.core.catalog import Catalog
from expunge.core.cost import Cost
from expunge.core.edit import Edit, Provenance, Weights, not_finite
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance
from expunge.core.lora import is_lora
from expunge.store.atomic import dumped, new_file
from expunge.store.headers import BARE, EDIT_FORMAT, read_header
from expunge.store.peers import PICKLES, gate_of, lora_adapter, read_safetensors
from expunge.store.tensors import read_tensors

IMPORT = "`expunge import` makes an edit of what others publish"
"""What to do with weights that are no edit."""


def save_edit(edit: Edit, path: str | Path, overwrite: bool = False) -> None:
    """Write an edit as one safetensors file with a JSON header.

    Raises:
        ExpungeError: if a tensor holds NaN or an infinity, or the file exists (unless ``overwrite``) or cannot be written.
    """
    _check_finite(edit, f"edit of {edit.provenance.eraser}" if edit.provenance else "edit")
    header = {
        "format": EDIT_FORMAT if edit.covers_provenance else BARE,
        "kind": edit.kind,
        "id": edit.id,
        "fields": edit.fields(),
        "requires": list(edit.requires),
        "provenance": None if edit.provenance is None else asdict(edit.provenance),
    }
    tensors = {n: t.detach().cpu().contiguous() for n, t in edit.tensors().items()}
    said = dumped(Path(path), header)
    with new_file(Path(path), overwrite, mode=0o600 if edit.private else 0o644) as temporary:
        save_file(tensors, temporary, metadata={"expunge": said})


def _check_finite(edit: Edit, what: str) -> None:
    """Refuse an edit that would make a model draw nothing, which would look like an erasure."""
    name = not_finite(edit.tensors())
    if name is not None:
        raise ExpungeError(f"{what} holds NaN or infinity in '{name}': expected finite numbers")


def load_edit(path: str | Path) -> Edit:
    """Read an edit, or somebody's LoRA as an adapter (with the gates of a membrane that SPM's authors published).

    Raises:
        ExpungeError: as `read_header`; also if the contents do not match the id in the header, a tensor holds NaN or an
            infinity, or if it is somebody's file that holds more than low-rank changes.
    """
    path = Path(path)
    if path.is_dir() or (path.is_file() and path.suffix in PICKLES):
        raise ExpungeError(f"'{path}' is not an edit: expected a safetensors file; {IMPORT}")
    lora = _lora(path)
    if lora is not None:
        _check_finite(lora, f"'{path}'")
        return lora
    header = read_header(path)
    try:
        tensors = read_tensors(path).tensors
    except SafetensorError as error:
        raise ExpungeError(f"'{path}' is damaged: {error}") from error
    try:
        edit = _parse(header, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ExpungeError(f"'{path}' has a header that expunge does not understand: {error}") from error
    object.__setattr__(edit, "covers_provenance", header["format"] != BARE)
    if edit.id != header["id"]:
        raise ExpungeError(
            f"'{path}' is damaged: its contents, or what it says of itself, do not match its id {header['id']}"
        )
    _check_finite(edit, f"'{path}'")
    return edit


def header_of(path: str | Path) -> dict[str, Any]:
    """`read_header`; of somebody's LoRA the id and fields that its edit has, since its file says nothing of how it was made.

    Raises:
        ExpungeError: as `load_edit`.
    """
    path = Path(path)
    if not path.is_file():
        return read_header(path)  # which says so
    return _header_of(path, path.stat().st_mtime_ns, path.stat().st_size)


@lru_cache(maxsize=64)
def _header_of(path: Path, changed: int, size: int) -> dict[str, Any]:
    """The same, read once for as long as the file stays: a LoRA's id is of all its contents."""
    lora = _lora(path)
    return read_header(path) if lora is None else {"id": lora.id, "fields": lora.fields(), "provenance": None}


def _lora(path: Path) -> Adapter | None:
    """The LoRA in a file that is no edit of expunge's; None if it is one, or no safetensors file at all."""
    try:
        with safe_open(path, "pt") as opened:
            if "expunge" in (opened.metadata() or {}):
                return None
            names = list(opened.keys())
    except (SafetensorError, OSError):
        return None
    if not is_lora(names):
        shown = f" such as '{names[0]}'" if names else ""
        raise ExpungeError(f"'{path}' is not an edit, but {len(names)} tensors{shown} of an unknown base; {IMPORT}")
    stored = read_safetensors(path)
    try:
        return lora_adapter(stored)
    except ExpungeError as error:
        raise ExpungeError(f"'{path}': {error}") from error


def _parse(header: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    provenance = None
    if header["provenance"] is not None:
        provenance = Provenance(**{**header["provenance"], "cost": Cost(**header["provenance"]["cost"])})
    requires = tuple(header["requires"])
    if header["kind"] == "weights":
        return Weights(tensors, requires=requires, provenance=provenance, **header["fields"])
    if header["kind"] == "adapter":
        fields = dict(header["fields"])
        gate = gate_of(fields.pop("gates"))
        return Adapter(tensors, gate=gate, requires=requires, provenance=provenance, **fields)
    if header["kind"] != "guidance":
        raise ExpungeError(f"an edit of kind '{header['kind']}': expected weights, adapter or guidance")
    given = dict(header["fields"])
    eraser = Catalog("erasers").load(given.pop("eraser"))
    cls = guidance_class(eraser)
    edit = cls.restore(given, tensors)
    return with_provenance(edit, provenance, requires)


def guidance_class(eraser: type) -> type[Guidance]:
    """The guidance that an eraser's module, or its package, defines."""
    import sys

    module = sys.modules[eraser.__module__]
    ours = (module.__name__, f"{module.__name__}.")
    known = [c for c in vars(module).values() if isinstance(c, type)]
    mine = [c for c in known if c.__module__ == ours[0] or c.__module__.startswith(ours[1])]
    guidances = [c for c in mine if issubclass(c, Guidance)]
    if len(guidances) != 1:
        raise ExpungeError(f"{eraser.__name__} defines {len(guidances)} guidances: expected one")
    return guidances[0]


def with_provenance(edit: Edit, provenance: Provenance | None, requires: tuple[str, ...] | None = None) -> Edit:
    """``edit`` with its provenance set."""
    object.__setattr__(edit, "provenance", provenance)
    with suppress(AttributeError):
        object.__delattr__(edit, "id")  # which covers it
    if requires is not None:
        object.__setattr__(edit, "requires", requires)
    return edit
