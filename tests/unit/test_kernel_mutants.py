# SPDX-License-Identifier: MIT
"""Plants bugs in the kernels and expects tests/kernel_check to find every one.

A mutant is a text substitution in one file. All sources are compiled once; for a mutant only the
files that contain the change are compiled again and linked with the rest.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, require_tool

CORE = ROOT / "cython_kernels"
CHECK = ROOT / "tests" / "kernel_check"
FLAGS = ["-std=gnu11", "-O1", "-ffp-contract=off", "-fno-math-errno"]


@dataclass(frozen=True)
class Mutant:
    """One planted bug: ``old`` becomes ``new`` in ``file``; ``kernel`` must then fail."""

    name: str
    file: str
    old: str
    new: str
    kernel: str
    units: tuple[str, ...] = ()  # to compile again where `file` is a header

    def __str__(self) -> str:
        return self.name


PORTABLE = [
    Mutant(
        "half rounds ties up",
        "scalar/half.h",
        "(rest == half && (result & 1))",
        "rest == half",
        "f32_to_f16",
        ("scalar/convert.c",),
    ),
    Mutant(
        "dispatch ignores the mask",
        "engine/dispatch.c",
        "if (mask >> BE_ISA_##set & 1)",
        "if (mask)",
        "add_f32",
    ),
    Mutant(
        "rope writes before it reads",
        "scalar/rope.c",
        "y[i + half] = b * cos[i] + a * sin[i];",
        "y[i + half] = b * cos[i] + x[i] * sin[i];",
        "rope_f32",
    ),
    Mutant(
        "exp loses a coefficient's digits",
        "scalar/exp.h",
        "1.6666665459e-1f",
        "1.6667e-1f",
        "exp_f32",
        ("scalar/exp.c",),
    ),
]

AVX2 = [
    Mutant(
        "wrong shift",
        "x86/ternary_gemv_i8_avx2.c",
        "_mm256_srli_epi16(u, 4)",
        "_mm256_srli_epi16(u, 2)",
        "ternary_gemv_i8",
    ),
    Mutant(
        "high sums folded one block late",
        "x86/ternary_gemv_i8_avx2.c",
        "H_BLOCKS = 8",
        "H_BLOCKS = 9",
        "ternary_gemv_i8",
    ),
    Mutant(
        "low sums widened one block late",
        "x86/ternary_gemv_i8_avx2.c",
        "L_BLOCKS = 16",
        "L_BLOCKS = 17",
        "ternary_gemv_i8",
    ),
    Mutant(
        "gemm widened one block late",
        "x86/ternary_gemm_i8_avx2.c",
        "CHUNK_BLOCKS = 16",
        "CHUNK_BLOCKS = 17",
        "ternary_gemm_i8",
    ),
    Mutant(
        "dropped bias",
        "x86/ternary_gemv_i8_avx2.c",
        "_mm256_set1_epi32((int32_t)(0u - (uint32_t)q_sum))",
        "_mm256_setzero_si256()",
        "ternary_gemv_i8",
    ),
    Mutant(
        "wrong row of q in a ragged group",
        "x86/ternary_gemm_i8_avx2.c",
        "be_broadcast4(q + 4 * f + 2 * q_stride)",
        "be_broadcast4(q + 4 * f + q_stride)",
        "ternary_gemm_i8",
    ),
    Mutant(
        "over-read of a tail",
        "x86/quantize_i8_avx2.c",
        "be_load16_partial(x, whole, rest, BE_FORMAT_F32)",
        "be_load16(x, whole, BE_FORMAT_F32)",
        "quantize_i8",
    ),
    Mutant(
        "store past the end",
        "x86/exp_avx2.c",
        "i + 8 <= n",
        "i + 4 <= n",
        "exp_f32",
    ),
    Mutant(
        "missing tail",
        "x86/add_avx2.c",
        "for (; i < n; i++)",
        "for (; i + 8 < n; i++)",
        "add_f32",
    ),
    Mutant(
        "wrong lane order",
        "x86/avx2.h",
        "_mm_movehl_ps(t4, t4)",
        "_mm_shuffle_ps(t4, t4, 0xb1)",
        "rms_norm_f32",
        ("x86/rms_norm_avx2.c",),
    ),
    Mutant(
        "truncation instead of rounding",
        "x86/quantize_avx2.h",
        "_mm256_cvtps_epi32",
        "_mm256_cvttps_epi32",
        "quantize_i8",
        ("x86/quantize_i8_avx2.c",),
    ),
    Mutant(
        "NaN not cleared",
        "x86/quantize_avx2.h",
        "_mm256_cmp_ps(v, v, _CMP_ORD_Q)",
        "_mm256_castsi256_ps(_mm256_set1_epi32(-1))",
        "quantize_i8",
        ("x86/quantize_i8_avx2.c",),
    ),
    Mutant(
        "reciprocal instead of division",
        "x86/dequantize_avx2.c",
        "_mm256_div_ps(value, divisor)",
        "_mm256_mul_ps(value, _mm256_div_ps(_mm256_set1_ps(1.0f), divisor))",
        "dequantize_f32",
    ),
    Mutant(
        "weights of earlier keys not rescaled",
        "scalar/attention_tiles.h",
        "store16(sum, multiply16(load16(sum), c));",
        "",
        "attention_f32",
        ("x86/attention_avx2.c",),
    ),
    Mutant(
        "keys behind the last one counted",
        "scalar/attention_tiles.h",
        "j % BE_LANES != 0; j++)\n    s[j] = -INFINITY;",
        "j % BE_LANES != 0; j++)\n    s[j] = 0;",
        "attention_f16",
        ("x86/attention_avx2.c",),
    ),
    Mutant(
        "a tile's tokens see what its first one sees",
        "scalar/attention_tiles.h",
        "a->position + (first + i) / a->n_heads",
        "a->position + first / a->n_heads",
        "attention_f16",
        ("x86/attention_avx2.c",),
    ),
    Mutant(
        "last query of a tile left out",
        "scalar/attention_tiles.h",
        "i < t->n; i += queries",
        "i + 1 < t->n; i += queries",
        "attention_i8",
        ("x86/attention_avx2.c",),
    ),
    Mutant(
        "keys that not all of a group see left out",
        "scalar/attention_tiles.h",
        "if (t->keys[h].high > all.high)",
        "if (t->keys[h].high > all.high + 1)",
        "attention_i4",
        ("x86/attention_avx2.c",),
    ),
    Mutant(
        "queries of the segment before kept",
        "scalar/attention_tiles.h",
        "memcpy(t->q + i * t->width, s->q + query_at(a, first + i)",
        "memcpy(t->q + i * t->width, a->segments->q + query_at(a, first + i)",
        "attention_f32",
        ("x86/attention_avx2.c",),
    ),
    Mutant(
        "top nibble with a sign",
        "x86/head_gemv_avx2.c",
        "_mm256_srli_epi16(u, 12)",
        "_mm256_srai_epi16(u, 12)",
        "head_gemv_i4",
    ),
    Mutant(
        "scale of the other group",
        "x86/head_gemv_avx2.c",
        "*scales = block + g % 2 * 32",
        "*scales = block",
        "head_gemv_i4",
    ),
    Mutant(
        "last columns of a head left out",
        "x86/head_gemv_avx2.c",
        "i < k; i += BE_I8_BLOCK_K",
        "i + 3 < k; i += BE_I8_BLOCK_K",
        "head_gemv_i8",
    ),
    Mutant(
        "activations clamped to int8",
        "x86/quantize_i16_avx2.c",
        "_mm256_min_ps(v, limit)",
        "_mm256_min_ps(v, _mm256_set1_ps(127.0f))",
        "quantize_i16",
    ),
]

MUTANTS = PORTABLE + (AVX2 if platform.machine() == "x86_64" else [])


def sources() -> list[Path]:
    """Return every file of kernel_check and of the kernels for this machine."""
    arch = {"x86_64": ["x86"], "aarch64": ["arm"]}.get(platform.machine(), [])
    files = [CORE / "engine" / "cpu_detect.c", CORE / "engine" / "dispatch.c"]
    for folder in [CHECK, CORE / "scalar", *(CORE / name for name in arch)]:
        files += sorted(folder.glob("*.c"))
    return files


def compile_unit(source: Path, output: Path, *first_includes: Path) -> None:
    includes = [f"-I{path}" for path in [*first_includes, CORE / "include", CORE, CHECK]]
    command = [gcc(), *FLAGS, *includes, "-c", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def gcc() -> str:
    return require_tool(shutil.which("gcc"), "gcc")


def link_and_run(objects: list[Path], program: Path, kernel: str) -> tuple[int, str]:
    """Link, check one kernel with a fixed seed, return the exit code and what was printed."""
    subprocess.run([gcc(), *map(str, objects), "-lm", "-o", str(program)], check=True)
    command = [str(program), "--quick", "--seed", "1", "--kernel", kernel]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Compile everything unchanged: source -> object."""
    gcc()  # skip here, not in a thread
    folder = tmp_path_factory.mktemp("objects")
    built = {path: folder / f"{i}_{path.stem}.o" for i, path in enumerate(sources())}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_unit, built.keys(), built.values()))
    return built


