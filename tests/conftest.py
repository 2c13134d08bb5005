# SPDX-License-Identifier: MIT
"""Fixtures shared by all tests: the real model in its three layouts, exported once."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

import bitnet_edge
from bitnet_edge.memory_limit import _cgroup_parents, run_limited

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
LAYOUTS = ("bf16", "packed", "packed-bitlinear")
PROMPT = "ROMEO:\n"


def checkpoint(layout: str) -> Path:
    return GOLDEN / "shakespeare" / layout


def require_tool(found: str | None, name: str) -> str:
    """Skip where a tool is missing, fail in CI, where everything can be installed."""
    if found is None:
        message = f"{name} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


def require_module(name: str) -> None:
    """The same for a Python package that only the [dev] extra brings."""
    require_tool(name if importlib.util.find_spec(name) else None, name)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The Shakespeare model as .bte, by layout."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {}
    for layout in LAYOUTS:
        paths[layout] = folder / f"{layout}.bte"
        bitnet_edge.export(checkpoint(layout), out=paths[layout])
    return paths


@pytest.fixture(scope="session")
def bte(exported: dict[str, Path]) -> Path:
    """The bundled model (layout ``packed``) as .bte; read only."""
    return exported["packed"]


@pytest.fixture
def model(bte: Path) -> bitnet_edge.Model:
    return bitnet_edge.load(bte, threads=1)


def require_memory_cgroup() -> Path:
    """The directory where `run_limited` makes its groups. "CI fails unless that is the machine's
    limit": a machine that cannot give a group says so with BITNET_EDGE_NO_MEMORY_CGROUP=1."""
    run = run_limited(["true"], "64MB")
    if not run.counts_page_cache:
        message = "no memory cgroup can be written here: " + ("; ".join(run.refused) or "none")
        if os.environ.get("CI") == "true" and "BITNET_EDGE_NO_MEMORY_CGROUP" not in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return dict(reversed(list(_cgroup_parents())))[run.mechanism]


@pytest.fixture
def memory_cgroup() -> Path:
    return require_memory_cgroup()
