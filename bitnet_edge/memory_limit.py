# SPDX-License-Identifier: MIT
"""Running a command under a hard limit on memory that the operating system enforces.

Three mechanisms, the first that this machine allows:

* a cgroup v2 with ``memory.max``, a cgroup v1 with ``memory.limit_in_bytes``: anonymous memory and
  the page cache of the files the command reads together; beyond it pages are reclaimed, and when
  none can be, the kernel ends the command;
* ``RLIMIT_DATA``: private writable memory, reserved or used; an allocation beyond it fails. Page
  cache is not counted.

Linux only (Android too, where `/proc` tells of a cgroup one may write to).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bitnet_edge.errors import ArgumentError, DeviceUnsupported
from bitnet_edge.memory import parse_bytes

__all__ = ["CGROUP_V1", "CGROUP_V2", "RLIMIT", "LimitedRun", "drop_cached_pages", "run_limited"]

CGROUP_V2 = "cgroup v2 memory.max"
CGROUP_V1 = "cgroup v1 memory.limit_in_bytes"
RLIMIT = "RLIMIT_DATA"

# The shell joins the group (or lowers its limit), then becomes the command.
_JOIN = 'echo $$ > "$0" && exec "$@"'
_LOWER = 'ulimit -d "$0" && exec "$@"'
_REMOVAL_SECONDS = 5.0  # a group is busy until the last process in it has been reaped


@dataclass(frozen=True)
class LimitedRun:
    """What a command did under its limit.

    Attributes
    ----------
    returncode : int
        As `subprocess.CompletedProcess` has it: negative is the number of a signal.
    stdout, stderr : str
    mechanism : str
        `CGROUP_V2`, `CGROUP_V1` or `RLIMIT`.
    limit : int
        Bytes.
    peak : int or None
        Most bytes charged at any time; None where the mechanism does not say.
    out_of_memory : bool
        Whether the kernel ended a process for want of memory (never with `RLIMIT`, where the
        command sees an allocation fail).
    refused : tuple of str
        Why each mechanism tried before this one could not be used.
    """

    returncode: int
    stdout: str
    stderr: str
    mechanism: str
    limit: int
    peak: int | None
    out_of_memory: bool
    refused: tuple[str, ...]

    @property
    def counts_page_cache(self) -> bool:
        """Whether file pages counted against the limit."""
        return self.mechanism != RLIMIT


def run_limited(
    command: Sequence[str | os.PathLike[str]],
    limit: int | str,
    *,
    files: Iterable[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> LimitedRun:
    """Run a command under a memory limit; its output is captured.

    Parameters
    ----------
    command : sequence of str or PathLike
        Program and arguments.
    limit : int or str
        Bytes (``"50MB"``: 1 MB = 2^20 bytes), for the command and all it starts.
    files : iterable of str or PathLike
        Files whose cached pages are dropped first, so that the command's reads of them are charged
        to it: a page stays charged to the group that read it in.
    env : mapping, optional
        Environment; this process's by default.
    timeout : float, optional
        Seconds.

    Raises
    ------
    ArgumentError
        For a limit that is no size.
    DeviceUnsupported
        Where no limit can be enforced.
    OSError
        When a file cannot be opened.
    subprocess.TimeoutExpired
        The command has been killed.
    """
    limit = parse_bytes(limit)
    if not command:
        raise ArgumentError("[memory limit] expected a command, got none")
    if not sys.platform.startswith(("linux", "android")):
        raise DeviceUnsupported(f"[memory limit] no hard limit is implemented for {sys.platform}")
    for file in files:
        drop_cached_pages(file)
    refused: list[str] = []
    for mechanism, parent in _cgroup_parents():
        try:
            group = _make_group(parent, mechanism, limit)
        except OSError as error:
            refused.append(f"{mechanism} in {parent}: {error.strerror or error}")
            continue
        try:
            done = _run([*_shell(_JOIN, group / "cgroup.procs"), *command], env, timeout)
            peak, out_of_memory = _usage(group, mechanism)
        finally:
            _remove_group(group)
        return LimitedRun(*done, mechanism, limit, peak, out_of_memory, tuple(refused))
    done = _run([*_shell(_LOWER, str(limit // 1024)), *command], env, timeout)
    return LimitedRun(*done, RLIMIT, limit, None, False, tuple(refused))


def drop_cached_pages(path: str | os.PathLike[str]) -> None:
    """Let go of a file's pages in the page cache, written back first where they are dirty.

    Pages that a process has mapped and touched stay.

    Raises
    ------
    OSError
        When the file cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _shell(script: str, argument: str | Path) -> list[str]:
    return ["/bin/sh", "-c", script, str(argument)]


