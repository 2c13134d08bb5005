# SPDX-License-Identifier: MIT
"""What a choice costs in bytes: weights, arena, KV cache, tokenizer, engine, interpreter.

Private memory has five classes (weights are clean file pages and cost none):

* *arena*: activations of one run, offsets by liveness;
* *kv_cache*: keys and values of the whole context;
* *tokenizer*: its handle; the vocabulary stays in the file;
* *engine*: the program's records, sampler, one row of logits, stacks of the threads;
* *interpreter*: the baseline of a Python process with the runtime imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bitnet_edge import _engine
from bitnet_edge.container import tensor_bytes
from bitnet_edge.dtypes import DType
from bitnet_edge.graph import Graph
from bitnet_edge.head_packing import packed_heads
from bitnet_edge.head_screen import Screen, screened_heads
from bitnet_edge.lowering import Lowered, lower
from bitnet_edge.memory import THREAD_BYTES
from bitnet_edge.packing import round_up

__all__ = ["STREAM_BYTES", "BudgetReport", "Footprint", "WeightSlot"]

ALIGNMENT = 64
# CPython 3.11 with the runtime imported: about 6 MB of dirty pages and 5 MB of its own clean ones,
# which count where no other process maps them (tests/unit/test_runtime.py keeps it honest).
INTERPRETER_BYTES = 11 * 1024 * 1024
TOKENIZER_BYTES = 4096
SAMPLER_BYTES_PER_TOKEN = 8
# Weight pages that a streamed pass keeps: what is read ahead, the step in hand, the system's own
# read-ahead (engine/residency.h).
STREAM_BYTES = 24 * 1024 * 1024
RECORD_BYTES = 128  # of an instruction in the program section


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
    resident : int
        Bytes of private memory and of the weight pages that are kept.
    resident_allowed : int or None
        Of those, what the profile grants; None: all there is.
    """

    classes: Mapping[str, int]
    weights: int
    allowed: int
    resident: int
    resident_allowed: int | None

    @property
    def needed(self) -> int:
        """Bytes of private memory."""
        return sum(self.classes.values())

    @property
    def over(self) -> int:
        """Bytes beyond what is allowed; 0 where the plan fits."""
        return max(0, self.needed - self.allowed)

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


class Footprint:
    """Bytes of one graph with one head dtype, for any context, chunk, KV dtype and threads.

    Arenas are placed once per chunk, the costly part of planning.

    Parameters
    ----------
    graph : Graph
    head_dtype : str
        One of `head_packing.HEAD_DTYPES`.
    tokenizer_bytes : int
        Size of the tokenizer section, 0 without one.
    sinks_seen_from : int, optional
        As for `bitnet_edge.lowering.lower`.

    Raises
    ------
    ArgumentError
        For a head dtype that the graph cannot have.
    UnsupportedOp
        When the graph has no lowering.
    """

    def __init__(
        self,
        graph: Graph,
        head_dtype: str,
        tokenizer_bytes: int = 0,
        sinks_seen_from: int | None = None,
    ) -> None:
        packed = packed_heads(graph, head_dtype)
        self.graph = graph
        screens = screened_heads(graph, head_dtype)
        self.lowered = lower(graph, packed, screens, sinks_seen_from)
        self.weights = _place_weights(graph, packed, screens)
        self.tokenizer_bytes = tokenizer_bytes
        self._arenas: dict[int, tuple[Mapping[str, int], int]] = {}

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights section."""
        last = self.weights[-1]
        return last.offset + last.bytes

    @cached_property
    def package_bytes(self) -> int:
        """Bytes of the file, but for its header and the gaps between sections."""
        graph = len(json.dumps(self.graph.to_json(), separators=(",", ":")))
        program = len(self.lowered.instructions) * RECORD_BYTES
        return self.weights_bytes + self.tokenizer_bytes + graph + program

    def arena(self, chunk: int) -> tuple[Mapping[str, int], int]:
        """Return buffer -> byte offset, and the arena's bytes, for runs of ``chunk`` tokens."""
        if chunk not in self._arenas:
            self._arenas[chunk] = _place_arena(self.lowered, chunk)
        return self._arenas[chunk]

    def state(self, kv_dtype: DType, rows: int) -> tuple[Mapping[str, int], int]:
        """Return KV cache tensor -> byte offset, and the bytes of all, for caches of some rows."""
        offsets: dict[str, int] = {}
        end = 0
        for tensor in self.graph.states():
            offsets[tensor.name] = end
            heads, _, head_dim = tensor.shape
            size = _engine.kv_cache_bytes(kv_dtype.engine_code, heads, head_dim, rows)
            end += round_up(size, ALIGNMENT)
        return offsets, end

    def classes(self, rows: int, chunk: int, kv_dtype: DType, threads: int) -> dict[str, int]:
        """Return the private bytes of each class."""
        return {
            "arena": self.arena(chunk)[1],
            "kv_cache": self.state(kv_dtype, rows)[1],
            "tokenizer": TOKENIZER_BYTES if self.tokenizer_bytes else 0,
            "engine": self._engine_bytes(threads),
            "interpreter": INTERPRETER_BYTES,
        }

    def _engine_bytes(self, threads: int) -> int:
        records = len(self.lowered.instructions) * (RECORD_BYTES + 64 + 4) + 16 * 1024
        tokens = self.graph.info.vocab_size * (SAMPLER_BYTES_PER_TOKEN + 4)  # a row of logits: 4
        return records + tokens + (threads - 1) * THREAD_BYTES


def _place_weights(
    graph: Graph, packed: Mapping[str, DType], screens: Mapping[str, Screen]
) -> tuple[WeightSlot, ...]:
    """Lay constants out in order of use, each 64-byte aligned; last, what screens them."""
    stored = [
        (tensor.name, packed.get(tensor.name, tensor.dtype), tensor.shape)
        for tensor in graph.constants()
    ]
    for name, screen in screens.items():
        shape = graph.tensors[name].shape
        stored.append((screen.codes, screen.dtype, shape))
        stored.append((screen.bounds, DType.F32, (2, shape[0])))
    slots: list[WeightSlot] = []
    end = 0
    for name, dtype, shape in stored:
        size = tensor_bytes(dtype.value, shape)
        slots.append(WeightSlot(name, dtype, shape, end, size))
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
