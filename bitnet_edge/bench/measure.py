# SPDX-License-Identifier: MIT
"""Prefill, decode and time per op, beside what the machine gives in the same minute.

A shared machine changes its speed from one second to the next. So every round takes one sample of
each quantity, yardsticks first, and shares and ratios are medians of the rounds' own quotients.
"""

from __future__ import annotations

import mmap
import os
import time
from array import array

from bitnet_edge import _engine
from bitnet_edge.bench.work import decode_bytes, decode_macs, describe, prefill_macs, screened_bytes
from bitnet_edge.errors import ArgumentError
from bitnet_edge.memory import private_bytes

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from bitnet_edge.bench.work import Work
    from bitnet_edge.runtime import Model

    Buffer = bytes | mmap.mmap

__all__ = [
    "bench_model",
    "calibration_ns",
    "decode_seconds",
    "median",
    "prefill_seconds",
    "profile_layers",
    "prompt_ids",
    "read_buffer",
    "read_gbps",
]

READ_BYTES = 256 << 20  # beyond any cache
_CALIBRATION = (64, 1024)  # rows and columns: 16 KB, in the first cache of every CPU
_GEMM = (6912, 2560, 128)
_PROFILED_TOKENS = 16


def median(values: Iterable[float]) -> float:
    """Return the middle value (the upper one of two)."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


# -- yardsticks -------------------------------------------------------------------------------


def read_buffer(size: int = READ_BYTES) -> mmap.mmap:
    """Return memory that no cache holds: ``size`` bytes, at most a quarter of the machine's."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = min(size, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    if hasattr(mmap, "MAP_PRIVATE"):  # shared memory would get no huge pages: 15 % slower
        buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        buffer = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    for offset in range(0, size, mmap.PAGESIZE):
        buffer[offset] = 1  # an untouched page is the one page of zeros, in cache
    return buffer


def read_gbps(buffer: Buffer, threads: int) -> float:
    """Return the better streaming-read bandwidth with and without prefetching, in 10^9 bytes/s."""
    attempts = [_engine.measure_read(buffer, threads, prefetch) for prefetch in (True, False)]
    return len(buffer) / min(attempts)


