# SPDX-License-Identifier: MIT
"""Comparing measurements with stored ones, so that a slower or larger build is caught.

Latencies are stored and compared as multiples of the calibration kernel's time in the same run: a
slower or busier machine slows both down. Memory is stored in bytes.
"""

from __future__ import annotations

import json

from bitnet_edge.errors import ArgumentError

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from typing import Any

__all__ = [
    "baseline_of",
    "comparisons",
    "load_baseline",
    "parse_allowance",
    "regressions",
    "save_baseline",
]

FORMAT = 1
UNITS = {"ratios": "x calibration", "bytes": "bytes"}  # section -> what its numbers count


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


def baseline_of(
    model: str, results: list[dict[str, Any]], memory: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return what is stored of a model's measurements, by metric.

    Parameters
    ----------
    model : str
        Its name.
    results : list of dict
        Of `bench_model`; their ratios count.
    memory : mapping, optional
        Kind of memory -> bytes.
    """
    return {
        "format": FORMAT,
        "model": model,
        "ratios": {
            f"{metric}, {result['threads']} threads": ratio
            for result in results
            for metric, ratio in result["ratios"].items()
        },
        "bytes": dict(memory or {}),
    }


def save_baseline(baseline: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `baseline_of` as JSON.

    Raises
    ------
    ExportError
        When the file cannot be written.
    """
    from bitnet_edge.atomic import write_text  # after measuring: it costs the device memory

    write_text(path, json.dumps(baseline, indent=2) + "\n")


def load_baseline(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read stored measurements.

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
        sections = [data["ratios"], data.setdefault("bytes", {})]
        valid = (
            data["format"] == FORMAT
            and isinstance(data["model"], str)
            and any(sections)
            and all(
                type(number) in (int, float) and 0 < number < 1e30
                for section in sections
                for number in section.values()
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise ArgumentError(
            f"[bench] expected a file of bench --save or validate --save-baseline, got something "
            f"else ({path})"
        )
    return dict(data)


def comparisons(
    baseline: dict[str, Any], now: dict[str, Any], section: str, allowance: float
) -> Iterator[tuple[str, bool, str]]:
    """Compare what is stored of two runs, metric by metric.

    Parameters
    ----------
    baseline, now : dict
        See `baseline_of`.
    section : str
        ``ratios`` or ``bytes``.
    allowance : float
        How much larger a number may be: 0.1 is 10 %.

    Yields
    ------
    tuple of (str, bool, str)
        The metric, whether it was stored, measured and is within the allowance, and one line.

    Raises
    ------
    ArgumentError
        When the baseline is another model's.
    """
    if baseline["model"] != now["model"]:
        raise ArgumentError(
            f"[bench] expected a baseline of {now['model']!r}, got one of {baseline['model']!r}"
        )
    stored, measured, unit = baseline[section], now[section], UNITS[section]
    for metric in dict.fromkeys([*stored, *measured]):
        if metric not in measured:
            yield metric, False, "in the baseline, but not measured"
        elif metric not in stored:
            yield metric, False, "measured, but not in the baseline"
        else:
            before, after = stored[metric], measured[metric]
            line = (
                f"{_number(after)} {unit}, {100 * (after / before - 1):+.1f} % against the "
                f"baseline's {_number(before)} (allowed +{100 * allowance:g} %)"
            )
            yield metric, after <= before * (1 + allowance), line


def regressions(
    baseline: dict[str, Any], results: list[dict[str, Any]], allowance: float
) -> list[str]:
    """Return one line per latency that is slower than allowed, or was stored but not measured.

    Raises
    ------
    ArgumentError
        When the baseline is another model's.
    """
    compared = comparisons(baseline, baseline_of(results[0]["model"], results), "ratios", allowance)
    return [
        f"{metric}: {line}"
        for metric, within, line in compared
        if not within and metric in baseline["ratios"]
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
