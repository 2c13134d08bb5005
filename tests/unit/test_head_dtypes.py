# SPDX-License-Identifier: MIT
"""Heads stored as int8 or int4: exact against the reference, verified, kept through files."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine, container, head_packing, writer
from bitnet_edge.api import import_model
from bitnet_edge.cli import main
from bitnet_edge.container import open_bte, tensor_bytes
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import (
    ArgumentError,
    FormatError,
    InvalidProgram,
    ModelError,
    ShapeMismatch,
    UnsupportedVersion,
)
from bitnet_edge.head_packing import (
    head_limit,
)
from bitnet_edge.planner import make_plan
from bitnet_edge.profiles import load_profile
from bitnet_edge.program import RECORD, encode_program
from bitnet_edge.reference import ReferenceModel
from tests.conftest import checkpoint
from tests.graphs import GraphBuilder, decoder, mlp
from tests.unit.test_program import FIRST, aligned, index_of, with_record

HEADS = ("int8", "int4")


def random_rows(rows: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, k)).astype(np.float32)


# -- engine against reference ---------------------------------------------------------------


@pytest.fixture
def restore_cpu():
    yield
    _engine.set_cpu(None)


@pytest.mark.parametrize("isa", list(_engine.cpu_isas()))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "vocab": 300, "hidden": 130},
        {"hidden": 1, "vocab": 3, "head_dim": 2},
        {"hidden": 64, "vocab": 16, "layers": 1},
    ],
)
def test_decoders_equal_the_reference(options, head, tied, isa, tmp_path, restore_cpu):
    source = decoder(3, tied=tied, **options)
    ids = np.random.default_rng(5).integers(0, source.graph.info.vocab_size, 70)
    expected = ReferenceModel(source, head_dtype=head).logits(ids)
    path = tmp_path / "m.bte"
    bitnet_edge.export(source, out=path, prefill_chunk=32, head_dtype=head)
    _engine.set_cpu(isa)
    for threads in (1, 2, 3, 8):
        got = np.asarray(bitnet_edge.load(path, threads=threads).logits(ids))
        assert got.tobytes() == expected.tobytes()


def two_heads(k: int = 100):
    """Float rows in; two float layers of them out, one of which reads the other's weights too."""
    b = GraphBuilder(4)
    x = b.input("x", k)
    weight = b.constant("head", (37, k), DType.BF16)
    other = b.constant("other", (300, k))
    first = b.node("linear", "first", (x, weight, ""), 37)
    second = b.node("linear", "second", (x, other, b.constant("bias", (300,))), 300)
    return b.source(["x"], [first, second])


@pytest.mark.parametrize("head", HEADS)
def test_activations_are_quantised_once_for_all_heads(head, tmp_path):
    source = two_heads()
    plan = bitnet_edge.plan(source, head_dtype=head)
    ops = [i.op for i in plan.lowered.instructions]
    assert ops == ["quantize_wide", "head_linear", "head_linear"]
    bitnet_edge.export(source, out=tmp_path / "m.bte", head_dtype=head)
    x = random_rows(9, 100)
    x[0, 3], x[1, 5], x[2, 7] = np.nan, np.inf, -np.inf
    x[3] = 0
    x[4] *= 1e-38
    x[5] *= 1e38
    outputs = np.empty((9, 37), np.float32), np.empty((9, 300), np.float32)
    bitnet_edge.load(tmp_path / "m.bte", threads=2).session.run((x,), outputs, 9)
    values = ReferenceModel(source, head_dtype=head).run({"x": x})
    for name, got in zip(source.graph.outputs, outputs, strict=True):
        np.testing.assert_array_equal(got, values[name])  # NaN equals NaN
        assert np.isnan(got[1]).all()  # an infinite activation shows
        assert np.isfinite(got[3]).all()


