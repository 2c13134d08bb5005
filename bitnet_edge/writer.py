# SPDX-License-Identifier: MIT
"""Writing a ``.bte`` file tensor by tensor, so that no model is ever whole in memory."""

from __future__ import annotations

import binascii
import hashlib
import json
import mmap
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bitnet_edge import _engine
from bitnet_edge._numpy import np
from bitnet_edge.atomic import replacing_file
from bitnet_edge.container import (
    FORMAT_VERSION,
    MAGIC,
    MAX_HEADER,
    PREFIX,
    SECTION_ALIGNMENT,
)
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ExportError, FormatError, ModelError, ShapeMismatch
from bitnet_edge.graph import Tensor
from bitnet_edge.head_packing import QuantisedHead, head_storage, pack_head, quantise_head
from bitnet_edge.head_screen import row_bounds, screened_heads
from bitnet_edge.packing import ARRAY_TYPES, PANEL_ROWS, pack_p16, round_up
from bitnet_edge.plan_memory import WeightSlot
from bitnet_edge.planner import Plan
from bitnet_edge.program import encode_program
from bitnet_edge.reference import widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitnet_edge.exporters.sources.source import ModelSource

__all__ = ["store_limit_error", "write_bte"]

Progress = Callable[[int, int], None]

_CHUNK_BYTES = 8 << 20  # rows are read, packed and written in runs of about this size
_HEADS = (DType.I8_ROWS, DType.I4_GROUPS)
_FEATURES = {dtype.value for dtype in _HEADS}  # a reader without them must refuse the file
_SCREENED_FEATURE = "screened_head"


def write_bte(
    path: str | Path,
    source: ModelSource,
    plan: Plan,
    *,
    force: bool = False,
    progress: Progress | None = None,
    max_bytes: int | None = None,
) -> None:
    """Write a planned model.

    Parameters
    ----------
    path : str or Path
        Destination.
    source : ModelSource
    plan : Plan
        Made for ``source.graph``.
    force : bool
        Replace an existing file.
    progress : callable, optional
        Called with (bytes written, bytes in all).
    max_bytes : int, optional
        Largest package that the device's store delivers.

    Raises
    ------
    ExportError
        When the destination exists (without ``force``) or cannot be written, or the file would be
        larger than ``max_bytes``.
    NotTernary, ModelError
        When a weight cannot be read as the graph says.
    """
    path = Path(path)
    if path.exists() and not force:
        raise ExportError(f"[export] {path} exists; --force (force=True) replaces it")
    sections = {"program": encode_program(source.graph, plan)}
    if source.tokenizer is not None:
        sections["tokenizer"] = source.tokenizer
    sections["graph"] = json.dumps(source.graph.to_json(), separators=(",", ":")).encode()
    last = plan.weights[-1]
    sizes = {name: len(data) for name, data in sections.items()}
    sizes["weights"] = last.offset + last.bytes
    # The header holds the checksums, which are known last: reserve its room with the real
    # lengths and dummy digests, write the sections, then fill it in.
    header_bytes = len(_header(source, plan, sizes, {}, 0))
    offsets = _section_offsets(sizes, PREFIX.size + header_bytes)
    total = round_up(offsets["weights"] + sizes["weights"], SECTION_ALIGNMENT)
    if max_bytes is not None and total > max_bytes:
        raise store_limit_error(total, max_bytes, plan.profile)
    with replacing_file(path) as file:
        digests: dict[str, str] = {}
        for name, data in sections.items():
            _pad_to(file, offsets[name])
            file.write(data)
            digests[name] = hashlib.sha256(data).hexdigest()
        _pad_to(file, offsets["weights"])
        digests["weights"] = _write_weights(file, source, plan, progress)
        _pad_to(file, total)
        header = _header(source, plan, sizes, digests, header_bytes)
        file.seek(0)
        file.write(PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), total, binascii.crc32(header)))
        file.write(header)
        file.flush()
        _check_program(file, offsets, sizes)


def store_limit_error(size: int, max_bytes: int, profile: str) -> ExportError:
    """Return what to raise for a package that the device's store does not deliver."""
    mb, limit = size / (1 << 20), max_bytes / (1 << 20)
    return ExportError(
        f"[export] the package has {mb:.1f} MB, {mb - limit:.1f} MB over the {limit:.4g} MB that "
        f"the store delivers to {profile} "
        "(ota_limit_mb); --ignore-ota-limit (ota_limit=False) writes it all the same"
    )


