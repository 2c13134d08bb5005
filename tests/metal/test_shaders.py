# SPDX-License-Identifier: MIT
"""Every shader, executed: 200 random shapes each in changing lane schedules, and the extremes.

The traced simulator also checks each access against the buffers' bounds and for races, so that a
test here that passes has seen neither.
"""

from __future__ import annotations

import numpy as np
import pytest

from bitnet_edge import _engine
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import DeviceUnsupported
from bitnet_edge.head_packing import QuantisedHead, head_limit, pack_head
from bitnet_edge.metal import shader_library
from bitnet_edge.metal.encoder import SKIPPED
from bitnet_edge.metal.geometry import GEOMETRY, MAX_GEMM_K, MAX_GEMV_K, Pass, geometry
from tests.metal import cases
from tests.metal.cases import CASES
from tests.metal.checks import check
from tests.metal.simulator import SCHEDULES, Launch, Simulator

SHAPES = 200


def test_every_kernel_has_its_cases():
    assert set(CASES) == set(shader_library.kernels())


def test_every_instruction_has_its_grid():
    served = set(GEOMETRY) | set(SKIPPED) | {"screened_linear"}  # which is a dense_linear
    assert served == set(_engine.op_table())


@pytest.mark.parametrize("kernel", sorted(CASES))
def test_random_shapes(simulator: Simulator, kernel: str):
    for index in range(SHAPES):
        case = CASES[kernel](np.random.default_rng([index, 7]))
        assert case.launch.kernel == kernel
        check(simulator, case, SCHEDULES[index % 3], index)


@pytest.mark.parametrize("kernel", sorted(CASES))
def test_schedules_agree(simulator: Simulator, kernel: str):
    for index in range(SHAPES, SHAPES + 6):
        for schedule in SCHEDULES:
            case = CASES[kernel](np.random.default_rng([index, 7]))
            check(simulator, case, schedule, index)


# -- extremes -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [-1, 1])
@pytest.mark.parametrize("activation", [-128, 127])
@pytest.mark.parametrize(
    ("kernel", "k", "tokens"),
    [
        ("ternary_gemv", MAX_GEMV_K, 1),
        ("ternary_gemv", 6912, 2),
        ("ternary_gemm", 4096, 3),
        ("ternary_gemm_matrix", 4096, 3),
    ],
)
def test_ternary_sums_at_their_bounds(simulator, kernel, k, tokens, weight, activation):
    w = np.full((17, k), weight, np.int8)
    q = np.full((tokens, k), activation, np.int8)
    case = cases.ternary(np.random.default_rng(1), kernel, 17, k, tokens, w, q)
    check(simulator, case, "shuffled", 3)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["ternary_gemm", "ternary_gemm_matrix"])
def test_the_longest_gemm(simulator, kernel):
    w = np.full((3, MAX_GEMM_K), 1, np.int8)
    q = np.full((2, MAX_GEMM_K), -128, np.int8)
    case = cases.ternary(np.random.default_rng(1), kernel, 3, MAX_GEMM_K, 2, w, q)
    check(simulator, case, "reverse", 3)


@pytest.mark.parametrize("kernel", ["ternary_gemv", "ternary_gemm", "ternary_gemm_matrix"])
def test_the_hostile_code_3_is_weight_2_and_still_exact(simulator, kernel):
    k = MAX_GEMV_K if kernel == "ternary_gemv" else 4096
    q = np.full((1 if kernel == "ternary_gemv" else 2, k), -128, np.int8)
    case = cases.ternary(np.random.default_rng(2), kernel, 2, k, len(q), q=q)
    launch = case.launch
    launch.buffers["w"][:] = 0xFF
    acc = np.float64(2 * -128 * k).astype(np.float32)
    y = (acc / launch.buffers["s"][:, None]) * np.float32(launch.params["w_scale"])
    y = np.broadcast_to(y, (len(q), 2)).astype(np.float32)
    bias = launch.buffers["bias"]
    case.expected = {"y": y + bias if bias.size else y}
    check(simulator, case, "forward", 1)


def test_long_rows_are_multiplied_token_by_token_and_longer_ones_refused():
    dims = {"rows": 16, "k": MAX_GEMM_K}
    assert geometry("ternary_linear", dims, {"w_scale": 1}, Pass(2)).kernel == "ternary_gemm"
    assert geometry("ternary_linear", dims, {"w_scale": 1}, Pass(1)).kernel == "ternary_gemv"
    longer = dims | {"k": MAX_GEMM_K + 1}
    assert geometry("ternary_linear", longer, {"w_scale": 1}, Pass(2)).kernel == "ternary_gemv"
    with pytest.raises(DeviceUnsupported, match="k <= 262144"):
        geometry("ternary_linear", dims | {"k": MAX_GEMV_K + 1}, {"w_scale": 1}, Pass(1))


