# SPDX-License-Identifier: MIT
"""KV caches in every format: the engine equals the reference, the planner chooses among them."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, InvalidProgram
from bitnet_edge.graph import Graph
from bitnet_edge.planner import KV_DTYPES, Plan, make_plan
from bitnet_edge.profiles import Profile, load_profile
from bitnet_edge.program import HEADER, PORT, RECORD, encode_program
from bitnet_edge.quantization import new_kv_cache, quantize_kv_i4
from bitnet_edge.reference import REFERENCE, ReferenceModel
from tests.graphs import GraphBuilder, decoder

QUANTISED = (DType.I8, DType.I4)
SHAPES = [
    {},
    {"heads": 8, "kv_heads": 2, "head_dim": 32, "hidden": 64},  # a tile of four heads
    {"heads": 7, "kv_heads": 1, "head_dim": 64, "hidden": 64},  # a tile and three
    {"kv_heads": 4, "head_dim": 34, "hidden": 100},
    {"head_dim": 2, "hidden": 1, "vocab": 3},
    {"heads": 9, "kv_heads": 3, "head_dim": 100, "rope": False},
]


@pytest.fixture
def profile() -> Profile:
    return load_profile("generic-50mb")


@pytest.fixture
def restore_cpu():
    yield
    _engine.set_cpu(None)


# -- engine and reference -------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("options", SHAPES)
def test_the_engine_equals_the_reference(options, kv_dtype, tmp_path, restore_cpu):
    source = decoder(3, **options)
    ids = np.random.default_rng(5).integers(0, source.graph.info.vocab_size, 90)
    expected = ReferenceModel(source, kv_dtype=kv_dtype).logits(ids)
    for chunk in (1, 32):
        path = tmp_path / f"{chunk}.bte"
        bitnet_edge.export(source, out=path, prefill_chunk=chunk, kv_dtype=kv_dtype)
        for isa in _engine.cpu_isas():
            _engine.set_cpu(isa)
            for threads in (1, 2, 3):
                got = np.asarray(bitnet_edge.load(path, threads=threads).logits(ids))
                assert got.tobytes() == expected.tobytes(), (chunk, isa, threads)


def attention_only(heads: int, kv_heads: int, head_dim: int, context: int):
    """A model that is one attention over its float inputs, so that any number reaches the cache."""
    b = GraphBuilder()
    q = b.input("q", heads * head_dim)
    k, v = (b.input(name, kv_heads * head_dim) for name in "kv")
    b.constant("rope.inv_freq", (head_dim // 2,))
    a = b.attention("attention", q, k, v, heads, kv_heads, head_dim)
    return b.source(["q", "k", "v"], [a], context_length=context)


def extremes(name: str, shape: tuple[int, int]) -> np.ndarray:
    x = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    if name == "zeros":
        x[:] = 0
        x[::2] = -0.0
    elif name == "tiny":
        x *= np.float32(1e-37)
    elif name == "huge":
        x = np.where(x > 0, np.finfo(np.float32).max, np.finfo(np.float32).min)
    elif name == "not a number":
        x[shape[0] // 2, shape[1] // 3] = np.nan
    elif name == "infinity":
        x[shape[0] // 2, shape[1] // 3] = -np.inf
    elif name == "one outlier":
        x[:, 3] *= np.float32(1e6)
    elif name == "constant":
        x[:] = 0.75
    return x.astype(np.float32)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize(
    "name",
    ["zeros", "tiny", "huge", "not a number", "infinity", "one outlier", "constant", "normal"],
)
def test_extreme_keys_and_values(name, kv_dtype, tmp_path, restore_cpu):
    source = attention_only(4, 1, 40, 70)
    path = tmp_path / "m.bte"
    bitnet_edge.export(source, out=path, kv_dtype=kv_dtype, prefill_chunk=70)
    q = np.random.default_rng(1).normal(size=(70, 160)).astype(np.float32)
    k, v = extremes(name, (70, 40)), extremes(name, (70, 40))[::-1].copy()
    inputs = {"q": q, "k": k, "v": v}
    expected = ReferenceModel(source, kv_dtype=kv_dtype).run(inputs)[source.graph.outputs[0]]
    for isa in _engine.cpu_isas():
        _engine.set_cpu(isa)
        session = bitnet_edge.load(path, threads=1).session
        out = np.empty((70, 160), np.float32)
        session.run((q, k, v), (out,), 70)
        np.testing.assert_array_equal(out, expected, err_msg=isa)  # a NaN equals a NaN


@pytest.mark.parametrize(("kv_dtype", "bound"), [(DType.I8, 0.02), (DType.I4, 0.25)])
def test_attention_stays_near_its_float_self(kv_dtype, bound):
    """Values of N(0, 1): a code is off by at most half a step of absmax / 127 or absmax / 8."""
    rng = np.random.default_rng(2)
    widths = {"q": 256, "k": 64, "v": 64}
    inputs = {n: rng.normal(size=(80, w)).astype(np.float32) for n, w in widths.items()}
    source = attention_only(4, 1, 64, 80)
    name = source.graph.outputs[0]
    full, coded = (
        ReferenceModel(source, kv_dtype=dtype).run(inputs)[name] for dtype in (DType.F32, kv_dtype)
    )
    error = np.sqrt(np.mean((full - coded) ** 2) / np.mean(full**2))
    assert 0 < error < bound


def test_int4_groups():
    x = np.array([[4, -8, 0.5, 1.5, 3], [8, -8, 1, -3.75, np.nan], [0, 0, 0, 0, 0]], np.float32)
    codes, scales = quantize_kv_i4(x)
    assert scales[0] == 1
    assert codes[0].tolist() == [4, -8, 0, 2, 3]  # ties to even
    assert scales[1] == -1
    assert codes[1].tolist() == [-8, 7, -1, 4, 0]  # the positive one of two equals is exact
    assert not codes[2].any()
    assert np.isfinite(scales).all()
    assert not (scales.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_appending_in_any_pieces_is_the_same(kv_dtype):
    rows = np.random.default_rng(0).normal(size=(2, 9, 50)).astype(np.float32)
    whole, pieces = (new_kv_cache((2, 9, 50), kv_dtype) for _ in range(2))
    whole.append(0, rows)
    for first in (0, 4, 5):
        pieces.append(first, rows[:, first : first + 4])
    for head in range(2):
        for a, b in zip(whole.read(head, 9), pieces.read(head, 9), strict=True):
            np.testing.assert_array_equal(a, b)


def test_rewinding_overwrites_codes(tmp_path):
    source = decoder(4, head_dim=32, hidden=64)
    bitnet_edge.export(source, out=tmp_path / "m.bte", kv_dtype="int8")
    model = bitnet_edge.load(tmp_path / "m.bte")
    ids = list(range(40))
    first = np.asarray(model.logits(ids)).tobytes()
    model.logits([5] * 40)
    assert np.asarray(model.logits(ids)).tobytes() == first


# -- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kv_dtype", "head_dim", "row"),
    [
        (DType.F32, 128, 512),
        (DType.F16, 128, 256),
        (DType.I8, 128, 132),
        (DType.I4, 128, 72),
        (DType.I8, 64, 68),
        (DType.I4, 64, 36),
        (DType.I8, 100, 116),  # codes padded to 16
        (DType.I4, 100, 72),  # whole groups
    ],
)
def test_bytes_of_a_position(kv_dtype, head_dim, row):
    heads, positions = 5, 4096
    size = _engine.kv_cache_bytes(kv_dtype.engine_code, heads, head_dim, positions)
    assert size == heads * positions * row


def test_codes_and_scales_begin_on_cache_lines():
    assert _engine.kv_cache_bytes(DType.I8.engine_code, 1, 16, 1) == 128
    assert _engine.kv_cache_bytes(DType.I4.engine_code, 3, 2, 3) == 3 * 128


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_planned_bytes_are_the_programs(kv_dtype, tmp_path, profile):
    source = decoder(head_dim=34, hidden=40)
    plan = make_plan(source.graph, profile, kv_dtype=kv_dtype)
    bitnet_edge.export(source, out=tmp_path / "m.bte", kv_dtype=kv_dtype)
    program = bitnet_edge.load(tmp_path / "m.bte").session.program
    assert program.state_bytes == plan.state_bytes == plan.budget.classes["kv_cache"]
    cache = _engine.kv_cache_bytes(kv_dtype.engine_code, 2, 34, 100)
    assert plan.state_bytes == 4 * -(-cache // 64) * 64


# -- verification ---------------------------------------------------------------------------


def open_program(section: bytes, weights_bytes: int) -> _engine.Program:
    room = bytearray(weights_bytes + 64)
    address = np.frombuffer(room, np.uint8).ctypes.data
    start = -address % 64
    return _engine.Program(section, memoryview(room)[start : start + weights_bytes])


def planned(kv_dtype: DType, profile: Profile) -> tuple[Graph, Plan, int]:
    graph = decoder(head_dim=32, hidden=64).graph
    plan = make_plan(graph, profile, kv_dtype=kv_dtype)
    return graph, plan, plan.weights[-1].offset + plan.weights[-1].bytes


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_state_one_byte_short_is_refused(kv_dtype, profile):
    graph, plan, weights = planned(kv_dtype, profile)
    assert open_program(encode_program(graph, plan), weights).state_bytes == plan.state_bytes
    short = dataclasses.replace(plan, state_bytes=plan.state_bytes - 1)
    with pytest.raises(InvalidProgram, match="operand beyond its region"):
        open_program(encode_program(graph, short), weights)


@pytest.mark.parametrize("code", [2, 3, 6, 0xFFFFFFFF])
@pytest.mark.parametrize(("op", "dim"), [("kv_append", 2), ("attention", 3)])
def test_other_dtypes_of_caches_are_refused(op, dim, code, profile):
    graph, plan, weights = planned(DType.I8, profile)
    section = bytearray(encode_program(graph, plan))
    names = [i.op for i in plan.lowered.instructions]
    at = HEADER.size + 16 * PORT.size + names.index(op) * RECORD.size + 4 + 4 * dim
    assert struct.unpack_from("<I", section, at) == (DType.I8.engine_code,)
    struct.pack_into("<I", section, at, code)
    with pytest.raises(InvalidProgram, match="KV cache: dtype"):
        open_program(bytes(section), weights)


@pytest.mark.parametrize("code", [DType.I8.engine_code, DType.I4.engine_code])
def test_ports_and_weights_have_no_codes(code, profile):
    graph, plan, weights = planned(DType.F32, profile)
    section = bytearray(encode_program(graph, plan))
    struct.pack_into("<I", section, HEADER.size, code)
    with pytest.raises(InvalidProgram, match="port dtype"):
        open_program(bytes(section), weights)


# -- planning -------------------------------------------------------------------------------


def big_cache() -> Graph:
    """A decoder whose f32 KV cache is 8 MB at its full context."""
    return decoder(layers=2, kv_heads=4, heads=4, head_dim=64, hidden=64, context=2048).graph


def with_budget(profile: Profile, size: float) -> Profile:
    return dataclasses.replace(profile, private_mb=size / (1 << 20), default_context=2048)


def test_each_format_is_taken_where_the_one_before_does_not_fit(profile):
    needed = {
        dtype: make_plan(big_cache(), profile, context=2048, kv_dtype=dtype, prefill_chunk=8)
        for dtype in KV_DTYPES
    }
    sizes = [needed[dtype].state_bytes / needed[DType.F32].state_bytes for dtype in KV_DTYPES]
    assert sizes == [1, 1 / 2, 68 / 256, 36 / 256]
    for dtype in (DType.F32, DType.F16, DType.I8):
        plan = make_plan(big_cache(), with_budget(profile, needed[dtype].budget.needed))
        assert (plan.kv_dtype, plan.prefill_chunk) == (dtype, 8)
        less = needed[dtype].budget.needed - 4096
        if dtype is not DType.I8:
            plan = make_plan(big_cache(), with_budget(profile, less))
            assert plan.kv_dtype is KV_DTYPES[KV_DTYPES.index(dtype) + 1]


@pytest.mark.parametrize("wrong", ["i8", "bf16", "q4", DType.TERNARY, ""])
def test_unknown_formats(wrong, profile):
    with pytest.raises(ArgumentError, match="expected kv_dtype f32, f16, int8 or int4, got"):
        make_plan(big_cache(), profile, kv_dtype=wrong)


def test_op_reference_takes_caches():
    """The op's own reference runs on any cache, without a model around it."""
    rng = np.random.default_rng(8)
    operands = {n: rng.normal(size=(3, 12)).astype(np.float32) for n in "qkv"}
    for dtype in KV_DTYPES:
        caches = {f"{n}_cache": new_kv_cache((1, 3, 12), dtype) for n in "kv"}
        attributes = {"heads": 1, "kv_heads": 1, "head_dim": 12, "scale": 0.3, "rope_scale": 1.0}
        y = REFERENCE["attention"](operands | caches, attributes, 0)
        np.testing.assert_allclose(y[0], operands["v"][0], atol=0.6 if dtype is DType.I4 else 0.05)
