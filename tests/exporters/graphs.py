# SPDX-License-Identifier: MIT
"""One node of each op, in random shapes: the rows of the matrix op x target."""

from __future__ import annotations

import numpy as np

from bitnet_edge.dtypes import DType
from bitnet_edge.exporters.sources.source import ModelSource
from tests.graphs import GraphBuilder


def _embedding(b: GraphBuilder, n: np.random.Generator) -> str:
    vocab, width = n.integers(2, 90, 2)
    ids = b.input("ids", dtype=DType.I32)
    table = b.constant("table", (int(vocab), int(width)), [DType.F32, DType.BF16][n.integers(2)])
    return b.node("embedding", "node", (ids, table), int(width), multiplier=float(n.choice([1, 3])))


def _rms_norm(b: GraphBuilder, n: np.random.Generator) -> str:
    return b.norm("node", b.input("x", int(n.integers(1, 300))))


def _ternary_linear(b: GraphBuilder, n: np.random.Generator) -> str:
    k, rows = (int(size) for size in n.integers(1, 300, 2))
    if n.random() < 0.5:
        groups = int(n.integers(1, 4))
        k = 16 * groups * int(n.integers(1, 9)) if groups > 1 else k
        x = b.input("x", k)
        return b.scaled_ternary("node", x, rows, groups, bias=bool(n.random() < 0.5))
    return b.ternary("node", b.input("x", k), rows, bias=bool(n.random() < 0.5))


def _linear(b: GraphBuilder, n: np.random.Generator) -> str:
    k, rows = (int(size) for size in n.integers(1, 100, 2))
    dtype = [DType.F32, DType.F16, DType.BF16][n.integers(3)]
    bias = b.constant("bias", (rows,)) if n.random() < 0.5 else ""
    x = b.input("x", k)
    return b.node("linear", "node", (x, b.constant("weight", (rows, k), dtype), bias), rows)


def _gated_activation(b: GraphBuilder, n: np.random.Generator) -> str:
    width = int(n.integers(1, 100))
    gate, up = b.input("gate", width), b.input("up", width)
    activation = str(n.choice(["relu2", "silu"]))
    return b.node("gated_activation", "node", (gate, up), width, activation=activation)


def _add(b: GraphBuilder, n: np.random.Generator) -> str:
    width = int(n.integers(1, 100))
    return b.node("add", "node", (b.input("a", width), b.input("b", width)), width)


def _attention(b: GraphBuilder, n: np.random.Generator) -> str:
    kv_heads, group, half = (int(size) for size in n.integers(1, 5, 3))
    head_dim = 2 * half
    q = b.input("q", kv_heads * group * head_dim)
    k, v = b.input("k", kv_heads * head_dim), b.input("v", kv_heads * head_dim)
    rope = bool(n.random() < 0.7)
    return b.attention("node", q, k, v, kv_heads * group, kv_heads, head_dim, rope=rope)


MAKERS = {
    "add": _add,
    "attention": _attention,
    "embedding": _embedding,
    "gated_activation": _gated_activation,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "ternary_linear": _ternary_linear,
}


def one_node(op: str, seed: int) -> ModelSource:
    """A graph of one node with random shapes and attributes."""
    b = GraphBuilder(seed)
    output = MAKERS[op](b, np.random.default_rng(seed))
    inputs = [t.name for t in b.tensors.values() if t.kind.value == "input"]
    return b.source(inputs, [output], context_length=24)


def one_matrix(rows: int, k: int) -> ModelSource:
    """A ternary linear."""
    b = GraphBuilder(1)
    return b.source(["x"], [b.ternary("layer", b.input("x", k), rows)])


def random_inputs(source: ModelSource, rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for name in source.graph.inputs:
        tensor = source.graph.tensors[name]
        if tensor.dtype is DType.I32:
            table = source.graph.tensors[source.graph.nodes[0].inputs[1]]
            made[name] = rng.integers(0, table.shape[0], rows).astype(np.int32)
        else:
            made[name] = rng.normal(size=(rows, tensor.shape[1])).astype(np.float32)
    return made