def test_extreme_weights_and_activations(tmp_path):
    """Every product at its largest, every sign the same: sums come within 1 % of 2^31."""
    k = 6912
    b = GraphBuilder()
    x = b.input("x", k)
    b.constant("head", (20, k))
    b.weights["head"] = np.full((20, k), -3, np.float32)
    source = b.source(["x"], [b.node("linear", "head_linear", (x, "head", ""), 20)])
    rows = np.full((2, k), 5, np.float32) * np.array([[1], [-1]], np.float32)
    for head in HEADS:
        bitnet_edge.export(source, out=tmp_path / "m.bte", head_dtype=head, force=True)
        got = np.empty((2, 20), np.float32)
        bitnet_edge.load(tmp_path / "m.bte").session.run((rows,), (got,), 2)
        np.testing.assert_allclose(got, np.array([[-15 * k], [15 * k]]) + np.zeros(20), rtol=1e-6)
    assert 127 * head_limit(k) * k > 0.98 * 2**31 * 127 / 128


# -- the verifier ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=HEADS)
def program(request) -> tuple[bytes, bytes]:
    source = decoder(layers=1, tied=True)
    plan = make_plan(
        source.graph, load_profile("generic-50mb"), context=64, head_dtype=request.param
    )
    last = plan.weights[-1]
    return encode_program(source.graph, plan), bytes(last.offset + last.bytes)


def test_a_good_program_opens(program):
    opened = _engine.Program(program[0], aligned(len(program[1])))
    assert opened.outputs == [(0, 97)]


@pytest.mark.parametrize(
    ("op", "fields", "message"),
    [
        ("head_linear", {"DIM2": 0}, "head: bits .*: expected 4, got 0"),
        ("head_linear", {"DIM2": 5}, "head: bits .*: expected 8, got 5"),
        ("head_linear", {"DIM2": 16}, "head: bits .*: expected 8, got 16"),
        ("head_linear", {"DIM1": 0}, "head: columns .*: expected 1, got 0"),
        ("head_linear", {"DIM1": (1 << 17) + 1}, "head: columns .*: expected 131072"),
        ("head_linear", {"DIM1": 200}, "operand"),
        ("head_linear", {"DIM0": (1 << 24) + 1}, "dims .*: expected 16777216"),
        ("head_linear", {"DIM0": 1 << 24}, "port width"),
        ("head_linear", {"OPERAND2": 1 << 56}, "operand region"),
        ("head_linear", {"OPERAND2": 0}, "operand region"),
        ("head_linear", {"OPERAND4": 0}, "operand region"),
        ("head_linear", {"OPERAND6": 2 << 56}, "operand not used by the op"),
        ("head_linear", {"OPERAND1": 1 << 56 | 32}, "operand alignment"),
        ("head_linear", {"OPERAND1": 1 << 56 | 1 << 40}, "operand beyond its region"),
        ("quantize_wide", {"DIM0": (1 << 17) + 1}, "quantize_wide: width"),
        ("quantize_wide", {"DIM0": 1 << 17}, "operand"),
        ("quantize_wide", {"OPERAND0": 5 << 56}, "operand region"),
        ("head_embed", {"DIM1": 0}, "head: rows .*: expected 1, got 0"),
        ("head_embed", {"DIM1": 1 << 20}, "operand beyond its region"),
        ("head_embed", {"DIM2": 6}, "head: bits"),
        ("head_embed", {"OPERAND2": 2 << 56}, "operand region"),
    ],
)
def test_broken_records_are_refused(op, fields, message, program):
    section, weights = program
    broken = with_record(section, index_of(section, op), **fields)
    with pytest.raises(InvalidProgram, match=message):
        _engine.Program(broken, aligned(len(weights)))


def test_activations_must_be_quantised_before_they_are_read():
    source = two_heads()
    plan = make_plan(source.graph, load_profile("generic-50mb"), head_dtype="int8")
    section, weights = encode_program(source.graph, plan), aligned(plan.budget.weights)
    _engine.Program(section, weights)
    quantise, head, end = (FIRST + i * RECORD.size for i in range(3))
    swapped = section[:quantise] + section[head:end] + section[quantise:head] + section[end:]
    with pytest.raises(InvalidProgram, match="read before it is written"):
        _engine.Program(swapped, weights)


@pytest.mark.parametrize("head", HEADS)
def test_token_ids_are_checked_against_a_packed_table(head, tmp_path):
    bitnet_edge.export(decoder(tied=True), out=tmp_path / "m.bte", head_dtype=head)
    model = bitnet_edge.load(tmp_path / "m.bte")
    for token in (97, -1, 1 << 30):
        with pytest.raises(ArgumentError, match="token id"):
            model.session.step(token, 0)


