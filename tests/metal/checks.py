# SPDX-License-Identifier: MIT
"""Runs a case and compares: integers exactly, floats bit for bit (any NaN equals any NaN)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.metal.cases import Case
from tests.metal.simulator import Simulator, Traffic


def differences(found: Any, expected: Any) -> Any:
    """Indices at which two arrays differ."""
    found, expected = found.reshape(-1), np.ascontiguousarray(expected).reshape(-1)
    assert (found.dtype, found.size) == (expected.dtype, expected.size)
    if found.dtype == np.float32:
        bits = found.view(np.uint32) != expected.view(np.uint32)
        return np.flatnonzero(bits & ~(np.isnan(found) & np.isnan(expected)))
    return np.flatnonzero(found != expected)


def check(simulator: Simulator, case: Case, schedule: str, seed: int) -> Traffic:
    """Run a fresh case in one schedule and require every expected array and the traffic."""
    launch = case.launch
    launch.schedule, launch.seed = schedule, seed
    traffic = simulator.run(launch)
    for name, expected in case.expected.items():
        found = launch.buffers[name]
        at = differences(found, expected)
        assert not at.size, (
            f"{launch.kernel} {launch.params} {launch.groups}: {name} differs at {at[:8]}, found "
            f"{found.reshape(-1)[at[:4]]}, expected {np.ravel(expected)[at[:4]]}"
        )
    for name, times in case.once.items():
        minimum = times * launch.buffers[name].nbytes
        assert traffic.read[name] <= 1.1 * minimum, f"{launch.kernel}: {name} {minimum} {traffic}"
    return traffic
