# SPDX-License-Identifier: MIT
"""What every importer returns: a graph, its weights on demand, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bitnet_edge.errors import ArgumentError
from bitnet_edge.graph import Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ModelSource", "WeightSource"]


class WeightSource(Protocol):
    """Gives the values of a graph's constants one at a time, so that no model is ever whole."""

    def load(self, name: str) -> NDArray[np.generic]:
        """Return constant ``name`` in its graph shape.

        Ternary constants come as int8 in {-1, 0, 1}, f16 and bf16 as their bits in uint16, f32 as
        float32. The array may be a read-only view of a mapped file. A matrix that the source holds
        quantised already (`ModelSource.head_dtype`) comes as its bytes: uint8, one dimension.

        Raises
        ------
        NotTernary
            When a ternary tensor holds another value.
        ModelError
            When the data cannot be read.
        """
        ...


@dataclass(frozen=True)
class ModelSource:
    """An imported model.

    Attributes
    ----------
    graph : Graph
    weights : WeightSource
    tokenizer : bytes or None
        The tokenizer section as it will stand in the file (``tokenizer_format.md``).
    head_dtype : str
        What a plan keeps unless told otherwise. ``int8`` or ``int4`` when the source is a file
        whose head was quantised: the floats of the checkpoint are gone, and it can only be kept.
    """

    graph: Graph
    weights: WeightSource
    tokenizer: bytes | None = None
    head_dtype: str = "stored"

    def choose_head_dtype(self, wanted: str | None) -> str | None:
        """Return the head dtype of a plan: what is wanted, what the source has, or None: any.

        Raises
        ------
        ArgumentError
            When the source's head was quantised to another one: a second rounding, or a return to
            the lost floats, needs the original checkpoint.
        """
        if self.head_dtype in ("int8", "int4") and wanted not in (None, self.head_dtype):
            raise ArgumentError(
                f"[plan] the head of {self.graph.info.name!r} was quantised to {self.head_dtype} "
                f"when this file was written: expected head_dtype {self.head_dtype}, got "
                f"{wanted!r}; for another one export the original checkpoint"
            )
        return wanted or (None if self.head_dtype == "stored" else self.head_dtype)
