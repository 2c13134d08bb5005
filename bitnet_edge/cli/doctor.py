# SPDX-License-Identifier: MIT
"""``bitnet-edge doctor --metal``: on a Mac, whether the GPU gives the CPU's bits, and how fast."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitnet_edge import __version__, _engine, export
from bitnet_edge.cli.text import print_json, table
from bitnet_edge.container import open_bte
from bitnet_edge.errors import DeviceUnsupported
from bitnet_edge.metal.device import Device
from bitnet_edge.metal.session import Session

__all__ = ["configure", "examine", "run"]

PLANS = tuple(
    (kv_dtype, head_dtype)
    for kv_dtype in ("f32", "f16", "int8", "int4")
    for head_dtype in ("stored", "int8", "int4")
)
PROMPT = tuple(range(40, 110))  # 70 ids: a whole tile of tokens and a ragged one
STEPS = 6
UNVERIFIED = (
    "Here the shaders' logic can only be executed on a CPU simulator (tests/metal) and parsed by "
    "upstream clang with an MSL shim: not compiled by Apple's compiler, not run on an Apple GPU."
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--metal", action="store_true", required=True, help="examine the GPU of this Mac"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Compare and measure; 0 when all bits are equal, 1 when not, 2 where there is no GPU."""
    try:
        device = Device()
    except DeviceUnsupported as error:
        print(f"bitnet-edge: {error}. {UNVERIFIED}", file=sys.stderr)
        return 2
    report = examine(device)
    if args.json:
        print_json(report)
    else:
        print(text(report))
    return 0 if report["identical"] else 1


def examine(
    device: Device,
    plans: tuple[tuple[str, str], ...] = PLANS,
    prompt: tuple[int, ...] = PROMPT,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Run the bundled model in every plan on GPU and CPU.

    Returns
    -------
    dict
        JSON-serialisable; the report that people may share.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kv_dtype, head_dtype in plans:
            path = Path(folder) / f"{kv_dtype}-{head_dtype}.bte"
            export(
                Path(__file__).parents[1] / "models" / "shakespeare",
                out=path,
                kv_dtype=kv_dtype,
                head_dtype=head_dtype,
            )
            for matrix in (True, False):
                device.matrix = matrix  # both products for prefill
                rows.append(
                    _compare(device, path, prompt, clock)
                    | {
                        "kv_cache": kv_dtype,
                        "head": head_dtype,
                        "prefill": "simdgroup_matrix" if matrix else "threadgroup",
                    }
                )
    return {
        "version": __version__,
        "device": device.name,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "identical": all(row["different_logits"] == 0 for row in rows),
        "plans": rows,
    }


def _compare(
    device: Device, path: Path, prompt: tuple[int, ...], clock: Callable[[], float]
) -> dict[str, Any]:
    """Logits of a prompt and some steps, counted where their bits differ; tokens per second."""
    from array import array

    file = open_bte(path)
    program = _engine.Program(file.section("program"), file.section("weights"))
    width = program.outputs[0][1]
    different, seconds = 0, {}
    logits: dict[str, list[bytes]] = {}
    for name, session in (("cpu", _engine.Session(program)), ("gpu", Session(program, device))):
        rows = []
        out = bytearray(4 * width * program.max_tokens)
        for start in range(0, len(prompt), program.max_tokens):
            ids = array("i", prompt[start : start + program.max_tokens])
            session.run((ids,), (out,), len(ids), start)
            rows.append(bytes(out[: 4 * width * len(ids)]))
        begin = clock()
        for i in range(STEPS):
            session.step(prompt[i % len(prompt)], len(prompt) + i)
            rows.append(bytes(session.logits))
        seconds[name] = (clock() - begin) / STEPS
        logits[name] = rows
    for cpu, gpu in zip(logits["cpu"], logits["gpu"], strict=True):
        if cpu != gpu:
            pairs = zip(memoryview(cpu).cast("I"), memoryview(gpu).cast("I"), strict=True)
            different += sum(a != b for a, b in pairs)
    return {
        "logits": sum(map(len, logits["cpu"])) // 4,
        "different_logits": different,
        "cpu_seconds_per_token": seconds["cpu"],
        "gpu_seconds_per_token": seconds["gpu"],
    }


def text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    rows = [("KV cache", "head", "prefill", "logits", "different", "CPU us", "GPU us")]
    rows += [
        (
            row["kv_cache"],
            row["head"],
            row["prefill"],
            str(row["logits"]),
            str(row["different_logits"]),
            f"{1e6 * row['cpu_seconds_per_token']:.0f}",
            f"{1e6 * row['gpu_seconds_per_token']:.0f}",
        )
        for row in report["plans"]
    ]
    verdict = "every bit is the CPU's" if report["identical"] else "BITS DIFFER"
    return "\n".join(
        [
            f"bitnet-edge {report['version']}, {report['device']}, {report['system']}",
            table(rows, right=(3, 4, 5, 6)),
            verdict,
        ]
    )
