# SPDX-License-Identifier: MIT
"""A Metal for Linux, message by message: records every encode, checks it, and runs it in the
simulator when the command buffer is committed.

What it refuses is what Apple's validation layer, the shaders' headers or the memory model refuse:
misaligned or overrun buffers, threadgroups beyond a pipeline's limits, unbound arguments, wrong
lengths, use after release, and dispatches that touch each other's bytes with no barrier between.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitnet_edge.metal import shader_library
from bitnet_edge.metal.shader_library import Kernel
from tests.metal.simulator import Launch, Simulator

PAGE = mmap.PAGESIZE


class ValidationError(AssertionError):
    """What Metal's validation layer would stop the process for."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValidationError(message)


@dataclass
class Object:
    """Anything with an address; ``references`` counts what the caller owns."""

    kind: str
    references: int = 1
    value: Any = None


@dataclass
class MetalBuffer(Object):
    address: int = 0
    length: int = 0
    writable: bool = True


@dataclass
class Recorded:
    """A dispatch as it was encoded."""

    kernel: Kernel
    params: bytes
    buffers: dict[int, tuple[MetalBuffer, int]]
    memory: dict[int, int]
    groups: tuple[int, int, int]
    threads: tuple[int, int, int]
    barrier: bool


@dataclass
class Commands(Object):
    dispatches: list[Recorded] = field(default_factory=list)
    ended: bool = False
    status: int = 0
    # of the encoder
    pipeline: Kernel | None = None
    params: bytes = b""
    buffers: dict[int, tuple[MetalBuffer, int]] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)
    barrier: bool = False


