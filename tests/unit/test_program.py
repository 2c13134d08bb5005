# SPDX-License-Identifier: MIT
"""The verifier: every rule of `bte_format.md` has a program that breaks it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from bitnet_edge import _engine
from bitnet_edge.errors import ArgumentError, InvalidProgram, Truncated, UnsupportedVersion
from bitnet_edge.planner import make_plan
from bitnet_edge.profiles import load_profile
from bitnet_edge.program import HEADER, MAX_PORTS, PORT, RECORD, decode_program, encode_program
from tests.graphs import GraphBuilder, decoder

FIRST = HEADER.size + MAX_PORTS * PORT.size
WEIGHTS, ARENA, STATE, INPUT, OUTPUT = (n << 56 for n in range(1, 6))
# indices into RECORD's fields
OPCODE, FLAGS, DIM, SCALAR, OPERAND = 0, 1, 2, 9, 13


@pytest.fixture(scope="module")
def program() -> tuple[bytes, bytes]:
    """(program section, weights bytes) of a small decoder with every instruction."""
    source = decoder(layers=1)
    plan = make_plan(source.graph, load_profile("generic-50mb"), context=64)
    last = plan.weights[-1]
    return encode_program(source.graph, plan), bytes(last.offset + last.bytes)


def aligned(size: int) -> memoryview:
    """A 64-byte aligned buffer."""
    block = np.zeros(size + 64, np.uint8)
    start = -block.ctypes.data % 64
    return memoryview(block[start : start + size])


def open_program(section: bytes, weights: bytes) -> _engine.Program:
    return _engine.Program(section, aligned(len(weights)))


def index_of(section: bytes, op: str, nth: int = 0) -> int:
    found = [i for i, record in enumerate(decode_program(section)) if record.op == op]
    return found[nth]


def with_record(section: bytes, index: int, **fields: int | float) -> bytes:
    """Change fields of a record, named like ``DIM0`` or ``OPERAND3``."""
    start = FIRST + index * RECORD.size
    values = list(RECORD.unpack_from(section, start))
    for name, value in fields.items():
        base = {"OPCODE": OPCODE, "FLAGS": FLAGS, "DIM": DIM, "SCALAR": SCALAR, "OPERAND": OPERAND}
        stem = name.rstrip("0123456789")
        values[base[stem] + int(name[len(stem) :] or 0)] = value
    return section[:start] + RECORD.pack(*values) + section[start + RECORD.size :]


def operand(section: bytes, index: int, number: int) -> int:
    return RECORD.unpack_from(section, FIRST + index * RECORD.size)[OPERAND + number]


def with_header(section: bytes, **fields: int) -> bytes:
    names = (
        "magic",
        "version",
        "count",
        "max_tokens",
        "max_positions",
        "inputs",
        "outputs",
        "arena",
        "state",
        "window",
        "sinks",
    )
    values = dict(zip(names, HEADER.unpack_from(section), strict=True)) | fields
    return HEADER.pack(*values.values()) + section[HEADER.size :]


def refused(section: bytes, weights: bytes, message: str, error=InvalidProgram) -> None:
    with pytest.raises(error, match=message):
        open_program(section, weights)


def test_a_good_program_opens(program):
    opened = open_program(*program)
    assert opened.instruction_count == len(list(decode_program(program[0])))
    assert opened.inputs == [(3, 1)]
    assert opened.outputs == [(0, 97)]
    assert 0 < opened.phase_count < opened.instruction_count


@pytest.mark.parametrize(
    ("fields", "message", "error"),
    [
        ({"magic": b"XXXX"}, "program magic", InvalidProgram),
        ({"version": 9}, "program version: expected 1, got 9", UnsupportedVersion),
        ({"window": 65}, "window: expected 64, got 65", InvalidProgram),
        ({"sinks": 1}, "sinks: expected 0, got 1", InvalidProgram),
        ({"window": 60, "sinks": 5}, "sinks: expected 4, got 5", InvalidProgram),
        ({"max_positions": 1 << 20, "window": 1 << 20}, "rows of the KV cache", InvalidProgram),
        ({"count": 0}, "instruction_count: expected 1, got 0", InvalidProgram),
        ({"count": 8193}, "instruction_count: expected 8192", InvalidProgram),
        ({"count": 5}, "program size: expected", Truncated),
        ({"max_tokens": 0}, "max_tokens", InvalidProgram),
        ({"max_tokens": 1 << 17}, "max_tokens", InvalidProgram),
        ({"max_positions": 1 << 21}, "max_positions", InvalidProgram),
        ({"inputs": 0}, "input_count", InvalidProgram),
        ({"outputs": 0}, "output_count", InvalidProgram),
        ({"inputs": 16, "outputs": 16}, r"input_count \+ output_count", InvalidProgram),
        ({"arena": 1 << 41}, "arena_bytes", InvalidProgram),
        ({"state": 1 << 41}, "state_bytes", InvalidProgram),
        ({"arena": 64}, "operand beyond its region", InvalidProgram),
        ({"state": 64}, "operand beyond its region", InvalidProgram),
    ],
)
def test_header(fields, message, error, program):
    section, weights = program
    refused(with_header(section, **fields), weights, message, error)


def test_reserved_header_field(program):
    section, weights = program
    refused(section[:28] + b"\1" + section[29:], weights, "reserved0")


@pytest.mark.parametrize("size", [0, 1, 63, FIRST - 1])
def test_truncated_header(size, program):
    refused(program[0][:size], program[1], "program header: expected", Truncated)


def test_truncated_records(program):
    refused(program[0][:-1], program[1], "program size", Truncated)


@pytest.mark.parametrize(("port", "message"), [((9, 1), "port dtype"), ((3, 0), "port width")])
def test_ports(port, message, program):
    section, weights = program
    changed = section[: HEADER.size] + PORT.pack(*port) + section[HEADER.size + PORT.size :]
    refused(changed, weights, message)


def test_port_of_another_dtype_or_width(program):
    section, weights = program
    for port, message in (((0, 1), "port dtype"), ((3, 2), "port width")):
        changed = section[: HEADER.size] + PORT.pack(*port) + section[HEADER.size + PORT.size :]
        refused(changed, weights, message)


# (instruction, nth of its kind, fields, message)
BROKEN = [
    ("embed", 0, {"OPCODE": 0}, "unknown opcode"),
    ("embed", 0, {"OPCODE": 999}, "unknown opcode"),
    ("embed", 0, {"FLAGS": 2}, "flags"),
    ("embed", 0, {"DIM0": 0}, "dims"),
    ("embed", 0, {"DIM0": (1 << 24) + 1}, "dims"),
    ("embed", 0, {"DIM1": 0}, "embed: vocab"),
    ("embed", 0, {"DIM1": 1 << 24}, "operand beyond its region"),
    ("embed", 0, {"DIM2": 3}, "embed: dtype"),
    ("embed", 0, {"OPERAND0": 0}, "operand region"),
    ("embed", 0, {"OPERAND0": STATE}, "operand region"),
    ("embed", 0, {"OPERAND0": 99 << 56}, "operand region"),
    ("embed", 0, {"OPERAND0": ARENA | 32}, "operand alignment"),
    ("embed", 0, {"OPERAND0": ARENA | 1 << 40}, "operand beyond its region"),
    ("embed", 0, {"OPERAND0": ARENA | 1 << 48}, "operand port"),
    ("embed", 0, {"OPERAND0": OUTPUT}, "output written for all tokens"),
    ("embed", 0, {"OPERAND2": INPUT | 1 << 48}, "port index"),
    ("embed", 0, {"OPERAND2": INPUT | 64}, "port offset"),
    ("embed", 0, {"OPERAND3": ARENA}, "operand not used by the op"),
    ("ternary_linear", 0, {"DIM0": 1 << 20}, "operand beyond its region"),
    ("ternary_linear", 0, {"DIM1": 0}, "linear: k"),
    ("ternary_linear", 0, {"DIM1": (1 << 22) + 1}, "ternary_linear: k"),
    ("ternary_linear", 0, {"OPERAND1": ARENA}, "operand region"),
    ("ternary_linear", 0, {"OPERAND5": WEIGHTS | 63}, "operand alignment"),
    ("dense_linear", 0, {"DIM2": 3}, "dense_linear: dtype"),
    ("dense_linear", 0, {"FLAGS": 0}, "instruction for all rows after the tail"),
    ("gated_activation", 0, {"DIM1": 2}, "gated_activation: kind"),
    ("rope_angles", 0, {"DIM0": 257}, "rope_angles: half"),
    ("rope", 0, {"DIM1": 1}, "head_dim"),
    ("rope", 0, {"DIM1": 11}, "head_dim must be even"),
    ("rope", 0, {"DIM1": 514}, "head_dim"),
    ("rope", 0, {"DIM0": 5000}, "heads"),
    ("kv_append", 0, {"DIM2": 2}, "KV cache: dtype"),
    ("kv_append", 0, {"OPERAND0": ARENA}, "operand region"),
    ("attention", 0, {"DIM1": 0}, "kv_heads"),
    ("attention", 0, {"DIM1": 3}, "heads must be a small multiple"),
    ("attention", 0, {"DIM3": 2}, "KV cache: dtype"),
]


@pytest.mark.parametrize(("op", "nth", "fields", "message"), BROKEN)
def test_records(op, nth, fields, message, program):
    section, weights = program
    index = index_of(section, op, nth)
    with pytest.raises(InvalidProgram, match=message) as caught:
        open_program(with_record(section, index, **fields), weights)
    assert caught.value.index == index
    assert f"instruction {index}" in str(caught.value)


def test_too_many_query_heads_for_one_kv_head(program):
    section, weights = program
    index = index_of(section, "attention")
    refused(with_record(section, index, DIM0=130, DIM1=2, DIM2=2), weights, "heads must be a small")


def test_reserved_record_fields(program):
    section, weights = program
    start = FIRST + 48
    refused(section[:start] + b"\1" + section[start + 1 :], weights, "reserved field")


@pytest.mark.parametrize(
    ("op", "field", "value", "message"),
    [
        ("add", "DIM1", 1, "dimension not used by the op.*expected 0, got 1"),
        ("attention", "DIM6", 7, "dimension not used by the op.*expected 0, got 7"),
        ("add", "SCALAR0", 1.0, "scalar not used by the op"),
        ("rms_norm_quantize", "SCALAR1", -0.0, "scalar not used by the op"),
        ("rms_norm_quantize", "SCALAR0", float("nan"), "scalar is not finite"),
        ("rms_norm_quantize", "SCALAR0", -1e-6, "eps is negative"),
        ("ternary_linear", "SCALAR0", float("inf"), "scalar is not finite"),
        ("attention", "SCALAR0", float("-inf"), "scalar is not finite"),
        ("embed", "SCALAR0", float("nan"), "scalar is not finite"),
        ("rope_angles", "SCALAR0", float("inf"), "scalar is not finite"),
    ],
)
def test_unused_and_unreasonable_fields(program, op, field, value, message):
    section, weights = program
    changed = with_record(section, index_of(section, op), **{field: value})
    refused(changed, weights, message)


def test_attention_without_positions(program):
    section, weights = program
    refused(with_header(section, max_positions=0), weights, "attention needs max_positions")


def test_reading_what_nobody_wrote(program):
    section, weights = program
    # the first norm reads the embedding: read it elsewhere instead
    index = index_of(section, "rms_norm_quantize")
    arena = HEADER.unpack_from(section)[7]
    size = 40 * 4 * 64  # width x float x max_tokens
    free = with_header(section, arena=arena + size)
    refused(
        with_record(free, index, OPERAND3=ARENA | (arena + 63) // 64 * 64),
        weights,
        "operand read before it is written|operand beyond",
    )


def test_an_output_over_its_own_input(program):
    section, weights = program
    index = index_of(section, "ternary_linear")
    q = operand(section, index, 2)
    refused(with_record(section, index, OPERAND0=q), weights, "operand overlaps an output")
    # in place, but shifted
    index = index_of(section, "add")
    a = operand(section, index, 1)
    refused(with_record(section, index, OPERAND0=a + 64), weights, "overlaps an output|beyond")


def test_reading_rows_of_another_size(program):
    """Rows of 40 floats read as rows of 20 would, in a shorter run, hold what another run left."""
    section, weights = program
    index = index_of(section, "rms_norm_quantize")
    refused(with_record(section, index, DIM0=20), weights, "operand read before it is written")


@pytest.mark.parametrize(("at", "message"), [(60, "reserved1"), (64 + 15 * 8, "unused port")])
def test_fields_for_later_are_zero(at, message, program):
    section, weights = program
    refused(section[:at] + b"\1" + section[at + 1 :], weights, message)


def test_two_outputs_of_one_instruction_may_not_overlap(program):
    section, weights = program
    index = index_of(section, "quantize")
    refused(
        with_record(section, index, OPERAND1=operand(section, index, 0)),
        weights,
        "operand overlaps an output",
    )


def test_unaligned_weights(program):
    section, weights = program
    with pytest.raises(ArgumentError, match="weights alignment"):
        _engine.Program(section, aligned(len(weights) + 1)[1:])


def test_no_buffer(program):
    with pytest.raises(TypeError):
        _engine.Program(3, aligned(64))


def test_decode_names_everything(program):
    records = list(decode_program(program[0]))
    assert records[0].op == "embed"
    assert records[0].dims == {"width": 40, "vocab": 97, "dtype": 2}
    assert records[0].scalars == {"multiplier": 1.5}
    assert records[0].operands["ids"] == ("input", 0, 0)
    assert records[-1].tail
    with pytest.raises(Truncated, match="expected 2[0-9] instructions"):
        list(decode_program(program[0][:-1]))


def test_decode_refuses_what_means_nothing(program):
    section = program[0]
    with pytest.raises(Truncated):
        list(decode_program(b""))
    for changed in (
        with_record(section, 0, OPCODE=999),
        with_record(section, 0, OPERAND0=99 << 56),
    ):
        with pytest.raises(InvalidProgram, match="instruction 0 means nothing"):
            list(decode_program(changed))


def test_ids_changed_during_a_run_stay_in_the_table(program):
    """A caller that writes into its ids from another thread gets wrong rows, never a crash."""
    session = _engine.Session(open_program(*program))
    ids = np.zeros(64, np.int32)
    out = np.zeros((64, 97), np.float32)
    stop = threading.Event()

    def spoil() -> None:
        while not stop.is_set():
            ids[:] = 2**31 - 1
            ids[:] = 0

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    ran = 0
    for _ in range(200):
        try:
            session.run((ids,), (out,), 64)
            ran += 1
        except ArgumentError:
            continue
    stop.set()
    spoiler.join()
    assert ran > 0


def test_independent_instructions_share_a_phase():
    b = GraphBuilder()
    x = b.input("x", 64)
    h = b.ternary("a", x, 64), b.ternary("b", x, 64)
    b.node("add", "sum", h, 64)
    source = b.source(["x"], ["sum.out"])
    plan = make_plan(source.graph, load_profile("generic-50mb"))
    last = plan.weights[-1]
    opened = open_program(encode_program(source.graph, plan), bytes(last.offset + last.bytes))
    # quantize | a, b | add
    assert (opened.instruction_count, opened.phase_count) == (4, 3)


def test_a_long_run_of_independent_instructions_is_split():
    b = GraphBuilder()
    x = b.input("x", 16)
    outputs = [b.ternary(f"l{i}", x, 16) for i in range(15)]
    source = b.source(["x"], outputs)
    plan = make_plan(source.graph, load_profile("generic-50mb"))
    last = plan.weights[-1]
    opened = open_program(encode_program(source.graph, plan), bytes(last.offset + last.bytes))
    assert (opened.instruction_count, opened.phase_count) == (16, 2)


# -- sessions -------------------------------------------------------------------------------


def test_session_arguments(program):
    opened = open_program(*program)
    for threads in (0, 65):
        with pytest.raises(ArgumentError, match=f"{threads} threads"):
            _engine.Session(opened, threads)
    session = _engine.Session(opened)
    ids = np.zeros(4, np.int32)
    out = np.zeros((4, 97), np.float32)
    cases = [
        ((), (out,), 4, 0, None, "expected 1 inputs and 1 outputs, got 0 and 1"),
        ((ids,), (), 4, 0, None, "expected 1 inputs and 1 outputs, got 1 and 0"),
        ((3,), (out,), 4, 0, None, "port 0 needs a buffer, got int"),
        ((ids[:2],), (out,), 4, 0, None, "port 0 expected 16 bytes, got 8"),
        ((ids,), (out[:3],), 4, 0, None, "port 1 expected 1552 bytes, got 1164"),
        ((ids,), (out,), 0, 0, None, "n_tokens"),
        ((ids,), (out,), 4, 0, 5, "expected 1940 bytes"),
        ((ids,), (out,), 4, 1, None, "position: expected 0, got 1"),
        ((ids - 1,), (out,), 4, 0, None, "token id"),
        ((ids + 97,), (out,), 4, 0, None, "token id"),
    ]
    for inputs, outputs, n, position, rows, message in cases:
        with pytest.raises(ArgumentError, match=message):
            session.run(inputs, outputs, n, position, rows)
    big = np.zeros(65, np.int32)
    with pytest.raises(ArgumentError, match="n_tokens: expected 64, got 65"):
        session.run((big,), (np.zeros((65, 97), np.float32),), 65)
    session.run((ids,), (out,), 4)
    assert session.position == 4
    with pytest.raises(ArgumentError, match="output_rows: expected 4, got 5"):
        session.run((ids,), (np.zeros((5, 97), np.float32),), 4, 0, 5)
    for position in range(4, 64, 4):
        session.run((ids,), (out,), 4, position)
    with pytest.raises(ArgumentError, match="context: expected 64, got 68"):
        session.run((ids,), (out,), 4, 64)
    session.run((ids,), (out,), 4, 8)  # rewinding is allowed
    assert session.position == 12


def test_a_read_only_output_is_refused(program):
    session = _engine.Session(open_program(*program))
    with pytest.raises((BufferError, ValueError)):
        session.run((np.zeros(1, np.int32),), (bytes(97 * 4),), 1)


def test_output_rows_zero_skips_the_tail_and_keeps_the_cache(program):
    opened = open_program(*program)
    ids = np.arange(10, dtype=np.int32)
    whole, last = np.zeros((10, 97), np.float32), np.zeros((1, 97), np.float32)
    _engine.Session(opened).run((ids,), (whole,), 10)
    session = _engine.Session(opened)
    session.run((ids[:9],), (last,), 9, 0, 0)
    assert not last.any()
    session.run((ids[9:],), (last,), 1, 9)
    assert last.tobytes() == whole[9:].tobytes()


def test_rows_models_take_no_tokens():
    from tests.graphs import mlp

    source = mlp()
    plan = make_plan(source.graph, load_profile("generic-50mb"))
    last = plan.weights[-1]
    opened = open_program(encode_program(source.graph, plan), bytes(last.offset + last.bytes))
    session = _engine.Session(opened)
    for call in (lambda: session.step(0, 0), lambda: session.prefill(np.zeros(1, np.int32), 0)):
        with pytest.raises(ArgumentError, match="does not take token ids"):
            call()


def test_logits_view(program):
    session = _engine.Session(open_program(*program))
    session.step(3, 0)
    view = session.logits
    assert (view.format, view.shape, view.readonly) == ("f", (97,), True)
    del session
    assert len(view.tobytes()) == 97 * 4


def test_cpu_cap():
    with pytest.raises(_engine.errors.DeviceUnsupported, match="BITNET_EDGE_CPU=sse9"):
        _engine.set_cpu("sse9")
    _engine.set_cpu("scalar")
    assert set(_engine.kernel_isas().values()) == {"scalar"}
    _engine.set_cpu(None)
    assert _engine.cpu_available() >= 1
