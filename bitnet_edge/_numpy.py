# SPDX-License-Identifier: MIT
"""The one place that imports numpy, so that its absence is told once and well.

Only the host side comes here (export, plan, inspect): the device path must never load it.
"""

from __future__ import annotations

from bitnet_edge.errors import MissingDependency

try:
    import numpy as np
except ImportError as error:
    raise MissingDependency(
        "[numpy] exporting and planning need numpy: pip install 'bitnet-edge[export]'"
    ) from error

__all__ = ["np"]
