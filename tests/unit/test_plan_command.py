# SPDX-License-Identifier: MIT
"""``bitnet-edge plan``: what it prints is what the planner found, and every flag pins."""

from __future__ import annotations

import dataclasses
import json
import re
import time

import pytest

import bitnet_edge
from bitnet_edge.alternatives import alternatives
from bitnet_edge.cli import main
from bitnet_edge.errors import BudgetExceeded, ExportError
from bitnet_edge.exporters.sources.synthetic import load_synthetic
from bitnet_edge.losses import BUNDLED
from bitnet_edge.planner import Planner, make_plan
from bitnet_edge.profiles import load_profile
from tests.conftest import checkpoint
from tests.graphs import decoder, mlp


def printed(capsys, *arguments: object) -> str:
    assert main(["plan", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_text_names_memory_speed_and_losses(capsys):
    out = printed(capsys, checkpoint("packed"), "--device", "raspberry-pi-4", "--kv-dtype", "int8")
    for name in ("arena", "kv_cache", "tokenizer", "engine", "interpreter", "weights"):
        assert re.search(rf"^ *{name}.* [\d.]+ [KM]B", out, re.MULTILINE), name
    assert re.search(r"predicted from the profile: [\d,]+ tokens/s decoding \(\w+ binds\)", out)
    assert f"int8 KV cache: on the bundled model {BUNDLED['kv_dtype', 'int8']}" in out
    assert "pinned by: --context 512 --kv-dtype int8" in out
    assert "not chosen" not in out


def test_measured_losses_are_this_model_s(capsys):
    arguments = (checkpoint("packed"), "--kv-dtype", "int4", "--head-dtype", "int4", "--measure")
    out = printed(capsys, *arguments)
    for key, noun in (("kv_dtype", "KV cache"), ("head_dtype", "head")):
        assert f"int4 {noun}: on this model {BUNDLED[key, 'int4']}" in out
    data = json.loads(printed(capsys, *arguments, "--json"))
    assert data["losses"]["kv_dtype"]["measured_on"] == "this model"
    assert [row["choice"] for row in data["measured"]] == ["kv_dtype", "head_dtype"]
    out = printed(capsys, checkpoint("packed"), "--explain", "--measure")
    assert f"measured here: --head-dtype int8: {BUNDLED['head_dtype', 'int8']}" in out


def test_json_is_complete(capsys):
    data = json.loads(
        printed(capsys, checkpoint("packed"), "--device", "iphone-12", "--json", "--explain")
    )
    plan = bitnet_edge.plan(checkpoint("packed"), "iphone-12")
    assert data["flags"] == plan.flags
    assert data["predicted"] == plan.speed.to_json()
    assert data["package_bytes"] == plan.package_bytes < data["ota_limit_bytes"] == 200 << 20
    assert data["losses"] == {}
    rows = {(row["choice"], row["value"]): row for row in data["alternatives"]}
    assert ("kv_dtype", "int4") in rows
    assert rows["kv_dtype", "int4"]["reasons"][0].startswith("lossier: 90.2 % of the greedy")
    assert all(row["reasons"] for row in data["alternatives"])
    assert ("kv_dtype", "f32") not in rows


def test_a_file_is_planned_anew_from_itself_alone(capsys, tmp_path):
    out = tmp_path / "m.bte"
    bitnet_edge.export(checkpoint("packed"), "raspberry-pi-5", out)
    here = json.loads(printed(capsys, out, "--device", "apple-watch", "--json", "--explain"))
    there = json.loads(
        printed(capsys, checkpoint("packed"), "--device", "apple-watch", "--json", "--explain")
    )
    assert here == there
    bitnet_edge.export(out, "apple-watch", tmp_path / "from_file.bte")
    bitnet_edge.export(checkpoint("packed"), "apple-watch", tmp_path / "direct.bte")
    assert (tmp_path / "from_file.bte").read_bytes() == (tmp_path / "direct.bte").read_bytes()


def test_a_file_keeps_its_head(capsys, tmp_path):
    out = tmp_path / "m.bte"
    bitnet_edge.export(checkpoint("packed"), out=out, head_dtype="int8")
    text = printed(capsys, out, "--explain")
    assert "int8 head" in text
    assert "--head-dtype int4" not in text.split("not chosen")[1]


def test_a_shortened_context_is_said(capsys, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: small\ndescription: Small\nextends: generic-50mb\nprivate_mb: 11.2\n")
    out = printed(capsys, checkpoint("packed"), "--device", path)
    assert re.search(r"the 512 positions of the profile do not fit: \d+ do", out)


# -- why not ----------------------------------------------------------------------------------


def reasons(planner: Planner) -> dict[tuple[str, str], str]:
    found = alternatives(planner, planner.solve())
    return {(other.choice, other.value): "; ".join(other.reasons) for other in found}


def test_reasons():
    profile = dataclasses.replace(load_profile("generic-50mb"), default_context=256)
    graph = load_synthetic("bitnet-2b-4t").graph
    why = reasons(Planner(graph, profile))
    plan = make_plan(graph, profile)
    assert re.match(r"\d+\.\d\d MB over the private budget", why["kv_dtype", "f32"])
    assert "lossier: 90.2 %" in why["kv_dtype", "int4"]
    assert "lossier: 97.7 %" in why["head_dtype", "int8"]
    assert re.search(r"decode \d+ % slower", why["threads", "1"])
    assert re.search(r"over the private budget|default is 256", why["context", "512"])
    assert ("kv_dtype", plan.kv_dtype.value) not in why
    pinned = reasons(Planner(graph, profile, kv_dtype="int8", head_dtype="int8"))
    assert pinned["head_dtype", "stored"].startswith("decode")
    pinned = reasons(Planner(decoder().graph, profile, kv_dtype="int4"))
    assert "--kv-dtype is pinned" in pinned["kv_dtype", "f32"]


def test_what_the_resident_budget_rejects(capsys, tmp_path):
    """2B-4T on a board of 512 MB: its weights are streamed, at the speed of the card."""
    graph, profile = load_synthetic("bitnet-2b-4t").graph, load_profile("raspberry-pi-zero-2w")
    planner = Planner(graph, profile)
    plan = planner.solve()
    assert plan.residency == "streamed"
    assert plan.speed.decode_bound == "storage"
    assert plan.budget.resident <= plan.budget.resident_allowed == 256 << 20
    why = {
        (other.choice, other.value): "; ".join(other.reasons)
        for other in alternatives(planner, plan)
    }
    for residency in ("mapped", "resident"):
        assert re.match(
            r"keeps \d+\.\d\d MB more than the resident budget", why["residency", residency]
        )
    with pytest.raises(BudgetExceeded, match="of resident memory") as caught:
        make_plan(graph, profile, residency="resident")
    assert caught.value.nearest[0].residency == "mapped"
    assert caught.value.nearest[1].residency == "streamed"
    out = printed(capsys, checkpoint("packed"), "--device", "raspberry-pi-zero-2w")
    assert re.search(r"kept at once +[\d.]+ MB +of 256.0 MB resident", out)


def test_heads_that_a_graph_cannot_have_are_no_alternatives():
    why = reasons(Planner(mlp().graph, load_profile("generic-50mb")))
    assert not any(choice == "head_dtype" for choice, _ in why)


# -- what the store delivers ------------------------------------------------------------------


def test_a_package_beyond_the_store_s_limit_is_refused(tmp_path, capsys):
    path = tmp_path / "shop.yaml"
    path.write_text("name: shop\ndescription: Shop\nextends: generic-50mb\nota_limit_mb: 1\n")
    shop = dataclasses.replace(load_profile("generic-50mb"), name="shop", ota_limit_mb=0.3)
    out = tmp_path / "m.bte"
    with pytest.raises(ExportError, match=r"MB over the 0\.3 MB that the store delivers to shop"):
        bitnet_edge.export(checkpoint("packed"), shop, out)
    assert list(tmp_path.iterdir()) == [path]
    bitnet_edge.export(checkpoint("packed"), shop, out, ota_limit=False)
    arguments = ["export", str(checkpoint("packed")), "-o", str(out), "--device", str(path)]
    assert main([*arguments, "--force"]) == 0
    assert bitnet_edge.plan(checkpoint("packed"), path).head_dtype == "stored"
    capsys.readouterr()
    geometry = ["synth", "--geometry", "20m-class", "-o", str(tmp_path / "g.bte")]
    assert main([*geometry, "--device", str(path)]) == 2
    assert "--ignore-ota-limit" in capsys.readouterr().err
    assert main([*geometry, "--device", str(path), "--ignore-ota-limit"]) == 0
    assert main(["plan", str(tmp_path / "g.bte"), "--device", str(path)]) == 0
    assert "over what the store delivers: export refuses it" in capsys.readouterr().out


# -- fast -------------------------------------------------------------------------------------


def test_planning_2b_takes_less_than_a_second():
    """About 0.1 s on an idle core; the best of three, so that a busy machine is no failure."""
    graph, profile = load_synthetic("bitnet-2b-4t").graph, load_profile("raspberry-pi-5")
    times = []
    for _ in range(3):
        start = time.process_time()
        planner = Planner(graph, profile)
        assert alternatives(planner, planner.solve())
        with pytest.raises(BudgetExceeded):
            make_plan(graph, profile, context=4096, kv_dtype="f32")
        times.append(time.process_time() - start)
    assert min(times) < 1
