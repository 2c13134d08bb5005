# SPDX-License-Identifier: MIT
"""``bitnet-edge plan CKPT_OR_BTE --device D``."""

from __future__ import annotations

import argparse

from bitnet_edge.api import import_model, plan
from bitnet_edge.cli.export import add_plan_arguments, budget_table, plan_arguments, plan_json
from bitnet_edge.cli.text import print_json

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="checkpoint directory or .bte file")
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Plan and print."""
    source = import_model(args.checkpoint)
    made = plan(source, **plan_arguments(args))
    if args.json:
        print_json(plan_json(made))
    else:
        print(f"{source.graph.info.name} on {made.profile}")
        print(budget_table(made))
    return 0
