# SPDX-License-Identifier: MIT
"""The closed table op x target x form: a lowering that computes the op, or a refusal that helps."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet_edge.errors import UnsupportedOp
from bitnet_edge.exporters.lowering import UNIVERSAL, Refusal, emit
from bitnet_edge.exporters.targets import TARGETS, load_target
from bitnet_edge.exporters.targets.target import VERIFICATION_KEY, make_settings, unverified
from bitnet_edge.ops import OPS
from bitnet_edge.profiles import load_profile
from bitnet_edge.reference import ReferenceModel
from tests.exporters.graphs import MAKERS, one_node, random_inputs

SEEDS = range(3)
FORMS = [(name, form) for name in TARGETS for form in load_target(name).forms]


def test_the_table_is_closed():
    for name in TARGETS:
        assert set(load_target(name).lowerings) == set(OPS), name
    assert set(MAKERS) == set(OPS)


@pytest.mark.parametrize(("name", "form"), FORMS)
@pytest.mark.parametrize("op", sorted(OPS))
def test_each_op_in_each_form(name, form, op, tmp_path):
    target = load_target(name)
    if isinstance(target.lowerings[op], Refusal):
        source = one_node(op, 0)
        settings = make_settings(source.graph, load_profile("pixel-8"), target.form(form))
        with pytest.raises(UnsupportedOp, match=rf"\[{op}\].*node 'node'"):
            target.write(source, settings, tmp_path / "p", metadata={})
        return
    for seed in SEEDS:
        source = one_node(op, seed)
        settings = make_settings(
            source.graph, load_profile("pixel-8"), target.form(form), prefill_chunk=4
        )
        path = tmp_path / f"{seed}{target.suffix}"
        metadata = {VERIFICATION_KEY: unverified()}
        target.write(source, settings, path, metadata=metadata, debug=True)
        runner = target.open(path, source, settings)
        reference = ReferenceModel(source, kv_dtype=settings.form.kv_dtype)
        position = 0
        for rows in (5, 1, 1, 6):
            inputs = random_inputs(source, rows, position)
            if op == "ternary_linear":
                inputs["x"][0] = 0.0
            at = position if source.graph.states() else 0
            expected = reference.run(inputs, at)["node.out"]
            found = runner.run(inputs, at)["node.out"]
            scale = np.maximum(np.abs(expected).max(axis=1, keepdims=True), 1e-6)
            assert (np.abs(found - expected) / scale).max() <= target.allowed(settings.form).op, (
                seed,
                rows,
            )
            position += rows


def test_a_refusal_names_op_node_and_what_to_change():
    source = one_node("add", 0)
    table = dict(UNIVERSAL) | {"add": Refusal("two is too many", "use one")}
    message = r"\[add\] cannot be exported: two is too many \(node 'node'\); use one"
    with pytest.raises(UnsupportedOp, match=message):
        emit(_Emitter(source), table, ["node.out"])
    del table["add"]
    with pytest.raises(UnsupportedOp, match="no lowering is written"):
        emit(_Emitter(source), table, ["node.out"])


class _Emitter:
    """The part of an emitter that a refusal needs."""

    def __init__(self, source):
        self.source = source
