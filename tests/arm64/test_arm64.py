# SPDX-License-Identifier: MIT
"""The whole package on 64-bit ARM, emulated: the wheel, Python, the Cython face, NEON kernels.

What it writes and says must equal what this machine writes and says, to the bit. `.ci/arm64` makes
the emulated Python; that takes a minute the first time and some ten seconds later.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge.cli import main
from tests.conftest import GOLDEN, LAYOUTS, ROOT, checkpoint, require_tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="qemu's user mode emulation is Linux's"),
]

SCRIPT = Path(__file__).with_name("golden_text.py")
# pauth-impdef: pointer authentication by a cheap hash instead of the architecture's cipher.
CPUS = {
    "cortex-a53": ("neon",),
    "cortex-a76": ("neon", "dotprod"),
    "max,pauth-impdef=on": ("neon", "dotprod", "i8mm"),
}
Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the wheel (dist/), its environment (venv/) and the emulated Python."""
    script = ROOT / ".ci" / "arm64"
    require_tool("here" if script.exists() else None, ".ci/arm64, no part of an sdist,")
    beside = Path(sys.executable).parent
    path = f"{beside}{os.pathsep}{os.environ['PATH']}"
    for name in ("mmdebstrap", "qemu-aarch64-static", "aarch64-linux-gnu-gcc", "cmake", "ninja"):
        require_tool(shutil.which(name, path=path), name)
    for name in ("scikit_build_core", "Cython"):
        require_tool("here" if importlib.util.find_spec(name) else None, name)
    out = tmp_path_factory.mktemp("arm64")
    made = subprocess.run(
        [script, out, sys.executable],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if made.returncode == 3:  # the script's way to say so
        require_tool(None, made.stderr.strip())
    assert made.returncode == 0, made.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def emulated(folder: Path) -> Run:
    """Run the emulated Python, on the default CPU of `.ci/arm64` or another one."""

    def run(*arguments: object, cpu: str = "cortex-a76") -> str:
        command = [str(folder / "python"), "-W", "error", *map(str, arguments)]
        env = {"PATH": os.environ["PATH"], "QEMU_CPU": cpu}
        return output(command, folder, env)

    return run


def output(command: list[str], folder: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def native(folder: Path) -> Run:
    return lambda *arguments: output([sys.executable, *map(str, arguments)], folder)


def test_wheel(folder: Path, emulated: Run) -> None:
    """Its name is what pip on such a machine wants, its content what every wheel has."""
    (wheel,) = (folder / "dist").iterdir()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.endswith(f"-{python}-{python}-linux_aarch64.whl")
    assert "bitnet_edge" in emulated(ROOT / "tests" / "check_wheel.py", wheel)


@pytest.mark.parametrize("cpu", CPUS)
def test_each_cpu_is_served_by_its_best_kernels(cpu: str, emulated: Run, folder: Path) -> None:
    table = (ROOT / "cython_kernels" / "include" / "kernel_table.def").read_text()
    best = dict.fromkeys(re.findall(r"^BE_KERNEL\((\w+),", table, re.M), "scalar")
    for isa, kernel in re.findall(r"^BE_VARIANT\((\w+), (\w+)\)", table, re.M):
        if isa in CPUS[cpu]:
            best[kernel] = isa  # a later row wins
    info = json.loads(emulated(folder / "venv" / "bin" / "bitnet-edge", "info", "--json", cpu=cpu))
    assert info["machine"] == "aarch64"
    assert tuple(info["instruction_sets"]) == ("scalar", *CPUS[cpu])
    assert info["kernels"] == best
    assert set(best.values()) - {"scalar"} == set(CPUS[cpu])


@pytest.mark.parametrize("head", ["stored", "screened-int4", "screened-int8"])
@pytest.mark.parametrize("cpu", CPUS)
def test_golden_text(cpu: str, head: str, emulated: Run, native: Run, folder: Path) -> None:
    """Logits, greedy and seeded text of a model exported here, equal to the bit."""
    bte = folder / f"{head}.bte"
    bitnet_edge.export(checkpoint("packed"), out=bte, head_dtype=head, force=True)
    ids = folder / "ids.json"
    with np.load(GOLDEN / "reference.npz") as data:
        ids.write_text(json.dumps(data["packed/3/greedy"].tolist()))
    there = json.loads(emulated(SCRIPT, bte, ids, cpu=cpu))
    assert there["machine"] == "aarch64"
    assert there["said"] == json.loads(native(SCRIPT, bte, ids))["said"]
    assert (there["said"]["greedy, exact rows"] is None) == (head == "stored")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_gives_the_same_file(
    layout: str, emulated: Run, exported: dict[str, Path], folder: Path
) -> None:
    out = folder / f"{layout}.bte"
    emulated("-m", "bitnet_edge.cli", "export", checkpoint(layout), "--out", out)
    assert out.read_bytes() == exported[layout].read_bytes()


def test_generate_command(emulated: Run, native: Run, bte: Path) -> None:
    command = ["-m", "bitnet_edge.cli", "generate", bte, "ROMEO:", "--json"]
    command += ["--max-tokens", 24, "--temperature", 0.7, "--seed", 7]
    there, here = json.loads(emulated(*command)), json.loads(native(*command))
    assert there["new_tokens"] == 24
    assert (there["text"], there["token_ids"]) == (here["text"], here["token_ids"])


def test_validate_command(emulated: Run, bte: Path, folder: Path) -> None:
    """Golden outputs made here, checked there: by the reference's and by NEON's arithmetic.

    The memory of an emulated process is its emulator's, so that is left out; a board measures it.
    """
    golden = folder / "golden.json"
    assert main(["validate", str(bte), "--skip", "numerics", "--save-golden", str(golden)]) == 0
    command = ["-m", "bitnet_edge.cli", "validate", bte, "--device", "raspberry-pi-5", "--json"]
    command += ["--golden", golden, "--skip", "memory", "--skip", "speed"]
    report = json.loads(emulated(*command))
    found = {check["name"]: check["status"] for check in report["checks"]}
    names = ("structure", "isa", "budget", "checksums", "reference", "scalar", "prefill", "threads")
    assert found == {"memory": "skip", "speed": "skip", **dict.fromkeys([*names, "golden"], "pass")}
    assert {"dotprod", "neon"} <= set(report["machine"]["kernels"])
