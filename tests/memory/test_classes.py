# SPDX-License-Identifier: MIT
"""Planned against measured private bytes, class by class, after the whole context was used."""

from __future__ import annotations

import pytest

import bitnet_edge
from bitnet_edge.planner import KV_DTYPES
from tests.conftest import checkpoint
from tests.processes import measure

SHARE, BYTES = 0.03, 256 * 1024  # the larger is allowed
NEW_TOKENS = 8

FILL = """
import json, sys
import bitnet_edge
model = bitnet_edge.load(sys.argv[1])
prompt = [(7 * i + 1) % model.vocab_size for i in range(model.context - int(sys.argv[2]))]
generation = model.generate(prompt, max_tokens=1 + int(sys.argv[2]), temperature=1.0, seed=1,
                            ignore_eos=True)
generation.text()
report = model.memory_report()
measured = dict(report.measured)
measured["engine"] += generation.private_bytes
print(json.dumps({"planned": report.planned, "measured": measured, "new": len(generation.token_ids),
                  "process": report.process_private}))
"""


def check(path) -> None:
    result = measure(FILL, path, NEW_TOKENS)
    planned, measured = result["planned"], result["measured"]
    assert result["new"] == NEW_TOKENS + 1  # to the last position
    interpreter = result["process"] - sum(measured.values())
    print({name: (planned[name], measured[name]) for name in measured}, "interpreter", interpreter)
    assert set(measured) == set(planned) - {"interpreter"}
    for name, size in measured.items():
        assert abs(size - planned[name]) <= max(SHARE * planned[name], BYTES), name
    # A bound: what Python needs differs between machines and versions.
    assert 0 < interpreter <= planned["interpreter"]


@pytest.mark.parametrize("kv_dtype", [dtype.value for dtype in KV_DTYPES])
def test_bundled_model(kv_dtype, tmp_path):
    path = tmp_path / "m.bte"
    bitnet_edge.export(checkpoint("packed"), out=path, kv_dtype=kv_dtype, threads=1)
    check(path)


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", [dtype.value for dtype in KV_DTYPES])
def test_2b_geometry(kv_dtype, big):
    check(big(kv_dtype=kv_dtype, context=136, threads=1))
