# SPDX-License-Identifier: MIT
"""Instruction -> kernel, grid, threads, parameters: what each shader's header asks for.

One function for each op of ``op_table.def``, from its dims and scalars; the tests of the shaders
launch through the same functions. Standard library and the engine only.
"""

from __future__ import annotations

from bitnet_edge._engine import kv_layout
from bitnet_edge.errors import DeviceUnsupported

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["GEOMETRY", "MAX_GEMM_K", "MAX_GEMV_K", "Geometry", "Pass", "geometry", "top_k"]

SIMD = 32
ROW_THREADS = 256  # of a threadgroup that has a row
GEMV_SIMDGROUPS = 4
MAX_GEMV_K = 1 << 18  # float sums of a thread stay below 2^24: ternary_gemv.metal
MAX_GEMM_K = 1 << 16  # and of a threadgroup: ternary_gemm.metal
MAX_THREADGROUP_BYTES = 32 * 1024  # of every GPU since A11
FLOATS = {0: "f32", 1: "f16", 2: "bf16"}  # be_dtype
CACHES = {0: "f32", 1: "f16", 4: "i8", 5: "i4"}
CHUNK = 1024  # values of a threadgroup of top_k


class Pass:
    """What one forward pass fixes for all its dispatches.

    Attributes
    ----------
    tokens : int
        Rows that an instruction works on.
    position : int
        Of the first of them in the KV cache.
    max_positions : int
        Rows of the KV cache.
    matrix : bool
        Whether the GPU multiplies matrices in simdgroups (Apple7 and later).
    """

    __slots__ = ("matrix", "max_positions", "position", "tokens")

    def __init__(
        self, tokens: int, position: int = 0, max_positions: int = 0, matrix: bool = False
    ) -> None:
        self.tokens = tokens
        self.position = position
        self.max_positions = max_positions
        self.matrix = matrix


