# SPDX-License-Identifier: MIT
"""The intermediate representation: a small, typed, immutable graph of coarse ops.

A graph says what a model computes and nothing about where: no offsets, no packing, no device.
Importers build it, the planner and the exporters read it, and the ``.bte`` file keeps it as JSON so
that another device can be planned from the file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from bitnet_edge.dtypes import DType
from bitnet_edge.errors import GraphError, ShapeMismatch

__all__ = [
    "CONTEXT",
    "N_TOKENS",
    "Graph",
    "Kind",
    "ModelInfo",
    "Node",
    "Tensor",
    "Value",
]

# The two symbolic dimensions: rows of one run, and rows of the KV cache.
N_TOKENS = -1
CONTEXT = -2

# What an attribute may hold.
Value = int | float | str | bool


class Kind(str, Enum):
    """Where a tensor comes from."""

    INPUT = "input"
    CONSTANT = "constant"
    STATE = "state"
    ACTIVATION = "activation"


@dataclass(frozen=True)
class Tensor:
    """A value of the graph.

    Attributes
    ----------
    name : str
        Unique within the graph.
    shape : tuple of int
        Positive sizes, `N_TOKENS` or `CONTEXT`.
    dtype : DType
    kind : Kind
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    kind: Kind = Kind.ACTIVATION

    def __str__(self) -> str:
        symbols = {N_TOKENS: "n", CONTEXT: "context"}
        sizes = ", ".join(symbols.get(size, str(size)) for size in self.shape)
        return f"{self.dtype.value}[{sizes}]"


@dataclass(frozen=True)
class Node:
    """One op applied to tensors.

    Attributes
    ----------
    op : str
        A name of `bitnet_edge.ops.OPS`.
    name : str
        Unique; dotted, beginning with the layer it belongs to (``layers.3.gate_proj``).
    inputs, outputs : tuple of str
        Tensor names in the op's order; an absent optional input is the empty string.
    attributes : Mapping[str, Value]
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))


@dataclass(frozen=True)
class ModelInfo:
    """What a user of the model needs to know beside the graph.

    Attributes
    ----------
    name, architecture : str
        Of the checkpoint; ``architecture`` is its class name, e.g. ``BitNetForCausalLM``.
    context_length : int
        Positions the model was trained for; 0 for a model without positions.
    vocab_size : int
        0 for a model without tokens.
    bos_id : int
        -1 when there is none.
    eos_ids : tuple of int
        Ids that end a generated text.
    notes : tuple of str
        How ambiguous things were read, for `inspect`.
    """

    name: str
    architecture: str
    context_length: int = 0
    vocab_size: int = 0
    bos_id: int = -1
    eos_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Tensors, nodes in execution order, and the model's description.

    Building one checks it: names unique and known, every node's inputs defined before it, shapes
    and dtypes as the op table says.

    Raises
    ------
    GraphError
        On an unknown op, a dangling or doubly defined name.
    ShapeMismatch
        When a node violates its op's shape rule.
    """

    info: ModelInfo
    tensors: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        _check(self)

    def constants(self) -> list[Tensor]:
        """Weights, in the order of their first use (the order they are stored in)."""
        order: dict[str, Tensor] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name and self.tensors[name].kind is Kind.CONSTANT:
                    order.setdefault(name, self.tensors[name])
        return list(order.values())

    def states(self) -> list[Tensor]:
        """KV cache tensors, in the order of their first use."""
        order: dict[str, Tensor] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name and self.tensors[name].kind is Kind.STATE:
                    order.setdefault(name, self.tensors[name])
        return list(order.values())

    def activations(self) -> list[str]:
        """Return the tensors that nodes compute, in order."""
        return [name for node in self.nodes for name in node.outputs]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable form that `from_json` reads back to an equal graph."""
        return {
            "info": {
                "name": self.info.name,
                "architecture": self.info.architecture,
                "context_length": self.info.context_length,
                "vocab_size": self.info.vocab_size,
                "bos_id": self.info.bos_id,
                "eos_ids": list(self.info.eos_ids),
                "notes": list(self.info.notes),
            },
            "tensors": [
                [t.name, list(t.shape), t.dtype.value, t.kind.value] for t in self.tensors.values()
            ],
            "nodes": [
                [n.op, n.name, list(n.inputs), list(n.outputs), dict(n.attributes)]
                for n in self.nodes
            ],
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_json(cls, data: Any) -> Graph:
        """Rebuild a graph from `to_json`'s form.

        Raises
        ------
        GraphError
            When ``data`` is not such a form, or the graph it describes is inconsistent.
        """
        try:
            info = dict(data["info"])
            info["eos_ids"] = tuple(int(i) for i in info["eos_ids"])
            info["notes"] = tuple(str(n) for n in info["notes"])
            tensors = {
                name: Tensor(name, tuple(int(s) for s in shape), DType(dtype), Kind(kind))
                for name, shape, dtype, kind in data["tensors"]
            }
            nodes = tuple(
                Node(op, name, tuple(inputs), tuple(outputs), dict(attributes))
                for op, name, inputs, outputs, attributes in data["nodes"]
            )
            return cls(
                ModelInfo(**info), tensors, nodes, tuple(data["inputs"]), tuple(data["outputs"])
            )
        except GraphError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise GraphError(f"[graph] not a graph in JSON form: {error!r}") from error


def _check(graph: Graph) -> None:
    from bitnet_edge.ops import OPS  # ops describes nodes of this module

    defined = {name for name, tensor in graph.tensors.items() if tensor.kind is not Kind.ACTIVATION}
    names: set[str] = set()
    for name, tensor in graph.tensors.items():
        if name != tensor.name or not name:
            raise GraphError(f"[graph] tensor {tensor.name!r} is filed under {name!r}")
        if any(size < CONTEXT or size == 0 for size in tensor.shape):
            raise ShapeMismatch(f"[graph] tensor {name!r} has an impossible shape {tensor.shape}")
    for node in graph.nodes:
        if node.op not in OPS:
            raise GraphError(f"[graph] node {node.name!r} has unknown op {node.op!r}")
        if node.name in names:
            raise GraphError(f"[graph] two nodes are named {node.name!r}")
        names.add(node.name)
        for name in (*node.inputs, *node.outputs):
            if name and name not in graph.tensors:
                raise GraphError(f"[{node.op}] unknown tensor {name!r} (node {node.name!r})")
        for name in node.inputs:
            if name and name not in defined:
                raise GraphError(
                    f"[{node.op}] {name!r} is used before it is defined (node {node.name!r})"
                )
        OPS[node.op].check(node, graph.tensors)
        for name in node.outputs:
            if name in defined:
                raise GraphError(f"[{node.op}] {name!r} is defined twice (node {node.name!r})")
            defined.add(name)
    for name in (*graph.inputs, *graph.outputs):
        if name not in defined:
            raise GraphError(f"[graph] port {name!r} is not defined by any node")
