# SPDX-License-Identifier: MIT
"""Random and extreme launches of every kernel, with what `bitnet_edge.reference` makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitnet_edge._engine import kv_layout
from bitnet_edge.dtypes import DType
from bitnet_edge.head_packing import head_limit, pack_head, quantise_head
from bitnet_edge.metal.geometry import Geometry, Pass, geometry, top_k
from bitnet_edge.packing import pack_p16
from bitnet_edge.quantization import new_kv_cache, quantize, quantize_kv_i4
from bitnet_edge.reference import REFERENCE, head_product, lane_sum, quantize_wide, rope_angles
from tests.metal.simulator import Launch

Rng = np.random.Generator
f32 = np.float32
KV_DTYPES = {0: DType.F32, 1: DType.F16, 4: DType.I8, 5: DType.I4}


@dataclass
class Case:
    """A launch and the arrays it must leave behind, bit for bit.

    ``once`` lists the buffers whose every byte is to be read by exactly one lane (times a factor:
    tokens of a gemv); ``traffic`` the bytes a buffer costs, where a threadgroup's later reads come
    from cache.
    """

    launch: Launch
    expected: Mapping[str, Any]
    once: Mapping[str, int] = field(default_factory=dict)


def _launch(made: Geometry, buffers: Mapping[str, Any]) -> Launch:
    return Launch(made.kernel, made.groups, (made.threads, 1, 1), buffers, made.params, made.memory)


def _rows(rng: Rng, *shape: int) -> Any:
    """Activations of a few orders of magnitude."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3)
    if rng.random() < 0.1:
        x[..., rng.integers(shape[-1])] *= 1e4
    return x.astype(np.float32)


