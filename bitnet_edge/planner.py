# SPDX-License-Identifier: MIT
"""Graph + device profile -> plan: everything that costs memory, chosen and added up.

The choice is lexicographic; what stands first counts before all that follows:

1. the plan fits the private memory of the profile;
2. the context is the profile's default (at most the model's), or else as long as fits;
3. least loss: the KV cache in float32, float16, int8; the head as stored, unless the store's size
   limit asks for int8 or int4. An int4 KV cache changes one greedy choice in ten: it is taken only
   where int8 leaves fewer than `LEAST_CONTEXT` positions;
4. speed: the largest prefill chunk, the profile's threads where the layers are worth sharing;
   weights mapped, or streamed where the profile limits resident memory to less than they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from bitnet_edge import _engine
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, BudgetExceeded
from bitnet_edge.graph import Graph
from bitnet_edge.head_packing import QUANTISED, STORED
from bitnet_edge.lowering import Lowered, Operand
from bitnet_edge.plan_memory import STREAM_BYTES, BudgetReport, Footprint, WeightSlot
from bitnet_edge.profiles import Profile
from bitnet_edge.roofline import Speed, predict

__all__ = ["KV_DTYPES", "RESIDENCIES", "Choices", "Plan", "Planner", "make_plan"]

CHUNKS = (128, 64, 32, 16, 8)
KV_DTYPES = (DType.F32, DType.F16, DType.I8, DType.I4)  # by rising loss
_KV_GROUPS = (KV_DTYPES[:3], KV_DTYPES[3:])  # the second where the first leaves no useful context
LEAST_CONTEXT = 64  # a shorter one is never chosen, but may be asked for
# Below this many multiply-adds between two barriers a second thread costs more than it brings.
MACS_PER_PHASE_FOR_THREADS = 500_000
RESIDENCIES = _engine.RESIDENCIES
MAPPED, _, STREAMED = RESIDENCIES
DEFAULT_SINKS = 4  # Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023
NEAREST = 3  # plans that an error offers


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a plan may choose, and a caller pin.

    Attributes
    ----------
    context : int
        Positions that a token sees; 0 for a model without a KV cache.
    kv_dtype : DType
    head_dtype : str
        ``stored`` (the checkpoint's dtype), ``int8``, ``int4``, or ``screened-int8`` and
        ``screened-int4``: as stored, with codes beside it that spare most of its bytes.
    prefill_chunk : int
        Most tokens of one run.
    threads : int
    residency : str
        ``mapped``, ``resident`` or ``streamed``.
    endless : bool
        The context is a window that moves over a sequence of any length.
    sinks : int
        First positions that an endless sequence sees for ever; part of the context.
    """

    context: int
    kv_dtype: DType
    head_dtype: str
    prefill_chunk: int
    threads: int
    residency: str
    endless: bool = False
    sinks: int = 0

    @property
    def window(self) -> int:
        """Latest positions that a token of an endless sequence sees, its own included; else 0."""
        return self.context - self.sinks if self.endless else 0

    @property
    def cache_rows(self) -> int:
        """Rows of the KV cache."""
        if not self.endless:
            return self.context
        return _engine.kv_window_rows(self.window, self.sinks, self.prefill_chunk)

    @property
    def sinks_seen_from(self) -> int | None:
        """The position from which an endless sequence asks its sinks; None without them."""
        return self.context - 1 if self.sinks else None

    @property
    def flags(self) -> str:
        """The flags of ``bitnet-edge plan`` that pin exactly these choices."""
        data = self.choices_json()
        if not self.context:
            del data["context"], data["kv_dtype"]
        for name in ("context",) if self.endless else ("window", "sinks"):
            data.pop(name, None)
        return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in data.items())

    def choices_json(self) -> dict[str, int | str]:
        """Return the choices as JSON-serialisable data."""
        data = {field.name: getattr(self, field.name) for field in fields(Choices)}
        del data["endless"]
        return data | {"kv_dtype": self.kv_dtype.value, "window": self.window}


