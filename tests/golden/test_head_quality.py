# SPDX-License-Identifier: MIT
"""What quantised heads cost, teacher-forced over the reference's own texts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge.api import import_model
from bitnet_edge.dtypes import DType
from bitnet_edge.exporters.sources.source import ModelSource
from bitnet_edge.head_packing import quantise_head
from tests.conftest import GOLDEN, LAYOUTS, checkpoint


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    """Prompts and the reference's own greedy texts, of every layout."""
    with np.load(GOLDEN / "reference.npz") as data:
        keys = [f"{layout}/{i}/greedy" for layout in LAYOUTS for i in range(len(data["prompts"]))]
        return [data[key] for key in keys]


def log_loss(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Nats of each next token."""
    rows = logits[:-1].astype(np.float64)
    top = rows.max(axis=1)
    total = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top
    return total - rows[np.arange(len(rows)), ids[1:]]


def relative_error(w: np.ndarray, group: int) -> float:
    """Root mean square error of int4 with one scale for ``group`` columns, over that of w."""
    groups = w.reshape(-1, group)
    scales = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1) / -8
    scales = scales.astype(np.float16).astype(np.float32)
    error = np.clip(np.rint(groups / scales), -8, 7) * scales - groups
    return float(np.sqrt((error**2).mean() / (w**2).mean()))


def untied(source: ModelSource) -> ModelSource:
    """The same model with its table stored twice, so that only the head is quantised."""
    graph = source.graph
    node = next(node for node in graph.nodes if node.op == "linear")
    x, name, bias = node.inputs

    class Weights:
        def load(self, asked: str) -> np.ndarray:
            return source.weights.load(name if asked == "copy" else asked)

    copy = dataclasses.replace(graph.tensors[name], name="copy")
    own = dataclasses.replace(node, inputs=(x, "copy", bias))
    nodes = tuple(own if other is node else other for other in graph.nodes)
    graph = dataclasses.replace(graph, tensors={**graph.tensors, "copy": copy}, nodes=nodes)
    return dataclasses.replace(source, graph=graph, weights=Weights())


@pytest.mark.parametrize(
    ("head", "tied", "agreement", "margin", "perplexity"),
    [
        ("int8", False, 0.995, 0.05, 0.005),
        # A quantised table also moves the embeddings, and with them int8 roundings in the layers:
        # the bounds are those of the reference against itself (gate b of the design).
        ("int8", True, 0.98, 0.1, 0.005),
        # 8 % relative error of the table; each bound about twice what is measured.
        ("int4", False, 0.85, 0.8, 0.015),
        ("int4", True, 0.85, 1.0, 0.015),
    ],
)
def test_quality(head, tied, agreement, margin, perplexity, exported, texts, tmp_path, capsys):
    source = import_model(checkpoint("packed"))
    out = tmp_path / "m.bte"
    bitnet_edge.export(source if tied else untied(source), out=out, head_dtype=head)
    stored, quantised = bitnet_edge.load(exported["packed"]), bitnet_edge.load(out)
    differences, agreements, margins, losses = [], [], [0.0], []
    for ids in texts:
        expected, got = np.asarray(stored.logits(ids)), np.asarray(quantised.logits(ids))
        agree = got.argmax(1) == expected.argmax(1)
        differences.append(np.abs(got - expected).ravel())
        agreements.append(agree)
        for row in np.flatnonzero(~agree):
            margins.append(float(expected[row].max() - expected[row, got[row].argmax()]))
        losses.append((log_loss(expected, ids), log_loss(got, ids)))
    apart, agree = np.concatenate(differences), np.concatenate(agreements)
    before, after = (
        float(np.exp(np.concatenate(side).mean())) for side in zip(*losses, strict=True)
    )
    with capsys.disabled():
        print(
            f"\n  {head} {'tied' if tied else 'head alone'}: {len(agree)} rows, top-1 agreement "
            f"{100 * agree.mean():.2f} %, largest margin of a disagreement {max(margins):.3f}, "
            f"|difference| max {apart.max():.3f} mean {apart.mean():.4f}, perplexity "
            f"{before:.4f} -> {after:.4f} ({100 * (after / before - 1):+.2f} %)"
        )
    assert agree.mean() >= agreement
    assert max(margins) < margin
    assert abs(after / before - 1) <= perplexity


def test_groups_of_32_against_64(capsys):
    source = import_model(checkpoint("packed"))
    name = bitnet_edge.plan(source, head_dtype="int4").weights[0].name
    w = (source.weights.load(name).astype(np.uint32) << 16).view(np.float32)
    head = quantise_head(w, DType.I4_GROUPS)
    ours = np.sqrt(((head.rows(slice(None)) - w) ** 2).mean() / (w**2).mean())
    errors = {group: relative_error(w, group) for group in (32, 64)}
    with capsys.disabled():
        print(f"\n  int4 table, relative error by group size: {errors}")
    assert ours == pytest.approx(errors[32], rel=1e-3)
    assert errors[32] < 0.95 * errors[64]
