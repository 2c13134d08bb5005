# SPDX-License-Identifier: MIT
"""Writing a file under a temporary name, then renaming it: no reader ever sees half of it.

On any failure, from a full disk to Ctrl-C, the temporary file is removed and whatever stood at the
destination is untouched.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bitnet_edge.errors import ExportError

__all__ = ["replacing", "write_text"]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary file beside ``path``; on success sync and rename it, else remove it.

    A symbolic link stays one: what it leads to is replaced. (``/dev/stdout`` is one.)

    Raises
    ------
    ExportError
        When the file cannot be written.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ExportError(f"[export] cannot write {path}: it is no regular file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise ExportError(f"[export] cannot write in {path.parent}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, ExportError):
            raise ExportError(f"[export] cannot write {path}: {error.strerror}") from error
        raise
    _sync_directory(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a whole file of UTF-8 text.

    What is no regular file, a device or a pipe, and what a symbolic link leads to (``/dev/stdout``
    is one) is written into where it is: there, a rename would replace the device or the link.

    Raises
    ------
    ExportError
        When the file cannot be written.
    """
    destination = Path(path)
    if destination.is_dir():
        raise ExportError(f"[export] cannot write {destination}: {os.strerror(errno.EISDIR)}")
    if destination.is_symlink() or (destination.exists() and not destination.is_file()):
        try:
            destination.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ExportError(f"[export] cannot write {destination}: {error.strerror}") from error
        return
    with replacing(destination) as file:
        file.write(text.encode("utf-8"))


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(path: Path) -> None:
    """Make the rename durable, where the system lets directories be opened and synced."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows, or no permission to read: the file itself is in place
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
