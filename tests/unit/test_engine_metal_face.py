# SPDX-License-Identifier: MIT
"""What the engine tells another backend: scalars of instructions, samples of foreign logits."""

from __future__ import annotations

from array import array

import pytest

from bitnet_edge import _engine
from bitnet_edge.container import open_bte
from bitnet_edge.errors import ArgumentError, OutOfRange


def test_scalars_by_name(bte):
    file = open_bte(bte)
    program = _engine.Program(file.section("program"), file.section("weights"))
    names = [program.instruction(i)[0] for i in range(program.instruction_count)]
    assert program.scalars(names.index("rms_norm_quantize")) == {"eps": pytest.approx(1e-5)}
    assert program.scalars(names.index("ternary_linear"))["w_scale"] > 0
    with pytest.raises(IndexError, match="no instruction"):
        program.scalars(program.instruction_count)


def test_logits_from_elsewhere_are_sampled_alike():
    logits = array("f", [0.0, 2.0, 5.0, 4.5])
    greedy = _engine.Sampler(4)
    assert greedy.pick(logits) == 2
    assert _engine.Sampler(4, repetition_penalty=2.0).pick(logits, array("i", [2])) == 3
    assert greedy.pick(logits, array("i")) == 2
    with pytest.raises(ArgumentError, match="4 tokens, logits of 3"):
        greedy.pick(logits[:3])
    with pytest.raises(OutOfRange, match="no finite logit"):
        greedy.pick(array("f", [float("nan")] * 4))