# -- plans and files ------------------------------------------------------------------------


def test_a_plan_with_a_quantised_head_is_smaller():
    source = import_model(checkpoint("packed"))
    sizes, budgets = {}, {}
    for head in ("stored", *HEADS):
        plan = bitnet_edge.plan(source, head_dtype=head)
        assert plan.head_dtype == head
        sizes[head] = plan.budget.weights
        budgets[head] = plan.budget
    elements = 2048 * 128
    assert sizes["stored"] - sizes["int8"] == 2 * elements - elements - 4 * 2048
    assert sizes["stored"] - sizes["int4"] == 2 * elements - elements * 9 // 16
    for head in HEADS:  # weights are clean pages: private memory moves by the scratch alone
        assert abs(budgets[head].needed - budgets["stored"].needed) < 128 * 1024
        assert budgets[head].classes["kv_cache"] == budgets["stored"].classes["kv_cache"]


def test_only_the_tables_of_the_head_are_quantised():
    untied = bitnet_edge.plan(decoder(), head_dtype="int8")
    dtypes = {slot.name: slot.dtype for slot in untied.weights}
    assert dtypes["lm_head"] is DType.I8_ROWS
    assert dtypes["embed"] is DType.BF16
    ops = {i.op for i in untied.lowered.instructions}
    assert {"embed", "head_linear"} <= ops
    assert not ops & {"head_embed", "dense_linear"}


@pytest.mark.parametrize(
    ("source", "head", "message"),
    [
        (decoder(), "int2", "expected head_dtype stored, int8, int4, screened-int8, screened-int4"),
        (mlp(), "int8", "expected a float output layer for head_dtype int8, 'test' has none"),
        (two_heads((1 << 17) + 1), "int4", "expected at most 131072 columns"),
    ],
)
def test_impossible_head_dtypes(source, head, message):
    with pytest.raises(ArgumentError, match=message):
        bitnet_edge.plan(source, head_dtype=head)


@pytest.mark.parametrize("head", HEADS)
def test_planning_anew_keeps_the_head(head, tmp_path):
    source = decoder(7, tied=True)
    first, second = tmp_path / "a.bte", tmp_path / "b.bte"
    result = bitnet_edge.export(source, out=first, head_dtype=head)
    assert result.bits_per_weight < bitnet_edge.export(source, out=second).bits_per_weight
    again = import_model(first)
    assert again.head_dtype == head
    assert again.graph == source.graph  # as imported: the table is bf16 there
    for pinned in (None, head):
        out = bitnet_edge.export(again, out=second, context=50, head_dtype=pinned, force=True)
        assert out.plan.head_dtype == head
        a, b = open_bte(first), open_bte(second)
        assert bytes(a.section("weights")) == bytes(b.section("weights"))
        assert b.plan["head_dtype"] == head
    ids = [0, 96, 5, 5, 7]
    logits = np.asarray(bitnet_edge.load(second).logits(ids))
    assert logits.tobytes() == ReferenceModel(again).logits(ids).tobytes()
    assert logits.tobytes() == ReferenceModel(source, head_dtype=head).logits(ids).tobytes()


@pytest.mark.parametrize(
    ("had", "wanted"), [("int8", "stored"), ("int8", "int4"), ("int4", "int8")]
)
def test_a_quantised_head_cannot_become_another(had, wanted, tmp_path):
    bitnet_edge.export(decoder(), out=tmp_path / "m.bte", head_dtype=had)
    message = f"was quantised to {had} .* expected head_dtype {had}, got '{wanted}'; .* original"
    with pytest.raises(ArgumentError, match=message):
        bitnet_edge.plan(tmp_path / "m.bte", head_dtype=wanted)
    with pytest.raises(ArgumentError, match=message):
        ReferenceModel(import_model(tmp_path / "m.bte"), head_dtype=wanted)


@pytest.mark.parametrize("head", HEADS)
def test_a_table_larger_than_a_chunk(head, tmp_path, monkeypatch):
    source = decoder(5, vocab=500, tied=True)
    bitnet_edge.export(source, out=tmp_path / "a.bte", head_dtype=head)
    monkeypatch.setattr(writer, "_CHUNK_BYTES", 1)  # a panel at a time
    bitnet_edge.export(source, out=tmp_path / "b.bte", head_dtype=head)
    assert (tmp_path / "a.bte").read_bytes() == (tmp_path / "b.bte").read_bytes()


