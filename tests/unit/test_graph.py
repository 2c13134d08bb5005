# SPDX-License-Identifier: MIT
from __future__ import annotations

import dataclasses
import json

import pytest

from bitnet_edge.dtypes import DType
from bitnet_edge.errors import GraphError, ShapeMismatch
from bitnet_edge.graph import Graph, Node, Tensor
from bitnet_edge.ops import OPS, Op
from tests.graphs import GraphBuilder, decoder, mlp


def rebuilt(graph: Graph, **changes) -> Graph:
    return dataclasses.replace(graph, **changes)


def test_json_round_trip_keeps_everything():
    graph = decoder().graph
    again = Graph.from_json(json.loads(json.dumps(graph.to_json())))
    assert again == graph
    assert again.to_json() == graph.to_json()


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        [],
        {"info": {}, "tensors": [], "nodes": [], "inputs": [], "outputs": []},
        {"info": 3},
    ],
)
def test_json_that_is_no_graph(data):
    with pytest.raises(GraphError, match="not a graph in JSON form"):
        Graph.from_json(data)


def test_json_with_an_inconsistent_graph_keeps_its_error():
    data = mlp().graph.to_json()
    data["nodes"][0][0] = "transmogrify"
    with pytest.raises(GraphError, match="unknown op 'transmogrify'"):
        Graph.from_json(data)


def test_constants_and_states_come_in_order_of_use():
    graph = decoder(layers=1).graph
    names = [tensor.name for tensor in graph.constants()]
    assert names[:3] == ["embed", "layers.0.input_norm.weight", "layers.0.q_proj.weight"]
    assert [t.name for t in graph.states()] == [
        "layers.0.attention.k_cache",
        "layers.0.attention.v_cache",
    ]


def test_tensor_prints_readably():
    graph = decoder().graph
    assert str(graph.tensors["embed"]) == "bf16[97, 40]"
    assert str(graph.tensors["layers.0.attention.k_cache"]) == "f32[2, context, 10]"
    assert str(graph.tensors["ids"]) == "i32[n]"


def test_a_misfiled_tensor():
    graph = mlp().graph
    tensors = dict(graph.tensors) | {"wrong": graph.tensors["x"]}
    with pytest.raises(GraphError, match="filed under 'wrong'"):
        rebuilt(graph, tensors=tensors)


@pytest.mark.parametrize("shape", [(0,), (-3, 4)])
def test_an_impossible_shape(shape):
    graph = mlp().graph
    tensors = dict(graph.tensors) | {"bad": Tensor("bad", shape, DType.F32)}
    with pytest.raises(ShapeMismatch, match="impossible shape"):
        rebuilt(graph, tensors=tensors)


def test_node_names_are_unique():
    graph = mlp().graph
    nodes = (graph.nodes[0], dataclasses.replace(graph.nodes[1], name=graph.nodes[0].name))
    with pytest.raises(GraphError, match="two nodes are named"):
        rebuilt(graph, nodes=nodes)


def test_unknown_tensor():
    graph = mlp().graph
    node = dataclasses.replace(graph.nodes[0], inputs=("nowhere", *graph.nodes[0].inputs[1:]))
    with pytest.raises(GraphError, match="unknown tensor 'nowhere'"):
        rebuilt(graph, nodes=(node,))


def test_use_before_definition():
    graph = mlp().graph
    with pytest.raises(GraphError, match="used before it is defined"):
        rebuilt(graph, nodes=graph.nodes[::-1])


def test_double_definition():
    graph = mlp(widths=(20, 20)).graph
    again = dataclasses.replace(graph.nodes[0], name="again")
    with pytest.raises(GraphError, match="defined twice"):
        rebuilt(graph, nodes=(graph.nodes[0], again))


def test_dangling_output():
    graph = mlp().graph
    with pytest.raises(GraphError, match="not defined by any node"):
        rebuilt(graph, outputs=("x", "layers.9"))


def broken(op: str, inputs, attributes, width=20, **tensors) -> None:
    """Build a graph with one node over a few tensors of given shapes."""
    b = GraphBuilder()
    for name, (shape, dtype) in tensors.items():
        b.constant(name, shape, dtype)
    b.node(op, "node", inputs, width, **attributes)
    b.source([], ["node.out"])


