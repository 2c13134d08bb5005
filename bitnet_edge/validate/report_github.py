# SPDX-License-Identifier: MIT
"""A report as GitHub's workflow commands: errors shown beside the file in a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from bitnet_edge.validate.report import Report

__all__ = ["github"]


def github(report: Report) -> Iterator[str]:
    """Yield ``::error file=...,title=...::line`` for every check that failed."""
    for check in report.failures():
        title = _property(f"bitnet-edge validate: {check.name}")
        yield f"::error file={_property(report.file)},title={title}::{_data(check.line)}"


def _data(text: str) -> str:
    """Escape as GitHub's toolkit does."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
