# SPDX-License-Identifier: MIT
"""The C core compiles without a warning for platforms that are not at hand, with zig's clang.

Code is generated, not only parsed: clang checks target attributes, register constraints and inline
assembly no earlier. Nothing is linked, and nothing runs.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT, require_tool

CORE = ROOT / "cython_kernels"
FLAGS = ["-std=gnu11", "-O0", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fPIC"]

# zig brings headers of glibc, musl, macOS, mingw-w64 and WASI. Those of iOS and Android are not
# free to copy; macOS's and musl's stand in, so that at least the compiler's side is true.
DARWIN = ["any-darwin-any"]
MUSL = ["aarch64-linux-musl", "generic-musl", "aarch64-linux-any", "any-linux-any"]

# target: family of kernels beside the scalar ones, headers that stand in, further flags
TARGETS: dict[str, tuple[str | None, list[str], list[str]]] = {
    "aarch64-macos": ("arm", [], []),
    "x86_64-macos": ("x86", [], []),
    "aarch64-ios": (None, DARWIN, []),  # the kernels are those of macOS
    "aarch64-linux-android": ("arm", MUSL, []),
    "x86_64-windows-gnu": ("x86", [], []),
    "aarch64-windows-gnu": ("arm", [], []),
    "riscv64-linux-musl": (None, [], []),
    "x86-linux-musl": (None, [], []),
    "arm-linux-gnueabihf": (None, [], ["-mcpu=cortex_a9-neon"]),
    "wasm32-wasi": (None, [], ["-msimd128"]),
}


@pytest.fixture(scope="module")
def zig() -> Path:
    """The program, in the folder of its Python package, beside its headers."""
    spec = importlib.util.find_spec("ziglang")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    return Path(require_tool(shutil.which("zig", path=folder), "ziglang"))


@pytest.mark.parametrize("target", TARGETS)
def test_core_compiles(target: str, zig: Path, tmp_path: Path) -> None:
    family, headers, flags = TARGETS[target]
    folders = ["engine", "scalar", *([family] if family else [])]
    sources = [path for folder in folders for path in sorted((CORE / folder).glob("*.c"))]
    assert len(sources) > 20
    command = [zig, "cc", "-target", target, *FLAGS, *flags, f"-I{CORE / 'include'}", f"-I{CORE}"]
    for folder in headers:
        command += ["-isystem", zig.parent / "lib" / "libc" / "include" / folder]

    def compile_one(source: Path) -> tuple[str, str]:
        name = source.relative_to(CORE).as_posix()
        out = tmp_path / f"{source.parent.name}-{source.stem}.o"
        done = subprocess.run(
            [*command, "-c", source, "-o", out], capture_output=True, text=True, check=False
        )
        return name, done.stderr if done.returncode else ""

    with ThreadPoolExecutor(2) as pool:
        failed = {name: text for name, text in pool.map(compile_one, sources) if text}
    assert not failed, "\n".join(text[:2000] for text in failed.values())
