# SPDX-License-Identifier: MIT
"""Core ML packages: an ML program written with the MIL builder, ternary weights out of tables.

A decoder has two functions over the same weights and states: ``prefill`` (1 .. the planned chunk
of rows) and ``decode`` (one row, the default). Both take ``position``, where the run begins, and
each cache is a state of its own, float16 as Core ML demands, read once before it is written. Below
iOS 18, and for a model without caches, there is ``main`` alone: caches come in, and go out with
`AFTER` at the end of their names. What Core ML calls a tensor is `coreml_emitter.identifier` of its
name; a rounding of an activation is MIL's ``round``. In the forms of float16 the lowerings are
those of `coreml_float16`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.exporters.lowering import UNIVERSAL, Lowering, Refusal, TernaryBytes, emit
from bitnet_edge.exporters.targets import coreml_package
from bitnet_edge.exporters.targets.coreml_emitter import (
    AFTER,
    POSITION,
    CoreMLEmitter,
    StoredWeights,
    identifier,
)
from bitnet_edge.exporters.targets.coreml_float16 import FLOAT16
from bitnet_edge.exporters.targets.coreml_interpreter import MLProgram
from bitnet_edge.exporters.targets.coreml_package import (
    VERSION,
    Function,
    get_new_symbol,
    mb,
    types,
)
from bitnet_edge.exporters.targets.coreml_sample import write_companions
from bitnet_edge.exporters.targets.target import (
    Form,
    Runner,
    Settings,
    Target,
    Tolerance,
    dense_elements,
    kv_elements,
)
from bitnet_edge.graph import Graph

if TYPE_CHECKING:
    from bitnet_edge.exporters.sources.source import ModelSource
    from bitnet_edge.profiles import Profile

__all__ = ["TARGET"]

FORMS = (
    Form(
        "lut2",
        "2-bit indices into a table of -1, 0, 1; exact int8 activations, float32 products",
        "iOS 18, macOS 15, watchOS 11",
        DType.F16,
    ),
    Form(
        "trits5",
        "five weights a byte out of a table of vectors (2 bits a weight in matrices of which no "
        "side is a multiple of 5); else as lut2",
        "iOS 18, macOS 15, watchOS 11",
        DType.F16,
    ),
    Form(
        "float16",
        "float16 throughout, which the Neural Engine wants: activations rounded to int8 steps, "
        "rows divided by their extremes where float16 would overflow; 2-bit tables",
        "iOS 18, macOS 15, watchOS 11",
        DType.F16,
        Tolerance(op=0.02, row=0.1, agreement=0.98),
    ),
    Form(
        "float16-unrounded",
        "as float16, activations left unrounded: fewer ops, not the arithmetic the model was "
        "trained with",
        "iOS 18, macOS 15, watchOS 11",
        DType.F16,
        Tolerance(op=0.1, row=0.5, agreement=0.9),
    ),
    Form(
        "ios16",
        "2-bit indices packed in bytes, caches as inputs and outputs for want of states, one "
        "function; exact int8 activations, float32 products",
        "iOS 16, macOS 13, watchOS 9",
    ),
)
STATES = {"ios": 18, "ipados": 18, "macos": 15, "watchos": 11}  # versions with states


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
        wanted = graph.activations() if debug else list(graph.outputs)
        weights = StoredWeights()
        stateful = graph.states() and settings.form.name != "ios16"
        parts = {"prefill": -1, "decode": 1} if stateful else {"main": -1}
        functions = {
            name: self._function(source, settings, rows, wanted, weights)
            for name, rows in parts.items()
        }
        coreml_package.save(functions, path, ios=_ios(settings.form), metadata=metadata)
        write_companions(source, settings, path, stateful=bool(stateful))
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
            ports[identifier(state.name)] = (
                mb.TensorSpec(shape, types.fp32)
                if settings.form.name == "ios16"
                else mb.StateTensorSpec(shape, types.fp16)
            )
        with Function(ports, coreml_package.OPSETS[_ios(settings.form)]) as function:
            given = {name: function.inputs[identifier(name)] for name in graph.inputs}
            given |= {t.name: function.inputs[identifier(t.name)] for t in graph.states()}
            if graph.states():
                given[POSITION] = function.inputs[POSITION]
            e = CoreMLEmitter(source, rows, settings, given, weights)
            if e.half:
                e.handles |= {
                    name: e.cast(given[name])
                    for name in graph.inputs
                    if graph.tensors[name].dtype is not DType.I32
                }
            emit(e, FLOAT16 if e.half else self.lowerings, wanted)
            results = {name: e.result(name) for name in wanted}
            results |= {f"{name}{AFTER}": cache for name, cache in e.appended.items()}
            function.set_outputs(
                [mb.identity(x=value, name=identifier(name)) for name, value in results.items()]
            )
        if rows < 0:
            function.set_input_types(tuple(ranges))
        return function

    def choose(self, source: ModelSource, profile: Profile, name: str | None) -> Form:
        """See `Target.choose`: by the system's oldest version, then by what the store delivers."""
        if name is not None:
            return self.form(name)
        system = profile.os
        needed = STATES.get(system.name)
        if needed is None or not system.minimum:
            return self.form(None)
        if int(system.minimum.split(".")[0]) < needed:
            reason = f"{system.name} {system.minimum} has no states (from {needed} on)"
            return _because(self.form("ios16"), reason)
        dense = 2 * dense_elements(source, ternary=False)
        size = dense + dense_elements(source, ternary=True) // 4
        limit = profile.ota_bytes
        if limit is not None and size > limit:
            reason = f"2 bits a weight are about {size / 1e6:.0f} MB, over what the store delivers"
            return _because(self.form("trits5"), reason)
        return _because(self.form("lut2"), f"{system.name} {system.minimum} and its size allow it")

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


def _ios(form: Form) -> int:
    return 16 if form.name == "ios16" else 18


def _because(form: Form, reason: str) -> Form:
    return replace(form, why=f"{form.why} (chosen because {reason})")


class CoreMLRunner:
    """See `bitnet_edge.exporters.targets.target.Runner`.

    A prompt runs in pieces of at most the planned chunk through ``prefill``, a single row through
    ``decode``; a package with one function has the caches here.
    """

    runtime = f"bitnet-edge's numpy interpreter of the saved ML program (coremltools {VERSION})"

    def __init__(self, path: Path, graph: Graph, chunk: int) -> None:
        self._program = MLProgram(*coreml_package.read(path))
        self._graph = graph
        self._chunk = chunk
        self._caches: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """See `Runner.reset`."""
        self._program.reset()
        if "main" in self._program.functions:
            shapes = self._program.inputs("main")
            names = [identifier(state.name) for state in self._graph.states()]
            self._caches = {name: np.zeros(shapes[name], np.float32) for name in names}

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
        else:
            given |= self._caches
            if self._caches:
                given[POSITION] = np.array([position], np.int32)
        found = self._program.run(function, given)
        for state in self._graph.states() if self._caches else []:
            self._caches[identifier(state.name)] = found.pop(identifier(state.name + AFTER))
        names = {identifier(name): name for name in self._graph.tensors}
        return {names[name]: values for name, values in found.items()}


TARGET = CoreMLTarget()
