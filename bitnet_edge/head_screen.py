# SPDX-License-Identifier: MIT
"""Exact screening: what a file stores beside a float head so that few of its rows are read.

A screened head keeps its float matrix, bit for bit, and adds the int8 or int4 codes of
`bitnet_edge.head_packing` and two numbers a row. A greedy or top-k token then reads the codes and
the rows whose error bound could still win; the logits it uses have the bits of the whole product.
The derivation of the bound stands in ``cython_kernels/engine/head_screen.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError
from bitnet_edge.head_packing import GROUP, SCREENED, QuantisedHead, output_matrices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitnet_edge.graph import Graph

__all__ = ["ENLARGED", "Screen", "keep_rows", "row_bounds", "screened_heads", "token_errors"]

ENLARGED = 1 + 2.0**-20
UNIT = 2.0**-24


@dataclass(frozen=True)
class Screen:
    """Names and format of what screens one matrix.

    Attributes
    ----------
    codes : str
        Constant of the matrix's shape and of dtype ``dtype``.
    bounds : str
        Float32 constant of shape (2, rows): norms of the residuals, norms of the rows.
    dtype : DType
        ``I8_ROWS`` or ``I4_GROUPS``.
    """

    codes: str
    bounds: str
    dtype: DType


def screened_heads(graph: Graph, head_dtype: str) -> dict[str, Screen]:
    """Return the matrices that a head dtype screens, and by what.

    Raises
    ------
    ArgumentError
        For a graph without an output layer, or with one that has a bias.
    """
    dtype = SCREENED.get(head_dtype)
    if dtype is None:
        return {}
    screens = {}
    for node in output_matrices(graph, head_dtype):
        name = node.inputs[1]
        if node.inputs[2]:
            raise ArgumentError(
                f"[plan] expected an output layer without bias for head_dtype {head_dtype}, got "
                f"{node.inputs[2]!r} (node {node.name!r})"
            )
        screen = Screen(f"{name}.screen", f"{name}.bounds", dtype)
        for taken in (screen.codes, screen.bounds):
            if taken in graph.tensors:
                raise ArgumentError(f"[plan] the graph has a tensor {taken!r} already")
        screens[name] = screen
    return screens


def row_bounds(values: NDArray[np.float32], head: QuantisedHead) -> NDArray[np.float32]:
    """Return norms of rows, rounded up: of what the codes leave, and of the rows themselves.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, k)
    head : QuantisedHead
        `quantise_head` of them.

    Returns
    -------
    ndarray of float32, shape (2, rows)
    """
    exact = values.astype(np.float64)
    scales = head.scales.astype(np.float64)
    if head.dtype is DType.I4_GROUPS:
        scales = np.repeat(scales, GROUP, axis=1)[:, : values.shape[1]]
    residual = exact - head.codes * scales  # products of 8 and 24 bits are exact
    squares = np.stack([(rows * rows).sum(axis=1) for rows in (residual, exact)])
    with np.errstate(over="ignore"):  # an infinite bound keeps its row
        rounded = (np.sqrt(squares) * (1 + 2.0**-30)).astype(np.float32)
    bounds: NDArray[np.float32] = np.nextafter(rounded, np.float32(np.inf))
    return bounds


def rounding_bound(n: float) -> float:
    """Relative error of n roundings to float32."""
    return n * UNIT / (1 - n * UNIT)


def token_errors(
    x: NDArray[np.float32], q: NDArray[np.int64], s: np.float32, dtype: DType
) -> NDArray[np.float32]:
    """Return the factors of a token's error bound, as ``be_screen_errors``.

    Parameters
    ----------
    x : ndarray of float32, shape (k,)
    q : ndarray of int64, shape (k,)
    s : float32
        As `reference.quantize_wide` gives them.
    dtype : DType
        Of the codes.

    Returns
    -------
    ndarray of float32, shape (3,)
        The bound of row r is ``residual[r] * f[0] + norm[r] * f[1] + f[2]``.
    """
    k = len(x)
    with np.errstate(all="ignore"):
        step = np.float64(1) / np.float64(s)
        d = x.astype(np.float64) - q * step
        rounded = np.sqrt(np.float64((q * q).sum())) * step
        moved = np.sqrt(np.add.accumulate(d * d)[-1]) + 2.0**-48 * rounded
        exact_sum = rounding_bound(k // 16 + 6)
        estimate = rounding_bound(4 if dtype is DType.I8_ROWS else k // GROUP + 4)
        norm = moved + exact_sum * (rounded + moved) + estimate * rounded
        factors = ((1 + estimate) * rounded * ENLARGED, norm * ENLARGED, (2 * k + 64) * 2.0**-125)
        return np.array(factors, np.float64).astype(np.float32)


def keep_rows(
    estimates: NDArray[np.float32],
    exact: NDArray[np.float32],
    errors: NDArray[np.float32],
    bounds: NDArray[np.float32],
    best: int,
    margin: float = 0.0,
) -> NDArray[np.bool_]:
    """Return which rows a screened token computes, as the engine chooses them.

    Parameters
    ----------
    estimates, exact : ndarray of float32, shape (rows,)
        Products of the codes and of the float rows; of the latter only the ``best`` of largest
        estimate matter.
    errors : ndarray of float32, shape (3,)
        `token_errors`.
    bounds : ndarray of float32, shape (2, rows)
        `row_bounds`.
    best : int
        How many of the largest logits are wanted.
    margin : float
        And all less than this below the last of them.

    Returns
    -------
    ndarray of bool, shape (rows,)
    """
    valid = np.flatnonzero(~np.isnan(estimates))
    chosen = valid[np.argsort(-estimates[valid], kind="stable")[:best]]
    threshold = np.float32(-np.inf)
    if len(chosen) == best and not np.isnan(exact[chosen]).any():
        threshold = exact[chosen].min() - np.float32(margin)
    with np.errstate(all="ignore"):
        above = estimates + ((bounds[0] * errors[0] + bounds[1] * errors[1]) + errors[2])
        keep: NDArray[np.bool_] = ~(above < threshold) | ~np.isfinite(estimates)
    return keep
