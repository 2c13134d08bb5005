# SPDX-License-Identifier: MIT
"""``bitnet-edge bench FILE``: prefill, decode and private memory, medians of several runs."""

from __future__ import annotations

import argparse
import time
from array import array
from collections.abc import Callable

from bitnet_edge.cli.text import print_json, size, table
from bitnet_edge.errors import ArgumentError
from bitnet_edge.memory import private_bytes
from bitnet_edge.runtime import Model, load

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", help="a .bte file")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7, help="runs of which the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    with load(args.file, args.threads) as model:
        prompt_tokens = min(args.prompt_tokens, model.context)
        new_tokens = min(args.new_tokens, model.context - 1)
        if min(args.runs, prompt_tokens, new_tokens) < 1:
            raise ArgumentError("[bench] runs, prompt-tokens and new-tokens must be 1 or more")
        ids = array("i", [i * 7919 % model.vocab_size for i in range(prompt_tokens)])
        prefill = _median(args.runs, lambda: _prefill(model, ids))
        decode = _median(args.runs, lambda: _decode(model, ids[:1], new_tokens))
        data = {
            "model": model.name,
            "threads": model.threads,
            "prompt_tokens": prompt_tokens,
            "prefill_tokens_per_second": prompt_tokens / prefill,
            "new_tokens": new_tokens,
            "decode_tokens_per_second": new_tokens / decode,
            "decode_us_per_token": 1e6 * decode / new_tokens,
            "process_private_bytes": private_bytes(),
        }
    if args.json:
        print_json(data)
        return 0
    rows = [
        ("prefill", f"{data['prefill_tokens_per_second']:.0f} tokens/s", f"{prompt_tokens} tokens"),
        (
            "decode",
            f"{data['decode_tokens_per_second']:.0f} tokens/s",
            f"{new_tokens} tokens, {data['decode_us_per_token']:.1f} us each, Python included",
        ),
        ("private memory", size(private_bytes()), "the whole process, interpreter included"),
    ]
    print(f"{data['model']}, {data['threads']} threads, medians of {args.runs} runs")
    print(table(rows, right=(1,)))
    return 0


def _median(runs: int, measured: Callable[[], float]) -> float:
    measured()  # warm up: pages, caches, clock
    return sorted(measured() for _ in range(runs))[runs // 2]


def _prefill(model: Model, ids: array[int]) -> float:
    start = time.perf_counter()
    for position, chunk in model.chunks(ids):
        model.session.prefill(chunk, position, position + len(chunk) == len(ids))
    return time.perf_counter() - start


def _decode(model: Model, prompt: array[int], new_tokens: int) -> float:
    """Time greedy decoding of exactly ``new_tokens`` tokens, sampling and text included."""
    generation = model.generate(list(prompt), max_tokens=new_tokens + 1, ignore_eos=True)
    next_piece = generation.advance
    next_piece()  # the prompt
    start = time.perf_counter()
    for _ in range(new_tokens):
        next_piece()
    return time.perf_counter() - start
