# SPDX-License-Identifier: MIT
"""Core ML packages: an ML program written with the MIL builder, ternary weights out of tables.

A decoder has two functions over the same weights and states: ``prefill`` (1 .. the planned chunk
of rows) and ``decode`` (one row, the default). Both take ``position``, where the run begins, and
each cache is a state of its own, float16 as Core ML demands, read once before it is written. A
model without caches has ``main``. What Core ML calls a tensor is `coreml_emitter.identifier` of its
name; a rounding of an activation is MIL's ``round``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.exporters.lowering import UNIVERSAL, Lowering, Refusal, TernaryBytes, emit
from bitnet_edge.exporters.targets import coreml_package
from bitnet_edge.exporters.targets.coreml_emitter import (
    POSITION,
    CoreMLEmitter,
    StoredWeights,
    identifier,
)
from bitnet_edge.exporters.targets.coreml_interpreter import MLProgram
from bitnet_edge.exporters.targets.coreml_package import (
    VERSION,
    Function,
    get_new_symbol,
    mb,
    types,
)
from bitnet_edge.exporters.targets.target import (
    Form,
    Runner,
    Settings,
    Target,
    dense_elements,
    kv_elements,
)
from bitnet_edge.graph import Graph

if TYPE_CHECKING:
    from bitnet_edge.exporters.sources.source import ModelSource

__all__ = ["TARGET"]

FORMS = (
    Form(
        "lut2",
        "2-bit indices into a table of -1, 0, 1; exact int8 activations, float32 products",
        "iOS 18, macOS 15",
        DType.F16,
    ),
)


class CoreMLTarget(Target):
    """See the module."""

    name = "coreml"
    suffix = ".mlpackage"
    forms: ClassVar[Mapping[str, Form]] = {form.name: form for form in FORMS}
    lowerings: ClassVar[Mapping[str, Lowering | Refusal]] = UNIVERSAL

    def write(
        self,
        source: ModelSource,
        settings: Settings,
        path: Path,
        *,
        metadata: Mapping[str, str],
        debug: bool = False,
    ) -> TernaryBytes:
        """See `Target.write`."""
        graph = source.graph
        activations = [name for node in graph.nodes for name in node.outputs]
        wanted = activations if debug else list(graph.outputs)
        weights = StoredWeights()
        parts = {"prefill": -1, "decode": 1} if graph.states() else {"main": -1}
        functions = {
            name: self._function(source, settings, rows, wanted, weights)
            for name, rows in parts.items()
        }
        coreml_package.save(functions, path, ios=18, metadata=metadata)
        return weights.bytes

    def _function(
        self,
        source: ModelSource,
        settings: Settings,
        rows: int,
        wanted: list[str],
        weights: StoredWeights,
    ) -> Any:
        """Return a function that gives ``wanted`` tensors of a run of ``rows``, -1 for any."""
        graph = source.graph
        count = get_new_symbol() if rows < 0 else rows
        ports, ranges = {}, []
        for tensor in (graph.tensors[name] for name in graph.inputs):
            kind = types.int32 if tensor.dtype is DType.I32 else types.fp32
            name = identifier(tensor.name)
            ports[name] = mb.TensorSpec((count, *tensor.shape[1:]), kind)
            ranges.append(coreml_package.rows(name, settings.prefill_chunk, tensor.shape[1:]))
        if graph.states():
            ports[POSITION] = mb.TensorSpec((1,), types.int32)
        for state in graph.states():
            shape = (state.shape[0], settings.context, state.shape[2])
            ports[identifier(state.name)] = mb.StateTensorSpec(shape, types.fp16)
        with Function(ports, coreml_package.OPSETS[18]) as function:
            given = {name: function.inputs[identifier(name)] for name in graph.inputs}
            given |= {t.name: function.inputs[identifier(t.name)] for t in graph.states()}
            if graph.states():
                given[POSITION] = function.inputs[POSITION]
            e = CoreMLEmitter(source, rows, settings, given, weights)
            emit(e, self.lowerings, wanted)
            function.set_outputs(
                [mb.identity(x=e.handles[name], name=identifier(name)) for name in wanted]
            )
        if rows < 0:
            function.set_input_types(tuple(ranges))
        return function

    def open(self, path: Path, source: ModelSource, settings: Settings) -> Runner:
        """See `Target.open`."""
        return CoreMLRunner(path, source.graph, settings.prefill_chunk)

    def memory(self, source: ModelSource, settings: Settings, package: int) -> int:
        """See `Target.memory`.

        The framework about 20 MB; every matrix as float32, which Core ML unpacks tables to where a
        compute unit has no kernel for them; caches; a prompt's outputs and scores.
        """
        weights = 4 * dense_elements(source, ternary=True)
        weights += 4 * dense_elements(source, ternary=False)
        caches = 2 * kv_elements(source, settings.context)
        outputs = 4 * settings.prefill_chunk * max(t.shape[0] for t in source.graph.constants())
        return (20 << 20) + weights + caches + outputs


class CoreMLRunner:
    """See `bitnet_edge.exporters.targets.target.Runner`.

    A prompt runs in pieces of at most the planned chunk through ``prefill``, a single row through
    ``decode``.
    """

    runtime = f"bitnet-edge's numpy interpreter of the saved ML program (coremltools {VERSION})"

    def __init__(self, path: Path, graph: Graph, chunk: int) -> None:
        self._program = MLProgram(*coreml_package.read(path))
        self._graph = graph
        self._chunk = chunk

    def reset(self) -> None:
        """See `Runner.reset`."""
        self._program.reset()

    def run(self, inputs: Mapping[str, Any], position: int = 0) -> dict[str, Any]:
        """See `Runner.run`."""
        rows = len(inputs[self._graph.inputs[0]])
        pieces = [
            self._piece(
                {name: values[first : first + self._chunk] for name, values in inputs.items()},
                position + first,
            )
            for first in range(0, rows, self._chunk)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _piece(self, inputs: Mapping[str, Any], position: int) -> dict[str, Any]:
        given = {identifier(name): values for name, values in inputs.items()}
        function = "main"
        if self._program.states:
            given[POSITION] = np.array([position], np.int32)
            function = "decode" if len(inputs[self._graph.inputs[0]]) == 1 else "prefill"
        found = self._program.run(function, given)
        names = {identifier(name): name for name in self._graph.tensors}
        return {names[name]: values for name, values in found.items()}


TARGET = CoreMLTarget()
