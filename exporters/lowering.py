# SPDX-License-Identifier: MIT
"""Coarse graph ops as fine ones, once for all targets.

A lowering says an op in the fine ops of `FINE` and in the few parts of a model that each target
stores in its own way (weights, caches, positions): the methods of `Emitter`. A target implements an
emitter; where its runtime wants an op said otherwise it replaces that op's lowering, and where it
cannot say it at all it has a `Refusal`. `UNIVERSAL` is what every target starts from, so the table
op x target is closed: `emit` finds one or the other for every op, or the op is not in the table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import UnsupportedOp
from bitnet_edge.graph import Kind, Node
from bitnet_edge.ops import OPS
from bitnet_edge.reference import rope_angles, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitnet_edge.exporters.sources.source import ModelSource

__all__ = [
    "FINE",
    "UNIVERSAL",
    "Emitter",
    "Lowering",
    "Refusal",
    "TernaryBytes",
    "emit",
    "scaled_product",
]

# A handle of the target's: a name, an index, a variable.
Handle = Any

# name -> number of operands. Rows are axis 0; reductions and softmax run over the last axis, and
# reductions keep it. Binary ops broadcast; `round` rounds halves to even. `matmul` has a keyword
# transpose_b, `reshape` shape (one size may be -1), `transpose` axes, `concat` is over the last
# axis, `columns` takes begin .. end of the last axis.
FINE: Mapping[str, int] = {
    "abs": 1,
    "add": 2,
    "columns": 1,
    "concat": 2,
    "div": 2,
    "matmul": 2,
    "maximum": 2,
    "minimum": 2,
    "mul": 2,
    "reduce_max": 1,
    "reduce_mean": 1,
    "reshape": 1,
    "round": 1,
    "sigmoid": 1,
    "softmax": 1,
    "sqrt": 1,
    "sub": 2,
    "transpose": 1,
}

# Added to the scores of keys that a query may not see: softmax gives them exactly zero.
MASKED = -1e9


@dataclass(frozen=True)
class Refusal:
    """Why a target has no lowering for an op.

    Attributes
    ----------
    reason : str
    instead : str
        What to change.
    """

    reason: str
    instead: str


@dataclass
class TernaryBytes:
    """What the ternary weights of a package take: stored bytes, scales included, and weights."""

    stored: int = 0
    weights: int = 0

    @property
    def bits(self) -> float:
        """Bits a weight; 0 without any."""
        return 8 * self.stored / self.weights if self.weights else 0.0


class Emitter(ABC):
    """Writes one function of a package; a handle stands for a value of it.

    Parameters
    ----------
    source : ModelSource
    rows : int
        Rows (tokens) of a run; -1 where the target leaves them open.
    context : int
        Rows of the caches, and the largest position plus one.

    Attributes
    ----------
    handles : dict
        Tensor of the graph -> handle: inputs before `emit`, activations after it.
    memo : dict
        What lowerings share between nodes: quantised rows, angles, the mask.
    ternary : TernaryBytes
    """

    def __init__(self, source: ModelSource, rows: int, context: int) -> None:
        self.source = source
        self.rows = rows
        self.context = context
        self.handles: dict[str, Handle] = {}
        self.memo: dict[Any, Handle] = {}
        self.ternary = TernaryBytes()

    @abstractmethod
    def op(self, name: str, *operands: Handle | float, **keywords: Any) -> Handle:
        """Apply a fine op; a float among the operands becomes a constant."""

    @abstractmethod
    def constant(self, values: NDArray[Any]) -> Handle:
        """Return a constant (float32, or int32 for indices)."""

    @abstractmethod
    def ternary_product(self, q: Handle, weight: str, begin: int, end: int) -> Handle:
        """Return ``q @ weight[:, begin:end].T``, exactly.

        q (n, end - begin) holds integers of -128 .. 127 in float32, and so does the result.
        """

    @abstractmethod
    def dense_product(self, x: Handle, weight: str) -> Handle:
        """Return ``x @ weight.T`` in float32; weight a float constant of the graph."""

    @abstractmethod
    def embedding(self, ids: Handle, table: str) -> Handle:
        """Return ``table[ids]`` in float32, (n, width)."""

    @abstractmethod
    def append(self, state: str, rows: Handle) -> Handle:
        """Write rows (heads, n, head_dim) at the run's positions of a cache.

        Returns the whole cache as queries see it, (heads, keys, head_dim).
        """

    @abstractmethod
    def positions(self) -> Handle:
        """Return the positions of the run's rows in float32, (n, 1)."""

    @abstractmethod
    def key_positions(self) -> Handle:
        """Return the positions of the keys of a cache in float32, (1, keys)."""

    @abstractmethod
    def at_positions(self, table: NDArray[np.float32]) -> Handle:
        """Return the rows of a table (context, width) at the run's positions, (n, width)."""

    def vector(self, name: str) -> Handle:
        """Return a float constant of the graph, in float32."""
        return self.constant(self.load(name))

    def load(self, name: str) -> NDArray[Any]:
        """Return the values of a constant: float32, or int8 for a ternary one."""
        tensor = self.source.graph.tensors[name]
        values: Any = self.source.weights.load(name)
        if tensor.dtype is not DType.TERNARY:
            values = widen(values, tensor.dtype)
        return np.asarray(values)


