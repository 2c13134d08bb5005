# SPDX-License-Identifier: MIT
"""Core ML packages: sizes, state, and the bundled model end to end in the numpy interpreter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge.errors import ExportError, FormatError
from bitnet_edge.exporters import lowering
from bitnet_edge.exporters.targets import coreml_interpreter, coreml_package, load_target
from bitnet_edge.exporters.targets.coreml_emitter import identifier
from bitnet_edge.exporters.targets.coreml_float16 import FLOAT16
from bitnet_edge.exporters.targets.target import VERIFICATION_KEY, make_settings, unverified
from bitnet_edge.profiles import load_profile
from bitnet_edge.reference import ReferenceModel
from bitnet_edge.tokenizer import Tokenizer
from tests.exporters.graphs import one_matrix
from tests.graphs import GraphBuilder, decoder

TARGET = load_target("coreml")
METADATA = {VERIFICATION_KEY: unverified()}


def write(source, form, path, **choices):
    chosen = make_settings(
        source.graph, load_profile("iphone-15-pro"), TARGET.form(form), **choices
    )
    ternary = TARGET.write(source, chosen, path, metadata=METADATA)
    return ternary, TARGET.open(path, source, chosen)


@pytest.mark.parametrize("form", list(TARGET.forms))
def test_the_bundled_model(shakespeare, form, tmp_path):
    package = bitnet_edge.export(
        shakespeare,
        device="iphone-15-pro",
        out=tmp_path / "m.mlpackage",
        target="coreml",
        form=form,
    )
    v = package.verification
    assert "numpy interpreter" in v.runtime
    assert v.steps >= 32
    if form.startswith("float16"):
        assert v.agreement >= 0.98
        assert v.mean_error < 0.05
        assert abs(v.perplexity / v.reference_perplexity - 1) < 0.03
    else:
        assert v.agreement >= 0.995
        assert v.exact_error <= 1e-4
        assert v.rows - v.flipped_rows >= 40
        assert abs(v.perplexity / v.reference_perplexity - 1) < 0.01
    model, _ = coreml_package.read(package.path)
    written = model.description.metadata.userDefined
    assert json.loads(written[VERIFICATION_KEY]) == v.to_json()
    assert written["bitnet_edge.form"] == form
    if form == "ios16":
        assert model.specificationVersion == 7
        assert list(model.mlProgram.functions) == ["main"]
        assert not model.description.state
        return
    assert model.specificationVersion == 9
    assert sorted(f.name for f in model.description.functions) == ["decode", "prefill"]
    assert model.description.defaultFunctionName == "decode"


def test_functions_share_the_weights(tmp_path):
    """Each blob is written once: both functions read the same offsets."""
    write(decoder(), "lut2", tmp_path / "m.mlpackage")
    model, _ = coreml_package.read(tmp_path / "m.mlpackage")
    tables = {}
    for name in ("prefill", "decode"):
        (block,) = model.mlProgram.functions[name].block_specializations.values()
        tables[name] = [
            op.inputs["indices"].arguments[0].value.blobFileValue.offset
            for op in block.operations
            if op.type == "constexpr_lut_to_dense"
        ]
    assert len(set(tables["decode"])) == 14
    assert tables["prefill"] == tables["decode"]


@pytest.mark.parametrize(("form", "bits"), [("lut2", 2.03), ("trits5", 1.66), ("ios16", 2.03)])
def test_bits_of_a_large_ternary_weight(form, bits, tmp_path):
    path = tmp_path / "m.mlpackage"
    ternary, _ = write(one_matrix(2560, 6912), form, path)
    weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    assert 1.6 <= ternary.bits <= bits
    assert 8 * weights.stat().st_size / (2560 * 6912) <= bits
    whole = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert 8 * whole / (2560 * 6912) <= bits


@pytest.mark.parametrize("form", ["lut2", "trits5", "ios16"])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_products_are_exact(form, k, tmp_path):
    source = one_matrix(33, k)
    _, runner = write(source, form, tmp_path / "m.mlpackage")
    x = np.random.default_rng(0).integers(-127, 128, (3, k)).astype(np.float32)
    x[:, 0] = 127
    codes = source.weights.load("layer.weight").astype(np.int64)
    expected = (x.astype(np.int64) @ codes.T).astype(np.float32) * np.float32(0.05)
    assert runner.run({"x": x})["layer.out"].tobytes() == expected.tobytes()


def accesses(model, function):
    """The accesses of each state in order, and who uses what was read before the write."""
    (block,) = model.mlProgram.functions[function].block_specializations.values()
    seen, read = {}, {}
    for op in block.operations:
        if op.type in ("read_state", "write_state"):
            state = op.inputs["input"].arguments[0].name
            seen.setdefault(state, []).append(op.type)
            if op.type == "read_state" and len(seen[state]) == 1:
                read[op.outputs[0].name] = []
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name in read:
                    read[binding.name].append(op.type)
    return seen, read


@pytest.mark.parametrize("function", ["prefill", "decode"])
def test_a_state_is_never_read_twice_around_a_write(function, tmp_path):
    """coremltools #2786: a pass, and whoever else merges equal reads, loses what was written."""
    write(decoder(), "lut2", tmp_path / "m.mlpackage")
    model, _ = coreml_package.read(tmp_path / "m.mlpackage")
    seen, read = accesses(model, function)
    assert len(seen) == 4, "a state for each cache"
    # The last read is what `coreml_update_state` gives, and all that follow it use.
    assert set(map(tuple, seen.values())) == {("read_state", "write_state", "read_state")}
    assert set(map(tuple, read.values())) == {("slice_update",)}


