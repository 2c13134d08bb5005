# SPDX-License-Identifier: MIT
"""Synthetic models: true shapes, weights from the seed and the name alone, little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge.api import parameter_count
from bitnet_edge.cli import main
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError
from bitnet_edge.exporters.sources import synthetic
from bitnet_edge.exporters.sources.synthetic import GEOMETRIES, geometry, load_synthetic

TINY = geometry(
    layers=2,
    hidden=48,
    heads=4,
    kv_heads=2,
    head_dim=12,
    intermediate=56,
    vocab=99,
    context_length=64,
)


@pytest.fixture
def tiny(monkeypatch):
    """A geometry that takes no time, under its own name."""
    monkeypatch.setitem(synthetic.GEOMETRIES, "tiny", TINY)
    return "tiny"


@pytest.mark.parametrize(
    ("name", "parameters", "ternary"),
    [
        ("bitnet-2b-4t", 2.413e9, 2.084e9),
        ("100m-class", 109.5e6, 84.9e6),
        ("20m-class", 31.5e6, 27.3e6),
        ("sensor-1m", 1.2e6, 1.065e6),
    ],
)
def test_geometries_have_their_size(name, parameters, ternary):
    graph = load_synthetic(name).graph
    found = sum(
        tensor.shape[0] * tensor.shape[1]
        for tensor in graph.constants()
        if tensor.dtype is DType.TERNARY
    )
    assert found == pytest.approx(ternary, rel=2e-3)
    assert parameter_count(graph) == pytest.approx(parameters, rel=5e-3)
    assert graph.info.eos_ids == ()


def test_the_2b_geometry_is_the_published_one():
    config = GEOMETRIES["bitnet-2b-4t"]
    assert (config.layers, config.hidden, config.intermediate) == (30, 2560, 6912)
    assert (config.heads, config.kv_heads, config.head_dim) == (20, 5, 128)
    assert (config.vocab, config.context_length, config.rope.theta) == (128256, 4096, 5e5)
    assert (config.tied, config.activation, config.eps) == (True, "relu2", 1e-5)
    names = {node.name for node in load_synthetic("bitnet-2b-4t").graph.nodes}
    assert {"layers.29.attn_sub_norm", "layers.29.ffn_sub_norm"} <= names


def test_weights_depend_on_seed_and_name_alone(tiny):
    one, two, other = load_synthetic(tiny), load_synthetic(tiny), load_synthetic(tiny, seed=1)
    names = [tensor.name for tensor in one.graph.constants()]
    forward = {name: one.weights.load(name).tobytes() for name in names}
    backward = {name: two.weights.load(name).tobytes() for name in reversed(names)}
    assert forward == backward
    changed = {name for name in names if other.weights.load(name).tobytes() != forward[name]}
    assert changed == set(names) - {"rope.inv_freq"}
    matrices = [name for name in names if name.endswith("proj")]
    assert len({forward[name] for name in matrices}) == len(matrices)


def test_values_are_what_they_should_be():
    source = load_synthetic("20m-class")
    codes = source.weights.load("layers.3.gate_proj")
    values, counts = np.unique(codes, return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    assert counts / codes.size == pytest.approx([0.25, 0.5, 0.25], abs=0.005)
    table = source.weights.load("embed_tokens")
    assert table.shape == (8192, 512)
    rows = np.unique((table.astype(np.uint32) << 16).view(np.float32), axis=0)
    assert len(rows) == 8192, "all rows differ"
    assert 0.9 < rows.std() < 1.1


def test_synth_writes_a_file_that_generates_by_ids(tiny, tmp_path, capsys):
    path = tmp_path / "tiny.bte"
    assert main(["synth", "--geometry", tiny, "-o", str(path), "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert "tiny (BitNetForCausalLM)" in out
    assert "made-up weights, seed 7" in out
    with bitnet_edge.load(path, threads=1) as model:
        generation = model.generate([1, 2, 3], max_tokens=5)
        assert generation.text() == ""
        assert len(generation.token_ids) == 5
        assert np.isfinite(model.logits([1, 2, 3])).all()


def test_synth_json_force_and_same_seed_same_file(tiny, tmp_path, capsys):
    arguments = ["synth", "--geometry", tiny, "-o", str(tmp_path / "a.bte"), "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(arguments) == 2, "exists"
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == first["sha256"]
    assert main([*arguments, "--force", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] != first["sha256"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("3b",), "bitnet-2b-4t"),
        (("sensor-1m", None, -1), "seed"),
        (("sensor-1m", None, 1 << 64), "seed"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        load_synthetic(*arguments)


def test_a_large_table_is_written_without_holding_it(tmp_path):
    """A 262 MB embedding: the process stays below 100 MB at its largest."""
    script = f"""
import re
from pathlib import Path
from bitnet_edge.api import export
from bitnet_edge.exporters.sources.synthetic import geometry, load_synthetic
config = geometry(layers=1, hidden=1024, heads=8, kv_heads=2, head_dim=128, intermediate=2048,
                  vocab=128000, context_length=32)
export(load_synthetic("wide", config), out={str(tmp_path / "wide.bte")!r}, force=True)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "wide.bte").stat().st_size > 262e6
    assert int(result.stdout) < 100 * 1024


def test_an_untied_geometry_is_just_another_configuration():
    with pytest.raises(bitnet_edge.errors.MissingTensor, match="lm_head"):
        load_synthetic("untied", replace(TINY, tied=False))
