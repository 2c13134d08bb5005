# SPDX-License-Identifier: MIT
"""The closed table of ops: attributes, operands and shape rule of each.

The same names key the numpy reference (`bitnet_edge.reference`), the lowering to instructions
(`bitnet_edge.lowering`) and the exporters' lowerings; a test fails when any of them lacks one.
An op is a class whose docstring gives its formula and shapes, whose fields declare operands and
attributes, and whose `infer` returns the output shapes. Activations are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ShapeMismatch
from bitnet_edge.graph import CONTEXT, N_TOKENS, Node, Tensor, Value

__all__ = ["OPS", "Op"]

Shape = tuple[int, ...]


class Op:
    """Base of the op classes.

    Attributes
    ----------
    inputs : Mapping[str, tuple of DType]
        Operand names in order and the dtypes each may have; a trailing ``?`` marks an optional one.
    attributes : Mapping[str, type]
    """

    name: ClassVar[str]
    inputs: ClassVar[Mapping[str, tuple[DType, ...]]]
    attributes: ClassVar[Mapping[str, type]] = {}

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], attributes: Mapping[str, Value]) -> Shape:
        """Return the output's shape, or raise `ShapeMismatch` (shapes by operand name)."""
        raise NotImplementedError

    @classmethod
    def operands(cls, node: Node) -> dict[str, str]:
        """Return a node's tensors by operand name (without the mark); absent ones are left out.

        Optional operands at the end of a node's inputs may be missing altogether.
        """
        names = (operand.rstrip("?") for operand in cls.inputs)
        return {operand: name for operand, name in zip(names, node.inputs, strict=False) if name}

    @classmethod
    def check(cls, node: Node, tensors: Mapping[str, Tensor]) -> None:
        """Check a node against the op.

        Raises
        ------
        ShapeMismatch
            Naming op, node, expectation and finding.
        """
        operands = cls.operands(node)
        if len(node.inputs) > len(cls.inputs) or len(node.outputs) != 1:
            raise ShapeMismatch(
                f"[{cls.name}] expected {len(cls.inputs)} inputs and 1 output, got "
                f"{len(node.inputs)} and {len(node.outputs)} (node {node.name!r})"
            )
        if set(node.attributes) != set(cls.attributes):
            raise ShapeMismatch(
                f"[{cls.name}] expected attributes {sorted(cls.attributes)}, got "
                f"{sorted(node.attributes)} (node {node.name!r})"
            )
        for key, kind in cls.attributes.items():
            if type(node.attributes[key]) is not kind:
                raise ShapeMismatch(
                    f"[{cls.name}] attribute {key} must be {kind.__name__}, got "
                    f"{node.attributes[key]!r} (node {node.name!r})"
                )
        shapes: dict[str, Shape] = {}
        for operand, dtypes in cls.inputs.items():
            name = operands.get(operand.rstrip("?"))
            if name is None:
                if not operand.endswith("?"):
                    raise ShapeMismatch(
                        f"[{cls.name}] lacks operand {operand} (node {node.name!r})"
                    )
                continue
            tensor = tensors[name]
            if tensor.dtype not in dtypes:
                raise ShapeMismatch(
                    f"[{cls.name}] {operand} must be {' or '.join(d.value for d in dtypes)}, got "
                    f"{tensor.dtype.value} (tensor {name!r}, node {node.name!r})"
                )
            shapes[operand.rstrip("?")] = tensor.shape
        try:
            shape = cls.infer(shapes, node.attributes)
        except ShapeMismatch as error:
            raise ShapeMismatch(f"{error} (node {node.name!r})") from None
        output = tensors[node.outputs[0]]
        if output.shape != shape or output.dtype is not DType.F32:
            raise ShapeMismatch(
                f"[{cls.name}] gives f32 {shape}, the graph says {output.dtype.value} "
                f"{output.shape} (node {node.name!r})"
            )


OPS: dict[str, type[Op]] = {}

_F32 = (DType.F32,)
_DENSE = (DType.F32, DType.F16, DType.BF16)


def _op(cls: type[Op]) -> type[Op]:
    OPS[cls.name] = cls
    return cls


