# SPDX-License-Identifier: MIT
"""Fixtures shared by all tests: the real model in its three layouts, exported once."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

import bitnet_edge

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