def test_a_head_that_is_not_finite_is_named(tmp_path):
    source = decoder(5)
    source.weights.arrays["lm_head"][70, 3] = 0x7E00  # a float16 NaN
    with pytest.raises(ModelError, match=r"got nan in row 70 \(tensor 'lm_head', rows from 0\)"):
        bitnet_edge.export(source, out=tmp_path / "m.bte", head_dtype="int8")
    assert not list(tmp_path.iterdir())


def test_a_source_that_gives_the_wrong_bytes(tmp_path):
    source = dataclasses.replace(decoder(tied=True), head_dtype="int8")
    with pytest.raises(ShapeMismatch, match="packed bytes, got uint16"):
        bitnet_edge.export(source, out=tmp_path / "m.bte")


@pytest.mark.parametrize(("head", "feature"), [("int8", "int8_rows"), ("int4", "int4_groups")])
def test_an_old_reader_refuses_the_file(head, feature, tmp_path, monkeypatch):
    bitnet_edge.export(decoder(), out=tmp_path / "plain.bte")
    bitnet_edge.export(decoder(), out=tmp_path / "m.bte", head_dtype=head)
    monkeypatch.setattr(container, "FEATURES", frozenset({"p16"}))
    open_bte(tmp_path / "plain.bte")
    with pytest.raises(UnsupportedVersion, match=rf"lacks: \['{feature}'\]"):
        open_bte(tmp_path / "m.bte")


def rewritten(path, change) -> None:
    """Change the header of a file in place, its length kept by spaces."""
    import binascii

    raw = path.read_bytes()
    magic, version, length, total, _ = container.PREFIX.unpack_from(raw)
    start = container.PREFIX.size
    header = json.loads(raw[start : start + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    prefix = container.PREFIX.pack(magic, version, length, total, binascii.crc32(text))
    path.write_bytes(prefix + text + raw[start + length :])


def test_the_feature_must_be_required(tmp_path):
    path = tmp_path / "m.bte"
    bitnet_edge.export(decoder(), out=path, head_dtype="int8")
    rewritten(path, lambda header: header.update(requires=["p16"]))
    with pytest.raises(FormatError, match=r"must require \['int8_rows'\]"):
        open_bte(path)


def test_files_whose_graph_and_tensors_disagree(tmp_path):
    path = tmp_path / "m.bte"

    def swap(header):
        rows = {row[0]: row for row in header["tensors"]}
        rows["lm_head"][0], rows["embed"][0] = "embed", "lm_head"

    bitnet_edge.export(decoder(bias=False), out=path, head_dtype="int8")
    rewritten(path, swap)
    with pytest.raises(FormatError, match=r"expected bf16\[97, 40\] for 'embed', got int8_rows"):
        import_model(path)
    with pytest.raises(FormatError, match="an int8_rows tensor has 2 dimensions, got 1"):
        tensor_bytes("int8_rows", (5,))


def test_a_file_without_any_head_that_claims_one(tmp_path):
    path = tmp_path / "m.bte"
    bitnet_edge.export(mlp(widths=(4, 16)), out=path)  # weight: 64 bytes; as int8_rows 128
    source = import_model(path)
    with pytest.raises(ArgumentError, match="float output layer"):
        head_packing.packed_heads(source.graph, "int8")


def test_command_line(tmp_path, capsys):
    out = tmp_path / "m.bte"
    source = str(checkpoint("packed"))
    assert main(["export", source, "-o", str(out), "--head-dtype", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["head_dtype"] == "int8"
    assert main(["inspect", str(out), "--verify"]) == 0
    assert "int8 head" in capsys.readouterr().out
    assert main(["inspect", str(out), "--program", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert "int8_rows" in {tensor["dtype"] for tensor in data["tensors"]}
    assert main(["plan", str(out)]) == 0
    assert "int8 head" in capsys.readouterr().out
    assert main(["plan", str(out), "--head-dtype", "stored"]) == 2
    assert "original checkpoint" in capsys.readouterr().err
    assert main(["generate", str(out), "ROMEO:\n", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out
