# SPDX-License-Identifier: MIT
"""A session on the GPU, with the methods of the engine's: one command buffer a forward pass.

Weights are bound where they are mapped, without a copy; arena, KV cache and ports are buffers that
both sides see. While the GPU runs one token the next one's pass is encoded: only its id is missing.
"""

from __future__ import annotations

import ctypes
import logging

from bitnet_edge.errors import ArgumentError, BudgetExceeded, DeviceUnsupported
from bitnet_edge.metal.device import Device
from bitnet_edge.metal.encoder import encode, moved

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bitnet_edge._engine import Program, Sampler
    from bitnet_edge.metal.encoder import Dispatch

__all__ = ["DEVICES", "Session", "estimate", "open_session"]

DEVICES = ("cpu", "metal", "auto")
log = logging.getLogger("bitnet_edge.metal")

# What `auto` reckons with: published or guessed, not measured by us; `doctor --metal` measures.
GPU_BYTES_PER_SECOND = 50e9  # of an M1's or A17's 51-68e9
GPU_PASS_SECONDS = 150e-6  # commit, start and wait
GPU_DISPATCH_SECONDS = 4e-6  # of a small kernel and its barrier
CPU_BYTES_PER_SECOND = 15e9  # two or so performance cores on P16


def estimate(weight_bytes: int, dispatches: int) -> tuple[float, float]:
    """Return the seconds that a decoded token takes on the CPU and on the GPU, by rule of thumb."""
    gpu = GPU_PASS_SECONDS + dispatches * GPU_DISPATCH_SECONDS
    return weight_bytes / CPU_BYTES_PER_SECOND, gpu + weight_bytes / GPU_BYTES_PER_SECOND


def open_session(
    program: Program, wanted: str, budget: int, private: int, device: Device | None = None
) -> Session | None:
    """Return a session on the GPU, or None where the CPU is to run the program.

    Parameters
    ----------
    program : Program
    wanted : str
        ``metal`` insists; ``auto`` takes the faster by `estimate`, the CPU where the GPU cannot.
    budget, private : int
        Bytes allowed, and needed without the weights. Metal is said to wire the pages of a buffer
        at its first use, so the weights count as resident until a Mac has measured otherwise.
    device : Device, optional
        The system's by default.

    Raises
    ------
    ArgumentError
        For an unknown device.
    BudgetExceeded, DeviceUnsupported
        When the GPU is insisted on and cannot.
    """
    if wanted not in DEVICES:
        raise ArgumentError(f"[runtime] expected device {', '.join(DEVICES)}, got {wanted!r}")
    if wanted == "cpu":
        return None
    weights = program.weights[1]
    try:
        device = device or Device()
        if private + weights > budget:
            raise BudgetExceeded(
                f"[metal] the GPU keeps all {weights} bytes of weights resident: "
                f"{private + weights - budget} over the budget of {budget}",
                needed=private + weights,
                allowed=budget,
                breakdown={"private": private, "weights": weights},
            )
        dispatches = len(encode(program, 1, 0, 1, matrix=device.matrix))
        cpu, gpu = estimate(weights, dispatches)
        if wanted == "auto" and cpu <= gpu:
            log.info(
                "CPU: %d bytes of weights are %.2g s there, %.2g s on %s",
                weights,
                cpu,
                gpu,
                device.name,
            )
            return None
        return Session(program, device)
    except (BudgetExceeded, DeviceUnsupported) as error:
        if wanted == "metal":
            raise
        log.info("CPU: %s", error)
        return None


def _vocabulary(program: Program) -> dict[int, int]:
    """Return what the ids of an input must stay below, by port."""
    result: dict[int, int] = {}
    for index in range(program.instruction_count):
        _, _, dims, operands = program.instruction(index)
        if "ids" in operands:
            port = operands["ids"] >> 48 & 0xFF
            result[port] = min(dims["vocab"], result.get(port, dims["vocab"]))
    return result