F, T = DType.F32, DType.TERNARY
SHAPE_ERRORS = [
    ("add", ("a",), {}, {"a": ((3, 20), F)}, "lacks operand b"),
    ("add", ("a", "a", "a"), {}, {"a": ((3, 20), F)}, "expected 2 inputs and 1 output, got 3 and"),
    ("add", ("a", "b"), {"x": 1}, {"a": ((3, 20), F), "b": ((3, 20), F)}, "expected attributes"),
    ("add", ("a", ""), {}, {"a": ((3, 20), F)}, "lacks operand b"),
    ("add", ("a", "b"), {}, {"a": ((3, 20), F), "b": ((3, 21), F)}, "expected shape of b"),
    ("add", ("a", "b"), {}, {"a": ((3,), F), "b": ((3,), F)}, "expected rank of a 2, got 1"),
    ("add", ("a", "b"), {}, {"a": ((3, 20), F), "b": ((3, 20), T)}, "b must be f32, got ternary"),
    ("add", ("a", "b"), {}, {"a": ((3, 20), F), "b": ((3, 20), F)}, r"gives f32 \(3, 20\)"),
    (
        "rms_norm",
        ("a", "w"),
        {"eps": 1},
        {"a": ((3, 20), F), "w": ((20,), F)},
        "eps must be float",
    ),
    (
        "rms_norm",
        ("a", "w"),
        {"eps": 1e-5},
        {"a": ((3, 20), F), "w": ((19,), F)},
        "expected length of weight 20, got 19",
    ),
    (
        "ternary_linear",
        ("a", "w", ""),
        {"scale": 1.0},
        {"a": ((3, 20), F), "w": ((8, 21), T)},
        "expected columns of x 21, got 20",
    ),
    (
        "ternary_linear",
        ("a", "w", "", "s"),
        {"scale": 1.0},
        {"a": ((3, 20), F), "w": ((8, 20), T), "s": ((1, 9), F)},
        "expected columns of scales 8, got 9",
    ),
    (
        "ternary_linear",
        ("a", "w", "", "s"),
        {"scale": 1.0},
        {"a": ((3, 96), F), "w": ((8, 96), T), "s": ((4, 8), F)},
        "expected groups of a multiple of 16 columns, got 4 groups of 96 columns",
    ),
    (
        "linear",
        ("a", "w", "b"),
        {},
        {"a": ((3, 20), F), "w": ((8, 20), F), "b": ((9,), F)},
        "expected length of bias 8, got 9",
    ),
    (
        "gated_activation",
        ("a", "b"),
        {"activation": "gelu"},
        {"a": ((3, 20), F), "b": ((3, 20), F)},
        "expected activation relu2 or silu, got 'gelu'",
    ),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "tensors", "message"), SHAPE_ERRORS)
def test_shape_rules(op, inputs, attributes, tensors, message):
    with pytest.raises(ShapeMismatch, match=message) as caught:
        broken(op, inputs, attributes, **tensors)
    assert "node" in str(caught.value)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(3, 2, 8), (4, 2, 7), (0, 1, 8), (4, 0, 8)]
)
def test_attention_rejects_impossible_heads(heads, kv_heads, head_dim):
    attributes = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "scale": 1.0,
        "rope_scale": 1.0,
    }
    with pytest.raises(ShapeMismatch, match="heads a multiple of kv_heads"):
        OPS["attention"].infer({}, attributes)


def test_attention_rows_must_be_tokens():
    attributes = {"heads": 2, "kv_heads": 1, "head_dim": 4, "scale": 1.0, "rope_scale": 1.0}
    cache = (1, -2, 4)
    shapes = {"q": (5, 8), "k": (5, 4), "v": (5, 4), "k_cache": cache, "v_cache": cache}
    with pytest.raises(ShapeMismatch, match="expected rows of q -1, got 5"):
        OPS["attention"].infer(shapes, attributes)


def test_nodes_are_immutable():
    node = Node("add", "n", ("a", "b"), ("c",), {"k": 1})
    with pytest.raises(TypeError):
        node.attributes["k"] = 2  # type: ignore[index]


def test_the_base_op_has_no_shape_rule():
    with pytest.raises(NotImplementedError):
        Op.infer({}, {})
