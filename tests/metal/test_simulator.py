# SPDX-License-Identifier: MIT
"""The harness itself: builtins, simdgroup operations, and the faults that it must name."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import numpy as np
import pytest

from bitnet_edge.metal import shader_library
from tests.conftest import require_tool
from tests.metal.cases import CASES
from tests.metal.checks import check
from tests.metal.simulator import SCHEDULES, Launch, SimulatedFault, Simulator, build

PROBE = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;
#ifndef THREADGROUP_MEMORY
#define THREADGROUP_MEMORY(n) [[threadgroup(n)]]
#endif
struct probe_params {
  uint what;
};
kernel void where(constant probe_params &params [[buffer(0)]], device uint *out [[buffer(1)]],
                  uint3 grid [[thread_position_in_grid]],
                  uint3 local [[thread_position_in_threadgroup]],
                  uint3 group [[threadgroup_position_in_grid]],
                  uint3 threads [[threads_per_threadgroup]],
                  uint3 groups [[threadgroups_per_grid]],
                  uint index [[thread_index_in_threadgroup]],
                  uint lane [[thread_index_in_simdgroup]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]],
                  uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint width = threads.x * groups.x, height = threads.y * groups.y;
  device uint *to = out + ((grid.z * height + grid.y) * width + grid.x) * 8;
  to[0] = local.x + 100 * local.y + 10000 * local.z;
  to[1] = group.x + 100 * group.y + 10000 * group.z;
  to[2] = threads.x + 100 * threads.y + 10000 * threads.z;
  to[3] = groups.x + 100 * groups.y + 10000 * groups.z;
  to[4] = index;
  to[5] = lane;
  to[6] = simdgroup;
  to[7] = simdgroups;
}
kernel void lanes(constant probe_params &params [[buffer(0)]], device int *out [[buffer(1)]],
                  device const int *in [[buffer(2)]],
                  uint lane [[thread_index_in_simdgroup]]) {
  int x = in[lane];
  device int *to = out + 8 * lane;
  to[0] = simd_sum(x);
  to[1] = simd_max(x);
  to[2] = simd_min(x);
  to[3] = simd_shuffle_xor(x, 5);
  to[4] = simd_shuffle_down(x, 3);
  to[5] = simd_shuffle(x, 31 - lane);
  to[6] = simd_broadcast(x, 7);
  to[7] = 0;
}
kernel void product(constant probe_params &params [[buffer(0)]], device float *d [[buffer(1)]],
                    device const float *a [[buffer(2)]], device const float *b [[buffer(3)]],
                    uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_float8x8 x, y, z = simdgroup_float8x8(1.0f);
  simdgroup_load(x, a, 8);
  simdgroup_load(y, b, 8, ulong2(0, 0), true);
  simdgroup_multiply_accumulate(z, x, y, z);
  simdgroup_store(z, d, 8);
}
kernel void faulty(constant probe_params &params [[buffer(0)]], device uint *out [[buffer(1)]],
                   device const uint *in [[buffer(2)]],
                   threadgroup uint *memory THREADGROUP_MEMORY(0),
                   uint3 group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  uint what = params.what;
  if (what == 1)
    out[index] = in[index + 1];
  if (what == 2)
    ((device uint *)in)[0] = 1;
  if (what == 3)
    out[group.x] = memory[index];
  if (what == 4 && index == 5)
    out[0] = 1;
  if (what == 5 && index % 32 != 3)
    threadgroup_barrier(mem_flags::mem_threadgroup);
  if (what == 6) {
    if (lane < 16)
      out[index] = simd_sum(1u);
    else
      out[index] = simd_sum(2u);
  }
  if (what == 7 && index == 0)
    memory[64] = 0;
  if (what == 8) {
    memory[index] = index;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    out[index] = memory[index ^ 32];
  }
  if (what == 9) {
    memory[index] = index;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    out[index] = memory[index ^ 1];
  }
  if (what == 10) {
    memory[index] = index;
    simd_sum(0);
    out[index] = memory[index ^ 1];
  }
}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Simulator:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.metal").write_text(PROBE)
    library = build(folder / "build", shaders=folder, compiler=compiler)
    return Simulator(library, folder)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_builtins(probe, schedule):
    groups, threads = (2, 3, 2), (8, 4, 2)
    out = np.zeros((4, 12, 16, 8), np.uint32)
    probe.run(Launch("where", groups, threads, {"out": out}, {"what": 0}, (), schedule))
    z, y, x = np.indices(out.shape[:3])
    local = x % 8 + 100 * (y % 4) + 10000 * (z % 2)
    index = x % 8 + 8 * (y % 4) + 32 * (z % 2)
    expected = [
        local,
        x // 8 + 100 * (y // 4) + 10000 * (z // 2),
        np.full_like(x, 8 + 400 + 20000),
        np.full_like(x, 2 + 300 + 20000),
        index,
        index % 32,
        index // 32,
        np.full_like(x, 2),
    ]
    assert (out == np.stack(expected, -1)).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_simdgroup_operations(probe, schedule):
    x = np.random.default_rng(0).integers(-100, 100, 32).astype(np.int32)
    out = np.zeros((32, 8), np.int32)
    probe.run(
        Launch("lanes", (1, 1, 1), (32, 1, 1), {"out": out, "in": x}, {"what": 0}, (), schedule)
    )
    at = np.arange(32)
    assert (out[:, 0] == x.sum()).all() and (out[:, 1] == x.max()).all()
    assert (out[:, 2] == x.min()).all() and (out[:, 3] == x[at ^ 5]).all()
    assert (out[:29, 4] == x[3:]).all() and (out[:, 5] == x[31 - at]).all()
    assert (out[:, 6] == x[7]).all()


def test_matrices(probe):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, (8, 8)).astype(np.float32) for _ in range(2))
    d = np.zeros((8, 8), np.float32)
    probe.run(Launch("product", (1, 1, 1), (32, 1, 1), {"d": d, "a": a, "b": b}, {"what": 0}))
    assert (d == a @ b.T + np.eye(8)).all()


@pytest.mark.parametrize(
    ("what", "groups", "message"),
    [
        (1, 1, "out of bounds: read of 4 bytes at offset 256 of buffer 2"),
        (2, 1, "out of bounds: write of 4 bytes at offset 0 of buffer 2 .*read only"),
        (3, 1, "uninitialised: thread 0 reads threadgroup byte 0"),
        (4, 2, "race: thread 5 of group 1,0: write of device byte 0"),
        (5, 1, "deadlock: thread . waits at .*faulty|deadlock: thread 0 waits at .*probe.metal:"),
        (6, 1, "divergent: thread 16 is at .*probe.metal:.*another of its group at"),
        (7, 1, "out of bounds: write of 4 bytes at offset 256 of threadgroup memory of 256"),
        (8, 1, "race|uninitialised"),
        (10, 1, "race|uninitialised"),
    ],
)
def test_faults_are_named(probe, what, groups, message):
    buffers = {"out": np.zeros(64, np.uint32), "in": np.zeros(64, np.uint32)}
    launch = Launch("faulty", (groups, 1, 1), (64, 1, 1), buffers, {"what": what}, (256,))
    with pytest.raises(SimulatedFault, match=message):
        probe.run(launch)


def test_a_simdgroup_barrier_orders_its_simdgroup(probe):
    buffers = {"out": np.zeros(64, np.uint32), "in": np.zeros(64, np.uint32)}
    probe.run(Launch("faulty", (1, 1, 1), (64, 1, 1), buffers, {"what": 9}, (256,)))
    assert (buffers["out"] == np.arange(64) ^ 1).all()


@pytest.mark.parametrize("threads", [0, 33, 2048])
def test_impossible_threadgroups_are_refused(probe, threads):
    buffers = {"out": np.zeros(64, np.uint32), "in": np.zeros(64, np.uint32)}
    with pytest.raises(SimulatedFault, match="multiple of 32"):
        probe.run(Launch("faulty", (1, 1, 1), (threads, 1, 1), buffers, {"what": 0}))


def _other_builds() -> list[tuple[str, list[str]]]:
    builds: list[tuple[str, list[str]]] = [("g++", [])]
    if platform.machine() == "x86_64" and "fma" in Path("/proc/cpuinfo").read_text():
        builds.append(("clang++", ["-mfma", "-ffp-contract=on"]))
    return builds


@pytest.mark.parametrize(("name", "flags"), _other_builds(), ids=str)
def test_other_compilers_agree(name, flags, tmp_path):
    """gcc; and clang where it may contract a * b + c of one expression, as Apple's may."""
    found = require_tool(shutil.which(name), name)
    simulator = Simulator(build(tmp_path, compiler=found, extra=flags))
    for kernel in sorted(CASES):
        for index in range(5):
            check(simulator, CASES[kernel](np.random.default_rng([index, 3])), "shuffled", index)


