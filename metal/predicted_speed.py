# SPDX-License-Identifier: MIT
"""Decode speed on Apple GPUs, predicted from published bandwidths; nothing here was measured."""

from __future__ import annotations

from bitnet_edge.metal.session import GPU_DISPATCH_SECONDS, GPU_PASS_SECONDS

__all__ = ["BANDWIDTHS", "decode_tokens_per_second"]

# Published memory bandwidth in bytes per second of the plain chips (Apple; A17 and A18 from their
# LPDDR5 and LPDDR5X data rates on a 64-bit bus).
BANDWIDTHS = {
    "M1": 68.25e9,
    "M2": 100e9,
    "M3": 100e9,
    "M4": 120e9,
    "A17 Pro": 51.2e9,
    "A18": 60e9,
}
SHARE = 0.75  # of it that a stream of weights is assumed to reach


def decode_tokens_per_second(
    bytes_per_token: int, dispatches: int, bandwidth: float, overhead: float = 1.0
) -> float:
    """Return tokens per second: every weight byte once, plus the cost of launching.

    Parameters
    ----------
    bytes_per_token : int
        Weights and cache read for one token.
    dispatches : int
        Of one forward pass.
    bandwidth : float
        Bytes per second, as published.
    overhead : float
        Factor on the assumed launch costs; 0 leaves memory alone.
    """
    launching = GPU_PASS_SECONDS + dispatches * GPU_DISPATCH_SECONDS
    return 1 / (bytes_per_token / (SHARE * bandwidth) + overhead * launching)
