# SPDX-License-Identifier: MIT
"""Thread pool, CPU count and sampler in C: natively, under sanitizers, and as arm code in qemu."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, require_tool

SOURCES = Path(__file__).parent / "c"
KERNELS = ROOT / "cython_kernels"
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # The children that the fork case makes start threads of their own.
    "TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0 atexit_sleep_ms=0",
}


@dataclass(frozen=True)
class Build:
    """One way to build and run a test program."""

    compiler: str
    flags: tuple[str, ...] = ()
    emulator: str = ""

    def __str__(self) -> str:
        kind = [flag.split("=")[-1] for flag in self.flags if flag.startswith("-fsanitize")]
        kind += ["portable"] if "-DBE_PORTABLE_PARKING=1" in self.flags else []
        return "-".join([self.compiler, *kind])


TSAN = ("-fsanitize=thread", "-DBE_TEST_SANITIZED", "-O1")
ASAN = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
PORTABLE = ("-DBE_PORTABLE_PARKING=1",)
AARCH64 = Build("aarch64-linux-gnu-gcc", ("-static",), "qemu-aarch64-static")
ARM = Build("arm-linux-gnueabihf-gcc", ("-static", "-mfpu=neon"), "qemu-arm-static")

POOL_BUILDS = [
    Build("gcc"),
    Build("gcc", PORTABLE),
    Build("gcc", TSAN),
    Build("clang", TSAN + PORTABLE),
    AARCH64,
    ARM,
]
SAMPLER_BUILDS = [Build("gcc"), Build("clang", ASAN)]


@dataclass(frozen=True)
class Program:
    """A test program: its source, what it tests, and the libc functions it replaces."""

    name: str
    tested: tuple[str, ...]
    wrapped: tuple[str, ...]
    flags: tuple[str, ...]

    def cases(self) -> list[str]:
        text = (SOURCES / f"{self.name}.c").read_text()
        return re.findall(r"^ *CASE\((\w+)\),$", text, flags=re.MULTILINE)


POOL = Program(
    "test_thread_pool",
    ("engine/thread_pool.c", "engine/cpu_available.c"),
    ("pthread_create", "sched_getaffinity", "sched_setaffinity", "sched_getcpu"),
    ('-DBE_SYSTEM_ROOT="root"', "-frounding-math", "-pthread"),
)
SAMPLER = Program("test_sampler", ("engine/sampler.c", "scalar/exp.c"), ("malloc", "calloc"), ())


@functools.cache
def fixed_addresses() -> tuple[str, ...]:
    """Return the prefix that switches address randomisation off: old TSan run-times cannot cope
    with new kernels' amount of it."""
    command = ("setarch", os.uname().machine, "-R")
    if shutil.which("setarch") and subprocess.run([*command, "true"], check=False).returncode == 0:
        return command
    return ()


