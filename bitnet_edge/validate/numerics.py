# SPDX-License-Identifier: MIT
"""The same bits whichever way a model is run: that is the promise, and these are its checks."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence

from bitnet_edge import _engine
from bitnet_edge.bench.work import decode_macs, describe
from bitnet_edge.errors import MissingDependency
from bitnet_edge.runtime import Model, load
from bitnet_edge.validate.probes import Probe, probes, run_probe
from bitnet_edge.validate.report import CheckFailed, CheckSkipped, plain

__all__ = ["check_paths", "check_reference", "check_scalar", "check_threads"]

ROOM = "1GB"  # more threads than planned cost a little; the budget has a check of its own
# Multiply-adds of one check, so that it ends: seconds of the numpy reference, of scalar kernels, of
# the kernels a machine has.
REFERENCE_MACS = 1_000_000_000
SCALAR_MACS = 4_000_000_000
ENGINE_MACS = 20_000_000_000
REFERENCE_WEIGHTS = 150_000_000  # numpy holds each as an int8, one layer's as int64
MOST_ROWS = 512
REFERENCE_ROWS = 70  # more than a block of 64 keys

Runner = Callable[[Probe], list[bytes]]


def check_reference(path: str) -> str:
    """Compare with `bitnet_edge.reference`, bit for bit.

    Raises
    ------
    CheckFailed, CheckSkipped
    """
    with load(path, 1, ROOM) as model:
        macs = decode_macs(describe(model))
        if macs > REFERENCE_WEIGHTS:
            raise CheckSkipped(
                f"too large for the numpy reference ({macs / 1e6:.0f} M multiply-adds a token, at "
                f"most {REFERENCE_WEIGHTS // 1_000_000} M): the scalar kernels are the second "
                "implementation"
            )
        made = probes(model, _rows(macs, REFERENCE_MACS, REFERENCE_ROWS))
        try:
            expected = _reference(path, model, made)
        except MissingDependency:
            raise CheckSkipped(
                "numpy is not installed here: the scalar kernels are the second implementation"
            ) from None
        _compare(made, expected, lambda probe: run_probe(model, probe))
        return f"equals the numpy reference bit for bit on {_described(made)}"


def _reference(path: str, model: Model, made: Sequence[Probe]) -> list[list[bytes]]:
    """Return what the reference says to each probe; the file's graph is anyone's, so is its end."""
    from bitnet_edge.validate.reference_probes import reference_outputs

    try:
        return reference_outputs(path, model, made)
    except MissingDependency:
        raise
    except Exception as error:
        raise CheckFailed(
            plain(f"the reference cannot run this file's graph: {type(error).__name__}: {error}")
        ) from error


def check_scalar(path: str) -> str:
    """Compare the kernels chosen for this CPU with the scalar ones.

    Raises
    ------
    CheckFailed, CheckSkipped
    """
    chosen = sorted(set(_engine.kernel_isas().values()) - {"scalar"})
    if not chosen:
        raise CheckSkipped("the kernels chosen for this CPU are the scalar ones")
    with load(path, 1, ROOM) as model:
        made = probes(model, _rows(decode_macs(describe(model)), SCALAR_MACS, MOST_ROWS))
        fast = [run_probe(model, probe) for probe in made]
        _engine.set_cpu("scalar")
        try:
            scalar = [run_probe(model, probe) for probe in made]
        finally:
            _engine.set_cpu(os.environ.get("BITNET_EDGE_CPU") or None)
    _compare(made, scalar, dict(zip(made, fast, strict=True)).__getitem__)
    return f"{', '.join(chosen)} equal scalar bit for bit on {_described(made)}"


def check_paths(path: str) -> str:
    """Compare runs of as many rows as planned with runs of one and of three.

    Raises
    ------
    CheckFailed
    """
    with load(path, 1, ROOM) as model:
        made = probes(model, _rows(decode_macs(describe(model)), ENGINE_MACS, MOST_ROWS))
        expected = [run_probe(model, probe, 1) for probe in made]
        for chunk in (3, None):
            _compare(made, expected, lambda probe, c=chunk: run_probe(model, probe, c))  # type: ignore[misc]
        most = model.session.program.max_tokens
    return f"prefill in runs of 3 and {most} equals decoding bit for bit on {_described(made)}"


def check_threads(path: str, threads: int) -> str:
    """Compare one thread with several.

    Raises
    ------
    CheckFailed
    """
    several = max(2, threads)
    with load(path, 1, ROOM) as one, load(path, several, ROOM) as many:
        made = probes(one, _rows(decode_macs(describe(one)), ENGINE_MACS, MOST_ROWS))
        expected = [run_probe(one, probe) for probe in made]
        _compare(made, expected, lambda probe: run_probe(many, probe))
    return f"{several} threads equal one bit for bit on {_described(made)}"


def _rows(macs: int, budget: int, most: int) -> int:
    return max(4, min(most, budget // max(1, macs)))


def _described(made: Sequence[Probe]) -> str:
    return f"{len(made)} probes, {sum(probe.rows for probe in made)} rows"


def _compare(made: Sequence[Probe], expected: Sequence[list[bytes]], run: Runner) -> None:
    for probe, right in zip(made, expected, strict=True):
        for port, (a, b) in enumerate(zip(right, run(probe), strict=True)):
            if a != b:
                raise CheckFailed(
                    f"{_difference(a, b, probe.rows)} of output {port}, probe {probe.name!r}"
                )


def _difference(expected: bytes, got: bytes, rows: int) -> str:
    """Name the first float that differs."""
    if len(expected) != len(got):
        return f"expected {len(expected)} bytes, got {len(got)}"
    at = next(i for i in range(0, len(got), 4) if expected[i : i + 4] != got[i : i + 4])
    row, column = divmod(at // 4, len(got) // 4 // rows)
    a, b = expected[at : at + 4], got[at : at + 4]
    return f"expected {_float(a)}, got {_float(b)} in row {row}, column {column}"


def _float(raw: bytes) -> str:
    """Return a number and its bits: two NaNs may differ."""
    return f"{struct.unpack('<f', raw)[0]:.9g} (0x{int.from_bytes(raw, 'little'):08x})"
