# SPDX-License-Identifier: MIT
"""``bitnet-edge devices [NAME]``, ``bitnet-edge devices --detect``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from bitnet_edge.atomic import replacing_file
from bitnet_edge.cli.text import print_json, table
from bitnet_edge.errors import ArgumentError, ExportError
from bitnet_edge.profiles import list_profiles, load_profile

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", help="a profile's name or YAML file; all when absent")
    parser.add_argument(
        "--detect", action="store_true", help="describe this machine, measured in a few seconds"
    )
    parser.add_argument("-o", "--out", metavar="FILE.yaml", help="write what --detect finds")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List the profiles, show one, or describe this machine."""
    if args.detect:
        return _detect(args)
    if args.out or args.force:
        raise ArgumentError("[devices] -o and --force need --detect")
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


def _detect(args: argparse.Namespace) -> int:
    from bitnet_edge.detect import detect

    if args.name:
        raise ArgumentError(f"[devices] expected --detect or a name, got both ({args.name!r})")
    out = Path(args.out) if args.out else None
    if out is not None and out.exists() and not args.force:  # before the work, not after it
        raise ExportError(f"[devices] {out} exists; --force replaces it")
    # A profile is found by the name of its file.
    stem = re.sub("[^a-z0-9]+", "-", out.stem.lower()).strip("-") if out else ""
    found = detect(stem[:64] or "this-machine", out.parent if out else None)
    if out is not None:
        with replacing_file(out) as file:
            file.write(found.to_yaml().encode())
    if args.json:
        print_json(found.to_json())
    elif out is None:
        print(found.to_yaml(), end="")
    else:
        print(f"{out}: {found.profile.description}")
    return 0
