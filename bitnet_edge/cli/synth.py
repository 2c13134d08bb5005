# SPDX-License-Identifier: MIT
"""``bitnet-edge synth --geometry NAME -o big.bte``: a file of a true geometry, made-up weights."""

from __future__ import annotations

import argparse

from bitnet_edge.api import export
from bitnet_edge.cli.export import (
    add_package_arguments,
    add_plan_arguments,
    export_json,
    plan_arguments,
    summary,
)
from bitnet_edge.cli.text import print_json, progress_bar
from bitnet_edge.exporters.sources.synthetic import GEOMETRIES, load_synthetic

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--geometry", required=True, help=", ".join(GEOMETRIES))
    parser.add_argument("-o", "--out", help="destination (default: <geometry>.bte here)")
    parser.add_argument("--seed", type=int, default=0, help="decides every weight")
    add_package_arguments(parser)
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file, then summarise."""
    result = export(
        load_synthetic(args.geometry, seed=args.seed),
        out=args.out,
        force=args.force,
        ota_limit=not args.ignore_ota_limit,
        progress=None if args.json else progress_bar("writing"),
        **plan_arguments(args),
    )
    if args.json:
        print_json(export_json(result))
    else:
        print(summary(result))
    return 0