class Programs:
    """Builds each program once per way of building it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[tuple[Program, Build], Path] = {}

    def build(self, program: Program, build: Build) -> Path:
        key = program, build
        if key not in self.built:
            compiler = require_tool(shutil.which(build.compiler), build.compiler)
            path = self.folder / f"{program.name}-{len(self.built)}"
            sources = [SOURCES / f"{program.name}.c", *(KERNELS / name for name in program.tested)]
            wrap = [f"-Wl,--wrap={name}" for name in program.wrapped]
            flags = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
            includes = [f"-I{KERNELS}", f"-I{KERNELS / 'include'}"]
            subprocess.run(
                [compiler, *flags, *program.flags, *build.flags, *includes, *wrap]
                + [str(source) for source in sources]
                + ["-o", str(path), "-lm"],
                check=True,
            )
            self.built[key] = path
        return self.built[key]

    def run(self, program: Program, build: Build, case: str, cwd: Path) -> str:
        command = [str(self.build(program, build)), case]
        if build.emulator:
            command.insert(0, require_tool(shutil.which(build.emulator), build.emulator))
        elif "-fsanitize=thread" in build.flags:
            command[:0] = fixed_addresses()
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | SANITIZER_OPTIONS,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command} gave {done.returncode}:\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("engine_c"))


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("build", POOL_BUILDS, ids=str)
@pytest.mark.parametrize("case", POOL.cases())
def test_thread_pool(programs: Programs, tmp_path: Path, build: Build, case: str) -> None:
    if case == "fast_cpus":  # a phone: two little cores, four fast ones, two little ones
        capacities = [250, 250, 512, 880, 880, 1024, 511, 250]
        files = {
            f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{capacity}\n"
            for cpu, capacity in enumerate(capacities)
        }
        write_files(tmp_path / "root", files)
    programs.run(POOL, build, case, tmp_path)


V2_MOUNT = "38 31 0:41 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)
V1_GROUPS = "5:cpuset:/\n4:cpu,cpuacct:/docker/ab/inner\n1:name=systemd:/\n0::/\n"
V1_FOLDER = "sys/fs/cgroup/cpu,cpuacct"


def v2(group: str, mount: str = V2_MOUNT, **quotas: str) -> dict[str, str]:
    files = {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": mount}
    for folder, text in quotas.items():
        files[f"sys/fs/cgroup/{folder.replace('__', '/')}/cpu.max"] = text
    return files


def v1(mount: str, **settings: str) -> dict[str, str]:
    files = {"proc/self/cgroup": V1_GROUPS, "proc/self/mountinfo": mount}
    for name, value in settings.items():
        folder, setting = name.rsplit("__", 1)
        files[f"{V1_FOLDER}/{folder.replace('__', '/')}/cpu.cfs_{setting}_us"] = f"{value}\n"
    return files


# The machine has 8 CPUs.
MACHINES = {
    "no files": ({}, 8),
    "v2, no quota": (v2("/a", a="max 100000\n"), 8),
    "v2, a quarter of a CPU": (v2("/a", a="25000 100000\n"), 1),
    "v2, one and a half": (v2("/a", a="150000 100000\n"), 2),
    "v2, exactly two": (v2("/a", a="200000 100000\n"), 2),
    "v2, more than there are": (v2("/a", a="6400000 100000\n"), 8),
    "v2, an enormous quota": (v2("/a", a="9223372036854775807 1000\n"), 8),
    "v2, the parent is tighter": (v2("/a/b", a="300000 100000\n", a__b="max 100000\n"), 3),
    "v2, the child is tighter": (v2("/a/b", a="300000 100000\n", a__b="50000 50000\n"), 1),
    "v2, at the root": (v2("/"), 8),
    "v2, in a namespace": (v2("/", **{".": "400000 100000\n"}), 4),
    "v2, outside the namespace": (v2("/../other", **{".": "500000 100000\n"}), 5),
    "v2, a part is mounted": (
        v2("/docker/ab/c", V2_MOUNT.replace(" / /sys", " /docker/ab /sys"), c="600000 100000\n"),
        6,
    ),
    "v2, another part is mounted": (
        v2("/x", V2_MOUNT.replace(" / /sys", " /docker/ab /sys"), **{".": "700000 100000\n"}),
        7,
    ),
    "v2, after a very long line": (
        v2("/a", "1 1 0:1 / /" + "x" * 9000 + " rw - tmpfs tmpfs rw\n" + V2_MOUNT, a="1 1\n"),
        1,
    ),
    "v2, nonsense": (v2("/a", a="what is this\n"), 8),
    "v2, a zero period": (v2("/a", a="100000 0\n"), 8),
    "v2, one word": (v2("/a", a="100000\n"), 8),
    "v2, empty": (v2("/a", a=""), 8),
    "v2, a group with too long a name": (v2("/" + "x" * 2000, a="100000 100000\n"), 8),
    "v1, quota": (
        v1(
            V1_MOUNT,
            docker__ab__inner__quota="-1",
            docker__ab__inner__period="100000",
            docker__ab__quota="250000",
            docker__ab__period="100000",
        ),
        3,
    ),
    "v1, no quota": (
        v1(V1_MOUNT, docker__ab__inner__quota="-1", docker__ab__inner__period="100000"),
        8,
    ),
    "v1, a part is mounted": (
        v1(
            V1_MOUNT.replace("0:30 / ", "0:30 /docker/ab "),
            inner__quota="150000",
            inner__period="50000",
        ),
        3,
    ),
    "v1, no mount": (v1("", docker__quota="1", docker__period="1"), 8),
    "no colons": ({"proc/self/cgroup": "rubbish\n0:\n", "proc/self/mountinfo": "rubbish\n"}, 8),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_cpu_available(programs: Programs, tmp_path: Path, machine: str) -> None:
    files, expected = MACHINES[machine]
    write_files(tmp_path / "root", files)
    for build in (Build("gcc"), Build("gcc", ASAN)):
        assert programs.run(POOL, build, "print_cpus", tmp_path) == f"{expected}\n"


@pytest.mark.parametrize("build", SAMPLER_BUILDS, ids=str)
@pytest.mark.parametrize("case", SAMPLER.cases())
def test_sampler(programs: Programs, tmp_path: Path, build: Build, case: str) -> None:
    programs.run(SAMPLER, build, case, tmp_path)


@pytest.mark.parametrize("build", [AARCH64, ARM, Build("gcc", ("-O0",)), Build("clang")], ids=str)
def test_sampler_is_the_same_everywhere(programs: Programs, tmp_path: Path, build: Build) -> None:
    expected = programs.run(SAMPLER, Build("gcc", ("-O3",)), "print_tokens", tmp_path)
    assert len(expected.splitlines()) > 5000
    assert programs.run(SAMPLER, build, "print_tokens", tmp_path) == expected
