# SPDX-License-Identifier: MIT
"""The command line: ``bitnet-edge COMMAND``.

Exit codes: 0 fine, 1 a check failed, 2 unusable arguments or input, 130 interrupted. Commands that
run on a device import the host side never; each is imported only when it is called.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from bitnet_edge import __version__
from bitnet_edge.errors import ArgumentError, BitnetEdgeError, VerificationFailed

__all__ = ["main"]

# command -> (module, one line of help)
COMMANDS = {
    "demo": ("demo", "export the bundled model for a device and let it write"),
    "export": ("export", "write a checkpoint as a package for a device"),
    "plan": ("plan", "size a checkpoint to a device without writing anything"),
    "generate": ("generate", "continue a prompt"),
    "inspect": ("inspect", "show what is in a .bte file"),
    "validate": ("validate", "prove that a .bte file does on a device what its plan says"),
    "bench": ("bench", "measure speed against what this machine's memory and kernels give"),
    "synth": ("synth", "write a .bte file of a true geometry with made-up weights"),
    "devices": ("devices", "list the device profiles, or show one"),
    "doctor": ("doctor", "compare this Mac's GPU with the CPU, bit by bit, and measure both"),
    "info": ("info", "show this machine's instruction sets and the kernels chosen"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(arguments).parse_args(arguments)
        _refuse_empty(args)
        return int(import_module(f"bitnet_edge.cli.{COMMANDS[args.command][0]}").run(args))
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (BitnetEdgeError, OSError) as error:
        print(f"bitnet-edge: {error}", file=sys.stderr)
        return 1 if isinstance(error, VerificationFailed) else 2


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitnet-edge", description="Ternary models on phones, boards and wearables."
    )
    parser.add_argument("--version", action="version", version=f"bitnet-edge {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, help_text) in COMMANDS.items():
        command = subparsers.add_parser(name, help=help_text, description=help_text)
        if name in arguments[:1]:  # only the called command is imported
            import_module(f"bitnet_edge.cli.{module}").configure(command)
    return parser


def _refuse_empty(args: argparse.Namespace) -> None:
    """Refuse ``--golden "$UNSET"``: a script's unset variable must not leave out a check."""
    for name, value in vars(args).items():
        if value == "" and name != "prompt":
            found = f"{name.replace('_', '-')}: expected a value, got an empty one"
            raise ArgumentError(f"[{args.command}] {found}")
