# SPDX-License-Identifier: MIT
"""Plan -> program section: the binary records the engine verifies and runs.

The layout is ``be_program_header``, ``be_port`` and ``be_instruction`` of ``bitnet_edge.h``; names
and opcodes come from ``op_table.def`` through the compiled engine, so the two cannot disagree.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bitnet_edge import _engine
from bitnet_edge.errors import InvalidProgram, Truncated
from bitnet_edge.graph import Graph
from bitnet_edge.lowering import Instruction, Region
from bitnet_edge.planner import Plan

__all__ = ["Record", "decode_program", "encode_program"]

HEADER = struct.Struct("<4s6I4xQQ2I8x")
PORT = struct.Struct("<II")
RECORD = struct.Struct("<HH7I4f16x8Q")
MAX_PORTS = 16
VERSION = 1
MAX_POSITIONS = 1 << 20  # BE_MAX_POSITIONS: of a sequence that a window moves over
OUTPUT_ROWS = 1  # BE_FLAG_OUTPUT_ROWS


def encode_program(graph: Graph, plan: Plan) -> bytes:
    """Return the program section of a plan."""
    ports = [graph.tensors[name] for name in (*graph.inputs, *graph.outputs)]
    header = HEADER.pack(
        b"BEPR",
        VERSION,
        len(plan.lowered.instructions),
        plan.prefill_chunk,
        MAX_POSITIONS if plan.window else plan.context,
        len(graph.inputs),
        len(graph.outputs),
        plan.arena_bytes,
        plan.state_bytes,
        plan.window,
        plan.sinks,
    )
    widths = [tensor.shape[-1] if len(tensor.shape) > 1 else 1 for tensor in ports]
    packed_ports = b"".join(
        PORT.pack(tensor.dtype.engine_code, width)
        for tensor, width in zip(ports, widths, strict=True)
    )
    records = b"".join(
        _encode(instruction, graph, plan) for instruction in plan.lowered.instructions
    )
    return header + packed_ports.ljust(MAX_PORTS * PORT.size, b"\0") + records


def _encode(instruction: Instruction, graph: Graph, plan: Plan) -> bytes:
    opcode, dim_names, scalar_names, operand_names = _engine.op_table()[instruction.op]
    dims = [
        plan.kv_dtype.engine_code if instruction.dims[name] == "kv" else int(instruction.dims[name])
        for name in dim_names
    ]
    scalars = [instruction.scalars[name] for name in scalar_names]
    operands = []
    for name in operand_names:
        operand = instruction.operands.get(name.rstrip("?"))
        if operand is None:
            operands.append(0)
            continue
        names = graph.inputs if operand.region == "input" else graph.outputs
        port = names.index(operand.name) if operand.region in ("input", "output") else 0
        operands.append(Region.index(operand.region) << 56 | port << 48 | plan.offset(operand))
    return RECORD.pack(
        opcode,
        OUTPUT_ROWS if instruction.tail else 0,
        *_padded(dims, 7),
        *_padded(scalars, 4),
        *_padded(operands, 8),
    )


def _padded(values: list[int] | list[float], length: int) -> list[int | float]:
    return [*values, *[0] * (length - len(values))]


@dataclass(frozen=True)
class Record:
    """One instruction as stored, readable."""

    op: str
    tail: bool
    dims: dict[str, int]
    scalars: dict[str, float]
    operands: dict[str, tuple[str, int, int]]  # region, port, byte offset


def decode_program(section: bytes | memoryview) -> Iterator[Record]:
    """Read a program section back, for `inspect`; the engine does its own verification.

    Raises
    ------
    Truncated
        When the section is shorter than its instruction count says.
    InvalidProgram
        For an unknown opcode or region.
    """
    ops = {row[0]: (name, *row[1:]) for name, row in _engine.op_table().items()}
    start = HEADER.size + MAX_PORTS * PORT.size
    count = HEADER.unpack_from(section)[2] if len(section) >= start else 1
    if len(section) < start + count * RECORD.size:
        raise Truncated(f"[program] expected {count} instructions in {len(section)} bytes")
    for index in range(count):
        fields = RECORD.unpack_from(section, start + index * RECORD.size)
        if fields[0] not in ops or any(value >> 56 >= len(Region) for value in fields[13:]):
            raise InvalidProgram(f"[program] instruction {index} means nothing", index)
        name, dim_names, scalar_names, operand_names = ops[fields[0]]
        operands = zip(operand_names, fields[13:], strict=False)
        yield Record(
            name,
            bool(fields[1] & OUTPUT_ROWS),
            dict(zip(dim_names, fields[2:9], strict=False)),
            dict(zip(scalar_names, fields[9:13], strict=False)),
            {
                operand.rstrip("?"): (
                    Region[value >> 56],
                    value >> 48 & 0xFF,
                    value & ((1 << 48) - 1),
                )
                for operand, value in operands
                if value
            },
        )
