# SPDX-License-Identifier: MIT
"""What a validation found: named checks, each passed, failed or left out, with one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["FAIL", "PASS", "SKIP", "Check", "CheckFailed", "CheckSkipped", "Report"]

PASS, FAIL, SKIP = "pass", "fail", "skip"


class CheckFailed(Exception):
    """A check did not pass; the text says why in one line."""


class CheckSkipped(Exception):
    """A check was left out; the text says why in one line."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
    status : str
        `PASS`, `FAIL` or `SKIP`.
    line : str
        What was found, in one line.
    seconds : float
    """

    name: str
    status: str
    line: str
    seconds: float


@dataclass
class Report:
    """A validation.

    Attributes
    ----------
    file : str
        Path, as given.
    model : str
        Name, empty where the file could not be read that far.
    device : str
        Name of the profile.
    machine : dict
        What it ran on.
    checks : list of Check
        In the order they ran.
    memory : dict
        Planned bytes by class, budget, and what was measured; see `run.validate`.
    speed : dict
        See `bitnet_edge.bench.measure.bench_model`; ``layers`` are of `profile_layers`.
    """

    file: str
    device: str
    machine: dict[str, Any]
    model: str = ""
    checks: list[Check] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(self.failures())

    @property
    def summary(self) -> str:
        """``12 passed, 1 failed, 2 skipped in 1.3 s``."""
        count = dict.fromkeys((PASS, FAIL, SKIP), 0)
        for check in self.checks:
            count[check.status] += 1
        seconds = sum(check.seconds for check in self.checks)
        return (
            f"{count[PASS]} passed, {count[FAIL]} failed, {count[SKIP]} skipped in {seconds:.1f} s"
        )

    def failures(self) -> Iterator[Check]:
        """Yield the checks that failed."""
        return (check for check in self.checks if check.status == FAIL)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable data."""
        return {"passed": self.passed, **asdict(self)}


def plain(text: str) -> str:
    """Return text as one line that every output can hold: no control characters, no lone bytes."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in whole)
