# SPDX-License-Identifier: MIT
"""This machine as a device profile: features read, clock, memory and storage measured.

What cannot be read or measured here is filled with a stated estimate, and every value of the YAML
has its source beside it, as in the packaged profiles.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet_edge import _engine
from bitnet_edge.bench.measure import read_buffer, read_gbps
from bitnet_edge.errors import ArgumentError
from bitnet_edge.profiles import CoreCluster, OperatingSystem, Profile

__all__ = ["Detected", "detect"]

STORAGE_BYTES = 256 << 20
_CHUNK = 1 << 20
_CYCLES = 320_000  # of a clock's measurement: 0.1 ms, less than a time slice
_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows", "android": "android"}
# Part numbers of Arm's cores (MIDR_EL1), as Linux prints them in /proc/cpuinfo.
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
}


@dataclass(frozen=True)
class Detected:
    """A profile of this machine and where each of its values comes from.

    Attributes
    ----------
    profile : Profile
    sources : Mapping[str, str]
        Key of the profile -> how its value was found.
    """

    profile: Profile
    sources: Mapping[str, str]

    def to_yaml(self) -> str:
        """Return the profile as a YAML file with its sources as comments."""
        lines = [
            "# yaml-language-server: $schema=profile.schema.json",
            "# Written by `bitnet-edge devices --detect`.",
        ]
        for key, value in self.profile.to_dict().items():
            source = f" # {self.sources[key]}" if key in self.sources else ""
            if key == "cores":
                lines += [f"cores:{source}", *(f"  - {_flow(cluster)}" for cluster in value)]
            else:
                lines.append(f"{key}: {_flow(value)}{source}")
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return profile and sources as JSON-serialisable data."""
        return {"profile": self.profile.to_dict(), "sources": dict(self.sources)}


def detect(name: str = "this-machine", directory: str | Path | None = None) -> Detected:
    """Describe this machine; takes a few seconds.

    Parameters
    ----------
    name : str
        Name of the profile.
    directory : str or Path, optional
        Where the storage is measured, with a temporary file; the working directory by default.

    Raises
    ------
    ArgumentError
        For a name that no profile may have, or a machine whose memory is below 64 MB.
    """
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,63}", name):
        raise ArgumentError(
            f"[detect] expected a name of small letters, digits and hyphens, got {name!r}"
        )
    threads = _engine.cpu_available()
    soc, soc_source = _soc()
    cores, cores_source = _clusters()
    everyone, one, megabytes = _bandwidths(threads)
    storage, storage_source = _storage(Path(directory or "."))
    ram, ram_source = _ram_mb()
    version = re.match(r"\d{1,4}(\.\d{1,4}){0,2}", platform.release())
    profile = Profile(
        name=name,
        description=f"{soc}: {threads} CPUs, {ram} MB"[:80],
        soc=soc,
        isa=tuple(_engine.cpu_isas()),
        cores=cores,
        memory_bandwidth_gbps=everyone,
        memory_bandwidth_one_core_gbps=one,
        cache_mb=_cache_mb(),
        ram_mb=ram,
        private_mb=50.0,
        storage_read_mbps=storage,
        os=OperatingSystem(_SYSTEMS.get(sys.platform, "any"), version.group() if version else None),
        page_kb=mmap.PAGESIZE >> 10,
        default_context=512,
        default_threads=min(threads, sum(cluster.count for cluster in cores), 64),
    )
    return Detected(
        profile,
        {
            "soc": soc_source,
            "isa": "the engine's detection",
            "cores": cores_source,
            "memory_bandwidth_gbps": f"measured here: {megabytes} MB read by {threads} threads",
            "memory_bandwidth_one_core_gbps": f"measured here: {megabytes} MB read by one",
            "cache_mb": "the largest in /sys/devices/system/cpu/cpu0/cache",
            "ram_mb": ram_source,
            "private_mb": "project limit",
            "storage_read_mbps": storage_source,
            "os": "the running kernel",
            "page_kb": "the running kernel",
            "default_context": "estimate: as in the packaged profiles",
            "default_threads": "the CPUs this process may use",
        },
    )


def _flow(value: object) -> str:
    """Return a value in YAML's flow style, which for these is JSON."""
    return json.dumps(value, ensure_ascii=False)


def _text(path: str | Path) -> str:
    """Return the contents of one of the kernel's files, or nothing."""
    try:
        return Path(path).read_text(errors="replace").strip(" \n\0")
    except OSError:
        return ""


