# SPDX-License-Identifier: MIT
"""Graph -> instructions over named buffers: fusion and order, before any address exists.

Three things happen here and nowhere else:

* an ``rms_norm`` read only by ternary linears becomes ``rms_norm_quantize``; any other float
  tensor is quantised once, however many linears read it;
* results take the place of an operand that dies (residual sums, gated activations, rotations);
* everything after the last append to the KV cache is *tail*: it works on the rows whose outputs
  are wanted only, so a prompt's prefill skips the last layer's feed-forward and the head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bitnet_edge.dtypes import DType
from bitnet_edge.errors import UnsupportedOp
from bitnet_edge.graph import Graph, Kind, Node
from bitnet_edge.ops import GatedActivation, TernaryLinear

if TYPE_CHECKING:
    from bitnet_edge.head_screen import Screen

__all__ = ["Instruction", "Lowered", "Operand", "Region", "lower"]

# Names of be_region in bitnet_edge.h, in its order.
Region = ("none", "weights", "arena", "state", "input", "output")

_BLOCK = 16  # quantised rows are padded to whole P16 blocks
_WIDE_BLOCK = 64  # int16 rows, to whole int4 blocks
_BITS = {DType.I8_ROWS: 8, DType.I4_GROUPS: 4}


@dataclass(frozen=True)
class Operand:
    """A named buffer in one of the engine's regions."""

    region: str
    name: str


@dataclass(frozen=True)
class Instruction:
    """One record of a program, before addresses.

    Attributes
    ----------
    op : str
        A name of ``op_table.def``.
    node : str
        The graph node it came from.
    dims, scalars, operands : Mapping
        By the names ``op_table.def`` gives them; absent optional operands are left out.
    tail : bool
        Works on the output rows only.
    """

    op: str
    node: str
    dims: Mapping[str, int | str]
    scalars: Mapping[str, float]
    operands: Mapping[str, Operand]
    tail: bool = False


@dataclass(frozen=True)
class Lowered:
    """The instructions of a graph and the arena buffers they use.

    Attributes
    ----------
    instructions : tuple of Instruction
    row_bytes : Mapping[str, int]
        Arena buffer -> bytes per token.
    """

    instructions: tuple[Instruction, ...]
    row_bytes: Mapping[str, int]


def lower(
    graph: Graph,
    packed: Mapping[str, DType] | None = None,
    screens: Mapping[str, Screen] | None = None,
    sinks_seen_from: int | None = None,
) -> Lowered:
    """Lower a graph to instructions.

    Parameters
    ----------
    graph : Graph
    packed : Mapping[str, DType], optional
        Float matrices that are stored quantised (`bitnet_edge.head_packing`), and how.
    screens : Mapping[str, Screen], optional
        Float matrices that are screened (`bitnet_edge.head_screen`), and by what.
    sinks_seen_from : int, optional
        With attention sinks: the position from which later tokens ask them (`Attention`).

    Raises
    ------
    UnsupportedOp
        When an op, or the way it is used, has no lowering; the node is named.
    """
    return _Lowering(graph, packed or {}, screens or {}, sinks_seen_from).run()


