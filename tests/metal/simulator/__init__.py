# SPDX-License-Identifier: MIT
"""Compiles the ``.metal`` files as they are for this CPU, and launches their kernels from numpy.

``simulator.cpp`` runs the lanes, ``metal_stdlib`` stands in for Apple's; the glue that hands a
kernel its buffers and builtins is generated from the signature that `shader_library` reads.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_edge.metal import shader_library
from bitnet_edge.metal.shader_library import Kernel
from tests.conftest import ROOT

HERE = Path(__file__).resolve().parent
SHADERS = ROOT / "metal"
SCHEDULES = ("forward", "reverse", "shuffled")
# Not -O2: vectors of more than 16 bytes are not traced.
FLAGS = ["-std=c++17", "-O1", "-g1", "-fsigned-char", "-fPIC", "-Wall", "-Wextra", "-Werror"]
FLAGS += [
    "-Wno-unknown-pragmas",
    "-Wno-attributes",
    "-Wno-unused-function",
    "-Wno-unused-parameter",
]
FLAGS += ["-fno-exceptions", "-fno-omit-frame-pointer"]
# Flavours of the simulator: flags of the shaders, flags of the machine, flags of the link.
BUILDS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "traced": (["-fsanitize=thread"], ["-DSIM_TRACED"], ["-shared"]),
    "ucontext": (["-fsanitize=thread"], ["-DSIM_TRACED", "-DSIM_UCONTEXT"], ["-shared"]),
    "address": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],) * 2
    + (["-fsanitize=address,undefined"],),
    "thread": (["-fsanitize=thread"], ["-fsanitize=thread", "-DSIM_THREADS"])
    + (["-fsanitize=thread", "-pthread"],),
}

# attribute -> expression over `p`, the lane's position
BUILTINS = {
    "thread_position_in_grid": "p.group[{i}] * p.threads[{i}] + p.at[{i}]",
    "thread_position_in_threadgroup": "p.at[{i}]",
    "threadgroup_position_in_grid": "p.group[{i}]",
    "threads_per_threadgroup": "p.threads[{i}]",
    "threadgroups_per_grid": "p.groups[{i}]",
    "thread_index_in_threadgroup": "p.index",
    "thread_index_in_simdgroup": "p.lane",
    "simdgroup_index_in_threadgroup": "p.simdgroup",
    "simdgroups_per_threadgroup": "p.simdgroups",
}


def glue(kernel: Kernel) -> str:
    """C++ that calls a kernel with buffers by index and builtins by attribute."""
    index = {buffer.name: buffer for buffer in kernel.buffers}
    groups = {name: (at, kind) for at, name, kind in kernel.threadgroup}
    builtins = {name: (kind, attribute) for name, kind, attribute in kernel.builtins}
    arguments = []
    for name in kernel.parameters:
        if name in index:
            buffer = index[name]
            const = "" if buffer.writable else "const "
            arguments.append(f"({const}{buffer.type} *)buffers[{buffer.index}]")
        elif name in groups:
            arguments.append(f"({groups[name][1]} *)memory[{groups[name][0]}]")
        elif name in builtins:
            kind, attribute = builtins[name]
            count = int(kind[-1]) if kind[-1].isdigit() else 1
            values = ", ".join(BUILTINS[attribute].format(i=i) for i in range(count))
            arguments.append(f"{kind}({values})")
        else:
            arguments.append(f"*(const {kernel.struct} *)buffers[0]")
    return (
        f'extern "C" __attribute__((no_sanitize("thread"))) void run_{kernel.name}'
        "(void *const *buffers, void *const *memory) {\n"
        "  const sim_position &p = sim_here();\n  (void)p, (void)buffers, (void)memory;\n"
        f"  {kernel.name}({', '.join(arguments)});\n}}\n"
    )


def registry(kernels: Sequence[Kernel]) -> str:
    """C++ table of all kernels."""
    lines = ['#include "simulator.h"']
    lines += [
        f'extern "C" void run_{k.name}(void *const *buffers, void *const *memory);' for k in kernels
    ]
    lines += ["const sim_kernel sim_kernels[] = {"]
    lines += [f'    {{"{k.name}", run_{k.name}}},' for k in kernels]
    return "\n".join([*lines, "    {nullptr, nullptr}};", ""])


def build(
    folder: Path,
    flavour: str = "traced",
    shaders: Path = SHADERS,
    files: Sequence[str] | None = None,
    compiler: str | None = None,
    extra: Sequence[str] = (),
) -> Path:
    """Compile shaders and machine; return the shared library, or the program that replays.

    Raises
    ------
    subprocess.CalledProcessError
        When a file does not compile.
    """
    compiler = compiler or shutil.which("clang++") or shutil.which("g++") or "c++"
    folder.mkdir(parents=True, exist_ok=True)
    shader_flags, machine_flags, link_flags = BUILDS[flavour]
    contract = ["-ffp-contract=on"] if "clang" in compiler else ["-ffp-contract=off"]
    names = list(files or shader_library.files(str(shaders)))
    kernels: list[Kernel] = []
    objects = []
    for name in names:
        found = shader_library.parse(shader_library.source(name, str(shaders)), name)
        kernels += found
        unit = folder / f"{name}.cpp"
        unit.write_text(f'#include "{shaders / name}"\n' + "".join(map(glue, found)))
        objects.append(folder / f"{name}.o")
        flags = [*FLAGS, *shader_flags, *contract, *extra]
        _compile([compiler, *flags, f"-I{HERE}", "-c", str(unit), "-o", str(objects[-1])])
    (folder / "registry.cpp").write_text(registry(kernels))
    machine = [folder / "registry.cpp", HERE / "simulator.cpp"]
    if "-shared" not in link_flags:
        machine.append(HERE / "replay.cpp")
    for unit in machine:
        objects.append(folder / f"{unit.stem}.o")
        flags = [*FLAGS, *machine_flags]
        _compile([compiler, *flags, f"-I{HERE}", "-c", str(unit), "-o", str(objects[-1])])
    out = folder / ("simulator.so" if "-shared" in link_flags else "replay")
    _compile([compiler, *link_flags, *map(str, objects), "-o", str(out), "-lm"])
    return out


def _compile(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{result.stderr}")


class SimulatedFault(AssertionError):
    """A lane read or wrote where it must not, raced, or waited for ever."""


@dataclass
class Launch:
    """One dispatch: arrays by buffer name, values by field name of the parameter structure."""

    kernel: str
    groups: tuple[int, int, int]
    threads: tuple[int, int, int]
    buffers: Mapping[str, Any]
    params: Mapping[str, float]
    memory: Sequence[int] = ()
    schedule: str = "forward"
    seed: int = 1
    touched: Mapping[str, Any] = field(default_factory=dict)  # uint8: 1 was read, 2 was written


@dataclass
class Traffic:
    """Bytes that all lanes together asked of each buffer."""

    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)


class _Binding(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("index", ctypes.c_uint32),
        ("writable", ctypes.c_uint32),
        ("read_bytes", ctypes.c_uint64),
        ("written_bytes", ctypes.c_uint64),
        ("touched", ctypes.c_void_p),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("groups", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("bindings", ctypes.POINTER(_Binding)),
        ("n_bindings", ctypes.c_uint32),
        ("threadgroup_bytes", ctypes.c_uint32 * 4),
        ("schedule", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("error", ctypes.c_char * 512),
    )


class Simulator:
    """Runs launches in this process, traced: bounds, races and bytes of every access."""

    def __init__(self, library: Path, shaders: Path = SHADERS) -> None:
        self.kernels = shader_library.kernels(str(shaders))
        self._run = ctypes.CDLL(str(library)).sim_run
        self._run.argtypes = (ctypes.POINTER(_Launch),)
        self._run.restype = ctypes.c_int

    def run(self, launch: Launch) -> Traffic:
        """Run a launch; writable arrays are changed in place.

        Raises
        ------
        SimulatedFault
            Naming what a lane did.
        """
        kernel = self.kernels[launch.kernel]
        params = np.frombuffer(kernel.pack(launch.params), np.uint8)
        arrays = [(0, False, params, "")]
        arrays += [(b.index, b.writable, launch.buffers[b.name], b.name) for b in kernel.buffers]
        bindings = (_Binding * len(arrays))()
        for binding, (index, writable, values, name) in zip(bindings, arrays, strict=True):
            if name in launch.touched:
                binding.touched = launch.touched[name].ctypes.data
            assert values.flags.c_contiguous
            assert values.flags.writeable or not writable
            binding.data, binding.bytes = values.ctypes.data, values.nbytes
            binding.index, binding.writable = index, writable
        raw = _Launch(
            launch.kernel.encode(), launch.groups, launch.threads, bindings, len(bindings)
        )
        raw.threadgroup_bytes[: len(launch.memory)] = list(launch.memory)
        raw.schedule, raw.seed = SCHEDULES.index(launch.schedule), launch.seed
        if self._run(ctypes.byref(raw)) != 0:
            raise SimulatedFault(f"{launch.kernel}: {raw.error.decode()}")
        traffic = Traffic()
        for buffer, binding in zip(kernel.buffers, list(bindings)[1:], strict=True):
            traffic.read[buffer.name] = binding.read_bytes
            traffic.written[buffer.name] = binding.written_bytes
        return traffic


def record(launch: Launch, kernel: Kernel) -> bytes:
    """Return a launch as ``replay`` reads it."""
    memory = [*launch.memory, 0, 0, 0, 0][:4]
    words = [*launch.groups, *launch.threads, *memory]
    words += [SCHEDULES.index(launch.schedule), launch.seed, len(kernel.buffers) + 1]
    parts = [launch.kernel.encode().ljust(64, b"\0"), struct.pack("<13I", *words)]
    params = kernel.pack(launch.params)
    parts += [struct.pack("<3Q", 0, 0, len(params)), params]
    for buffer in kernel.buffers:
        data = launch.buffers[buffer.name].tobytes()
        parts += [struct.pack("<3Q", buffer.index, buffer.writable, len(data)), data]
    return b"".join(parts)
