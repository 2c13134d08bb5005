# SPDX-License-Identifier: MIT
"""Replacing a file or a directory so that a reader finds the old one or the new one, whole.

Whatever stood at the destination stays until the new one is complete and synced; on any failure,
from a full disk to Ctrl-C, what was begun is removed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bitnet_edge.errors import BitnetEdgeError, ExportError

__all__ = ["replacing", "replacing_file", "write_text"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h; RENAME_SWAP of macOS has the same value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name in a temporary directory beside ``path``; on success put what is there in place.

    A file or a directory is made under that name. A symbolic link stays one: what it leads to is
    replaced. (``/dev/stdout`` is one.) Where the system cannot exchange a directory with
    another in one step (Windows, old file systems), the old one is moved aside first: for a moment
    nothing stands at ``path``, but never a mixture.

    Raises
    ------
    ExportError
        When nothing can be written there.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ExportError(f"[export] cannot write {path}: it is no regular file")
    try:
        scratch = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise ExportError(f"[export] cannot write in {path.parent}: {error.strerror}") from error
    made = Path(scratch) / path.name
    try:
        yield made
        for entry in (*made.rglob("*"), made):
            _sync(entry)
        _put(made, path)
    except OSError as error:
        if isinstance(error, BitnetEdgeError):
            raise
        raise ExportError(f"[export] cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _sync(path.parent)


@contextmanager
def replacing_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that stands at ``path`` on success; see `replacing`."""
    with replacing(path) as made, made.open("w+b") as file:
        yield file


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
    with replacing_file(destination) as file:
        file.write(text.encode("utf-8"))


def _put(made: Path, path: Path) -> None:
    """Move to ``path``; what stood there goes, or takes the old place of what is moved."""
    if not path.exists() or not (made.is_dir() or path.is_dir()):
        made.replace(path)
    elif not _exchange(made, path):
        path.rename(made.with_name("replaced"))
        made.rename(path)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False where the system cannot."""
    library = ctypes.CDLL(None)
    names = (os.fsencode(a), os.fsencode(b))
    try:
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, _RENAME_EXCHANGE) == 0)
        old, new = names
        result = library.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE)
        return bool(result == 0)
    except AttributeError:  # no such function in this C library
        return False


def _sync(path: Path) -> None:
    """Make contents or a rename durable, where the system lets ``path`` be opened and synced."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a directory on Windows, or no permission to read: the file itself is in place
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
