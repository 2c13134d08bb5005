# SPDX-License-Identifier: MIT
"""Measuring what lossy choices cost a model: the engine itself, over the bundled text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_edge._numpy import np
from bitnet_edge.api import export
from bitnet_edge.errors import ModelError
from bitnet_edge.exporters.sources.source import ModelSource
from bitnet_edge.losses import Loss
from bitnet_edge.profiles import load_profile
from bitnet_edge.runtime import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TEXT", "measure_losses"]

TEXT = Path(__file__).parent / "models" / "held_out.txt"


def measure_losses(
    source: ModelSource, keys: Iterable[tuple[str, str]], text: str | None = None
) -> dict[tuple[str, str], Loss]:
    """Measure single choices against a float32 KV cache and the source's own head.

    Every choice writes the model to a temporary file, which takes as long as an export.

    Parameters
    ----------
    source : ModelSource
    keys : iterable of (str, str)
        ``("kv_dtype", "int8")``, ``("head_dtype", "int4")``, ...
    text : str, optional
        `TEXT` by default; cut to the model's context.

    Raises
    ------
    ModelError
        For a model without a tokenizer.
    ArgumentError
        For a choice that the model cannot have.
    """
    if source.tokenizer is None:
        raise ModelError(f"[measure] {source.graph.info.name!r} has no tokenizer to read text with")
    if text is None:
        text = TEXT.read_text("utf-8")
    ids, exact = _logits(source, {}, text)
    return {key: _loss(exact, _logits(source, dict([key]), text)[1], ids) for key in keys}


def _logits(
    source: ModelSource, choices: dict[str, str], text: str
) -> tuple[list[int], NDArray[np.float32]]:
    """Return the text's ids and the logits after each, with choices and nothing else lossy."""
    roomy = replace(
        load_profile("generic-50mb"), private_mb=1 << 16, default_context=2048, ota_limit_mb=None
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bte"
        export(
            source,
            roomy,
            path,
            prefill_chunk=64,
            kv_dtype=choices.get("kv_dtype", "f32"),
            head_dtype=choices.get("head_dtype"),
        )
        with load(path) as model:
            ids = list(model.tokenizer.encode(text))[: model.context]
            return ids, np.array(model.logits(ids))


def _loss(exact: NDArray[np.float32], coded: NDArray[np.float32], ids: list[int]) -> Loss:
    same = float((exact.argmax(axis=1) == coded.argmax(axis=1)).mean())
    change = float(np.exp(_surprise(coded, ids) - _surprise(exact, ids)) - 1)
    return Loss(len(ids), same, change)


def _surprise(logits: NDArray[np.float32], ids: list[int]) -> float:
    """Return the mean -log p of each next token, in nats."""
    rows = logits[:-1].astype(np.float64)
    top = rows.max(axis=1)
    total = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top
    return float((total - rows[np.arange(len(rows)), ids[1:]]).mean())
