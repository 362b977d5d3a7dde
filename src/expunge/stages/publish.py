"""Publishing: an exported folder goes to the Hugging Face hub, private unless told otherwise, and never with a key in it."""

from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError, reason
from expunge.store import KEY
from expunge.store.edits import guidance_class
from expunge.store.headers import read_header


class Sent(NamedTuple):
    """A file of a folder that goes to the hub."""

    name: str
    """Its path in the folder."""
    bytes: int


def check(repository: str) -> None:
    """Refuse, before anything is written, a repository that nothing could be sent to.

    Raises:
        ExpungeError: for a name that the hub does not take, without a token, or where the hub must not be asked.
    """
    from huggingface_hub import constants, get_token

    check_name(repository)
    if constants.is_offline_mode():
        raise ExpungeError(f"cannot push to '{repository}' offline: expected HF_HUB_OFFLINE not to be set")
    if get_token() is None:
        raise ExpungeError(f"cannot push to '{repository}' without a token: expected HF_TOKEN, or `hf auth login`")


def check_name(repository: str) -> None:
    """Refuse a name that the hub does not take.

    Raises:
        ExpungeError: naming it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ExpungeError(f"repository '{repository}': {reason(error)}") from error
    if "/" not in repository:
        raise ExpungeError(f"repository '{repository}': expected owner/name")


def files(folder: Path) -> list[Sent]:
    """All files of a folder that go to the hub.

    Raises:
        ExpungeError: if one is a private key, whatever it is called and whatever its suffix; or the folder is empty.
    """
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in found:
        if file.name == KEY or _is_private(file):
            raise ExpungeError(
                f"'{file}' is a private key, which gives back what was removed: expected a folder without it"
            )
    if not found:
        raise ExpungeError(f"nothing in '{folder}' to push: expected an exported folder")
    return [Sent(file.relative_to(folder).as_posix(), file.stat().st_size) for file in found]


def _is_private(file: Path) -> bool:
    """Whether a file is an edit for its owner's eyes only, by its header alone. Guidance of nobody known is taken for one."""
    try:
        with safe_open(file, "np") as opened:
            if "expunge" not in (opened.metadata() or {}):
                return False
    except (SafetensorError, OSError):
        return False
    header = read_header(file)
    if header["kind"] != "guidance":
        return False
    try:
        return guidance_class(Catalog("erasers").load(header["fields"]["eraser"])).private
    except (ExpungeError, KeyError):
        return True


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Send a folder to a repository of the hub, which is made if it is not there (a private one, unless ``public``).

    Nothing is deleted there, and no card is put over files that it does not tell of: a repository with others is refused.

    Returns:
        Where it can be seen.

    Raises:
        ExpungeError: as `check` and `files`; or if the repository is there, and private where it should be public or the other
            way round, or has files that the folder lacks; or if the hub cannot be reached, or refuses. The folder stays.
    """
    check(repository)
    sent = files(folder)
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        page = hub.create_repo(repository, private=not public, exist_ok=True)
        _check_there(repository, hub.repo_info(repository), {file.name for file in sent}, public)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by expunge")
    except ExpungeError:
        raise
    except Exception as error:
        raise ExpungeError(
            f"could not push to '{repository}': {reason(error) or type(error).__name__}; what was exported is in '{folder}'"
        ) from error
    return str(page)


def _check_there(repository: str, there: Any, sent: Set[str], public: bool) -> None:
    """Refuse a repository that others see otherwise than was asked for, or with files that would stay beside those sent.

    Args:
        repository: its name.
        there: the hub's `ModelInfo` of it.
        sent: the names of all files that would be sent.
        public: whether everybody should see it.
    """
    if bool(there.private) is public:
        expected = (
            "no --public, or to make it public at the hub first" if public else "--public, to have it seen by everybody"
        )
        raise ExpungeError(
            f"'{repository}' is there already, and {'private' if public else 'public'}: expected {expected}"
        )
    names = {file.rfilename for file in there.siblings or ()}
    others = sorted(names - sent - {".gitattributes"})
    if others:
        raise ExpungeError(
            f"'{repository}' has {len(others)} files that are not sent, such as '{others[0]}', which would stand under the new "
            "card: expected another repository, or these deleted at the hub first"
        )
