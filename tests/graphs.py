# SPDX-License-Identifier: MIT
"""Small graphs and sources made in memory, for tests."""

from __future__ import annotations

import numpy as np

from bitnet_edge.dtypes import DType
from bitnet_edge.exporters.sources.source import ModelSource
from bitnet_edge.graph import CONTEXT, N_TOKENS, Graph, Kind, ModelInfo, Node, Tensor


class ArrayWeights:
    """A weight source over arrays."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def load(self, name: str) -> np.ndarray:
        return self.arrays[name]


class GraphBuilder:
    """Collects tensors, nodes and weights; every method returns the tensor's name."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.weights: dict[str, np.ndarray] = {}

    def tensor(self, name, shape, dtype=DType.F32, kind=Kind.ACTIVATION) -> str:
        self.tensors[name] = Tensor(name, tuple(shape), dtype, kind)
        return name

    def input(self, name, width=None, dtype=DType.F32) -> str:
        shape = (N_TOKENS,) if width is None else (N_TOKENS, width)
        return self.tensor(name, shape, dtype, Kind.INPUT)

    def constant(self, name, shape, dtype=DType.F32) -> str:
        if dtype is DType.TERNARY:
            self.weights[name] = self.rng.integers(-1, 2, shape).astype(np.int8)
        elif dtype is DType.BF16:
            values = self.rng.normal(size=shape).astype(np.float32)
            self.weights[name] = (values.view(np.uint32) >> 16).astype(np.uint16)
        elif dtype is DType.F16:
            self.weights[name] = self.rng.normal(size=shape).astype(np.float16).view(np.uint16)
        else:
            self.weights[name] = self.rng.normal(size=shape).astype(np.float32)
        return self.tensor(name, shape, dtype, Kind.CONSTANT)

    def node(self, op, name, inputs, width, **attributes) -> str:
        output = self.tensor(f"{name}.out", (N_TOKENS, width))
        self.nodes.append(Node(op, name, tuple(inputs), (output,), attributes))
        return output

    def ternary(self, name, x, rows, *, bias=False, scale=0.05) -> str:
        k = self.tensors[x].shape[1]
        weight = self.constant(f"{name}.weight", (rows, k), DType.TERNARY)
        b = self.constant(f"{name}.bias", (rows,)) if bias else ""
        return self.node("ternary_linear", name, (x, weight, b), rows, scale=scale)

    def scaled_ternary(self, name, x, rows, groups, dtype=DType.F32, *, bias=False) -> str:
        """A ternary linear with a scale for every row and group of columns."""
        k = self.tensors[x].shape[1]
        weight = self.constant(f"{name}.weight", (rows, k), DType.TERNARY)
        b = self.constant(f"{name}.bias", (rows,)) if bias else ""
        scales = self.constant(f"{name}.scales", (groups, rows), dtype)
        return self.node("ternary_linear", name, (x, weight, b, scales), rows, scale=0.5)

    def norm(self, name, x) -> str:
        width = self.tensors[x].shape[1]
        gain = self.constant(f"{name}.weight", (width,))
        return self.node("rms_norm", name, (x, gain), width, eps=1e-5)

    def attention(self, name, q, k, v, heads, kv_heads, head_dim, *, rope=True) -> str:
        if rope and "rope.inv_freq" not in self.tensors:
            self.constant("rope.inv_freq", (head_dim // 2,))
            steps = np.arange(0, head_dim, 2) / head_dim
            self.weights["rope.inv_freq"] = (1 / 10000.0**steps).astype(np.float32)
        caches = [
            self.tensor(f"{name}.{c}_cache", (kv_heads, CONTEXT, head_dim), kind=Kind.STATE)
            for c in "kv"
        ]
        return self.node(
            "attention",
            name,
            (q, k, v, "rope.inv_freq" if rope else "", *caches),
            heads * head_dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope_scale=1.0,
        )

    def source(self, inputs, outputs, **info) -> ModelSource:
        described = {"name": "test", "architecture": "Test"} | info
        graph = Graph(
            ModelInfo(**described), self.tensors, tuple(self.nodes), tuple(inputs), tuple(outputs)
        )
        return ModelSource(graph, ArrayWeights(self.weights))


def mlp(seed=0, widths=(20, 48, 33), *, bias=True) -> ModelSource:
    """Float rows in, float rows out; ragged sizes."""
    b = GraphBuilder(seed)
    x = b.input("x", widths[0])
    for i, width in enumerate(widths[1:]):
        x = b.ternary(f"layers.{i}.linear", x, width, bias=bias)
    return b.source(["x"], [x])


def decoder(
    seed=0,
    *,
    vocab=97,
    hidden=40,
    heads=4,
    kv_heads=2,
    head_dim=10,
    ffn=56,
    layers=2,
    context=100,
    activation="silu",
    bias=True,
    rope=True,
    table=DType.BF16,
    tied=False,
) -> ModelSource:
    """A small decoder with ragged sizes: GQA, biases, residuals, float head (untied, f16)."""
    b = GraphBuilder(seed)
    ids = b.input("ids", dtype=DType.I32)
    embed = b.constant("embed", (vocab, hidden), table)
    x = b.node("embedding", "embed_tokens", (ids, embed), hidden, multiplier=1.5)
    for i in range(layers):
        p = f"layers.{i}."
        h = b.norm(p + "input_norm", x)
        q = b.ternary(p + "q_proj", h, heads * head_dim, bias=bias)
        k = b.ternary(p + "k_proj", h, kv_heads * head_dim)
        v = b.ternary(p + "v_proj", h, kv_heads * head_dim)
        a = b.attention(p + "attention", q, k, v, heads, kv_heads, head_dim, rope=rope)
        o = b.ternary(p + "o_proj", a, hidden)
        x = b.node("add", p + "attention_residual", (x, o), hidden)
        h = b.norm(p + "ffn_norm", x)
        gate = b.ternary(p + "gate_proj", h, ffn)
        up = b.ternary(p + "up_proj", h, ffn)
        g = b.node("gated_activation", p + "act", (gate, up), ffn, activation=activation)
        x = b.node("add", p + "ffn_residual", (x, b.ternary(p + "down_proj", g, hidden)), hidden)
    x = b.norm("final_norm", x)
    head = embed if tied else b.constant("lm_head", (vocab, hidden), DType.F16)
    bias_name = b.constant("lm_head.bias", (vocab,)) if bias else ""
    logits = b.node("linear", "lm_head_linear", (x, head, bias_name), vocab)
    return b.source([ids], [logits], context_length=context, vocab_size=vocab)