def test_unchanged_kernels_pass(objects: dict[Path, Path], tmp_path: Path) -> None:
    code, output = link_and_run(list(objects.values()), tmp_path / "kernel_check", "")
    assert code == 0, output[-4000:]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_killed(mutant: Mutant, objects: dict[Path, Path], tmp_path: Path) -> None:
    original = (CORE / mutant.file).read_text()
    assert original.count(mutant.old) >= 1, f"nothing to change: {mutant.old!r} is gone"
    changed = tmp_path / mutant.file
    changed.parent.mkdir(parents=True)
    changed.write_text(original.replace(mutant.old, mutant.new))

    replaced = dict(objects)
    for unit in mutant.units or (mutant.file,):
        # A file looks for quoted headers beside itself first: compile a copy.
        source = tmp_path / unit
        if unit != mutant.file:
            source.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CORE / unit, source)
        replaced[CORE / unit] = tmp_path / f"{source.stem}.o"
        compile_unit(source, replaced[CORE / unit], tmp_path)

    code, output = link_and_run(list(replaced.values()), tmp_path / "kernel_check", mutant.kernel)
    assert code == 1, f"the mutant survived:\n{output[-4000:]}"
    failures = re.findall(r"^FAIL (\w+)", output, re.M)
    assert failures
    assert all(mutant.kernel in name or name.startswith("dispatch") for name in failures)
