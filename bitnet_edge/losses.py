# SPDX-License-Identifier: MIT
"""What lossy choices cost, in measured figures only.

`BUNDLED` holds those of the bundled model on the bundled text, a passage that it never saw.
`bitnet_edge.measure_losses` measures any model, and tests/golden/test_losses.py finds the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bitnet_edge.planner import Choices

__all__ = ["BUNDLED", "Loss", "lossy"]


@dataclass(frozen=True)
class Loss:
    """Of one choice, teacher-forced over a text, against the model without it.

    Attributes
    ----------
    tokens : int
        Of the text.
    agreement : float
        Share of the greedy choices that stay the same.
    perplexity : float
        Relative change of the perplexity.
    """

    tokens: int
    agreement: float
    perplexity: float

    def __str__(self) -> str:
        return (
            f"{100 * self.agreement:.1f} % of the greedy choices kept, perplexity "
            f"{100 * self.perplexity:+.2f} % ({self.tokens} tokens)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON-serialisable data."""
        return {
            "tokens": self.tokens,
            "agreement": round(self.agreement, 6),
            "perplexity_change": round(self.perplexity, 6),
        }


# (choice, value) -> loss against a float32 cache, or the head as stored
BUNDLED = {
    ("kv_dtype", "f16"): Loss(488, 484 / 488, 0.000467),
    ("kv_dtype", "int8"): Loss(488, 479 / 488, 0.002129),
    ("kv_dtype", "int4"): Loss(488, 440 / 488, 0.005252),
    ("head_dtype", "int8"): Loss(488, 477 / 488, 0.001901),
    ("head_dtype", "int4"): Loss(488, 415 / 488, 0.031334),
}


def lossy(choices: Choices) -> list[tuple[str, str]]:
    """Return the lossy choices among some, as keys of `BUNDLED`."""
    keys = [("kv_dtype", choices.kv_dtype.value), ("head_dtype", choices.head_dtype)]
    return [key for key in keys if key in BUNDLED and (key[0] != "kv_dtype" or choices.context)]
