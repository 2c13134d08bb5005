# SPDX-License-Identifier: MIT
"""`--target all`: every package in one directory, and the table of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bitnet_edge.cli import main
from bitnet_edge.errors import ExportError
from bitnet_edge.exporters import lowering
from bitnet_edge.exporters.comparison import compare_targets
from bitnet_edge.exporters.targets import TARGETS, load_target
from bitnet_edge.profiles import load_profile
from tests.conftest import checkpoint
from tests.graphs import decoder, mlp

PROFILE = load_profile("pixel-8")


def test_the_command(tmp_path, capsys):
    out = tmp_path / "all"
    command = ["export", str(checkpoint("packed")), "--target", "all", "-o", str(out)]
    command += ["--kv-dtype", "f32", "--device", "pixel-8"]
    assert main(command) == 0
    text = capsys.readouterr().out
    data = json.loads((out / "comparison.json").read_text())
    assert [row["target"] for row in data["targets"]] == ["bte", *TARGETS]
    page = (out / "comparison.html").read_text()
    for row in data["targets"]:
        assert row["status"] == "written"
        assert row["verification"]["agreement"] >= 0.995
        assert row["target"] in page
        assert str(row["bytes"]) in text
    assert data["targets"][0]["verification"]["max_error"] == 0, "our engine gives the same bits"
    assert "<link" not in page
    assert "src=" not in page
    sizes = {p.suffix: p.stat().st_size for p in out.iterdir()}
    assert sizes[".onnx"] == data["targets"][1]["bytes"]
    assert main(command) == 2
    assert "exists; --force" in capsys.readouterr().err
    assert main([*command, "--force", "--ort"]) == 2
    assert "need one --target" in capsys.readouterr().err
    assert main([*command, "--force", "--no-verify", "--json"]) == 0
    assert all(
        row["verification"] is None for row in json.loads(capsys.readouterr().out)["targets"]
    )


def test_a_model_without_tokens(tmp_path):
    result = compare_targets(mlp(), PROFILE, tmp_path / "all")
    assert all(row.verification.max_error <= 1e-5 for row in result.rows)


def test_what_is_refused_or_wrong_is_told(tmp_path, monkeypatch):
    target = load_target("onnx")
    table = dict(target.lowerings) | {"linear": lowering.Refusal("no", "use another")}
    monkeypatch.setattr(type(target), "lowerings", table)
    rows = compare_targets(decoder(), PROFILE, tmp_path / "all").rows
    assert [(r.target, r.status) for r in rows[:2]] == [("bte", "written"), ("onnx", "refused")]
    assert "[linear] cannot be exported: no" in rows[1].detail
    wrong = dict(table) | {"linear": lambda e, n, o: e.op("mul", lowering.linear(e, n, o), 2.0)}
    monkeypatch.setattr(type(target), "lowerings", wrong)
    command = ["export", str(checkpoint("packed")), "--target", "all", "-o", str(tmp_path / "all")]
    assert main([*command, "--force"]) == 1
    page = (tmp_path / "all" / "comparison.html").read_text()
    assert "onnx: failed: [linear] expected onnx" in page
    assert not list((tmp_path / "all").glob("*.onnx"))


def test_the_store_limit_is_of_every_target(tmp_path):
    small = replace(PROFILE, ota_limit_mb=0.001)
    rows = compare_targets(decoder(), small, tmp_path / "a").rows
    assert {row.status for row in rows} == {"refused"}
    rows = compare_targets(decoder(), small, tmp_path / "b", ota_limit=False, verify=False).rows
    assert {row.status for row in rows} == {"written"}
    with pytest.raises(ExportError, match="exists"):
        compare_targets(decoder(), small, tmp_path / "b")