def _expect(op: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise ShapeMismatch(f"[{op}] expected {what} {expected}, got {found}")


def _rank(op: str, shapes: Mapping[str, Shape], ranks: Mapping[str, int]) -> None:
    for operand, rank in ranks.items():
        if operand in shapes:
            _expect(op, f"rank of {operand}", rank, len(shapes[operand]))


def _linear_shape(op: str, shapes: Mapping[str, Shape]) -> Shape:
    _rank(op, shapes, {"x": 2, "weight": 2, "bias": 1})
    rows, k = shapes["weight"]
    _expect(op, "columns of x", k, shapes["x"][1])
    if "bias" in shapes:
        _expect(op, "length of bias", rows, shapes["bias"][0])
    return (shapes["x"][0], rows)


@_op
class Embedding(Op):
    """``y[t] = table[ids[t]] * multiplier``; ids (n,), table (vocab, width), y (n, width).

    A table tied to a quantised output layer (`Linear`) is read from its codes: ``code * scale``.
    """

    name = "embedding"
    inputs = {"ids": (DType.I32,), "table": _DENSE}
    attributes = {"multiplier": float}

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], attributes: Mapping[str, Value]) -> Shape:
        """See `Op.infer`."""
        _rank(cls.name, shapes, {"ids": 1, "table": 2})
        return (shapes["ids"][0], shapes["table"][1])


@_op
class RmsNorm(Op):
    """``y = x / sqrt(mean(x^2) + eps) * weight``; x, y (n, width), weight (width,).

    Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019, section 3.
    """

    name = "rms_norm"
    inputs = {"x": _F32, "weight": _F32}
    attributes = {"eps": float}

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], attributes: Mapping[str, Value]) -> Shape:
        """See `Op.infer`."""
        _rank(cls.name, shapes, {"x": 2, "weight": 1})
        _expect(cls.name, "length of weight", shapes["x"][1], shapes["weight"][0])
        return shapes["x"]


@_op
class TernaryLinear(Op):
    """BitLinear: per-token int8 absmax quantisation, ternary product, scale, bias.

    ``s = 127 / max(absmax(x), 1e-5); q = clamp(round_half_even(x * s), -128, 127)``,
    ``y = (q @ weight.T) / s * scale + bias``; x (n, k), weight (rows, k), y (n, rows).
    Ma et al., "The Era of 1-bit LLMs", 2024; transformers ``integrations/bitnet.py``.

    With scales (groups, rows), one for every row and k / groups columns, the product is the
    float32 sum, in the order of the groups, of ``(q[group] @ weight[:, group].T) * scales[group]``.
    More groups than one are whole multiples of 16 columns.
    """

    name = "ternary_linear"
    inputs = {
        "x": _F32,
        "weight": (DType.TERNARY,),
        "bias?": _F32,
        "scales?": (DType.F32, DType.F16),
    }
    attributes = {"scale": float}
    GROUP_MULTIPLE: ClassVar[int] = 16

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], attributes: Mapping[str, Value]) -> Shape:
        """See `Op.infer`."""
        if "scales" in shapes:
            _rank(cls.name, shapes, {"scales": 2, "weight": 2})
            groups, rows = shapes["scales"]
            _expect(cls.name, "columns of scales", shapes["weight"][0], rows)
            if groups > 1 and shapes["weight"][1] % (groups * cls.GROUP_MULTIPLE):
                raise ShapeMismatch(
                    f"[{cls.name}] expected groups of a multiple of {cls.GROUP_MULTIPLE} columns, "
                    f"got {groups} groups of {shapes['weight'][1]} columns"
                )
        return _linear_shape(cls.name, shapes)


@_op
class Linear(Op):
    """``y = x @ weight.T + bias`` in float32; x (n, k), weight (rows, k), y (n, rows).

    Where a plan stores the weight of an output layer quantised (`bitnet_edge.head_packing`), x is
    rounded to int16 first: ``q = clamp(round_half_even(x * s), -c, c)``, ``s = c / max(absmax(x),
    1e-5)``, ``c = min(32767, (2^31 - 1) // (128 * k))``. int8 rows: ``y = (q @ codes.T) / s *
    scale + bias`` with an exact int32 sum; int4 groups: the float32 sum, in order, of each group's
    ``(q @ codes.T) * scale``, over ``s``, ``+ bias``.
    """

    name = "linear"
    inputs = {"x": _F32, "weight": _DENSE, "bias?": _F32}

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], attributes: Mapping[str, Value]) -> Shape:
        """See `Op.infer`."""
        return _linear_shape(cls.name, shapes)


