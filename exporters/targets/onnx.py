# SPDX-License-Identifier: MIT
"""ONNX packages: one model for prompts and single tokens, past and present caches, open rows.

Inputs are the graph's, and ``past.<cache>`` (heads, past, head_dim) for every cache; outputs are
the graph's, and ``present.<cache>`` with the run's rows appended. A ternary product is said in one
of four ways (onnxruntime 1.32, one thread, 2560 x 6912, Zen 5):

===========  ======================================================  =======  =======  =====
form         weights and product                                     bits     in RAM   ms
===========  ======================================================  =======  =======  =====
int2         INT2 (opset 25), cast to INT8, `MatMulInteger`          2.00     8        0.23
int4         INT4 (opset 21), the same, for onnxruntime 1.23         4.00     8        0.23
dequantize   INT2, `DequantizeLinear`, `MatMul`                      2.07     3        0.3
ort          `MatMulNBits` of onnxruntime, 2 bits, blocks of 128     2.29     2.3      0.1
===========  ======================================================  =======  =======  =====

The first two are integer products: exact in any runtime. onnxruntime fuses the third to
`MatMulNBits` with blocks of 32 columns; its kernels quantise activations again, by the largest
magnitude of a block over 127. One *sentinel* column a block that holds 127, over weights of zero,
makes that factor one, and the product exact. What falls off a cliff (15 ms and more) is avoided: a
dequantised matrix that is transposed before the product, scales that several matrices share, and
blocks of 256.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bitnet_edge.exporters.lowering import UNIVERSAL, TernaryBytes, emit
from bitnet_edge.exporters.targets.onnx_emitter import OnnxEmitter
from bitnet_edge.exporters.targets.target import (
    Form,
    Runner,
    Settings,
    Target,
    dense_elements,
    kv_elements,
)

if TYPE_CHECKING:
    from bitnet_edge.exporters.sources.source import ModelSource

__all__ = ["TARGET"]

FORMS = (
    Form(
        "int2",
        "standard ops, 2-bit weights, integer products: exact in any runtime of opset 25; "
        "onnxruntime keeps a byte a weight in memory",
        "ONNX opset 25, onnxruntime 1.30",
    ),
    Form(
        "int4",
        "standard ops that older runtimes know: 4-bit weights, integer products",
        "ONNX opset 21, onnxruntime 1.23",
    ),
    Form(
        "dequantize",
        "standard ops, 2-bit weights that onnxruntime keeps packed: DequantizeLinear with "
        "sentinel columns",
        "ONNX opset 25, onnxruntime 1.30",
    ),
    Form(
        "ort",
        "onnxruntime's own MatMulNBits: fastest there, runs nowhere else",
        "onnxruntime 1.30",
    ),
)


class OnnxTarget(Target):
    """See the module."""

    name = "onnx"
    suffix = ".onnx"
    forms: ClassVar[Mapping[str, Form]] = {form.name: form for form in FORMS}
    lowerings = UNIVERSAL

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
        e = OnnxEmitter(source, settings)
        e.handles = {name: name for name in graph.inputs}
        wanted = graph.activations() if debug else list(graph.outputs)
        emit(e, self.lowerings, wanted)
        e.save(path, wanted, metadata)
        return e.ternary

    def open(self, path: Path, source: ModelSource, settings: Settings) -> Runner:
        """See `Target.open`."""
        from bitnet_edge.exporters.targets.onnx_runner import OnnxRunner

        return OnnxRunner(path, source.graph)

    def memory(self, source: ModelSource, settings: Settings, package: int) -> int:
        """See `Target.memory`.

        The library about 30 MB; every matrix as its kernel reads it (the dense ones in float32);
        past and present caches at once; a prompt's outputs.
        """
        bits = {"ort": 2.3, "dequantize": 3.1}.get(settings.form.name, 8.0)
        weights = dense_elements(source, ternary=True) * bits / 8
        weights += 4 * dense_elements(source, ternary=False)
        caches = 2 * 4 * kv_elements(source, settings.context)
        outputs = 4 * settings.prefill_chunk * source.graph.info.vocab_size
        return int((30 << 20) + package + weights + caches + outputs)


TARGET = OnnxTarget()
