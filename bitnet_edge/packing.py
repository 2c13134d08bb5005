# SPDX-License-Identifier: MIT
"""P16: two bits a ternary weight, one layout for every CPU and GPU.

Rows are padded to 16 and columns to 16 with code 1 (weight 0). A block is 16 rows by 16 columns in
64 bytes; a panel is the blocks of 16 rows, left to right; panels follow each other::

    byte[((row / 16) * (k_padded / 16) + k / 16) * 64 + 4 * (row % 16) + k % 4]
    bits 2f .. 2f + 1 of that byte, f = (k % 16) / 4, hold code = weight + 1

so that each 32-bit lane of a vector holds one row, and a panel is one sequential stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import NotTernary, ShapeMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ARRAY_TYPES", "PANEL_ROWS", "p16_bytes", "pack_p16", "round_up", "unpack_p16"]

# How the values of unpacked constants come and go as arrays; f16 and bf16 as their bits.
ARRAY_TYPES = {
    DType.F32: np.float32,
    DType.F16: np.uint16,
    DType.BF16: np.uint16,
    DType.I32: np.int32,
}
PANEL_ROWS = 16
BLOCK_COLUMNS = 16


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def p16_bytes(rows: int, k: int) -> int:
    """Return the bytes of a (rows, k) ternary matrix in P16."""
    return round_up(rows, PANEL_ROWS) * round_up(k, BLOCK_COLUMNS) // 4


def pack_p16(weights: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack a ternary matrix, or a run of whole panels of one.

    Parameters
    ----------
    weights : ndarray of int8, shape (rows, k)
        Values -1, 0, +1.

    Returns
    -------
    ndarray of uint8, shape (p16_bytes(rows, k),)

    Raises
    ------
    NotTernary
        Naming the first offending element.
    """
    rows, k = weights.shape
    if weights.size and (weights.min() < -1 or weights.max() > 1):
        row, column = np.argwhere((weights < -1) | (weights > 1))[0]
        raise NotTernary(
            f"[p16] expected -1, 0 or +1, got {weights[row, column]} at row {row}, column {column}"
        )
    padded = np.ones((round_up(rows, PANEL_ROWS), round_up(k, BLOCK_COLUMNS)), np.uint8)
    padded[:rows, :k] = weights + 1
    # axes: panel, row in panel, block, field, byte in field
    codes = padded.reshape(len(padded) // PANEL_ROWS, PANEL_ROWS, -1, 4, 4)
    packed = np.zeros_like(codes[..., 0, :])
    for field in range(4):
        packed |= codes[..., field, :] << 2 * field
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).reshape(-1)


def unpack_p16(packed: NDArray[np.uint8], rows: int, k: int) -> NDArray[np.int8]:
    """Undo `pack_p16`.

    Returns
    -------
    ndarray of int8, shape (rows, k)
        Code 3, which no packer writes, comes out as +2.

    Raises
    ------
    ShapeMismatch
        When the number of bytes is not `p16_bytes`.
    """
    if packed.size != p16_bytes(rows, k):
        raise ShapeMismatch(f"[p16] expected {p16_bytes(rows, k)} bytes, got {packed.size}")
    blocks = packed.reshape(-1, round_up(k, BLOCK_COLUMNS) // BLOCK_COLUMNS, PANEL_ROWS, 1, 4)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    codes = (blocks >> shifts & 3).transpose(0, 2, 1, 3, 4)
    padded = codes.reshape(round_up(rows, PANEL_ROWS), -1)
    weights: NDArray[np.int8] = padded[:rows, :k].astype(np.int8)
    weights -= 1
    return weights
