# SPDX-License-Identifier: MIT
"""``bitnet-edge bench``: how fast, and how near to what this machine can give.

A FILE is measured with what a device has: the standard library and the engine. ``--geometry`` and
``--vs`` make models and run other people's engines: they need the host's side and the extra
``[bench]``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bitnet_edge.bench.gate import (
    baseline_of,
    load_baseline,
    parse_allowance,
    regressions,
    save_baseline,
)
from bitnet_edge.bench.measure import bench_model
from bitnet_edge.cli.text import print_json, progress_bar
from bitnet_edge.errors import ArgumentError
from bitnet_edge.runtime import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["configure", "run"]

PEERS = ("llama-cpp", "litert", "onnxruntime")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", nargs="?", help="a .bte file")
    parser.add_argument("--geometry", help="measure a made-up model of this geometry (see synth)")
    parser.add_argument(
        "--kernels", action="store_true", help="measure the ternary and head kernels alone"
    )
    parser.add_argument("--threads", type=_counts, help="one number, or several: 1,2")
    parser.add_argument(
        "--prompt-tokens",
        type=_counts,
        default=[128, 512],
        metavar="N[,N...]",
        help="lengths of prompts; default 128,512",
    )
    parser.add_argument("--new-tokens", type=int, default=128, help="decoded; default 128")
    parser.add_argument(
        "--runs", type=int, default=7, help="rounds of which the median counts; default 7"
    )
    parser.add_argument("--x-scalar", action="store_true", help="gain of each op over scalar code")
    parser.add_argument("--kv-dtype", help="KV cache of a --geometry model; default f16")
    parser.add_argument("--head-dtype", help="output layer of a --geometry model")
    parser.add_argument("--profile", metavar="TRACE.json", help="write a Perfetto trace")
    parser.add_argument(
        "--vs",
        action="append",
        choices=PEERS,
        default=[],
        help="compare in alternation: llama-cpp with a --geometry, the others with one product",
    )
    parser.add_argument("--save", metavar="BASE.json", help="store the figures as a baseline")
    parser.add_argument("--baseline", metavar="BASE.json", help="exit 1 when slower than this")
    parser.add_argument("--max-latency", help="slower by how much; default +10%%")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers such as 1 or 1,2, got {text!r}"
        ) from None


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    _check(args)
    allowance = parse_allowance(args.max_latency or "+10%")
    baseline = load_baseline(args.baseline) if args.baseline else None
    data: dict[str, Any] = {}
    failures: list[str] = []
    if args.file or args.geometry:
        with _file(args) as path:
            data["models"] = [_bench(path, args, threads) for threads in args.threads or [None]]
            if "llama-cpp" in args.vs:
                from bitnet_edge.bench.peers import against_llama_cpp

                data["llama-cpp"] = [
                    against_llama_cpp(
                        path, args.geometry, result["threads"], args.prompt_tokens, args.runs
                    )
                    for result in data["models"]
                ]
        if baseline:
            failures = regressions(baseline, data["models"], allowance)
        if args.save:
            save_baseline(baseline_of(data["models"][0]["model"], data["models"]), args.save)
    if args.kernels:
        from bitnet_edge.bench.kernels import bench_kernels

        data["kernel_rows"] = bench_kernels(args.threads or [1], args.runs)["rows"]
    products = [peer for peer in args.vs if peer != "llama-cpp"]
    if products:
        from bitnet_edge.bench.products import against_products

        data["products"] = against_products(products, args.runs)
    _print(data, as_json=args.json)
    for line in failures:
        print(f"bitnet-edge: regression: {line}", file=sys.stderr)
    return 1 if failures else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, or that would go unheard."""
    if args.file and args.geometry:
        raise ArgumentError("[bench] expected a FILE or --geometry, got both")
    if "llama-cpp" in args.vs and not args.geometry:
        raise ArgumentError("[bench] --vs llama-cpp needs --geometry: both make the same model")
    if not (args.file or args.geometry or args.kernels or args.vs):
        raise ArgumentError("[bench] expected a FILE, --geometry, --kernels or --vs")
    if (args.save or args.baseline or args.profile) and not (args.file or args.geometry):
        raise ArgumentError("[bench] --save, --baseline and --profile need a FILE or --geometry")
    if args.max_latency and not args.baseline:
        raise ArgumentError("[bench] --max-latency needs --baseline")
    if (args.kv_dtype or args.head_dtype) and not args.geometry:
        raise ArgumentError("[bench] --kv-dtype and --head-dtype need --geometry")
    if args.profile and len(args.threads or [1]) > 1:
        raise ArgumentError("[bench] --profile traces one run: expected one number of --threads")


def _bench(path: str, args: argparse.Namespace, threads: int | None) -> dict[str, Any]:
    with load(path, threads) as model:
        result = bench_model(
            model,
            prompts=args.prompt_tokens,
            new_tokens=args.new_tokens,
            runs=args.runs,
            compare_scalar=args.x_scalar,
        )
        if args.profile:
            from bitnet_edge.bench.trace import trace_model, write_trace

            write_trace(trace_model(model, min(args.prompt_tokens), 8), args.profile)
    return result


@contextmanager
def _file(args: argparse.Namespace) -> Iterator[str]:
    """Give the path of the file to measure; a made-up one is gone afterwards."""
    if args.file:
        yield args.file
        return
    from bitnet_edge.bench.made import write_geometry

    with tempfile.TemporaryDirectory(prefix="bitnet-edge-") as scratch:
        yield write_geometry(
            args.geometry,
            scratch,
            positions=max(*args.prompt_tokens, args.new_tokens) + 1,
            kv_dtype=args.kv_dtype or "f16",
            head_dtype=args.head_dtype,
            progress=progress_bar("writing"),
        )


def _print(data: dict[str, Any], *, as_json: bool) -> None:
    """Print what was measured; JSON of one model alone is that model's object."""
    if as_json:
        print_json(
            data["models"][0] if set(data) == {"models"} and len(data["models"]) == 1 else data
        )
        return
    from bitnet_edge.bench.report import lines

    print("\n".join(lines(data)))
