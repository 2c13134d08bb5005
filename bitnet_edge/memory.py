# SPDX-License-Identifier: MIT
"""Private memory, planned and measured."""

from __future__ import annotations

import sys

from bitnet_edge.errors import ArgumentError

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["THREAD_BYTES", "MemoryReport", "parse_bytes", "private_bytes"]

THREAD_BYTES = 96 * 1024  # stack pages a worker touches, and its bookkeeping

_UNITS = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}


def parse_bytes(value: int | str) -> int:
    """Read a size: bytes as an int, or text such as ``"48MB"`` (1 MB = 2^20 bytes).

    Raises
    ------
    ArgumentError
        For anything else, or a size below one byte.
    """
    number, unit = 0.0, "b"
    if isinstance(value, str):
        text = value.strip().lower()
        digits = text.rstrip("bkmg ")
        unit = text[len(digits) :].strip() or "b"
        try:
            number = float(digits)
        except ValueError:
            unit = ""
    elif not isinstance(value, bool):
        number = float(value)
    size = number * _UNITS.get(unit, 0)
    if not 1 <= size < 1e15:
        raise ArgumentError(f"[memory] expected a size such as 50000000 or '48MB', got {value!r}")
    return int(size)


def private_bytes() -> int:
    """Return the private memory of this process: written pages, which nobody can drop or share.

    It is what iOS and Android count against an app. On Linux ``Private_Dirty`` of
    ``/proc/self/smaps_rollup`` (clean pages of mapped files, the weights above all, can be dropped
    at any time and are not counted); elsewhere 0, which means "not measured".
    """
    if not sys.platform.startswith(("linux", "android")):
        return 0
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:  # noqa: PTH123
            lines = file.readlines()
    except OSError:  # no /proc, or Android before Linux 4.14
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Private_Dirty:"))


class MemoryReport:
    """Planned bytes per class beside what is really held.

    Attributes
    ----------
    planned : Mapping[str, int]
        Private bytes per class, from the plan.
    allocated : Mapping[str, int]
        Bytes the engine allocated, per class; untouched pages of them are not yet private.
    budget : int
        Private bytes allowed.
    process_private : int
        Private bytes of the whole process now, see `private_bytes` (0 where not measured).
    weights : int
        Bytes of the mapped weights (clean, shared).
    """

    def __init__(
        self,
        planned: Mapping[str, int],
        allocated: Mapping[str, int],
        budget: int,
        process_private: int,
        weights: int,
    ) -> None:
        self.planned = planned
        self.allocated = allocated
        self.budget = budget
        self.process_private = process_private
        self.weights = weights

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable data."""
        return {
            "planned_bytes": dict(self.planned),
            "allocated_bytes": dict(self.allocated),
            "budget_bytes": self.budget,
            "process_private_bytes": self.process_private,
            "weights_bytes": self.weights,
        }
