# SPDX-License-Identifier: MIT
"""MLX's own CPU build computes our ternary linears to the bit."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bitnet_edge.errors import MissingDependency, NotTernary, ShapeMismatch
from bitnet_edge.exporters.mlx_linear import GROUP_SIZES, MAX_COLUMNS, TernaryLinear, pack_mlx
from bitnet_edge.reference import REFERENCE
from tests.conftest import require_module


def linear(x, w, scale):
    return REFERENCE["ternary_linear"]({"x": x, "weight": w}, {"scale": scale}, 0)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_products_are_the_references(group_size, tokens):
    require_module("mlx")
    rng = np.random.default_rng(group_size)
    w = rng.integers(-1, 2, (48, 512)).astype(np.int8)
    x = rng.standard_normal((tokens, 512)).astype(np.float32)
    y = TernaryLinear(w, 0.37, group_size)(x)
    assert (y == linear(x, w, 0.37)).all()


@pytest.mark.parametrize("weight", [-1, 1])
def test_the_largest_sums_are_exact(weight):
    require_module("mlx")
    k = 16384
    w = np.full((3, k), weight, np.int8)
    x = np.full((1, k), -5.0, np.float32)
    assert (TernaryLinear(w, 1.5, 128)(x) == linear(x, w, 1.5)).all()
    assert 128 * MAX_COLUMNS == 2**24


def test_dequantised_weights_are_minus_s_zero_and_s():
    require_module("mlx")
    import mlx.core as mx

    w = np.array([[-1, 0, 1, 1] * 8], np.int8)
    scale = mx.full((1, 1), 0.25)
    back = mx.dequantize(mx.array(pack_mlx(w)), scale, -scale, group_size=32, bits=2)
    assert (np.array(back) == w * np.float32(0.25)).all()


def test_what_mlx_cannot_hold_is_refused(monkeypatch):
    with pytest.raises(NotTernary, match="got 0 .. 2"):
        pack_mlx(np.full((1, 32), 2, np.int8) * np.arange(32).clip(0, 1).astype(np.int8))
    with pytest.raises(ShapeMismatch, match="k % 32 == 0 and k <= 131072, got 48"):
        pack_mlx(np.zeros((1, 48), np.int8))
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(MissingDependency, match="bitnet-edge.mlx."):
        TernaryLinear(np.zeros((1, 32), np.int8), 1.0)


def test_group_sizes_divide_the_columns():
    require_module("mlx")
    with pytest.raises(ShapeMismatch, match="divides k = 96, got 64"):
        TernaryLinear(np.zeros((1, 96), np.int8), 1.0, 64)
