# SPDX-License-Identifier: MIT
"""A ``.bte`` file as a source: its graph and weights, to be planned for another device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_edge._numpy import np
from bitnet_edge.container import BteFile, open_bte
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, FormatError, MissingTensor
from bitnet_edge.exporters.sources.source import ModelSource
from bitnet_edge.graph import Graph
from bitnet_edge.head_packing import HEAD_DTYPES, SCREENED, STORED, head_storage, packed_heads
from bitnet_edge.packing import ARRAY_TYPES, unpack_p16

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load_bte"]


class _BteWeights:
    def __init__(self, file: BteFile) -> None:
        self._file = file
        self._tensors = {tensor.name: tensor for tensor in file.tensors}

    def load(self, name: str) -> NDArray[np.generic]:
        """See `WeightSource.load`."""
        tensor = self._tensors[name]
        data = np.frombuffer(self._file.tensor(tensor), np.uint8)
        if tensor.dtype in (DType.I8_ROWS.value, DType.I4_GROUPS.value):
            return data
        if tensor.dtype == DType.TERNARY.value:
            return unpack_p16(data, *tensor.shape)
        return data.view(ARRAY_TYPES[DType(tensor.dtype)]).reshape(tensor.shape)


def load_bte(path: Path) -> ModelSource:
    """Open a file as a model source.

    Raises
    ------
    FormatError
        When the file is malformed, its graph is no graph, or a stored tensor contradicts it.
    MissingTensor
        When a constant of the graph is not stored.
    """
    file = open_bte(path)
    graph = Graph.from_json(file.graph_json())
    stored = {tensor.name: tensor for tensor in file.tensors}
    head_dtype = _head_dtype(file, graph)
    try:
        packed = packed_heads(graph, head_dtype)
    except ArgumentError as error:
        raise FormatError(
            f"[bte] the graph has no head to be quantised: {error} ({path})"
        ) from None
    for constant in graph.constants():
        tensor = stored.get(constant.name)
        if tensor is None:
            raise MissingTensor(f"[bte] constant {constant.name!r} is not stored ({path})")
        expected = replace(constant, dtype=packed.get(constant.name, constant.dtype))
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype.value:
            raise FormatError(
                f"[bte] expected {expected} for {constant.name!r}, got {tensor.dtype} "
                f"{tensor.shape} ({path})"
            )
    tokenizer = bytes(file.section("tokenizer")) if "tokenizer" in file.sections else None
    return ModelSource(graph, _BteWeights(file), tokenizer, head_dtype)


def _head_dtype(file: BteFile, graph: Graph) -> str:
    """Return the head dtype that a file was written with.

    Codes are either a constant of the graph or stand beside one, to screen it; the latter are made
    anew from the floats when the file is written again.
    """
    codes = {(tensor.name in graph.tensors, tensor.dtype) for tensor in file.tensors}
    for head_dtype in HEAD_DTYPES:
        storage = head_storage(head_dtype)
        if storage is not None and (True, storage.value) in codes:
            return head_dtype
        if head_dtype in SCREENED and (False, SCREENED[head_dtype].value) in codes:
            return head_dtype
    return STORED