@_op
class GatedActivation(Op):
    """``y = activation(gate) * up``, all (n, width); activation ``relu2`` or ``silu``.

    ``relu2(g) = max(g, 0)^2`` (So et al., "Primer", 2021); ``silu(g) = g / (1 + exp(-g))``.
    """

    name = "gated_activation"
    inputs = {"gate": _F32, "up": _F32}
    attributes = {"activation": str}
    ACTIVATIONS: ClassVar[Sequence[str]] = ("relu2", "silu")

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], attributes: Mapping[str, Value]) -> Shape:
        """See `Op.infer`."""
        if attributes["activation"] not in cls.ACTIVATIONS:
            raise ShapeMismatch(
                f"[{cls.name}] expected activation {' or '.join(cls.ACTIVATIONS)}, got "
                f"{attributes['activation']!r}"
            )
        _rank(cls.name, shapes, {"gate": 2})
        _expect(cls.name, "shape of up", shapes["gate"], shapes["up"])
        return shapes["gate"]


@_op
class Add(Op):
    """``y = a + b``, all (n, width)."""

    name = "add"
    inputs = {"a": _F32, "b": _F32}

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], attributes: Mapping[str, Value]) -> Shape:
        """See `Op.infer`."""
        _rank(cls.name, shapes, {"a": 2})
        _expect(cls.name, "shape of b", shapes["a"], shapes["b"])
        return shapes["a"]


@_op
class Attention(Op):
    """Rotary embedding, append to the KV cache, causal grouped-query attention.

    q (n, heads * head_dim); k, v (n, kv_heads * head_dim); inv_freq (head_dim / 2,), absent for
    no rotation; caches (kv_heads, context, head_dim), written at ``position ...``.
    Angles ``(position + t) * inv_freq``, NEOX halves, cos and sin times ``rope_scale``; softmax of
    ``q . k * scale`` over positions ``0 .. position + t``. y (n, heads * head_dim).
    A plan may leave a token at position p >= sinks + window only the first ``sinks`` positions,
    which it asks as position sinks + window - 1 would, and the latest ``window``.
    Su et al., "RoFormer", 2021; Ainslie et al., "GQA", 2023.
    """

    name = "attention"
    inputs = {
        "q": _F32,
        "k": _F32,
        "v": _F32,
        "inv_freq?": _F32,
        "k_cache": _F32,
        "v_cache": _F32,
    }
    attributes = {
        "heads": int,
        "kv_heads": int,
        "head_dim": int,
        "scale": float,
        "rope_scale": float,
    }

    @classmethod
    def infer(cls, shapes: Mapping[str, Shape], attributes: Mapping[str, Value]) -> Shape:
        """See `Op.infer`."""
        heads, kv_heads, head_dim = (
            int(attributes[key]) for key in ("heads", "kv_heads", "head_dim")
        )
        if min(heads, kv_heads, head_dim) < 1 or heads % kv_heads or head_dim % 2:
            raise ShapeMismatch(
                f"[{cls.name}] expected heads a multiple of kv_heads and an even head_dim, got "
                f"{heads}, {kv_heads}, {head_dim}"
            )
        _rank(cls.name, shapes, {"q": 2, "inv_freq": 1})
        n = shapes["q"][0]
        _expect(cls.name, "shape of q", (n, heads * head_dim), shapes["q"])
        for operand in ("k", "v"):
            _expect(cls.name, f"shape of {operand}", (n, kv_heads * head_dim), shapes[operand])
        for operand in ("k_cache", "v_cache"):
            shape = (kv_heads, CONTEXT, head_dim)
            _expect(cls.name, f"shape of {operand}", shape, shapes[operand])
        if "inv_freq" in shapes:
            _expect(cls.name, "length of inv_freq", (head_dim // 2,), shapes["inv_freq"])
        _expect(cls.name, "rows of q", N_TOKENS, n)
        return shapes["q"]
