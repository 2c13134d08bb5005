# SPDX-License-Identifier: MIT
"""Decoders of other shapes than the bundled model's, verified by every target."""

from __future__ import annotations

import pytest

import bitnet_edge
from bitnet_edge.exporters.targets import TARGETS, load_target
from tests.graphs import decoder


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu2", "bias": False, "tied": True},
        {"rope": False, "kv_heads": 1},
        {"heads": 9, "kv_heads": 3, "head_dim": 12, "hidden": 37, "ffn": 31},
        {"head_dim": 2, "hidden": 1, "ffn": 1, "vocab": 3},
    ],
)
def test_a_decoder(target, options, tmp_path):
    chosen = load_target(target)
    source = decoder(3, context=80, **options)
    package = bitnet_edge.export(
        source, device="pixel-8", out=tmp_path / f"m{chosen.suffix}", target=target, prefill_chunk=8
    )
    v = package.verification
    assert v.ops_checked == len(source.graph.nodes)
    assert v.exact_error <= chosen.tolerance.row
    assert v.steps >= 90
