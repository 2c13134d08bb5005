# SPDX-License-Identifier: MIT
"""Graph + device profile -> plan: everything that costs memory, decided and added up.

Private memory has four classes (weights are clean file pages and cost none):

* *arena*: activations of one run, offsets by liveness;
* *state*: the KV cache;
* *fixed*: the engine's records, thread stacks, tokenizer and sampler;
* *interpreter*: the baseline of a Python process with the runtime imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitnet_edge import _engine
from bitnet_edge.container import tensor_bytes
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, BudgetExceeded
from bitnet_edge.graph import Graph
from bitnet_edge.head_packing import STORED, packed_heads
from bitnet_edge.lowering import Lowered, Operand, lower
from bitnet_edge.memory import THREAD_BYTES
from bitnet_edge.packing import round_up
from bitnet_edge.profiles import Profile

__all__ = ["KV_DTYPES", "BudgetReport", "Plan", "WeightSlot", "make_plan"]

ALIGNMENT = 64
# CPython 3.11 with the runtime imported: about 6 MB of dirty pages and 5 MB of its own clean ones,
# which count where no other process maps them (tests/unit/test_runtime.py keeps it honest).
INTERPRETER_BYTES = 11 * 1024 * 1024
TOKENIZER_BYTES = 4096  # its handle; the vocabulary stays in the file
SAMPLER_BYTES_PER_TOKEN = 8
CHUNKS = (128, 64, 32, 16, 8)
# Formats of the KV cache, largest first. Each is taken when those before it do not fit, but int4
# only when it is asked for: it costs a model more than a plan may decide silently
# (tests/golden/test_kv_quality.py measures how much).
KV_DTYPES = (DType.F32, DType.F16, DType.I8, DType.I4)
AUTOMATIC_KV_DTYPES = KV_DTYPES[:3]
# Below this many multiply-adds between two barriers a second thread costs more than it brings.
MACS_PER_PHASE_FOR_THREADS = 500_000


@dataclass(frozen=True)
class BudgetReport:
    """Private memory by class against what the device allows.

    Attributes
    ----------
    classes : Mapping[str, int]
        Bytes of private memory per class.
    weights : int
        Bytes of clean, file-backed weight pages (not private).
    allowed : int
        Bytes of private memory the profile grants.
    """

    classes: Mapping[str, int]
    weights: int
    allowed: int

    @property
    def needed(self) -> int:
        """Bytes of private memory."""
        return sum(self.classes.values())

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable data."""
        return {
            "private_bytes": dict(self.classes),
            "needed_bytes": self.needed,
            "allowed_bytes": self.allowed,
            "weights_bytes": self.weights,
        }


@dataclass(frozen=True)
class WeightSlot:
    """Where a constant lies in the weights section; ``dtype`` is how it is stored there."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything fixed before a program is written.

    Attributes
    ----------
    profile : str
        Name of the device profile.
    context : int
        Positions of the KV cache; 0 for a model without one.
    prefill_chunk : int
        Most tokens of one run.
    kv_dtype : DType
    head_dtype : str
        ``stored`` (the checkpoint's dtype), ``int8`` or ``int4``.
    threads : int
    lowered : Lowered
    arena, state : Mapping[str, int]
        Buffer -> byte offset.
    arena_bytes, state_bytes : int
    weights : tuple of WeightSlot
    budget : BudgetReport
    """

    profile: str
    context: int
    prefill_chunk: int
    kv_dtype: DType
    head_dtype: str
    threads: int
    lowered: Lowered
    arena: Mapping[str, int]
    state: Mapping[str, int]
    arena_bytes: int
    state_bytes: int
    weights: tuple[WeightSlot, ...]
    budget: BudgetReport

    def offset(self, operand: Operand) -> int:
        """Return the byte offset of an operand inside its region (0 for ports)."""
        if operand.region == "arena":
            return self.arena[operand.name]
        if operand.region == "state":
            return self.state[operand.name]
        if operand.region == "weights":
            return next(slot.offset for slot in self.weights if slot.name == operand.name)
        return 0