# Emitter, node, operands by name (a handle, or the tensor's name for constants and caches).
Lowering = Callable[[Emitter, Node, Mapping[str, Any]], Handle]


def emit(
    emitter: Emitter, table: Mapping[str, Lowering | Refusal], wanted: Collection[str]
) -> None:
    """Lower the nodes that give ``wanted`` tensors, and those that write caches.

    Raises
    ------
    UnsupportedOp
        Naming op, node, the reason and what to change.
    """
    graph = emitter.source.graph
    needed = _needed(graph.nodes, {t.name for t in graph.states()}, wanted)
    for node in graph.nodes:
        lowering = table.get(node.op, Refusal("no lowering is written", "choose another target"))
        if isinstance(lowering, Refusal):
            raise UnsupportedOp(
                f"[{node.op}] cannot be exported: {lowering.reason} (node {node.name!r}); "
                f"{lowering.instead}"
            )
        if node.name not in needed:
            continue
        operands = {
            operand: emitter.handles[name]
            if graph.tensors[name].kind in (Kind.ACTIVATION, Kind.INPUT)
            else name
            for operand, name in OPS[node.op].operands(node).items()
        }
        emitter.handles[node.outputs[0]] = lowering(emitter, node, operands)


def _needed(nodes: Sequence[Node], states: set[str], wanted: Collection[str]) -> set[str]:
    """Return the names of the nodes that a result depends on."""
    tensors, needed = set(wanted), set()
    for node in reversed(nodes):
        if tensors & set(node.outputs) or states & set(node.inputs):
            needed.add(node.name)
            tensors |= set(node.inputs)
    return needed


def _biased(e: Emitter, y: Handle, operands: Mapping[str, Any]) -> Handle:
    return e.op("add", y, e.vector(operands["bias"])) if "bias" in operands else y


