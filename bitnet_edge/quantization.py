# SPDX-License-Identifier: MIT
"""The engine's run-time quantisers in numpy, to the bit: int8 rows, and the formats of KV caches.

A cache holds the keys or the values of one layer. The engine reads codes where they lie
(``engine/kv_cache.h`` has the bytes); here a row comes back as float32 elements and one float32
factor that the attention applies to the row's product with the query, or to its weight:

========  ====================================================================  ======
format    elements                                                              factor
========  ====================================================================  ======
f32, f16  as stored                                                             1
int8      codes of `quantize`; the row's scale is the factor                    1 / s
int4      code * scale, exact in float32, by groups of 32 (`quantize_kv_i4`)    1
========  ====================================================================  ======
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

F32 = Any  # NDArray[np.float32]: numpy's stubs lose the type in every operation with a scalar

__all__ = ["KVCache", "f32", "new_kv_cache", "quantize", "quantize_kv_i4"]

ROUND_MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, ties to even
KV_GROUP = 32
KV_I4_MIN = np.float32(1e-30)


def f32(value: float) -> Any:
    """Return a float32 scalar (numpy would compute in float64 otherwise)."""
    return np.float32(value)


def quantize(x: F32) -> tuple[NDArray[np.int8], F32]:
    """Quantise rows to int8 by their largest magnitude.

    Parameters
    ----------
    x : ndarray of float32, shape (n, k)

    Returns
    -------
    q : ndarray of int8, shape (n, k)
    s : ndarray of float32, shape (n,)
        ``127 / max(absmax(row), 1e-5)``.
    """
    with np.errstate(all="ignore"):
        magnitude = np.where(np.isnan(x), f32(0.0), np.abs(x)).max(axis=1, initial=0)
        s = f32(127.0) / np.maximum(magnitude, f32(1e-5)).astype(np.float32)
        v = x * s[:, None]
        v = np.clip(np.where(np.isnan(v), f32(0.0), v), f32(-128.0), f32(127.0))
        return ((v + ROUND_MAGIC) - ROUND_MAGIC).astype(np.int8), s


def quantize_kv_i4(x: F32) -> tuple[NDArray[np.int8], F32]:
    """Quantise groups of at most 32 elements to -8 .. 7, as ``scalar/quantize_kv.h``.

    The element of the largest magnitude (the positive one of two equals) gets code -8, so that all
    sixteen levels are used; the scale is a bfloat16, negative when that element is positive.

    Parameters
    ----------
    x : ndarray of float32, shape (n, elements)

    Returns
    -------
    codes : ndarray of int8, shape (n, elements)
    scales : ndarray of float32, shape (n,)
        Values of bfloat16; ``codes * scale`` is exact in float32.
    """
    with np.errstate(all="ignore"):
        numbers = np.where(np.isnan(x), f32(0.0), x)
        low, high = numbers.min(axis=1, initial=0), numbers.max(axis=1, initial=0)
        magnitude = np.maximum(np.maximum(-low, high), KV_I4_MIN) * f32(0.125)
        bits = magnitude.view(np.uint32)
        bits = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        scales = (bits & np.uint32(0xFFFF0000)).view(np.float32)
        scales = np.where(-low > high, scales, -scales)
        v = x * (f32(1.0) / scales)[:, None]
        v = np.clip(np.where(np.isnan(v), f32(0.0), v), f32(-8.0), f32(7.0))
        return ((v + ROUND_MAGIC) - ROUND_MAGIC).astype(np.int8), scales


class KVCache(Protocol):
    """Keys or values of one layer."""

    def append(self, position: int, rows: F32) -> None:
        """Store rows, shape (heads, n, head_dim), at ``position ...``."""

    def read(self, head: int, count: int) -> tuple[F32, F32]:
        """Return the first rows of a head, (count, head_dim), and their factors, (count,)."""
        ...


class _FloatCache:
    def __init__(self, shape: tuple[int, int, int], dtype: DType) -> None:
        self._rows = np.zeros(shape, np.float16 if dtype is DType.F16 else np.float32)

    def append(self, position: int, rows: F32) -> None:
        with np.errstate(all="ignore"):  # float16 overflows to infinity
            self._rows[:, position : position + rows.shape[1]] = rows

    def read(self, head: int, count: int) -> tuple[F32, F32]:
        return self._rows[head, :count].astype(np.float32), np.ones(count, np.float32)


class _Int8Cache:
    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._codes = np.zeros(shape, np.int8)
        self._scales = np.zeros(shape[:2], np.float32)

    def append(self, position: int, rows: F32) -> None:
        for head, values in enumerate(rows):
            codes, inverse = quantize(values)
            self._codes[head, position : position + len(values)] = codes
            with np.errstate(all="ignore"):
                self._scales[head, position : position + len(values)] = f32(1.0) / inverse

    def read(self, head: int, count: int) -> tuple[F32, F32]:
        return self._codes[head, :count].astype(np.float32), self._scales[head, :count]


class _Int4Cache:
    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._rows = np.zeros(shape, np.float32)  # code * scale

    def append(self, position: int, rows: F32) -> None:
        for head, values in enumerate(rows):
            for first in range(0, values.shape[1], KV_GROUP):
                group = slice(first, first + KV_GROUP)
                codes, scales = quantize_kv_i4(values[:, group])
                with np.errstate(all="ignore"):
                    self._rows[head, position : position + len(values), group] = (
                        codes * scales[:, None]
                    )

    def read(self, head: int, count: int) -> tuple[F32, F32]:
        return self._rows[head, :count], np.ones(count, np.float32)


def new_kv_cache(shape: tuple[int, int, int], dtype: DType) -> KVCache:
    """Return an empty cache of shape (heads, positions, head_dim)."""
    if dtype is DType.I8:
        return _Int8Cache(shape)
    if dtype is DType.I4:
        return _Int4Cache(shape)
    return _FloatCache(shape, dtype)