def calibration_ns() -> float:
    """Return the time of a fixed ternary product in cache, by the scalar kernel, on one thread.

    The scalar kernel because it is the one that tuning leaves alone: against the dispatched kernel
    a regression of that kernel would cancel out.
    """
    rows, k = _CALIBRATION
    weights = bytes(range(256)) * (rows * k // 4 // 256)
    repeats = 8
    return (
        min(_engine.measure_ternary(weights, rows, k, 1, repeats, 1, True) for _ in range(5))
        / repeats
    )


def gemm_gmacs(threads: int) -> float:
    """Return the rate of the dispatched GEMM alone: one matrix of the 2B-4T model, 128 tokens."""
    rows, k, m = _GEMM
    ns = _engine.measure_ternary(bytes(range(256)) * (rows * k // 4 // 256), rows, k, m, 1, threads)
    return rows * k * m / ns


# -- a model ----------------------------------------------------------------------------------


def prompt_ids(model: Model, count: int) -> array[int]:
    """Return ``count`` token ids spread over the vocabulary."""
    return array("i", [i * 7919 % model.vocab_size for i in range(count)])


def prefill_seconds(model: Model, ids: array[int]) -> float:
    """Time a prompt, up to and with the logits of its last token."""
    start = time.perf_counter()
    for position, chunk in model.chunks(ids):
        model.session.prefill(chunk, position, position + len(chunk) == len(ids))
    return time.perf_counter() - start


def decode_seconds(model: Model, new_tokens: int) -> float:
    """Time greedy decoding of exactly ``new_tokens`` tokens, sampling and text included."""
    generation = model.generate([0], max_tokens=new_tokens + 1, ignore_eos=True)
    next_piece = generation.advance
    next_piece()  # the prompt
    start = time.perf_counter()
    for _ in range(new_tokens):
        next_piece()
    return time.perf_counter() - start


def rescored_share(model: Model, new_tokens: int) -> float | None:
    """Return the share of a screened head's rows computed exactly in greedy decoding, or None."""
    generation = model.generate([0], max_tokens=new_tokens, ignore_eos=True)
    generation.text()
    return generation.statistics.rescored_share


def bench_model(
    model: Model,
    *,
    prompts: Sequence[int] = (128, 512),
    new_tokens: int = 128,
    runs: int = 7,
    compare_scalar: bool = False,
) -> dict[str, Any]:
    """Measure a loaded model.

    Parameters
    ----------
    model : Model
    prompts : sequence of int
        Lengths of the prompts; those beyond the context are left out, unless all are.
    new_tokens : int
        Decoded tokens, at most the context less one.
    runs : int
        Rounds of which the median counts; one more comes first to warm up.
    compare_scalar : bool
        Run one token by the scalar kernels too, for the gain of each op.

    Returns
    -------
    dict
        JSON-serialisable; see `bitnet_edge.cli.bench` for what is shown of it.

    Raises
    ------
    ArgumentError
        For a count below 1.
    """
    new_tokens = min(new_tokens, model.context - 1)
    if min(runs, new_tokens, *prompts) < 1:
        raise ArgumentError("[bench] runs, prompt-tokens and new-tokens must be 1 or more")
    lengths = sorted({p for p in prompts if p <= model.context} or {model.context})
    works, counter = describe(model), _engine.Profile(model.threads)
    share = rescored_share(model, new_tokens)
    size = decode_bytes(model, works, new_tokens // 2) + screened_bytes(model) * (share or 0)
    private = _private_bytes_in_use(model, lengths[-1], new_tokens)
    buffer = read_buffer()
    rounds = []
    for index in range(runs + 1):
        one = _round(model, buffer, lengths, new_tokens, counter)
        if index > 0:
            rounds.append(one)
    buffer.close()
    decode_s = median(r["decode"] for r in rounds) / new_tokens
    engine_s = median(r["engine"] for r in rounds) / new_tokens
    sampling_s = median(r["sampling"] for r in rounds)
    python_s = max(0.0, median(r["decode"] - r["engine"] for r in rounds) / new_tokens - sampling_s)
    macs = decode_macs(works)
    return {
        "model": model.name,
        "file": model.file.path,
        "threads": model.threads,
        "runs": runs,
        "kernels": _engine.kernel_isas(),
        "calibration_ns": median(r["calibration_ns"] for r in rounds),
        "read_gbps": median(r["read_gbps"] for r in rounds),
        "gemm_gmac_per_s": median(r["gemm"] for r in rounds),
        "prefill": [
            {
                "tokens": length,
                "tokens_per_second": length / median(r["prefill", length] for r in rounds),
                "gmac_per_s": prefill_macs(works, length)
                / median(r["prefill", length] for r in rounds)
                / 1e9,
                "percent_of_gemm": median(
                    100 * prefill_macs(works, length) / r["prefill", length] / 1e9 / r["gemm"]
                    for r in rounds
                ),
            }
            for length in lengths
        ],
        "new_tokens": new_tokens,
        "decode_tokens_per_second": 1 / decode_s,
        "decode_us_per_token": 1e6 * decode_s,
        "decode_engine_us": 1e6 * engine_s,
        "decode_sampling_us": 1e6 * sampling_s,
        "decode_python_us": 1e6 * python_s,
        "decode_python_percent": 100 * python_s / decode_s,
        "head_rescored_percent": None if share is None else 100 * share,
        "decode_macs": macs,
        "decode_gmac_per_s": macs / engine_s / 1e9,
        "decode_bytes": int(size),
        "decode_gb_per_s": size / engine_s / 1e9,
        "decode_percent_of_read": median(
            100 * size * new_tokens / r["engine"] / 1e9 / r["read_gbps"] for r in rounds
        ),
        "ratios": {
            "decode": median(1e9 * r["decode"] / new_tokens / r["calibration_ns"] for r in rounds),
            **{
                f"prefill_{length}": median(
                    1e9 * r["prefill", length] / length / r["calibration_ns"] for r in rounds
                )
                for length in lengths
            },
        },
        "decode_ops": profile_decode(model, compare_scalar=compare_scalar),
        "prefill_ops": profile_prefill(model, lengths[-1]),
        "process_private_bytes": private,
    }


def _round(
    model: Model,
    buffer: Buffer,
    lengths: Sequence[int],
    new_tokens: int,
    counter: _engine.Profile,
) -> dict[Any, float]:
    """Take one sample of everything."""
    one: dict[Any, float] = {
        "calibration_ns": calibration_ns(),
        "read_gbps": read_gbps(buffer, model.threads),
        "gemm": gemm_gmacs(model.threads),
    }
    for length in lengths:
        one["prefill", length] = prefill_seconds(model, prompt_ids(model, length))
    counter.clear()
    model.session.profile(counter)
    one["decode"] = decode_seconds(model, new_tokens)
    model.session.profile(None)
    # the run of the prompt, one token as well, is not in `decode`
    one["engine"] = counter.run_ns / 1e9 * new_tokens / counter.runs
    one["sampling"] = _sampling_seconds(model)
    return one


def _private_bytes_in_use(model: Model, length: int, new_tokens: int) -> int:
    """Return the process's private memory after use, before the yardsticks add their buffers."""
    prefill_seconds(model, prompt_ids(model, length))
    decode_seconds(model, new_tokens)
    return private_bytes()


def _sampling_seconds(model: Model) -> float:
    """Time the sampler; decoding crosses into the engine once for both, so less one crossing."""
    sampler, count = _engine.Sampler(model.vocab_size), 20
    sample = model.session.sample
    cross = _engine.pool_workers
    start = time.perf_counter()
    for _ in range(count):
        sample(sampler)
    end = time.perf_counter()
    for _ in range(count):
        cross()
    return max(0.0, 2 * end - start - time.perf_counter()) / count


def profile_decode(model: Model, *, compare_scalar: bool = False) -> list[dict[str, Any]]:
    """Return the time of each op in a decoded token, the largest first.

    A microsecond of an op is one in which all threads work on it; what is left to the time of a
    token, waiting at barriers and for the other threads, comes last as ``(waiting)``.
    """
    tokens = min(_PROFILED_TOKENS, model.context)
    busy, total = _recorded(model, _steps(tokens), tokens)
    rows = _op_rows(model, _by_op(model, busy), total, tokens, lambda work: work.macs, 1)
    if compare_scalar:
        gains = _gains_over_scalar(model)
        rows = [row | gains.get(row["op"], {}) for row in rows]
    return rows


def profile_prefill(model: Model, length: int) -> list[dict[str, Any]]:
    """Return the time of each op in a prompt, likewise."""
    chunks = -(-length // model.session.program.max_tokens)
    ids = prompt_ids(model, length)
    busy, total = _recorded(model, lambda m: prefill_seconds(m, ids), chunks)
    return _op_rows(
        model,
        _by_op(model, busy),
        total,
        1,
        lambda work: work.macs * (1 if work.tail else length),
        chunks,
    )


def profile_layers(model: Model) -> list[dict[str, Any]]:
    """Return the time of each layer in a decoded token, in the order they run.

    Returns
    -------
    list of dict
        ``layer`` (``layers.0``; what comes before and after the layers has its own name) and
        ``us``, op -> microseconds, as in `profile_decode`.
    """
    tokens = min(_PROFILED_TOKENS, model.context)
    busy, _ = _recorded(model, _steps(tokens), tokens)
    rows: list[dict[str, Any]] = []
    for work, ns in zip(describe(model), busy, strict=True):
        if not rows or work.layer != rows[-1]["layer"]:
            rows.append({"layer": work.layer, "us": {}})
        us = rows[-1]["us"]
        us[work.op] = us.get(work.op, 0.0) + ns / model.threads / tokens / 1000
    return rows


def _op_rows(
    model: Model,
    busy: dict[str, float],
    total_ns: float,
    count: int,
    macs: Callable[[Work], int],
    reads: int,
) -> list[dict[str, Any]]:
    """Make rows of the thread time by op and the run time of ``count`` tokens or prompts."""
    works, total = describe(model), total_ns / count / 1000
    rows: list[dict[str, Any]] = []
    for op in sorted(busy, key=lambda name: -busy[name]):
        us = busy[op] / model.threads / count / 1000
        same = [work for work in works if work.op == op]
        row: dict[str, Any] = {
            "op": op,
            "us": us,
            "percent": 100 * us / total,
            "instructions": len(same),
        }
        size = sum(work.bytes * reads for work in same)
        products = sum(map(macs, same))
        row |= {"gb_per_s": size / us / 1000} if size else {}
        row |= {"gmac_per_s": products / us / 1000} if products else {}
        rows.append(row)
    waiting = max(0.0, total - sum(row["us"] for row in rows))
    rows.append({"op": "(waiting)", "us": waiting, "percent": 100 * waiting / total})
    return rows


def _steps(tokens: int) -> Callable[[Model], object]:
    def decode(model: Model) -> None:
        greedy = _engine.Sampler(model.vocab_size)
        for position in range(tokens):
            model.session.step(0, position, greedy)

    return decode


def _recorded(
    model: Model, work: Callable[[Model], object], runs: int
) -> tuple[list[float], float]:
    """Do the work twice and record the second time: ns of thread time by instruction, of all."""
    count = model.session.program.instruction_count
    profile = _engine.Profile(model.threads, 4 * count * runs)  # stolen work: events of its own
    work(model)
    model.session.profile(profile)
    work(model)
    model.session.profile(None)
    busy = [0.0] * count
    for thread in range(model.threads):
        for instruction, begin, end in profile.events(thread):
            busy[instruction] += end - begin
    return busy, profile.run_ns


def _by_op(model: Model, busy: list[float]) -> dict[str, float]:
    """Add up what the instructions of an op took; what took no tick of the clock is left out."""
    sums: dict[str, float] = {}
    for work, ns in zip(describe(model), busy, strict=True):
        if ns > 0:
            sums[work.op] = sums.get(work.op, 0.0) + ns
    return sums


def _gains_over_scalar(model: Model) -> dict[str, dict[str, float]]:
    fast, _ = _recorded(model, _steps(2), 2)
    _engine.set_cpu("scalar")
    try:
        scalar, _ = _recorded(model, _steps(2), 2)
    finally:
        _engine.set_cpu(os.environ.get("BITNET_EDGE_CPU") or None)
    scalar_ops, fast_ops = _by_op(model, scalar), _by_op(model, fast)
    both = scalar_ops.keys() & fast_ops.keys()
    return {op: {"x_scalar": scalar_ops[op] / fast_ops[op]} for op in both}
