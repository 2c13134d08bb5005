# SPDX-License-Identifier: MIT
"""What the commands share: sizes, tables, progress, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["counted", "print_json", "progress_bar", "size", "table"]


def size(count: float) -> str:
    """Return bytes for people: ``3.2 MB`` (1 MB = 2^20 bytes)."""
    for unit in ("B", "KB", "MB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GB"


def counted(count: int, noun: str) -> str:
    """Return ``1 thread`` or ``2 threads``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def table(rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), indent: str = "  ") -> str:
    """Return rows in aligned columns; columns in ``right`` are right-aligned."""
    cells = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        line = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(line)).rstrip())
    return "\n".join(lines)


def progress_bar(what: str) -> Callable[[int, int], None] | None:
    """Return a progress callback that draws on stderr, or None when stderr is no terminal."""
    if not sys.stderr.isatty():
        return None

    def draw(done: int, total: int) -> None:
        filled = 30 * done // total
        end = "\n" if done == total else ""
        bar = "#" * filled + "." * (30 - filled)
        print(f"\r{what} [{bar}] {size(done)}", end=end, file=sys.stderr, flush=True)

    return draw


def print_json(data: Any) -> None:
    """Print JSON to stdout."""
    print(json.dumps(data, indent=2))
