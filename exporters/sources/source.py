# SPDX-License-Identifier: MIT
"""What every importer returns: a graph, its weights on demand, its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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
        float32. The array may be a read-only view of a mapped file.

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
    """

    graph: Graph
    weights: WeightSource
    tokenizer: bytes | None = None
