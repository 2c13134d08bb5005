# SPDX-License-Identifier: MIT
"""Memory of a fresh process that runs a model to the end of its context, under a hard limit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from bitnet_edge.errors import DeviceUnsupported
from bitnet_edge.memory_limit import RLIMIT, LimitedRun, run_limited
from bitnet_edge.validate.report import CheckFailed, plain

__all__ = ["measure_memory"]

# The child finds modules where this process does, whatever directory it starts in.
_CHILD = (
    "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); "
    "from bitnet_edge.validate.memory_child import main; sys.exit(main(*sys.argv[1:]))"
)


def measure_memory(
    path: str,
    *,
    private: int,
    resident: int | None = None,
    threads: int | None = None,
    timeout: float = 600.0,
) -> dict[str, Any]:
    """Load a file in a fresh Python process, prefill and decode to the full context, measure.

    Parameters
    ----------
    path : str
    private : int
        Bytes of private memory the process is allowed.
    resident : int, optional
        Bytes of private memory and cached file pages together. The hard limit is this where it is
        given, else `private`: file pages that do not fit are then dropped and read again.
    threads : int, optional
        Participants of a run; the plan's by default.
    timeout : float
        Seconds.

    Returns
    -------
    dict
        JSON-serialisable: ``private`` (the most after any stage), ``resident``, ``stages``,
        ``limit``, ``mechanism``, ``peak`` (most bytes charged to the group, or None), ``refused``.

    Raises
    ------
    CheckFailed
        When the process did not end well, or nothing can be measured or enforced here.
    OSError
        When the file cannot be opened.
    """
    limit = resident or private
    where = "\n".join(sys.path)
    command = [sys.executable, *_flags(), "-c", _CHILD, where, path, str(threads or "")]
    try:
        run = run_limited(command, limit, files=[path], timeout=timeout)
        if run.mechanism == RLIMIT and limit != private:  # it counts no page cache
            run = run_limited(command, private, files=[path], timeout=timeout)
    except subprocess.TimeoutExpired:
        raise CheckFailed(
            f"did not finish in {timeout:g} s under a memory limit of {limit} bytes"
        ) from None
    except DeviceUnsupported as error:
        raise CheckFailed(f"cannot be measured here: {error}") from None
    try:
        measured = json.loads(run.stdout) if run.returncode == 0 else None
    except ValueError:
        measured = None
    if measured is None:
        raise CheckFailed(_end(run))
    most = max(stage["private"] for stage in measured["stages"])
    if most == 0:
        raise CheckFailed("cannot be measured here: this system has no /proc/self/smaps_rollup")
    return {
        "private": most,
        "resident": max(stage.get("resident", 0) for stage in measured["stages"]),
        "stages": measured["stages"],
        "context": measured["context"],
        "limit": run.limit,
        "mechanism": run.mechanism,
        "counts_page_cache": run.counts_page_cache,
        "peak": run.peak,
        "refused": list(run.refused),
    }


def _flags() -> list[str]:
    """Return the flags that keep the child as small as this interpreter was started."""
    return ["-s"] if sys.flags.no_user_site else []


def _end(run: LimitedRun) -> str:
    """Say in one line how a process that did not end well has ended."""
    limit = f"the memory limit of {run.limit} bytes ({run.mechanism})"
    if run.out_of_memory:
        return f"killed by {limit}"
    lines = run.stderr.strip().splitlines()
    last = plain(lines[-1]) if lines else ""
    if "out of memory" in last or "MemoryError" in last:
        return f"out of memory within {limit}"
    if run.returncode < 0:
        return f"ended by {signal.Signals(-run.returncode).name} within {limit}"
    return f"exit code {run.returncode} within {limit}: {last or 'no message'}"
