# SPDX-License-Identifier: MIT
"""The stored losses are the measured ones: results are the same bits on every machine."""

from __future__ import annotations

import dataclasses

import pytest

from bitnet_edge.api import import_model
from bitnet_edge.errors import ModelError
from bitnet_edge.losses import BUNDLED, Loss
from bitnet_edge.measure_losses import measure_losses
from tests.conftest import checkpoint


def test_the_stored_figures_are_measured():
    found = measure_losses(import_model(checkpoint("packed")), BUNDLED)
    assert found.keys() == BUNDLED.keys()
    for key, loss in found.items():
        assert loss.tokens == BUNDLED[key].tokens
        assert loss.agreement == pytest.approx(BUNDLED[key].agreement, abs=1e-12)
        assert loss.perplexity == pytest.approx(BUNDLED[key].perplexity, abs=1e-6)


def test_no_loss_without_a_lossy_choice():
    found = measure_losses(
        import_model(checkpoint("packed")), [("kv_dtype", "f32")], "A short text"
    )
    (loss,) = found.values()
    assert loss == Loss(loss.tokens, 1.0, 0.0)
    assert 2 < loss.tokens < 10


def test_losses_need_a_tokenizer():
    source = dataclasses.replace(import_model(checkpoint("packed")), tokenizer=None)
    with pytest.raises(ModelError, match="no tokenizer to read text with"):
        measure_losses(source, BUNDLED)
