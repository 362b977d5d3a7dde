"""Everything that goes to disk and comes back, a file a format. Names are imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.store.atomic import (
        FORMAT,
        MODEL,
        RESUME,
        RUN,
        check_new,
        new_file,
        new_folder,
        parsed,
        read_json,
        read_lines,
        reserved,
        write_json,
        write_lines,
    )
    from expunge.store.checkpoints import Checkpoint, Checkpoints
    from expunge.store.edits import guidance_class, load_edit, save_edit, with_provenance
    from expunge.store.headers import CHECK, EDIT, KEY, Stored, read_header, read_stored
    from expunge.store.images import (
        Entry,
        copy_images,
        image_name,
        read_any_images,
        read_entries,
        read_images,
        read_pairs,
        roles_in,
        write_images,
    )
    from expunge.store.listing import PICTURES, ROLES, Listed, read_any_listed, read_listed, read_run
    from expunge.store.locks import claimed
    from expunge.store.peers import Published, read_published
    from expunge.store.pixels import read_pixels, read_views
    from expunge.store.prompts import GUIDANCES, LABELS, PROMPTS, SEEDS, read_prompts
    from expunge.store.queries import QUERIES, WORDS, StoredQueries, read_queries, write_queries
    from expunge.store.records import write_records
    from expunge.store.sets import read_set

_HOMES = {
    "FORMAT": "atomic",
    "MODEL": "atomic",
    "RESUME": "atomic",
    "RUN": "atomic",
    "check_new": "atomic",
    "new_file": "atomic",
    "new_folder": "atomic",
    "parsed": "atomic",
    "read_json": "atomic",
    "read_lines": "atomic",
    "reserved": "atomic",
    "write_json": "atomic",
    "write_lines": "atomic",
    "Checkpoint": "checkpoints",
    "Checkpoints": "checkpoints",
    "EDIT": "headers",
    "KEY": "headers",
    "guidance_class": "edits",
    "load_edit": "edits",
    "save_edit": "edits",
    "with_provenance": "edits",
    "CHECK": "headers",
    "Stored": "headers",
    "read_header": "headers",
    "read_stored": "headers",
    "ROLES": "listing",
    "copy_images": "images",
    "image_name": "images",
    "Entry": "images",
    "read_any_images": "images",
    "read_entries": "images",
    "read_images": "images",
    "read_pairs": "images",
    "read_run": "listing",
    "roles_in": "images",
    "write_images": "images",
    "Listed": "listing",
    "read_any_listed": "listing",
    "read_listed": "listing",
    "claimed": "locks",
    "Published": "peers",
    "read_published": "peers",
    "PICTURES": "listing",
    "read_pixels": "pixels",
    "read_views": "pixels",
    "GUIDANCES": "prompts",
    "LABELS": "prompts",
    "PROMPTS": "prompts",
    "SEEDS": "prompts",
    "read_prompts": "prompts",
    "QUERIES": "queries",
    "StoredQueries": "queries",
    "WORDS": "queries",
    "read_queries": "queries",
    "write_queries": "queries",
    "write_records": "records",
    "read_set": "sets",
}
__all__ = [
    "CHECK",
    "EDIT",
    "FORMAT",
    "GUIDANCES",
    "KEY",
    "LABELS",
    "MODEL",
    "PICTURES",
    "PROMPTS",
    "QUERIES",
    "RESUME",
    "ROLES",
    "RUN",
    "SEEDS",
    "WORDS",
    "Checkpoint",
    "Checkpoints",
    "Entry",
    "Listed",
    "Published",
    "Stored",
    "StoredQueries",
    "check_new",
    "claimed",
    "copy_images",
    "guidance_class",
    "image_name",
    "load_edit",
    "new_file",
    "new_folder",
    "parsed",
    "read_any_images",
    "read_any_listed",
    "read_entries",
    "read_header",
    "read_images",
    "read_json",
    "read_lines",
    "read_listed",
    "read_pairs",
    "read_pixels",
    "read_prompts",
    "read_published",
    "read_queries",
    "read_run",
    "read_set",
    "read_stored",
    "read_views",
    "reserved",
    "roles_in",
    "save_edit",
    "with_provenance",
    "write_images",
    "write_json",
    "write_lines",
    "write_queries",
    "write_records",
]


def __getattr__(name: str) -> Any:
    """Import the file that a name is at home in, so that a header can be read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge.store' has no attribute '{name}'")
    return getattr(import_module(f"expunge.store.{_HOMES[name]}"), name)