def _cpuinfo(field: str) -> list[str]:
    found = re.findall(rf"^{field}\s*: (.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return [str(value).strip() for value in found]


def _soc() -> tuple[str, str]:
    board = _text("/proc/device-tree/model")
    if board:
        return _printable(board, 80), "/proc/device-tree/model"
    models = _cpuinfo("model name")
    if models:
        return _printable(models[0], 80), "/proc/cpuinfo"
    return _printable(platform.processor() or platform.machine(), 80), "Python's platform module"


def _printable(text: str, length: int) -> str:
    return "".join(c for c in text if c.isprintable())[:length].strip() or "unknown"


def _clusters() -> tuple[tuple[CoreCluster, ...], str]:
    """Return the physical cores that this process may use by design and clock, fastest first."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    folder = Path("/sys/devices/system/cpu")
    parts, models = _cpuinfo("CPU part"), _cpuinfo("model name")
    seen: set[str] = set()
    clusters: dict[tuple[str, float], int] = {}
    measured = False
    for cpu in cpus:
        siblings = _text(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        if siblings in seen:  # the other thread of a core
            continue
        seen.add(siblings)
        name = models[cpu] if cpu < len(models) else platform.machine()
        if cpu < len(parts):
            name = _ARM_PARTS.get(int(parts[cpu], 16), f"Arm part {parts[cpu]}")
        khz = _text(folder / f"cpu{cpu}/cpufreq/cpuinfo_max_freq")
        ghz = int(khz) / 1e6 if khz.isdigit() else _measured_ghz()
        measured = measured or not khz.isdigit()
        key = (_printable(name, 40), round(ghz, 2))
        clusters[key] = clusters.get(key, 0) + 1
    if not clusters:
        measured = True
        clusters = {(platform.machine() or "unknown", _measured_ghz()): _engine.cpu_available()}
    if measured:  # the same cores measured twice differ in the last digit
        clusters = _joined(clusters)
    fastest = sorted(clusters.items(), key=lambda item: -item[0][1])
    source = "clock measured here by dependent additions" if measured else "cpufreq in /sys"
    return tuple(CoreCluster(name, n, ghz) for (name, ghz), n in fastest), source


def _joined(clusters: Mapping[tuple[str, float], int]) -> dict[tuple[str, float], int]:
    names = {name for name, _ in clusters}
    return {
        (name, max(ghz for other, ghz in clusters if other == name)): sum(
            count for (other, _), count in clusters.items() if other == name
        )
        for name in names
    }


def _measured_ghz() -> float:
    """Return the clock of the core this thread is on, the best of many short chains."""
    best = max(_CYCLES / max(1, _engine.measure_clock(_CYCLES)) for _ in range(100))
    return min(8.0, max(0.1, round(best, 2)))


def _bandwidths(threads: int) -> tuple[float, float, int]:
    """Return GB/s read by all threads and by one, the best of several rounds, and MB read."""
    buffer = read_buffer()
    rounds = [(read_gbps(buffer, threads), read_gbps(buffer, 1)) for _ in range(9)]
    megabytes = len(buffer) >> 20
    buffer.close()
    everyone, one = (max(speeds) for speeds in zip(*rounds, strict=True))
    return round(max(everyone, one), 1), round(one, 1), megabytes


def _cache_mb() -> float | None:
    """Return the size of the first CPU's largest cache."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = [_text(folder / f"index{index}/size") for index in range(8)]
    largest = max((int(size[:-1]) for size in sizes if re.fullmatch(r"\d+K", size)), default=0)
    return largest / 1024 if largest >= 16 else None


def _ram_mb() -> tuple[int, str]:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20, "sysconf"
    return 1024, "estimate: the system does not tell"


def _storage(directory: Path) -> tuple[float, str]:
    """Return MB/s of a sequential read, where it can be shown that the storage was read."""
    estimate = "estimate: slowest storage of the packaged profiles, as {} could not be measured"
    if not hasattr(os, "posix_fadvise") or not Path("/proc/self/io").exists():
        return 20.0, estimate.format("reads past the page cache")
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            block = os.urandom(_CHUNK)
            for _ in range(STORAGE_BYTES // _CHUNK):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            before, start = _bytes_from_storage(), time.perf_counter()
            while file.read(_CHUNK):
                pass
            seconds, after = time.perf_counter() - start, _bytes_from_storage()
    except OSError as error:
        return 20.0, estimate.format(f"a file here ({error.strerror})")
    if after - before < 0.95 * STORAGE_BYTES:  # a file system in memory, or pages kept in cache
        return 20.0, estimate.format("this file system: it answers from memory")
    speed = round(STORAGE_BYTES / seconds / 1e6)
    return float(min(20000, max(1, speed))), "measured here: a new file of 256 MB, read once"


def _bytes_from_storage() -> int:
    """Return the bytes that the kernel has fetched from storage for this process."""
    found = re.search(r"^read_bytes: (\d+)$", _text("/proc/self/io"), re.MULTILINE)
    return int(found.group(1)) if found else 0
