"""Folders of images that a plug-in wants, as the command line names them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from expunge.core.errors import ExpungeError


def image_folders(given: Sequence[str], roles: Iterable[str]) -> dict[str, Path]:
    """Folders by role, from FOLDER or ROLE=FOLDER.

    Raises:
        ExpungeError: for a folder without a role beside others.
    """
    from expunge.stages.erase import folders

    names, parts = list(roles), [word.partition("=") for word in given]
    named = {name: path for name, sign, path in parts if sign and name in names}
    bare = [word for word in given if word.partition("=")[0] not in named]
    if len(bare) > 1 or (bare and named):
        raise ExpungeError(f"images '{bare[0]}' beside others: expected one folder, or TARGET=FOLDER for each target")
    return folders(bare[0] if bare else named, names)
