# SPDX-License-Identifier: MIT
"""The doctor: what it says here, and what it would report of a GPU (a fake one)."""

from __future__ import annotations

import json
import sys
from itertools import count

import pytest

from bitnet_edge.cli import doctor, main
from bitnet_edge.metal.device import Device
from bitnet_edge.metal.predicted_speed import BANDWIDTHS, decode_tokens_per_second
from tests.conftest import ROOT
from tests.metal.fake_metal import FakeMetal

README = ROOT / "metal" / "README.md"


@pytest.mark.skipif(sys.platform == "darwin", reason="there it examines the GPU")
def test_elsewhere_it_says_what_it_cannot_do(capsys):
    assert main(["doctor", "--metal"]) == 2
    message = capsys.readouterr().err
    assert "expected macOS or iOS" in message
    assert "not compiled by Apple's compiler, not run on an Apple GPU" in message


def test_the_report_of_a_faithful_gpu(simulator, monkeypatch, capsys):
    ticks = count()
    report = doctor.examine(
        Device(FakeMetal(simulator)), (("int8", "stored"),), (5, 6, 7), lambda: float(next(ticks))
    )
    assert report["identical"]
    assert [row["prefill"] for row in report["plans"]] == ["simdgroup_matrix", "threadgroup"]
    assert report["plans"][0]["logits"] == (3 + doctor.STEPS) * 2048
    assert report["plans"][0]["gpu_seconds_per_token"] == 1 / doctor.STEPS
    monkeypatch.setattr(doctor, "Device", lambda: None)
    monkeypatch.setattr(doctor, "examine", lambda device: report)
    assert main(["doctor", "--metal"]) == 0
    assert "every bit is the CPU's" in capsys.readouterr().out
    assert main(["doctor", "--metal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "Fake M1"


def test_the_report_of_a_gpu_that_writes_nothing(monkeypatch, capsys):
    """As GitHub's paravirtual ones have done."""
    report = doctor.examine(Device(FakeMetal()), (("f32", "stored"),), (5, 6))
    assert not report["identical"]
    assert report["plans"][0]["different_logits"] > 0
    monkeypatch.setattr(doctor, "Device", lambda: None)
    monkeypatch.setattr(doctor, "examine", lambda device: report)
    assert main(["doctor", "--metal"]) == 1
    assert "BITS DIFFER" in capsys.readouterr().out


def predicted_rows() -> list[str]:
    """The README's table, from the geometry of the 2B model."""
    from bitnet_edge import plan
    from bitnet_edge.exporters.sources.synthetic import load_synthetic

    source = load_synthetic("bitnet-2b-4t")
    made = plan(source, "server-avx512", head_dtype="int8", context=512)
    used = {
        operand.name
        for instruction in made.lowered.instructions
        for operand in instruction.operands.values()
        if operand.region == "weights"
    }
    weights = sum(slot.bytes for slot in made.weights if slot.name in used)
    dispatches = len(made.lowered.instructions)
    rows = []
    for chip, bandwidth in BANDWIDTHS.items():
        ceiling = decode_tokens_per_second(weights, dispatches, bandwidth, 0)
        speed = decode_tokens_per_second(weights, dispatches, bandwidth)
        rows.append(f"| {chip} | {bandwidth / 1e9:g} | {ceiling:.0f} | {speed:.0f} |")
    return rows


def test_the_predictions_of_the_readme_are_computed():
    text = README.read_text()
    for row in predicted_rows():
        assert row in text, row
