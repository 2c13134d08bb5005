# SPDX-License-Identifier: MIT
"""``bitnet-edge plan CKPT_OR_BTE --device D``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from bitnet_edge.alternatives import Alternative, alternatives
from bitnet_edge.api import import_model, planner_of
from bitnet_edge.cli.export import add_plan_arguments, budget_table, plan_arguments, plan_json
from bitnet_edge.cli.text import print_json, size, table
from bitnet_edge.head_packing import STORED
from bitnet_edge.losses import lossy
from bitnet_edge.profiles import load_profile

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="checkpoint directory or .bte file")
    parser.add_argument(
        "--explain", action="store_true", help="list what was not chosen, one by one, and why"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure what lossy choices cost this model, on a bundled text (writes temporary "
        "files); otherwise the figures are the bundled model's",
    )
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Plan and print."""
    source = import_model(args.checkpoint)
    pins = plan_arguments(args)
    solver = planner_of(source, load_profile(pins.pop("device")), **pins)
    made = solver.solve()
    others = alternatives(solver, made) if args.explain else []
    if source.head_dtype != STORED:  # a file keeps the head it was written with
        others = [other for other in others if other.choice != "head_dtype"]
    losses = None
    if args.measure:
        from bitnet_edge.measure_losses import measure_losses

        keys = [*lossy(made), *(key for other in others for key in lossy(other.plan))]
        losses = measure_losses(source, dict.fromkeys(keys))
    profile = solver.profile
    over = made.package_bytes - (profile.ota_bytes or made.package_bytes)
    if args.json:
        data = plan_json(made, losses)
        data["flags"] = made.flags
        data["ota_limit_bytes"] = profile.ota_bytes
        if args.explain:
            data["alternatives"] = [other.to_json() for other in others]
        if losses is not None:
            data["measured"] = [
                {"choice": name, "value": value, **loss.to_json()}
                for (name, value), loss in losses.items()
            ]
        print_json(data)
        return 0
    print(f"{source.graph.info.name} on {made.profile}")
    print(budget_table(made, losses))
    if made.context < solver.target:
        print(f"  the {solver.target} positions of the profile do not fit: {made.context} do")
    if over > 0:
        print(f"  the package is {size(over)} over what the store delivers: export refuses it")
    print(f"  pinned by: {made.flags}")
    if others:
        print("not chosen")
        print(_rejected(others))
    if losses:
        extra = {key: loss for key, loss in losses.items() if key not in lossy(made)}
        for (name, value), loss in extra.items():
            print(f"  measured here: --{name.replace('_', '-')} {value}: {loss}")
    return 0


def _rejected(others: Iterable[Alternative]) -> str:
    return table(
        [
            (f"--{other.choice.replace('_', '-')} {other.value}", "; ".join(other.reasons))
            for other in others
        ]
    )
