# SPDX-License-Identifier: MIT
"""Verification fails where it must, names the op, and says no more than it saw."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import bitnet_edge
from bitnet_edge.cli import main
from bitnet_edge.errors import ArgumentError, ExportError, UnsupportedOp, VerificationFailed
from bitnet_edge.exporters import lowering, package, verify
from bitnet_edge.exporters.targets import load_target
from bitnet_edge.exporters.targets import target as base
from bitnet_edge.profiles import load_profile
from tests.conftest import ROOT, checkpoint
from tests.graphs import decoder, mlp

TARGET = load_target("onnx")


def export(source, path, **choices):
    return bitnet_edge.export(source, device="pixel-8", out=path, target="onnx", **choices)


@pytest.fixture
def lowered(monkeypatch):
    def change(op, replacement):
        table = dict(TARGET.lowerings) | {op: replacement}
        monkeypatch.setattr(type(TARGET), "lowerings", table)

    return change


def test_the_first_op_that_is_wrong_is_named(lowered, tmp_path):
    def truncating(e, node, operands):
        y = lowering.gated_activation(e, node, operands)
        return e.op("mul", y, 1.001) if node.name == "layers.1.act" else y

    lowered("gated_activation", truncating)
    path = tmp_path / "m.onnx"
    with pytest.raises(VerificationFailed, match=r"\[gated_activation\].*node 'layers.1.act'"):
        export(decoder(), path)
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_a_state_that_does_not_carry_is_named(monkeypatch, tmp_path):
    opened = TARGET.open

    def forgetful(*arguments):
        runner = opened(*arguments)
        run = runner.run

        def forget(inputs, position=0):
            if position:
                for cache in runner._caches.values():
                    cache[:] = 0
            return run(inputs, position)

        runner.run = forget
        return runner

    monkeypatch.setattr(TARGET, "open", forgetful)
    with pytest.raises(VerificationFailed, match=r"\[attention\].*node 'layers.0.attention'"):
        export(decoder(), tmp_path / "m.onnx")


def test_outputs_that_are_no_numbers_are_told(lowered, tmp_path):
    def nan(e, node, operands):
        return e.op("mul", lowering.linear(e, node, operands), float("nan"))

    lowered("linear", nan)
    with pytest.raises(VerificationFailed, match=r"\[linear\].*lm_head"):
        export(decoder(), tmp_path / "m.onnx")


def test_deviation_without_a_flip_is_told(monkeypatch, tmp_path):
    opened = TARGET.open

    class Biased:
        runtime = "biased"

        def __init__(self, runner):
            self.runner = runner
            self.reset = runner.reset

        def run(self, inputs, position=0):
            found = self.runner.run(inputs, position)
            if len(found) == 1:  # the package, not its debug twin
                found = {name: value + 0.01 for name, value in found.items()}
            return found

    monkeypatch.setattr(TARGET, "open", lambda *a: Biased(opened(*a)))
    with pytest.raises(VerificationFailed, match="where no rounding flips.*every op alone agrees"):
        export(decoder(), tmp_path / "m.onnx")


def test_too_little_agreement_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(type(TARGET), "tolerance", base.Tolerance(row=10, agreement=1.01))
    with pytest.raises(VerificationFailed, match=r"expected 101.0% of the largest outputs"):
        export(decoder(), tmp_path / "m.onnx")


def test_rows_without_tokens(tmp_path):
    result = export(mlp(), tmp_path / "m.onnx")
    v = result.verification
    assert v.max_error <= 1e-5
    assert (v.agreement, v.perplexity) == (None, None)
    assert v.rows == 20


def test_large_models_are_verified_by_less(monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "LARGE", 1)
    v = export(decoder(), tmp_path / "m.onnx").verification
    assert (v.prompts, v.steps) == (1, 4)


def test_a_short_context_is_filled(tmp_path):
    v = export(decoder(), tmp_path / "m.onnx", context=3).verification
    assert v.steps == 8, "a row and two steps of each prompt"


def test_nothing_is_claimed_without_verification(tmp_path):
    result = export(mlp(), tmp_path / "m.onnx", verify=False)
    assert result.verification is None
    assert base.unverified().encode() in result.path.read_bytes()


def test_the_stamp_changes_nothing_else(tmp_path):
    plain = export(mlp(), tmp_path / "a.onnx", verify=False).path.read_bytes()
    stamped = export(mlp(), tmp_path / "b.onnx").path.read_bytes()
    assert len(plain) == len(stamped)
    at = plain.index(base.unverified().encode())
    assert plain[:at] == stamped[:at]
    end = at + base.VERIFICATION_BYTES
    assert plain[end:] == stamped[end:]


def test_a_package_without_the_place_for_a_stamp(tmp_path):
    seen = export(mlp(), tmp_path / "a.onnx").verification
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "other").write_bytes(b"something")
    with pytest.raises(ExportError, match="does not hold"):
        verify.stamp(tmp_path / "m", seen)


def test_the_store_limit_is_kept(tmp_path):
    profile = replace(load_profile("pixel-8"), ota_limit_mb=0.001)
    with pytest.raises(ExportError, match=r"over the .* MB that the store delivers to pixel-8"):
        bitnet_edge.export(decoder(), device=profile, out=tmp_path / "m.onnx", target="onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"form": "int3"}, "expected form int2 or int4 or dequantize or ort, got 'int3'"),
        ({"context": 101}, r"expected context 1 \.\. 100, got 101"),
        ({"prefill_chunk": 0}, r"expected prefill_chunk 1 \.\. 4096, got 0"),
        ({"kv_dtype": "f16"}, "expected no kv_dtype, got 'f16'"),
        ({"threads": 2}, "expected no threads, got 2"),
        ({"residency": "mapped"}, "expected no residency, got 'mapped'"),
        ({"window": 50}, "expected no window, got 50"),
        ({"sinks": 4}, "expected no sinks, got 4"),
    ],
)
def test_choices_that_a_target_does_not_have(choices, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        export(decoder(), tmp_path / "m.onnx", **choices)


def test_a_head_that_was_quantised_is_refused(tmp_path):
    bitnet_edge.export(decoder(), out=tmp_path / "m.bte", head_dtype="int8")
    with pytest.raises(UnsupportedOp, match=r"\[linear\].*int8.*node 'lm_head_linear'"):
        export(tmp_path / "m.bte", tmp_path / "m.onnx")
    bitnet_edge.export(decoder(), out=tmp_path / "s.bte")
    assert export(tmp_path / "s.bte", tmp_path / "m.onnx").verification.agreement >= 0.995


def test_a_bte_file_has_no_forms(tmp_path):
    with pytest.raises(ArgumentError, match="no form"):
        bitnet_edge.export(mlp(), out=tmp_path / "m.bte", form="int2")


def test_the_command(tmp_path, capsys):
    command = ["export", str(checkpoint("packed")), "--device", "pixel-8", "--target", "onnx"]
    command += ["-o", str(tmp_path / "m.onnx")]
    assert main([*command, "--ort"]) == 0
    out = capsys.readouterr().out
    for text in ("onnx ort:", "an estimate", "verified in onnxruntime", "top-1 agreement 100.00 %"):
        assert text in out
    assert main([*command, "--no-verify", "--json", "--force"]) == 0
    assert '"verification": null' in capsys.readouterr().out
    assert main(command) == 2
    assert "exists; --force" in capsys.readouterr().err
    assert main([*command[:4], "--form", "int2"]) == 2
    assert "need another --target" in capsys.readouterr().err


def test_a_failed_verification_exits_with_one(lowered, tmp_path, capsys):
    lowered("linear", lambda e, n, o: e.op("mul", lowering.linear(e, n, o), 2.0))
    command = ["export", str(checkpoint("packed")), "--target", "onnx", "-o", str(tmp_path / "m")]
    assert main(command) == 1
    assert "[linear] expected onnx to be within" in capsys.readouterr().err


KILLED = """
import sys
from pathlib import Path
from bitnet_edge.exporters.package import write_package
from bitnet_edge.profiles import load_profile
from tests.graphs import mlp
print("ready", flush=True)
while True:
    for seed in (1, 2):
        write_package(mlp(seed), "onnx", load_profile("pixel-8"), Path(sys.argv[1]))
"""


def test_a_kill_leaves_the_old_package_or_the_new_one(tmp_path):
    whole = []
    for seed in (1, 2):
        path = package.write_package(
            mlp(seed), "onnx", load_profile("pixel-8"), tmp_path / f"{seed}.onnx"
        ).path
        whole.append(path.read_bytes())
    path, moments = tmp_path / "m.onnx", random.Random(6)
    path.write_bytes(whole[0])
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert path.read_bytes() in whole