@dataclass(frozen=True, kw_only=True)
class Plan(Choices):
    """Everything fixed before a program is written: choices and what follows from them.

    Attributes
    ----------
    profile : str
        Name of the device profile.
    lowered : Lowered
    arena, state : Mapping[str, int]
        Buffer -> byte offset.
    arena_bytes, state_bytes : int
    weights : tuple of WeightSlot
    budget : BudgetReport
    package_bytes : int
        Of the file, but for its header and the gaps between sections.
    speed : Speed
        Predicted from the profile.
    """

    profile: str
    lowered: Lowered
    arena: Mapping[str, int]
    state: Mapping[str, int]
    arena_bytes: int
    state_bytes: int
    weights: tuple[WeightSlot, ...]
    budget: BudgetReport
    package_bytes: int
    speed: Speed

    def offset(self, operand: Operand) -> int:
        """Return the byte offset of an operand inside its region (0 for ports)."""
        if operand.region == "arena":
            return self.arena[operand.name]
        if operand.region == "state":
            return self.state[operand.name]
        if operand.region == "weights":
            return next(slot.offset for slot in self.weights if slot.name == operand.name)
        return 0


def make_plan(graph: Graph, profile: Profile, **pins: Any) -> Plan:
    """Size a graph to a device: `Planner` with these arguments, solved."""
    return Planner(graph, profile, **pins).solve()