class FakeMetal:
    """Stands in for `bitnet_edge.metal.objc.Runtime`."""

    def __init__(
        self,
        simulator: Simulator | None = None,
        *,
        apple7: bool = True,
        width: int = 32,
        devices: int = 1,
        largest: int = 1 << 30,
        most_threads: int = 1024,
        compile_error: str = "",
        gpu_error: str = "",
        old_system: bool = False,
    ) -> None:
        self.simulator = simulator
        self.apple7 = apple7
        self.width = width
        self.devices = devices
        self.largest = largest
        self.most_threads = most_threads
        self.compile_error = compile_error
        self.gpu_error = gpu_error
        self.old_system = old_system
        self.objects: dict[int, Object] = {}
        self.committed: list[Commands] = []
        self.compiled: list[str] = []
        self.pools = 0
        self.log: list[str] = []

    # -- what Runtime has -------------------------------------------------------------------

    def default_device(self) -> int:
        return self.add(Object("device")) if self.devices else 0

    def named_class(self, name: str) -> int:
        return self.add(Object("class", value=name))

    def selector(self, name: str) -> int:
        return self.add(Object("selector", value=name))

    def push_pool(self) -> int:
        self.pools += 1
        return self.pools

    def pop_pool(self, pool: int) -> None:
        require(pool == self.pools, "autorelease pools end in order")
        self.pools -= 1

    def send(
        self, receiver: int, selector: str, *arguments: Any, returns: type | None = None
    ) -> Any:
        require(receiver in self.objects, f"{selector} to {receiver:#x}, which was released")
        target = self.objects[receiver]
        require(
            selector.count(":") == len(arguments), f"{selector} with {len(arguments)} arguments"
        )
        self.log.append(selector)
        method = getattr(self, f"{target.kind}_" + selector.replace(":", "_").rstrip("_"))
        return method(target, *arguments)

    # -- objects ----------------------------------------------------------------------------

    def add(self, made: Object) -> int:
        address = 0x1000 + 16 * (len(self.objects) + 1)
        while address in self.objects:
            address += 16
        self.objects[address] = made
        return address

    def release_object(self, target: Object) -> None:
        target.references -= 1
        if target.references == 0:
            self.objects = {a: o for a, o in self.objects.items() if o is not target}

    def alive(self, kind: str) -> int:
        return sum(made.kind == kind for made in self.objects.values())

    def class_stringWithUTF8String(self, target: Object, text: ctypes.c_char_p) -> int:
        assert target.value == "NSString" and text.value is not None
        return self.add(Object("string", value=text.value.decode()))

    def class_new(self, target: Object) -> int:
        return self.add(Object("options", value={}))

    def string_UTF8String(self, target: Object) -> bytes:
        return target.value.encode()

    def options_setLanguageVersion(self, target: Object, version: int) -> None:
        target.value["language"] = version

    def options_setFastMathEnabled(self, target: Object, enabled: ctypes.c_bool) -> None:
        target.value["fast"] = enabled.value

    def options_respondsToSelector(self, target: Object, selector: ctypes.c_void_p) -> bool:
        assert self.objects[selector.value or 0].value == "setMathMode:"
        return not self.old_system

    def options_setMathMode(self, target: Object, mode: int) -> None:
        require(not self.old_system, "unrecognised selector setMathMode:")
        target.value["mode"] = mode

    # -- device -----------------------------------------------------------------------------

    def device_name(self, target: Object) -> int:
        return self.add(Object("string", value="Fake M1"))

    def device_supportsFamily(self, target: Object, family: int) -> bool:
        return family < 1007 or (family == 1007 and self.apple7)

    def device_maxBufferLength(self, target: Object) -> int:
        return self.largest

    def device_newCommandQueue(self, target: Object) -> int:
        return self.add(Object("queue"))

    def device_newBufferWithLength_options(self, target: Object, length: int, options: int) -> int:
        require(options == 0 and length > 0, "expected a shared buffer of some bytes")
        if length > self.largest:
            return 0
        memory = np.full(length + PAGE, 0xA5, np.uint8)
        start = -memory.ctypes.data % PAGE
        made = MetalBuffer("buffer", 1, memory, memory.ctypes.data + start, length)
        return self.add(made)

    def device_newBufferWithBytesNoCopy_length_options_deallocator(
        self, target: Object, address: int, length: int, options: int, deallocator: int
    ) -> int:
        require(address % PAGE == 0, f"no-copy address {address:#x} is not on a page")
        require(length % PAGE == 0, f"no-copy length {length} is not whole pages")
        require((options, deallocator) == (0, 0), "expected a shared buffer that we keep")
        return self.add(MetalBuffer("buffer", 1, None, address, length, writable=False))

    def device_newLibraryWithSource_options_error(
        self, target: Object, text: int, options: int, error: Any
    ) -> int:
        chosen = self.objects[options].value
        require(chosen.get("fast") is False, "fast maths is on")
        require(self.old_system or chosen.get("mode") == 0, "the maths mode is not safe")
        require(chosen.get("language") == 3 << 16, "expected MSL 3.0")
        code = self.objects[text].value
        require('#include "' not in code, "a library from source has no headers of ours")
        if self.compile_error:
            return self.failed(error, self.compile_error)
        parsed = shader_library.parse(code, "source")
        self.compiled += [kernel.name for kernel in parsed]
        return self.add(Object("library", value={kernel.name: kernel for kernel in parsed}))

    def failed(self, error: Any, reason: str) -> int:
        error.contents.value = self.add(Object("error", value=reason))
        return 0

    def error_localizedDescription(self, target: Object) -> int:
        return self.add(Object("string", value=target.value))

    def library_newFunctionWithName(self, target: Object, name: int) -> int:
        return self.add(Object("function", value=target.value[self.objects[name].value]))

    def device_newComputePipelineStateWithFunction_error(
        self, target: Object, function: int, error: Any
    ) -> int:
        return self.add(Object("pipeline", value=self.objects[function].value))

    def pipeline_threadExecutionWidth(self, target: Object) -> int:
        return self.width

    def buffer_contents(self, target: MetalBuffer) -> int:
        return target.address

    def buffer_release(self, target: Object) -> None:
        self.release_object(target)

    # -- command buffers --------------------------------------------------------------------

    def queue_commandBuffer(self, target: Object) -> int:
        require(self.pools > 0, "commandBuffer is autoreleased: no pool")
        return self.add(Commands("commands", 0))

    def commands_retain(self, target: Commands) -> int:
        target.references += 1
        return next(a for a, o in self.objects.items() if o is target)

    def commands_release(self, target: Commands) -> None:
        self.release_object(target)

    def commands_computeCommandEncoderWithDispatchType(self, target: Commands, kind: int) -> int:
        require(kind == 1, "expected a concurrent encoder")
        return self.add(Object("encoder", value=target))

    def encoder_memoryBarrierWithScope(self, target: Object, scope: int) -> None:
        require(scope == 1, "expected a barrier of buffers")
        target.value.barrier = True

    def encoder_setComputePipelineState(self, target: Object, pipeline: int) -> None:
        target.value.pipeline = self.objects[pipeline].value
        target.value.buffers = {}
        target.value.memory = {}

    def encoder_setBytes_length_atIndex(
        self, target: Object, data: ctypes.c_char_p, length: int, index: int
    ) -> None:
        require(index == 0 and length <= 4096, "expected at most 4 KB at index 0")
        target.value.params = ctypes.string_at(data, length)

    def encoder_setBuffer_offset_atIndex(
        self, target: Object, buffer: int, offset: int, index: int
    ) -> None:
        require(buffer in self.objects, "the buffer was released")
        bound = self.objects[buffer]
        assert isinstance(bound, MetalBuffer)
        require(offset % 4 == 0, f"offset {offset} is not aligned to 4 bytes")
        require(0 <= offset < bound.length, f"offset {offset} is outside {bound.length} bytes")
        target.value.buffers[index] = (bound, offset)

    def encoder_setThreadgroupMemoryLength_atIndex(
        self, target: Object, length: int, index: int
    ) -> None:
        require(length % 16 == 0 and length > 0, f"threadgroup memory of {length} bytes")
        target.value.memory[index] = length

    def encoder_dispatchThreadgroups_threadsPerThreadgroup(
        self, target: Object, groups: Any, threads: Any
    ) -> None:
        commands: Commands = target.value
        kernel = commands.pipeline
        require(kernel is not None, "no pipeline is set")
        assert kernel is not None
        count = threads.width * threads.height * threads.depth
        require(count <= self.most_threads, f"{kernel.name}: {count} threads")
        require(count % 32 == 0, f"{kernel.name}: {count} threads are no whole simdgroups")
        require(groups.width * groups.height * groups.depth > 0, f"{kernel.name}: an empty grid")
        require(sum(commands.memory.values()) <= 32768, f"{kernel.name}: threadgroup memory")
        require(
            set(commands.memory) == {index for index, _, _ in kernel.threadgroup},
            f"{kernel.name}: threadgroup memory at {sorted(commands.memory)}",
        )
        require(
            set(commands.buffers) == {b.index for b in kernel.buffers},
            f"{kernel.name}: buffers at {sorted(commands.buffers)}",
        )
        require(
            len(commands.params) == 4 * len(kernel.fields), f"{kernel.name}: parameters' length"
        )
        for buffer in kernel.buffers:
            bound, _ = commands.buffers[buffer.index]
            require(
                bound.writable or not buffer.writable,
                f"{kernel.name}: writes {buffer.name} in the mapped file",
            )
        commands.dispatches.append(
            Recorded(
                kernel,
                commands.params,
                dict(commands.buffers),
                dict(commands.memory),
                (groups.width, groups.height, groups.depth),
                (threads.width, threads.height, threads.depth),
                commands.barrier,
            )
        )
        commands.barrier = False

    def encoder_endEncoding(self, target: Object) -> None:
        target.value.ended = True

    def commands_commit(self, target: Commands) -> None:
        require(target.ended and target.status == 0, "committed before the end, or twice")
        target.status = 2
        self.committed.append(target)
        if self.simulator is not None:
            self.run(target, self.simulator)

    def run(self, commands: Commands, simulator: Simulator) -> None:
        """Run every dispatch and require a barrier wherever one touches what another writes."""
        since: list[tuple[str, dict[int, Any]]] = []
        for recorded in commands.dispatches:
            touched = self.execute(recorded, simulator)
            if recorded.barrier:
                since = []
            for name, earlier in since:
                for address in touched.keys() & earlier.keys():
                    mine, theirs = touched[address], earlier[address]
                    clash = np.flatnonzero(((mine | theirs) & 2 != 0) & (mine != 0) & (theirs != 0))
                    require(
                        not clash.size,
                        f"hazard: {recorded.kernel.name} and {name}, byte {clash[:1]}, no barrier",
                    )
            since.append((recorded.kernel.name, touched))

    def execute(self, recorded: Recorded, simulator: Simulator) -> dict[int, Any]:
        """Run a dispatch that may see each buffer from its offset to its end, as on a GPU; return
        what it touched of each buffer that may be written."""
        touched: dict[int, Any] = {}
        buffers, marks = {}, {}
        for buffer in recorded.kernel.buffers:
            bound, offset = recorded.buffers[buffer.index]
            raw = (ctypes.c_ubyte * (bound.length - offset)).from_address(bound.address + offset)
            buffers[buffer.name] = np.frombuffer(raw, np.uint8)
            if bound.writable:
                whole = touched.setdefault(bound.address, np.zeros(bound.length, np.uint8))
                marks[buffer.name] = whole[offset:]
        memory = [recorded.memory[i] for i in sorted(recorded.memory)]
        params = _unpack(recorded.kernel, recorded.params)
        simulator.run(
            Launch(
                recorded.kernel.name,
                recorded.groups,
                recorded.threads,
                buffers,
                params,
                memory,
                "reverse",
                touched=marks,
            )
        )
        return touched

    def commands_waitUntilCompleted(self, target: Commands) -> None:
        require(target.status == 2, "waits for what was never committed")
        target.status = 5 if self.gpu_error else 4

    def commands_status(self, target: Commands) -> int:
        return target.status

    def commands_error(self, target: Commands) -> int:
        return self.add(Object("error", value=self.gpu_error))


def _unpack(kernel: Kernel, raw: bytes) -> dict[str, float]:
    letters = {"uint": "I", "int": "i", "float": "f"}
    values = struct.unpack("<" + "".join(letters[kind] for _, kind in kernel.fields), raw)
    return dict(zip((name for name, _ in kernel.fields), values, strict=True))
