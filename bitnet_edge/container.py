# SPDX-License-Identifier: MIT
"""Reading a ``.bte`` file: structure checked always, checksums on demand (`bte_format.md`).

Standard library only, and of that only what is cheap: importing `dataclasses`, `typing` or
`pathlib` would cost the device 3 MB. `bitnet_edge.writer` is the host's side.
"""

from __future__ import annotations

import binascii
import json
import mmap
import os
import struct

from bitnet_edge import _engine
from bitnet_edge.errors import (
    ArgumentError,
    BadMagic,
    FormatError,
    OutOfRange,
    Truncated,
    UnsupportedVersion,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

__all__ = ["BteFile", "Section", "StoredTensor", "open_bte"]

MAGIC = b"\x89BTE\r\n\x1a\n"
FORMAT_VERSION = 1
PREFIX = struct.Struct("<8sIIQI36x")  # magic, version, header length, file length, header CRC
MAX_HEADER = 1 << 20
SECTION_ALIGNMENT = 16 * 1024
TENSOR_ALIGNMENT = 64
MAX_RANK = 8
SECTIONS = ("program", "tokenizer", "graph", "weights")  # order in the file; tokenizer optional
# required features this reader knows
FEATURES: frozenset[str] = frozenset({"p16", "int8_rows", "int4_groups", "screened_head"})
DTYPE_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i32": 4}


class Section:
    """A byte range of the file."""

    __slots__ = ("bytes", "name", "offset", "sha256")

    def __init__(self, name: str, offset: int, size: int, sha256: str) -> None:
        self.name = name
        self.offset = offset
        self.bytes = size
        self.sha256 = sha256


class StoredTensor:
    """A constant inside the weights section; ``offset`` counts from the section's start."""

    __slots__ = ("bytes", "dtype", "name", "offset", "shape")

    def __init__(
        self, name: str, dtype: str, shape: tuple[int, ...], offset: int, size: int
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.offset = offset
        self.bytes = size


class BteFile:
    """An open, structurally checked file.

    Attributes
    ----------
    path : str
    model, plan : dict
        The header's descriptions, checked for the keys the runtime uses.
    sections : dict
        Name -> `Section`.
    tensors : tuple of StoredTensor
    size : int
        Bytes of the file.
    """

    def __init__(
        self,
        path: str,
        model: dict[str, Any],
        plan: dict[str, Any],
        sections: dict[str, Section],
        tensors: tuple[StoredTensor, ...],
        mapped: mmap.mmap,
        descriptor: int,
    ) -> None:
        self.path = path
        self.model = model
        self.plan = plan
        self.sections = sections
        self.tensors = tensors
        self.size = len(mapped)
        self._map: mmap.mmap | None = mapped
        self._descriptor = descriptor

    def section(self, name: str) -> memoryview:
        """Return a section's bytes, read-only and in place."""
        section = self.sections[name]
        return self._view()[section.offset : section.offset + section.bytes]

    def tensor(self, tensor: StoredTensor) -> memoryview:
        """Return a constant's bytes, read-only and in place."""
        start = self.sections["weights"].offset + tensor.offset
        return self._view()[start : start + tensor.bytes]

    def _view(self) -> memoryview:
        if self._map is None:
            raise ArgumentError(f"[bte] {self.path} is closed")
        return memoryview(self._map)

    def verify(self) -> None:
        """Check every section's SHA-256.

        Raises
        ------
        FormatError
            Naming the first section that differs.
        """
        import hashlib

        for section in self.sections.values():
            digest = hashlib.sha256()
            view = self.section(section.name)
            for start in range(0, len(view), 1 << 20):
                digest.update(view[start : start + (1 << 20)])
            if digest.hexdigest() != section.sha256:
                raise FormatError(
                    f"[bte] section {section.name!r} is corrupt: expected SHA-256 "
                    f"{section.sha256}, got {digest.hexdigest()} ({self.path})"
                )

    def graph_json(self) -> dict[str, Any]:
        """Return the graph section as parsed JSON.

        Raises
        ------
        FormatError
            When it is none.
        """
        return _parse_json(self.section("graph"), "graph")

    @property
    def descriptor(self) -> int:
        """Descriptor of the open file; -1 when it is closed."""
        return self._descriptor

    def close(self) -> None:
        """Give the map back once nothing points into it any more; the descriptions stay."""
        self._map = None
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


def open_bte(path: str | os.PathLike[str]) -> BteFile:
    """Map a file and check its structure.

    Raises
    ------
    BadMagic, UnsupportedVersion, Truncated, OutOfRange, FormatError
        One per cause; the message names the file, the expected and the found.
    OSError
        When the file cannot be opened.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:  # noqa: PTH123
        prefix = file.read(PREFIX.size)
        _check_prefix(prefix, path)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _read_file(path, prefix, mapped, file.fileno())


def _read_file(path: str, prefix: bytes, mapped: mmap.mmap, descriptor: int) -> BteFile:
    _, _, header_bytes, file_bytes, crc = PREFIX.unpack(prefix)
    if file_bytes != len(mapped):
        kind = Truncated if len(mapped) < file_bytes else OutOfRange
        raise kind(f"[bte] expected {file_bytes} bytes, got {len(mapped)} ({path})")
    if not 2 <= header_bytes <= MAX_HEADER:
        raise OutOfRange(f"[bte] expected a header of 2 .. {MAX_HEADER} bytes, got {header_bytes}")
    raw = mapped[PREFIX.size : PREFIX.size + header_bytes]
    if len(raw) != header_bytes:
        raise Truncated(f"[bte] expected a header of {header_bytes} bytes, got {len(raw)} ({path})")
    if binascii.crc32(raw) != crc:
        raise FormatError(
            f"[bte] the header is corrupt: expected CRC-32 {crc:08x}, got "
            f"{binascii.crc32(raw):08x} ({path})"
        )
    header = _parse_json(raw, "header")
    required = set(map(str, _field(header, "requires", list, "header")))
    unknown = required - FEATURES
    if unknown:
        names = sorted(unknown)
        raise UnsupportedVersion(f"[bte] {path} needs features this reader lacks: {names}")
    sections = _read_sections(header, PREFIX.size + header_bytes, len(mapped))
    tensors = tuple(_read_tensors(header, sections["weights"]))
    missing = {tensor.dtype for tensor in tensors} & FEATURES - required
    if missing:
        raise FormatError(f"[bte] the header must require {sorted(missing)}, which tensors use")
    model = _field(header, "model", dict, "header")
    plan = _field(header, "plan", dict, "header")
    _check_model(model)
    _check_plan(plan)
    return BteFile(path, model, plan, sections, tensors, mapped, os.dup(descriptor))


def _check_prefix(prefix: bytes, path: str) -> None:
    if prefix[: len(MAGIC)] != MAGIC[: len(prefix)] or not prefix:
        raise BadMagic(f"[bte] expected {MAGIC!r}, got {prefix[:8]!r}: not a .bte file ({path})")
    if len(prefix) < PREFIX.size:
        raise Truncated(
            f"[bte] expected a prefix of {PREFIX.size} bytes, got {len(prefix)} ({path})"
        )
    version = PREFIX.unpack(prefix)[1]
    if version != FORMAT_VERSION:
        raise UnsupportedVersion(f"[bte] expected format {FORMAT_VERSION}, got {version} ({path})")
    if any(prefix[28:]):
        raise FormatError(f"[bte] reserved bytes of the prefix are not zero ({path})")


def _parse_json(raw: bytes | memoryview, what: str) -> dict[str, Any]:
    try:
        value = json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"[bte] the {what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"[bte] the {what} must be a JSON object, got {type(value).__name__}")
    return value


def _field(data: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if type(value) is not kind:
        raise FormatError(
            f"[bte] {where}: {key!r} must be {kind.__name__}, got {type(value).__name__}"
        )
    return value


def _integer(value: object, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        shown = str(value)[:40]
        raise OutOfRange(f"[bte] expected {what} {low} .. {high}, got {shown}")
    return value


def _read_sections(header: dict[str, Any], start: int, end: int) -> dict[str, Section]:
    """Sections in their fixed order, each at the first 16 KiB boundary after the one before."""
    sections: dict[str, Section] = {}
    position = start
    for row in _field(header, "sections", list, "header"):
        if type(row) is not dict:
            raise FormatError("[bte] header: a section must be an object")
        name = _field(row, "name", str, "section")
        if name not in SECTIONS or any(
            SECTIONS.index(name) <= SECTIONS.index(earlier) for earlier in sections
        ):
            raise FormatError(f"[bte] unexpected section {name!r} after {list(sections)}")
        expected = -(-position // SECTION_ALIGNMENT) * SECTION_ALIGNMENT
        offset = _integer(row.get("offset"), 0, end, f"offset of section {name!r}")
        if offset != expected:
            raise OutOfRange(f"[bte] expected section {name!r} at {expected}, got {offset}")
        size = _integer(row.get("bytes"), 0, end - offset, f"bytes of section {name!r}")
        sections[name] = Section(name, offset, size, _field(row, "sha256", str, "section"))
        position = offset + size
    missing = [name for name in SECTIONS if name not in sections and name != "tokenizer"]
    if missing:
        raise FormatError(f"[bte] missing sections: {missing}")
    expected = -(-position // SECTION_ALIGNMENT) * SECTION_ALIGNMENT
    if expected != end:
        raise OutOfRange(f"[bte] sections end at {expected}, the file at {end}")
    return sections


def _read_tensors(header: dict[str, Any], weights: Section) -> Iterator[StoredTensor]:
    """Yield constants in order, each at the first 64-byte boundary after the one before."""
    position = 0
    for row in _field(header, "tensors", list, "header"):
        if type(row) is not list or len(row) != 5:
            raise FormatError("[bte] header: a tensor must be [name, dtype, shape, offset, bytes]")
        name, dtype, shape, offset, size = row
        if type(name) is not str or type(dtype) is not str or type(shape) is not list:
            raise FormatError("[bte] header: a tensor must be [name, dtype, shape, offset, bytes]")
        if len(shape) > MAX_RANK:
            raise OutOfRange(f"[bte] tensor {name!r}: expected rank 0 .. {MAX_RANK}")
        dims = tuple(_integer(s, 1, 1 << 32, f"a size of {name!r}") for s in shape)
        offset = _integer(offset, 0, weights.bytes, f"offset of {name!r}")
        size = _integer(size, 0, weights.bytes, f"bytes of {name!r}")
        if size != tensor_bytes(dtype, dims):
            raise OutOfRange(
                f"[bte] tensor {name!r}: expected {tensor_bytes(dtype, dims)} bytes for {dtype} "
                f"{dims}, got {str(size)[:40]}"
            )
        if offset != position or size > weights.bytes - offset:
            raise OutOfRange(
                f"[bte] tensor {name!r}: expected offset {position} within {weights.bytes} bytes, "
                f"got {str(offset)[:40]} + {size}"
            )
        yield StoredTensor(name, dtype, dims, offset, size)
        position = -(-(offset + size) // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the stored bytes of a tensor.

    Raises
    ------
    FormatError
        For an unknown dtype, or a packed tensor that is no matrix.
    """
    if dtype in ("int8_rows", "int4_groups"):
        if len(shape) != 2:
            raise FormatError(f"[bte] an {dtype} tensor has 2 dimensions, got {len(shape)}")
        panels, k = -(-shape[0] // 16), shape[1]
        return panels * (64 + 64 * -(-k // 4) if dtype == "int8_rows" else 576 * -(-k // 64))
    if dtype == "ternary":
        if len(shape) != 2:
            raise FormatError(f"[bte] a ternary tensor has 2 dimensions, got {len(shape)}")
        rows, k = (-(-size // 16) * 16 for size in shape)
        return rows * k // 4
    if dtype not in DTYPE_BYTES:
        raise FormatError(f"[bte] unknown dtype {dtype!r}")
    size = DTYPE_BYTES[dtype]
    for length in shape:
        size *= length
    return size


def _check_model(model: dict[str, Any]) -> None:
    for key in ("name", "architecture"):
        if not _field(model, key, str, "model").isprintable():
            raise FormatError(f"[bte] model: {key!r} must be printable text")
    for key, high in (("vocab_size", 1 << 24), ("context_length", 1 << 32)):
        _integer(model.get(key), 0, high, key)
    _integer(model.get("bos_id"), -1, 1 << 24, "bos_id")
    for token in _field(model, "eos_ids", list, "model"):
        _integer(token, 0, 1 << 24, "an eos id")


def _check_plan(plan: dict[str, Any]) -> None:
    for key in ("profile", "kv_dtype", "residency"):
        _field(plan, key, str, "plan")
    for key, low, high in (
        ("context", 0, 1 << 20),
        ("prefill_chunk", 1, 1 << 16),
        ("threads", 1, _engine.MAX_THREADS),
        ("allowed_bytes", 1, 1 << 40),
        ("needed_bytes", 1, 1 << 40),
    ):
        _integer(plan.get(key), low, high, f"plan {key}")
    classes = _field(plan, "private_bytes", dict, "plan")
    for name, size in classes.items():
        _integer(size, 0, 1 << 40, f"plan bytes of {name!r}")
