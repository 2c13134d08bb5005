# SPDX-License-Identifier: MIT
"""Whole forward passes of the bundled model, shader by shader: the bits of the CPU engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.container import open_bte
from bitnet_edge.errors import DeviceUnsupported
from bitnet_edge.head_packing import HEAD_DTYPES
from bitnet_edge.metal.encoder import Dispatch, encode
from bitnet_edge.metal.shader_library import kernels
from bitnet_edge.packing import unpack_p16
from tests.conftest import checkpoint
from tests.metal.simulator import Launch, Simulator

IDS = [10, 900, 33, 4, 1777, 250, 611, 42, 9]


class SimulatedSession:
    """Arena, state and weights in numpy; runs dispatches in the simulator."""

    def __init__(self, simulator: Simulator, path: Any, *, matrix: bool = False) -> None:
        self.file = open_bte(path)
        self.program = _engine.Program(self.file.section("program"), self.file.section("weights"))
        self.simulator = simulator
        self.matrix = matrix
        self.regions = {
            "weights": np.frombuffer(self.file.section("weights"), np.uint8),
            "arena": np.full(self.program.arena_bytes, 0xA5, np.uint8),
            "state": np.full(self.program.state_bytes, 0xA5, np.uint8),
        }

    def run(self, ids: Sequence[int], position: int, output_rows: int) -> Any:
        """Logits of the last rows; every dispatch sees only what it is bound to."""
        logits = np.full((output_rows, self.program.outputs[0][1]), np.nan, np.float32)
        ports = {"input": np.array(ids, np.int32).view(np.uint8), "output": logits.view(np.uint8)}
        regions = self.regions | {name: array.reshape(-1) for name, array in ports.items()}
        for dispatch in encode(self.program, len(ids), position, output_rows, matrix=self.matrix):
            self.launch(dispatch, regions)
        return logits

    def launch(self, dispatch: Dispatch, regions: dict[str, Any]) -> None:
        made = dispatch.geometry
        kernel = kernels()[made.kernel]
        buffers = {}
        for binding in dispatch.bindings:
            assert binding.offset + binding.bytes <= regions[binding.region].size
            buffers[binding.name] = regions[binding.region][
                binding.offset : binding.offset + binding.bytes
            ]
        assert kernel.pack(made.params) == dispatch.params
        self.simulator.run(
            Launch(
                made.kernel,
                made.groups,
                (made.threads, 1, 1),
                buffers,
                made.params,
                made.memory,
                "shuffled",
                dispatch.instruction,
            )
        )


def same(found: Any, expected: Any) -> bool:
    return bool((found.view(np.uint32) == np.asarray(expected).view(np.uint32)).all())


@pytest.mark.parametrize("matrix", [False, True])
def test_logits_of_the_bundled_model_are_the_engines(simulator, bte, matrix):
    expected = bitnet_edge.load(bte, threads=1).logits(IDS)
    session = SimulatedSession(simulator, bte, matrix=matrix)
    assert same(session.run(IDS[:6], 0, 6), expected[:6])  # prefill
    for t in range(6, len(IDS)):  # decode
        assert same(session.run(IDS[t : t + 1], t, 1), expected[t : t + 1])


@pytest.mark.parametrize(
    ("kv_dtype", "head_dtype"), [("f16", "int8"), ("int8", "int4"), ("int4", "screened")]
)
def test_logits_of_every_plan_are_the_engines(simulator, tmp_path, kv_dtype, head_dtype):
    path = tmp_path / "model.bte"
    if head_dtype == "screened":
        head_dtype = HEAD_DTYPES[-1]
    bitnet_edge.export(
        checkpoint("packed"), out=path, kv_dtype=kv_dtype, head_dtype=head_dtype, context=32
    )
    expected = bitnet_edge.load(path, threads=1).logits(IDS)
    session = SimulatedSession(simulator, path)
    assert same(session.run(IDS[:4], 0, 1), expected[3:4])  # the tail for one row only
    assert session.run(IDS[4:6], 4, 0).size == 0  # no tail
    assert same(session.run(IDS[6:], 6, 3), expected[6:])


@pytest.mark.parametrize("matrix", [False, True])
def test_accumulators_are_exact(simulator, bte, matrix):
    """Every ternary product of a prefill and a decode step, again without its scales."""
    session = AccumulatorSession(simulator, bte, matrix=matrix)
    session.run(IDS[:3], 0, 3)
    session.run(IDS[3:4], 3, 1)
    linears = sum(
        session.program.instruction(i)[0] == "ternary_linear"
        for i in range(session.program.instruction_count)
    )
    assert session.checked == 2 * linears > 0


class AccumulatorSession(SimulatedSession):
    checked = 0

    def launch(self, dispatch: Dispatch, regions: dict[str, Any]) -> None:
        super().launch(dispatch, regions)
        if not dispatch.geometry.kernel.startswith("ternary"):
            return
        made = dispatch.geometry
        found = {
            b.name: regions[b.region][b.offset : b.offset + b.bytes] for b in dispatch.bindings
        }
        dims = self.program.instruction(dispatch.instruction)[2]
        q = found["q"].view(np.int8).reshape(-1, -(-dims["k"] // 16) * 16)
        buffers = found | {
            "y": np.full((len(q), dims["rows"]), np.nan, np.float32),
            "s": np.ones(len(q), np.float32),
        }
        params = dict(made.params) | {"w_scale": 1.0, "has_bias": 0}
        self.simulator.run(
            Launch(made.kernel, made.groups, (made.threads, 1, 1), buffers, params, made.memory)
        )
        w = unpack_p16(found["w"], dims["rows"], dims["k"])
        acc = q[:, : dims["k"]].astype(np.int64) @ w.T.astype(np.int64)
        assert (buffers["y"].astype(np.int64) == acc).all()
        self.checked += 1


def test_barriers_are_few_and_enough(bte):
    """Marked where a byte is written and touched; none between q, k and v."""
    file = open_bte(bte)
    program = _engine.Program(file.section("program"), file.section("weights"))
    dispatches = encode(program, 1, 3, 1)
    open_since: list[Dispatch] = []
    for dispatch in dispatches:
        if dispatch.barrier:
            open_since = []
        for earlier in open_since:
            for a in dispatch.bindings:
                for b in earlier.bindings:
                    assert not (a.overlaps(b) and (a.writable or b.writable))
        open_since.append(dispatch)
    assert sum(d.barrier for d in dispatches) == program.phase_count - 1


@pytest.mark.parametrize("change", [{"groups": 2}, {"scales": 1 << 56}])
def test_other_scales_than_one_are_refused(bte, change):
    file = open_bte(bte)
    program = _engine.Program(file.section("program"), file.section("weights"))

    class Changed:
        instruction_count = program.instruction_count
        max_positions = program.max_positions
        window = 0
        scalars = staticmethod(program.scalars)

        @staticmethod
        def instruction(index: int) -> Any:
            op, flags, dims, operands = program.instruction(index)
            if op == "ternary_linear":
                dims, operands = dims | change, operands | change
            return op, flags, dims, operands

    with pytest.raises(DeviceUnsupported, match="ternary_linear: expected one scale"):
        encode(Changed(), 1)


def test_a_window_is_refused(bte, tmp_path):
    path = tmp_path / "endless.bte"
    bitnet_edge.export(bte, out=path, window=60)
    file = open_bte(path)
    program = _engine.Program(file.section("program"), file.section("weights"))
    with pytest.raises(DeviceUnsupported, match="a window of 60 positions"):
        encode(program, 1)