def make_plan(
    graph: Graph,
    profile: Profile,
    *,
    tokenizer_bytes: int = 0,
    context: int | None = None,
    prefill_chunk: int | None = None,
    kv_dtype: DType | str | None = None,
    head_dtype: str | None = None,
    threads: int | None = None,
) -> Plan:
    """Size a graph to a device.

    What is left open is chosen: the profile's default context (at most the model's), the KV cache
    in float32, float16 or int8, each where the one before does not fit, the largest prefill chunk
    that fits, and the profile's threads, or one where the layers are too small to share.

    Parameters
    ----------
    graph : Graph
    profile : Profile
    tokenizer_bytes : int
        Size of the tokenizer section (its scratch is private memory).
    context, prefill_chunk, threads : int, optional
        Pinned choices.
    kv_dtype : DType or str, optional
        ``f32``, ``f16``, ``int8`` or ``int4``.
    head_dtype : str, optional
        ``stored`` (the default), ``int8`` or ``int4``.

    Raises
    ------
    ArgumentError
        For a pinned choice outside its domain.
    BudgetExceeded
        When nothing allowed fits; says by how much and what would fit.
    """
    has_state = bool(graph.states())
    limit = graph.info.context_length if has_state else 0
    context = min(profile.default_context, limit) if context is None else context
    if has_state and not 1 <= context <= limit:
        raise ArgumentError(f"[plan] expected context 1 .. {limit}, got {context}")
    if prefill_chunk is not None and not 1 <= prefill_chunk <= 4096:
        raise ArgumentError(f"[plan] expected prefill_chunk 1 .. 4096, got {prefill_chunk}")
    if threads is not None and not 1 <= threads <= 64:
        raise ArgumentError(f"[plan] expected threads 1 .. 64, got {threads}")
    if kv_dtype is not None and kv_dtype not in KV_DTYPES:
        names = ", ".join(dtype.value for dtype in KV_DTYPES[:-1])
        raise ArgumentError(
            f"[plan] expected kv_dtype {names} or {KV_DTYPES[-1].value}, got {str(kv_dtype)!r}"
        )
    kv_dtypes = AUTOMATIC_KV_DTYPES if kv_dtype is None else (DType(kv_dtype),)
    cap = max(context, 1) if has_state else CHUNKS[0]
    chunks = [prefill_chunk] if prefill_chunk else sorted({min(c, cap) for c in CHUNKS})[::-1]

    planner = _Planner(graph, profile, tokenizer_bytes, threads, head_dtype or STORED)
    candidates = [(kv, chunk) for kv in kv_dtypes for chunk in chunks]
    for kv, chunk in candidates:
        plan = planner.build(context, chunk, kv)
        if plan.budget.needed <= plan.budget.allowed:
            return plan
    raise planner.over_budget(context, *candidates[-1])


