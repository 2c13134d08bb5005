# SPDX-License-Identifier: MIT
"""No file whatsoever may crash the process: damaged files through the whole runtime, with the C
core built for AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import bitnet_edge
from bitnet_edge.dtypes import DType
from tests.conftest import ROOT, require_tool
from tests.graphs import GraphBuilder, decoder

MUTATIONS = 10_000
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `import bitnet_edge` gives the sanitized engine."""
    gcc = require_tool(shutil.which("gcc"), "gcc")
    folder = tmp_path_factory.mktemp("sanitized")
    package = folder / "bitnet_edge"
    package.mkdir()
    for path in (ROOT / "bitnet_edge").iterdir():
        if path.suffix != ".so" and path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    kernels = ROOT / "cython_kernels"
    c_file = folder / "_engine.c"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "cython",
            "-3",
            "-I",
            kernels,
            kernels / "_engine.pyx",
            "-o",
            c_file,
        ],
        check=True,
    )
    folders = ["engine", "scalar"]
    folders += ["x86"] if os.uname().machine == "x86_64" else ["arm"]
    sources = sorted(path for name in folders for path in (kernels / name).glob("*.c"))
    extension = package / f"_engine{sysconfig.get_config_var('EXT_SUFFIX')}"
    python = sysconfig.get_paths()["include"]
    subprocess.run(
        [gcc, "-shared", "-fPIC", "-O1", "-g", "-std=gnu11", "-ffp-contract=off", *SANITIZE]
        + [f"-I{kernels}", f"-I{kernels / 'include'}", f"-I{python}", c_file, *sources]
        + ["-o", extension, "-lpthread"],
        check=True,
    )
    libraries = [
        subprocess.run(
            [gcc, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    return os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": " ".join(libraries),
        # Python itself leaks at exit; a hostile size must fail as malloc does, not abort
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_abort=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def run(environment: dict[str, str], *arguments: object) -> str:
    # -S -E would lose PYTHONPATH; -I -c puts the sanitized package before the installed one
    prelude = (
        f"import sys; sys.path.insert(0, {environment['PYTHONPATH']!r}); sys.meta_path[:] = "
        "[f for f in sys.meta_path if 'Scikit' not in type(f).__name__]; "
        "import bitnet_edge._engine as e; "
        f"assert e.__file__.startswith({environment['PYTHONPATH']!r}), e.__file__; "
        f"import runpy; sys.argv = {['mutate', *map(str, arguments)]!r}; "
        f"runpy.run_path({str(ROOT / 'tests/fuzz/mutate_bte.py')!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", prelude],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result.stdout


def test_the_sanitizers_would_report(sanitized):
    over_read = "import ctypes; b = (ctypes.c_char * 100)(); ctypes.string_at(b, 200)"
    result = subprocess.run(
        [sys.executable, "-c", over_read],
        env=sanitized,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr


@pytest.fixture(scope="module")
def small_bte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every instruction, ragged sizes, small tensors: most mutations hit structure."""
    path = tmp_path_factory.mktemp("fuzz") / "small.bte"
    bitnet_edge.export(decoder(layers=1), out=path, prefill_chunk=8)
    return path


@pytest.fixture(scope="module")
def head_bte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one quantised table for embedding and head."""
    path = tmp_path_factory.mktemp("fuzz") / "head.bte"
    bitnet_edge.export(decoder(layers=1, tied=True), out=path, prefill_chunk=8, head_dtype="int4")
    return path


@pytest.fixture(scope="module")
def screened_bte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that is screened, by codes and bounds beside it."""
    path = tmp_path_factory.mktemp("fuzz") / "screened.bte"
    source = decoder(layers=1, tied=True, bias=False)
    bitnet_edge.export(source, out=path, prefill_chunk=8, head_dtype="screened-int8")
    return path


@pytest.fixture(scope="module")
def scaled_bte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ternary linears with scales for rows and for groups of columns, biases, several tokens."""
    path = tmp_path_factory.mktemp("fuzz") / "scaled.bte"
    b = GraphBuilder()
    x = b.input("x", 96)
    y = b.scaled_ternary("groups", x, 70, 3, DType.F16, bias=True)
    z = b.scaled_ternary("rows", x, 70, 1)
    y = b.scaled_ternary("ragged", b.node("add", "sum", (y, z), 70), 33, 1, DType.F16)
    bitnet_edge.export(b.source(["x"], [y]), out=path, prefill_chunk=70)
    return path


@pytest.fixture(scope="module")
def endless_bte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A window over a ring of the KV cache, weights streamed."""
    path = tmp_path_factory.mktemp("fuzz") / "endless.bte"
    bitnet_edge.export(
        decoder(layers=1), out=path, prefill_chunk=8, window=20, sinks=2, residency="streamed"
    )
    return path


def test_every_truncation_ends_in_a_typed_error(bte, small_bte, sanitized, capsys):
    for path in (bte, small_bte):
        out = run(sanitized, path, "truncations")
        with capsys.disabled():
            print(f"\n  {out.strip()}")
        assert int(out.split()[0]) > 30


@pytest.mark.parametrize(
    "which", ["bte", "small_bte", "head_bte", "screened_bte", "scaled_bte", "endless_bte"]
)
def test_mutations_end_in_a_typed_error_or_a_correct_run(which, sanitized, request, capsys):
    path = request.getfixturevalue(which)
    out = run(sanitized, path, "mutations", 20261124, MUTATIONS)
    with capsys.disabled():
        print(f"\n  {out.strip()}")
    counts = dict(re.findall(r"'(\w+)': (\d+)", out))
    assert sum(map(int, counts.values())) == MUTATIONS
    # The mutations must reach deep: many programs refused by the verifier, many files that run.
    assert int(counts["InvalidProgram"]) > MUTATIONS // 20
    assert int(counts["ran"]) > MUTATIONS // 20
