# SPDX-License-Identifier: MIT
"""One environment holds every target: the extras resolve together, on each Python that has them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

tomllib = pytest.importorskip("tomllib", reason="of Python 3.11 and newer")
EXTRAS = ("export", "coreml", "litert", "onnx", "test")


def requirements(extra: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    for requirement in project["optional-dependencies"][extra]:
        own = re.fullmatch(r"bitnet-edge\[(.*)\]", requirement)
        names = own.group(1).split(",") if own else []
        found |= set().union(*map(requirements, names)) if names else {requirement}
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_extras_resolve_with_numpy_2(python, tmp_path):
    wanted = sorted(set().union(*map(requirements, EXTRAS)) | {"numpy>=2"})
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "-q", "--ignore-installed"]
    command += ["--report", "-", "--only-binary=:all:", "--python-version", python]
    result = subprocess.run(
        [*command, "--target", tmp_path, *wanted], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    chosen = {item["metadata"]["name"] for item in json.loads(result.stdout)["install"]}
    assert {
        "coremltools",
        "numpy",
        "onnx",
        "onnxruntime",
        "ai-edge-litert",
        "flatbuffers",
    } <= chosen
