# SPDX-License-Identifier: MIT
"""Forms int4 and int8 in `tflite-runtime` 2.14, in an environment of its own (numpy < 2)."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from bitnet_edge.exporters.targets import load_target
from bitnet_edge.exporters.targets.target import make_settings
from bitnet_edge.profiles import load_profile
from bitnet_edge.reference import ReferenceModel
from tests.conftest import ROOT
from tests.exporters.graphs import one_matrix

TARGET = load_target("litert")
RUN = """
import json, sys
from pathlib import Path
import numpy as np
from bitnet_edge.exporters.targets.litert_runner import LiteRTRunner
from bitnet_edge.graph import Graph
folder = Path(sys.argv[1])
graph = Graph.from_json(json.loads((folder / "graph.json").read_text()))
runner = LiteRTRunner(folder / "m.tflite", graph, int(sys.argv[2]), delegate=sys.argv[3] == "1")
x = np.load(folder / "x.npy")
(given,), (wanted,) = graph.inputs, graph.outputs
rows = [runner.run({given: x[:9]})[wanted][-1:]]
for position in range(9, len(x)):
    rows.append(runner.run({given: x[position:position + 1]}, position)[wanted])
np.save(folder / "y.npy", np.concatenate(rows))
print(runner.runtime)
"""


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    """Run a script there: Python, numpy, tflite-runtime, and this package's sources."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("tflite-runtime's last wheels are for Python 3.11")
    folder = tmp_path_factory.mktemp("legacy")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    wanted = ["tflite-runtime==2.14.0", "numpy<2"]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    (folder / "bitnet_edge").mkdir()
    for path in (*(ROOT / "bitnet_edge").iterdir(), ROOT / "exporters"):
        (folder / "bitnet_edge" / path.name).symlink_to(path)

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [python, "-c", RUN, *map(str, arguments)],
            cwd=folder,  # not the repository, whose ./bitnet_edge lacks the mapped folders
            env={"PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def compare(legacy, source, form, x, folder, delegate):
    settings = make_settings(
        source.graph, load_profile("pixel-8"), TARGET.form(form), prefill_chunk=4
    )
    TARGET.write(source, settings, folder / "m.tflite", metadata={})
    (folder / "graph.json").write_text(json.dumps(source.graph.to_json()))
    np.save(folder / "x.npy", x)
    assert legacy(folder, settings.context, delegate).strip() == "tflite-runtime 2.14.0"
    expected = ReferenceModel(source).run({source.graph.inputs[0]: x})[source.graph.outputs[0]]
    found = np.load(folder / "y.npy")
    expected = expected[-len(found) :]
    return np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1), expected, found


@pytest.mark.parametrize("delegate", [0, 1])
@pytest.mark.parametrize("form", ["int4", "int8"])
def test_a_decoder(legacy, shakespeare, form, delegate, tmp_path):
    ids = np.random.default_rng(0).integers(0, 2048, 24).astype(np.int32)
    errors, expected, found = compare(legacy, shakespeare, form, ids, tmp_path, delegate)
    assert np.median(errors) <= 1e-4
    assert errors.max() <= 0.05, "what a flipped rounding does"
    assert (expected.argmax(1) == found.argmax(1)).mean() >= 0.9


@pytest.mark.parametrize("delegate", [0, 1])
@pytest.mark.parametrize("form", ["int4", "int8"])
def test_a_linear(legacy, form, delegate, tmp_path):
    x = np.random.default_rng(1).normal(size=(12, 300)).astype(np.float32)
    errors, _, _ = compare(legacy, one_matrix(70, 300), form, x, tmp_path, delegate)
    assert errors.max() <= 1e-6
