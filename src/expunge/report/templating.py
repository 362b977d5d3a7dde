"""Pages from the templates beside this file."""

from pathlib import Path
from typing import Any

from expunge.core.errors import ExpungeError

TEMPLATES = Path(__file__).parent / "templates"


def rendered(template: str, **values: Any) -> str:
    """A page of `templates`; what is not markup by its own is escaped.

    Raises:
        ExpungeError: if jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ExpungeError("pages need jinja2: expected `pip install 'expunge[report]'`") from error
    settings = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(TEMPLATES), **settings).get_template(template).render(values)
