# SPDX-License-Identifier: MIT
"""Safetensors files, mapped and never read whole.

Ours rather than the ``safetensors`` package because numpy has no bfloat16 (here: its bits in
uint16), because every refusal must name the file, the tensor, what was expected and what was found,
and because pages must be droppable: a 5 GB checkpoint is converted in a few MB.

The format (https://github.com/huggingface/safetensors#format): 8 bytes, the header's length N as
u64; N bytes of JSON, beginning with ``{`` and padded with spaces; then one byte buffer::

    {"__metadata__": {str: str}, NAME: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}

Offsets count from the buffer's beginning. Tensors tile it: no hole, no overlap, no byte left over.
Everything is little-endian and row-major; nothing is aligned.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitnet_edge._numpy import np
from bitnet_edge.errors import FormatError, MissingTensor, ModelError, OutOfRange, Truncated
from bitnet_edge.exporters.sources.json_file import parse_object

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK_BYTES", "SafetensorsFile", "TensorInfo"]

MAX_HEADER = 100_000_000  # the format's own cap
BLOCK_BYTES = 4 << 20
_MAX_RANK = 32  # numpy 1's; nothing real comes near it
_MAX_BYTES = 2**63 - 1

# The numpy type of each dtype; of those numpy lacks (BF16, F8), an unsigned integer as wide.
_NUMPY = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "F8_E5M2": "|u1",
    "F8_E4M3": "|u1",
    "F8_E8M0": "|u1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}


class TensorInfo(NamedTuple):
    """Element type (as the format names it, e.g. ``"BF16"``) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class _Entry:
    info: TensorInfo
    start: int  # bytes from the file's beginning
    stop: int


class SafetensorsFile:
    """One mapped, fully checked safetensors file.

    Parameters
    ----------
    path : Path
        A regular file. It must not shrink while it is mapped.

    Attributes
    ----------
    path : Path
    metadata : Mapping[str, str]
        The header's ``__metadata__``, empty when there is none.

    Raises
    ------
    ModelError
        When the file cannot be opened.
    FormatError
        `Truncated` when it ends too early, `OutOfRange` when a size or offset is impossible.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map, size = _open(path)
        header_bytes = _header_bytes(self._map, size, path)
        try:
            header = parse_object(self._map[8 : 8 + header_bytes])
        except ValueError as error:
            raise FormatError(f"[safetensors] the header is not JSON: {error} ({path})") from None
        self.metadata: Mapping[str, str] = _metadata(header.pop("__metadata__", {}), path)
        base = 8 + header_bytes
        self._entries = {name: _entry(name, fields, base, path) for name, fields in header.items()}
        _check_tiling(self._entries, base, size, path)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the header's order."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def info(self, name: str) -> TensorInfo:
        """Return dtype and shape of tensor ``name``, or raise `MissingTensor`."""
        return self._entry(name).info

    def array(self, name: str) -> NDArray[Any]:
        """Return a read-only view of a tensor in the mapped file: no byte is copied.

        Parameters
        ----------
        name : str

        Returns
        -------
        ndarray
            In the stored shape, possibly unaligned; BF16 and F8 as their bits in uint16 and uint8.

        Raises
        ------
        MissingTensor
            When the file has no such tensor.
        """
        entry = self._entry(name)
        dtype, shape = np.dtype(_NUMPY[entry.info.dtype]), entry.info.shape
        if entry.start == entry.stop:
            empty: NDArray[Any] = np.empty(shape, dtype)
            empty.flags.writeable = False
            return empty
        count = (entry.stop - entry.start) // dtype.itemsize
        return np.frombuffer(self._map, dtype, count, entry.start).reshape(shape)

    def row_blocks(
        self, name: str, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Walk a tensor along its first axis, dropping its pages behind.

        Parameters
        ----------
        name : str
            A tensor of rank 1 or more.
        block_bytes : int
            About the size of a block; one row at least.

        Yields
        ------
        first : int
            Index of the block's first row.
        rows : ndarray
            View as of `array`.

        Raises
        ------
        MissingTensor
            When the file has no such tensor.
        """
        view = self.array(name)
        if not view.size:
            return
        start, row_bytes = self._entry(name).start, view.nbytes // len(view)
        step = max(1, block_bytes // row_bytes)
        for first in range(0, len(view), step):
            rows = view[first : first + step]
            yield first, rows
            self._drop(start + first * row_bytes, rows.nbytes)

    def release(self, name: str) -> None:
        """Let go of the pages of a tensor; views stay valid and read them again when touched."""
        entry = self._entry(name)
        self._drop(entry.start, entry.stop - entry.start)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise MissingTensor(f"[safetensors] no tensor {name!r} in {str(self.path)!r}") from None

    def _drop(self, start: int, count: int) -> None:
        # Clean pages of a shared map: dropping a neighbour's part of a page costs a minor fault.
        if count and hasattr(mmap, "MADV_DONTNEED"):
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, start + count - first)


