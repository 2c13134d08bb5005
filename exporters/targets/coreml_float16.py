# SPDX-License-Identifier: MIT
"""Lowerings for float16, whose largest number is 65504: rows are divided by their extremes first.

A BitLinear's product of integers, a norm's sum of squares and above all a gate squared times ``up``
would overflow. A gated activation therefore stays divided by the extremes of its factors (the
*divisors*, one a row each) until the op that reads it: a norm does not see them, a BitLinear
multiplies them in at its end, any other op at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bitnet_edge.exporters import lowering
from bitnet_edge.exporters.lowering import UNIVERSAL, Handle, scaled_product
from bitnet_edge.exporters.targets.coreml_emitter import UNROUNDED

if TYPE_CHECKING:
    from bitnet_edge.exporters.targets.coreml_emitter import CoreMLEmitter
    from bitnet_edge.graph import Node

__all__ = ["FLOAT16"]

# Least divisor of a row: the smallest float16 that no compute unit flushes to zero, rounded up.
TINY = 6.2e-5
LARGEST_ROOT = 200.0  # its square is no overflow; beyond it an epsilon alone decides


def extreme(e: CoreMLEmitter, x: Handle) -> Handle:
    """Return each row's largest magnitude, at least `TINY`."""
    return e.op("maximum", e.op("reduce_max", e.op("abs", x)), TINY)


def whole(e: CoreMLEmitter, x: Handle) -> Handle:
    """Return a value without divisors."""
    for divisor in e.divisors.get(x, ()):
        x = e.op("mul", x, divisor)
    return x


def unit_rows(e: CoreMLEmitter, x: Handle) -> tuple[Handle, Handle]:
    """Return rows between -1 and 1, and what they were divided by.

    Rounded to integers of -127 .. 127, they come as 128ths.
    """
    if ("unit", x) not in e.memo:
        magnitude = extreme(e, x)
        unit = e.op("div", x, magnitude)
        if e.form != UNROUNDED:
            unit = e.op("mul", e.op("round", e.op("mul", unit, 127.0)), 1 / 128)
        e.memo["unit", x] = (unit, magnitude)
    pair: tuple[Handle, Handle] = e.memo["unit", x]
    return pair


def rms_norm(e: CoreMLEmitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.RmsNorm`: of rows divided by their extreme, and its epsilon, too."""
    x = operands["x"]
    magnitude = extreme(e, x)
    unit = e.op("div", x, magnitude)
    epsilon = e.op("div", float(node.attributes["eps"]) ** 0.5, magnitude)
    for divisor in e.divisors.get(x, ()):
        epsilon = e.op("div", epsilon, divisor)
    bounded = e.op("minimum", epsilon, LARGEST_ROOT)
    mean = e.op("reduce_mean", e.op("mul", unit, unit))
    root = e.op("sqrt", e.op("add", mean, e.op("mul", bounded, bounded)))
    root = e.op("maximum", root, epsilon)
    return e.op("mul", e.op("div", unit, root), e.vector(operands["weight"]))


def ternary_linear(e: CoreMLEmitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.TernaryLinear`."""
    x = operands["x"]
    unit, magnitude = unit_rows(e, x)
    y = scaled_product(e, unit, operands, scale_bytes=2)
    step = 1.0 if e.form == UNROUNDED else 128 / 127
    y = e.op("mul", y, e.op("mul", magnitude, step * float(node.attributes["scale"])))
    for divisor in e.divisors.get(x, ()):
        y = e.op("mul", y, divisor)
    return e.op("add", y, e.vector(operands["bias"])) if "bias" in operands else y


def gated_activation(e: CoreMLEmitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.GatedActivation`; the result has divisors."""
    gate, up = whole(e, operands["gate"]), whole(e, operands["up"])
    squared = node.attributes["activation"] == "relu2"
    g = e.op("maximum", gate, 0.0) if squared else e.op("mul", gate, e.op("sigmoid", gate))
    of_gate, of_up = extreme(e, g), extreme(e, up)
    g = e.op("div", g, of_gate)
    y = e.op("mul", e.op("mul", g, g) if squared else g, e.op("div", up, of_up))
    e.divisors[y] = (of_gate, of_gate, of_up) if squared else (of_gate, of_up)
    return y


def attention(e: CoreMLEmitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.Attention`: queries are scaled before their product, not after it."""
    q, k, v = (whole(e, operands[name]) for name in "qkv")
    scale = float(node.attributes["scale"])
    group = int(node.attributes["heads"]) // int(node.attributes["kv_heads"])
    e.memo["mask", group] = e.memo.get(("mask", group)) or e.bounded_mask(group)
    unscaled = replace(node, attributes={**node.attributes, "scale": 1.0})
    scaled = {**operands, "q": e.op("mul", q, scale), "k": k, "v": v}
    return lowering.attention(e, unscaled, scaled)


def add(e: CoreMLEmitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.Add`."""
    return e.op("add", whole(e, operands["a"]), whole(e, operands["b"]))


def linear(e: CoreMLEmitter, node: Node, operands: Mapping[str, Any]) -> Handle:
    """See `bitnet_edge.ops.Linear`."""
    return lowering.linear(e, node, {**operands, "x": whole(e, operands["x"])})


# Lowerings over this target's emitter.
FLOAT16: Mapping[str, Any] = dict(UNIVERSAL) | {
    "add": add,
    "attention": attention,
    "gated_activation": gated_activation,
    "linear": linear,
    "rms_norm": rms_norm,
    "ternary_linear": ternary_linear,
}
