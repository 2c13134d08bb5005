# SPDX-License-Identifier: MIT
"""``bitnet-edge info``: what this machine has and which kernels serve it."""

from __future__ import annotations

import argparse
import os
import platform

from bitnet_edge import __version__, _engine
from bitnet_edge.cli.text import print_json, table
from bitnet_edge.memory import private_bytes

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print versions, instruction sets, kernel -> ISA."""
    isas, kernels = _engine.cpu_isas(), _engine.kernel_isas()
    data = {
        "version": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus_available": _engine.cpu_available(),
        "instruction_sets": isas,
        "cap": os.environ.get("BITNET_EDGE_CPU") or None,
        "kernels": kernels,
        "process_private_bytes": private_bytes(),
    }
    if args.json:
        print_json(data)
        return 0
    print(f"bitnet-edge {__version__}, Python {data['python']}, {data['system']} {data['machine']}")
    print(f"{data['cpus_available']} CPUs available, BITNET_EDGE_CPU={data['cap'] or '(not set)'}")
    print("instruction sets")
    print(table([(name, needs) for name, needs in isas.items()]))
    print("kernels")
    print(table([(name, isa) for name, isa in kernels.items()]))
    return 0
