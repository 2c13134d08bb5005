# SPDX-License-Identifier: MIT
"""LiteRT (TFLite) packages: a flatbuffer written by its schema, without TensorFlow.

A decoder has two signatures over the same weights: ``prefill`` (the planned chunk of rows, gives
caches only) and ``decode`` (one row, gives the outputs and caches). Both take ``position`` and
every cache whole, (heads, context, head_dim), and give it back under the same name. A model without
caches has ``infer``, one row. A ternary product is a fully-connected op over float rows, which the
runtime quantises to int8 by itself, by their extremes; sentinel columns over weights of zero hold
these extremes, so that its factor is one and the product exact:

========  ==============================================  ===================================
form      weights                                         sentinels
========  ==============================================  ===================================
xnnpack   INT2, the scale written once per row: XNNPACK   -128 and 127: it quantises to
          leaves the op to slow kernels otherwise         ``(x - min) / ((max - min) / 255)``
builtin   INT2, one scale: the built-in kernels           127: they quantise to
int4      INT4, one scale                                 ``x * 127 / absmax``
int8      INT8, one scale
========  ==============================================  ===================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ExportError, MissingDependency
from bitnet_edge.exporters.lowering import UNIVERSAL, Lowering, Refusal, TernaryBytes, emit
from bitnet_edge.exporters.targets.litert_emitter import LiteRTEmitter, ModelBuilder
from bitnet_edge.exporters.targets.litert_runner import POSITION, LiteRTRunner, schema
from bitnet_edge.exporters.targets.target import (
    Form,
    Runner,
    Settings,
    Target,
    dense_elements,
    kv_elements,
)

try:
    import flatbuffers
except ImportError as error:
    raise MissingDependency(
        f"[litert] this target needs flatbuffers: pip install 'bitnet-edge[litert]' ({error})"
    ) from error

if TYPE_CHECKING:
    from bitnet_edge.exporters.sources.source import ModelSource

__all__ = ["TARGET"]

MAX_BYTES = (1 << 31) - 1  # offsets of a flatbuffer are signed
FORMS = (
    Form(
        "xnnpack",
        "2-bit weights for XNNPACK's own kernels, which the runtime uses on every CPU by default",
        "LiteRT 2.3 (ai-edge-litert)",
    ),
    Form(
        "builtin",
        "2-bit weights for the built-in kernels, for builds without XNNPACK: slower",
        "LiteRT 2.3 (ai-edge-litert)",
    ),
    Form(
        "int4",
        "4-bit weights for runtimes that know no 2-bit ones; newer ones with XNNPACK are inexact",
        "TFLite 2.14 (tflite-runtime)",
    ),
    Form(
        "int8",
        "8-bit weights for runtimes that know no smaller ones; newer ones with XNNPACK are inexact",
        "TFLite 2.14 (tflite-runtime)",
    ),
)


class LiteRTTarget(Target):
    """See the module."""

    name = "litert"
    suffix = ".tflite"
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
        if schema is None:
            raise MissingDependency(
                "[litert] writing a package needs ai-edge-litert: pip install 'bitnet-edge[litert]'"
            )
        graph = source.graph
        outputs = graph.activations() if debug else list(graph.outputs)
        builder = ModelBuilder(schema)
        if graph.states():
            before = graph.activations() if debug else []
            parts = [("prefill", settings.prefill_chunk, before), ("decode", 1, outputs)]
        else:
            parts = [("infer", 1, outputs)]
        for name, rows, wanted in parts:
            e = LiteRTEmitter(builder, source, rows, settings)
            for tensor in (graph.tensors[port] for port in graph.inputs):
                kind = "INT32" if tensor.dtype is DType.I32 else "FLOAT32"
                e.handles[tensor.name] = e.input(tensor.name, (rows, *tensor.shape[1:]), kind)
            for state in graph.states():
                e.input(state.name, (state.shape[0], settings.context, state.shape[2]), "FLOAT32")
            if graph.states():
                e.input(POSITION, (1,), "INT32")
            emit(e, self.lowerings, wanted)
            builder.add_signature(name, e, {n: e.handles[n] for n in wanted} | e.appended)
        model = builder.finish(metadata)
        try:
            packed = flatbuffers.Builder(1 << 20)
            packed.Finish(model.Pack(packed), b"TFL3")
        except flatbuffers.builder.BuilderSizeError as error:
            raise ExportError(
                f"[litert] expected a model of at most {MAX_BYTES} bytes, got more: choose a form "
                "of fewer bits, or another target"
            ) from error
        path.write_bytes(packed.Output())
        return builder.ternary

    def open(self, path: Path, source: ModelSource, settings: Settings) -> Runner:
        """See `Target.open`."""
        delegate = settings.form.name == "xnnpack"
        return LiteRTRunner(path, source.graph, settings.context, delegate=delegate)

    def memory(self, source: ModelSource, settings: Settings, package: int) -> int:
        """See `Target.memory`.

        The library about 10 MB; the package, and its matrices as XNNPACK packs them for itself (the
        dense ones in float32); caches in and out of both signatures, and the caller's; the rows of
        a prompt. Synthetic models of 20 and 100 million weights measured within 10 % of it, less
        the two further copies that `LiteRTRunner` makes of the caches.
        """
        weights = dense_elements(source, ternary=True) // 4
        weights += 4 * dense_elements(source, ternary=False)
        caches = 5 * 4 * kv_elements(source, settings.context)
        rows = 4 * settings.prefill_chunk * max(t.shape[0] for t in source.graph.constants())
        return (10 << 20) + package + weights + caches + rows


TARGET = LiteRTTarget()
