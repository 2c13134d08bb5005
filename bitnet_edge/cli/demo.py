# SPDX-License-Identifier: MIT
"""``bitnet-edge demo``: the whole way, from the bundled checkpoint to text."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import bitnet_edge
from bitnet_edge.cli.generate import (
    add_sampling_arguments,
    figures_json,
    sampling_arguments,
    stream,
)
from bitnet_edge.cli.text import print_json, progress_bar
from bitnet_edge.runtime import load

__all__ = ["bundled_checkpoint", "configure", "run"]


def bundled_checkpoint() -> Path:
    """Return the directory of the bundled Shakespeare checkpoint (packed ternary, 1.45 M)."""
    return Path(bitnet_edge.__file__).parent / "models" / "shakespeare"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--device", default="raspberry-pi-zero-2w", help="profile to export for")
    parser.add_argument("--prompt", default="ROMEO:\n", help="text to continue")
    parser.add_argument("-o", "--out", help="keep the package here")
    parser.add_argument("--force", action="store_true", help="replace an existing package")
    parser.add_argument("--threads", type=int, help="threads of a run; default: the plan's")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_sampling_arguments(parser)
    parser.set_defaults(temperature=0.7, top_k=40, max_tokens=200)


def run(args: argparse.Namespace) -> int:
    """Export the bundled model, show what it costs, run it."""
    from bitnet_edge.api import export
    from bitnet_edge.cli.export import export_json, summary

    with tempfile.TemporaryDirectory(prefix="bitnet-edge-") as scratch:
        out = Path(args.out) if args.out else Path(scratch) / "shakespeare.bte"
        result = export(
            bundled_checkpoint(),
            device=args.device,
            out=out,
            force=args.force,
            progress=None if args.json else progress_bar("writing"),
        )
        with load(out, args.threads) as model:
            generation = model.generate(args.prompt, **sampling_arguments(args))
            if args.json:
                text = generation.text()
                print_json(
                    {"export": export_json(result), "text": text, **figures_json(generation)}
                )
                return 0
            print(summary(result), file=sys.stderr)
            print(file=sys.stderr)
            return stream(args.prompt, generation)
