# SPDX-License-Identifier: MIT
"""Speed predicted from a profile: bytes over bandwidth, multiply-adds over peak.

Every instruction takes the longer of two times: reading its weights (or cached keys and values)
from memory, or from storage where they are streamed, and multiplying at the rate below on the
cores of the run. Their sum is the time of a run; what the profile leaves out (heat, other apps,
clocks that fall) makes a device slower than this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bitnet_edge.lowering import Instruction, Lowered
from bitnet_edge.plan_memory import WeightSlot
from bitnet_edge.profiles import Profile

__all__ = ["PROMPT", "Speed", "predict"]

PROMPT = 128  # tokens of the prompt that prefill is predicted for
# Share of the read bandwidth that the kernels reach from memory; measured 0.72 to 0.94 on Zen 3
# and Zen 5 with one and two threads (bench --kernels).
SHARE_OF_READ = 0.8

# Multiply-adds per cycle and core. x86: measured in cache on Zen 5 (bench), but for ternary gemv
# on AVX-512, where the static figure for Zen 4 is taken (Ice Lake 51, Zen 5 measured 79). ARM: by
# static analysis of the ternary kernels on a core with two 128-bit pipes (A72, A76, A715); the
# other columns are half of AVX2's, an estimate from the width of the vectors.
_RATES = {
    #              ternary gemv, gemm, packed head, float head, attention
    "scalar": (0.3, 0.4, 0.7, 0.2, 0.2),
    "avx2": (32, 45, 15, 6, 5.5),
    "avx_vnni": (43, 52, 15, 6, 5.5),
    "avx512_vnni": (63, 113, 27, 6, 7),
    "neon": (8, 8, 7.5, 3, 2.8),
    "dotprod": (16, 32, 7.5, 3, 2.8),
    "i8mm": (16, 64, 7.5, 3, 2.8),
}
# Cores with another number of 128-bit pipes than two, by name. The in-order ones reach 3 of the 8
# multiply-adds of an A72 with NEON; four pipes double the rate (X3: 32 of A76's 16).
_PIPES = (
    (re.compile(r"Cortex-A(53|55|35|510|520)\b"), 0.375),
    (re.compile(r"Cortex-X\d|Firestorm|Avalanche|Everest|A1\d performance"), 2.0),
)
_COLUMNS = {"ternary_linear": 0, "head_linear": 2, "screen_linear": 2, "attention": 4}
_FLOAT_HEAD = 3
# A screened head's exact rows, as a share of all: a guess on the safe side, the text decides it.
_EXACT_SHARE = {"screened_linear": 0.01, "screen_limits": 0.0}
# What each instruction waits when several threads share it; measured on two cores of a Zen 5.
_BARRIER_SECONDS = 0.4e-6
_CYCLES_PER_ELEMENT = 0.8  # of a norm with quantisation; scalar code takes ten times as long


@dataclass(frozen=True)
class Speed:
    """Predicted tokens per second and what binds them.

    Attributes
    ----------
    prefill, decode : float
        Tokens per second: of a prompt of `PROMPT` tokens (or the context, if shorter), and of one
        token after another with half of the context filled.
    prefill_bound, decode_bound : str
        ``memory``, ``storage`` or ``compute``: where most of the time goes.
    """

    prefill: float
    decode: float
    prefill_bound: str
    decode_bound: str

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON-serialisable data."""
        return {
            "prefill_tokens_per_second": round(self.prefill, 3),
            "prefill_bound": self.prefill_bound,
            "decode_tokens_per_second": round(self.decode, 3),
            "decode_bound": self.decode_bound,
        }