@pytest.mark.parametrize("form", list(TARGET.forms))
def test_state_carries(shakespeare, form, tmp_path):
    _, runner = write(shakespeare, form, tmp_path / "m.mlpackage", context=64, prefill_chunk=8)
    (ids,), (logits,) = shakespeare.graph.inputs, shakespeare.graph.outputs
    tokens = np.arange(40, 60, dtype=np.int32)
    whole = runner.run({ids: tokens})[logits]
    runner.reset()
    runner.run({ids: tokens[:12]})
    carried = runner.run({ids: tokens[12:]}, 12)[logits]
    np.testing.assert_allclose(carried, whole[12:], atol=0.5)
    runner.reset()
    forgotten = runner.run({ids: tokens[12:]}, 12)[logits]
    assert np.abs(forgotten - carried).max() > 0.5


@pytest.mark.parametrize(
    ("system", "minimum", "limit", "form", "reason"),
    [
        ("ios", "16.4", 200, "ios16", "ios 16.4 has no states"),
        ("ios", "18.0", 200, "lut2", "ios 18.0 and its size allow it"),
        ("watchos", "10.0", 200, "ios16", "has no states"),
        ("ios", "18.0", 0.001, "trits5", "over what the store delivers"),
        ("any", None, None, "lut2", "2-bit indices"),
    ],
)
def test_the_form_is_chosen_for_the_device(system, minimum, limit, form, reason):
    profile = load_profile("iphone-15-pro")
    profile = replace(
        profile, os=replace(profile.os, name=system, minimum=minimum), ota_limit_mb=limit
    )
    chosen = TARGET.choose(decoder(), profile, None)
    assert chosen.name == form
    assert reason in chosen.why
    assert TARGET.choose(decoder(), profile, "trits5") == TARGET.forms["trits5"]


def test_vectors_along_rows_and_columns(tmp_path):
    """One side is a multiple of 5, the other, or none: then 2 bits."""
    for rows, k, bits in ((40, 64, 1.6), (64, 40, 1.6), (64, 64, 2.0)):
        source = one_matrix(rows, k)
        path = tmp_path / f"{rows}x{k}.mlpackage"
        ternary, runner = write(source, "trits5", path)
        assert ternary.stored >= rows * k * bits / 8
        x = np.random.default_rng(0).integers(-127, 128, (2, k)).astype(np.float32)
        x[:, 0] = 127
        expected = (x @ source.weights.load("layer.weight").astype(np.float32).T) * np.float32(0.05)
        assert runner.run({"x": x})["layer.out"].tobytes() == expected.tobytes()


