# SPDX-License-Identifier: MIT
"""Element types of tensors, in the graph and in files."""

from __future__ import annotations

from enum import Enum

__all__ = ["DType"]


class DType(str, Enum):
    """Element type of a tensor.

    ``TERNARY`` is -1, 0 or +1, stored as P16 (two bits, see `bitnet_edge.packing`); the codes of
    ``engine_code`` are ``be_dtype`` of ``bitnet_edge.h``.
    """

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I32 = "i32"
    TERNARY = "ternary"

    @property
    def engine_code(self) -> int:
        """The engine's number for this type; ternary tensors have none."""
        return ("f32", "f16", "bf16", "i32").index(self.value)

    @property
    def bytes(self) -> int:
        """Bytes of one element; not defined for ``TERNARY``, which is packed by blocks."""
        return {"f32": 4, "f16": 2, "bf16": 2, "i32": 4}[self.value]