class _Planner:
    def __init__(
        self,
        graph: Graph,
        profile: Profile,
        tokenizer_bytes: int,
        threads: int | None,
        head_dtype: str,
    ) -> None:
        self.graph = graph
        self.profile = profile
        self.tokenizer_bytes = tokenizer_bytes
        self.head_dtype = head_dtype
        packed = packed_heads(graph, head_dtype)
        self.lowered = lower(graph, packed)
        self.weights = _place_weights(graph, packed)
        self.threads = threads or self._default_threads()

    def build(self, context: int, chunk: int, kv_dtype: DType) -> Plan:
        arena, arena_bytes = _place_arena(self.lowered, chunk)
        state: dict[str, int] = {}
        state_bytes = 0
        for tensor in self.graph.states():
            state[tensor.name] = state_bytes
            heads, _, head_dim = tensor.shape
            size = _engine.kv_cache_bytes(kv_dtype.engine_code, heads, head_dim, context)
            state_bytes += round_up(size, ALIGNMENT)
        last = self.weights[-1]
        report = BudgetReport(
            {
                "arena": arena_bytes,
                "kv_cache": state_bytes,
                "fixed": self._fixed_bytes(),
                "interpreter": INTERPRETER_BYTES,
            },
            last.offset + last.bytes,
            self.profile.private_bytes,
        )
        return Plan(
            self.profile.name,
            context,
            chunk,
            kv_dtype,
            self.head_dtype,
            self.threads,
            self.lowered,
            arena,
            state,
            arena_bytes,
            state_bytes,
            self.weights,
            report,
        )

    def over_budget(self, context: int, kv_dtype: DType, chunk: int) -> BudgetExceeded:
        """Describe the smallest plan tried, and what would fit instead."""
        budget = self.build(context, chunk, kv_dtype).budget
        low, high = 0, context  # low fits (or is 0), high does not
        while high - low > 1:
            middle = (low + high) // 2
            attempt = self.build(middle, chunk, kv_dtype).budget
            low, high = (middle, high) if attempt.needed <= attempt.allowed else (low, middle)
        advice = (
            f"a context of {low} would fit"
            if low
            else "no context fits: the model needs a device with more private memory"
        )
        for smaller in KV_DTYPES[KV_DTYPES.index(kv_dtype) + 1 :]:
            attempt = self.build(context, chunk, smaller).budget
            if attempt.needed <= attempt.allowed:
                advice = f"an {smaller.value} KV cache (--kv-dtype) would fit, and {advice}"
                break
        breakdown = ", ".join(f"{name} {_mb(size)}" for name, size in budget.classes.items())
        return BudgetExceeded(
            f"[plan] {self.graph.info.name!r} needs {_mb(budget.needed)} of private memory on "
            f"{self.profile.name}, {_mb(budget.needed - budget.allowed)} over the allowed "
            f"{_mb(budget.allowed)} (context {context}, {kv_dtype.value} KV cache, prefill chunk "
            f"{chunk}: {breakdown}); {advice}",
            needed=budget.needed,
            allowed=budget.allowed,
            breakdown=budget.classes,
        )

    def _fixed_bytes(self) -> int:
        instructions = len(self.lowered.instructions)
        vocab = self.graph.info.vocab_size
        engine = instructions * (128 + 64 + 4) + 16 * 1024
        tokens = vocab * (SAMPLER_BYTES_PER_TOKEN + 4)  # and one row of logits
        tokenizer = TOKENIZER_BYTES if self.tokenizer_bytes else 0
        return engine + tokens + tokenizer + (self.threads - 1) * THREAD_BYTES

    def _default_threads(self) -> int:
        macs = [
            tensor.shape[0] * tensor.shape[1]
            for tensor in self.graph.constants()
            if tensor.dtype is DType.TERNARY
        ]
        worthwhile = bool(macs) and max(macs) >= MACS_PER_PHASE_FOR_THREADS
        return self.profile.default_threads if worthwhile else 1


def _place_weights(graph: Graph, packed: Mapping[str, DType]) -> tuple[WeightSlot, ...]:
    """Lay constants out in order of use, each 64-byte aligned."""
    slots: list[WeightSlot] = []
    end = 0
    for tensor in graph.constants():
        dtype = packed.get(tensor.name, tensor.dtype)
        size = tensor_bytes(dtype.value, tensor.shape)
        slots.append(WeightSlot(tensor.name, dtype, tensor.shape, end, size))
        end += round_up(size, ALIGNMENT)
    return tuple(slots)


def _place_arena(lowered: Lowered, chunk: int) -> tuple[dict[str, int], int]:
    """Assign offsets so that buffers alive at the same time never overlap.

    Largest first, each at the lowest gap left by the buffers whose lifetimes touch its own.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for index, instruction in enumerate(lowered.instructions):
        for operand in instruction.operands.values():
            if operand.region == "arena":
                first.setdefault(operand.name, index)
                last[operand.name] = index
    size = {name: round_up(lowered.row_bytes[name] * chunk, ALIGNMENT) for name in first}
    placed: list[str] = []
    offset: dict[str, int] = {}
    for name in sorted(first, key=lambda n: (-size[n], first[n], n)):
        neighbours = sorted(
            (offset[other], offset[other] + size[other])
            for other in placed
            if first[other] <= last[name] and first[name] <= last[other]
        )
        offset[name] = _lowest_gap(neighbours, size[name])
        placed.append(name)
    return offset, max((offset[n] + size[n] for n in placed), default=0)


def _lowest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    position = 0
    for begin, end in taken:
        if begin - position >= size:
            break
        position = max(position, end)
    return position


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.1f} MB"
