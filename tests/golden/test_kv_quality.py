# SPDX-License-Identifier: MIT
"""What a quantised KV cache costs the bundled model, against its own float32 cache.

Three kinds of text: the golden ones (greedy, in distribution), a passage the model never saw
(Hamlet is not in its training text), and texts it samples itself, long ones. Results are the same
bits on every machine, so the figures are exact, not statistical.

The yardstick is float16, the finest change there is: in this model any change at all flips int8
activations, and the flips decide near-ties. float16 agrees on 99.4 / 99.2 / 98.7 % of the tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge.measure_losses import TEXT
from tests.conftest import GOLDEN, checkpoint

FORMATS = ("f32", "f16", "int8", "int4")


class Score(NamedTuple):
    """Of one text under one model."""

    top: np.ndarray
    margin: np.ndarray  # of the best token over the second
    surprise: np.ndarray  # -log p of the next token


class Cost(NamedTuple):
    """Of a format, over texts, against float32."""

    tokens: int
    agreement: float
    perplexity: float  # relative change
    margin: float  # the largest float32 margin of a token that is another one now

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens, top-1 agreement {100 * self.agreement:.2f} %, perplexity "
            f"{100 * self.perplexity:+.2f} %, largest margin of a disagreement {self.margin:.2f}"
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, bitnet_edge.Model]:
    folder = tmp_path_factory.mktemp("kv")
    loaded = {}
    for kv_dtype in FORMATS:
        path = folder / f"{kv_dtype}.bte"
        bitnet_edge.export(checkpoint("packed"), out=path, kv_dtype=kv_dtype)
        loaded[kv_dtype] = bitnet_edge.load(path)
    return loaded


@pytest.fixture(scope="module")
def texts(models) -> dict[str, list[list[int]]]:
    model = models["f32"]
    with np.load(GOLDEN / "reference.npz") as data:
        golden = [data[f"packed/{i}/greedy"].tolist() for i in range(len(data["prompts"]))]
    sampled = []
    for seed in range(4):
        generation = model.generate(
            "KING:\n", max_tokens=480, temperature=1.0, seed=seed, ignore_eos=True
        )
        generation.text()
        sampled.append(list(generation.token_ids))
    held_out = model.tokenizer.encode(TEXT.read_text())
    return {"golden": golden, "held out": [held_out], "sampled": sampled}


def score(model: bitnet_edge.Model, ids: list[int]) -> Score:
    logits = np.asarray(model.logits(ids)).astype(np.float64)
    best = np.sort(logits, axis=1)[:, -2:]
    shifted = logits - best[:, 1:]
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    surprise = -log_p[np.arange(len(ids) - 1), ids[1:]]
    return Score(logits.argmax(axis=1), best[:, 1] - best[:, 0], surprise)


def cost(models, texts, kv_dtype: str) -> Cost:
    pairs = [(score(models["f32"], ids), score(models[kv_dtype], ids)) for ids in texts]
    same = np.concatenate([a.top == b.top for a, b in pairs])
    margins = np.concatenate([a.margin[a.top != b.top] for a, b in pairs])
    full, coded = (np.concatenate([pair[i].surprise for pair in pairs]).mean() for i in (0, 1))
    return Cost(len(same), same.mean(), np.exp(coded - full) - 1, margins.max(initial=0))


# Format, kind of text, least agreement, largest change of perplexity, largest margin.
#
# int8: the requirement is 99 % and 0.5 %, and the golden texts meet it. On the two others no format
# can: in numpy, where the cache can be anything, the held-out passage gives 99.0 % with float16,
# 98.6 % with keys of 8 bits and exact values, 98.6 % the other way round, and 98.0 % with 12 bits
# in both. What is left is which near-ties fall the other way, so there the agreement may fall 1.5
# points below and every disagreement must be a near-tie (logits reach 22): those aside it is 100 %.
# int4: 16 levels for 32 elements move a key by about 7 % and so the text visibly; bounded only so
# that a broken kernel or scale shows, which costs tens of per cent.
BOUNDS = [
    ("f16", "golden", 0.99, 0.005, 0.1),
    ("f16", "held out", 0.985, 0.005, 0.1),
    ("f16", "sampled", 0.98, 0.005, 0.15),
    ("int8", "golden", 0.99, 0.005, 0.1),
    ("int8", "held out", 0.975, 0.005, 0.1),
    ("int8", "sampled", 0.975, 0.005, 0.15),
    ("int4", "golden", 0.90, 0.03, 2.0),
    ("int4", "held out", 0.88, 0.03, 2.0),
    ("int4", "sampled", 0.88, 0.03, 2.0),
]


@pytest.mark.parametrize(("kv_dtype", "kind", "agreement", "perplexity", "margin"), BOUNDS)
def test_cost_of_a_format(kv_dtype, kind, agreement, perplexity, margin, models, texts, capsys):
    found = cost(models, texts[kind], kv_dtype)
    with capsys.disabled():
        print(f"\n  {kv_dtype} KV, {kind} text: {found}")
    assert found.agreement >= agreement
    assert abs(found.perplexity) <= perplexity
    assert found.margin <= margin


def test_decode_gives_the_bits_of_prefill(models, texts):
    """Decode appends and reads codes one row at a time."""
    ids = texts["golden"][0]
    for kv_dtype in ("int8", "int4"):
        model = models[kv_dtype]
        rows = np.asarray(model.logits(ids)).copy()
        for position, token in enumerate(ids):
            model.session.step(token, position)
            assert np.asarray(model.session.logits).tobytes() == rows[position].tobytes()
