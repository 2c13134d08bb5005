# SPDX-License-Identifier: MIT
"""``bitnet-edge devices [NAME]``."""

from __future__ import annotations

import argparse

from bitnet_edge.cli.text import print_json, table
from bitnet_edge.profiles import list_profiles, load_profile

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", help="a profile's name or YAML file; all when absent")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List the profiles, or show one."""
    if args.name:
        profile = load_profile(args.name)
        data = profile.to_dict()
        if args.json:
            print_json(data)
        else:
            print(table([(key, str(value)) for key, value in data.items()], indent=""))
        return 0
    profiles = list_profiles()
    if args.json:
        print_json([profile.to_dict() for profile in profiles])
        return 0
    rows = [("NAME", "PRIVATE", "RAM", "BANDWIDTH", "ISA", "DESCRIPTION")]
    rows += [
        (
            profile.name,
            f"{profile.private_mb:g} MB",
            f"{profile.ram_mb:g} MB",
            f"{profile.memory_bandwidth_gbps:g} GB/s",
            profile.isa[-1],
            profile.description,
        )
        for profile in profiles
    ]
    print(table(rows, right=(1, 2, 3), indent=""))
    return 0
