# SPDX-License-Identifier: MIT
"""The engine against transformers: gates (a) and (b) of the design, for each layout.

Against the reference implementation end-to-end equality is impossible by nature: reordering one
float32 sum can flip an int8 rounding, and one flip moves logits (the reference differs from itself
in float64 by as much). Hence: (a) layer by layer on identical inputs nearly everything is equal;
(b) teacher-forced over the reference's own texts the same tokens win, near-ties aside.
"""

from __future__ import annotations

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge.api import import_model
from bitnet_edge.reference import REFERENCE, quantize
from tests.conftest import GOLDEN, LAYOUTS, checkpoint

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
# A row of the reference that no int8 flip has touched agrees to about 1e-5; this separates them
# from flipped rows (which differ by 1e-2 and more) with a wide margin on both sides.
FLIP_FREE = 1e-3


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "reference.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def layers() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "layers.npz") as data:
        return dict(data)


def teacher_forced(reference: dict[str, np.ndarray], layout: str) -> list[tuple]:
    """(ids, first row, expected logits) of every prompt and every greedy text."""
    cases = []
    for i in range(len(reference["prompts"])):
        key = f"{layout}/{i}"
        ids, greedy = reference[f"{key}/ids"], reference[f"{key}/greedy"]
        cases.append((ids, 0, reference[f"{key}/logits"]))
        cases.append((greedy, len(ids), reference[f"{key}/greedy_logits"]))
    return cases


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gate_b_teacher_forced_logits(layout, exported, reference, capsys):
    model = bitnet_edge.load(exported[layout])
    differences, agreements, margins, prompt_medians = [], [], [], []
    for ids, first, expected in teacher_forced(reference, layout):
        logits = np.asarray(model.logits(ids))[first:]
        assert logits.shape == expected.shape
        row_difference = np.abs(logits - expected).max(axis=1)
        differences.append(row_difference)
        if first == 0 and row_difference.max() < FLIP_FREE:
            prompt_medians.append(np.median(row_difference))
        agree = logits.argmax(axis=1) == expected.argmax(axis=1)
        agreements.append(agree)
        for row in np.flatnonzero(~agree):
            top = np.sort(expected[row])[-2:]
            margins.append(top[1] - top[0])
    difference, agreement = np.concatenate(differences), np.concatenate(agreements)
    with capsys.disabled():
        print(
            f"\n  {layout}: {len(difference)} rows, top-1 agreement "
            f"{100 * agreement.mean():.2f} %, largest margin of a disagreement "
            f"{max(margins, default=0):.4f}, max |difference| "
            f"{difference.max():.3f}, {len(prompt_medians)} flip-free prompts with median "
            f"{max(prompt_medians, default=np.nan):.1e}"
        )
    assert agreement.mean() >= 0.98
    assert max(margins, default=0) < 0.1
    assert difference.max() <= 0.5
    # The bits are the same on every machine, so the number of flip-free prompts is too: fewer mean
    # that the numerics have moved.
    assert len(prompt_medians) == {"bf16": 2, "packed": 4, "packed-bitlinear": 4}[layout]
    assert max(prompt_medians) <= 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gate_a_each_linear_on_identical_inputs(layout, layers):
    source = import_model(checkpoint(layout))
    nodes = {node.name: node for node in source.graph.nodes}
    flipped = total = 0
    for layer in (0, 5):
        for projection in PROJECTIONS:
            key = f"{layout}/layer{layer}/{projection}"
            node = nodes[f"layers.{layer}.{projection}_proj"]
            x, y = layers[f"{key}/x"], layers[f"{key}/y"]
            operands = {"x": x, "weight": source.weights.load(node.inputs[1])}
            got = REFERENCE["ternary_linear"](operands, node.attributes, 0)
            same_rows = np.ones(len(x), bool)
            if layer == 0:
                q, s = quantize(x)
                expected_q = layers[f"{key}/q"].astype(int)
                # torch computes 127 / m as (1 / m) * 127: one unit in the last place
                np.testing.assert_array_max_ulp(s, layers[f"{key}/s_x"].reshape(-1), maxulp=1)
                assert np.abs(q - expected_q).max() <= 1
                flipped += int((q != expected_q).sum())
                total += q.size
                same_rows = (q == expected_q).all(axis=1)
            # The reference sums floats, so a small y among large ones carries their rounding:
            # the bound is relative to the row's largest.
            scale = np.abs(y).max(axis=1, keepdims=True)
            assert (np.abs(got - y) / scale)[same_rows].max() <= 1e-5
    assert total > 0
    assert flipped <= 1e-4 * total


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_text_equals_the_reference_up_to_a_near_tie(layout, exported, reference):
    model = bitnet_edge.load(exported[layout])
    for i in range(len(reference["prompts"])):
        ids = reference[f"{layout}/{i}/ids"].tolist()
        expected = reference[f"{layout}/{i}/greedy"][len(ids) :].tolist()
        logits = reference[f"{layout}/{i}/greedy_logits"]
        generation = model.generate(ids, max_tokens=len(expected), ignore_eos=True)
        generation.text()
        for step, (token, wanted) in enumerate(zip(generation.token_ids, expected, strict=True)):
            if token != wanted:
                # greedy_logits[step - 1] chose this token (the first came from the prompt)
                row = logits[step - 1] if step else reference[f"{layout}/{i}/logits"][-1]
                assert row[wanted] - row[token] < 0.1
                break
