# SPDX-License-Identifier: MIT
"""Kernels alone: from memory against the read bandwidth, in cache against scalar."""

from __future__ import annotations

import mmap
import tempfile

from bitnet_edge import _engine
from bitnet_edge.bench.measure import READ_BYTES, median, read_buffer, read_gbps

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from bitnet_edge.bench.measure import Buffer

__all__ = ["bench_kernels"]

ROWS, K = 6912, 2560  # the largest matrix of the 2B-4T model
_MATRIX = ROWS * K // 4
_TOKENS = (4, 8, 128)
_L1 = (64, 1024)
_MACS = 400_000_000  # of one sample in cache


def bench_kernels(threads: list[int], runs: int = 7, size: int = READ_BYTES) -> dict[str, Any]:
    """Measure gemv and gemm over P16, and heads.

    Parameters
    ----------
    threads : list of int
        For what comes from memory; in cache, one thread.
    runs : int
        Rounds of which the median counts; one more comes first to warm up.
    size : int
        Bytes of distinct matrices that count as out of cache.

    Returns
    -------
    dict
        ``kernels`` (which instruction set serves each) and ``rows``, JSON-serialisable.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryFile() as file:
        mapped = _mapped(file, size)
        for buffer, where in ((read_buffer(size), "memory"), (mapped, "mapped file")):
            for n in threads:
                rows += _from_memory(buffer, where, n, runs)
                rows += _heads(buffer, n, runs) if where == "memory" else ()
            buffer.close()
    rows += _in_cache(runs)
    return {"kernels": _engine.kernel_isas(), "rows": rows}


def _mapped(file: Any, size: int) -> mmap.mmap:
    """Return a read-only mapping of a file that the page cache holds."""
    block = bytes(range(256)) * 4096
    for _ in range(-(-size // len(block))):
        file.write(block)
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _from_memory(buffer: Buffer, where: str, threads: int, runs: int) -> Iterator[dict[str, Any]]:
    matrices = len(buffer) // _MATRIX
    samples = []
    for index in range(runs + 1):
        read = read_gbps(buffer, threads)
        ns = _engine.measure_ternary(buffer, ROWS, K, 1, 1, threads)
        if index > 0:
            samples.append((read, matrices * _MATRIX / ns))
    speed = median(gemv for _, gemv in samples)
    yield {
        "what": f"read, {where}",
        "threads": threads,
        "gb_per_s": median(read for read, _ in samples),
    }
    yield {
        "what": f"gemv {ROWS}x{K}, {where}",
        "threads": threads,
        "gb_per_s": speed,
        "percent_of_read": median(100 * gemv / read for read, gemv in samples),
        "gmac_per_s": 4 * speed,
    }


def _heads(buffer: Buffer, threads: int, runs: int) -> Iterator[dict[str, Any]]:
    """Yield a row per stored type of a head of K columns, as many rows as the buffer holds."""
    for name, bits in (("bf16", 16), ("int8", 8), ("int4", 4)):
        samples = []
        for index in range(runs + 1):
            read = read_gbps(buffer, threads)
            ns = _engine.measure_head(buffer, K, bits, threads)
            if index > 0:
                samples.append((read, len(buffer) / ns))
        yield {
            "what": f"head {name} x{K}, memory",
            "threads": threads,
            "gb_per_s": median(head for _, head in samples),
            "percent_of_read": median(100 * head / read for read, head in samples),
        }


def _in_cache(runs: int) -> Iterator[dict[str, Any]]:
    """Yield one row per shape; the gemv it is compared with is timed in the same round."""
    small = bytes(range(256)) * (_L1[0] * _L1[1] // 4 // 256)
    large = bytes(range(256)) * (_MATRIX // 256)
    cases = [("gemv", small, *_L1, 1), ("gemv", large, ROWS, K, 1)]
    cases += [(f"gemm m={m}", large, ROWS, K, m) for m in _TOKENS]
    for what, weights, rows, k, m in cases:
        macs = rows * k * m
        repeats = max(1, _MACS // macs)
        scalar = 1e9
        samples = []
        for index in range(runs + 1):
            gemv = _gmacs(large, ROWS, K, 1, 16)
            fast = _gmacs(weights, rows, k, m, repeats)
            if index > 0:
                samples.append((gemv, fast))
            if index < 2 and m <= max(1, _TOKENS[0]):  # seconds each, and steady
                scalar = min(scalar, _gmacs(weights, rows, k, m, max(1, repeats // 40), True))
        yield {
            "what": f"{what} {rows}x{k}, in cache",
            "threads": 1,
            "gmac_per_s": median(fast for _, fast in samples),
            "x_gemv": median(fast / gemv for gemv, fast in samples),
            **({"x_scalar": median(f for _, f in samples) / scalar} if scalar < 1e9 else {}),
        }


def _gmacs(weights: bytes, rows: int, k: int, m: int, repeats: int, scalar: bool = False) -> float:
    ns = _engine.measure_ternary(weights, rows, k, m, repeats, 1, scalar)
    return rows * k * m * repeats / ns
