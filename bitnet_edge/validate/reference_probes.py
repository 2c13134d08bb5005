# SPDX-License-Identifier: MIT
"""Probes through the numpy reference; the one part of a validation that needs numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.exporters.sources.bte import load_bte
from bitnet_edge.reference import ReferenceModel
from bitnet_edge.runtime import Model
from bitnet_edge.validate.probes import Probe

__all__ = ["reference_outputs"]


def reference_outputs(path: str, model: Model, made: Sequence[Probe]) -> list[list[bytes]]:
    """Return the bits of every output for every probe.

    Parameters
    ----------
    path : str
    model : Model
        The same file, loaded: its plan says how the KV cache is kept.
    made : sequence of Probe
    """
    source = load_bte(Path(path))
    graph = source.graph
    reference = ReferenceModel(
        source, model.session.program.max_positions, DType(model.file.plan["kv_dtype"])
    )
    results = []
    for probe in made:
        inputs = {}
        for name, data in zip(graph.inputs, probe.inputs, strict=True):
            shape = graph.tensors[name].shape
            rows = np.frombuffer(data, np.int32 if data.typecode == "i" else np.float32)
            inputs[name] = rows.reshape(probe.rows, -1) if len(shape) > 1 else rows
        values = reference.run(inputs)
        results.append(
            [np.ascontiguousarray(values[name], np.float32).tobytes() for name in graph.outputs]
        )
    return results
