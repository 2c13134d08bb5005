# SPDX-License-Identifier: MIT
"""The host layer against a fake Metal that checks every message and runs what is committed."""

from __future__ import annotations

import logging
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.container import open_bte
from bitnet_edge.errors import ArgumentError, BudgetExceeded, DeviceUnsupported
from bitnet_edge.metal import encoder, session
from bitnet_edge.metal.device import Device
from bitnet_edge.metal.objc import Runtime
from bitnet_edge.metal.session import Session, estimate, open_session
from tests.conftest import PROMPT
from tests.metal.fake_metal import FakeMetal, ValidationError
from tests.metal.test_forward_pass import IDS, same


def program_of(path: Path) -> _engine.Program:
    file = open_bte(path)
    return _engine.Program(file.section("program"), file.section("weights"))


@pytest.fixture
def on_metal(simulator, monkeypatch):
    """Models loaded for the GPU run on a fake one."""
    fake = FakeMetal(simulator)
    monkeypatch.setattr(session, "Device", lambda: Device(fake))
    return fake


def test_a_model_on_metal_writes_the_same_text(on_metal, bte):
    with bitnet_edge.load(bte, threads=1) as model:
        expected = model.generate(PROMPT, max_tokens=4).text()
        logits = model.logits(IDS)
    with bitnet_edge.load(bte, memory_budget="1GB", device="metal") as model:
        assert isinstance(model.session, Session)
        assert model.generate(PROMPT, max_tokens=4).text() == expected
        assert same(np.asarray(model.logits(IDS)), logits)
        assert model.memory_report()
    assert len(on_metal.committed) == 1 + 3 + 1
    assert on_metal.alive("commands") == 0 == on_metal.pools
    assert on_metal.alive("buffer") == 0  # given back with the model


def test_one_command_buffer_a_pass_and_the_next_one_encoded_meanwhile(on_metal, bte):
    device = Device(on_metal)
    gpu = Session(program_of(bte), device)
    gpu.prefill(array("i", IDS[:3]), 0)
    on_metal.log.clear()
    gpu.step(IDS[3], 3)
    kinds = [m for m in on_metal.log if m in ("commit", "commandBuffer", "waitUntilCompleted")]
    assert kinds == ["commandBuffer", "commit", "commandBuffer", "waitUntilCompleted"]
    on_metal.log.clear()
    gpu.step(IDS[4], 4)  # was encoded while the token before ran
    kinds = [m for m in on_metal.log if m in ("commit", "commandBuffer", "waitUntilCompleted")]
    assert kinds == ["commit", "commandBuffer", "waitUntilCompleted"]
    gpu.step(IDS[3], 3)  # a rewind drops what was encoded
    assert same(np.array(gpu.logits), bitnet_edge.load(bte).logits(IDS[:4])[3])


def test_a_missing_barrier_is_a_hazard(on_metal, bte, monkeypatch):
    gpu = Session(program_of(bte), Device(on_metal))
    plan = gpu._plan(1, 1)
    marked = [dispatch for dispatch in plan if dispatch.barrier]
    for victim in marked[:3]:
        victim.barrier = False
        with pytest.raises(ValidationError, match="hazard: "):
            gpu.step(IDS[0], 0)
        victim.barrier = True
        gpu._running = 0
    gpu.step(IDS[0], 0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("offset", "not aligned|outside"),
        ("threads", "threads are no whole simdgroups"),
        ("groups", "an empty grid"),
        ("memory", "threadgroup memory"),
        ("params", "parameters' length"),
        ("binding", "buffers at"),
        ("region", "in the mapped file"),
    ],
)
def test_the_recorder_refuses_wrong_encodes(bte, fault, message):
    gpu = Session(program_of(bte), Device(FakeMetal()))
    dispatch = next(d for d in gpu._plan(1, 1) if d.geometry.kernel == "ternary_gemv")
    if fault == "offset":
        dispatch.bindings[2].offset += 2
    elif fault == "threads":
        dispatch.geometry.threads = 100
    elif fault == "groups":
        dispatch.geometry.groups = (0, 1, 1)
    elif fault == "memory":
        dispatch.geometry.memory = ()
    elif fault == "params":
        dispatch.params += b"\0"
    elif fault == "binding":
        dispatch.bindings = dispatch.bindings[:-1]
    else:
        dispatch.bindings[0].region = "weights"
    with pytest.raises(ValidationError, match=message):
        gpu.step(IDS[0], 0)


def test_a_pipeline_with_fewer_threads_is_refused(bte):
    with pytest.raises(ValidationError, match="128 threads|256 threads"):
        Session(program_of(bte), Device(FakeMetal(most_threads=64))).step(1, 0)


