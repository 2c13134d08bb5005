# SPDX-License-Identifier: MIT
"""Plants bugs in the shaders and expects the random shapes of `cases.py` to find every one.

A mutant is a text substitution in one file; ``fault`` is the kind of report that must name it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bitnet_edge.metal import shader_library
from tests.metal import cases
from tests.metal.cases import CASES
from tests.metal.checks import check
from tests.metal.simulator import SCHEDULES, SHADERS, Simulator, build


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    kernel: str
    fault: str = "differs"

    def __str__(self) -> str:
        return self.name


GEMM_BARRIER = """    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint i = 0; i < 4; i++)"""

MUTANTS = [
    Mutant(
        "over-read of the last block",
        "ternary_gemv.metal",
        "block < k_blocks;",
        "block <= k_blocks;",
        "ternary_gemv",
        "out of bounds",
    ),
    Mutant(
        "ragged rows are written",
        "ternary_gemv.metal",
        "thread_index < 16 && row < params.rows",
        "thread_index < 16",
        "ternary_gemv",
        "out of bounds",
    ),
    Mutant(
        "missing barrier",
        "ternary_gemv.metal",
        "  threadgroup_barrier(mem_flags::mem_threadgroup);\n",
        "",
        "ternary_gemv",
        "race|uninitialised",
    ),
    Mutant(
        "wrong lane in a reduction",
        "ternary_gemv.metal",
        "simd_shuffle_xor(total, 16)",
        "simd_shuffle_xor(total, 2)",
        "ternary_gemv",
    ),
    Mutant(
        "one field in the wrong place",
        "ternary_gemv.metal",
        "{1.0f, 0x1p-2f, 0x1p-4f, 0x1p-6f}",
        "{1.0f, 0x1p-2f, 0x1p-6f, 0x1p-4f}",
        "ternary_gemv",
    ),
    Mutant(
        "the sum of q is forgotten",
        "ternary_gemv.metal",
        "int acc = -q_sum[token];",
        "int acc = 0;",
        "ternary_gemv",
    ),
    Mutant(
        "weights read twice",
        "ternary_gemv.metal",
        "    float scaled[16];",
        "    uint again = words[4 * block + (lane + 1) % 4].y; // never 0xffffffff\n"
        "    four_rows.x |= again == 0xffffffffu ? 1u : 0u;\n    float scaled[16];",
        "ternary_gemv",
        "Traffic",
    ),
    Mutant(
        "gemm overwrites tiles that others still read",
        "ternary_gemm.metal",
        GEMM_BARRIER,
        GEMM_BARRIER.replace("    threadgroup_barrier(mem_flags::mem_threadgroup);\n", ""),
        "ternary_gemm",
        "race",
    ),
    Mutant(
        "gemm's ragged tokens come from beyond q",
        "ternary_gemm.metal",
        "token < tokens && first",
        "token <= tokens && first",
        "ternary_gemm_matrix",
        "out of bounds",
    ),
    Mutant(
        "matrix of the wrong tokens",
        "ternary_gemm.metal",
        "activations + (first_token + 8 * j) * TILE_K",
        "activations + (first_token + 8 * (j ^ 1)) * TILE_K",
        "ternary_gemm_matrix",
    ),
    Mutant(
        "16-bit sums overflow",
        "head_gemv.metal",
        "sum[1] += dot_four(four_rows.y, four);",
        "sum[1] = short(sum[1] + dot_four(four_rows.y, four));",
        "head_gemv_i8",
    ),
    Mutant(
        "one set of products for readers and writers",
        "head_gemv.metal",
        "products + first / 8 % 2 * 128",
        "products",
        "head_gemv_i4",
        "race",
    ),
    Mutant(
        "a barrier that some lanes do not reach",
        "quantize.metal",
        "  sum = threadgroup_sum(sum, sums, lane, simdgroup, simdgroups);",
        "  if (thread_index < width)\n"
        "    sum = threadgroup_sum(sum, sums, lane, simdgroup, simdgroups);",
        "quantize",
        "deadlock|divergent",
    ),
    Mutant(
        "the padding is not zeroed",
        "quantize.metal",
        "i < padded; i += threads",
        "i < width; i += threads",
        "quantize",
    ),
    Mutant(
        "ties away from zero",
        "numerics.h",
        "float shifted = v + ROUND_MAGIC;\n  return shifted - ROUND_MAGIC;",
        "return float(int(v + (v < 0.0f ? -0.5f : 0.5f)));",
        "quantize",
    ),
    Mutant(
        "another order of summation",
        "rms_norm.metal",
        "for (uint i = lane; i < width; i += 16)",
        "for (uint j = 0, n = (width + 15) / 16, i = lane * n; j < n && i < width; j++, i++)",
        "rms_norm",
    ),
    Mutant(
        "barrier of the wrong memory",
        "rms_norm.metal",
        "mem_flags::mem_threadgroup | mem_flags::mem_device",
        "mem_flags::mem_device",
        "rms_norm",
        "race|uninitialised",
    ),
    Mutant(
        "a norm in place overwrites what others still read",
        "rms_norm.metal",
        "mem_flags::mem_threadgroup | mem_flags::mem_device",
        "mem_flags::mem_threadgroup",
        "rms_norm",
        "race",
    ),
    Mutant(
        "rope in place reads what it wrote",
        "rope.metal",
        "y[first + half_dim] = b_cos + a_sin;",
        "y[first + half_dim] = b_cos + (a_sin != a_sin ? a_sin : x[first] * sine);",
        "rope",
    ),
    Mutant(
        "a product fused into a sum",
        "numerics.h",
        "  float product = a * b;\n  return product + c;",
        "  return fma(a, b, c);",
        "attention_f16",
    ),
    Mutant(
        "one key too many",
        "attention.metal",
        "params.position + group.y + 1;",
        "params.position + group.y + 2;",
        "attention_i8",
        "differs|out of bounds",
    ),
    Mutant(
        "the sum of weights misses its correction",
        "attention.metal",
        "        sum = sum * correction;\n",
        "",
        "attention_f32",
    ),
    Mutant(
        "equal logits out of order",
        "top_k.metal",
        "other.value && index < other.index",
        "other.value && index > other.index",
        "top_k",
    ),
]


def plant(mutant: Mutant, folder: Path) -> Simulator:
    shaders = folder / "metal"
    shutil.copytree(SHADERS, shaders, ignore=shutil.ignore_patterns("__pycache__"))
    text = (shaders / mutant.file).read_text()
    assert text.count(mutant.old) >= 1, f"{mutant.name}: the text to replace is gone"
    (shaders / mutant.file).write_text(text.replace(mutant.old, mutant.new))
    unit = shader_library.kernels()[mutant.kernel].file
    return Simulator(build(folder / "build", shaders=shaders, files=[unit]), shaders)


def find(simulator: Simulator, kernel: str) -> str:
    """The first complaint about a kernel, empty when there is none."""
    for index in range(60):
        case = CASES[kernel](np.random.default_rng([index, 7]))
        try:
            check(simulator, case, SCHEDULES[index % 3], index)
        except AssertionError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_planted_bug_is_found(mutant: Mutant, tmp_path: Path, compiler: str):
    complaint = find(plant(mutant, tmp_path), mutant.kernel)
    assert complaint, mutant.name
    assert any(kind in complaint for kind in mutant.fault.split("|")), complaint


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_race_is_found_in_every_schedule(schedule: str, tmp_path: Path, compiler: str):
    """Results alone would not do: in reverse order the gemv without its barrier is right."""
    simulator = plant(next(m for m in MUTANTS if m.name == "missing barrier"), tmp_path)
    case = cases.ternary(np.random.default_rng(0), "ternary_gemv", 16, 64, 1)
    with pytest.raises(AssertionError, match="race|uninitialised"):
        check(simulator, case, schedule, 0)
