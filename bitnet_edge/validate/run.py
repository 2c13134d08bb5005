# SPDX-License-Identifier: MIT
"""Validating a file for a device: the checks in order, each with its name and one line."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from bitnet_edge import __version__, _engine
from bitnet_edge.bench.gate import baseline_of, comparisons
from bitnet_edge.cli.text import counted, size
from bitnet_edge.container import BteFile, open_bte
from bitnet_edge.errors import (
    ArgumentError,
    BadMagic,
    BitnetEdgeError,
    BudgetExceeded,
    UnsupportedVersion,
)
from bitnet_edge.profiles import Profile, load_profile
from bitnet_edge.runtime import load
from bitnet_edge.tokenizer import Tokenizer
from bitnet_edge.validate.golden import check_golden
from bitnet_edge.validate.memory import measure_memory
from bitnet_edge.validate.numerics import (
    check_paths,
    check_reference,
    check_scalar,
    check_threads,
)
from bitnet_edge.validate.report import (
    FAIL,
    PASS,
    SKIP,
    Check,
    CheckFailed,
    CheckSkipped,
    Report,
    plain,
)
from bitnet_edge.validate.speed import measure_speed

__all__ = ["GROUPS", "MAX_LATENCY", "MAX_MEMORY", "stored", "validate"]

GROUPS = ("checksums", "isa", "memory", "numerics", "speed")  # what may be left out
MAX_MEMORY, MAX_LATENCY = 0.10, 0.05  # default allowances over the baseline


def validate(
    path: str | os.PathLike[str],
    device: str | Path | Profile | None = None,
    *,
    host: bool = False,
    threads: int | None = None,
    skip: Collection[str] = (),
    golden: dict[str, Any] | None = None,
    baseline: dict[str, Any] | None = None,
    max_memory: float = MAX_MEMORY,
    max_latency: float = MAX_LATENCY,
) -> Report:
    """Check a file against a device, on this machine.

    Parameters
    ----------
    path : str or PathLike
    device : str, Path or Profile, optional
        The profile that the file was planned for by default.
    host : bool
        This machine stands in for the device: it need not have the device's instruction sets.
    threads : int, optional
        Participants of a run; the plan's by default.
    skip : collection of str
        `GROUPS` to leave out.
    golden : dict, optional
        Outputs to compare with, see `golden.load_golden`.
    baseline : dict, optional
        Measurements to compare with, see `bitnet_edge.bench.gate.load_baseline`.
    max_memory, max_latency : float
        How much more than the baseline is allowed: 0.1 is 10 %.

    Returns
    -------
    Report

    Raises
    ------
    BadMagic, UnsupportedVersion, OSError
        When the file is no ``.bte`` file of this version, or cannot be read.
    ProfileError, MissingDependency
        When there is no such device, or no PyYAML to read its profile with.
    ArgumentError
        For arguments outside their domain, and a golden or baseline of another model.
    """
    unknown = sorted(set(skip) - set(GROUPS))
    if unknown:
        raise ArgumentError(
            f"[validate] expected to skip {', '.join(GROUPS)}, got {', '.join(unknown)}"
        )
    if baseline is not None and {"speed", "memory"} <= set(skip):
        raise ArgumentError("[validate] a baseline needs speed or memory measured, both skipped")
    most = _engine.MAX_THREADS
    if threads is not None and not 1 <= threads <= most:
        raise ArgumentError(f"[validate] expected threads 1 .. {most}, got {threads}")
    run = _Validation(os.fspath(path), device, host, threads, frozenset(skip))
    run.structure()
    if run.readable:
        run.expect(golden, "golden outputs")
        run.expect(baseline, "a baseline")
        run.device()
        run.measure()
        run.numerics(golden)
        run.speed()
        if baseline is not None:
            run.compare(baseline, max_memory, max_latency)
    return run.report


class _Validation:
    """One validation as it proceeds.

    Memory is measured before this process maps the file's weights: pages that a process has mapped
    stay in the page cache, charged to whoever read them first.
    """

    def __init__(
        self,
        path: str,
        device: str | Path | Profile | None,
        host: bool,
        threads: int | None,
        skip: frozenset[str],
    ) -> None:
        self.path = path
        self.host = host
        self.threads = threads
        self.skip = skip
        self.readable = False  # the file's structure is sound
        self.loadable = False  # and its plan fits the device
        damage: BitnetEdgeError | None = None
        file: BteFile | None = None
        try:
            file = open_bte(path)
        except (BadMagic, UnsupportedVersion):
            raise
        except BitnetEdgeError as error:
            damage = error
        self._file, self._damage = file, damage
        if device is None:
            device = file.plan["profile"] if file else "generic-50mb"
        self.profile = device if isinstance(device, Profile) else load_profile(device)
        self.report = Report(plain(path), self.profile.name, _machine())
        self.planned_threads = 1

    def check(self, name: str, work: Callable[[], str], group: str = "") -> None:
        """Run one check and note how it went."""
        start = time.perf_counter()
        try:
            if group in self.skip:
                raise CheckSkipped(f"--skip {group}")
            status, line = PASS, work()
        except CheckFailed as error:
            status, line = FAIL, str(error)
        except CheckSkipped as error:
            status, line = SKIP, str(error)
        except MemoryError:
            status, line = FAIL, "out of memory"
        except (BitnetEdgeError, OSError) as error:
            status, line = FAIL, str(error)
        seconds = time.perf_counter() - start
        self.report.checks.append(Check(name, status, plain(line), seconds))

    # -- the file ---------------------------------------------------------------------------

    def structure(self) -> None:
        """Check header, sections and program."""
        self.check("structure", self._structure)

    def _structure(self) -> str:
        if self._file is None:
            raise CheckFailed(str(self._damage))
        file = self._file
        self.report.model = file.model["name"]
        program = _engine.Program(file.section("program"), file.section("weights"))
        if "tokenizer" in file.sections:
            Tokenizer(file.section("tokenizer"))
        self.planned_threads = file.plan["threads"]
        self.readable = True
        return (
            f"{len(file.sections)} sections, {len(file.tensors)} tensors, "
            f"{program.instruction_count} instructions"
        )

    def _checksums(self) -> str:
        open_bte(self.path).verify()
        return "every section has its SHA-256"

    def expect(self, stored: dict[str, Any] | None, what: str) -> None:
        """Refuse what was stored of another model."""
        if stored is not None and stored["model"] != self.report.model:
            raise ArgumentError(
                f"[validate] expected {what} of {self.report.model!r}, got {stored['model']!r}'s"
            )

    # -- the device -------------------------------------------------------------------------

    def device(self) -> None:
        """Check instruction sets and the plan against the profile."""
        self.check("isa", self._isa, "isa")
        self.check("budget", self._budget)

    def _isa(self) -> str:
        here = set(_engine.cpu_isas())
        missing = [isa for isa in self.profile.isa if isa not in here]
        if missing and self.host:
            raise CheckSkipped(
                f"--host: {platform.machine()} stands in for a CPU with {', '.join(missing)}"
            )
        if missing:
            raise CheckFailed(
                f"{self.profile.name} needs {', '.join(missing)}, this CPU "
                f"({platform.machine()}) has {', '.join(sorted(here))}; --host validates elsewhere"
            )
        return f"this CPU has {', '.join(self.profile.isa)}"

    def _budget(self) -> str:
        self._file = None  # unmapped, so that its pages can be dropped
        allowed = self.profile.private_bytes
        planned = {"allowed": allowed, "resident_allowed": self.profile.resident_bytes}
        self.report.memory = planned
        try:
            with load(self.path, self.threads, allowed) as model:
                classes = dict(model.memory_report().planned)
                weights = model.file.sections["weights"].bytes
        except BudgetExceeded as error:
            self.report.memory = {**planned, "classes": error.breakdown}
            raise CheckFailed(
                f"the plan needs {error.needed} bytes of private memory, "
                f"{error.needed - error.allowed} more than the {error.allowed} of "
                f"{self.profile.name}"
            ) from None
        needed = sum(classes.values())
        self.report.memory = {**planned, "classes": classes, "weights": weights}
        self.loadable = True
        return (
            f"the plan needs {size(needed)} of private memory, {100 * needed / allowed:.0f} % of "
            f"the {size(allowed)} of {self.profile.name}"
        )

    # -- memory -----------------------------------------------------------------------------

    def measure(self) -> None:
        """Measure a fresh process under a hard limit."""
        self.check("memory", self._memory, "memory")
        if self.profile.resident_bytes is not None:
            self.check("resident", self._resident, "memory")

    def _memory(self) -> str:
        self._needs_loading()
        allowed = self.profile.private_bytes
        measured = measure_memory(
            self.path,
            private=allowed,
            resident=self.profile.resident_bytes,
            threads=self.threads,
        )
        self.report.memory["measured"] = measured
        figures = (
            f"{size(measured['private'])} private at context {measured['context']}, under a limit "
            f"of {size(measured['limit'])} ({measured['mechanism']}, page cache "
            f"{'counted' if measured['counts_page_cache'] else 'not counted'})"
        )
        if measured["private"] > allowed:
            raise CheckFailed(
                f"{measured['private']} bytes private, {measured['private'] - allowed} more than "
                f"the {allowed} of {self.profile.name}; {figures}"
            )
        return figures

    def _resident(self) -> str:
        measured = self.report.memory.get("measured")
        allowed = self.profile.resident_bytes
        if measured is None or allowed is None:
            raise CheckSkipped("memory could not be measured")
        used, how = measured["resident"], "resident pages of the process"
        if measured["counts_page_cache"] and measured["peak"] is not None:
            used, how = measured["peak"], "charged to the group at its peak, page cache included"
        if used > allowed:
            raise CheckFailed(
                f"{used} bytes {how}, {used - allowed} more than the {allowed} of "
                f"{self.profile.name}"
            )
        return f"{size(used)} {how}, of {size(allowed)}"

    def _needs_loading(self) -> None:
        if not self.loadable:
            raise CheckSkipped("the plan does not fit the device")

    # -- what it computes -------------------------------------------------------------------

    def numerics(self, golden: dict[str, Any] | None) -> None:
        """Check content and results."""
        self.check("checksums", self._checksums, "checksums")
        threads = self.threads or self.planned_threads
        for name, work in (
            ("reference", lambda: check_reference(self.path)),
            ("scalar", lambda: check_scalar(self.path)),
            ("prefill", lambda: check_paths(self.path)),
            ("threads", lambda: check_threads(self.path, threads)),
        ):
            self.check(name, self._loaded(work), "numerics")
        if golden is not None:
            self.check("golden", self._loaded(lambda: check_golden(self.path, golden)))

    def _loaded(self, work: Callable[[], str]) -> Callable[[], str]:
        def guarded() -> str:
            self._needs_loading()
            return work()

        return guarded

    # -- speed ------------------------------------------------------------------------------

    def speed(self) -> None:
        """Measure speed; whether it is enough is for the baseline to say."""
        self.check("speed", self._loaded(self._speed), "speed")

    def _speed(self) -> str:
        result = measure_speed(self.path, self.threads)
        self.report.speed = result
        prefill = result["prefill"][-1]
        ratios = ", ".join(f"{key} {value:.4g}" for key, value in result["ratios"].items())
        return (
            f"decode {result['decode_tokens_per_second']:.0f} tokens/s, prefill of "
            f"{prefill['tokens']} {prefill['tokens_per_second']:.0f} tokens/s, on "
            f"{counted(result['threads'], 'thread')} ({ratios} x calibration)"
        )

    def compare(self, baseline: dict[str, Any], max_memory: float, max_latency: float) -> None:
        """Compare what was measured with the baseline, one check a metric."""
        now = stored(self.report)
        sections = (("speed", "ratios", max_latency), ("memory", "bytes", max_memory))
        for group, section, allowance in sections:
            if group in self.skip:
                continue
            for metric, within, line in comparisons(baseline, now, section, allowance):
                self.check(f"baseline: {metric}", _found(within, line))


def stored(report: Report) -> dict[str, Any]:
    """Return what a baseline keeps of a report; see `bitnet_edge.bench.gate.baseline_of`."""
    measured = report.memory.get("measured")
    memory = {"private": measured["private"]} if measured else {}
    return baseline_of(report.model, [report.speed] if report.speed else [], memory)


def _found(within: bool, line: str) -> Callable[[], str]:
    def say() -> str:
        if not within:
            raise CheckFailed(line)
        return line

    return say


def _machine() -> dict[str, Any]:
    return {
        "bitnet_edge": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "instruction_sets": list(_engine.cpu_isas()),
        "kernels": sorted(set(_engine.kernel_isas().values())),
        "cpus_available": _engine.cpu_available(),
    }
