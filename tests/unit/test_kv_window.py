# SPDX-License-Identifier: MIT
"""Sequences without end: a window over a ring of the KV cache, and attention sinks."""

from __future__ import annotations

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.cli import main
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError
from bitnet_edge.memory import private_bytes
from bitnet_edge.planner import DEFAULT_SINKS, KV_DTYPES, make_plan
from bitnet_edge.profiles import load_profile
from bitnet_edge.reference import ReferenceModel
from tests.graphs import decoder, mlp

LENGTH = 400
IDS = np.random.default_rng(3).integers(0, 97, LENGTH)


@pytest.fixture
def restore_cpu():
    yield
    _engine.set_cpu(None)


def exported(tmp_path, source=None, **choices):
    path = tmp_path / "m.bte"
    bitnet_edge.export(source or decoder(), out=path, force=True, **choices)
    return path


# The ring of the first wraps within 400 positions at chunks of 8 and of 32 in other places.
@pytest.mark.parametrize("isa", list(_engine.cpu_isas()))
@pytest.mark.parametrize(
    ("window", "sinks", "kv_dtype"),
    [(50, 4, "f32"), (50, 0, "f16"), (1, 1, "f32"), (90, 10, "int8"), (64, 3, "int4")],
)
def test_engine_equals_reference(window, sinks, kv_dtype, isa, tmp_path, restore_cpu):
    source = decoder(5)
    reference = ReferenceModel(source, LENGTH, DType(kv_dtype), window=window, sinks=sinks)
    expected = reference.logits(IDS)
    _engine.set_cpu(isa)
    for chunk, threads in ((8, 1), (32, 2), (37, 3)):
        path = exported(
            tmp_path, source, window=window, sinks=sinks, kv_dtype=kv_dtype, prefill_chunk=chunk
        )
        with bitnet_edge.load(path, threads=threads) as model:
            got = np.asarray(model.logits(IDS))
            assert got.tobytes() == expected.tobytes()
            for position in range(LENGTH - 3, LENGTH):  # decoding, the cache full
                model.session.step(int(IDS[position]), position)
                assert bytes(model.session.logits) == expected[position].tobytes()


def test_without_rotation(tmp_path):
    source = decoder(6, rope=False)
    expected = ReferenceModel(source, LENGTH, window=40, sinks=2).logits(IDS)
    path = exported(tmp_path, source, window=40, sinks=2, kv_dtype="f32", prefill_chunk=16)
    with bitnet_edge.load(path) as model:
        assert np.asarray(model.logits(IDS)).tobytes() == expected.tobytes()


def test_what_a_window_sees(tmp_path):
    """Equal to full attention until something is out of sight, then different."""
    source = decoder(7, context=100)
    full = exported(tmp_path, source, kv_dtype="f32")
    with bitnet_edge.load(full) as model:
        everything = np.asarray(model.logits(IDS[:100])).copy()
    path = exported(tmp_path, source, window=46, sinks=4, kv_dtype="f32")
    with bitnet_edge.load(path) as model:
        assert (model.context, model.max_positions) == (50, 1 << 20)
        some = np.asarray(model.logits(IDS[:100]))
    assert some[:50].tobytes() == everything[:50].tobytes()
    assert not (some[50:] == everything[50:]).all(axis=1).any()


def test_the_sinks_are_seen_for_ever_and_the_past_is_not(tmp_path):
    path = exported(tmp_path, window=20, sinks=4, kv_dtype="f32", prefill_chunk=16)
    with bitnet_edge.load(path) as model:
        last = np.asarray(model.logits(IDS))[-1].copy()
        for position, seen in ((0, True), (3, True), (4, False), (300, False), (399, True)):
            changed = IDS.copy()
            changed[position] = (changed[position] + 1) % 97
            # layers=2: what a layer below saw of the past must be out of sight as well
            same = np.asarray(model.logits(changed))[-1].tobytes() == last.tobytes()
            assert same is not seen, position


