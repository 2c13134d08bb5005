# SPDX-License-Identifier: MIT
"""Ternary weights out of what checkpoints store: float masters, or two bits a weight.

Both directions of a scale are float32 here, as in the reference, transformers
``integrations/bitnet.py``; tensors are walked in blocks of rows, so that the memory needed is the
int8 result and a few MB.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.errors import ModelError, NotTernary
from bitnet_edge.exporters.sources.checkpoint import Checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FLOAT_DTYPES",
    "VALUES_PER_ITEM",
    "absmean",
    "packed_rows",
    "read_ternary",
    "ternarise",
    "to_float32",
    "unpack",
]

FLOAT_DTYPES = ("F32", "F16", "BF16")
VALUES_PER_ITEM = 4
_MIN_MEAN = np.float32(1e-5)


def to_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Widen stored floats, exactly.

    Parameters
    ----------
    values : ndarray
        As `Checkpoint.array` gives them.
    dtype : str
        One of `FLOAT_DTYPES`; BF16 is the upper half of a float32.

    Returns
    -------
    ndarray of float32, the same shape
        A copy.
    """
    if dtype != "BF16":
        return values.astype(np.float32)
    bits = values.astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def absmean(checkpoint: Checkpoint, name: str) -> np.float32:
    """Return ``clamp(mean|W|, 1e-5)`` of a float tensor, in float32.

    The sum runs in float64 and is rounded once. torch sums in float32, in an order that depends on
    its build and on the number of threads; its mean is a few units in the last place off this one.

    Parameters
    ----------
    checkpoint : Checkpoint
    name : str
        A tensor of one of `FLOAT_DTYPES`.

    Raises
    ------
    ModelError
        When a weight is infinite or not a number.
    """
    info = checkpoint.info(name)
    sums, count = [], 0
    for _, rows in checkpoint.row_blocks(name):
        values = to_float32(rows, info.dtype)
        np.abs(values, out=values)
        sums.append(float(values.sum(dtype=np.float64)))
        count += values.size
    mean = math.fsum(sums) / count if count and all(map(math.isfinite, sums)) else math.nan
    if not mean <= np.finfo(np.float32).max:
        raise ModelError(
            f"[ternary] expected finite weights, got an infinity or a NaN (tensor {name!r} of "
            f"{checkpoint.path})"
        )
    return max(np.float32(mean), _MIN_MEAN)


def ternarise(checkpoint: Checkpoint, name: str, mean: np.float32) -> NDArray[np.int8]:
    """Round master weights: ``clamp(round_half_even(W * (1 / mean)), -1, 1)``, in float32.

    Parameters
    ----------
    checkpoint : Checkpoint
    name : str
        A tensor of one of `FLOAT_DTYPES`, shape (rows, k).
    mean : float32
        From `absmean`.

    Returns
    -------
    ndarray of int8, shape (rows, k)
    """
    info = checkpoint.info(name)
    scale = np.float32(1.0) / mean
    codes = np.empty(info.shape, np.int8)
    for first, rows in checkpoint.row_blocks(name):
        values = to_float32(rows, info.dtype)
        with np.errstate(over="ignore"):  # an infinity is clamped like any large weight
            values *= scale
        np.rint(values, out=values)
        np.clip(values, -1, 1, out=values)
        codes[first : first + len(rows)] = values
    return codes


def packed_rows(rows: int) -> int:
    """Return the stored rows of a packed matrix of ``rows`` rows."""
    return -(-rows // VALUES_PER_ITEM)


def unpack(checkpoint: Checkpoint, name: str, rows: int) -> NDArray[np.int8]:
    """Unpack ``pack_weights``: row ``i * R + r`` is bits ``2i .. 2i + 1`` of stored row ``r``.

    R is `packed_rows`; code = weight + 1. Bits of rows past the last one mean nothing.

    Parameters
    ----------
    checkpoint : Checkpoint
    name : str
        A U8 tensor of shape (R, k).
    rows : int

    Returns
    -------
    ndarray of int8, shape (rows, k)

    Raises
    ------
    NotTernary
        On code 3, naming tensor, row and column.
    """
    stored, k = checkpoint.info(name).shape
    codes = np.empty((rows, k), np.int8)
    for first, block in checkpoint.row_blocks(name):
        for i in range(VALUES_PER_ITEM):
            start = i * stored + first
            stop = min(start + len(block), rows)
            if start >= stop:
                break
            plane = block[: stop - start] >> np.uint8(2 * i) & np.uint8(3)
            if plane.max() == 3:
                row, column = np.argwhere(plane == 3)[0]
                raise NotTernary(
                    f"[ternary] expected codes 0, 1 or 2, got 3 at row {start + row}, column "
                    f"{column} (tensor {name!r} of {checkpoint.path})"
                )
            np.subtract(plane.view(np.int8), 1, out=codes[start:stop])
    return codes


def read_ternary(checkpoint: Checkpoint, name: str) -> NDArray[np.int8]:
    """Read a float tensor whose values are -1, 0 and +1 already.

    Returns
    -------
    ndarray of int8, in the stored shape (rows, k)

    Raises
    ------
    NotTernary
        On any other value, naming tensor, row and column.
    """
    info = checkpoint.info(name)
    codes = np.empty(info.shape, np.int8)
    for first, rows in checkpoint.row_blocks(name):
        values = to_float32(rows, info.dtype)
        bad = (values != 0) & (np.abs(values) != 1)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise NotTernary(
                f"[ternary] expected -1, 0 or +1, got {values[row, column]} at row {first + row}, "
                f"column {column} (tensor {name!r} of {checkpoint.path})"
            )
        codes[first : first + len(rows)] = values
    return codes
