"""Models of the Hugging Face hub: their index, and the files that they are opened from."""

from functools import cache
from pathlib import Path

from expunge.backbones.weight_files import wanted
from expunge.core.errors import ExpungeError, reason


def is_hub_id(model: str) -> bool:
    """Whether ``model``, if it is nothing on this disk, can be ``owner/name`` on the hub."""
    looks_like_a_path = model.startswith((".", "/", "~")) or model.count("/") != 1 or model.endswith("/")
    return not looks_like_a_path and not Path(model).exists()


@cache
def file_of(model: str, revision: str | None, name: str) -> Path:
    """A file of a hub model: its index, or the configuration of a component."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, name, revision=revision))


def download(model: str, revision: str | None, dtype: str) -> Path:
    """Snapshot of a hub repository, of the files that a model is opened from; what was fetched before, without a network.

    Raises:
        ExpungeError: if it cannot be had, or holds no model that can be opened.
    """
    if not is_hub_id(model):
        raise ExpungeError(
            f"no model '{model}': expected 'testbed', a diffusers folder, a .safetensors file or a hub id such as 'owner/name'"
        )
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        files = wanted(list_repo_files(model, revision=revision), dtype)
        return Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except ExpungeError as error:
        raise ExpungeError(f"'{model}' on the hub: {error}") from error
    except Exception as error:
        try:
            return Path(snapshot_download(model, revision=revision, local_files_only=True))
        except Exception:
            raise ExpungeError(
                f"model '{model}' is neither a folder here nor could it be fetched from the hub: {reason(error)}"
            ) from error
