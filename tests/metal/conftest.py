# SPDX-License-Identifier: MIT
"""The shaders, compiled once a session."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import require_tool
from tests.metal.simulator import Simulator, build


@pytest.fixture(scope="session")
def compiler() -> str:
    return require_tool(shutil.which("clang++") or shutil.which("g++"), "clang++")


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Simulator:
    return Simulator(build(tmp_path_factory.mktemp("simulator"), compiler=compiler))
