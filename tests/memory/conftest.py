# SPDX-License-Identifier: MIT
"""Files of the 2B-4T geometry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bitnet_edge
from bitnet_edge.exporters.sources.synthetic import load_synthetic


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Writes the 2B-4T geometry (1.1 GB), one file at a time."""
    path = tmp_path_factory.mktemp("big") / "2b.bte"
    written: dict[str, object] = {}

    def write(**choices: object) -> Path:
        nonlocal written
        if choices != written:
            path.unlink(missing_ok=True)
            bitnet_edge.export(load_synthetic("bitnet-2b-4t"), out=path, **choices)
            written = choices
        return path

    yield write
    path.unlink(missing_ok=True)
