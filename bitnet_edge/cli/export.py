# SPDX-License-Identifier: MIT
"""``bitnet-edge export CKPT --device D -o model.bte``."""

from __future__ import annotations

import argparse
from typing import Any

from bitnet_edge.api import Export, export, import_model
from bitnet_edge.cli.text import print_json, progress_bar, size, table
from bitnet_edge.planner import Plan

__all__ = ["add_plan_arguments", "budget_table", "configure", "plan_arguments", "run"]

_CLASS_NOTES = {
    "arena": "activations of one run, reused by liveness",
    "kv_cache": "keys and values of the whole context",
    "fixed": "program, sampler, logits, tokenizer scratch, threads",
    "interpreter": "Python with the runtime imported",
}


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that pin a plan's choices."""
    parser.add_argument("--device", default="generic-50mb", help="profile name or YAML file")
    parser.add_argument("--context", type=int, help="positions of the KV cache")
    parser.add_argument("--prefill-chunk", type=int, help="most tokens of one run")
    parser.add_argument("--kv-dtype", choices=("f32", "f16"), help="element type of the KV cache")
    parser.add_argument("--threads", type=int, help="threads of a run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def plan_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `bitnet_edge.plan` that the flags give."""
    keys = ("device", "context", "prefill_chunk", "kv_dtype", "threads")
    return {key: getattr(args, key) for key in keys}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="checkpoint directory, or a .bte file to plan anew")
    parser.add_argument("-o", "--out", help="destination (default: <model>.bte here)")
    parser.add_argument("--target", choices=("bte",), default="bte", help="package format")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Export, then summarise."""
    result = export(
        import_model(args.checkpoint),
        out=args.out,
        target=args.target,
        force=args.force,
        progress=None if args.json else progress_bar("writing"),
        **plan_arguments(args),
    )
    if args.json:
        print_json(export_json(result))
    else:
        print(summary(result))
    return 0


def export_json(result: Export) -> dict[str, Any]:
    """Return an export's summary as JSON-serialisable data."""
    return {
        "path": str(result.path),
        "bytes": result.bytes,
        "sha256": result.sha256,
        "bits_per_weight": round(result.bits_per_weight, 4),
        "plan": plan_json(result.plan),
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON-serialisable data."""
    return {
        "device": plan.profile,
        "context": plan.context,
        "prefill_chunk": plan.prefill_chunk,
        "kv_dtype": plan.kv_dtype.value,
        "threads": plan.threads,
        **plan.budget.to_json(),
    }


def summary(result: Export) -> str:
    """Return the text that ends an export."""
    info = result.graph.info
    notes = [f"  note: {note}" for note in info.notes]
    return "\n".join(
        [
            f"{result.path}: {info.name} ({info.architecture}) for {result.plan.profile}",
            f"  {size(result.bytes)}, {result.bits_per_weight:.2f} bits per weight",
            f"  sha256 {result.sha256}",
            *notes,
            budget_table(result.plan),
        ]
    )


def budget_table(plan: Plan) -> str:
    """Return the memory table of a plan."""
    budget = plan.budget
    rows = [("private memory", "", "")]
    rows += [
        (f"  {name}", size(count), _CLASS_NOTES[name]) for name, count in budget.classes.items()
    ]
    rows += [
        (
            "  total",
            size(budget.needed),
            f"{100 * budget.needed / budget.allowed:.0f} % of {size(budget.allowed)} allowed",
        ),
        ("weights (mapped, clean)", size(budget.weights), "file pages, not private memory"),
    ]
    choices = (
        f"  context {plan.context}, {plan.kv_dtype.value} KV cache, prefill in chunks of "
        f"{plan.prefill_chunk}, {plan.threads} thread{'s' if plan.threads > 1 else ''}"
    )
    return table(rows, right=(1,)) + "\n" + choices