def test_one_more_column_would_not_be_exact():
    """The bounds are the largest that float32 allows, for the shapes that geometry launches."""
    assert 16 * -(-(MAX_GEMV_K // 16) // (8 * 1)) * 3 * 128 < 2**24  # one simdgroup
    assert 2 * 128 * MAX_GEMM_K == 2**24
    assert np.float32(2**24) + np.float32(256) != np.float32(2**24)


@pytest.mark.parametrize("bits", [4, 8])
def test_head_sums_at_their_bounds(simulator, bits):
    k, tokens = 4096, 2
    limit = head_limit(k)
    codes = np.full((16, k), -8 if bits == 4 else -128, np.int8)
    head = QuantisedHead(
        DType.I4_GROUPS if bits == 4 else DType.I8_ROWS,
        codes,
        np.ones((16, k // 32 if bits == 4 else 1), np.float32),
    )
    x = np.full((tokens, k), -3.0, np.float32)
    case = cases.head_gemv(np.random.default_rng(3), bits, 16, k, tokens, x)
    case.launch.buffers["w"][:] = pack_head(head)
    y = np.full((tokens, 16), np.float32(limit * -int(codes[0, 0]) * k), np.float32)
    if bits == 4:
        y[:] = 0
        for _ in range(k // 32):
            y = y + np.float32(limit * 8 * 32)
    y = y / case.launch.buffers["s"][:, None]
    bias = case.launch.buffers["bias"]
    case.expected = {"y": y + bias if bias.size else y}
    check(simulator, case, "reverse", 5)


@pytest.mark.parametrize("dtype", [0, 1, 4, 5])
def test_attention_with_large_heads_and_long_contexts(simulator, dtype):
    rng = np.random.default_rng(9)
    check(simulator, cases.attention(rng, dtype, 1, 5, 512, 1, 65), "shuffled", 1)
    check(simulator, cases.attention(rng, dtype, 1, 4, 64, 1, 400), "reverse", 1)


def test_exp_over_its_whole_range(simulator):
    """silu of many gates: every path of exp_f32."""
    x = np.concatenate(
        [np.linspace(-120, 120, 20000), [0.0, -0.0, 87.3, -87.3, 88.7228, 88.8, np.inf, -np.inf]]
    ).astype(np.float32)
    made = geometry("gated_activation", {"width": x.size, "kind": 1}, {}, Pass(1))
    up = np.ones_like(x)
    y = np.empty_like(x)
    simulator.run(
        Launch(made.kernel, made.groups, (256, 1, 1), {"y": y, "gate": x, "up": up}, made.params)
    )
    with np.errstate(all="ignore"):
        expected = cases.REFERENCE["gated_activation"](
            {"gate": x, "up": up}, {"activation": "silu"}, 0
        )
    same = (y.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(y) & np.isnan(expected))
    assert same.all()


def test_all_halves_convert(simulator):
    """Every float16 through embed_f16 and back through kv_append_f16."""
    table = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    ids = np.arange(256, dtype=np.int32)
    y = np.empty((256, 256), np.float32)
    made = geometry(
        "embed", {"width": 256, "vocab": 256, "dtype": 1}, {"multiplier": 1.0}, Pass(256)
    )
    simulator.run(
        Launch(
            made.kernel, made.groups, (256, 1, 1), {"y": y, "table": table, "ids": ids}, made.params
        )
    )
    expected = table.view(np.float16).astype(np.float32)
    finite = np.isfinite(expected)
    assert (y.view(np.uint32) == expected.view(np.uint32))[finite].all()
    assert (np.isnan(y) == np.isnan(expected)).all()
    cache = np.zeros((256, 256), np.uint16)
    made = geometry(
        "kv_append", {"kv_heads": 1, "head_dim": 256, "dtype": 1}, {}, Pass(256, 0, 256)
    )
    buffers = {"cache": cache.view(np.uint8), "x": y, "angles": np.zeros(0, np.float32)}
    simulator.run(Launch(made.kernel, made.groups, (32, 1, 1), buffers, made.params))
    assert (cache == np.where(np.isnan(expected), 0x7E00, table)).all()


def test_top_k_of_a_vocabulary_in_rounds(simulator):
    """128,000 logits to 8, as the host repeats it."""
    rng = np.random.default_rng(4)
    logits = np.round(rng.standard_normal((1, 128_000)) * 50).astype(np.float32)
    values, indices = logits, np.zeros((1, 0), np.uint32)
    while True:
        made = cases.top_k(values.shape[1], 8, has_indices=bool(indices.size))
        out = {
            "top_values": np.empty((1, made.groups[0] * 8), np.float32),
            "top_indices": np.empty((1, made.groups[0] * 8), np.uint32),
        }
        buffers = {**out, "values": values, "indices": indices}
        simulator.run(
            Launch(made.kernel, made.groups, (256, 1, 1), buffers, made.params, made.memory)
        )
        values, indices = out["top_values"], out["top_indices"]
        if made.groups[0] == 1:
            break
    expected = np.lexsort((np.arange(128_000), -logits[0]))[:8]
    assert (indices[0] == expected).all()
    assert (values[0] == logits[0, expected]).all()