def feed_forward(activation, *, norm):
    b = GraphBuilder(3)
    x = b.input("x", 64)
    gate, up = b.ternary("gate", x, 96, scale=1.0), b.ternary("up", x, 96, scale=1.0)
    y = b.node("gated_activation", "act", (gate, up), 96, activation=activation)
    y = b.norm("sub_norm", y) if norm else y
    return b.source(["x"], [b.ternary("down", y, 40, scale=1.0 if norm else 1e-4)])


@pytest.mark.parametrize("form", ["float16", "float16-unrounded"])
@pytest.mark.parametrize("activation", ["relu2", "silu"])
@pytest.mark.parametrize("norm", [True, False])
def test_extreme_activations_do_not_overflow_float16(form, activation, norm, tmp_path, monkeypatch):
    source = feed_forward(activation, norm=norm)
    x = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)
    x *= np.float32([1e-4, 1e-2, 1, 30, 300, 1000, 0])[:, None]
    if not norm:
        x = x[2:4] * np.float32(
            0.25 if activation == "relu2" else 1
        )  # with results that float16 holds
    reference = ReferenceModel(source).run({"x": x})
    assert np.abs(reference["act.out"]).max() > 1e5, "beyond 65504"
    expected = reference["down.out"]
    _, runner = write(source, form, tmp_path / "m.mlpackage")
    found = runner.run({"x": x})["down.out"]
    assert np.isfinite(found).all()
    scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), 1e-6)
    # rows of which float16 keeps few bits deviate, but overflow none
    kept = np.abs(reference["act.out"]).max(axis=1) > 1e-3
    assert (np.abs(found - expected) / scale)[kept].max() <= 0.1
    monkeypatch.setitem(FLOAT16, "gated_activation", lowering.gated_activation)
    _, runner = write(source, form, tmp_path / "overflows.mlpackage")
    assert not np.isfinite(runner.run({"x": x})["down.out"]).all()


def test_what_lies_in_the_package(shakespeare, tmp_path):
    write(shakespeare, "lut2", tmp_path / "m.mlpackage")
    folder = tmp_path / "m.mlpackage" / "bitnet-edge"
    readme, swift = (folder / name for name in ("README.md", "Generate.swift"))
    (ids,), (logits,) = shakespeare.graph.inputs, shakespeare.graph.outputs
    model, _ = coreml_package.read(tmp_path / "m.mlpackage")
    prefill = next(f for f in model.description.functions if f.name == "prefill")
    for port in (*prefill.input, *prefill.output):
        assert f'"{port.name}"' in swift.read_text()
        assert f"`{port.name}`" in readme.read_text()
    assert {identifier(ids), identifier(logits), "position"} == {
        port.name for port in (*prefill.input, *prefill.output)
    }
    assert "$" not in readme.read_text()
    tokenizer = Tokenizer((folder / "tokenizer.section").read_bytes())
    assert tokenizer.decode(tokenizer.encode("ROMEO:")) == "ROMEO:"


