# SPDX-License-Identifier: MIT
"""LiteRT packages: sizes, what the delegate takes, exactness, and the bundled model end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge.errors import ExportError, MissingDependency
from bitnet_edge.exporters.targets import litert as litert_target
from bitnet_edge.exporters.targets import load_target
from bitnet_edge.exporters.targets.litert_runner import interpreter
from bitnet_edge.exporters.targets.target import VERIFICATION_KEY, make_settings, unverified
from bitnet_edge.profiles import load_profile
from tests.exporters.graphs import one_matrix
from tests.graphs import decoder

TARGET = load_target("litert")
METADATA = {VERIFICATION_KEY: unverified()}


def settings(source, form, **choices):
    return make_settings(source.graph, load_profile("pixel-8"), TARGET.form(form), **choices)


def write(source, form, path, **choices):
    chosen = settings(source, form, **choices)
    ternary = TARGET.write(source, chosen, path, metadata=METADATA)
    return ternary, TARGET.open(path, source, chosen)


def operators(path, *, delegate=True):
    made = interpreter(path, delegate=delegate)
    return [details["op_name"] for details in made._get_ops_details()]


@pytest.mark.parametrize("form", list(TARGET.forms))
def test_the_bundled_model(shakespeare, form, tmp_path):
    package = bitnet_edge.export(
        shakespeare, device="pixel-8", out=tmp_path / "m.tflite", target="litert", form=form
    )
    v = package.verification
    assert v.agreement >= 0.995
    assert v.exact_error <= 1e-4
    assert v.steps >= 32
    assert v.rows - v.flipped_rows >= 40
    assert abs(v.perplexity / v.reference_perplexity - 1) < 0.01
    data = package.path.read_bytes()
    assert data.count(json.dumps(v.to_json(), separators=(",", ":")).encode()) == 1
    assert sorted(interpreter(package.path).get_signature_list()) == ["decode", "prefill"]


@pytest.mark.parametrize(("form", "bits"), [("xnnpack", 2.03), ("builtin", 2.005)])
def test_bits_of_a_large_ternary_weight(form, bits, tmp_path):
    path = tmp_path / "m.tflite"
    ternary, _ = write(one_matrix(2560, 6912), form, path)
    assert 2 <= ternary.bits <= bits
    assert 8 * path.stat().st_size / (2560 * 6912) <= bits


def test_xnnpack_takes_every_op(tmp_path):
    """Where it leaves the fully-connected op to the built-in kernels, it takes 10 times as long."""
    source = one_matrix(64, 256)
    write(source, "xnnpack", tmp_path / "m.tflite")
    ran = operators(tmp_path / "m.tflite")
    assert "FULLY_CONNECTED" in operators(tmp_path / "m.tflite", delegate=False)
    assert ran.count("DELEGATE") == 1, "one partition: nothing stands between two"
    assert ran[-1] == "DELEGATE"
    # One scale alone is what it leaves: then its ops before and after are two partitions.
    write(source, "builtin", tmp_path / "b.tflite")
    assert operators(tmp_path / "b.tflite").count("DELEGATE") == 2


@pytest.mark.parametrize(("form", "taken"), [("xnnpack", True), ("builtin", False)])
def test_xnnpack_takes_every_matrix_of_a_decoder(form, taken, shakespeare, tmp_path):
    write(shakespeare, form, tmp_path / "m.tflite")
    ran = interpreter(tmp_path / "m.tflite")._get_ops_details()
    given = {int(t) for op in ran if op["op_name"] == "DELEGATE" for t in op["inputs"]}
    weights = [int(op["inputs"][1]) for op in ran if op["op_name"] == "FULLY_CONNECTED"]
    # the last layer of a prompt ends with its keys and values
    assert len(weights) == 7 * 6 - 4
    assert [weight in given for weight in weights] == [taken] * len(weights)


@pytest.mark.parametrize("form", list(TARGET.forms))
@pytest.mark.parametrize("k", [1, 2, 5, 1000])
def test_products_are_exact(form, k, tmp_path):
    source = one_matrix(33, k)
    _, runner = write(source, form, tmp_path / "m.tflite")
    x = np.random.default_rng(0).integers(-127, 128, (3, k)).astype(np.float32)
    x[:, 0] = 127
    codes = source.weights.load("layer.weight").astype(np.int64)
    expected = (x.astype(np.int64) @ codes.T).astype(np.float32) * np.float32(0.05)
    found = runner.run({"x": x})["layer.out"]
    # XNNPACK adds a zero point times the sum of the weights in float32: a last bit at most.
    tolerance = 1e-6 if form == "xnnpack" else 0
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


def test_state_carries(shakespeare, tmp_path):
    _, runner = write(shakespeare, "xnnpack", tmp_path / "m.tflite", context=64, prefill_chunk=8)
    (ids,), (logits,) = shakespeare.graph.inputs, shakespeare.graph.outputs
    tokens = np.arange(40, 60, dtype=np.int32)
    whole = runner.run({ids: tokens})[logits]
    runner.reset()
    runner.run({ids: tokens[:12]})
    carried = runner.run({ids: tokens[12:]}, 12)[logits]
    np.testing.assert_allclose(carried, whole, atol=0.5)
    runner.reset()
    forgotten = runner.run({ids: tokens[12:]}, 0)[logits]
    assert np.abs(forgotten - carried).max() > 0.5


def test_a_prompt_that_ends_with_the_context(tmp_path):
    """The last piece of a prompt may not be filled up beyond the caches."""
    from bitnet_edge.reference import ReferenceModel

    source = decoder(context=22)
    _, runner = write(source, "xnnpack", tmp_path / "m.tflite", prefill_chunk=8)
    tokens = np.arange(22, dtype=np.int32)
    expected = ReferenceModel(source).logits(tokens)[-1:]
    (logits,) = source.graph.outputs
    found = runner.run({"ids": tokens})[logits][-1:]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_model_beyond_the_format_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(litert_target.flatbuffers.Builder, "MAX_BUFFER_SIZE", 100)
    with pytest.raises(ExportError, match="expected a model of at most"):
        write(one_matrix(16, 16), "xnnpack", tmp_path / "m.tflite")


def test_the_schema_is_needed_to_write(monkeypatch, tmp_path):
    monkeypatch.setattr(litert_target, "schema", None)
    with pytest.raises(MissingDependency, match="writing a package needs ai-edge-litert"):
        write(one_matrix(16, 16), "xnnpack", tmp_path / "m.tflite")
