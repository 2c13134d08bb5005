# SPDX-License-Identifier: MIT
"""ONNX packages: sizes, what onnxruntime makes of them, and the bundled model end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import bitnet_edge
from bitnet_edge.errors import ExportError
from bitnet_edge.exporters.targets import load_target, onnx_emitter
from bitnet_edge.exporters.targets.onnx_runner import session
from bitnet_edge.exporters.targets.target import VERIFICATION_KEY, make_settings, unverified
from bitnet_edge.profiles import load_profile
from tests.exporters.graphs import one_matrix
from tests.graphs import mlp

TARGET = load_target("onnx")
METADATA = {VERIFICATION_KEY: unverified()}


def settings(source, form, **choices):
    return make_settings(source.graph, load_profile("pixel-8"), TARGET.form(form), **choices)


@pytest.mark.parametrize("form", list(TARGET.forms))
def test_the_bundled_model(shakespeare, form, tmp_path):
    package = bitnet_edge.export(
        shakespeare, device="pixel-8", out=tmp_path / "m.onnx", target="onnx", form=form
    )
    v = package.verification
    assert v.agreement >= 0.995
    assert v.exact_error <= 1e-4
    assert v.steps >= 32
    assert v.rows - v.flipped_rows >= 100
    assert abs(v.perplexity / v.reference_perplexity - 1) < 0.01
    model = onnx.load(package.path)
    onnx.checker.check_model(model, full_check=True)
    written = {p.key: p.value for p in model.metadata_props}
    assert json.loads(written[VERIFICATION_KEY]) == v.to_json()
    assert written["bitnet_edge.form"] == form
    domains = {o.domain for o in model.opset_import}
    assert domains == ({"", "com.microsoft"} if form == "ort" else {""})


@pytest.mark.parametrize(("form", "bits"), [("int2", 2.001), ("dequantize", 2.07), ("ort", 2.30)])
def test_bits_of_a_large_ternary_weight(form, bits, tmp_path):
    source = one_matrix(2560, 6912)
    path = tmp_path / "m.onnx"
    ternary = TARGET.write(source, settings(source, form), path, metadata=METADATA)
    assert 2 <= ternary.bits <= bits
    assert 8 * path.stat().st_size / (2560 * 6912) <= bits + 0.005


# onnxruntime falls off a cliff (15 to 150 ms against 0.1 to 0.3) where these are not what runs.
@pytest.mark.parametrize(
    ("form", "kernel", "absent"),
    [
        ("int2", "MatMulInteger", {"Transpose", "DequantizeLinear"}),
        ("int4", "MatMulInteger", {"Transpose", "DequantizeLinear"}),
        ("dequantize", "MatMulNBits", {"MatMul", "FusedMatMul", "DequantizeLinear"}),
        ("ort", "MatMulNBits", {"MatMul", "FusedMatMul", "DequantizeLinear"}),
    ],
)
def test_the_fast_kernel_runs(form, kernel, absent, tmp_path):
    source = mlp(widths=(512, 96, 64), bias=False)
    path = tmp_path / "m.onnx"
    TARGET.write(source, settings(source, form), path, metadata=METADATA)
    optimised = tmp_path / "optimised.onnx"
    profiled = session(
        path,
        optimized_model_filepath=str(optimised),
        enable_profiling=True,
        profile_file_prefix=str(tmp_path / "profile"),
    )
    profiled.run(None, {"x": np.ones((1, 512), np.float32)})
    events = json.loads(Path(profiled.end_profiling()).read_text())
    names = [e["args"]["op_name"] for e in events if e["cat"] == "Node"]
    ran = set(names)
    assert names.count(kernel) == 2
    assert not absent & ran, ran
    weights = [i for i in onnx.load(optimised).graph.initializer if len(i.dims) > 1]
    node = next(n for n in onnx.load(optimised).graph.node if n.op_type == kernel)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if kernel == "MatMulNBits":
        assert attributes["bits"] == 2
        assert attributes["accuracy_level"] == 4, "level 0 dequantises"
        assert attributes["block_size"] == (32 if form == "dequantize" else 128)
    else:  # widened when the model was loaded, not at every run
        assert [w.data_type for w in weights] == 2 * [onnx.TensorProto.INT8]
        casts = [n for n in onnx.load(optimised).graph.node if n.op_type == "Cast"]
        assert len(casts) == 4, "of the activations, there and back"


@pytest.mark.parametrize("form", list(TARGET.forms))
def test_no_linear_of_a_decoder_is_left_out(form, shakespeare, tmp_path):
    path, optimised = tmp_path / "m.onnx", tmp_path / "optimised.onnx"
    TARGET.write(shakespeare, settings(shakespeare, form), path, metadata=METADATA)
    session(path, optimized_model_filepath=str(optimised))
    kinds = [node.op_type for node in onnx.load(optimised).graph.node]
    linears = [node for node in shakespeare.graph.nodes if node.op == "ternary_linear"]
    kernel = "MatMulInteger" if form in ("int2", "int4") else "MatMulNBits"
    assert kinds.count(kernel) == len(linears)
    assert "DequantizeLinear" not in kinds
    narrow = {onnx.TensorProto.INT2, onnx.TensorProto.INT4}  # widened once, when it was loaded
    assert not narrow & {i.data_type for i in onnx.load(optimised).graph.initializer}


@pytest.mark.parametrize("form", list(TARGET.forms))
def test_products_are_exact(form, tmp_path):
    source = one_matrix(33, 1000)
    path = tmp_path / "m.onnx"
    TARGET.write(source, settings(source, form), path, metadata=METADATA)
    runner = TARGET.open(path, source, settings(source, form))
    x = np.random.default_rng(0).integers(-127, 128, (3, 1000)).astype(np.float32)
    x[:, 0] = 127  # the factor is one: what is rounded is what is given
    codes = source.weights.load("layer.weight").astype(np.int64)
    expected = (x.astype(np.int64) @ codes.T).astype(np.float32) * np.float32(0.05)
    assert runner.run({"x": x})["layer.out"].tobytes() == expected.tobytes()


def test_state_carries(shakespeare, tmp_path):
    chosen = settings(shakespeare, "int2")
    path = tmp_path / "m.onnx"
    TARGET.write(shakespeare, chosen, path, metadata=METADATA)
    runner = TARGET.open(path, shakespeare, chosen)
    (ids,), (logits,) = shakespeare.graph.inputs, shakespeare.graph.outputs
    tokens = np.arange(40, 60, dtype=np.int32)
    whole = runner.run({ids: tokens})[logits]
    runner.reset()
    runner.run({ids: tokens[:12]})
    carried = runner.run({ids: tokens[12:]}, 12)[logits]
    np.testing.assert_allclose(carried, whole[12:], atol=1e-3)
    runner.reset()
    forgotten = runner.run({ids: tokens[12:]}, 0)[logits]
    assert np.abs(forgotten - carried).max() > 0.5


def test_a_model_beyond_the_format_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_emitter, "MAX_BYTES", 100)
    source = one_matrix(16, 16)
    with pytest.raises(ExportError, match="expected a model of at most 100 bytes"):
        TARGET.write(source, settings(source, "int2"), tmp_path / "m.onnx", metadata=METADATA)
