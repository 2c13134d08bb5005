# SPDX-License-Identifier: MIT
"""Comparing a benchmark with a stored one, so that a slower build is caught on any machine.

What is stored and compared are latencies as multiples of the calibration kernel's time in the same
run: a slower or busier machine slows both down.
"""

from __future__ import annotations

import json

from bitnet_edge.errors import ArgumentError

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    import os
    from typing import Any

__all__ = ["baseline_of", "load_baseline", "parse_allowance", "regressions", "save_baseline"]

FORMAT = 1


def parse_allowance(text: str) -> float:
    """Read ``+10%`` (or ``10%``) as 0.1.

    Raises
    ------
    ArgumentError
        For anything else.
    """
    digits = text.strip().removeprefix("+").removesuffix("%")
    try:
        percent = float(digits) if text.strip().endswith("%") else -1.0
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 10000:
        raise ArgumentError(f"[bench] expected an allowance such as +10%, got {text!r}")
    return percent / 100


def baseline_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is stored of a benchmark: ratios by metric, and whose they are."""
    return {
        "format": FORMAT,
        "model": results[0]["model"],
        "ratios": {
            f"{metric}, {result['threads']} threads": ratio
            for result in results
            for metric, ratio in result["ratios"].items()
        },
    }


def save_baseline(results: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write `baseline_of` as JSON.

    Raises
    ------
    OSError
        When the file cannot be written.
    """
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs the device 1 MB
        json.dump(baseline_of(results), file, indent=2)
        file.write("\n")


def load_baseline(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a stored benchmark.

    Raises
    ------
    ArgumentError
        When the file holds none.
    OSError
        When it cannot be read.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs the device 1 MB
        raw = file.read()
    try:
        data = json.loads(raw)
        valid = (
            data["format"] == FORMAT
            and isinstance(data["model"], str)
            and bool(data["ratios"])
            and all(type(ratio) in (int, float) and ratio > 0 for ratio in data["ratios"].values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise ArgumentError(f"[bench] expected a file of bench --save, got something else ({path})")
    return dict(data)


def regressions(
    baseline: dict[str, Any], results: list[dict[str, Any]], allowance: float
) -> list[str]:
    """Return one line per metric that is slower than allowed, or was not measured.

    Raises
    ------
    ArgumentError
        When the baseline is another model's.
    """
    now = baseline_of(results)
    if baseline["model"] != now["model"]:
        raise ArgumentError(
            f"[bench] expected a baseline of {now['model']!r}, got one of {baseline['model']!r}"
        )
    lines = []
    for metric, before in baseline["ratios"].items():
        after = now["ratios"].get(metric)
        if after is None:
            lines.append(f"{metric}: in the baseline, but not measured")
        elif after > before * (1 + allowance):
            lines.append(
                f"{metric}: {after:.4g} x calibration, {100 * (after / before - 1):+.1f} % against "
                f"the baseline's {before:.4g} (allowed +{100 * allowance:g} %)"
            )
    return lines
