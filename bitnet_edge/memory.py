# SPDX-License-Identifier: MIT
"""Private memory, planned and measured."""

from __future__ import annotations

import sys

from bitnet_edge.errors import ArgumentError

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

__all__ = ["THREAD_BYTES", "MemoryReport", "parse_bytes", "private_bytes", "private_in"]

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
    try:
        if isinstance(value, str):
            text = value.strip().lower()
            digits = text.rstrip("bkmg ")
            unit = text[len(digits) :].strip() or "b"
            number = float(digits)
        elif not isinstance(value, bool):
            number = float(value)
    except (ValueError, TypeError, OverflowError):
        number = 0.0
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


def private_in(blocks: Sequence[tuple[int, int]]) -> list[int] | None:
    """Return the private bytes of the mappings that hold blocks of this process.

    Parameters
    ----------
    blocks : sequence of (int, int)
        Address and size of each, in mappings of its own.

    Returns
    -------
    list of int or None
        ``Private_Dirty`` and what is swapped out, from ``/proc/self/smaps``; None where the system
        does not say.
    """
    try:
        with open("/proc/self/smaps", "rb") as file:  # noqa: PTH123
            lines = file.readlines()
    except OSError:
        return None
    found = [0] * len(blocks)
    inside: list[int] = []  # blocks with bytes in the mapping that the lines are about
    for line in lines:
        key, _, rest = line.partition(b" ")
        if key in (b"Private_Dirty:", b"Swap:"):
            for i in inside:
                found[i] += int(rest.split()[0]) * 1024
        elif not key.endswith(b":"):  # the first line of a mapping
            begin, end = (int(part, 16) for part in key.split(b"-"))
            inside = [i for i, (at, size) in enumerate(blocks) if at < end and begin < at + size]
    return found


class MemoryReport:
    """Planned bytes per class beside what is really held.

    Attributes
    ----------
    planned : Mapping[str, int]
        Private bytes per class, from the plan.
    measured : Mapping[str, int]
        Private bytes per class now. ``arena`` and ``kv_cache`` as the kernel counts their mappings:
        pages that no run has written are not private yet (missing where it does not say, see
        `private_in`); ``tokenizer`` and ``engine`` as allocated, without the sampler of a
        generation (`Generation.private_bytes`) and the stacks of the threads.
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
        measured: Mapping[str, int],
        budget: int,
        process_private: int,
        weights: int,
    ) -> None:
        self.planned = planned
        self.measured = measured
        self.budget = budget
        self.process_private = process_private
        self.weights = weights

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable data."""
        return {
            "planned_bytes": dict(self.planned),
            "measured_bytes": dict(self.measured),
            "budget_bytes": self.budget,
            "process_private_bytes": self.process_private,
            "weights_bytes": self.weights,
        }
