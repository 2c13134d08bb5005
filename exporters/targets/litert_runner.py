# SPDX-License-Identifier: MIT
"""LiteRT packages in their interpreter: the one place that imports ai-edge-litert or its elder.

`ai-edge-litert` is the living runtime, and brings the schema that packages are written by;
`tflite-runtime` is accepted where it alone is installed, to run packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitnet_edge._numpy import np
from bitnet_edge.errors import MissingDependency
from bitnet_edge.graph import Graph

try:
    from ai_edge_litert import interpreter as _runtime
    from ai_edge_litert import schema_py_generated as _schema

    schema: Any = _schema
    PACKAGE = "ai-edge-litert"
except ImportError as missing:
    try:
        from tflite_runtime import interpreter as _runtime
    except ImportError:
        raise MissingDependency(
            "[litert] this target needs ai-edge-litert: pip install 'bitnet-edge[litert]' "
            f"({missing})"
        ) from missing
    schema = None
    PACKAGE = "tflite-runtime"

__all__ = ["PACKAGE", "LiteRTRunner", "interpreter", "schema"]

POSITION = "position"  # the input that says where a run begins


def interpreter(model: Path | bytes, threads: int = 1, *, delegate: bool = True) -> Any:
    """Return an interpreter; without ``delegate`` the built-in kernels run everything."""
    kinds = _runtime.OpResolverType
    kind = kinds.AUTO if delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    content = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}
    made = _runtime.Interpreter(**content, num_threads=threads, experimental_op_resolver_type=kind)
    made.allocate_tensors()
    return made


class LiteRTRunner:
    """See `bitnet_edge.exporters.targets.target.Runner`.

    A prompt runs in pieces of the planned size, the last of them filled up; what the filling
    writes to the caches is overwritten by the tokens that follow, and masked until then. The last
    row is a run of ``decode``, which alone gives outputs.
    """

    runtime = f"{PACKAGE} {version(PACKAGE)}"

    def __init__(self, path: Path, graph: Graph, context: int, *, delegate: bool) -> None:
        self._interpreter = interpreter(path, delegate=delegate)
        self._graph = graph
        self._context = context
        names = self._interpreter.get_signature_list()
        self._signatures = {name: self._interpreter.get_signature_runner(name) for name in names}
        self._caches: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """See `Runner.reset`."""
        self._caches = {
            state.name: np.zeros((state.shape[0], self._context, state.shape[2]), np.float32)
            for state in self._graph.states()
        }

    def run(self, inputs: Mapping[str, Any], position: int = 0) -> dict[str, Any]:
        """See `Runner.run`."""
        rows = len(inputs[self._graph.inputs[0]])
        pieces = []
        first = 0
        while first < rows:
            count = self._piece(rows - first, position + first)
            piece = {name: values[first : first + count] for name, values in inputs.items()}
            pieces.append(self._run_piece(piece, position + first, count))
            first += count
        return {
            name: np.concatenate([piece[name] for piece in pieces if name in piece])
            for name in pieces[-1]
        }

    def _piece(self, left: int, position: int) -> int:
        """Return how many rows the next run takes."""
        if not self._caches or left == 1:
            return 1
        chunk = self._chunk()
        return min(chunk, left - 1) if position + chunk <= self._context else 1

    def _chunk(self) -> int:
        details = self._signatures["prefill"].get_input_details()
        return int(details[self._graph.inputs[0]]["shape"][0])

    def _run_piece(self, inputs: Mapping[str, Any], position: int, count: int) -> dict[str, Any]:
        if not self._caches:
            found = self._signatures["infer"](**inputs)
            return {str(name): values.copy() for name, values in found.items()}
        where = {POSITION: np.array([position], np.int32)}
        if count == 1:
            results = self._signatures["decode"](**inputs, **where, **self._caches)
        else:
            filled = {
                name: np.concatenate([values, np.repeat(values[-1:], self._chunk() - count, 0)])
                for name, values in inputs.items()
            }
            results = self._signatures["prefill"](**filled, **where, **self._caches)
        found = {name: values.copy() for name, values in results.items()}
        for name in self._caches:
            self._caches[name] = found.pop(name)
        return {name: values[:count] for name, values in found.items()}
