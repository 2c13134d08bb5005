# SPDX-License-Identifier: MIT
"""The same launches under the compilers' own sanitizers, as a second opinion on the traces.

Address and undefined behaviour: buffers are heap blocks of their exact size, lanes are fibers.
Thread: every lane is an operating-system thread.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bitnet_edge.metal import shader_library
from tests.metal.cases import CASES
from tests.metal.checks import differences
from tests.metal.simulator import SCHEDULES, SHADERS, build, record
from tests.metal.test_mutants import MUTANTS


def replay(program: Path, recorded: bytes, folder: Path) -> subprocess.CompletedProcess[bytes]:
    path = folder / "launches"
    path.write_bytes(recorded)
    # Randomised addresses can fall where the thread sanitizer keeps its shadow.
    command = ["setarch", "-R", str(program), str(path)]
    options = {
        "ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
    }
    return subprocess.run(command, capture_output=True, env=os.environ | options, check=False)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sanitized")
    return {name: build(folder / name, name, compiler=compiler) for name in ("address", "thread")}


@pytest.mark.parametrize(("flavour", "shapes"), [("address", 12), ("thread", 2)])
def test_all_kernels_are_clean(programs, flavour, shapes, tmp_path):
    kernels = shader_library.kernels()
    launches = []
    for name in sorted(CASES):
        for index in range(shapes):
            case = CASES[name](np.random.default_rng([index, 11]))
            case.launch.schedule, case.launch.seed = SCHEDULES[index % 3], index
            launches.append(case)
    recorded = b"".join(record(case.launch, kernels[case.launch.kernel]) for case in launches)
    result = replay(programs[flavour], recorded, tmp_path)
    assert result.returncode == 0, result.stderr.decode()[:4000]
    at = 0
    for case in launches:
        for buffer in kernels[case.launch.kernel].buffers:
            if not buffer.writable:
                continue
            shape = case.launch.buffers[buffer.name]
            found = np.frombuffer(result.stdout[at : at + shape.nbytes], shape.dtype)
            at += shape.nbytes
            assert not differences(found, case.expected[buffer.name]).size, case.launch.kernel
    assert at == len(result.stdout)


@pytest.mark.parametrize(
    ("flavour", "mutant", "report"),
    [
        ("address", "over-read of the last block", "heap-buffer-overflow"),
        ("address", "ragged rows are written", "heap-buffer-overflow"),
        ("thread", "missing barrier", "data race"),
    ],
)
def test_a_sanitizer_names_the_line(flavour, mutant, report, tmp_path, compiler):
    planted = next(m for m in MUTANTS if m.name == mutant)
    shaders = tmp_path / "metal"
    shutil.copytree(SHADERS, shaders, ignore=shutil.ignore_patterns("__pycache__"))
    text = (shaders / planted.file).read_text()
    (shaders / planted.file).write_text(text.replace(planted.old, planted.new))
    program = build(tmp_path / "build", flavour, shaders, [planted.file], compiler)
    kernel = shader_library.kernels()[planted.kernel]
    cases = [CASES[planted.kernel](np.random.default_rng([i, 7])) for i in range(6)]
    result = replay(program, b"".join(record(c.launch, kernel) for c in cases), tmp_path)
    assert result.returncode != 0
    assert report in result.stderr.decode()
    assert f"{planted.file}:" in result.stderr.decode()