class Session:
    """Arena, KV cache and ports of one caller on a GPU.

    Parameters
    ----------
    program : Program
    device : Device

    Raises
    ------
    DeviceUnsupported
        When an instruction has no exact shader, or a buffer is refused.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self.program = program
        self.device = device
        self.position = 0
        self._plans: dict[tuple[int, int], list[Dispatch]] = {}
        self._ahead: tuple[int, int] | None = None  # position and command buffer of the next token
        self._running = 0
        self._vocabulary = _vocabulary(program)
        self._buffers: dict[tuple[str, int], int] = {}
        self._memory: dict[tuple[str, int], tuple[int, int]] = {}  # address, bytes
        for kernel in {
            d.geometry.kernel for n in (1, program.max_tokens) for d in self._plan(n, 1)
        }:
            device.pipeline(kernel)  # compiled now, not at the first token
        self._buffers["weights", 0] = device.wrap(*program.weights)
        rows = program.max_tokens
        self._allocate("arena", 0, program.arena_bytes)
        self._allocate("state", 0, program.state_bytes)
        for i, (_, width) in enumerate(program.inputs):
            self._allocate("input", i, 4 * width * rows)
        for i, (_, width) in enumerate(program.outputs):
            self._allocate("output", i, 4 * width * rows)

    def _allocate(self, region: str, port: int, size: int) -> None:
        self._buffers[region, port], address = self.device.buffer(size)
        self._memory[region, port] = address, size

    @property
    def private_bytes(self) -> int:
        """Bytes of the ports, beyond arena and state."""
        return sum(
            size for (region, _), (_, size) in self._memory.items() if region in ("input", "output")
        )

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(address, bytes) of the arena and of the KV cache."""
        return self._memory["arena", 0], self._memory["state", 0]

    @property
    def logits(self) -> Any:
        """The first row of the first output."""
        width = self.program.outputs[0][1]
        return self._view("output", 0, 4 * width).cast("f")

    def _view(self, region: str, port: int, size: int) -> memoryview:
        address = self._memory[region, port][0]
        return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")

    def _plan(self, n_tokens: int, output_rows: int) -> list[Dispatch]:
        """Dispatches at position 0; a pass elsewhere moves them."""
        key = n_tokens, output_rows
        if key not in self._plans:
            if len(self._plans) > 8:  # odd last chunks of prompts
                self._plans.clear()
            self._plans[key] = encode(
                self.program, n_tokens, 0, output_rows, matrix=self.device.matrix
            )
        return self._plans[key]

    def _encode(self, n_tokens: int, position: int, output_rows: int) -> int:
        return self.device.encode(moved(self._plan(n_tokens, output_rows), position), self._buffers)

    # -- running ----------------------------------------------------------------------------

    def run(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        n_tokens: int,
        position: int = 0,
        output_rows: int | None = None,
    ) -> None:
        """Run one pass; as the engine's ``Session.run``.

        Raises
        ------
        ArgumentError
            For rows, a position or ids outside their domain.
        DeviceUnsupported
            When the GPU fails.
        """
        wanted = n_tokens if output_rows is None else output_rows
        self._check(n_tokens, position, wanted)
        for i, data in enumerate(inputs):
            self._put(i, data, n_tokens)
        self._submit(n_tokens, position, wanted)
        self._finish()
        for i, out in enumerate(outputs):
            size = 4 * self.program.outputs[i][1] * wanted
            memoryview(out).cast("B")[:size] = self._view("output", i, size)

    def step(
        self, token: int, position: int, sampler: Sampler | None = None, n_recent: int = 0
    ) -> None:
        """Run one token and leave its logits in `logits`; encode the next meanwhile."""
        self._check(1, position, 1)
        self._put(0, (ctypes.c_int32 * 1)(token), 1)
        self._submit(1, position, 1)
        if position + 2 <= self.program.max_positions:
            self._ahead = position + 1, self._encode(1, position + 1, 1)
        self._finish()

    def prefill(
        self,
        ids: Any,
        position: int,
        last: bool = True,
        sampler: Sampler | None = None,
        n_recent: int = 0,
    ) -> None:
        """Run a chunk of a prompt; logits of its last token when ``last``."""
        count = len(memoryview(ids).cast("B")) // 4
        self._check(count, position, int(last))
        self._put(0, ids, count)
        self._submit(count, position, int(last))
        self._finish()

    def next(self, sampler: Sampler, token: int, position: int, recent: Any = None) -> int:
        """Run a token and pick the next one."""
        self.step(token, position, sampler)
        return self.sample(sampler, recent)

    def sample(self, sampler: Sampler, recent: Any = None) -> int:
        """Pick the next token from `logits`."""
        return sampler.pick(self.logits, recent)

    def _check(self, n_tokens: int, position: int, output_rows: int) -> None:
        program = self.program
        for name, value, low, high in (
            ("n_tokens", n_tokens, 1, program.max_tokens),
            ("output_rows", output_rows, 0, n_tokens),
            ("position", position, 0, self.position),
        ):
            if not low <= value <= high:
                raise ArgumentError(f"[metal] expected {name} {low} .. {high}, got {value}")
        if program.max_positions and position + n_tokens > program.max_positions:
            raise ArgumentError(
                f"[metal] expected at most {program.max_positions} positions, got "
                f"{position + n_tokens}"
            )

    def _put(self, port: int, data: Any, n_tokens: int) -> None:
        size = 4 * self.program.inputs[port][1] * n_tokens
        raw = memoryview(data).cast("B")
        if len(raw) != size:
            raise ArgumentError(f"[metal] expected {size} bytes of input {port}, got {len(raw)}")
        vocab = self._vocabulary.get(port, 0)
        if vocab:
            for t, token in enumerate(raw.cast("i")):
                if not 0 <= token < vocab:
                    raise ArgumentError(f"[metal] expected ids below {vocab}, got {token} at {t}")
        self._view("input", port, size)[:] = raw

    def _submit(self, n_tokens: int, position: int, output_rows: int) -> None:
        commands = 0
        if self._ahead is not None:
            at, encoded = self._ahead
            self._ahead = None
            if (n_tokens, output_rows, position) == (1, 1, at):
                commands = encoded
            else:
                self.device.release(encoded)
        self._running = commands or self._encode(n_tokens, position, output_rows)
        self.device.commit(self._running)
        self.position = position + n_tokens

    def _finish(self) -> None:
        running, self._running = self._running, 0
        self.device.wait(running)

    def __del__(self) -> None:
        """Give the buffers back; the pages of the file stay mapped until then."""
        if self._running:
            self.device.wait(self._running)
        if self._ahead is not None:
            self.device.release(self._ahead[1])
        for made in self._buffers.values():
            self.device.release(made)
