# SPDX-License-Identifier: MIT
"""One matrix product, float row in and float row out, against the 2-bit kernels of others.

The same ternary linear, quantisation of the row included, is exported to LiteRT (INT2
fully-connected, XNNPACK) and to onnxruntime (``MatMulNBits``). Everybody runs on one thread,
everything is in cache, and each round times each of them.
"""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.api import export
from bitnet_edge.bench.measure import median
from bitnet_edge.dtypes import DType
from bitnet_edge.exporters.sources.source import ModelSource
from bitnet_edge.exporters.targets import load_target
from bitnet_edge.exporters.targets.target import make_settings
from bitnet_edge.graph import N_TOKENS, Graph, Kind, ModelInfo, Node, Tensor
from bitnet_edge.profiles import load_profile
from bitnet_edge.runtime import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Product = Callable[[], object]

__all__ = ["against_products"]

ROWS, K = 2560, 6912  # the feed-forward's last matrix in the 2B-4T model
SCALE = 0.01
_CALLS = 50


def against_products(peers: list[str], runs: int = 7) -> dict[str, Any]:
    """Measure one product of 2560 rows by 6912 columns.

    Parameters
    ----------
    peers : list of str
        ``litert``, ``onnxruntime``.
    runs : int
        Rounds of which the median counts; one more comes first to warm up.

    Returns
    -------
    dict
        ``shape`` and a row per engine; ``error`` is the largest deviation from the float product
        over its largest value.

    Raises
    ------
    MissingDependency
        Without the extra ``[bench]``.
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(-1, 2, (ROWS, K)).astype(np.int8)
    x = rng.normal(size=(1, K)).astype(np.float32)
    truth = x @ (weights.T * np.float32(SCALE))
    makers = {"litert": _exported("litert", "xnnpack"), "onnxruntime": _exported("onnx", "ort")}
    products = {"bitnet-edge": _ours(weights, x)}
    products |= {peer: makers[peer](weights, x) for peer in peers}
    errors = {name: _error(product(), truth) for name, product in products.items()}
    rounds = [{name: _ms(product) for name, product in products.items()} for _ in range(runs + 1)]
    return {
        "shape": f"{ROWS}x{K}",
        "rows": [
            {
                "engine": name,
                "ms": median(r[name] for r in rounds[1:]),
                "ratio": median(r[name] / r["bitnet-edge"] for r in rounds[1:]),
                "error": f"{errors[name]:.1e}",
            }
            for name in products
        ],
    }


def _ms(product: Product) -> float:
    start = time.perf_counter()
    for _ in range(_CALLS):
        product()
    return 1000 * (time.perf_counter() - start) / _CALLS


def _error(y: Any, truth: NDArray[np.float32]) -> float:
    return float(np.abs(np.asarray(y).reshape(truth.shape) - truth).max() / np.abs(truth).max())


class _OneMatrix:
    def __init__(self, weights: NDArray[np.int8]) -> None:
        self.weights = weights

    def load(self, name: str) -> NDArray[Any]:
        """See `WeightSource.load`."""
        return self.weights


def _source(weights: NDArray[np.int8]) -> ModelSource:
    tensors = [
        Tensor("x", (N_TOKENS, K), DType.F32, Kind.INPUT),
        Tensor("w", (ROWS, K), DType.TERNARY, Kind.CONSTANT),
        Tensor("y", (N_TOKENS, ROWS), DType.F32),
    ]
    node = Node("ternary_linear", "linear", ("x", "w", ""), ("y",), {"scale": SCALE})
    named = {tensor.name: tensor for tensor in tensors}
    graph = Graph(ModelInfo("product", "product"), named, (node,), ("x",), ("y",))
    return ModelSource(graph, _OneMatrix(weights))


def _ours(weights: NDArray[np.int8], x: NDArray[np.float32]) -> Product:
    with tempfile.TemporaryDirectory(prefix="bitnet-edge-") as scratch:
        path = Path(scratch) / "product.bte"
        export(_source(weights), out=path, prefill_chunk=1)
        model = load(path, threads=1)  # the mapping outlives the name
    inputs, y = (array("f", x.reshape(-1)),), array("f", bytes(4 * ROWS))

    def product() -> object:
        model.session.run(inputs, (y,), 1)
        return y

    return product


def _exported(target: str, form: str) -> Callable[..., Product]:
    """Return what makes a product of an exporter's package in its runtime."""

    def make(weights: NDArray[np.int8], x: NDArray[np.float32]) -> Product:
        source, chosen = _source(weights), load_target(target)
        settings = make_settings(source.graph, load_profile("generic-50mb"), chosen.form(form))
        with tempfile.TemporaryDirectory(prefix="bitnet-edge-") as scratch:
            path = Path(scratch) / f"product{chosen.suffix}"
            chosen.write(source, settings, path, metadata={})
            runner = chosen.open(path, source, settings)
        return lambda: runner.run({"x": x})["y"]

    return make
