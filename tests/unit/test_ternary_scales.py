# SPDX-License-Identifier: MIT
"""Ternary weights with a scale for each row, or for each group of a row's columns."""

from __future__ import annotations

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.dtypes import DType
from bitnet_edge.planner import make_plan
from bitnet_edge.profiles import load_profile
from bitnet_edge.program import encode_program
from bitnet_edge.reference import ReferenceModel
from tests.graphs import GraphBuilder
from tests.unit.test_program import ARENA, index_of, refused, with_record


@pytest.fixture
def restore_cpu():
    yield
    _engine.set_cpu(None)


def network(k: int, rows: int, groups: int, dtype: DType, *, bias: bool):
    """A norm and two linears of the same input, then one with other groups."""
    b = GraphBuilder(k + rows + groups)
    x = b.norm("norm", b.input("x", k))
    first = b.scaled_ternary("first", x, rows, groups, dtype, bias=bias)
    second = b.scaled_ternary("second", x, rows, groups, dtype)
    y = b.node("add", "sum", (first, second), rows)
    return b.source(["x"], [b.scaled_ternary("third", y, 33, 1), b.ternary("fourth", y, 20)])


@pytest.mark.parametrize("isa", list(_engine.cpu_isas()))
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16])
@pytest.mark.parametrize(
    ("k", "rows", "groups"), [(20, 48, 1), (256, 33, 2), (384, 80, 3), (64, 320, 4), (512, 1, 2)]
)
def test_engine_equals_reference(k, rows, groups, dtype, isa, tmp_path, restore_cpu):
    source = network(k, rows, groups, dtype, bias=rows % 2 == 0)
    path = tmp_path / "m.bte"
    bitnet_edge.export(source, out=path, prefill_chunk=128)
    x = np.random.default_rng(1).normal(size=(67, k)).astype(np.float32)
    x[3] *= 1e30
    x[4] = 0
    expected = ReferenceModel(source).run({"x": x})
    _engine.set_cpu(isa)
    for threads in (1, 3):
        model = bitnet_edge.load(path, threads=threads)
        for rows_of_run in (slice(0, 67), slice(0, 1), slice(2, 4)):
            n = rows_of_run.stop - rows_of_run.start
            got = np.empty((n, 33), np.float32), np.empty((n, 20), np.float32)
            model.session.run((np.ascontiguousarray(x[rows_of_run]),), got, n)
            for name, y in zip(source.graph.outputs, got, strict=True):
                np.testing.assert_array_equal(y, expected[name][rows_of_run])


def test_sums_by_hand():
    """Two groups of 16: each exact integer sum takes its own scale."""
    b = GraphBuilder()
    x = b.input("x", 32)
    y = b.scaled_ternary("linear", x, 2, 2)
    b.weights["linear.weight"] = np.array([[1] * 16 + [-1] * 16, [0] * 16 + [1] * 16], np.int8)
    b.weights["linear.scales"] = np.array([[2, 3], [5, 7]], np.float32)
    rows = np.ones((1, 32), np.float32)
    (got,) = ReferenceModel(b.source(["x"], [y])).run({"x": rows})["linear.out"]
    # 16 activations of 127 over s = 127; attribute scale 0.5
    assert got.tolist() == [0.5 * (16 * 2 - 16 * 5), 0.5 * 16 * 7]


def test_one_quantisation_for_linears_of_the_same_groups():
    plan = bitnet_edge.plan(network(64, 48, 2, DType.F32, bias=True))
    ops = [i.op for i in plan.lowered.instructions]
    first = ["rms_norm_quantize", "ternary_linear", "ternary_linear", "add"]
    assert ops == [*first, "quantize", "ternary_linear", "ternary_linear"]


def test_a_norm_read_with_different_groups_is_kept_in_floats():
    b = GraphBuilder()
    x = b.norm("norm", b.input("x", 64))
    outputs = [b.scaled_ternary(f"linear{groups}", x, 16, groups) for groups in (1, 2, 4)]
    ops = [i.op for i in bitnet_edge.plan(b.source(["x"], outputs)).lowered.instructions]
    assert ops == ["rms_norm"] + ["quantize", "ternary_linear"] * 3


@pytest.mark.parametrize(
    ("op", "fields", "message"),
    [
        ("quantize", {"DIM1": 0}, "groups"),
        ("quantize", {"DIM1": 5}, "groups of whole blocks"),
        ("ternary_linear", {"DIM2": 0}, "groups"),
        ("ternary_linear", {"DIM2": 3}, "groups of whole blocks"),
        ("ternary_linear", {"DIM3": 2}, "ternary_linear: dtype"),
        ("ternary_linear", {"OPERAND6": 0}, "groups without scales"),
        ("ternary_linear", {"OPERAND6": ARENA}, "operand region"),
        ("ternary_linear", {"DIM2": 4}, "operand beyond its region"),
    ],
)
def test_the_verifier_refuses(op, fields, message):
    b = GraphBuilder()
    source = b.source(["x"], [b.scaled_ternary("linear", b.input("x", 64), 32, 2)])
    plan = make_plan(source.graph, load_profile("generic-50mb"))
    section = encode_program(source.graph, plan)
    last = plan.weights[-1]
    broken = with_record(section, index_of(section, op), **fields)
    refused(broken, bytes(last.offset + last.bytes), message)