class Planner:
    """Sizes one graph to one device.

    Parameters
    ----------
    graph : Graph
    profile : Profile
    tokenizer_bytes : int
        Size of the tokenizer section, 0 without one.
    context, prefill_chunk, threads : int, optional
        Pinned choices; what is left open is chosen as the module says.
    kv_dtype : DType or str, optional
        ``f32``, ``f16``, ``int8`` or ``int4``.
    head_dtype : str, optional
        ``stored``, ``int8``, ``int4``, ``screened-int8`` or ``screened-int4``.
    residency : str, optional
        ``mapped``, ``resident`` or ``streamed``.
    window : int, optional
        Latest positions that a token of an endless sequence sees, instead of a context.
    sinks : int, optional
        First positions that it goes on seeing; `DEFAULT_SINKS` by default.

    Raises
    ------
    ArgumentError
        For a pinned choice outside its domain.
    """

    def __init__(
        self,
        graph: Graph,
        profile: Profile,
        *,
        tokenizer_bytes: int = 0,
        context: int | None = None,
        prefill_chunk: int | None = None,
        kv_dtype: DType | str | None = None,
        head_dtype: str | None = None,
        threads: int | None = None,
        residency: str | None = None,
        window: int | None = None,
        sinks: int | None = None,
    ) -> None:
        self.graph = graph
        self.profile = profile
        self.tokenizer_bytes = tokenizer_bytes
        self._footprints: dict[tuple[str, int | None], Footprint] = {}
        self.limit = graph.info.context_length if graph.states() else 0
        self.endless = window is not None
        self.sinks = 0
        if window is not None:
            self.sinks = DEFAULT_SINKS if sinks is None else sinks
            if context is not None or not self.limit or window < 1 or self.sinks < 0:
                raise ArgumentError(
                    f"[plan] expected a window of 1 or more positions, instead of a context, for a "
                    f"model with a KV cache, got {window}, sinks {sinks}, context {context}"
                )
            context = window + self.sinks
        elif sinks is not None:
            raise ArgumentError(f"[plan] expected sinks beside a window only, got {sinks}")
        self.target = min(profile.default_context, self.limit) if context is None else context
        if self.limit and not 1 <= self.target <= self.limit:
            raise ArgumentError(f"[plan] expected context 1 .. {self.limit}, got {self.target}")
        if prefill_chunk is not None and not 1 <= prefill_chunk <= 4096:
            raise ArgumentError(f"[plan] expected prefill_chunk 1 .. 4096, got {prefill_chunk}")
        most = _engine.MAX_THREADS
        if threads is not None and not 1 <= threads <= most:
            raise ArgumentError(f"[plan] expected threads 1 .. {most}, got {threads}")
        if kv_dtype is not None and kv_dtype not in KV_DTYPES:
            names = ", ".join(dtype.value for dtype in KV_DTYPES[:-1])
            raise ArgumentError(
                f"[plan] expected kv_dtype {names} or {KV_DTYPES[-1].value}, got {str(kv_dtype)!r}"
            )
        if residency is not None and residency not in RESIDENCIES:
            names = " or ".join(RESIDENCIES)
            raise ArgumentError(f"[plan] expected residency {names}, got {residency!r}")
        pins = {
            "context": context,
            "prefill_chunk": prefill_chunk,
            "kv_dtype": kv_dtype,
            "head_dtype": head_dtype,
            "threads": threads,
            "residency": residency,
            "window": window,
            "sinks": sinks,
        }
        self.pinned = {name for name, value in pins.items() if value is not None}
        self.residency = residency
        self.kv_groups = _KV_GROUPS if kv_dtype is None else ((DType(kv_dtype),),)
        cap = max(self.target, 1) if self.limit else CHUNKS[0]
        self.chunks = sorted({min(c, cap) for c in CHUNKS})[::-1]
        self.prefill_chunk = prefill_chunk
        self.head_dtype = head_dtype or self._choose_head()
        self.threads = threads or self._choose_threads()
        self.footprint(self.head_dtype)  # refuses what the graph cannot have

    def footprint(self, head_dtype: str, sinks_seen_from: int | None = None) -> Footprint:
        """Return the bytes of the graph with a head dtype."""
        key = (head_dtype, sinks_seen_from)
        if key not in self._footprints:
            made = Footprint(self.graph, head_dtype, self.tokenizer_bytes, sinks_seen_from)
            self._footprints[key] = made
        return self._footprints[key]

    def solve(self) -> Plan:
        """Return the best plan that fits.

        Raises
        ------
        BudgetExceeded
            When none does; says by how much, and which plans would.
        """
        for kv_dtypes in self.kv_groups:
            for tried in self._candidates(kv_dtypes):
                if self.fits(tried):
                    return self.build(tried)
            if self.limit and "context" not in self.pinned:
                shorter = replace(tried, context=self._longest(tried))
                if shorter.context >= min(LEAST_CONTEXT, self.target):
                    return self.build(shorter)
        raise self._over_budget(tried)

    def needed(self, choices: Choices) -> int:
        """Return the private bytes of choices."""
        return sum(self._classes(choices).values())

    def resident(self, choices: Choices) -> int:
        """Return the bytes that choices keep in memory, file pages included."""
        weights = self.footprint(choices.head_dtype).weights_bytes
        if choices.residency == STREAMED:
            weights = min(weights, STREAM_BYTES)
        return self.needed(choices) + weights

    def fits(self, choices: Choices) -> bool:
        """Whether choices fit the device.

        Mapped weights are never too many: what does not fit is read again when it is needed.
        """
        limit = self.profile.resident_bytes
        if limit is not None and choices.residency != MAPPED and self.resident(choices) > limit:
            return False
        return self.needed(choices) <= self.profile.private_bytes

    def build(self, choices: Choices) -> Plan:
        """Return the plan of choices, whether it fits or not."""
        footprint = self.footprint(choices.head_dtype, choices.sinks_seen_from)
        arena, arena_bytes = footprint.arena(choices.prefill_chunk)
        state, state_bytes = footprint.state(choices.kv_dtype, choices.cache_rows)
        return Plan(
            **{field.name: getattr(choices, field.name) for field in fields(Choices)},
            profile=self.profile.name,
            lowered=footprint.lowered,
            arena=arena,
            state=state,
            arena_bytes=arena_bytes,
            state_bytes=state_bytes,
            weights=footprint.weights,
            budget=BudgetReport(
                self._classes(choices),
                footprint.weights_bytes,
                self.profile.private_bytes,
                self.resident(choices),
                self.profile.resident_bytes,
            ),
            package_bytes=footprint.package_bytes,
            speed=predict(
                footprint.lowered,
                footprint.weights,
                self.profile,
                context=choices.context,
                prefill_chunk=choices.prefill_chunk,
                threads=choices.threads,
                state_bytes=state_bytes,
                streamed=choices.residency == STREAMED,
            ),
        )

    def nearest(self, wanted: Choices, count: int = NEAREST) -> list[Choices]:
        """Return the plans that fit and differ least from one that does not.

        Fewest changed choices first, then the longest context, the least loss, the largest chunk.
        """
        chunks = [c for c in {wanted.prefill_chunk, *self.chunks} if c <= wanted.prefill_chunk]
        found: set[Choices] = set()
        residencies = {wanted.residency, MAPPED, STREAMED}
        for kv_dtype, chunk, threads, residency in product(
            KV_DTYPES, chunks, {wanted.threads, 1}, residencies
        ):
            attempt = replace(
                wanted,
                kv_dtype=kv_dtype,
                prefill_chunk=chunk,
                threads=threads,
                residency=residency,
            )
            attempt = replace(attempt, context=self._longest(attempt))
            if (attempt.context or not self.limit) and self.fits(attempt):
                found.add(attempt)

        def distance(choices: Choices) -> tuple[int, ...]:
            changed = sum(
                getattr(choices, field.name) != getattr(wanted, field.name)
                for field in fields(Choices)
            )
            loss = KV_DTYPES.index(choices.kv_dtype)
            residency = RESIDENCIES.index(choices.residency)
            return changed, -choices.context, loss, -choices.prefill_chunk, residency

        return sorted(found, key=distance)[:count]

    def _candidates(self, kv_dtypes: tuple[DType, ...]) -> Iterator[Choices]:
        """Yield what may be chosen with the target's context, best first."""
        for kv_dtype in kv_dtypes:
            for chunk in [self.prefill_chunk] if self.prefill_chunk else self.chunks:
                choices = Choices(
                    context=self.target,
                    kv_dtype=kv_dtype,
                    head_dtype=self.head_dtype,
                    prefill_chunk=chunk,
                    threads=self.threads,
                    residency=self.residency or MAPPED,
                    endless=self.endless,
                    sinks=self.sinks,
                )
                yield choices if self.residency else self._with_residency(choices)

    def _with_residency(self, choices: Choices) -> Choices:
        """Stream the weights where the profile limits resident memory to less than they need."""
        limit = self.profile.resident_bytes
        if limit is None or self.resident(choices) <= limit:
            return choices
        return replace(choices, residency=STREAMED)

    def _classes(self, choices: Choices) -> dict[str, int]:
        return self.footprint(choices.head_dtype, choices.sinks_seen_from).classes(
            choices.cache_rows, choices.prefill_chunk, choices.kv_dtype, choices.threads
        )

    def _longest(self, choices: Choices) -> int:
        """Return the longest context, at most that of ``choices``, with which they fit, or 0."""
        if self.fits(choices):
            return choices.context
        low, high = choices.sinks, choices.context  # low fits (or is none), high does not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.fits(replace(choices, context=middle))
            low, high = (middle, high) if fits else (low, middle)
        return low if low > choices.sinks else 0

    def _choose_head(self) -> str:
        """Return the least lossy head with which the package may be delivered; else as stored."""
        limit = self.profile.ota_bytes
        if limit is None or self.footprint(STORED).package_bytes <= limit:
            return STORED
        for head_dtype in QUANTISED:
            try:
                if self.footprint(head_dtype).package_bytes <= limit:
                    return head_dtype
            except ArgumentError:  # the graph has no head to be quantised
                break
        return STORED

    def _choose_threads(self) -> int:
        macs = [
            tensor.shape[0] * tensor.shape[1]
            for tensor in self.graph.constants()
            if tensor.dtype is DType.TERNARY
        ]
        worthwhile = bool(macs) and max(macs) >= MACS_PER_PHASE_FOR_THREADS
        return self.profile.default_threads if worthwhile else 1

    def _over_budget(self, tried: Choices) -> BudgetExceeded:
        """Describe the smallest plan tried, and what would fit instead."""
        budget = self.build(tried).budget
        nearest = self.nearest(tried)
        advice = (
            "these plans fit: " + "; ".join(choices.flags for choices in nearest)
            if nearest
            else "no plan fits: the model needs a device with more private memory"
        )
        breakdown = ", ".join(f"{name} {_mb(size)}" for name, size in budget.classes.items())
        needed, allowed, kind = budget.needed, budget.allowed, "private"
        if not budget.over and self.profile.resident_bytes is not None:
            needed, allowed, kind = self.resident(tried), self.profile.resident_bytes, "resident"
        return BudgetExceeded(
            f"[plan] {self.graph.info.name!r} needs {_mb(needed)} of {kind} memory on "
            f"{self.profile.name}, {_mb(needed - allowed)} over the allowed {_mb(allowed)} "
            f"(context {tried.context}, {tried.kv_dtype.value} KV cache, prefill chunk "
            f"{tried.prefill_chunk}, {tried.residency} weights: {breakdown}); {advice}",
            needed=needed,
            allowed=allowed,
            breakdown=budget.classes,
            nearest=nearest,
        )


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.1f} MB"
