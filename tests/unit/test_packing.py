# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_edge.errors import NotTernary, ShapeMismatch
from bitnet_edge.packing import p16_bytes, pack_p16, unpack_p16


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32))
def test_round_trip(rows, k, seed):
    weights = np.random.default_rng(seed).integers(-1, 2, (rows, k)).astype(np.int8)
    packed = pack_p16(weights)
    assert packed.shape == (p16_bytes(rows, k),)
    assert (unpack_p16(packed, rows, k) == weights).all()


def test_the_layout_is_the_documented_one():
    rows, k = 35, 50
    weights = np.random.default_rng(1).integers(-1, 2, (rows, k)).astype(np.int8)
    packed = pack_p16(weights)
    padded_k = 64
    for row in range(48):
        for column in range(padded_k):
            byte = packed[
                ((row // 16) * (padded_k // 16) + column // 16) * 64 + 4 * (row % 16) + column % 4
            ]
            code = byte >> 2 * (column % 16 // 4) & 3
            inside = row < rows and column < k
            assert code == (weights[row, column] + 1 if inside else 1)


@pytest.mark.parametrize("value", [-2, 2, 127, -128])
def test_a_value_that_is_not_ternary_is_named(value):
    weights = np.zeros((20, 20), np.int8)
    weights[17, 3] = value
    with pytest.raises(NotTernary, match=rf"got {value} at row 17, column 3"):
        pack_p16(weights)


def test_a_wrong_size_is_refused():
    with pytest.raises(ShapeMismatch, match="expected 64 bytes, got 63"):
        unpack_p16(np.zeros(63, np.uint8), 16, 16)


def test_code_3_reads_as_plus_two():
    assert (unpack_p16(np.full(64, 255, np.uint8), 16, 16) == 2).all()
