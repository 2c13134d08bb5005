# SPDX-License-Identifier: MIT
"""ONNX packages in onnxruntime: the one place that imports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_edge._numpy import np
from bitnet_edge.errors import MissingDependency
from bitnet_edge.graph import Graph

try:
    import onnxruntime
except ImportError as error:
    raise MissingDependency(
        f"[onnx] running a package needs onnxruntime: pip install 'bitnet-edge[onnx]' ({error})"
    ) from error

__all__ = ["OnnxRunner", "session"]


def session(model: Path | bytes, threads: int = 1, **options: Any) -> Any:
    """Return a session on the CPU; ``options`` are set on its ``SessionOptions``."""
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 3  # errors
    for key, value in options.items():
        setattr(made, key, value)
    content = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(content, made, providers=["CPUExecutionProvider"])


class OnnxRunner:
    """See `bitnet_edge.exporters.targets.target.Runner`."""

    runtime = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, path: Path, graph: Graph) -> None:
        self._session = session(path)
        self._graph = graph
        self._caches: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """See `Runner.reset`."""
        self._caches = {
            state.name: np.zeros((state.shape[0], 0, state.shape[2]), np.float32)
            for state in self._graph.states()
        }

    def run(self, inputs: Mapping[str, Any], position: int = 0) -> dict[str, Any]:
        """See `Runner.run`."""
        past = {f"past.{name}": cache[:, :position] for name, cache in self._caches.items()}
        names = [output.name for output in self._session.get_outputs()]
        results = dict(zip(names, self._session.run(names, {**inputs, **past}), strict=True))
        for name in self._caches:
            self._caches[name] = results.pop(f"present.{name}")
        return results