def embedding(e: Emitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.Embedding`."""
    rows = e.embedding(operands["ids"], operands["table"])
    multiplier = float(node.attributes["multiplier"])
    return rows if multiplier == 1.0 else e.op("mul", rows, multiplier)


def rms_norm(e: Emitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.RmsNorm`."""
    x = operands["x"]
    mean = e.op("reduce_mean", e.op("mul", x, x))
    root = e.op("sqrt", e.op("add", mean, float(node.attributes["eps"])))
    return e.op("mul", e.op("mul", x, e.op("div", 1.0, root)), e.vector(operands["weight"]))


def quantised(e: Emitter, x: Handle) -> tuple[Handle, Handle]:
    """Return rows as integers by their largest magnitude, and the factor, once per tensor.

    No clamp: ``x * (127 / m)`` with ``|x| <= m`` rounds to at most 127.
    """
    if ("quantised", x) not in e.memo:
        magnitude = e.op("maximum", e.op("reduce_max", e.op("abs", x)), 1e-5)
        scale = e.op("div", 127.0, magnitude)
        e.memo["quantised", x] = (e.op("round", e.op("mul", x, scale)), scale)
    pair: tuple[Handle, Handle] = e.memo["quantised", x]
    return pair


def scaled_product(
    e: Emitter, x: Handle, operands: Mapping[str, Any], scale_bytes: int = 4
) -> Handle:
    """Return the product of rows and a ternary weight, with its scales where it has them.

    ``scale_bytes`` is what the target stores of a scale.
    """
    weight = operands["weight"]
    k = e.source.graph.tensors[weight].shape[1]
    if "scales" not in operands:
        return e.ternary_product(x, weight, 0, k)
    scales = e.load(operands["scales"])
    e.ternary.stored += scales.size * scale_bytes
    width, y = k // len(scales), None
    for group, scale in enumerate(scales):
        begin, end = group * width, (group + 1) * width
        part = x if width == k else e.op("columns", x, begin=begin, end=end)
        part = e.ternary_product(part, weight, begin, end)
        part = e.op("mul", part, e.constant(scale))
        y = part if y is None else e.op("add", y, part)
    return y


def ternary_linear(e: Emitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.TernaryLinear`."""
    q, s = quantised(e, operands["x"])
    y = scaled_product(e, q, operands)
    y = e.op("mul", e.op("div", y, s), float(node.attributes["scale"]))
    return _biased(e, y, operands)


def linear(e: Emitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.Linear`."""
    return _biased(e, e.dense_product(operands["x"], operands["weight"]), operands)


def gated_activation(e: Emitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.GatedActivation`."""
    gate, up = operands["gate"], operands["up"]
    if node.attributes["activation"] == "relu2":
        g = e.op("maximum", gate, 0.0)
        return e.op("mul", e.op("mul", g, g), up)
    return e.op("mul", e.op("mul", gate, e.op("sigmoid", gate)), up)


def add(e: Emitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.Add`."""
    return e.op("add", operands["a"], operands["b"])


def angles(e: Emitter, inv_freq: str, scale: float) -> tuple[Handle, Handle]:
    """Return cosine and sine at the run's positions, (n, 1, half), once for all layers.

    They come from tables that the reference computes, so that no runtime's own sine is trusted.
    """
    key = ("angles", inv_freq, scale)
    if key not in e.memo:
        half = e.source.graph.tensors[inv_freq].shape[0]
        tables = rope_angles(e.load(inv_freq), np.arange(e.context), scale)
        e.memo[key] = tuple(
            e.op("reshape", e.at_positions(table), shape=(-1, 1, half)) for table in tables
        )
    pair: tuple[Handle, Handle] = e.memo[key]
    return pair


def rotate(e: Emitter, x: Handle, head_dim: int, cosine: Handle, sine: Handle) -> Handle:
    """Rotate the halves of the last axis; x (n, heads, head_dim)."""
    a = e.op("columns", x, begin=0, end=head_dim // 2)
    b = e.op("columns", x, begin=head_dim // 2, end=head_dim)
    left = e.op("sub", e.op("mul", a, cosine), e.op("mul", b, sine))
    right = e.op("add", e.op("mul", b, cosine), e.op("mul", a, sine))
    return e.op("concat", left, right)


def causal_mask(e: Emitter, group: int) -> Handle:
    """Return what is added to scores, (n * group, keys): 0, or `MASKED` and less for later keys."""
    if ("mask", group) not in e.memo:
        repeated = e.op("mul", e.positions(), e.constant(np.ones((1, group), np.float32)))
        queries = e.op("reshape", repeated, shape=(-1, 1))
        ahead = e.op("minimum", e.op("sub", queries, e.key_positions()), 0.0)
        e.memo["mask", group] = e.op("mul", ahead, -MASKED)
    return e.memo["mask", group]


def attention(e: Emitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.Attention`.

    The queries that share a key head are rows of one product: (kv_heads, n * group, head_dim).
    """
    heads, kv_heads, head_dim = (
        int(node.attributes[key]) for key in ("heads", "kv_heads", "head_dim")
    )
    group = heads // kv_heads
    q = e.op("reshape", operands["q"], shape=(-1, heads, head_dim))
    k = e.op("reshape", operands["k"], shape=(-1, kv_heads, head_dim))
    v = e.op("reshape", operands["v"], shape=(-1, kv_heads, head_dim))
    if "inv_freq" in operands:
        turn = angles(e, operands["inv_freq"], float(node.attributes["rope_scale"]))
        q, k = rotate(e, q, head_dim, *turn), rotate(e, k, head_dim, *turn)
    keys = e.append(operands["k_cache"], e.op("transpose", k, axes=(1, 0, 2)))
    values = e.append(operands["v_cache"], e.op("transpose", v, axes=(1, 0, 2)))
    q = e.op("reshape", q, shape=(-1, kv_heads, group * head_dim))
    q = e.op("transpose", q, axes=(1, 0, 2))
    q = e.op("reshape", q, shape=(kv_heads, -1, head_dim))
    scores = e.op("matmul", q, keys, transpose_b=True)
    scores = e.op("mul", scores, float(node.attributes["scale"]))
    weights = e.op("softmax", e.op("add", scores, causal_mask(e, group)))
    y = e.op("matmul", weights, values, transpose_b=False)
    y = e.op("reshape", y, shape=(kv_heads, -1, group * head_dim))
    y = e.op("transpose", y, axes=(1, 0, 2))
    return e.op("reshape", y, shape=(-1, heads * head_dim))


UNIVERSAL: Mapping[str, Lowering | Refusal] = {
    "add": add,
    "attention": attention,
    "embedding": embedding,
    "gated_activation": gated_activation,
    "linear": linear,
    "rms_norm": rms_norm,
    "ternary_linear": ternary_linear,
}
