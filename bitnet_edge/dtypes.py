# SPDX-License-Identifier: MIT
"""Element types of tensors, in the graph and in files."""

from __future__ import annotations

from enum import Enum

__all__ = ["DType"]


class DType(str, Enum):
    """Element type of a tensor.

    ``TERNARY`` is -1, 0 or +1, stored as P16 (two bits, see `bitnet_edge.packing`); ``I8`` and
    ``I4`` are codes with scales, of KV caches only (``engine/kv_cache.h``). ``I8_ROWS`` and
    ``I4_GROUPS`` are how a plan may store a head, never in a graph (`bitnet_edge.head_packing`).
    The codes of ``engine_code`` are ``be_dtype`` of ``bitnet_edge.h``.
    """

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I32 = "i32"
    I8 = "int8"
    I4 = "int4"
    TERNARY = "ternary"
    I8_ROWS = "int8_rows"
    I4_GROUPS = "int4_groups"

    @property
    def engine_code(self) -> int:
        """The engine's number for this type; ternary tensors have none."""
        return ("f32", "f16", "bf16", "i32", "int8", "int4").index(self.value)

    @property
    def bytes(self) -> int:
        """Bytes of one element; not defined for those packed by blocks."""
        return {"f32": 4, "f16": 2, "bf16": 2, "i32": 4}[self.value]
