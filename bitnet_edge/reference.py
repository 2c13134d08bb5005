# SPDX-License-Identifier: MIT
"""The numpy reference of every op: the oracle for kernels, engine and exporters.

Not an approximation of the engine but its definition in another language: float sums run in the
engine's order (16 lanes, one tree), exp, sine and cosine are the same polynomials, so the engine
must give the same bits. Written for clarity; thousands of times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError
from bitnet_edge.graph import Graph, Node, Tensor, Value
from bitnet_edge.head_packing import (
    GROUP,
    STORED,
    QuantisedHead,
    head_limit,
    head_storage,
    packed_heads,
    quantise_head,
    unpack_head,
)
from bitnet_edge.ops import OPS
from bitnet_edge.quantization import ROUND_MAGIC, f32, new_kv_cache, quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitnet_edge.exporters.sources.source import ModelSource

F32 = Any  # NDArray[np.float32]: numpy's stubs lose the type in every operation with a scalar

__all__ = ["REFERENCE", "ReferenceModel", "quantize"]

LANES = 16
BLOCK_KEYS = 64


# -- sums and functions ---------------------------------------------------------------------


def lane_sum(values: F32) -> F32:
    """Sum the last axis in the engine's order (``scalar/lanes.h``)."""
    *shape, n = values.shape
    padded = np.zeros((*shape, -(-n // LANES) * LANES), np.float32)
    padded[..., :n] = values
    lanes = np.zeros((*shape, LANES), np.float32)
    for first in range(0, padded.shape[-1], LANES):
        lanes = lanes + padded[..., first : first + LANES]
    return tree_sum(lanes)


def tree_sum(lanes: F32) -> F32:
    """Add 16 lanes pairwise: i + 8, i + 4, i + 2, i + 1."""
    width = LANES // 2
    while width:
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
        width //= 2
    return lanes[..., 0]


def exp(x: F32) -> F32:
    """Exponential, as ``scalar/exp.h`` (Cephes' expf with fixed order)."""
    with np.errstate(all="ignore"):
        shifted = x * f32(float.fromhex("0x1.715476p+0")) + ROUND_MAGIC
        n = shifted - ROUND_MAGIC
        r = (x - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
        q = np.full_like(x, 1.9875691500e-4)
        for coefficient in (
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ):
            q = q * r + f32(coefficient)
        p = (q * (r * r) + r) + f32(1.0)
        y = (p.view(np.uint32) + (shifted.view(np.uint32) << np.uint32(23))).view(np.float32)
        y = np.where(x <= f32(float.fromhex("0x1.62e42ep+6")), y, x * f32(np.inf))
        return np.where(x < f32(-87.3), f32(0.0), y)


def rope_angles(inv_freq: F32, positions: NDArray[np.int64], scale: float) -> tuple[F32, F32]:
    """Cosine and sine of ``position * inv_freq``, each (n, half), as ``engine/angles.c``."""
    x = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    quadrant = np.trunc(x * float.fromhex("0x1.45f306dc9c883p-1") + np.where(x < 0, -0.5, 0.5))
    r = x - quadrant * float.fromhex("0x1.921fb544p+0")
    r = r - quadrant * float.fromhex("0x1.0b4611a626331p-34")
    z = r * r
    s, c = np.full_like(z, 1.58969099521155010221e-10), np.full_like(z, -1.13596475577881948265e-11)
    for coefficient in (
        -2.50507602534068634195e-08,
        2.75573137070700676789e-06,
        -1.98412698298579493134e-04,
        8.33333333332248946124e-03,
        -1.66666666666666324348e-01,
    ):
        s = s * z + coefficient
    for coefficient in (
        2.08757232129817482790e-09,
        -2.75573143513906633035e-07,
        2.48015872894767294178e-05,
        -1.38888888888741095749e-03,
        4.16666666666666019037e-02,
    ):
        c = c * z + coefficient
    s, c = r + r * z * s, 1.0 - 0.5 * z + z * z * c
    n = quadrant.astype(np.int64)
    odd = n & 1 == 1
    sine, cosine = np.where(odd, c, s), np.where(odd, s, c)
    sine = np.where(n & 2 == 2, -sine, sine)
    cosine = np.where((n + 1) & 2 == 2, -cosine, cosine)
    return cosine.astype(np.float32) * f32(scale), sine.astype(np.float32) * f32(scale)


def widen(values: NDArray[np.generic], dtype: DType) -> F32:
    """Return stored elements as float32 (exact)."""
    if dtype is DType.BF16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype is DType.F16:
        return values.view(np.float16).astype(np.float32)
    return values.astype(np.float32, copy=False)


def quantize_wide(x: F32) -> tuple[NDArray[np.int64], F32]:
    """Quantise rows to the integers that a quantised head takes, as ``scalar/quantize_i16.c``.

    Parameters
    ----------
    x : ndarray of float32, shape (n, k)

    Returns
    -------
    q : ndarray of int64, shape (n, k)
    s : ndarray of float32, shape (n,)
        ``c / max(absmax(row), 1e-5)``, ``c`` the limit for k columns.
    """
    limit = f32(head_limit(x.shape[1]))
    with np.errstate(all="ignore"):
        magnitude = np.where(np.isnan(x), f32(0.0), np.abs(x)).max(axis=1, initial=0)
        s = limit / np.maximum(magnitude, f32(1e-5)).astype(np.float32)
        v = x * s[:, None]
        v = np.clip(np.where(np.isnan(v), f32(0.0), v), -limit, limit)
        return ((v + ROUND_MAGIC) - ROUND_MAGIC).astype(np.int64), s


def head_product(x: F32, head: QuantisedHead) -> F32:
    """Multiply rows with a quantised head, as ``scalar/head_gemv.c``."""
    q, s = quantize_wide(x)
    if head.dtype is DType.I8_ROWS:  # float64 is exact: |sum| < 2^31
        acc = q.astype(np.float64) @ head.codes.astype(np.float64).T
        return (acc.astype(np.float32) / s[:, None]) * head.scales[:, 0]
    y = np.zeros((len(x), len(head.codes)), np.float32)
    for group, scale in enumerate(head.scales.T):
        columns = slice(group * GROUP, (group + 1) * GROUP)
        part = q[:, columns].astype(np.float64) @ head.codes[:, columns].astype(np.float64).T
        y = y + part.astype(np.float32) * scale
    return y / s[:, None]


# -- ops ------------------------------------------------------------------------------------

# Operand values by name, attributes, position of the first row -> result.
OpReference = Callable[[Mapping[str, Any], Mapping[str, Value], int], Any]


def _embedding(operands: Mapping[str, Any], attributes: Mapping[str, Value], position: int) -> F32:
    table, ids = operands["table"], operands["ids"]
    rows = table.rows(ids) if isinstance(table, QuantisedHead) else table[ids]
    return rows * f32(float(attributes["multiplier"]))


def _rms_norm(operands: Mapping[str, Any], attributes: Mapping[str, Value], position: int) -> F32:
    x = operands["x"]
    mean = lane_sum(x * x) / f32(x.shape[1]) + f32(float(attributes["eps"]))
    r = f32(1.0) / np.sqrt(mean)
    return (x * r[:, None]) * operands["weight"]


def _ternary_linear(
    operands: Mapping[str, Any], attributes: Mapping[str, Value], position: int
) -> F32:
    q, s = quantize(operands["x"])
    q, weight = q.astype(np.int64), operands["weight"].astype(np.int64)
    if "scales" in operands:
        scales = operands["scales"]
        columns = np.split(np.arange(q.shape[1]), len(scales))
        y = np.zeros((len(q), len(weight)), np.float32)
        for group, scale in zip(columns, scales, strict=True):
            y = y + (q[:, group] @ weight[:, group].T).astype(np.float32) * scale
    else:
        y = (q @ weight.T).astype(np.float32)
    y = (y / s[:, None]) * f32(float(attributes["scale"]))
    return y + operands["bias"] if "bias" in operands else y


def _linear(operands: Mapping[str, Any], attributes: Mapping[str, Value], position: int) -> F32:
    x, weight = operands["x"], operands["weight"]
    if isinstance(weight, QuantisedHead):
        y = head_product(x, weight)
    else:
        y = np.stack([lane_sum(weight * row) for row in x])
    return y + operands["bias"] if "bias" in operands else y


def _gated_activation(
    operands: Mapping[str, Any], attributes: Mapping[str, Value], position: int
) -> F32:
    gate, up = operands["gate"], operands["up"]
    if attributes["activation"] == "relu2":
        g = np.where(gate < 0, f32(0.0), gate)
        return (g * g) * up
    return (gate / (f32(1.0) + exp(-gate))) * up


def _add(operands: Mapping[str, Any], attributes: Mapping[str, Value], position: int) -> F32:
    return operands["a"] + operands["b"]


def _rotate(x: F32, cosine: F32, sine: F32) -> F32:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    c, s = cosine[:, None], sine[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def _attention(operands: Mapping[str, Any], attributes: Mapping[str, Value], position: int) -> F32:
    heads, kv_heads, head_dim = (int(attributes[k]) for k in ("heads", "kv_heads", "head_dim"))
    n = len(operands["q"])
    q = operands["q"].reshape(n, heads, head_dim)
    k = operands["k"].reshape(n, kv_heads, head_dim)
    v = operands["v"].reshape(n, kv_heads, head_dim)
    if "inv_freq" in operands:
        positions = np.arange(position, position + n)
        angles = rope_angles(operands["inv_freq"], positions, float(attributes["rope_scale"]))
        seen = np.full(n, int(attributes.get("sinks", 0)) + int(attributes.get("window", 0)) - 1)
        asked = rope_angles(operands["inv_freq"], seen, float(attributes["rope_scale"]))
        q_sinks = _rotate(q, *asked)
        q, k = _rotate(q, *angles), _rotate(k, *angles)
    else:
        q_sinks = q
    k_cache, v_cache = operands["k_cache"], operands["v_cache"]
    k_cache.append(position, k.transpose(1, 0, 2))  # rounds or quantises, as the cache is made
    v_cache.append(position, v.transpose(1, 0, 2))
    y = np.empty_like(q)
    for t in range(n):
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            keys = k_cache.read(kv_head, position + t + 1)
            values = v_cache.read(kv_head, position + t + 1)
            y[t, head] = _attend(
                _segments(q[t, head], q_sinks[t, head], position + t, attributes),
                keys,
                values,
                f32(float(attributes["scale"])),
            )
    return y.reshape(n, heads * head_dim)


def _segments(
    q: F32, q_sinks: F32, position: int, attributes: Mapping[str, Value]
) -> list[tuple[F32, int, int]]:
    """Return what a token sees: a query, and the first and one past the last position for it."""
    window, sinks = (int(attributes.get(key, 0)) for key in ("window", "sinks"))
    if not window or position < sinks + window:
        return [(q, 0, position + 1)]
    return [(q_sinks, 0, sinks), (q, position + 1 - window, position + 1)]


def _attend(
    segments: list[tuple[F32, int, int]],
    keys: tuple[F32, F32],
    values: tuple[F32, F32],
    scale: Any,
) -> F32:
    """One head's online softmax by blocks of 64 positions, as ``scalar/attention.c``.

    Keys and values are rows and their factors, as caches return them.
    """
    out = np.zeros_like(segments[0][0])
    lanes = np.zeros(LANES, np.float32)
    largest = f32(-np.inf)
    for q, block in _blocks(segments):
        scores = (lane_sum(keys[0][block] * q) * keys[1][block]) * scale
        top = max(largest, scores.max())
        if top > largest:
            correction = exp(np.array([largest - top], np.float32))[0]
            lanes, out = lanes * correction, out * correction
            largest = top
        weights = exp(scores - largest)
        factors = weights * values[1][block]
        for j, (weight, value) in enumerate(zip(factors, values[0][block], strict=True)):
            lanes[(block.start + j) % LANES] += weights[j]
            out = out + weight * value
    return out * (f32(1.0) / tree_sum(lanes))


def _blocks(segments: list[tuple[F32, int, int]]) -> Iterator[tuple[F32, slice]]:
    for q, first, end in segments:
        for block in range(first // BLOCK_KEYS * BLOCK_KEYS, end, BLOCK_KEYS):
            yield q, slice(max(first, block), min(end, block + BLOCK_KEYS))


REFERENCE: dict[str, OpReference] = {
    "add": _add,
    "attention": _attention,
    "embedding": _embedding,
    "gated_activation": _gated_activation,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "ternary_linear": _ternary_linear,
}


class ReferenceModel:
    """Runs a graph with the references.

    Parameters
    ----------
    source : ModelSource
    context : int, optional
        Rows of the KV cache; the model's context length by default.
    kv_dtype : DType
        ``f32``, ``f16``, ``int8`` or ``int4``, as planned.
    head_dtype : str, optional
        As planned; as the source has it by default. A screened head gives the stored one's logits.
    window, sinks : int
        As planned; ``context`` is then the longest sequence.
    """

    def __init__(
        self,
        source: ModelSource,
        context: int | None = None,
        kv_dtype: DType = DType.F32,
        head_dtype: str | None = None,
        *,
        window: int = 0,
        sinks: int = 0,
    ) -> None:
        graph = source.graph
        self._seen: dict[str, Value] = {"window": window, "sinks": sinks}
        self.graph: Graph = graph
        packed = packed_heads(graph, source.choose_head_dtype(head_dtype) or STORED)
        self._constants = {t.name: _constant(source, t, packed) for t in graph.constants()}
        rows = context or graph.info.context_length
        self._state = {
            t.name: new_kv_cache((t.shape[0], rows, t.shape[2]), kv_dtype) for t in graph.states()
        }

    def run(self, inputs: Mapping[str, Any], position: int = 0) -> dict[str, Any]:
        """Run the graph on some rows.

        Parameters
        ----------
        inputs : Mapping[str, ndarray]
            By port name, ``n_tokens`` rows each.
        position : int
            Of the first row in the KV cache.

        Returns
        -------
        dict
            Every tensor computed, by name.

        Raises
        ------
        ArgumentError
            When an input is missing.
        """
        missing = set(self.graph.inputs) - set(inputs)
        if missing:
            raise ArgumentError(f"[reference] missing inputs {sorted(missing)}")
        values = dict(inputs)
        for node in self.graph.nodes:
            values[node.outputs[0]] = self.apply(node, values, position)
        return {name: values[name] for name in self.graph.activations()}

    def apply(self, node: Node, values: Mapping[str, Any], position: int = 0) -> Any:
        """Run one node on given inputs and activations, with the model's constants and caches."""
        known = {**self._constants, **self._state, **values}
        operands = {operand: known[name] for operand, name in OPS[node.op].operands(node).items()}
        with np.errstate(all="ignore"):  # hostile numbers are the engine's business too
            return REFERENCE[node.op](operands, {**node.attributes, **self._seen}, position)

    def logits(self, ids: Any, position: int = 0) -> Any:
        """Return the first output for token ids: float32 (n_tokens, vocab_size)."""
        values = self.run({self.graph.inputs[0]: np.asarray(ids, np.int32)}, position)
        return values[self.graph.outputs[0]]


def _constant(source: ModelSource, tensor: Tensor, packed: Mapping[str, DType]) -> Any:
    values: Any = source.weights.load(tensor.name)
    if tensor.name in packed:
        if head_storage(source.head_dtype) is not None:
            return unpack_head(values, packed[tensor.name], tensor.shape)
        return quantise_head(widen(values, tensor.dtype), packed[tensor.name])
    return values if tensor.dtype is DType.TERNARY else widen(values, tensor.dtype)
