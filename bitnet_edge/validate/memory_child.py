# SPDX-License-Identifier: MIT
"""A fresh process that loads a model and fills its context, and says what memory it holds.

It imports what an application on the device imports, and nothing else: the standard library and
the engine. `bitnet_edge.validate.memory` starts it and reads the one JSON object it prints.
"""

from __future__ import annotations

import json
import sys

from bitnet_edge.errors import BitnetEdgeError
from bitnet_edge.memory import private_bytes
from bitnet_edge.runtime import load
from bitnet_edge.validate.probes import DECODED, fill

TYPE_CHECKING = False  # typing and dataclasses would be measured
if TYPE_CHECKING:
    from typing import Any

__all__ = ["main"]


def main(path: str, threads: str) -> int:
    """Load, run to the end of the context, print.

    Parameters
    ----------
    path : str
    threads : str
        A number, or empty for the plan's.
    """
    try:
        stages = [_figures("interpreter")]
        model = load(path, int(threads) if threads else None)
        stages.append(_figures("loaded"))
        for stage in fill(model):
            stages.append(_figures(stage))
    except MemoryError:
        print("out of memory", file=sys.stderr)
        return 1
    except (BitnetEdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"stages": stages, "context": model.context, "decoded": DECODED}))
    return 0


def _figures(stage: str) -> dict[str, Any]:
    """Return what the kernel says of this process now, in bytes; empty where it says nothing."""
    figures: dict[str, Any] = {"stage": stage, "private": private_bytes()}
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:  # noqa: PTH123 - pathlib costs 1 MB
            rows = [line.split() for line in file.readlines()[1:]]
    except OSError:
        return figures
    sizes = {row[0].decode().rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}
    names = {"resident": "Rss", "proportional": "Pss", "private_clean": "Private_Clean"}
    return figures | {name: sizes[key] for name, key in names.items() if key in sizes}
