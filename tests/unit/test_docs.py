# SPDX-License-Identifier: MIT
"""A document is true or it is deleted: every command and code block runs, in order."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that set an environment up or run this very suite; .ci/run executes them.
ELSEWHERE = (
    "python3 -m venv .venv",
    ".venv/bin/pip install",
    ".venv/bin/python -m pytest",
    "PATH=$PWD/.venv/bin:$PATH pre-commit",
)


def installed(*names: str) -> bool:
    return os.environ.get("CI") == "true" or all(map(find_spec, names))


def blocks(document: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / document).read_text())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like the repository's root to a reader of the README."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "bitnet_edge").mkdir()
    (folder / "bitnet_edge" / "models").symlink_to(ROOT / "bitnet_edge" / "models")
    return folder


def shortened(code: str) -> str:
    """Benchmarks run here as they stand but for their size: one round, and the smallest geometry.

    llama.cpp's package is built from source in ten minutes, so CI has none: the option is then
    left out, and said so. `test_bench_peers` has a stand-in for it.
    """
    return "\n".join(map(_shortened_line, code.splitlines()))


def _shortened_line(line: str) -> str:
    if not line.startswith("bitnet-edge bench"):
        return line
    shorter = line.replace("bitnet-2b-4t", "20m-class") + " --runs 1"
    if "--vs llama-cpp" in line and importlib.util.find_spec("llama_cpp") is None:
        print("without llama.cpp:", line)
        return shorter.replace(" --vs llama-cpp", "")
    return shorter


def run(language: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-W", "error", "-"]
    return subprocess.run(
        command,
        input=None if language == "sh" else code,
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_block_of_the_readme_runs(workplace):
    ran = 0
    for language, code in blocks("README.md"):
        assert language in ("sh", "python"), f"cannot run a {language or 'plain'} block"
        if language == "sh" and code.startswith(ELSEWHERE):
            continue
        if "--target" in code and not installed("onnx", "onnxruntime", "ai_edge_litert"):
            continue  # their extras are not those of a fresh machine; CI has them
        result = run(language, shortened(code), workplace)
        assert result.returncode == 0, f"{code}\n{result.stderr}"
        ran += 1
    assert ran >= 5


def test_only_benchmarks_are_shortened():
    for language, code in blocks("README.md"):
        changed = shortened(code).splitlines()
        for before, after in zip(code.splitlines(), changed, strict=True):
            assert before == after or (language == "sh" and after.endswith(" --runs 1"))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_set_up_commands_are_those_ci_runs(document):
    for language, code in blocks(document):
        if language == "sh" and code.startswith(ELSEWHERE):
            for line in code.splitlines():
                assert line.startswith(ELSEWHERE), line


def test_links_lead_somewhere():
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_paths_named_in_contributing_exist():
    for path in re.findall(r"`((?:\w+/)+)`", (ROOT / "CONTRIBUTING.md").read_text()):
        candidates = [ROOT / path, *(parent / path for parent in ROOT.iterdir() if parent.is_dir())]
        assert any(candidate.exists() for candidate in candidates), path
