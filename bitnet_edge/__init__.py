# SPDX-License-Identifier: MIT
"""Ternary (BitNet b1.58) models on phones, boards and wearables.

``load`` runs a ``.bte`` file with the standard library and the compiled engine alone; ``export``
and ``plan`` are the host side and need ``pip install 'bitnet-edge[export]'``.
"""

from __future__ import annotations

from bitnet_edge import errors

TYPE_CHECKING = False  # typing would cost the device 0.7 MB
if TYPE_CHECKING:
    from typing import Any

    from bitnet_edge.api import export, plan
    from bitnet_edge.runtime import Model, load

__all__ = ["Model", "__version__", "errors", "export", "load", "plan"]

__version__ = "0.1.0"

_HOMES = {
    "Model": "bitnet_edge.runtime",
    "load": "bitnet_edge.runtime",
    "export": "bitnet_edge.api",
    "plan": "bitnet_edge.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the device never loads the host side."""
    if name not in _HOMES:
        raise AttributeError(f"module 'bitnet_edge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
