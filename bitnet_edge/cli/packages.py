# SPDX-License-Identifier: MIT
"""What ``bitnet-edge export`` does for other runtimes: ``--target onnx``, ..."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitnet_edge.api import export, import_model
from bitnet_edge.cli.text import print_json, size, table
from bitnet_edge.errors import ArgumentError
from bitnet_edge.exporters.comparison import compare_targets
from bitnet_edge.exporters.package import Package
from bitnet_edge.exporters.verify import Verification
from bitnet_edge.profiles import load_profile

__all__ = ["add_arguments", "refuse_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of targets other than ``bte``."""
    parser.add_argument("--form", help="how the target says ternary products (see README)")
    parser.add_argument(
        "--ort", action="store_const", dest="form", const="ort", help="with onnx: --form ort"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run the package in its runtime against the numpy reference (default)",
    )


def refuse_arguments(args: argparse.Namespace) -> None:
    """Refuse the flags of other targets for a ``.bte`` file."""
    if args.form is not None or not args.verify:
        raise ArgumentError("[export] --form, --ort and --no-verify need another --target than bte")


def run(args: argparse.Namespace, pinned: dict[str, Any]) -> int:
    """Export for another runtime, or for all, then summarise."""
    if args.target == "all":
        return _run_all(args, pinned)
    result = export(
        import_model(args.checkpoint),
        out=args.out,
        target=args.target,
        force=args.force,
        ota_limit=not args.ignore_ota_limit,
        form=args.form,
        verify=args.verify,
        **pinned,
    )
    assert isinstance(result, Package)
    if args.json:
        print_json(result.to_json())
    else:
        print(summary(result))
    return 0


def _run_all(args: argparse.Namespace, pinned: dict[str, Any]) -> int:
    """Export for every target into one directory, and compare."""
    if args.form is not None:
        raise ArgumentError("[export] --form and --ort need one --target, got all")
    source = import_model(args.checkpoint)
    result = compare_targets(
        source,
        load_profile(pinned.pop("device")),
        Path(args.out or f"{source.graph.info.name}-packages"),
        force=args.force,
        ota_limit=not args.ignore_ota_limit,
        verify=args.verify,
        pinned=pinned,
        progress=None if args.json else print,
    )
    if args.json:
        print_json(result.to_json())
    else:
        print(table(result.cells(), right=(2, 3, 4, 5)))
        for row in result.rows:
            print(f"  {row.target}: {row.status}{': ' + row.detail if row.detail else ''}")
        print(f"  saved as {result.path}/comparison.json and comparison.html")
    return 1 if any(row.status == "failed" for row in result.rows) else 0


def summary(package: Package) -> str:
    """Return the text that ends an export."""
    form, profile = package.settings.form, package.profile
    share = 100 * package.memory / profile.private_bytes
    lines = [
        f"{package.path}: {package.info.name} ({package.info.architecture}) for {profile.name}",
        f"  {package.target} {form.name}: {form.why}",
        f"  needs {form.minimum}",
        f"  {size(package.bytes)}, {package.bits_per_weight:.2f} bits per weight; ternary weights "
        f"{package.ternary_bits:.3f}",
        f"  about {size(package.memory)} of private memory in the runtime, an estimate: "
        f"{share:.0f} % of the {size(profile.private_bytes)} that the device grants",
        *_verification(package.verification),
    ]
    return "\n".join(lines)


def _verification(v: Verification | None) -> list[str]:
    if v is None:
        return ["  not verified (--no-verify)"]
    lines = [
        f"  verified in {v.runtime} on this machine: {v.prompts} prompts, {v.rows} rows, {v.steps} "
        "of them decoded one by one",
        f"    error of a row over its largest output: {v.max_error:.1e} at most, "
        f"{v.mean_error:.1e} on average; {v.exact_error:.1e} at most in the "
        f"{v.rows - v.flipped_rows} rows that no flipped int8 rounding reaches",
    ]
    if v.agreement is not None and v.perplexity and v.reference_perplexity:
        change = 100 * (v.perplexity / v.reference_perplexity - 1)
        lines.append(
            f"    top-1 agreement {100 * v.agreement:.2f} % ({v.near_ties} near ties aside), "
            f"perplexity {v.perplexity:.3f} against {v.reference_perplexity:.3f} ({change:+.3f} %)"
        )
    if v.ops_checked:
        lines.append(f"    each of {v.ops_checked} ops agrees on the package's own inputs")
    return lines