# -- header ---------------------------------------------------------------------------------


def _open(path: Path) -> tuple[mmap.mmap, int]:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ModelError(f"[safetensors] cannot open {str(path)!r}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"[safetensors] expected a regular file, got {str(path)!r}")
        if status.st_size < 8:
            raise Truncated(
                f"[safetensors] expected at least 8 bytes, got {status.st_size} ({path})"
            )
        return mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ), status.st_size
    except OSError as error:
        raise ModelError(f"[safetensors] cannot map {str(path)!r}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _header_bytes(data: mmap.mmap, size: int, path: Path) -> int:
    count: int = struct.unpack("<Q", data[:8])[0]
    if count > MAX_HEADER:
        raise OutOfRange(
            f"[safetensors] expected a header of at most {MAX_HEADER} bytes, got {count} ({path})"
        )
    if count > size - 8:
        raise Truncated(
            f"[safetensors] expected a header of {count} bytes, the file ends after {size - 8} "
            f"({path})"
        )
    if data[8:9] != b"{" or not count:
        raise FormatError(f"[safetensors] expected a header that begins with '{{' ({path})")
    return count


def _metadata(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FormatError(f"[safetensors] expected __metadata__ of strings only ({path})")
    return value


def _entry(name: str, fields: object, base: int, path: Path) -> _Entry:
    """Check one tensor's header entry and place it in the file."""
    where = f"(tensor {name!r} of {path})"
    if not isinstance(fields, dict):
        raise FormatError(f"[safetensors] expected an object, got {fields!r:.40} {where}")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in fields:
            raise FormatError(f"[safetensors] the entry lacks {key!r} {where}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NUMPY:
        raise FormatError(
            f"[safetensors] expected dtype {' or '.join(_NUMPY)}, got {dtype!r:.40} {where}"
        )
    if not _sizes(shape):
        raise FormatError(
            f"[safetensors] expected a shape of non-negative integers, got {shape!r:.80} {where}"
        )
    if not _sizes(offsets) or len(offsets) != 2:
        raise FormatError(
            f"[safetensors] expected data_offsets [begin, end], got {offsets!r:.80} {where}"
        )
    begin, end = offsets
    count, extent = np.dtype(_NUMPY[dtype]).itemsize, np.dtype(_NUMPY[dtype]).itemsize
    for dimension in shape:
        count *= dimension
        extent *= dimension or 1
        if extent > _MAX_BYTES:  # an empty tensor's other sizes have to fit an array's shape too
            raise OutOfRange(f"[safetensors] shape {shape!r:.80} is too large {where}")
    if len(shape) > _MAX_RANK:
        raise OutOfRange(
            f"[safetensors] expected at most {_MAX_RANK} dimensions, got {len(shape)} {where}"
        )
    if end < begin:
        raise OutOfRange(f"[safetensors] data_offsets {offsets} end before they begin {where}")
    if end - begin != count:
        raise OutOfRange(
            f"[safetensors] expected {count} bytes for {dtype} {shape!r:.80}, data_offsets "
            f"{offsets} hold {end - begin} {where}"
        )
    return _Entry(TensorInfo(dtype, tuple(shape)), base + begin, base + end)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_tiling(entries: Mapping[str, _Entry], base: int, size: int, path: Path) -> None:
    """Check that the tensors cover the byte buffer exactly once."""
    position, previous = base, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            fault = "a hole" if entry.start > position else "an overlap"
            raise OutOfRange(
                f"[safetensors] {fault}: expected offset {position - base} after {previous}, got "
                f"{entry.start - base} (tensor {name!r} of {path})"
            )
        if entry.stop > size:
            raise Truncated(
                f"[safetensors] expected {entry.stop - base} bytes of data, got {size - base} "
                f"(tensor {name!r} of {path})"
            )
        position, previous = entry.stop, repr(name)
    if position != size:
        raise OutOfRange(
            f"[safetensors] expected {position - base} bytes of data, got {size - base}: "
            f"{size - position} belong to no tensor ({path})"
        )
