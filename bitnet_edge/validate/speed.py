# SPDX-License-Identifier: MIT
"""How fast a model runs, in multiples of a calibration kernel timed in the same rounds."""

from __future__ import annotations

from typing import Any

from bitnet_edge.bench.measure import bench_model, profile_layers
from bitnet_edge.bench.work import decode_macs, describe
from bitnet_edge.runtime import Model, load
from bitnet_edge.validate.numerics import ROOM
from bitnet_edge.validate.probes import is_language_model
from bitnet_edge.validate.report import CheckSkipped

__all__ = ["measure_speed"]

PROMPT_TOKENS = 64
NEW_TOKENS = 32
RUNS, RUNS_LARGE = 15, 3  # rounds of which the median counts
LARGE_MACS = 100_000_000  # of a token


def measure_speed(path: str, threads: int | None) -> dict[str, Any]:
    """Measure prefill and decode; see `bitnet_edge.bench.measure.bench_model`.

    Returns
    -------
    dict
        That of `bench_model`, and ``layers``: that of `profile_layers`.

    Raises
    ------
    CheckSkipped
        For a model that generates nothing.
    """
    with load(path, threads, ROOM) as model:
        if not is_language_model(model) or model.context < 2:
            raise CheckSkipped("this model decodes no tokens one by one")
        return {**_bench(model), "layers": profile_layers(model)}


def _bench(model: Model) -> dict[str, Any]:
    large = decode_macs(describe(model)) > LARGE_MACS
    return bench_model(
        model,
        prompts=(PROMPT_TOKENS,),
        new_tokens=NEW_TOKENS,
        runs=RUNS_LARGE if large else RUNS,
    )