# -- what the GPU cannot ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "names no Metal device"),
        ({"apple7": False}, "expected Apple7"),
        ({"width": 64}, "simdgroups of 32 threads, got 64"),
        ({"compile_error": "expected ';'"}, "expected ';'"),
        ({"largest": 1 << 16}, "cannot map"),
    ],
)
def test_auto_falls_back_to_the_cpu_and_says_why(bte, monkeypatch, caplog, options, message):
    monkeypatch.setattr(session, "Device", lambda: Device(FakeMetal(**options)))
    monkeypatch.setattr(session, "estimate", lambda weights, dispatches: (1.0, 0.0))
    with pytest.raises(DeviceUnsupported, match=message):
        bitnet_edge.load(bte, memory_budget="1GB", device="metal")
    with caplog.at_level(logging.INFO, "bitnet_edge.metal"):
        model = bitnet_edge.load(bte, memory_budget="1GB", device="auto")
    assert isinstance(model.session, _engine.Session)
    assert len(caplog.records) == 1
    assert message in caplog.text


def test_a_refused_buffer(bte):
    device = Device(FakeMetal(largest=1 << 30))
    assert device.buffer(0)[0]
    with pytest.raises(DeviceUnsupported, match="no buffer of"):
        device.buffer(1 << 31)


def test_weights_count_as_resident(bte, monkeypatch):
    monkeypatch.setattr(session, "Device", lambda: Device(FakeMetal()))
    program = program_of(bte)
    weights = program.weights[1]
    with pytest.raises(BudgetExceeded, match="bytes of weights resident: 1 over") as raised:
        open_session(program, "metal", weights + 99, 100)
    assert raised.value.needed == weights + 100
    assert open_session(program, "metal", weights + 100, 100)


def test_auto_keeps_small_nets_on_the_cpu(bte, monkeypatch, caplog):
    monkeypatch.setattr(session, "Device", lambda: Device(FakeMetal()))
    with caplog.at_level(logging.INFO, "bitnet_edge.metal"):
        assert open_session(program_of(bte), "auto", 1 << 30, 0) is None
    assert "bytes of weights are" in caplog.text
    cpu, gpu = estimate(700_000_000, 400)  # a 2B model
    assert gpu < cpu


def test_unknown_devices_and_other_systems(bte):
    with pytest.raises(ArgumentError, match="expected device cpu, metal, auto, got 'cuda'"):
        bitnet_edge.load(bte, device="cuda")
    assert open_session(program_of(bte), "cpu", 1, 1) is None
    if sys.platform not in ("darwin", "ios"):
        with pytest.raises(DeviceUnsupported, match="expected macOS or iOS, this is linux"):
            Runtime()


def test_a_gpu_error_is_an_error(bte):
    gpu = Session(program_of(bte), Device(FakeMetal(gpu_error="timed out")))
    with pytest.raises(DeviceUnsupported, match="the GPU failed: timed out"):
        gpu.step(1, 0)


def test_systems_before_macos_15_have_no_maths_mode(bte):
    Session(program_of(bte), Device(FakeMetal(old_system=True)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.step(1, 5), "position 0 .. 0, got 5"),
        (lambda s: s.step(-1, 0), "expected ids below 2048, got -1"),
        (lambda s: s.run((array("i", [1, 2]),), (), 1), "4 bytes of input 0, got 8"),
        (lambda s: s.run((array("i", [1]),), (), 1, 0, 2), "output_rows 0 .. 1, got 2"),
        (lambda s: s.prefill(array("i", [1] * 4000), 0), "n_tokens 1 .. "),
    ],
)
def test_bad_calls(bte, call, message):
    gpu = Session(program_of(bte), Device(FakeMetal()))
    with pytest.raises(ArgumentError, match=message):
        call(gpu)


def test_the_end_of_the_context(simulator, tmp_path, bte):
    bitnet_edge.export(bte, out=tmp_path / "short.bte", context=3, prefill_chunk=2)
    gpu = Session(program_of(tmp_path / "short.bte"), Device(FakeMetal(simulator)))
    gpu.prefill(array("i", [1, 2]), 0)
    gpu.step(3, 2)
    assert gpu._ahead is None  # nothing beyond the context is encoded
    with pytest.raises(ArgumentError, match="at most 3 positions, got 4"):
        gpu.step(4, 3)
    assert gpu.private_bytes > 0


def test_a_session_has_the_methods_of_the_engines():
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(_engine.Session) - public(Session) == {
        "profile",
        "program",
        "residency",
        "position",
    }


def test_plans_are_kept_but_not_without_end(bte):
    gpu = Session(program_of(bte), Device(FakeMetal()))
    assert gpu._plan(1, 1) is gpu._plan(1, 1)
    for n in range(1, 14):
        gpu._plan(n, 1)
    assert len(gpu._plans) <= 9


def test_moving_a_pass_moves_its_positions_only(bte):
    program = program_of(bte)
    direct = encoder.encode(program, 2, 5, 1)
    moved = encoder.moved(encoder.encode(program, 2, 0, 1), 5)
    assert [d.params for d in direct] == [d.params for d in moved]
    assert [d.barrier for d in direct] == [d.barrier for d in moved]


def test_weights_lie_on_the_pages_of_every_apple_system(bte):
    section = open_bte(bte).sections["weights"]
    assert section.offset % 16384 == 0
    assert open_bte(bte).size % 16384 == 0
