# SPDX-License-Identifier: MIT
"""Sharing a phase's items: natively, under the thread sanitizer, and as arm code in qemu."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, require_tool
from tests.unit.test_engine_c import fixed_addresses

BUILDS = {
    "native": (["gcc", "-O3"], []),
    "tsan": (["gcc", "-O1", "-g", "-fsanitize=thread"], None),
    "aarch64": (["aarch64-linux-gnu-gcc", "-O3", "-static"], ["qemu-aarch64-static"]),
    "arm": (["arm-linux-gnueabihf-gcc", "-O3", "-static"], ["qemu-arm-static"]),
}


@pytest.mark.parametrize("build", BUILDS)
def test_every_item_is_taken_once(tmp_path: Path, build: str) -> None:
    compiler, runner = BUILDS[build]
    require_tool(shutil.which(compiler[0]), compiler[0])
    program = tmp_path / "test_work_share"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{ROOT}/cython_kernels"]
    source = Path(__file__).parent / "c" / "test_work_share.c"
    subprocess.run([*compiler, *flags, str(source), "-o", str(program)], check=True)
    command = [*(fixed_addresses() if runner is None else runner), str(program)]
    require_tool(shutil.which(command[0]), command[0])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("0 failures, ")