class Geometry:
    """A kernel with its grid.

    Attributes
    ----------
    kernel : str
    groups : tuple of int
        Threadgroups of the grid, in x, y and z.
    threads : int
        Of a threadgroup, in x.
    params : Mapping
        Fields of the structure at buffer 0.
    memory : tuple of int
        Bytes of threadgroup memory by index.
    """

    __slots__ = ("groups", "kernel", "memory", "params", "threads")

    def __init__(
        self,
        kernel: str,
        groups: tuple[int, int],
        threads: int,
        params: Mapping[str, float],
        memory: tuple[int, ...] = (),
    ) -> None:
        self.kernel = kernel
        self.groups = (*groups, 1)
        self.threads = threads
        self.params = params
        self.memory = tuple(-(-size // 16) * 16 for size in memory)


def _blocks(value: int, size: int) -> int:
    return -(-value // size)


def _elements(kernel: str, width: int, run: Pass, params: Mapping[str, float]) -> Geometry:
    """Give each element a thread."""
    return Geometry(kernel, (_blocks(width, 256), run.tokens), 256, params)


def _row(
    kernel: str, run: Pass, params: Mapping[str, float], memory: tuple[int, ...] = (32, 32)
) -> Geometry:
    """Give each row a threadgroup."""
    return Geometry(kernel, (run.tokens, 1), ROW_THREADS, params, memory)


def _embed(dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool) -> Geometry:
    kernel = f"embed_{FLOATS[dims['dtype']]}"
    params = {name: dims[name] for name in ("width", "vocab")} | dict(scalars)
    return _elements(kernel, dims["width"], run, params)


def _head_embed(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool
) -> Geometry:
    params = {name: dims[name] for name in ("width", "vocab")} | dict(scalars)
    return _elements(f"head_embed_i{dims['bits']}", dims["width"], run, params)


def _rms_norm(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool
) -> Geometry:
    return _row("rms_norm", run, {**dims, **scalars}, (16,))


def _rms_norm_quantize(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool
) -> Geometry:
    return _row("rms_norm_quantize", run, {**dims, **scalars})


def _quantize(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool
) -> Geometry:
    return _row("quantize", run, dims)


def _quantize_wide(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool
) -> Geometry:
    limit = min((2**31 - 1) // 128 // dims["width"], 32767)  # be_head_limit
    return _row("quantize_wide", run, {**dims, "limit": float(limit)}, (32,))


def _ternary_linear(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, bias: bool
) -> Geometry:
    rows, k = dims["rows"], dims["k"]
    if k > MAX_GEMV_K:
        raise DeviceUnsupported(
            f"[metal] ternary_linear: expected k <= {MAX_GEMV_K}, where float sums of integers are "
            f"exact, got {k}"
        )
    params = {"rows": rows, "k_blocks": _blocks(k, 16), "has_bias": bias, **scalars}
    if run.tokens == 1 or k > MAX_GEMM_K:
        memory = (64 * GEMV_SIMDGROUPS,)
        groups = (_blocks(rows, 16), run.tokens)
        return Geometry("ternary_gemv", groups, SIMD * GEMV_SIMDGROUPS, params, memory)
    params["tokens"] = run.tokens
    groups = (_blocks(rows, 32), _blocks(run.tokens, 64))
    tiles = (32 * 64 * 2, 64 * 64 * 2)
    if run.matrix:
        return Geometry("ternary_gemm_matrix", groups, 128, params, (*tiles, 32 * 64 * 4))
    return Geometry("ternary_gemm", groups, 128, params, tiles)


def _dense_linear(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, bias: bool
) -> Geometry:
    params = {"rows": dims["rows"], "k": dims["k"], "has_bias": bias}
    groups = (_blocks(dims["rows"], 8 * GEMV_SIMDGROUPS), run.tokens)
    kernel = f"dense_gemv_{FLOATS[dims['dtype']]}"
    return Geometry(kernel, groups, SIMD * GEMV_SIMDGROUPS, params)


def _head_linear(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, bias: bool
) -> Geometry:
    params = {"rows": dims["rows"], "k": dims["k"], "has_bias": bias}
    memory = (64 * GEMV_SIMDGROUPS,) if dims["bits"] == 8 else (2 * 128 * 4,)
    groups = (_blocks(dims["rows"], 16), run.tokens)
    return Geometry(f"head_gemv_i{dims['bits']}", groups, 128, params, memory)


def _gated_activation(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool
) -> Geometry:
    kernel = "silu_mul" if dims["kind"] else "relu2_mul"
    return _elements(kernel, dims["width"], run, {"width": dims["width"]})


def _add(dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool) -> Geometry:
    return _elements("add", dims["width"], run, dims)


def _rope_angles(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool
) -> Geometry:
    params = {"half_dim": dims["half"], "position": run.position, **scalars}
    return Geometry("rope_angles", (_blocks(dims["half"], 32), run.tokens), 32, params)


def _rope(dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool) -> Geometry:
    half = dims["head_dim"] // 2
    params = {"heads": dims["heads"], "half_dim": half}
    return _elements("rope", dims["heads"] * half, run, params)


def _kv_append(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, angles: bool
) -> Geometry:
    heads, head_dim, dtype = dims["kv_heads"], dims["head_dim"], dims["dtype"]
    params = {"heads": heads, "head_dim": head_dim, "position": run.position, "has_angles": angles}
    params |= kv_layout(dtype, head_dim, run.max_positions)
    return Geometry(f"kv_append_{CACHES[dtype]}", (heads, run.tokens), SIMD, params)


def _attention(
    dims: Mapping[str, int], scalars: Mapping[str, float], run: Pass, _: bool
) -> Geometry:
    heads, kv_heads, head_dim, dtype = (
        dims[name] for name in ("heads", "kv_heads", "head_dim", "dtype")
    )
    params = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **scalars}
    params |= kv_layout(dtype, head_dim, run.max_positions) | {"position": run.position}
    groups = (kv_heads * _blocks(heads // kv_heads, 4), run.tokens)
    memory = 4 * (4 * _blocks(head_dim, 32) * 32 + 4 * 64 + 4)
    return Geometry(f"attention_{CACHES[dtype]}", groups, 256, params, (memory,))


GEOMETRY: dict[str, Callable[[Mapping[str, int], Mapping[str, float], Pass, bool], Geometry]] = {
    "add": _add,
    "attention": _attention,
    "dense_linear": _dense_linear,
    "embed": _embed,
    "gated_activation": _gated_activation,
    "head_embed": _head_embed,
    "head_linear": _head_linear,
    "kv_append": _kv_append,
    "quantize": _quantize,
    "quantize_wide": _quantize_wide,
    "rms_norm": _rms_norm,
    "rms_norm_quantize": _rms_norm_quantize,
    "rope": _rope,
    "rope_angles": _rope_angles,
    "ternary_linear": _ternary_linear,
}


def geometry(
    op: str,
    dims: Mapping[str, int],
    scalars: Mapping[str, float],
    run: Pass,
    *,
    optional: bool = False,
) -> Geometry:
    """Return the dispatch of an instruction.

    Parameters
    ----------
    op : str
        A name of ``op_table.def``.
    dims, scalars : Mapping
        By the names that table gives them.
    run : Pass
    optional : bool
        Whether the op's optional operand (bias, angles) is there.

    Raises
    ------
    DeviceUnsupported
        When the shader would not be exact.
    """
    return GEOMETRY[op](dims, scalars, run, optional)


def top_k(n: int, k: int, rows: int = 1, *, has_indices: bool = False) -> Geometry:
    """Return one round over n values a row; ``groups[0] * k`` candidates a row come out."""
    params = {"n": n, "k": k, "has_indices": has_indices}
    return Geometry("top_k", (_blocks(n, CHUNK), rows), 256, params, (32, 32))
