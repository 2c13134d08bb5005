# SPDX-License-Identifier: MIT
"""Ternary linears in MLX, for those who live there: 2-bit affine quantisation holds them exactly.

MLX stores ``code * scale + bias`` by groups of 32, 64 or 128 columns, 16 codes a 32-bit word, the
lowest first. Codes are weight + 1, the scale is s and the bias -s, so that 0, 1, 2 mean -s, 0, s.
With s = 1 and int8 activations as floats every product is an integer, exact below 2^24; the
activations' scale and the matrix's come afterwards, as the engine has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.errors import MissingDependency, NotTernary, ShapeMismatch
from bitnet_edge.quantization import quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GROUP_SIZES", "MAX_COLUMNS", "TernaryLinear", "pack_mlx"]

GROUP_SIZES = (32, 64, 128)
MAX_COLUMNS = 1 << 17  # 128 * k <= 2^24
CODES = 16  # of a word


def pack_mlx(weights: NDArray[np.int8]) -> NDArray[np.uint32]:
    """Pack a ternary matrix as MLX's 2-bit words.

    Parameters
    ----------
    weights : ndarray of int8, shape (rows, k)
        Values -1, 0, +1; k a multiple of 32.

    Returns
    -------
    ndarray of uint32, shape (rows, k / 16)

    Raises
    ------
    NotTernary, ShapeMismatch
        When MLX could not hold it exactly.
    """
    rows, k = weights.shape
    if weights.size and (weights.min() < -1 or weights.max() > 1):
        raise NotTernary(f"[mlx] expected -1, 0 and +1, got {weights.min()} .. {weights.max()}")
    if k % GROUP_SIZES[0] != 0 or not 0 < k <= MAX_COLUMNS:
        raise ShapeMismatch(f"[mlx] expected k % 32 == 0 and k <= {MAX_COLUMNS}, got {k}")
    codes = (weights + 1).astype(np.uint32).reshape(rows, k // CODES, CODES)
    shifts = (2 * np.arange(CODES)).astype(np.uint32)
    packed: NDArray[np.uint32] = np.bitwise_or.reduce(codes << shifts, axis=-1)
    return packed


class TernaryLinear:
    """``y = (q W^T / s) * scale`` of quantised activations, in MLX.

    Parameters
    ----------
    weights : ndarray of int8, shape (rows, k)
    scale : float
        Of the matrix.
    group_size : int
        32, 64 or 128; k must be a multiple.

    Raises
    ------
    MissingDependency
        Without MLX.
    NotTernary, ShapeMismatch
        When MLX could not hold the weights exactly.
    """

    def __init__(self, weights: NDArray[np.int8], scale: float, group_size: int = 32) -> None:
        try:
            import mlx.core
        except ImportError:
            raise MissingDependency(
                "[mlx] needs MLX: pip install 'bitnet-edge[mlx]' (on Linux also 'mlx[cpu]')"
            ) from None
        if group_size not in GROUP_SIZES or weights.shape[1] % group_size != 0:
            raise ShapeMismatch(
                f"[mlx] expected a group size of {GROUP_SIZES} that divides k = "
                f"{weights.shape[1]}, got {group_size}"
            )
        self._mx: Any = mlx.core
        self.scale = np.float32(scale)
        self.group_size = group_size
        self.weight = self._mx.array(pack_mlx(weights))
        shape = (weights.shape[0], weights.shape[1] // group_size)
        self.scales, self.biases = self._mx.full(shape, 1.0), self._mx.full(shape, -1.0)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply rows: float32 (n, k) -> (n, rows), the bits of the engine's ternary_linear."""
        q, s = quantize(x)
        acc = self._mx.quantized_matmul(
            self._mx.array(q.astype(np.float32)),
            self.weight,
            scales=self.scales,
            biases=self.biases,
            transpose=True,
            group_size=self.group_size,
            bits=2,
        )
        y: NDArray[np.float32] = (np.array(acc) / s[:, None]) * self.scale
        return y