def _run(
    command: Sequence[str | os.PathLike[str]],
    env: Mapping[str, str] | None,
    timeout: float | None,
) -> tuple[int, str, str]:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=env, timeout=timeout
    )
    return done.returncode, done.stdout, done.stderr


def _cgroup_parents(read: Callable[[str], str] | None = None) -> Iterator[tuple[str, Path]]:
    """Yield (mechanism, directory) where a group might be made: in our own and those around it.

    ``/proc/self/mountinfo`` says where a hierarchy is mounted and which of its groups is at the
    mount point, ``/proc/self/cgroup`` which group we are in.
    """
    read = read or (lambda path: Path(path).read_text())
    try:
        mounts, memberships = read("/proc/self/mountinfo"), read("/proc/self/cgroup")
    except OSError:
        return
    own = {}  # controllers ("" for v2) -> path
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    found: dict[str, tuple[str, str, str]] = {}
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        root, mount_point = fields.split()[3:5]
        kind, _, options = kind.split(" ", 2)
        if kind == "cgroup2" and "" in own:
            found[CGROUP_V2] = (root, mount_point, own[""])
        elif kind == "cgroup" and "memory" in options.split(" ", 1)[-1].split(","):
            for controllers, path in own.items():
                if "memory" in controllers.split(","):
                    found[CGROUP_V1] = (root, mount_point, path)
    for mechanism in (CGROUP_V2, CGROUP_V1):
        if mechanism not in found:
            continue
        root, mount_point, path = found[mechanism]
        relative = os.path.relpath(path, root)
        group = Path(mount_point)
        if not relative.startswith(".."):
            group = group / relative
        while True:
            yield mechanism, group
            if group == Path(mount_point):
                break
            group = group.parent


def _make_group(parent: Path, mechanism: str, limit: int) -> Path:
    """Make a group with a limit, one that a process of ours can join."""
    group = Path(tempfile.mkdtemp(prefix="bitnet-edge-", dir=parent))
    try:
        if mechanism == CGROUP_V2:
            _write(group / "memory.max", limit)
            _write(group / "memory.swap.max", 0, optional=True)
        else:
            _write(group / "memory.limit_in_bytes", limit)
            _write(group / "memory.memsw.limit_in_bytes", limit, optional=True)
        joined = subprocess.run(
            [*_shell(_JOIN, group / "cgroup.procs"), "true"],
            check=False,
            capture_output=True,
            text=True,
        )
        if joined.returncode != 0:
            raise OSError(joined.stderr.strip())
    except OSError:
        _remove_group(group)
        raise
    return group


def _write(path: Path, value: int, *, optional: bool = False) -> None:
    """Write a control file; ``optional`` ones (swap) are missing where swap is not counted."""
    if optional and not path.exists():
        return
    path.write_text(str(value))


def _usage(group: Path, mechanism: str) -> tuple[int | None, bool]:
    """Return the most bytes charged, and whether a process was ended for want of memory."""
    v2 = mechanism == CGROUP_V2
    events = (group / ("memory.events" if v2 else "memory.oom_control")).read_text()
    killed = dict(line.split() for line in events.splitlines()).get("oom_kill", "0") != "0"
    try:
        peak = int((group / ("memory.peak" if v2 else "memory.max_usage_in_bytes")).read_text())
    except FileNotFoundError:  # v2 before Linux 5.19
        return None, killed
    return peak, killed


def _remove_group(group: Path) -> None:
    """Remove a group, ending what the command left behind in it."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while True:
        try:
            group.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        for process in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        time.sleep(0.01)
