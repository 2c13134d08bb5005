# SPDX-License-Identifier: MIT
"""Reads the compiled ternary and attention kernels: no inner loop keeps a vector on the stack.

Compilers spill accumulators for slight causes, at a third of the speed, and no result shows it.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, require_tool

CORE = ROOT / "cython_kernels"
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno"]


@dataclass(frozen=True)
class Target:
    """One way to compile, and what its assembly looks like."""

    compiler: str
    folder: str
    objdump: str
    multiply: str  # the instructions of the inner loops
    spill: str  # a vector register and the stack in one instruction

    def __str__(self) -> str:
        return self.compiler


X86_MULTIPLY, X86_SPILL = r"vpmaddubsw|vpdpbusd|vmulps", r"(?=.*[xyz]mm)(?=.*\(%r[sb]p)"
ARM_MULTIPLY, ARM_SPILL = r"smlal|sdot|smmla|fmul", r"(?=.*\b[qv]\d)(?=.*\[(sp|x29))"
TARGETS = [
    Target("aarch64-linux-gnu-gcc", "arm", "aarch64-linux-gnu-objdump", ARM_MULTIPLY, ARM_SPILL)
]
if platform.machine() == "x86_64":
    TARGETS += [Target(cc, "x86", "objdump", X86_MULTIPLY, X86_SPILL) for cc in ("gcc", "clang")]


def tool(name: str) -> str:
    return require_tool(shutil.which(name), name)


def functions(listing: str) -> Iterator[tuple[str, dict[int, str]]]:
    """Yield each function of a disassembly: its name, and address -> instruction."""
    for part in re.split(r"^[0-9a-f]+ <(?=.*>:$)", listing, flags=re.M)[1:]:
        name, _, body = part.partition(">:\n")
        lines = re.findall(r"^ *([0-9a-f]+):\s+(\S.*)$", body, re.M)
        yield name, {int(address, 16): text for address, text in lines}


def inner_loops(code: dict[int, str]) -> Iterator[list[str]]:
    """Yield the loops that contain no other loop and no call, as lists of instructions."""
    jump = re.compile(r"(?:j\w+|b\.\w+|cbn?z\s+\w+,|tbn?z.*,)\s*([0-9a-f]+) <")
    loops = []
    for address, text in code.items():
        match = jump.match(text)
        if match and (target := int(match[1], 16)) <= address and target in code:
            loops.append((target, address))
    for first, last in loops:
        nested = any(first <= f and end <= last and (f, end) != (first, last) for f, end in loops)
        body = [text for address, text in code.items() if first <= address <= last]
        if not nested and not any(re.match(r"call|blr?\s", text) for text in body):
            yield body


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_no_inner_loop_uses_the_stack(target: Target, tmp_path: Path) -> None:
    compiler, objdump = tool(target.compiler), tool(target.objdump)
    seen = {"ternary": 0, "attention": 0}
    for source in sorted((CORE / target.folder).glob("*_*.c")):
        family = source.name.split("_")[0]
        # clang keeps constants of exp and of int4 on the stack in attention.
        if family not in seen or (family == "attention" and target.compiler == "clang"):
            continue
        output = tmp_path / f"{source.stem}.o"
        includes = [f"-I{CORE / 'include'}", f"-I{CORE}"]
        subprocess.run(
            [compiler, *FLAGS, *includes, "-c", str(source), "-o", str(output)], check=True
        )
        listing = subprocess.run(
            [objdump, "-d", "--no-show-raw-insn", str(output)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name, code in functions(listing):
            for body in inner_loops(code):
                if sum(bool(re.match(target.multiply, text)) for text in body) < 8:
                    continue
                seen[family] += 1
                if name.endswith("_I4"):  # its constants are too many for AVX2's registers
                    continue
                spills = [text for text in body if re.match(target.spill, text)]
                assert not spills, f"{source.name}, {name}: {spills}"
    assert seen["ternary"] >= 6, "the inner loops were not recognised"
    assert seen["attention"] >= 6 or target.compiler == "clang"