def predict(
    lowered: Lowered,
    weights: Sequence[WeightSlot],
    profile: Profile,
    *,
    context: int,
    prefill_chunk: int,
    threads: int,
    state_bytes: int,
    streamed: bool = False,
) -> Speed:
    """Predict the speed of a plan.

    Parameters
    ----------
    lowered : Lowered
    weights : sequence of WeightSlot
    profile : Profile
    context, prefill_chunk, threads : int
        Choices of the plan.
    state_bytes : int
        Of the KV cache, all of it.
    streamed : bool
        Weights come from storage in every run.
    """
    machine = _Machine(profile, threads, streamed)
    works = [_Work(instruction, weights) for instruction in lowered.instructions]
    held = sum(slot.bytes for slot in weights) + state_bytes
    machine.cached = not streamed and held <= (profile.cache_mb or 0) * (1 << 20)
    layers = max(1, sum(work.op == "attention" for work in works))
    kv_bytes = state_bytes / layers / max(1, context)  # of a position, in one layer

    prompt = min(PROMPT, context) if context else PROMPT
    starts = range(0, prompt, prefill_chunk)
    runs = [
        machine.run(works, min(prefill_chunk, prompt - at), at, kv_bytes, last=at == starts[-1])
        for at in starts
    ]
    prefill = {bound: sum(run[bound] for run in runs) for bound in runs[0]}
    decode = machine.run(works, 1, context // 2, kv_bytes, last=True)
    return Speed(
        prompt / sum(prefill.values()),
        1 / sum(decode.values()),
        max(prefill, key=lambda bound: prefill[bound]),
        max(decode, key=lambda bound: decode[bound]),
    )


class _Work:
    """What an instruction reads and multiplies, per token."""

    def __init__(self, instruction: Instruction, weights: Sequence[WeightSlot]) -> None:
        dims = {k: int(v) for k, v in instruction.dims.items() if not isinstance(v, str)}
        names = {o.name for o in instruction.operands.values() if o.region == "weights"}
        self.op = instruction.op
        self.tail = instruction.tail
        share = _EXACT_SHARE.get(self.op, 1) / dims.get("vocab", 1)  # of a table: one row
        self.bytes = sum(slot.bytes for slot in weights if slot.name in names) * share
        self.macs = dims.get("rows", 0) * dims.get("k", 0) * share
        self.attended = 2 * dims["heads"] * dims["head_dim"] if self.op == "attention" else 0
        quantised = self.op in ("rms_norm_quantize", "quantize", "quantize_wide")
        self.elements = dims["width"] if quantised else 0


class _Machine:
    def __init__(self, profile: Profile, threads: int, streamed: bool) -> None:
        self.rates = _RATES[profile.isa[-1]]
        self.barrier = _BARRIER_SECONDS if threads > 1 else 0.0
        self.cached = False
        self.cycles_per_element = _CYCLES_PER_ELEMENT * (10 if profile.isa == ("scalar",) else 1)
        # cycles per second of the run's cores, fastest first, a wider core counted as more
        clocks = [
            (cluster.ghz * 1e9, _pipes(cluster.name))
            for cluster in profile.cores
            for _ in range(cluster.count)
        ][:threads]
        x86 = "avx2" in profile.isa or profile.isa == ("scalar",)
        self.hertz = sum(hertz * (1 if x86 else pipes) for hertz, pipes in clocks)
        # Where one core's share is not known it is taken to draw all: an upper bound.
        most = profile.memory_bandwidth_gbps
        one = profile.memory_bandwidth_one_core_gbps or most
        memory = min(most, one * threads) * 1e9 * SHARE_OF_READ
        storage = profile.storage_read_mbps * 1e6
        self.source = "storage" if streamed and storage < memory else "memory"
        self.bandwidth = min(memory, storage) if streamed else memory
        self.memory = memory

    def run(
        self, works: Iterable[_Work], tokens: int, position: int, kv_bytes: float, *, last: bool
    ) -> dict[str, float]:
        """Return the seconds of one run by what binds them."""
        seconds = {"memory": 0.0, "storage": 0.0, "compute": 0.0}
        for work in works:
            if work.tail and not last:
                continue
            rows = 1 if work.tail else tokens
            attended = work.attended * sum(range(position + 1, position + rows + 1))
            column = _COLUMNS.get(work.op, _FLOAT_HEAD)
            column += column == 0 and rows > 1
            busy = (work.macs * rows + attended) / self.rates[column]
            busy = (busy + work.elements * rows * self.cycles_per_element) / self.hertz
            busy += self.barrier
            read, source = work.bytes / self.bandwidth, self.source
            if work.attended:
                read, source = kv_bytes * (position + rows) / self.memory, "memory"
            if self.cached or busy >= read:
                seconds["compute"] += busy
            else:
                seconds[source] += read
        return seconds


def _pipes(name: str) -> float:
    return next((factor for pattern, factor in _PIPES if pattern.search(name)), 1.0)