def _check_program(file: IO[bytes], offsets: dict[str, int], sizes: dict[str, int]) -> None:
    """Let the engine verify what was written, so that no file is left that it would refuse."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        section, weights = (
            view[offsets[name] : offsets[name] + sizes[name]] for name in ("program", "weights")
        )
        with section, weights:
            try:
                _engine.Program(section, weights)
            except FormatError as error:
                raise ExportError(f"[export] the engine cannot run this model: {error}") from error


def _header(
    source: ModelSource,
    plan: Plan,
    sizes: dict[str, int],
    digests: dict[str, str],
    header_bytes: int,
) -> bytes:
    """Return the JSON header.

    Its length decides the sections' offsets, which stand in it: the first call (``header_bytes``
    0) leaves slack for their digits, the later ones pad with spaces to that length.
    """
    info = source.graph.info
    offsets = _section_offsets(sizes, PREFIX.size + header_bytes)
    features = sorted({slot.dtype.value for slot in plan.weights} & _FEATURES)
    if screened_heads(source.graph, plan.head_dtype):
        features.append(_SCREENED_FEATURE)
    data: dict[str, Any] = {
        "requires": ["p16", *features],
        "model": {
            "name": info.name,
            "architecture": info.architecture,
            "context_length": info.context_length,
            "vocab_size": info.vocab_size,
            "bos_id": info.bos_id,
            "eos_ids": list(info.eos_ids),
        },
        "plan": {
            "profile": plan.profile,
            **plan.choices_json(),
            **plan.budget.to_json(),
        },
        "sections": [
            {
                "name": name,
                "offset": offsets[name],
                "bytes": size,
                "sha256": digests.get(name, "0" * 64),
            }
            for name, size in sizes.items()
        ],
        "tensors": [
            [slot.name, slot.dtype.value, list(slot.shape), slot.offset, slot.bytes]
            for slot in plan.weights
        ],
    }
    text = json.dumps(data, separators=(",", ":"))
    slack = 0 if header_bytes else 16 * len(sizes)  # digits the real offsets may add
    raw = text.encode() + b" " * slack
    if len(raw) > MAX_HEADER:
        raise FormatError(f"[bte] expected a header of at most {MAX_HEADER} bytes, got {len(raw)}")
    return raw.ljust(header_bytes)


def _section_offsets(sizes: dict[str, int], start: int) -> dict[str, int]:
    offsets: dict[str, int] = {}
    for name, size in sizes.items():
        offsets[name] = round_up(start, SECTION_ALIGNMENT)
        start = offsets[name] + size
    return offsets


def _write_weights(
    file: IO[bytes], source: ModelSource, plan: Plan, progress: Progress | None
) -> str:
    digest = hashlib.sha256()
    last = plan.weights[-1]
    total = last.offset + last.bytes
    written = 0
    screens = screened_heads(source.graph, plan.head_dtype)
    screened = {screen.codes: name for name, screen in screens.items()}
    bounded = {screen.bounds: (name, screen.dtype) for name, screen in screens.items()}
    for slot in plan.weights:
        padding = b"\0" * (slot.offset - written)
        if slot.name in screened:
            chunks = _head_chunks(slot, source, screened[slot.name])
        elif slot.name in bounded:
            chunks = _bound_chunks(source, *bounded[slot.name])
        else:
            chunks = _stored_chunks(slot, source)
        for chunk in chain((padding,), chunks):
            file.write(chunk)
            digest.update(chunk)
            written += len(chunk)
            if progress and chunk:
                progress(written, total)
    return digest.hexdigest()


def _stored_chunks(slot: WeightSlot, source: ModelSource) -> Iterator[bytes]:
    """Yield a constant's bytes as they stand in the file."""
    if slot.dtype in _HEADS:
        yield from _head_chunks(slot, source, slot.name)
        return
    values = source.weights.load(slot.name)
    _check_values(values, np.int8 if slot.dtype is DType.TERNARY else ARRAY_TYPES[slot.dtype], slot)
    row_bytes = max(1, values[:1].nbytes)
    step = max(PANEL_ROWS, _CHUNK_BYTES // row_bytes // PANEL_ROWS * PANEL_ROWS)
    for first in range(0, len(values), step):
        rows = values[first : first + step]
        yield (pack_p16(rows.view(np.int8)) if slot.dtype is DType.TERNARY else rows).tobytes()


def _head_chunks(slot: WeightSlot, source: ModelSource, name: str) -> Iterator[bytes]:
    """Yield the panels of a matrix's codes; a source that holds them already gives its bytes."""
    if head_storage(source.head_dtype) is not None:
        values = source.weights.load(name)
        if values.size != slot.bytes or values.dtype != np.uint8:
            raise ShapeMismatch(
                f"[export] expected {slot.bytes} packed bytes, got {values.dtype} {values.shape} "
                f"(tensor {name!r})"
            )
        for first in range(0, values.size, _CHUNK_BYTES):
            yield values[first : first + _CHUNK_BYTES].tobytes()
        return
    for _, head in _quantised(source, name, slot.dtype):
        yield pack_head(head).tobytes()


def _bound_chunks(source: ModelSource, name: str, dtype: DType) -> Iterator[bytes]:
    """Yield a screened matrix's bounds: 8 bytes a row, so all of them are held."""
    bounds = [row_bounds(rows, head) for rows, head in _quantised(source, name, dtype)]
    yield np.concatenate(bounds, axis=1).tobytes()


def _quantised(
    source: ModelSource, name: str, dtype: DType
) -> Iterator[tuple[NDArray[np.float32], QuantisedHead]]:
    """Yield runs of a float matrix's rows and their codes."""
    tensor, values = source.graph.tensors[name], source.weights.load(name)
    _check_values(values, ARRAY_TYPES[tensor.dtype], tensor)
    rows, k = tensor.shape
    step = max(PANEL_ROWS, _CHUNK_BYTES // 16 // k // PANEL_ROWS * PANEL_ROWS)
    for first in range(0, rows, step):
        widened = widen(values[first : first + step], tensor.dtype)
        try:
            head = quantise_head(widened, dtype)
        except ModelError as error:
            raise ModelError(f"{error} (tensor {name!r}, rows from {first})") from None
        yield widened, head


def _check_values(values: NDArray[np.generic], dtype: Any, slot: WeightSlot | Tensor) -> None:
    if values.shape != slot.shape or values.dtype != np.dtype(dtype):
        raise ShapeMismatch(
            f"[export] expected {np.dtype(dtype)} {slot.shape}, got {values.dtype} {values.shape} "
            f"(tensor {slot.name!r})"
        )


def _pad_to(file: IO[bytes], offset: int) -> None:
    file.write(b"\0" * (offset - file.tell()))
