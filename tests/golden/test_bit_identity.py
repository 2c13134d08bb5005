# SPDX-License-Identifier: MIT
"""One model, one answer: the same bits from every instruction set, thread count and chunking."""

from __future__ import annotations

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.api import import_model
from bitnet_edge.planner import KV_DTYPES
from bitnet_edge.reference import ReferenceModel
from tests.conftest import GOLDEN, LAYOUTS, checkpoint


@pytest.fixture(scope="module")
def ids() -> list[int]:
    with np.load(GOLDEN / "reference.npz") as data:
        return data["packed/3/greedy"].tolist()


@pytest.fixture
def restore_cpu():
    yield
    _engine.set_cpu(None)


@pytest.fixture(scope="module")
def scalar_logits(exported, ids) -> dict[str, np.ndarray]:
    _engine.set_cpu("scalar")
    try:
        return {
            layout: np.asarray(bitnet_edge.load(exported[layout], threads=1).logits(ids))
            for layout in LAYOUTS
        }
    finally:
        _engine.set_cpu(None)


@pytest.mark.parametrize("isa", list(_engine.cpu_isas()))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_instruction_set_gives_the_same_bits(
    isa, layout, exported, ids, scalar_logits, restore_cpu
):
    _engine.set_cpu(isa)
    served = set(_engine.kernel_isas().values())
    assert served <= set(list(_engine.cpu_isas())[: list(_engine.cpu_isas()).index(isa) + 1])
    logits = np.asarray(bitnet_edge.load(exported[layout], threads=1).logits(ids))
    assert logits.tobytes() == scalar_logits[layout].tobytes()


@pytest.mark.parametrize("threads", range(1, 9))
def test_every_thread_count_gives_the_same_bits(threads, exported, ids, scalar_logits):
    model = bitnet_edge.load(exported["packed"], threads=threads)
    for _ in range(5):  # races show rarely
        assert np.asarray(model.logits(ids)).tobytes() == scalar_logits["packed"].tobytes()


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_prefill_chunk_gives_the_same_bits(chunk, threads, ids, scalar_logits, tmp_path):
    out = tmp_path / "chunked.bte"
    bitnet_edge.export(checkpoint("packed"), out=out, prefill_chunk=chunk)
    model = bitnet_edge.load(out, threads=threads)
    assert np.asarray(model.logits(ids)).tobytes() == scalar_logits["packed"].tobytes()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_the_numpy_reference_gives_the_same_bits(kv_dtype, ids, tmp_path):
    source = import_model(checkpoint("packed"))
    out = tmp_path / "model.bte"
    bitnet_edge.export(source, out=out, kv_dtype=kv_dtype)
    expected = ReferenceModel(source, context=len(ids), kv_dtype=kv_dtype).logits(ids)
    assert np.asarray(bitnet_edge.load(out).logits(ids)).tobytes() == expected.tobytes()


def test_decode_gives_the_bits_of_prefill(exported, ids, scalar_logits):
    model = bitnet_edge.load(exported["packed"])
    for position, token in enumerate(ids[:40]):
        model.session.step(token, position)
        row = scalar_logits["packed"][position]
        assert np.asarray(model.session.logits).tobytes() == row.tobytes()


def test_company_changes_no_bit(exported, ids, scalar_logits):
    """Texts decoded in turns, each from its own position and with its own threads, as if alone."""
    models = [bitnet_edge.load(exported["packed"], threads=n) for n in (1, 2, 2, 3)]
    starts = (0, 1, 17, 64)
    for model, start in zip(models, starts, strict=True):
        if start:
            model.session.prefill(np.array(ids[:start], np.int32), 0)
    for step in range(24):
        for model, start in zip(models, starts, strict=True):
            model.session.step(ids[start + step], start + step)
            row = scalar_logits["packed"][start + step]
            assert np.asarray(model.session.logits).tobytes() == row.tobytes()


def test_f16_kv_cache_stays_close(exported, ids, tmp_path):
    out = tmp_path / "f16.bte"
    bitnet_edge.export(checkpoint("packed"), out=out, kv_dtype="f16")
    half = np.asarray(bitnet_edge.load(out).logits(ids))
    full = np.asarray(bitnet_edge.load(exported["packed"]).logits(ids))
    # f16 keys and values carry 2^-11; the int8 flips they cause bound the difference (gate b).
    assert np.abs(half - full).max() <= 0.5
    assert (half.argmax(1) == full.argmax(1)).mean() >= 0.97
