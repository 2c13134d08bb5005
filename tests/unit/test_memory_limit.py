# SPDX-License-Identifier: MIT
"""Running a command under a memory limit: each mechanism, and how one is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_edge import memory_limit
from bitnet_edge.errors import ArgumentError, DeviceUnsupported
from bitnet_edge.memory_limit import CGROUP_V1, CGROUP_V2, RLIMIT, drop_cached_pages, run_limited
from tests.conftest import require_memory_cgroup

MB = 1 << 20


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_output_and_exit_code_are_the_commands():
    run = run_limited(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), "64MB"
    )
    assert (run.returncode, run.stdout, run.stderr) == (3, "out\n", "err\n")
    assert run.mechanism in (CGROUP_V2, CGROUP_V1, RLIMIT)


def test_arguments_and_environment_reach_the_command():
    command = [*python("import os, sys; print(sys.argv[1], os.environ['X'])"), "a 'b' $c"]
    assert run_limited(command, "64MB", env={**os.environ, "X": "y z"}).stdout == "a 'b' $c y z\n"


def test_a_group_ends_a_command_that_needs_more_and_is_gone_afterwards(memory_cgroup):
    run = run_limited(python("x = bytearray(64 << 20); print('survived')"), 32 * MB)
    assert run.out_of_memory
    assert run.returncode == -9
    assert run.stdout == ""
    assert run.peak is not None
    assert 31 * MB < run.peak <= 32 * MB
    assert not list(memory_cgroup.glob("bitnet-edge-*"))


def test_a_group_counts_the_page_cache(memory_cgroup, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(64 * MB))
    script = f"f = open({str(file)!r}, 'rb')\nwhile f.read(1 << 20): pass\nprint('read')"
    run = run_limited(python(script), 32 * MB, files=[file])
    assert (run.stdout, run.out_of_memory) == ("read\n", False)
    assert run.counts_page_cache
    assert run.peak is not None
    assert run.peak > 30 * MB  # full of the file's pages, reclaimed as more came
    again = run_limited(python("pass"), 32 * MB)
    assert again.peak is not None
    assert again.peak < 30 * MB  # without them


def test_processes_left_behind_are_ended(memory_cgroup):
    script = "import subprocess as s; print(s.Popen(['sleep', '600'], stdout=-3, stderr=-3).pid)"
    run = run_limited(python(script), "64MB")
    status = Path(f"/proc/{run.stdout.strip()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()  # not yet reaped by init


def test_the_command_is_killed_at_its_time(memory_cgroup):
    with pytest.raises(subprocess.TimeoutExpired):
        run_limited(["sleep", "600"], "64MB", timeout=0.2)
    assert not list(memory_cgroup.glob("bitnet-edge-*"))


def test_without_a_group_an_allocation_fails(monkeypatch):
    monkeypatch.setattr(memory_limit, "_cgroup_parents", lambda: iter(()))
    script = (
        "try: bytearray(64 << 20)\n"
        "except MemoryError: print('refused')\n"
        "print(len(bytearray(4 << 20)))"
    )
    run = run_limited(python(script), 32 * MB)
    assert run.stdout == f"refused\n{4 * MB}\n"
    assert run.mechanism == RLIMIT
    assert (run.peak, run.counts_page_cache, run.out_of_memory) == (None, False, False)


def test_groups_that_cannot_be_made_are_named(monkeypatch, tmp_path):
    def parents():
        yield CGROUP_V2, tmp_path / "missing"
        yield CGROUP_V1, tmp_path  # no control files can be written, and nobody joins

    monkeypatch.setattr(memory_limit, "_cgroup_parents", parents)
    monkeypatch.setattr(memory_limit, "_write", refuse)
    run = run_limited(["true"], "64MB")
    assert run.mechanism == RLIMIT
    assert run.refused == (
        f"{CGROUP_V2} in {tmp_path / 'missing'}: No such file or directory",
        f"{CGROUP_V1} in {tmp_path}: not delegated",
    )
    assert not list(tmp_path.iterdir())


def refuse(path: Path, value: int, *, optional: bool = False) -> None:
    raise PermissionError(13, "not delegated")


def test_a_group_nobody_can_join_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_limit, "_cgroup_parents", lambda: iter([(CGROUP_V2, tmp_path)]))
    monkeypatch.setattr(memory_limit, "_JOIN", "echo 'no such group' >&2; false")
    monkeypatch.setattr(memory_limit, "_write", lambda *_, **__: None)
    run = run_limited(["true"], "64MB")
    assert run.mechanism == RLIMIT
    assert run.refused == (f"{CGROUP_V2} in {tmp_path}: no such group",)


# An Ubuntu server (v2, a service), Docker with v1 (its group bind-mounted), and a machine with both
# hierarchies, the memory controller on v1.
V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "37 31 0:33 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
BOTH = (
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    "22 1 0:5 / /sys rw,relatime - sysfs sysfs rw\n"
)


@pytest.mark.parametrize(
    ("mounts", "memberships", "expected"),
    [
        (
            V2,
            "0::/system.slice/ci.service\n",
            [
                (CGROUP_V2, "/sys/fs/cgroup/system.slice/ci.service"),
                (CGROUP_V2, "/sys/fs/cgroup/system.slice"),
                (CGROUP_V2, "/sys/fs/cgroup"),
            ],
        ),
        (V1, "9:memory:/docker/ab\n", [(CGROUP_V1, "/sys/fs/cgroup/memory")]),
        (
            BOTH,
            "4:cpu,memory:/job\n0::/\n",
            [
                (CGROUP_V2, "/sys/fs/cgroup/unified"),
                (CGROUP_V1, "/sys/fs/cgroup/memory/job"),
                (CGROUP_V1, "/sys/fs/cgroup/memory"),
            ],
        ),
        (V1, "0::/\n", []),
    ],
)
def test_groups_are_looked_for_from_ours_outwards(mounts, memberships, expected):
    files = {"/proc/self/mountinfo": mounts, "/proc/self/cgroup": memberships}
    found = memory_limit._cgroup_parents(files.__getitem__)
    assert [(mechanism, str(path)) for mechanism, path in found] == expected


def test_without_proc_there_are_no_groups():
    def missing(path: str) -> str:
        raise FileNotFoundError(path)

    assert list(memory_limit._cgroup_parents(missing)) == []


def test_usage_where_the_kernel_keeps_no_peak(tmp_path):
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert memory_limit._usage(tmp_path, CGROUP_V2) == (None, True)
    (tmp_path / "memory.peak").write_text("4096\n")
    assert memory_limit._usage(tmp_path, CGROUP_V2) == (4096, True)


def test_a_group_that_stays_busy_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "cgroup.procs").write_text("")
    monkeypatch.setattr(memory_limit, "_REMOVAL_SECONDS", 0.0)
    with pytest.raises(OSError, match="not empty"):
        memory_limit._remove_group(tmp_path)


@pytest.mark.parametrize(("command", "limit"), [([], "50MB"), (["true"], "fifty")])
def test_arguments_are_checked(command, limit):
    with pytest.raises(ArgumentError):
        run_limited(command, limit)


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(DeviceUnsupported, match="darwin"):
        run_limited(["true"], "50MB")


def test_a_file_to_drop_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError):
        drop_cached_pages(tmp_path / "none")


def test_the_group_is_required_in_ci(monkeypatch):
    monkeypatch.setattr(memory_limit, "_cgroup_parents", lambda: iter(()))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="memory cgroup"):
        require_memory_cgroup()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="memory cgroup"):
        require_memory_cgroup()
