"""Secrets in files, as Docker and Kubernetes mount them."""

from __future__ import annotations

import re
from pathlib import Path

MAX_BYTES = 64 << 10  # a larger file is not a secret


class SecretFileError(ValueError):
    """A file that holds no secret; the message says why, and never contains what it holds."""


def read_secret(path: Path) -> str:
    """Return the content of the file as text, without one line break at its end. Raises SecretFileError."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe could block
            raise SecretFileError("not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SecretFileError(error.strerror or type(error).__name__) from None
    if len(content) > MAX_BYTES:
        raise SecretFileError(f"larger than {MAX_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SecretFileError("not text in UTF-8") from None
    text = re.sub(r"\r?\n\Z", "", text)
    if not text:
        raise SecretFileError("empty")
    return text