def test_the_readme_of_a_package_with_caches(tmp_path):
    write(decoder(), "ios16", tmp_path / "m.mlpackage")
    folder = tmp_path / "m.mlpackage" / "bitnet-edge"
    assert [file.name for file in folder.iterdir()] == ["README.md"]
    model, _ = coreml_package.read(tmp_path / "m.mlpackage")
    for port in (*model.description.input, *model.description.output):
        assert f"`{port.name}`" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0.5, -3.0], np.float16), ([0.5, 1e-9], np.float16), ([0.5, 1 / 3], np.float32)],
)
def test_dense_matrices_are_float16_where_nothing_is_lost(values, kind, tmp_path):
    b = GraphBuilder(0)
    x = b.input("x", 2)
    weight = b.constant("weight", (8, 2))
    b.weights["weight"] = np.float32([values] * 8)
    source = b.source(["x"], [b.node("linear", "node", (x, weight, ""), 8)])
    _, runner = write(source, "lut2", tmp_path / "m.mlpackage")
    constants = [
        op.outputs[0].type.tensorType
        for op in runner._program.operations("main")
        if op.type == "const" and len(op.outputs[0].type.tensorType.dimensions) == 2
    ]
    casts = [op for op in runner._program.operations("main") if op.type == "constexpr_cast"]
    assert (len(casts), len(constants)) == ((1, 0) if kind == np.float16 else (0, 1))
    inputs = {"x": np.float32([[1, 0], [0, 1], [3, 5]])}
    expected = ReferenceModel(source).run(inputs)["node.out"]
    np.testing.assert_allclose(runner.run(inputs)["node.out"], expected, rtol=1e-6, atol=1e-11)


LARGE = """
import resource, sys
from pathlib import Path
from bitnet_edge.exporters.package import write_package
from bitnet_edge.exporters.sources.synthetic import load_synthetic
from bitnet_edge.exporters.targets import load_target
from bitnet_edge.profiles import load_profile
source, path = load_synthetic("bitnet-2b-4t"), Path(sys.argv[1])
profile = load_profile("iphone-15-pro")
made = write_package(source, "coreml", profile, path, verified=False, progress=print)
program = load_target("coreml").open(path, source, made.settings)._program
print(made.settings.form.name, made.ternary_bits, made.bytes, *program.functions)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_model_of_two_billion_weights(tmp_path):
    path = tmp_path / "m.mlpackage"
    result = subprocess.run(
        [sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=True
    )
    progress, what, peak = result.stdout.splitlines()
    form, bits, size, *functions = what.split()
    assert progress == "writing coreml"
    assert (form, functions) == ("trits5", ["decode", "prefill"])
    assert float(bits) <= 1.66
    assert int(size) <= 1.2e9
    assert int(peak) < 6e9
    shutil.rmtree(path)


def test_names():
    assert identifier("ids") == "ids"
    assert identifier("a.b") != identifier("a-b")
    assert identifier("1").startswith("t_1")


def test_a_name_that_core_ml_refuses(tmp_path):
    with pytest.raises(ExportError, match="ends with .mlpackage, got 'm'"):
        write(one_matrix(16, 16), "lut2", tmp_path / "m")


def test_an_interpreter_that_does_not_know_an_op_says_so(tmp_path):
    _, runner = write(one_matrix(64, 16), "lut2", tmp_path / "m.mlpackage")
    for op in runner._program.operations("main"):
        if op.type == "round":
            op.type = "floor_mod"
    with pytest.raises(FormatError, match="no meaning is written for op 'floor_mod'"):
        runner.run({"x": np.ones((1, 16), np.float32)})


def test_an_unknown_constant_op_is_told(tmp_path):
    _, runner = write(one_matrix(64, 16), "lut2", tmp_path / "m.mlpackage")
    for op in runner._program.operations("main"):
        if op.type == "constexpr_lut_to_dense":
            op.type = "constexpr_other"
    with pytest.raises(FormatError, match="no meaning is written for op 'constexpr_other'"):
        runner.run({"x": np.ones((1, 16), np.float32)})


def test_a_damaged_weight_file_is_told(tmp_path):
    path = tmp_path / "m.mlpackage"
    write(one_matrix(64, 16), "lut2", path)
    model, weights = coreml_package.read(path)
    weights.write_bytes(bytes(weights.stat().st_size))
    program = coreml_interpreter.MLProgram(model, weights)
    with pytest.raises(FormatError, match="expected a blob at"):
        program.run("main", {"x": np.ones((1, 16), np.float32)})