def test_the_switch_of_other_processors(compiler, tmp_path):
    """Where the lanes' switch is not ours (ARM), ucontext's serves."""
    files = ["rms_norm.metal", "ternary_gemv.metal"]
    simulator = Simulator(build(tmp_path, "ucontext", files=files, compiler=compiler))
    for kernel in ("rms_norm", "rms_norm_quantize", "ternary_gemv"):
        for schedule in SCHEDULES:
            check(simulator, CASES[kernel](np.random.default_rng(1)), schedule, 1)


# -- reading the sources --------------------------------------------------------------------


def test_signatures_are_read():
    kernel = shader_library.kernels()["ternary_gemv"]
    assert kernel.file == "ternary_gemv.metal"
    assert kernel.fields == (
        ("rows", "uint"),
        ("k_blocks", "uint"),
        ("has_bias", "uint"),
        ("w_scale", "float"),
    )
    assert [(b.name, b.index, b.type, b.writable) for b in kernel.buffers] == [
        ("y", 1, "float", True),
        ("w", 2, "uchar", False),
        ("q", 3, "char", False),
        ("s", 4, "float", False),
        ("q_sum", 5, "int", False),
        ("bias", 6, "float", False),
    ]
    assert kernel.threadgroup == ((0, "partial", "int"),)
    assert ("group", "uint2", "threadgroup_position_in_grid") in kernel.builtins
    values = {"rows": 1, "k_blocks": 2, "has_bias": True, "w_scale": 0.5}
    assert kernel.pack(values).hex() == "0100000002000000010000000000003f"


def test_a_source_holds_its_headers_once():
    text = shader_library.source("rope.metal")
    assert text.count("inline float exp_f32(") == 1
    assert '#include "' not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel void f(device float *x)", "cannot read parameter 'device float"),
        ("kernel void f(device float *x [[buffer(1)]]", "does not end"),
    ],
)
def test_other_signatures_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        shader_library.parse(text, "f.metal")
