# SPDX-License-Identifier: MIT
"""Rotary embeddings: settings of a checkpoint, and the frequencies they mean.

Formulas of transformers ``modeling_rope_utils.py``, in its order of float32 operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.exporters.sources.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Rope", "inverse_frequencies", "read_rope"]

_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
    },
}
_COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True)
class Rope:
    """A rotary embedding.

    Attributes
    ----------
    theta : float
        Base of the wavelengths.
    kind : str
        ``default``, ``linear`` (all positions divided by ``factor``), ``llama3`` (long wavelengths
        divided, short ones kept, a ramp between) or ``yarn`` (the same over a ramp of dimensions).
    factor : float
    original_context : int
        Positions before the extension; 0 where the kind needs none.
    low, high : float
        ``low_freq_factor`` and ``high_freq_factor`` of llama3, ``beta_slow`` and ``beta_fast`` of
        yarn.
    truncate : bool
        yarn's ramp begins and ends at whole dimensions.
    scale : float
        Of cosines and sines (yarn's attention factor).
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low: float = 0.0
    high: float = 0.0
    truncate: bool = True
    scale: float = 1.0

    @property
    def note(self) -> str:
        """How it was read, for `inspect`."""
        scaled = "" if self.kind == "default" else f", {self.kind} scaling by {self.factor:g}"
        return f"rotary embedding: theta {self.theta:g}{scaled}"


def read_rope(config: Settings) -> Rope:
    """Read ``rope_parameters``, or the older ``rope_scaling`` and ``rope_theta``.

    Raises
    ------
    ModelError
        When a setting is missing or makes no sense.
    UnsupportedModel
        For a kind or setting that is not implemented.
    """
    rope = config.table("rope_scaling") or config.table("rope_parameters") or config
    for table in (rope, config):
        table.neutral("partial_rotary_factor", 1.0)
    theta = (rope if rope.get("rope_theta") is not None else config).positive("rope_theta")
    if rope is config:
        return Rope(theta)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if not isinstance(kind, str) or kind not in _KEYS:
        raise rope.unsupported("rope_type", " or ".join(map(repr, _KEYS)), kind)
    rope.only(_COMMON_KEYS | _KEYS[kind])
    if kind == "default":
        return Rope(theta)
    factor = rope.positive("factor")
    if kind == "linear":
        return Rope(theta, kind, factor)
    original = rope.size("original_max_position_embeddings")
    if kind == "llama3":
        low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
        if low >= high:
            raise rope.error(
                f"expected low_freq_factor below high_freq_factor, got {low} and {high}"
            )
        return Rope(theta, kind, factor, original, low, high)
    slow, fast, scale = (
        rope.positive(key) if rope.get(key) is not None else default
        for key, default in (
            ("beta_slow", 1.0),
            ("beta_fast", 32.0),
            ("attention_factor", 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0),
        )
    )
    truncate = bool(rope.flag("truncate", True))
    return Rope(theta, kind, factor, original, slow, fast, truncate, scale)


def inverse_frequencies(rope: Rope, head_dim: int) -> NDArray[np.float32]:
    """Return RoPE's ``1 / theta^(2i / head_dim)``, scaled as ``rope`` says.

    transformers computes exponent, power and reciprocal in float32. So is it here, but with the
    power rounded correctly (it is taken in float64), which is what torch's portable kernels give
    bit for bit; its AVX-512 ones are one unit in the last place off in 0.6 % of the elements.

    Returns
    -------
    ndarray of float32, shape (head_dim / 2,)
    """
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(np.float32(rope.theta)), exponents.astype(np.float64))
    powers = powers.astype(np.float32)
    frequencies = np.float32(1.0) / powers
    factor = np.float32(rope.factor)
    if rope.kind == "linear":
        frequencies = frequencies / factor
    elif rope.kind == "llama3":
        frequencies = _llama3(rope, frequencies)
    elif rope.kind == "yarn":
        kept = np.float32(1.0) - _yarn_ramp(rope, head_dim)
        stretched = np.float32(1.0) / (factor * powers)
        frequencies = stretched * (np.float32(1.0) - kept) + frequencies * kept
    result: NDArray[np.float32] = frequencies.astype(np.float32)
    return result


def _llama3(rope: Rope, frequencies: Any) -> Any:
    """Divide wavelengths beyond the original context, keep short ones, ramp between."""
    factor = np.float32(rope.factor)
    wavelengths = np.float32(2 * math.pi) / frequencies
    longest, shortest = rope.original_context / rope.low, rope.original_context / rope.high
    divided = np.where(wavelengths > np.float32(longest), frequencies / factor, frequencies)
    smooth = (np.float32(rope.original_context) / wavelengths - np.float32(rope.low)) / np.float32(
        rope.high - rope.low
    )
    ramp = (np.float32(1.0) - smooth) * divided / factor + smooth * divided
    between = ~(wavelengths < np.float32(shortest)) & ~(wavelengths > np.float32(longest))
    return np.where(between, ramp, divided)


def _yarn_ramp(rope: Rope, head_dim: int) -> Any:
    """Return 0 for dimensions that keep their frequency, 1 for those divided by the factor.

    Peng et al., "YaRN", 2023, section 3.2.
    """

    def dimension(rotations: float) -> float:
        turns = rope.original_context / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.high), dimension(rope.low)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # no division by zero
    steps = np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)
    return np.clip(steps / np.float32(high - low), np.float32(0.0), np.float32(1.0))
