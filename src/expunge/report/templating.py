"""Pages from templates."""

from functools import cache
from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError

TEMPLATES = Path(__file__).parent / "templates"


def rendered(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """A page of a folder of templates; what is not markup by its own is escaped.

    Raises:
        ExpungeError: if jinja2 is not installed.
    """
    return _environment(folder).get_template(template).render(values)


@cache
def _environment(folder: Path) -> Any:
    """What templates of a folder are read by, which keeps those that it has read."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ExpungeError("pages need jinja2: expected `pip install 'expunge[report]'`") from error
    settings = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(folder), **settings)
