# SPDX-License-Identifier: MIT
"""The tests of this folder need the extras of the targets."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from bitnet_edge.api import import_model
from bitnet_edge.exporters.sources.source import ModelSource
from tests.conftest import checkpoint

NEEDED = ("ai_edge_litert", "coremltools", "flatbuffers", "onnx", "onnxruntime")
if os.environ.get("CI") != "true" and not all(map(find_spec, NEEDED)):
    collect_ignore_glob = ["test_*.py"]  # in CI a missing one is an error


@pytest.fixture(scope="session")
def shakespeare() -> ModelSource:
    return import_model(checkpoint("packed"))
