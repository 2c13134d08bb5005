# SPDX-License-Identifier: MIT
"""Builds tests/kernel_check and runs it: natively, under sanitizers, and emulated ARM.

A missing tool skips the test by name on a developer's machine and fails it where ``CI=true``.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, require_tool

SOURCE = ROOT / "tests" / "kernel_check"
TABLE = ROOT / "cython_kernels" / "include" / "kernel_table.def"
CLOSING_LINE = re.compile(r"^(\d+) checks passed, (\d+) failed$")


def tool(name: str) -> str:
    """Return the path of a program, also from beside the running Python."""
    beside = str(Path(sys.executable).parent)
    return require_tool(shutil.which(name) or shutil.which(name, path=beside), name)


def build(directory: Path, compiler: str, *options: str) -> Path:
    """Configure and build kernel_check; return the program."""
    cmake, ninja = tool("cmake"), tool("ninja")
    configure = [cmake, "-S", str(SOURCE), "-B", str(directory), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_C_COMPILER={tool(compiler)}"]
    for command in ([*configure, *options], [cmake, "--build", str(directory)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return directory / "kernel_check"


def check(*command: str | Path) -> str:
    """Run kernel_check, require success, return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    closing = CLOSING_LINE.match(done.stdout.splitlines()[-1])
    assert closing is not None
    assert int(closing[1]) > 100
    assert int(closing[2]) == 0
    return done.stdout


def isas_in(output: str) -> set[str]:
    """Return the instruction sets that took part, from the lines ``kernel isa N passed``."""
    return {m[1] for m in re.finditer(r"^[a-z]\w+ +(\w+) +\d+ passed$", output, re.M)} - {
        "variants"
    }


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build with the system's gcc, optimised as in a release."""
    return build(tmp_path_factory.mktemp("native"), "gcc")


def test_native(native: Path) -> None:
    """Every kernel of every instruction set of this CPU equals the scalar one, to the bit."""
    isas = isas_in(check(native))
    listed = subprocess.run(
        [str(native), "--list"], capture_output=True, text=True, check=True
    ).stdout
    assert isas == set(re.findall(r"^(\w+) +native", listed, re.M))
    print("checked:", *sorted(isas))


def test_seed_is_repeatable(native: Path) -> None:
    command = [str(native), "--quick", "--kernel", "add", "--seed", "7"]
    first, second = (subprocess.run(command, capture_output=True, check=True) for _ in range(2))
    assert first.stdout == second.stdout
    assert first.stdout.startswith(b"seed 7\n")


def test_force(native: Path) -> None:
    """A forced set is the only one that runs."""
    assert isas_in(check(native, "--quick", "--force", "scalar")) == {"scalar"}


@pytest.mark.parametrize("arguments", [["--force", "mmx"], ["--seed", "x"], ["--frobnicate"]])
def test_wrong_usage(native: Path, arguments: list[str]) -> None:
    done = subprocess.run([native, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_bench_json(native: Path) -> None:
    command = [str(native), "--bench", "--json", "--quick", "--kernel", "add_f32"]
    rows = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert {row["isa"] for row in rows} >= {"scalar"}
    assert all(row["ns"] > 0 and row["gb_per_s"] > 0 for row in rows)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sanitizers(tmp_path: Path, compiler: str) -> None:
    """No address or undefined-behaviour error; kernels that fault are reported by name."""
    program = build(tmp_path, compiler, "-DKC_SANITIZE=address,undefined")
    check(program, "--quick")


def test_clang(tmp_path: Path) -> None:
    check(build(tmp_path, "clang"))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the x86 kernels through SIMDe, for any x86-64 CPU."""
    if platform.machine() != "x86_64":
        pytest.skip("SIMDe emulates x86 on x86 here")
    header = "simde/x86/avx512.h"
    require_tool(header if (Path("/usr/include") / header).exists() else None, "libsimde-dev")
    options = ["-DKC_EMULATE=ON", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_C_FLAGS=-O1"]
    return build(tmp_path_factory.mktemp("emulated"), "gcc", *options)


def test_emulated_x86(emulated: Path) -> None:
    """Every x86 kernel, AVX-512's too, equals the scalar one on a CPU that has none of the sets."""
    output = check(emulated)
    ways = dict(re.findall(r"^(\w+) +(native|emulated \(SIMDe\))$", output, re.M))
    sets = {"avx2", "avx_vnni", "avx512_vnni"}
    assert ways == {"scalar": "native", **dict.fromkeys(sets, "emulated (SIMDe)")}
    assert isas_in(output) == {"scalar", *sets}
    variants = re.findall(r"^BE_VARIANT\((avx\w*), (\w+)\)", TABLE.read_text(), re.M)
    checked = re.findall(r"^(\w+) +(avx\w+) +\d+ passed$", output, re.M)
    assert {(kernel, isa) for isa, kernel in variants} == set(checked)


def test_emulation_is_no_avx(emulated: Path, native: Path) -> None:
    """The emulated program holds no AVX instruction, which the native one is full of."""
    for program, has_avx in ((native, True), (emulated, False)):
        command = [tool("objdump"), "-d", "--no-show-raw-insn", str(program)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "<attention_f32_avx512_vnni>:" in listing
        wide = re.search(r"%[yz]mm|%k[0-7]|^ *[0-9a-f]+:\s+v(?!err|erw)\w+ ", listing, re.M)
        assert (wide is not None) is has_avx, wide


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cross-build for 64-bit ARM, statically."""
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DKC_STATIC=ON"]
    return build(tmp_path_factory.mktemp("arm64"), "aarch64-linux-gnu-gcc", *options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "isas"),
    [
        ("cortex-a53", {"scalar", "neon"}),  # an illegal instruction would show here
        ("cortex-a76", {"scalar", "neon", "dotprod"}),
        ("max", {"scalar", "neon", "dotprod", "i8mm"}),
    ],
)
def test_arm64(arm64: Path, cpu: str, isas: set[str]) -> None:
    emulator = tool("qemu-aarch64-static")
    listed = subprocess.run(
        [emulator, "-cpu", cpu, arm64, "--list"], capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^(\w+) +native", listed, re.M)) == isas
    check(emulator, "-cpu", cpu, arm64, "--quick")


@pytest.mark.slow
def test_arm32(tmp_path: Path) -> None:
    """32-bit NEON, which flushes denormals: kernel_check knows and keeps away from them."""
    program = build(
        tmp_path,
        "arm-linux-gnueabihf-gcc",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=armv7",
        "-DCMAKE_C_FLAGS=-march=armv7-a -mfpu=neon -mfloat-abi=hard",
        "-DKC_STATIC=ON",
    )
    output = check(tool("qemu-arm-static"), "-cpu", "cortex-a15", program, "--quick")
    assert isas_in(output) == {"scalar", "neon"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 names")
def test_mask_is_raised_one_set_at_a_time(native: Path) -> None:
    """Each instruction set of the CPU brings kernels of its own into the check."""
    output = check(native, "--quick", "--kernel", "ternary_gemv_i8")
    kernels = re.findall(r"^ternary_gemv_i8 +(\w+)", output, re.M)
    assert kernels[0] == "scalar"
    assert len(kernels) == len(set(kernels))
