# SPDX-License-Identifier: MIT
"""The op table is closed: every op has every part, and the engine equals the reference on it."""

from __future__ import annotations

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.head_packing import packed_heads
from bitnet_edge.head_screen import screened_heads
from bitnet_edge.lowering import _Lowering, lower
from bitnet_edge.ops import OPS
from bitnet_edge.reference import REFERENCE, ReferenceModel
from tests.conftest import ROOT
from tests.graphs import GraphBuilder, decoder, mlp


def test_every_op_has_a_reference_and_a_lowering():
    lowered = {n.removeprefix("_lower_") for n in vars(_Lowering) if n.startswith("_lower_")}
    assert set(REFERENCE) == set(OPS) == lowered
    for op in OPS.values():
        assert op.__doc__, op.name


def test_every_instruction_is_verified_and_executed():
    ops = (ROOT / "cython_kernels/engine/program_ops.c").read_text()
    run = (ROOT / "cython_kernels/engine/program_run.c").read_text()
    for name in _engine.op_table():
        assert f"case BE_OP_{name}:" in ops, name
        assert f"case BE_OP_{name}:" in run, name


def test_every_instruction_is_reached_by_some_graph():
    b = GraphBuilder()
    x = b.input("x", 32)
    b.node("rms_norm", "n", (x, b.constant("g", (32,))), 32, eps=1e-5)
    sources = [decoder(), b.source(["x"], ["n.out"])]
    tied = decoder(tied=True).graph
    packed = lower(tied, packed_heads(tied, "int8")).instructions
    plain = decoder(bias=False).graph
    screened = lower(plain, screens=screened_heads(plain, "screened-int4")).instructions
    reached = {i.op for s in sources for i in lower(s.graph).instructions}
    reached |= {i.op for i in (*packed, *screened)}
    assert reached == set(_engine.op_table())


def run_rows(source, path, inputs, *, threads=1) -> np.ndarray:
    """Export, load and run a rows-in rows-out model."""
    bitnet_edge.export(source, out=path, force=True)
    model = bitnet_edge.load(path, threads=threads)
    rows = len(inputs)
    out = np.empty((rows, model.session.program.outputs[0][1]), np.float32)
    model.session.run((inputs,), (out,), rows)
    return out


@pytest.mark.parametrize("widths", [(1, 1), (20, 48, 33), (16, 16), (129, 257, 64), (700, 5)])
@pytest.mark.parametrize("rows", [1, 2, 9, 70])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_stacks_equal_the_reference(widths, rows, bias, tmp_path):
    source = mlp(7, widths, bias=bias)
    x = np.random.default_rng(rows).normal(size=(rows, widths[0])).astype(np.float32)
    expected = ReferenceModel(source).run({"x": x})[source.graph.outputs[0]]
    got = run_rows(source, tmp_path / "m.bte", x)
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("isa", list(_engine.cpu_isas()))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu2", "bias": False},
        {"rope": False, "kv_heads": 1},
        {"kv_heads": 4, "head_dim": 34, "hidden": 100, "ffn": 300},
        {"head_dim": 2, "hidden": 1, "ffn": 1, "vocab": 3},
        {"heads": 9, "kv_heads": 3, "head_dim": 100},
    ],
)
def test_decoders_equal_the_reference(options, isa, tmp_path):
    source = decoder(3, **options)
    vocab = source.graph.info.vocab_size
    ids = np.random.default_rng(5).integers(0, vocab, 90)
    expected = ReferenceModel(source).logits(ids)
    path = tmp_path / "m.bte"
    bitnet_edge.export(source, out=path, prefill_chunk=32)
    _engine.set_cpu(isa)
    try:
        for threads in (1, 2):
            got = np.asarray(bitnet_edge.load(path, threads=threads).logits(ids))
            assert got.tobytes() == expected.tobytes()
    finally:
        _engine.set_cpu(None)


@pytest.mark.parametrize("table", ["f32", "f16", "bf16"])
def test_embedding_tables_of_every_dtype(table, tmp_path):
    from bitnet_edge.dtypes import DType

    source = decoder(11, table=DType(table), layers=1)
    ids = [0, 96, 5, 5, 7]
    bitnet_edge.export(source, out=tmp_path / "m.bte")
    got = np.asarray(bitnet_edge.load(tmp_path / "m.bte").logits(ids))
    assert got.tobytes() == ReferenceModel(source).logits(ids).tobytes()


def test_hostile_floats_equal_the_reference(tmp_path):
    source = mlp(1, (24, 40, 8))
    x = np.random.default_rng(0).normal(size=(6, 24)).astype(np.float32)
    x[0, 3], x[1, 5], x[2, 7] = np.nan, np.inf, -np.inf
    x[3] = 0
    x[4] *= 1e-38
    x[5] *= 1e38
    expected = ReferenceModel(source).run({"x": x})[source.graph.outputs[0]]
    got = run_rows(source, tmp_path / "m.bte", x)
    np.testing.assert_array_equal(got, expected)  # NaN equals NaN
