# SPDX-License-Identifier: MIT
"""A made-up model in a temporary file, not bound by any device's budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bitnet_edge.api import export
from bitnet_edge.exporters.sources.synthetic import GEOMETRIES, load_synthetic
from bitnet_edge.profiles import load_profile

__all__ = ["write_geometry"]


def write_geometry(
    name: str,
    directory: str | Path,
    *,
    positions: int,
    kv_dtype: str | None = None,
    head_dtype: str | None = None,
    prefill_chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write a synthetic model with room for ``positions`` tokens and return its path.

    Raises
    ------
    ArgumentError
        For an unknown geometry.
    """
    source = load_synthetic(name)
    bench = replace(load_profile("generic-50mb"), name="bench", private_mb=4096)
    result = export(
        source,
        bench,
        Path(directory) / f"{name}.bte",
        context=min(positions, GEOMETRIES[name].context_length),
        kv_dtype=kv_dtype,
        head_dtype=head_dtype,
        prefill_chunk=prefill_chunk,
        progress=progress,
    )
    return str(result.path)
