# SPDX-License-Identifier: MIT
"""Ternary matrices as other runtimes store them: packed fields, and sentinel columns.

A runtime that quantises activations by itself does so by their largest magnitude. Columns that
always hold that magnitude, over weights of zero, make its factor one and its products exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["pack_bits", "with_sentinels"]


def pack_bits(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Pack integers as fields of 2 or 4 bits, two's complement, the first in the lowest bits.

    Parameters
    ----------
    codes : ndarray of integers
        Read in C order; the last byte is filled up with zeros.
    bits : int

    Returns
    -------
    ndarray of uint8, one dimension
    """
    flat = codes.reshape(-1)
    per_byte = 8 // bits
    fields = np.zeros(-(-flat.size // per_byte) * per_byte, np.uint8)
    fields[: flat.size] = flat.astype(np.uint8) & np.uint8((1 << bits) - 1)
    packed = np.zeros(len(fields) // per_byte, np.uint8)
    for index in range(per_byte):
        packed |= fields[index::per_byte] << np.uint8(bits * index)
    return packed


def with_sentinels(codes: NDArray[np.int8], block: int) -> NDArray[np.int8]:
    """Return a matrix in blocks of columns that end in a zero one, the last block filled with 0."""
    rows, k = codes.shape
    blocks = -(-k // (block - 1))
    filled = np.pad(codes, ((0, 0), (0, blocks * (block - 1) - k)))
    wide = np.pad(filled.reshape(rows, blocks, block - 1), ((0, 0), (0, 0), (0, 1)))
    return wide.reshape(rows, blocks * block)
