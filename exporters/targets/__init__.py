# SPDX-License-Identifier: MIT
"""Exporters: the graph written for other runtimes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_edge.exporters.targets.target import Target

__all__ = ["TARGETS", "load_target"]

TARGETS = ("onnx", "litert", "coreml")  # modules of this package, each with a TARGET


def load_target(name: str) -> Target:
    """Return a target of `TARGETS`.

    Raises
    ------
    MissingDependency
        When its extra is not installed.
    """
    target: Target = import_module(f"bitnet_edge.exporters.targets.{name}").TARGET
    return target
