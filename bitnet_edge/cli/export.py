# SPDX-License-Identifier: MIT
"""``bitnet-edge export CKPT --device D [--target T] -o OUT``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from bitnet_edge.api import TARGETS, Export, export, import_model
from bitnet_edge.cli import packages
from bitnet_edge.cli.text import print_json, progress_bar, size, table
from bitnet_edge.head_packing import HEAD_DTYPES, SCREENED, STORED
from bitnet_edge.losses import BUNDLED, Loss, lossy
from bitnet_edge.planner import DEFAULT_SINKS, KV_DTYPES, RESIDENCIES, Plan

__all__ = ["add_plan_arguments", "budget_table", "configure", "plan_arguments", "run"]

_CLASS_NOTES = {
    "arena": "activations of one run, reused by liveness",
    "kv_cache": "keys and values of the whole context",
    "tokenizer": "its handle; the vocabulary stays in the file",
    "engine": "program, sampler, logits, stacks of the threads",
    "interpreter": "Python with the runtime imported",
}
Losses = Mapping[tuple[str, str], Loss]
_LOSSY_NOUNS = {"kv_dtype": "KV cache", "head_dtype": "head"}
_SCREENED_NOTE = (
    "screened head: greedy and top-k tokens as with the stored head, bit for bit; sampling "
    "without top-k and repetition penalties below 1 read the whole head"
)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that pin a plan's choices."""
    parser.add_argument(
        "--device", default="generic-50mb", help="profile name or YAML file; default generic-50mb"
    )
    parser.add_argument("--context", type=int, help="positions of the KV cache")
    parser.add_argument("--prefill-chunk", type=int, help="most tokens of one run")
    formats = [dtype.value for dtype in KV_DTYPES]
    parser.add_argument("--kv-dtype", choices=formats, help="format of the KV cache")
    parser.add_argument(
        "--head-dtype", choices=HEAD_DTYPES, help="how the output layer and its tied table are kept"
    )
    parser.add_argument("--threads", type=int, help="threads of a run")
    parser.add_argument(
        "--residency", choices=RESIDENCIES, help="what is kept of the weights in memory"
    )
    parser.add_argument(
        "--window",
        type=int,
        help="latest positions that a token sees, instead of a context: sequences without end",
    )
    parser.add_argument(
        "--sinks", type=int, help=f"first positions it goes on seeing (default {DEFAULT_SINKS})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_package_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what writes a package."""
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--ignore-ota-limit",
        action="store_true",
        help="write a package that is larger than the profile's store delivers",
    )


def plan_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `bitnet_edge.plan` that the flags give."""
    keys = ("device", "context", "prefill_chunk", "kv_dtype", "head_dtype", "threads")
    more = ("residency", "window", "sinks")
    return {key: getattr(args, key) for key in (*keys, *more)}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("checkpoint", help="checkpoint directory, or a .bte file to plan anew")
    parser.add_argument("-o", "--out", help="destination (default: <model>.<target> here)")
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="bte", help="format")
    packages.add_arguments(parser)
    add_package_arguments(parser)
    add_plan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Export, then summarise."""
    if args.target != "bte":
        return packages.run(args, plan_arguments(args))
    packages.refuse_arguments(args)
    result = export(
        import_model(args.checkpoint),
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


def export_json(result: Export) -> dict[str, Any]:
    """Return an export's summary as JSON-serialisable data."""
    return {
        "path": str(result.path),
        "bytes": result.bytes,
        "sha256": result.sha256,
        "bits_per_weight": round(result.bits_per_weight, 4),
        "plan": plan_json(result.plan),
    }


def plan_json(plan: Plan, losses: Losses | None = None) -> dict[str, Any]:
    """Return a plan as JSON-serialisable data; ``losses`` as `measure_losses` found them."""
    where = "bundled model" if losses is None else "this model"
    figures = BUNDLED if losses is None else losses
    return {
        "device": plan.profile,
        **plan.choices_json(),
        "screen_bytes": screen_bytes(plan),
        **plan.budget.to_json(),
        "resident_bytes": plan.budget.resident,
        "resident_allowed_bytes": plan.budget.resident_allowed,
        "package_bytes": plan.package_bytes,
        "predicted": plan.speed.to_json(),
        "losses": {
            name: {"value": value, "measured_on": where, **figures[name, value].to_json()}
            for name, value in lossy(plan)
        },
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


def screen_bytes(plan: Plan) -> int:
    """Return the bytes of a file that screen its head."""
    names = {
        operand.name
        for instruction in plan.lowered.instructions
        for (op, key) in (("screen_linear", "w"), ("screened_linear", "bounds"))
        if instruction.op == op and (operand := instruction.operands[key])
    }
    return sum(slot.bytes for slot in plan.weights if slot.name in names)


def loss_lines(plan: Plan, losses: Losses | None = None) -> list[str]:
    """Return what each lossy choice of a plan costs: measured on this model, or the bundled one."""
    where = "the bundled model" if losses is None else "this model"
    figures = BUNDLED if losses is None else losses
    return [
        f"{value} {_LOSSY_NOUNS[name]}: on {where} {figures[name, value]}"
        for name, value in lossy(plan)
    ]


def context_text(plan: Plan) -> str:
    """Return what a token sees, in words."""
    if not plan.endless:
        return f"context {plan.context}"
    return f"window of {plan.window} and {plan.sinks} sinks over an endless sequence"


def budget_table(plan: Plan, losses: Losses | None = None) -> str:
    """Return the memory table of a plan, its choices, predicted speed and losses."""
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
        (
            f"weights ({plan.residency}, clean)",
            size(budget.weights),
            "file pages, not private memory",
        ),
    ]
    if budget.resident_allowed is not None:
        allowed = f"of {size(budget.resident_allowed)} resident, the weights' pages included"
        rows.append(("kept at once", size(budget.resident), allowed))
    head = "" if plan.head_dtype == STORED else f"{plan.head_dtype} head, "
    choices = (
        f"  {context_text(plan)}, {plan.kv_dtype.value} KV cache, {head}prefill in chunks of "
        f"{plan.prefill_chunk}, {plan.threads} thread{'s' if plan.threads > 1 else ''}"
    )
    speed = (
        f"  predicted from the profile: {_rate(plan.speed.decode)} tokens/s decoding "
        f"({plan.speed.decode_bound} binds), {_rate(plan.speed.prefill)} in a prompt "
        f"({plan.speed.prefill_bound} binds)"
    )
    costs = [f"  {line}" for line in loss_lines(plan, losses)]
    costs += [f"  {_SCREENED_NOTE}"] if plan.head_dtype in SCREENED else []
    screens = screen_bytes(plan)
    costs += [f"  what screens the head adds {size(screens)} to the file"] if screens else []
    return "\n".join([table(rows, right=(1,)), choices, speed, *costs])


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
