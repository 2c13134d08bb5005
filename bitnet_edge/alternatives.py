# SPDX-License-Identifier: MIT
"""What a plan did not choose, one choice changed at a time, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from bitnet_edge.errors import ArgumentError
from bitnet_edge.head_packing import HEAD_DTYPES
from bitnet_edge.losses import BUNDLED
from bitnet_edge.planner import CHUNKS, KV_DTYPES, RESIDENCIES, Choices, Plan, Planner

__all__ = ["Alternative", "alternatives"]


@dataclass(frozen=True)
class Alternative:
    """A plan that differs in one choice.

    Attributes
    ----------
    plan : Plan
    choice, value : str
        What differs, and what it would be.
    reasons : tuple of str
        Why it was not chosen.
    """

    plan: Plan
    choice: str
    value: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the alternative as JSON-serialisable data."""
        return {
            "choice": self.choice,
            "value": self.value,
            "needed_bytes": self.plan.budget.needed,
            "over_bytes": self.plan.budget.over,
            **self.plan.speed.to_json(),
            "reasons": list(self.reasons),
        }


def alternatives(planner: Planner, chosen: Plan) -> list[Alternative]:
    """Return every plan that differs from the chosen one in a single choice."""
    found = []
    own = Choices(**{field.name: getattr(chosen, field.name) for field in fields(Choices)})
    for choices in _variants(planner, own):
        if choices == own:
            continue
        try:
            plan = planner.build(choices)
        except ArgumentError:  # a head that this graph cannot have
            continue
        name = next(
            field.name
            for field in fields(Choices)
            if getattr(choices, field.name) != getattr(chosen, field.name)
        )
        name = "window" if choices.endless and name == "context" else name
        value = choices.choices_json()[name]
        found.append(Alternative(plan, name, str(value), _reasons(planner, chosen, plan, name)))
    return found


def _variants(planner: Planner, own: Choices) -> Iterator[Choices]:
    if planner.limit:
        wanted = {planner.target, 2 * own.context, planner.limit}
        for context in sorted(c for c in wanted if own.context < c <= planner.limit):
            yield replace(own, context=context)
        for kv_dtype in KV_DTYPES:
            yield replace(own, kv_dtype=kv_dtype)
    for head_dtype in HEAD_DTYPES:
        yield replace(own, head_dtype=head_dtype)
    for chunk in CHUNKS:
        yield replace(own, prefill_chunk=chunk)
    for threads in sorted({1, planner.profile.default_threads, own.threads * 2}):
        if threads <= sum(cluster.count for cluster in planner.profile.cores):
            yield replace(own, threads=threads)
    for residency in RESIDENCIES:
        yield replace(own, residency=residency)


def _reasons(planner: Planner, chosen: Plan, plan: Plan, name: str) -> tuple[str, ...]:
    reasons = []
    if plan.budget.over:
        reasons.append(f"{plan.budget.over / (1 << 20):.2f} MB over the private budget")
    limit = plan.budget.resident_allowed
    if limit is not None and plan.budget.resident > max(limit, chosen.budget.resident):
        over = (plan.budget.resident - limit) / (1 << 20)
        reasons.append(f"keeps {over:.2f} MB more than the resident budget")
    if _worse(chosen, plan, name):
        loss = BUNDLED.get((name, str(plan.choices_json()[name])))
        reasons.append(f"lossier: {loss} on the bundled model" if loss else "lossier")
    for what in ("prefill", "decode"):
        ratio = getattr(plan.speed, what) / getattr(chosen.speed, what)
        if ratio < 0.995:
            reasons.append(f"{what} {100 * (1 - ratio):.0f} % slower")
    limit = planner.profile.ota_bytes
    if limit is not None and plan.package_bytes > limit >= chosen.package_bytes:
        reasons.append(f"{(plan.package_bytes - limit) / (1 << 20):.1f} MB over the store's limit")
    if not reasons:
        more = plan.budget.needed - chosen.budget.needed
        reasons.append(_preference(planner, name))
        reasons += [f"{more:+,} bytes of private memory"] if more else []
    return tuple(reasons)


def _worse(chosen: Plan, plan: Plan, name: str) -> bool:
    if name == "kv_dtype":
        return KV_DTYPES.index(plan.kv_dtype) > KV_DTYPES.index(chosen.kv_dtype)
    order = {"stored": 0, "int8": 1, "int4": 2}
    return name == "head_dtype" and order.get(plan.head_dtype, 0) > order.get(chosen.head_dtype, 0)


def _preference(planner: Planner, name: str) -> str:
    """Say what decides where nothing is worse."""
    if name in planner.pinned:
        return f"--{name.replace('_', '-')} is pinned"
    return {
        "context": f"not asked for: the profile's default is {planner.profile.default_context}",
        "head_dtype": "not asked for",
        "prefill_chunk": "no faster",
        "residency": "not asked for",
        "threads": "not the profile's default, or the layers are too small to share",
    }.get(name, "not asked for")
