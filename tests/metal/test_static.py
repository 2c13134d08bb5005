# SPDX-License-Identifier: MIT
"""What can be said of the shaders without running them: clang's C++ for OpenCL knows address spaces
and constant memory; a lint knows what Metal's compiler refuses beyond that."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bitnet_edge.metal import shader_library
from tests.conftest import require_tool
from tests.metal.simulator import HERE

COMMENT = re.compile(r"//[^\n]*")
# What MSL lacks, and what we do not want of it.
REFUSED = {
    "double": r"\bdouble\b",
    "long long": r"\blong\s+long\b",
    "goto": r"\bgoto\b",
    "a lambda": r"\[[&=]?\]\s*[({]",
    "virtual": r"\bvirtual\b",
    "new or delete": r"\b(new|delete)\b",
    "exceptions": r"\b(try|catch|throw)\b",
    "thread_local": r"\bthread_local\b",
    "the standard library": r"\bstd::|#include <(?!metal_)",
    "relaxed maths": r"\bfast::|\bfast_|\bnative_",
    "a pointer or reference without an address space": (
        r"(?:^|[({,;])\s*(?:const\s+)?"
        r"(?:float|half|char|uchar|short|ushort|int|uint|long|ulong)[234]?\s*(?:const\s*)?[*&]\s*\w"
    ),
}


def complaints(text: str) -> list[str]:
    """What the lint has against a source."""
    text = COMMENT.sub("", text)
    return [name for name, pattern in REFUSED.items() if re.search(pattern, text, re.MULTILINE)]


def front_end(text: str, folder: Path) -> str:
    """Errors of clang's C++ for OpenCL."""
    clang = require_tool(shutil.which("clang"), "clang")
    body = re.sub(r"#include <metal_\w+>", "", text)
    path = folder / "shader.clcpp"
    path.write_text('#include "opencl_stdlib.h"\n' + body)
    command = [clang, "-x", "clcpp", "-cl-std=clc++2021", "-target", "spir64", "-fsyntax-only"]
    command += ["-Xclang", "-finclude-default-header", "-Wno-c++11-narrowing"]
    command += ["-Wno-unknown-attributes", f"-I{HERE}"]
    result = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else ""


@pytest.mark.parametrize("file", shader_library.files())
def test_shaders_pass_the_lint_and_the_front_end(file, tmp_path):
    text = shader_library.source(file)
    assert not complaints(text)
    assert not front_end(text, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "device const uchar *w [[buffer(2)]]",
            "threadgroup uchar *w [[buffer(2)]]",
            "address space",
        ),
        ("const uint panel =", "params.rows = 1; const uint panel =", "const"),
        ("float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};", "float sum[params.rows];", "array size"),
        ("scaled[4 * f + c], sum)", "scaled[4 * f + c])", "no matching function"),
    ],
)
def test_the_front_end_finds_planted_errors(old, new, message, tmp_path):
    text = shader_library.source("ternary_gemv.metal")
    assert old in text
    assert message in front_end(text.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("double x = 0;", "double"),
        ("long long x;", "long long"),
        ("goto end;", "goto"),
        ("auto f = [&](int x) { return x; };", "a lambda"),
        ("auto f = [] { return 1; };", "a lambda"),
        ("float y = fast::exp(x);", "relaxed maths"),
        ("#include <math.h>", "the standard library"),
        ("float *p = q;", "a pointer or reference without an address space"),
        (
            "inline int f(const float &x) { return 1; }",
            "a pointer or reference without an address space",
        ),
    ],
)
def test_the_lint_finds_planted_errors(line, complaint):
    assert complaints(f"inline void f() {{\n  {line}\n}}\n") == [complaint]


def test_every_shader_states_formula_grid_traffic_and_roofline():
    for file in shader_library.files():
        text = (Path(shader_library.FOLDER) / file).read_text()
        header = text[: text.index("#include")]
        for word in ("// Grid ", "// Traffic ", "// Roofline "):
            assert word in header, f"{file} lacks {word}"


def test_contraction_is_off_in_every_shader():
    for file in shader_library.files():
        assert "#pragma STDC FP_CONTRACT OFF" in shader_library.source(file)
