# SPDX-License-Identifier: MIT
"""Quantised heads: int8 with a scale a row, int4 with a scale for 32 columns; values and bytes.

A plan may store the float matrix of a model's output layer (and the embedding table tied to it)
in fewer bits. Definition, in float32 with every operation rounded:

* int8: ``s = max|w| / 127`` of the row, ``code = clamp(round_half_even(w / s), -127, 127)``;
* int4: ``s = float16(m / -8)``, ``m`` the first element of largest magnitude of the row's 32
  columns (a ragged group counts as filled up with zeros),
  ``code = clamp(round_half_even(w / s), -8, 7)``: the largest element is always met exactly but
  for the rounding of ``s``, and all 16 codes are used, since ``s`` may be negative.

Where ``s`` is zero every code is. A weight is ``code * s``. 32 columns and float16 make 4.5 bits
a weight; 64 columns would make 4.25 and an eighth more error (`tests/golden/test_head_quality.py`
prints both). The bytes are those of ``cython_kernels/include/head_layout.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, ModelError, ShapeMismatch
from bitnet_edge.packing import PANEL_ROWS, round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitnet_edge.graph import Graph, Node

__all__ = [
    "HEAD_DTYPES",
    "MAX_COLUMNS",
    "QUANTISED",
    "SCREENED",
    "STORED",
    "QuantisedHead",
    "head_bytes",
    "head_limit",
    "head_storage",
    "output_matrices",
    "pack_head",
    "packed_heads",
    "quantise_head",
    "unpack_head",
]

STORED = "stored"  # the head keeps the checkpoint's dtype
MAX_COLUMNS = 1 << 17  # BE_HEAD_MAX_K
GROUP = 32  # columns that share an int4 scale
BLOCK4 = 4  # columns of an int8 line
BLOCK64 = 64  # columns of an int4 block
_STORAGE = {"int8": DType.I8_ROWS, "int4": DType.I4_GROUPS}
QUANTISED = tuple(_STORAGE)  # by rising loss
# The matrix keeps its dtype, and codes of this one stand beside it (`bitnet_edge.head_screen`).
SCREENED = {f"screened-{name}": dtype for name, dtype in _STORAGE.items()}
HEAD_DTYPES = (STORED, *QUANTISED, *SCREENED)
# Column 2n + j of a line's eight is nibble n of 16-bit word j.
_NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class QuantisedHead:
    """Codes and scales of some rows.

    Attributes
    ----------
    dtype : DType
        ``I8_ROWS`` or ``I4_GROUPS``.
    codes : ndarray of int8, shape (rows, k)
    scales : ndarray of float32, shape (rows, 1) or (rows, ceil(k / 32))
    """

    dtype: DType
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def rows(self, index: Any) -> NDArray[np.float32]:
        """Return the weights of chosen rows as float32."""
        scales = self.scales[index]
        if self.dtype is DType.I4_GROUPS:
            scales = np.repeat(scales, GROUP, axis=-1)[..., : self.codes.shape[1]]
        weights: NDArray[np.float32] = self.codes[index].astype(np.float32) * scales
        return weights


def head_storage(head_dtype: str) -> DType | None:
    """Return how the matrix of a head is stored; None where it keeps its own dtype."""
    return _STORAGE.get(head_dtype)


def packed_heads(graph: Graph, head_dtype: str) -> dict[str, DType]:
    """Return the float matrices that a head dtype stores quantised, and how.

    They are the weights of the linears that give the graph's outputs; an embedding that is tied to
    one is read from the same bytes.

    Raises
    ------
    ArgumentError
        For an unknown head dtype, or a graph without such a matrix.
    """
    if head_dtype not in HEAD_DTYPES:
        raise ArgumentError(
            f"[plan] expected head_dtype {', '.join(HEAD_DTYPES)}, got {head_dtype!r}"
        )
    storage = head_storage(head_dtype)
    if storage is None:
        return {}
    return {node.inputs[1]: storage for node in output_matrices(graph, head_dtype)}


def output_matrices(graph: Graph, head_dtype: str) -> list[Node]:
    """Return the float linears that give the graph's outputs.

    Raises
    ------
    ArgumentError
        When there is none, or one with too many columns for codes.
    """
    nodes = [
        node for node in graph.nodes if node.op == "linear" and node.outputs[0] in graph.outputs
    ]
    if not nodes:
        raise ArgumentError(
            f"[plan] expected a float output layer for head_dtype {head_dtype}, "
            f"{graph.info.name!r} has none"
        )
    for node in nodes:
        name = node.inputs[1]
        if graph.tensors[name].shape[1] > MAX_COLUMNS:
            raise ArgumentError(
                f"[plan] expected at most {MAX_COLUMNS} columns for head_dtype {head_dtype}, got "
                f"{graph.tensors[name].shape[1]} (tensor {name!r})"
            )
    return nodes


def head_limit(k: int) -> int:
    """Return the largest activation for k columns (``be_head_limit``): no sum leaves int32."""
    return min((2**31 - 1) // 128 // max(k, 1), 32767)


def head_bytes(dtype: DType, rows: int, k: int) -> int:
    """Return the stored bytes of a (rows, k) head."""
    panels = -(-rows // PANEL_ROWS)
    if dtype is DType.I8_ROWS:
        return panels * (64 + 64 * -(-k // BLOCK4))
    return panels * 576 * -(-k // BLOCK64)


def quantise_head(values: NDArray[np.float32], dtype: DType) -> QuantisedHead:
    """Quantise rows.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, k)
    dtype : DType
        ``I8_ROWS`` or ``I4_GROUPS``.

    Raises
    ------
    ModelError
        When a row holds a value that is not finite, or too large for a float16 scale.
    """
    if dtype is DType.I8_ROWS:
        scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        codes = _codes(values, scales, -127, 127)
    else:
        rows, k = values.shape
        groups = np.zeros((rows, round_up(k, GROUP) // GROUP, GROUP), np.float32)
        groups.reshape(rows, -1)[:, :k] = values
        largest = np.abs(groups).argmax(axis=2)[..., None]
        with np.errstate(over="ignore"):
            scales16 = (np.take_along_axis(groups, largest, 2) / np.float32(-8)).astype(np.float16)
        scales = scales16.astype(np.float32)
        codes = _codes(groups, scales, -8, 7).reshape(rows, -1)[:, :k]
        scales = scales[..., 0]
    wrong = ~np.isfinite(scales).all(axis=1)
    if wrong.any():
        raise ModelError(
            f"[head] expected finite weights within the scales' range, got "
            f"{np.abs(values[wrong.argmax()]).max()} in row {wrong.argmax()}"
        )
    return QuantisedHead(dtype, codes, scales)


def _codes(
    values: NDArray[np.float32], scales: NDArray[np.float32], low: int, high: int
) -> NDArray[np.int8]:
    with np.errstate(all="ignore"):
        quotients = np.where(scales == 0, np.float32(0), values / scales)
        codes: NDArray[np.int8] = np.nan_to_num(np.clip(np.rint(quotients), low, high)).astype(
            np.int8
        )
    return codes


def pack_head(head: QuantisedHead) -> NDArray[np.uint8]:
    """Return the bytes of some whole panels (the last may be ragged)."""
    rows, k = head.codes.shape
    if head.dtype is DType.I8_ROWS:
        codes = np.zeros((round_up(rows, PANEL_ROWS), round_up(k, BLOCK4)), np.int8)
        codes[:rows, :k] = head.codes
        scales = np.zeros((len(codes), 1), np.float32)
        scales[:rows] = head.scales
        lines = codes.reshape(-1, PANEL_ROWS, codes.shape[1] // BLOCK4, BLOCK4)
        body = np.ascontiguousarray(lines.transpose(0, 2, 1, 3)).view(np.uint8)
        front = scales.reshape(-1, PANEL_ROWS).view(np.uint8)
        panels = np.concatenate([front, body.reshape(len(front), -1)], axis=1)
        return panels.reshape(-1)
    nibbles = np.full((round_up(rows, PANEL_ROWS), round_up(k, BLOCK64)), 8, np.uint8)
    nibbles[:rows, :k] = (head.codes + np.int8(8)).view(np.uint8)
    scales = np.zeros((len(nibbles), nibbles.shape[1] // GROUP), np.float32)
    scales[:rows, : head.scales.shape[1]] = head.scales
    # axes: panel, row, block, line, column of the line
    split = nibbles.reshape(-1, PANEL_ROWS, nibbles.shape[1] // BLOCK64, 8, 8)
    split = split[..., _NIBBLE_ORDER]
    lines4 = (split[..., 0::2] | split[..., 1::2] << 4).transpose(0, 2, 3, 1, 4)
    halves = scales.astype(np.float16).reshape(-1, PANEL_ROWS, nibbles.shape[1] // BLOCK64, 2)
    front4 = np.ascontiguousarray(halves.transpose(0, 2, 3, 1)).view(np.uint8)
    shape = (*lines4.shape[:2], -1)
    return np.concatenate([front4.reshape(shape), lines4.reshape(shape)], axis=2).reshape(-1)


def unpack_head(packed: NDArray[np.uint8], dtype: DType, shape: tuple[int, ...]) -> QuantisedHead:
    """Undo `pack_head`.

    Raises
    ------
    ShapeMismatch
        When the number of bytes is not `head_bytes`.
    """
    rows, k = shape
    if packed.size != head_bytes(dtype, rows, k):
        raise ShapeMismatch(
            f"[head] expected {head_bytes(dtype, rows, k)} bytes, got {packed.size}"
        )
    panels = -(-rows // PANEL_ROWS)
    if dtype is DType.I8_ROWS:
        both = packed.reshape(panels, -1)
        scales = np.ascontiguousarray(both[:, :64]).view(np.float32).reshape(-1, 1)
        lines = both[:, 64:].reshape(panels, -1, PANEL_ROWS, BLOCK4).transpose(0, 2, 1, 3)
        codes = np.ascontiguousarray(lines).view(np.int8).reshape(panels * PANEL_ROWS, -1)
        return QuantisedHead(dtype, codes[:rows, :k], scales[:rows])
    blocks = packed.reshape(panels, -1, 576)
    halves = np.ascontiguousarray(blocks[..., :64]).view(np.float16)
    halves = halves.reshape(panels, -1, 2, PANEL_ROWS).transpose(0, 3, 1, 2)
    scales = halves.reshape(panels * PANEL_ROWS, -1).astype(np.float32)
    lines4 = blocks[..., 64:].reshape(panels, -1, 8, PANEL_ROWS, 4).transpose(0, 3, 1, 2, 4)
    split = np.stack([lines4 & 15, lines4 >> 4], axis=-1).reshape(*lines4.shape[:4], 8)
    columns = split[..., np.argsort(_NIBBLE_ORDER)].reshape(panels * PANEL_ROWS, -1)
    codes4 = columns[:rows, :k].view(np.int8) - np.int8(8)
    return QuantisedHead(dtype, codes4, scales[:rows, : -(-k // GROUP)])