class _Lowering:
    def __init__(
        self,
        graph: Graph,
        packed: Mapping[str, DType],
        screens: Mapping[str, Screen],
        sinks_seen_from: int | None,
    ) -> None:
        self.graph = graph
        self.sinks_seen_from = sinks_seen_from
        self.screens = screens
        self.bits = {name: _BITS[dtype] for name, dtype in packed.items()}
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                if name:
                    self.readers.setdefault(name, []).append(node)
        self.uses_left = Counter({name: len(nodes) for name, nodes in self.readers.items()})
        self.instructions: list[Instruction] = []
        self.row_bytes: dict[str, int] = {}
        self.home: dict[str, str] = {}  # tensor -> arena buffer that holds it
        self.quantised: set[tuple[str, int]] = set()
        self.quantised_wide: set[str] = set()
        self.angles: dict[tuple[str, float, int], Operand] = {}

    def run(self) -> Lowered:
        rules: dict[str, Callable[[Node], None]] = {
            name.removeprefix("_lower_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_lower_")
        }
        for node in self.graph.nodes:
            rule = rules.get(node.op)
            if rule is None:
                raise UnsupportedOp(f"[{node.op}] the engine has no lowering (node {node.name!r})")
            rule(node)
            for name in node.inputs:
                self.uses_left[name] -= 1
        return Lowered(tuple(_mark_tail(self.instructions)), self.row_bytes)

    # -- operands ---------------------------------------------------------------------------

    def width(self, tensor: str) -> int:
        return self.graph.tensors[tensor].shape[-1]

    def read(self, tensor: str) -> Operand:
        """Return the operand that holds a graph tensor."""
        kind = self.graph.tensors[tensor].kind
        if kind is Kind.CONSTANT:
            return Operand("weights", tensor)
        if kind is Kind.STATE:
            return Operand("state", tensor)
        if kind is Kind.INPUT:
            return Operand("input", tensor)
        if tensor not in self.home:
            raise UnsupportedOp(f"[output] {tensor!r} is an output and also read by another node")
        return Operand("arena", self.home[tensor])

    def write(self, tensor: str, *in_place_of: str) -> Operand:
        """Return a home for a result: an output port, a dying operand's buffer, or a new one."""
        if tensor in self.graph.outputs:
            return Operand("output", tensor)
        for candidate in in_place_of:
            if self.dies(candidate) and self.width(candidate) == self.width(tensor):
                self.home[tensor] = self.home[candidate]
                return Operand("arena", self.home[tensor])
        self.home[tensor] = tensor
        return self.scratch(tensor, self.width(tensor) * 4)

    def dies(self, tensor: str) -> bool:
        """Whether the node being lowered is the last reader of an activation."""
        return (
            self.graph.tensors[tensor].kind is Kind.ACTIVATION
            and self.uses_left[tensor] == 1
            and tensor in self.home
        )

    def scratch(self, name: str, row_bytes: int) -> Operand:
        self.row_bytes[name] = row_bytes
        return Operand("arena", name)

    def emit(
        self,
        op: str,
        node: Node,
        operands: Mapping[str, Operand],
        dims: Mapping[str, int | str],
        scalars: Mapping[str, float] | None = None,
    ) -> None:
        self.instructions.append(Instruction(op, node.name, dims, scalars or {}, operands))

    def quantised_operands(self, tensor: str, groups: int) -> dict[str, Operand]:
        """Return names of a tensor's int8 rows, scales and sums (see `op_table.def`)."""
        name = tensor if groups == 1 else f"{tensor}.groups{groups}"
        return {
            "q": self.scratch(f"{name}.q", -(-self.width(tensor) // _BLOCK) * _BLOCK),
            "s": self.scratch(f"{name}.s", 4),
            "q_sum": self.scratch(f"{name}.q_sum", 4 * groups),
        }

    def groups(self, node: Node) -> int:
        """Return how many groups of columns with scales of their own a ternary linear has."""
        scales = TernaryLinear.operands(node).get("scales")
        return self.graph.tensors[scales].shape[0] if scales else 1

    def attribute(self, node: Node, key: str) -> float:
        value = node.attributes[key]
        assert isinstance(value, float)  # the op table has checked it
        return value

    # -- one rule per op --------------------------------------------------------------------

    def _lower_embedding(self, node: Node) -> None:
        ids, table = node.inputs
        tensor = self.graph.tensors[table]
        dims: dict[str, int | str] = {"width": tensor.shape[1], "vocab": tensor.shape[0]}
        if table in self.bits:
            dims["bits"] = self.bits[table]
        else:
            dims["dtype"] = tensor.dtype.engine_code
        self.emit(
            "head_embed" if table in self.bits else "embed",
            node,
            {
                "y": self.write(node.outputs[0]),
                "table": self.read(table),
                "ids": self.read(ids),
            },
            dims,
            {"multiplier": self.attribute(node, "multiplier")},
        )

    def _lower_rms_norm(self, node: Node) -> None:
        x, weight = node.inputs
        output = node.outputs[0]
        scalars = {"eps": self.attribute(node, "eps")}
        readers = self.readers.get(output, [])
        groups = {self.groups(r) if r.op == "ternary_linear" else 0 for r in readers}
        if output not in self.graph.outputs and len(groups) == 1 and 0 not in groups:
            (count,) = groups
            operands = self.quantised_operands(output, count)
            operands |= {"x": self.read(x), "gain": self.read(weight)}
            dims = {"width": self.width(x), "groups": count}
            self.emit("rms_norm_quantize", node, operands, dims, scalars)
            self.quantised.add((output, count))
            return
        operands = {"x": self.read(x), "gain": self.read(weight)}
        dims = {"width": self.width(x)}
        self.emit("rms_norm", node, {"y": self.write(output, x)} | operands, dims, scalars)

    def _lower_ternary_linear(self, node: Node) -> None:
        names = TernaryLinear.operands(node)
        x, weight, groups = names["x"], names["weight"], self.groups(node)
        rows, k = self.graph.tensors[weight].shape
        quantised = self.quantised_operands(x, groups)
        if (x, groups) not in self.quantised:
            dims = {"width": k, "groups": groups}
            self.emit("quantize", node, quantised | {"x": self.read(x)}, dims)
            self.quantised.add((x, groups))
        operands = {"y": self.write(node.outputs[0]), "w": self.read(weight)} | quantised
        operands |= {name: self.read(names[name]) for name in ("bias", "scales") if name in names}
        dtype = self.graph.tensors[names["scales"]].dtype if "scales" in names else DType.F32
        self.emit(
            "ternary_linear",
            node,
            operands,
            {"rows": rows, "k": k, "groups": groups, "dtype": dtype.engine_code},
            {"w_scale": self.attribute(node, "scale")},
        )

    def _lower_linear(self, node: Node) -> None:
        x, weight, bias = node.inputs
        tensor = self.graph.tensors[weight]
        if weight in self.bits:
            self.packed_linear(node)
            return
        if weight in self.screens:
            self.screened_linear(node)
            return
        operands = {
            "x": self.read(x),
            "y": self.write(node.outputs[0]),
            "w": self.read(weight),
        }
        if bias:
            operands["bias"] = self.read(bias)
        dims = {
            "rows": tensor.shape[0],
            "k": tensor.shape[1],
            "dtype": tensor.dtype.engine_code,
        }
        self.emit("dense_linear", node, operands, dims)

    def packed_linear(self, node: Node) -> None:
        """Emit a linear whose weight is stored quantised."""
        _, weight, bias = node.inputs
        rows, k = self.graph.tensors[weight].shape
        wide = self.wide_operands(node)
        operands = {"y": self.write(node.outputs[0]), "w": self.read(weight)} | wide
        if bias:
            operands["bias"] = self.read(bias)
        self.emit("head_linear", node, operands, {"rows": rows, "k": k, "bits": self.bits[weight]})

    def screened_linear(self, node: Node) -> None:
        """Emit estimates, limits and exact rows of a screened output layer."""
        x, weight, _ = node.inputs
        tensor, screen = self.graph.tensors[weight], self.screens[weight]
        wide = self.wide_operands(node)
        y, table, rows = self.write(node.outputs[0]), self.read(weight), self.read(x)
        limits = self.scratch(f"{node.outputs[0]}.limits", 16)
        shape: dict[str, int | str] = {"rows": tensor.shape[0], "k": tensor.shape[1]}
        bits = {"bits": _BITS[screen.dtype]}
        dtype = {"dtype": tensor.dtype.engine_code}
        codes, bounds = Operand("weights", screen.codes), Operand("weights", screen.bounds)
        self.emit("screen_linear", node, {"y": y, "w": codes} | wide, shape | bits)
        operands = {"limits": limits, "y": y, "x": rows, "table": table}
        operands |= {name: wide[name] for name in ("q", "s")}
        self.emit("screen_limits", node, operands, shape | bits | dtype)
        operands = {"y": y, "limits": limits, "x": rows, "table": table, "bounds": bounds}
        self.emit("screened_linear", node, operands, shape | dtype)

    def wide_operands(self, node: Node) -> dict[str, Operand]:
        """Return names of a tensor's int16 rows, scales and sums, made once."""
        x, weight, _ = node.inputs
        k = self.graph.tensors[weight].shape[1]
        padded = -(-k // _WIDE_BLOCK) * _WIDE_BLOCK
        wide = {
            "q": self.scratch(f"{x}.wide.q", padded * 2),
            "s": self.scratch(f"{x}.wide.s", 4),
            "q_sum": self.scratch(f"{x}.wide.q_sum", padded // 8),
        }
        if x not in self.quantised_wide:
            self.emit("quantize_wide", node, wide | {"x": self.read(x)}, {"width": k})
            self.quantised_wide.add(x)
        return wide

    def _lower_gated_activation(self, node: Node) -> None:
        gate, up = node.inputs
        operands = {"gate": self.read(gate), "up": self.read(up)}
        operands["y"] = self.write(node.outputs[0], gate, up)
        kind = list(GatedActivation.ACTIVATIONS).index(str(node.attributes["activation"]))
        self.emit("gated_activation", node, operands, {"width": self.width(gate), "kind": kind})

    def _lower_add(self, node: Node) -> None:
        a, b = node.inputs
        operands = {"a": self.read(a), "b": self.read(b)}
        operands["y"] = self.write(node.outputs[0], a, b)
        self.emit("add", node, operands, {"width": self.width(a)})

    def _lower_attention(self, node: Node) -> None:
        q, k, v, inv_freq, k_cache, v_cache = node.inputs
        heads, kv_heads, head_dim = (
            int(node.attributes[key]) for key in ("heads", "kv_heads", "head_dim")
        )
        q_operand = self.read(q)
        appended = {"cache": self.read(k_cache), "x": self.read(k)}
        sinks: dict[str, Operand] = {}
        if inv_freq:
            angles = self._angles(node, inv_freq, head_dim // 2)
            appended["angles"] = angles
            if self.sinks_seen_from is not None:
                seen = self._angles(node, inv_freq, head_dim // 2, self.sinks_seen_from + 1)
                sinks["q_sinks"] = self.scratch(f"{q}.sinks", self.width(q) * 4)
                self.emit(
                    "rope",
                    node,
                    {"y": sinks["q_sinks"], "x": q_operand, "angles": seen},
                    {"heads": heads, "head_dim": head_dim},
                )
            rotated = self._rotated(q)
            self.emit(
                "rope",
                node,
                {"y": rotated, "x": q_operand, "angles": angles},
                {"heads": heads, "head_dim": head_dim},
            )
            q_operand = rotated
        dims: dict[str, int | str] = {"kv_heads": kv_heads, "head_dim": head_dim, "dtype": "kv"}
        self.emit("kv_append", node, appended, dims)
        values = {"cache": self.read(v_cache), "x": self.read(v)}
        self.emit("kv_append", node, values, dims)
        self.emit(
            "attention",
            node,
            {
                "y": self.write(node.outputs[0]),
                "q": q_operand,
                "k_cache": self.read(k_cache),
                "v_cache": self.read(v_cache),
                **sinks,
            },
            {"heads": heads} | dims,
            {"scale": self.attribute(node, "scale")},
        )

    def _rotated(self, q: str) -> Operand:
        """Return where q is rotated to: in place when nobody else reads it."""
        if self.dies(q):
            return Operand("arena", self.home[q])
        return self.scratch(f"{q}.rotated", self.width(q) * 4)

    def _angles(self, node: Node, inv_freq: str, half: int, at: int = 0) -> Operand:
        """Return the cos/sin rows of a run, computed once for all layers that share them.

        Of the tokens' positions, or all of position ``at - 1``.
        """
        scale = self.attribute(node, "rope_scale")
        if (inv_freq, scale, at) not in self.angles:
            y = self.scratch(f"{inv_freq}.angles.{len(self.angles)}", half * 8)
            operands = {"y": y, "inv_freq": self.read(inv_freq)}
            self.emit("rope_angles", node, operands, {"half": half, "at": at}, {"scale": scale})
            self.angles[inv_freq, scale, at] = y
        return self.angles[inv_freq, scale, at]


def _mark_tail(instructions: list[Instruction]) -> list[Instruction]:
    appends = [i for i, instruction in enumerate(instructions) if instruction.op == "kv_append"]
    first = appends[-1] + 1 if appends else 0
    return [replace(ins, tail=i >= first) for i, ins in enumerate(instructions)]
