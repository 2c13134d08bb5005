# SPDX-License-Identifier: MIT
"""Values and bytes of quantised heads."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet_edge.container import tensor_bytes
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ModelError, ShapeMismatch
from bitnet_edge.head_packing import (
    head_bytes,
    head_limit,
    pack_head,
    quantise_head,
    unpack_head,
)
from bitnet_edge.reference import head_product

STORAGES = (DType.I8_ROWS, DType.I4_GROUPS)
SHAPES = [(1, 1), (16, 4), (15, 31), (17, 65), (97, 40), (48, 200)]


def random_rows(rows: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, k)).astype(np.float32)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_round_trips(storage, shape):
    head = quantise_head(random_rows(*shape), storage)
    packed = pack_head(head)
    assert packed.size == head_bytes(storage, *shape) == tensor_bytes(storage.value, shape)
    again = unpack_head(packed, storage, shape)
    np.testing.assert_array_equal(again.codes, head.codes)
    np.testing.assert_array_equal(again.scales, head.scales)
    np.testing.assert_array_equal(pack_head(again), packed)


def test_bytes_are_where_the_format_page_says():
    rows, k = 20, 70
    int8 = quantise_head(random_rows(rows, k), DType.I8_ROWS)
    packed, panel = pack_head(int8), 64 + 64 * 18
    r, c = 18, 69
    assert packed[panel + 64 + c // 4 * 64 + 4 * 2 + c % 4].view(np.int8) == int8.codes[r, c]
    assert packed[panel + 8 : panel + 12].view(np.float32) == int8.scales[r]
    int4 = quantise_head(random_rows(rows, k), DType.I4_GROUPS)
    packed, block = pack_head(int4), 576
    for c in (0, 1, 2, 7, 31, 32, 63, 64, 69):
        at = (2 + c // 64) * block  # the second panel has two blocks in front of it
        line = packed[at + 64 + c % 64 // 8 * 64 :][8:12].view(np.uint32)[0]
        assert int(line >> (16 * (c % 2) + 4 * (c % 8 // 2)) & 15) - 8 == int4.codes[r, c]
        half = packed[at + c % 64 // 32 * 32 :][4:6].view(np.float16)[0]
        assert half == int4.scales[r, c // 32]


def test_int8_rounds_as_defined():
    w = np.array([[127, -127, 0.5, 1.5, 2.4], [0, 0, 0, 0, 0], [-2, 1, 0, 0, 0]], np.float32)
    head = quantise_head(w, DType.I8_ROWS)
    np.testing.assert_array_equal(head.scales[:, 0], [1, 0, np.float32(2) / np.float32(127)])
    expected = [[127, -127, 0, 2, 2], [0, 0, 0, 0, 0], [-127, 64, 0, 0, 0]]
    np.testing.assert_array_equal(head.codes, expected)  # 0.5 and 63.5 round to even


def test_int4_rounds_as_defined():
    w = np.zeros((2, 40), np.float32)
    w[0, :4] = [-8, 7, 0.5, 1.5]
    w[0, 32:35] = [4, -4, 3.9]  # the first of two largest decides the sign: 4 becomes -8
    head = quantise_head(w, DType.I4_GROUPS)
    np.testing.assert_array_equal(head.scales, [[1, -0.5], [0, 0]])
    np.testing.assert_array_equal(head.codes[0, :4], [-8, 7, 0, 2])
    np.testing.assert_array_equal(head.codes[0, 32:35], [-8, 7, -8])
    assert not head.codes[1].any()
    np.testing.assert_array_equal(head.rows([0])[0, 32:35], [4, -3.5, 4])


@pytest.mark.parametrize("storage", STORAGES)
def test_the_largest_element_of_a_scale_is_met(storage):
    w = random_rows(64, 96)
    error = np.abs(quantise_head(w, storage).rows(slice(None)) - w)
    step = np.abs(w).max() / (127 if storage is DType.I8_ROWS else 8)
    assert error.max() <= step  # int4 clamps the far side by at most one step


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(storage, value):
    w = random_rows(20, 40)
    w[11, 7] = value
    with pytest.raises(ModelError, match="expected finite weights .* in row 11"):
        quantise_head(w, storage)


def test_a_scale_beyond_float16_is_refused():
    with pytest.raises(ModelError, match="within the scales' range, got 1000000"):
        quantise_head(np.full((1, 32), 1e6, np.float32), DType.I4_GROUPS)


@pytest.mark.parametrize("storage", STORAGES)
def test_denormal_rows_become_zero(storage):
    head = quantise_head(np.full((3, 5), 1e-44, np.float32), storage)
    assert not head.codes.any()
    assert not head.scales.any()


def test_unpacking_the_wrong_number_of_bytes():
    with pytest.raises(ShapeMismatch, match="expected 1152 bytes, got 64"):
        unpack_head(np.zeros(64, np.uint8), DType.I4_GROUPS, (17, 64))


def test_no_sum_leaves_int32():
    for k in (1, 2, 63, 64, 512, 513, 2560, 6912, 1 << 16, 1 << 17):
        assert 127 <= head_limit(k) <= 32767
        assert head_limit(k) * 128 * k <= 2**31 - 1


@pytest.mark.parametrize("storage", STORAGES)
def test_the_product_is_close_to_the_float_product(storage):
    """The reference itself against float64: int16 activations cost next to nothing."""
    x, head = random_rows(5, 2560, 1), quantise_head(random_rows(40, 2560, 2), storage)
    exact = x.astype(np.float64) @ head.rows(slice(None)).astype(np.float64).T
    error = np.abs(head_product(x, head) - exact).max() / np.abs(exact).max()
    assert error < 3e-4  # half a step of 1 / 6553 on each of 2560 elements, random signs