def _blank(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """What an output holds before: anything."""
    return (
        np.frombuffer(b"\xa5" * int(np.prod(shape) * np.dtype(dtype).itemsize), dtype)
        .reshape(shape)
        .copy()
    )


def _padded(q: Any, multiple: int) -> Any:
    out = np.zeros((len(q), -(-q.shape[1] // multiple) * multiple), q.dtype)
    out[:, : q.shape[1]] = q
    return out


EMPTY = np.zeros(0, np.float32)


# -- ternary --------------------------------------------------------------------------------


def ternary(
    rng: Rng, kernel: str, rows: int, k: int, tokens: int, w: Any = None, q: Any = None
) -> Case:
    w = rng.integers(-1, 2, (rows, k)).astype(np.int8) if w is None else w
    q = rng.integers(-128, 128, (tokens, k)).astype(np.int8) if q is None else q
    s = rng.uniform(0.5, 200, tokens).astype(np.float32)
    scale = f32(rng.uniform(0.01, 2))
    bias = _rows(rng, rows) if rng.random() < 0.5 else None
    run = Pass(tokens, matrix=kernel.endswith("matrix"))
    made = geometry(
        "ternary_linear", {"rows": rows, "k": k}, {"w_scale": scale}, run, optional=bias is not None
    )
    if kernel == "ternary_gemv" and made.kernel != kernel:  # several tokens, as beyond MAX_GEMM_K
        one = geometry(
            "ternary_linear",
            {"rows": rows, "k": k},
            {"w_scale": scale},
            Pass(1),
            optional=bias is not None,
        )
        made = Geometry(kernel, (one.groups[0], tokens), one.threads, one.params, one.memory)
    acc = q.astype(np.float64) @ w.astype(np.float64).T  # exact: below 2^53
    y = (acc.astype(np.float32) / s[:, None]) * scale
    buffers = {
        "y": _blank((tokens, rows)),
        "w": pack_p16(w),
        "q": _padded(q, 16),
        "s": s,
        "q_sum": q.sum(1, dtype=np.int32),
        "bias": EMPTY if bias is None else bias,
    }
    passes = tokens if kernel == "ternary_gemv" else -(-tokens // 64)
    return Case(
        _launch(made, buffers),
        {"y": y if bias is None else y + bias},
        {"w": passes},
    )


def ternary_gemv(rng: Rng) -> Case:
    return ternary(
        rng,
        "ternary_gemv",
        int(rng.integers(1, 70)),
        int(rng.integers(1, 700)),
        int(rng.integers(1, 3)),
    )


def _gemm(kernel: str) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        tokens = int(rng.integers(2, 20)) if rng.random() < 0.8 else int(rng.integers(60, 70))
        return ternary(rng, kernel, int(rng.integers(1, 50)), int(rng.integers(1, 200)), tokens)

    return make


# -- rows -----------------------------------------------------------------------------------


def rms_norm(rng: Rng) -> Case:
    width, tokens = int(rng.integers(1, 700)), int(rng.integers(1, 4))
    x, gain, eps = _rows(rng, tokens, width), _rows(rng, width), f32(1e-5)
    y = REFERENCE["rms_norm"]({"x": x, "weight": gain}, {"eps": float(eps)}, 0)
    made = geometry("rms_norm", {"width": width}, {"eps": eps}, Pass(tokens))
    in_place = rng.random() < 0.5
    buffers = {"y": x if in_place else _blank(x.shape), "x": x, "gain": gain}
    return Case(_launch(made, buffers), {"y": y})


def _quantized(x: Any) -> dict[str, Any]:
    q, s = quantize(x)
    return {"q": _padded(q, 16), "s": s, "q_sum": q.sum(1, dtype=np.int32)}


def _quantize_outputs(expected: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _blank(value.shape, value.dtype) for name, value in expected.items()}


def rms_norm_quantize(rng: Rng) -> Case:
    width, tokens = int(rng.integers(1, 700)), int(rng.integers(1, 4))
    x, gain, eps = _rows(rng, tokens, width), _rows(rng, width), f32(1e-5)
    y = REFERENCE["rms_norm"]({"x": x, "weight": gain}, {"eps": float(eps)}, 0)
    expected = _quantized(y)
    made = geometry("rms_norm_quantize", {"width": width}, {"eps": eps}, Pass(tokens))
    return Case(_launch(made, {"x": x, "gain": gain} | _quantize_outputs(expected)), expected)


def _with_specials(rng: Rng, x: Any) -> Any:
    if rng.random() < 0.2:
        x[..., rng.integers(x.shape[-1])] = rng.choice([np.nan, np.inf, -np.inf, 0.0])
    if rng.random() < 0.1:
        x[...] = 0
    return x


def quantize_(rng: Rng) -> Case:
    width, tokens = int(rng.integers(1, 900)), int(rng.integers(1, 4))
    x = _with_specials(rng, _rows(rng, tokens, width))
    if rng.random() < 0.3:  # ties to even
        x = (rng.integers(-254, 255, x.shape) / 2).astype(np.float32)
        x[:, 0] = 127
    expected = _quantized(x)
    made = geometry("quantize", {"width": width}, {}, Pass(tokens))
    return Case(_launch(made, {"x": x} | _quantize_outputs(expected)), expected)


def _wide(x: Any) -> dict[str, Any]:
    q, s = quantize_wide(x)
    padded = _padded(q.astype(np.int16), 64)
    sums = padded.reshape(len(q), -1, 32).sum(2, dtype=np.int32)
    return {"q": padded, "s": np.asarray(s, np.float32), "q_sum": sums}


def quantize_wide_(rng: Rng) -> Case:
    width, tokens = int(rng.integers(1, 900)), int(rng.integers(1, 4))
    x = _with_specials(rng, _rows(rng, tokens, width))
    expected = _wide(x)
    made = geometry("quantize_wide", {"width": width}, {}, Pass(tokens))
    assert made.params["limit"] == head_limit(width)
    return Case(_launch(made, {"x": x} | _quantize_outputs(expected)), expected)


# -- elements -------------------------------------------------------------------------------


def _elementwise(op: str, activation: str = "") -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        width, tokens = int(rng.integers(1, 700)), int(rng.integers(1, 4))
        a, b = _rows(rng, tokens, width), _rows(rng, tokens, width)
        first, second = ("a", "b") if op == "add" else ("gate", "up")
        a = _with_specials(rng, a)
        with np.errstate(all="ignore"):
            y = REFERENCE[op]({first: a, second: b}, {"activation": activation}, 0)
        dims = {"width": width} | ({} if op == "add" else {"kind": int(activation == "silu")})
        made = geometry(op, dims, {}, Pass(tokens))
        in_place = rng.random() < 0.5  # y is the first operand
        buffers = {first: a, second: b, "y": a if in_place else _blank(a.shape)}
        return Case(_launch(made, buffers), {"y": y})

    return make


def _stored(values: Any, dtype: int) -> tuple[Any, Any]:
    """Floats as a be_dtype stores them, and what is left of them."""
    if dtype == 1:
        half = values.astype(np.float16)
        return half, half.astype(np.float32)
    if dtype == 2:
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    return values, values


def _embed(dtype: int) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        width, vocab, tokens = (int(rng.integers(1, high)) for high in (300, 50, 5))
        values = rng.standard_normal((vocab, width)).astype(np.float32)
        table, values = _stored(values, dtype)
        ids = rng.integers(0, vocab, tokens).astype(np.int32)
        multiplier = f32(rng.choice([1.0, 16.0, 0.3]))
        made = geometry(
            "embed",
            {"width": width, "vocab": vocab, "dtype": dtype},
            {"multiplier": multiplier},
            Pass(tokens),
        )
        buffers = {"y": _blank((tokens, width)), "table": table, "ids": ids}
        return Case(_launch(made, buffers), {"y": values[ids] * multiplier}, {})

    return make


def _head_embed(bits: int) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        width, vocab, tokens = (int(rng.integers(1, high)) for high in (300, 50, 5))
        head = _head(rng, bits, vocab, width)
        ids = rng.integers(0, vocab, tokens).astype(np.int32)
        multiplier = f32(rng.choice([1.0, 16.0, 0.3]))
        made = geometry(
            "head_embed",
            {"width": width, "vocab": vocab, "bits": bits},
            {"multiplier": multiplier},
            Pass(tokens),
        )
        buffers = {"y": _blank((tokens, width)), "table": pack_head(head), "ids": ids}
        return Case(_launch(made, buffers), {"y": head.rows(ids) * multiplier})

    return make


# -- heads ----------------------------------------------------------------------------------


def _head(rng: Rng, bits: int, rows: int, k: int) -> Any:
    values = rng.standard_normal((rows, k)).astype(np.float32)
    return quantise_head(values, DType.I8_ROWS if bits == 8 else DType.I4_GROUPS)


def _dense(dtype: int) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        rows, k, tokens = (
            int(rng.integers(1, 80)),
            int(rng.integers(1, 300)),
            int(rng.integers(1, 3)),
        )
        if rng.random() < 0.5:
            k = -(-k // 4) * 4
        return dense(rng, dtype, rows, k, tokens)

    return make


def dense(rng: Rng, dtype: int, rows: int, k: int, tokens: int) -> Case:
    values = rng.standard_normal((rows, k)).astype(np.float32)
    w, values = _stored(values, dtype)
    x = _rows(rng, tokens, k)
    y = np.stack([lane_sum(values * row) for row in x])
    bias = _rows(rng, rows) if rng.random() < 0.5 else None
    made = geometry(
        "dense_linear",
        {"rows": rows, "k": k, "dtype": dtype},
        {},
        Pass(tokens),
        optional=bias is not None,
    )
    buffers = {"y": _blank((tokens, rows)), "w": w, "x": x, "bias": EMPTY if bias is None else bias}
    return Case(_launch(made, buffers), {"y": y if bias is None else y + bias}, {"w": tokens})


def _head_gemv(bits: int) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        rows, k, tokens = (
            int(rng.integers(1, 70)),
            int(rng.integers(1, 500)),
            int(rng.integers(1, 3)),
        )
        return head_gemv(rng, bits, rows, k, tokens)

    return make


def head_gemv(rng: Rng, bits: int, rows: int, k: int, tokens: int, x: Any = None) -> Case:
    head = _head(rng, bits, rows, k)
    x = _rows(rng, tokens, k) if x is None else x
    y = head_product(x, head)
    bias = _rows(rng, rows) if rng.random() < 0.5 else None
    made = geometry(
        "head_linear",
        {"rows": rows, "k": k, "bits": bits},
        {},
        Pass(tokens),
        optional=bias is not None,
    )
    buffers = {
        "y": _blank((tokens, rows)),
        "w": pack_head(head),
        "bias": EMPTY if bias is None else bias,
    }
    return Case(
        _launch(made, buffers | _wide(x)), {"y": y if bias is None else y + bias}, {"w": tokens}
    )


# -- attention ------------------------------------------------------------------------------


def rope_angles_(rng: Rng) -> Case:
    half, tokens = int(rng.integers(1, 100)), int(rng.integers(1, 4))
    base = rng.choice([1e4, 5e5])
    inv_freq = (1.0 / base ** (np.arange(half) / half)).astype(np.float32)
    position = int(rng.choice([0, 1, 7, 100, 4095, 2**20 - 4]))
    scale = f32(rng.choice([1.0, 0.7]))
    c, s = rope_angles(inv_freq, np.arange(position, position + tokens), float(scale))
    made = geometry("rope_angles", {"half": half}, {"scale": scale}, Pass(tokens, position))
    y = np.stack([c, s], 1)
    return Case(_launch(made, {"y": _blank(y.shape), "inv_freq": inv_freq}), {"y": y})


def _angles(rng: Rng, tokens: int, head_dim: int) -> Any:
    turn = rng.uniform(-7, 7, (tokens, head_dim // 2))
    return np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)


def _rotate(x: Any, angles: Any) -> Any:
    half = x.shape[-1] // 2
    a, b, c, s = x[..., :half], x[..., half:], angles[:, None, 0], angles[:, None, 1]
    return np.concatenate([a * c - b * s, b * c + a * s], -1)


def rope(rng: Rng) -> Case:
    heads, head_dim, tokens = (
        int(rng.integers(1, 6)),
        2 * int(rng.integers(1, 70)),
        int(rng.integers(1, 4)),
    )
    x, angles = _rows(rng, tokens, heads, head_dim), _angles(rng, tokens, head_dim)
    made = geometry("rope", {"heads": heads, "head_dim": head_dim}, {}, Pass(tokens))
    y = _rotate(x, angles)
    buffers = {"x": x, "angles": angles, "y": x if rng.random() < 0.5 else _blank(x.shape)}
    return Case(_launch(made, buffers), {"y": y})


def store(dtype: int, layout: Mapping[str, int], cache: Any, position: int, x: Any) -> None:
    """Write rows (tokens, heads, head_dim) into a cache's bytes (heads, head_bytes)."""
    head_dim = x.shape[2]
    for head in range(x.shape[1]):
        rows = x[:, head]
        if dtype in (0, 1):
            with np.errstate(over="ignore"):
                codes = rows.astype(np.float16) if dtype else rows
            codes = codes.view(np.uint8)
            scales = np.zeros((len(rows), 0), np.uint8)
        elif dtype == 4:
            codes, inverse = quantize(rows)
            codes = _padded(codes, 16).view(np.uint8)
            scales = (f32(1) / inverse).astype(np.float32).reshape(-1, 1).view(np.uint8)
        else:
            parts, tops = [], []
            for first in range(0, head_dim, 32):
                code, scale = quantize_kv_i4(rows[:, first : first + 32])
                full = np.zeros((len(rows), 32), np.int8)
                full[:, : code.shape[1]] = code
                nibbles = (full + 8).astype(np.uint8)
                parts.append(nibbles[:, :16] | nibbles[:, 16:] << 4)
                tops.append((scale.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
            codes = np.concatenate(parts, 1)
            scales = np.stack(tops, 1).view(np.uint8)
        for t in range(len(rows)):
            at = (position + t) * layout["row_bytes"]
            cache[head, at : at + layout["row_bytes"]] = codes[t]
            at = layout["scales_at"] + (position + t) * scales.shape[1]
            cache[head, at : at + scales.shape[1]] = scales[t]


def _kv_append(dtype: int) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        heads, head_dim = int(rng.integers(1, 4)), 2 * int(rng.integers(1, 70))
        tokens, limit = int(rng.integers(1, 4)), int(rng.integers(4, 12))
        position = int(rng.integers(0, limit - tokens + 1))
        x = _rows(rng, tokens, heads, head_dim)
        if rng.random() < 0.2:  # float32 keeps a NaN's sign, which is not defined
            at = rng.integers(tokens), rng.integers(heads), rng.integers(head_dim)
            x[at] = rng.choice([1e6, np.nan, np.inf]) if dtype else 1e30
        angles = _angles(rng, tokens, head_dim) if rng.random() < 0.6 else None
        layout = kv_layout(dtype, head_dim, limit)
        cache = _blank((heads, layout["head_bytes"]), np.uint8)
        expected = cache.copy()
        with np.errstate(all="ignore"):
            rows = x if angles is None else _rotate(x, angles)
            if dtype == 1:  # the sign of a NaN is not defined, so each becomes 0x7e00
                rows = np.where(np.isnan(rows), np.abs(np.float32(np.nan)), rows)
            store(dtype, layout, expected, position, rows)
        dims = {"kv_heads": heads, "head_dim": head_dim, "dtype": dtype}
        made = geometry(
            "kv_append", dims, {}, Pass(tokens, position, limit), optional=angles is not None
        )
        buffers = {"cache": cache, "x": x, "angles": EMPTY if angles is None else angles}
        return Case(_launch(made, buffers), {"cache": expected})

    return make


def _attention(dtype: int) -> Callable[[Rng], Case]:
    def make(rng: Rng) -> Case:
        kv_heads, group = int(rng.integers(1, 3)), int(rng.choice([1, 2, 3, 4, 5]))
        head_dim = 2 * int(rng.integers(1, 40)) if rng.random() < 0.9 else 272
        tokens = int(rng.integers(1, 3))
        position = int(rng.integers(0, 20)) if rng.random() < 0.7 else int(rng.integers(60, 140))
        return attention(rng, dtype, kv_heads, group, head_dim, tokens, position)

    return make


def attention(
    rng: Rng, dtype: int, kv_heads: int, group: int, head_dim: int, tokens: int, position: int
) -> Case:
    limit, heads = position + tokens + int(rng.integers(0, 3)), kv_heads * group
    scale = f32(1 / np.sqrt(head_dim))
    q = _rows(rng, tokens, heads, head_dim)
    q *= f32(3) / max(f32(1e-3), np.abs(q).max())
    layout = kv_layout(dtype, head_dim, limit)
    made = geometry(
        "attention",
        {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "dtype": dtype},
        {"scale": scale},
        Pass(tokens, position, limit),
    )
    caches, reference = {}, {}
    for name in ("k_cache", "v_cache"):
        rows = rng.standard_normal((position + tokens, kv_heads, head_dim)).astype(np.float32)
        caches[name] = _blank((kv_heads, layout["head_bytes"]), np.uint8)
        store(dtype, layout, caches[name], 0, rows)
        reference[name] = new_kv_cache((kv_heads, limit, head_dim), KV_DTYPES[dtype])
        reference[name].append(0, rows.transpose(1, 0, 2)[:, :position])
        reference["k" if name[0] == "k" else "v"] = rows[position:].reshape(tokens, -1)
    attributes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": float(scale)}
    y = REFERENCE["attention"](reference | {"q": q.reshape(tokens, -1)}, attributes, position)
    buffers = {"y": _blank(q.shape), "q": q, **caches}
    return Case(_launch(made, buffers), {"y": y.reshape(q.shape)})


# -- sampling -------------------------------------------------------------------------------


def top_k_(rng: Rng) -> Case:
    n, k, rows = (
        int(rng.integers(1, 3000)),
        int(rng.choice([1, 1, 2, 5, 8])),
        int(rng.integers(1, 3)),
    )
    values = rng.standard_normal((rows, n)).astype(np.float32)
    if rng.random() < 0.5:
        values = np.round(values)  # equal ones
    values = _with_specials(rng, values)
    indices = (
        rng.permutation(rows * n).astype(np.uint32).reshape(rows, n) if rng.random() < 0.3 else None
    )
    made = top_k(n, k, rows, has_indices=indices is not None)
    expected_values = np.full((rows, made.groups[0], k), -np.inf, np.float32)
    expected_indices = np.full((rows, made.groups[0], k), 0xFFFFFFFF, np.uint32)
    for row in range(rows):
        for group in range(made.groups[0]):
            at = np.arange(1024 * group, min(1024 * group + 1024, n))
            at = at[values[row, at] > -np.inf]
            names = at if indices is None else indices[row, at]
            order = np.lexsort((names, -values[row, at]))[:k]
            expected_values[row, group, : len(order)] = values[row, at[order]]
            expected_indices[row, group, : len(order)] = names[order]
    buffers = {
        "top_values": _blank(expected_values.shape),
        "top_indices": _blank(expected_indices.shape, np.uint32),
        "values": values,
        "indices": np.zeros(0, np.uint32) if indices is None else indices,
    }
    return Case(
        _launch(made, buffers), {"top_values": expected_values, "top_indices": expected_indices}
    )


CASES: dict[str, Callable[[Rng], Case]] = {
    "add": _elementwise("add"),
    "attention_f16": _attention(1),
    "attention_f32": _attention(0),
    "attention_i4": _attention(5),
    "attention_i8": _attention(4),
    "dense_gemv_bf16": _dense(2),
    "dense_gemv_f16": _dense(1),
    "dense_gemv_f32": _dense(0),
    "embed_bf16": _embed(2),
    "embed_f16": _embed(1),
    "embed_f32": _embed(0),
    "head_embed_i4": _head_embed(4),
    "head_embed_i8": _head_embed(8),
    "head_gemv_i4": _head_gemv(4),
    "head_gemv_i8": _head_gemv(8),
    "kv_append_f16": _kv_append(1),
    "kv_append_f32": _kv_append(0),
    "kv_append_i4": _kv_append(5),
    "kv_append_i8": _kv_append(4),
    "quantize": quantize_,
    "quantize_wide": quantize_wide_,
    "relu2_mul": _elementwise("gated_activation", "relu2"),
    "rms_norm": rms_norm,
    "rms_norm_quantize": rms_norm_quantize,
    "rope": rope,
    "rope_angles": rope_angles_,
    "silu_mul": _elementwise("gated_activation", "silu"),
    "ternary_gemm": _gemm("ternary_gemm"),
    "ternary_gemm_matrix": _gemm("ternary_gemm_matrix"),
    "ternary_gemv": ternary_gemv,
    "top_k": top_k_,
}
