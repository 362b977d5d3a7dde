"""What tells a file from others: the hash of what it holds."""

import hashlib
from pathlib import Path


def sha256(file: Path) -> str:
    """Hash of a file's content, in hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