def test_memory_is_constant(tmp_path):
    path = exported(tmp_path, window=60, sinks=4)
    with bitnet_edge.load(path) as model:
        for position in range(500):
            model.session.step(position % 97, position)
        before = private_bytes()
        for position in range(500, 20_500):
            model.session.step(position % 97, position)
        assert private_bytes() - before < 64 * 1024
        assert np.isfinite(np.asarray(model.session.logits)).all()


def test_generation_goes_on_past_the_context(bte, tmp_path):
    path = tmp_path / "endless.bte"
    bitnet_edge.export(bte, out=path, window=124, sinks=4)
    with bitnet_edge.load(path) as model:
        generation = model.generate(
            "ROMEO:\n", max_tokens=600, temperature=0.8, seed=1, ignore_eos=True
        )
        text = generation.text()
        assert len(generation.token_ids) == 600
        assert generation.finish_reason == "max_tokens"
        # a model without its first tokens in sight falls apart into noise: distinct words tell
        assert len(set(text[-400:].split())) > 20


def test_rewinding_within_and_beyond_what_the_ring_holds(tmp_path):
    path = exported(tmp_path, window=20, sinks=4, kv_dtype="f32", prefill_chunk=16)
    with bitnet_edge.load(path) as model:
        expected = np.asarray(model.logits(IDS)).copy()
        model.session.step(int(IDS[395]), 395)  # 4 back: still held
        assert bytes(model.session.logits) == expected[395].tobytes()
        with pytest.raises(ArgumentError, match="position before the window"):
            model.session.step(int(IDS[100]), 100)
        model.session.step(int(IDS[0]), 0)  # a new sequence
        assert bytes(model.session.logits) == expected[0].tobytes()
        with pytest.raises(ArgumentError, match="position"):
            model.session.step(0, 2)


def test_plans(tmp_path, capsys):
    graph, profile = decoder(context=1000).graph, load_profile("generic-50mb")
    plan = make_plan(graph, profile, window=300)
    assert (plan.context, plan.window, plan.sinks) == (300 + DEFAULT_SINKS, 300, DEFAULT_SINKS)
    assert f"--sinks {DEFAULT_SINKS} --window 300" in plan.flags
    assert "--context" not in plan.flags
    assert plan.cache_rows == _engine.kv_window_rows(300, DEFAULT_SINKS, plan.prefill_chunk)
    assert plan.cache_rows >= 300 + 2 * DEFAULT_SINKS + plan.prefill_chunk - 1
    for kv_dtype in KV_DTYPES:
        fixed = make_plan(graph, profile, context=plan.cache_rows, kv_dtype=kv_dtype)
        assert make_plan(graph, profile, window=300, kv_dtype=kv_dtype).state_bytes == (
            fixed.state_bytes
        )
    refused = [{"window": 0}, {"window": 5, "sinks": -1}, {"window": 5, "context": 9}]
    for pins in refused:
        with pytest.raises(ArgumentError, match="a window of 1 or more positions"):
            make_plan(graph, profile, **pins)
    with pytest.raises(ArgumentError, match="a model with a KV cache"):
        make_plan(mlp().graph, profile, window=5)
    with pytest.raises(ArgumentError, match="sinks beside a window only"):
        make_plan(graph, profile, sinks=4)
    with pytest.raises(ArgumentError, match="expected context 1 .. 1000, got 1004"):
        make_plan(graph, profile, window=1000)


def test_command_line(bte, tmp_path, capsys):
    path = tmp_path / "m.bte"
    assert main(["export", str(bte), "--window", "200", "--sinks", "2", "-o", str(path)]) == 0
    assert "window of 200 and 2 sinks over an endless sequence" in capsys.readouterr().out
    assert main(["plan", str(path), "--window", "64", "--explain"]) == 0
    assert main(["inspect", str(path)]) == 0
    assert "window 200, sinks 2" in capsys.readouterr().out
    assert main(["validate", str(path), "--skip", "speed"]) == 0
