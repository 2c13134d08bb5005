# SPDX-License-Identifier: MIT
"""``bitnet-edge generate FILE PROMPT``: text as it comes, figures on stderr."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bitnet_edge._engine import RESIDENCIES
from bitnet_edge.cli.text import print_json
from bitnet_edge.generation import Generation
from bitnet_edge.runtime import load

__all__ = ["add_sampling_arguments", "configure", "run", "stream"]


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `Model.generate`."""
    parser.add_argument("--max-tokens", type=int, default=128, help="default 128")
    parser.add_argument("--temperature", type=float, default=0.0, help="default 0: greedy")
    parser.add_argument("--top-k", type=int, default=0, help="default 0: all tokens")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="likeliest tokens up to this share; default 1"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="tokens of this share of the likeliest; default 0"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1 discourages; default 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text; default 0")
    parser.add_argument(
        "--stop", action="append", default=[], help="text to end at; may be given several times"
    )


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `Model.generate` that the flags give."""
    keys = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    return {key: getattr(args, key) for key in keys} | {"stop": args.stop}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", help="a .bte file")
    parser.add_argument("prompt", help="text to continue; '-' reads it from stdin")
    parser.add_argument("--threads", type=int, help="threads of a run; default: the plan's")
    parser.add_argument(
        "--residency", choices=RESIDENCIES, help="what is kept of the weights in memory"
    )
    parser.add_argument("--memory-budget", help="private bytes allowed, e.g. 48MB")
    parser.add_argument(
        "--device", default="cpu", help="cpu, metal, or auto: the one that promises more"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Generate."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with load(args.file, args.threads, args.memory_budget, args.residency, args.device) as model:
        generation = model.generate(prompt, **sampling_arguments(args))
        if args.json:
            text = generation.text()
            print_json({"prompt": prompt, "text": text, **figures_json(generation)})
            return 0
        return stream(prompt, generation)


def stream(prompt: str, generation: Generation) -> int:
    """Print the prompt and each piece as it comes; Ctrl-C ends the text, not the terminal."""
    code = 0
    try:
        print(prompt, end="", flush=True)
        for piece in generation:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        generation.close()
        code = 130
    print(flush=True)
    print(figures(generation), file=sys.stderr)
    return code


def figures(generation: Generation) -> str:
    """Return counts and speeds in one line."""
    s = generation.statistics
    share = s.rescored_share
    screened = "" if share is None else f"{100 * share:.2f} % of the head's rows exact, "
    return (
        f"[{s.prompt_tokens} prompt tokens in {1000 * s.prefill_seconds:.1f} ms, "
        f"{s.new_tokens} new tokens at {s.tokens_per_second:.0f} tokens/s, {screened}"
        f"{generation.finish_reason}]"
    )


def figures_json(generation: Generation) -> dict[str, Any]:
    """Return counts and speeds as JSON-serialisable data."""
    s = generation.statistics
    return {
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": s.prompt_tokens,
        "new_tokens": s.new_tokens,
        "prefill_seconds": s.prefill_seconds,
        "decode_seconds": s.decode_seconds,
        "tokens_per_second": s.tokens_per_second,
        "rescored_share": s.rescored_share,
    }
