# SPDX-License-Identifier: MIT
"""A Metal device: its limits, pipelines, buffers and command buffers, in terms of messages."""

from __future__ import annotations

import ctypes
import mmap

from bitnet_edge.errors import DeviceUnsupported
from bitnet_edge.metal.geometry import SIMD
from bitnet_edge.metal.objc import Runtime, Size
from bitnet_edge.metal.shader_library import kernels, source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitnet_edge.metal.encoder import Dispatch

__all__ = ["PAGE", "Device"]

PAGE = mmap.PAGESIZE  # of a buffer without copy: 16 KiB on every Apple GPU of ours
SHARED = 0  # MTLResourceStorageModeShared, hazards tracked by default
LANGUAGE_3_0 = 3 << 16  # MTLLanguageVersion3_0
SAFE_MATH = 0  # MTLMathModeSafe
APPLE7 = 1007  # MTLGPUFamilyApple7: A14, M1
CONCURRENT = 1  # MTLDispatchTypeConcurrent
BUFFERS = 1  # MTLBarrierScopeBuffers
FAILED = 5  # MTLCommandBufferStatusError
POINTER = ctypes.c_void_p
WORD = ctypes.c_size_t
YES, NO = ctypes.c_bool(True), ctypes.c_bool(False)


class Device:
    """The system's default GPU.

    Attributes
    ----------
    name : str
    matrix : bool
        Whether it multiplies 8 x 8 matrices in simdgroups (Apple7 and later).
    largest_buffer : int

    Raises
    ------
    DeviceUnsupported
        When there is no GPU, or none that our shaders may run on.
    """

    def __init__(self, runtime: Runtime | None = None) -> None:
        self._runtime = runtime or Runtime()
        self._device = self._runtime.default_device()
        if not self._device:
            raise DeviceUnsupported("[metal] this system names no Metal device")
        self.name = self._text(self._send(self._device, "name", returns=POINTER))
        self.matrix = bool(
            self._send(self._device, "supportsFamily:", APPLE7, returns=ctypes.c_bool)
        )
        if not self.matrix:  # simd_shuffle and simd_sum too are of this family
            raise DeviceUnsupported(f"[metal] expected Apple7 (A14, M1) or later, got {self.name}")
        self.largest_buffer = int(self._send(self._device, "maxBufferLength", returns=WORD))
        self._queue = self._send(self._device, "newCommandQueue", returns=POINTER)
        self._libraries: dict[str, int] = {}
        self._pipelines: dict[str, int] = {}

    def _send(
        self, receiver: int, selector: str, *arguments: object, returns: type | None = None
    ) -> int:
        value: int = self._runtime.send(receiver, selector, *arguments, returns=returns)
        return value

    def _text(self, string: int) -> str:
        raw: object = self._send(string, "UTF8String", returns=ctypes.c_char_p)
        return raw.decode() if isinstance(raw, bytes) else ""

    def _string(self, text: str) -> int:
        string = self._runtime.named_class("NSString")
        raw = ctypes.c_char_p(text.encode())
        return self._send(string, "stringWithUTF8String:", raw, returns=POINTER)

    def _checked(self, what: str, receiver: int, selector: str, *arguments: object) -> int:
        """Send a message whose last argument is an NSError**."""
        error = POINTER(0)
        made = self._send(receiver, selector, *arguments, ctypes.pointer(error), returns=POINTER)
        if not made:
            reason = "no reason given"
            if error.value:
                description = self._send(error.value, "localizedDescription", returns=POINTER)
                reason = self._text(description)
            raise DeviceUnsupported(f"[metal] {what}: {reason}")
        return made

    # -- pipelines --------------------------------------------------------------------------

    def pipeline(self, kernel: str) -> int:
        """Return the pipeline of a kernel, compiled at its first use.

        Raises
        ------
        DeviceUnsupported
            When it does not compile, or its simdgroups have not 32 threads.
        """
        if kernel not in self._pipelines:
            file = kernels()[kernel].file
            name = self._string(kernel)
            function = self._send(
                self._library(file), "newFunctionWithName:", name, returns=POINTER
            )
            made = self._checked(
                kernel, self._device, "newComputePipelineStateWithFunction:error:", function
            )
            width = self._send(made, "threadExecutionWidth", returns=WORD)
            if width != SIMD:
                raise DeviceUnsupported(
                    f"[metal] expected simdgroups of {SIMD} threads, got {width}"
                )
            self._pipelines[kernel] = made
        return self._pipelines[kernel]

    def _library(self, file: str) -> int:
        if file not in self._libraries:
            options = self._runtime.named_class("MTLCompileOptions")
            options = self._send(options, "new", returns=POINTER)
            self._send(options, "setLanguageVersion:", LANGUAGE_3_0)
            # Fast maths would reassociate sums: the numerics forbid it.
            self._send(options, "setFastMathEnabled:", NO)
            selector = ctypes.c_void_p(self._runtime.selector("setMathMode:"))
            if self._send(options, "respondsToSelector:", selector, returns=ctypes.c_bool):
                self._send(options, "setMathMode:", SAFE_MATH)
            text = self._string(source(file))
            self._libraries[file] = self._checked(
                file, self._device, "newLibraryWithSource:options:error:", text, options
            )
        return self._libraries[file]

    # -- buffers ----------------------------------------------------------------------------

    def buffer(self, size: int) -> tuple[int, int]:
        """Return a shared buffer and its address.

        Raises
        ------
        DeviceUnsupported
            When the device refuses the size.
        """
        made = self._send(
            self._device, "newBufferWithLength:options:", max(size, 16), SHARED, returns=POINTER
        )
        if not made:
            raise DeviceUnsupported(f"[metal] no buffer of {size} bytes on {self.name}")
        return made, self._send(made, "contents", returns=POINTER)

    def wrap(self, address: int, size: int) -> int:
        """Return a buffer over memory that exists, from the start of a page.

        Raises
        ------
        DeviceUnsupported
            When it is too large for one buffer, or the device refuses it.
        """
        length = -(-size // PAGE) * PAGE
        made = 0
        if address % PAGE == 0 and length <= self.largest_buffer:
            made = self._send(
                self._device,
                "newBufferWithBytesNoCopy:length:options:deallocator:",
                address,
                length,
                SHARED,
                0,
                returns=POINTER,
            )
        if not made:
            raise DeviceUnsupported(
                f"[metal] cannot map {length} bytes at {address:#x}: expected whole pages, at most "
                f"{self.largest_buffer} bytes"
            )
        return made

    def release(self, made: int) -> None:
        """Give a buffer or command buffer back."""
        self._send(made, "release")

    # -- passes -----------------------------------------------------------------------------

    def encode(self, dispatches: Sequence[Dispatch], buffers: dict[tuple[str, int], int]) -> int:
        """Return a command buffer of one forward pass, ready to commit."""
        pool = self._runtime.push_pool()
        commands = self._send(self._queue, "commandBuffer", returns=POINTER)
        self._send(commands, "retain", returns=POINTER)
        encoder = self._send(
            commands, "computeCommandEncoderWithDispatchType:", CONCURRENT, returns=POINTER
        )
        for dispatch in dispatches:
            made = dispatch.geometry
            if dispatch.barrier:
                self._send(encoder, "memoryBarrierWithScope:", BUFFERS)
            self._send(encoder, "setComputePipelineState:", self.pipeline(made.kernel))
            params = ctypes.c_char_p(dispatch.params)
            self._send(encoder, "setBytes:length:atIndex:", params, len(dispatch.params), 0)
            for b in dispatch.bindings:
                bound = buffers[b.region, b.port]
                self._send(encoder, "setBuffer:offset:atIndex:", bound, b.offset, b.index)
            for index, size in enumerate(made.memory):
                self._send(encoder, "setThreadgroupMemoryLength:atIndex:", size, index)
            self._send(
                encoder,
                "dispatchThreadgroups:threadsPerThreadgroup:",
                Size(*made.groups),
                Size(made.threads, 1, 1),
            )
        self._send(encoder, "endEncoding")
        self._runtime.pop_pool(pool)
        return commands

    def commit(self, commands: int) -> None:
        """Start a command buffer; the GPU runs it while Python goes on."""
        self._send(commands, "commit")

    def wait(self, commands: int) -> None:
        """Wait for the end of a committed command buffer and release it.

        Raises
        ------
        DeviceUnsupported
            When the GPU reports an error.
        """
        self._send(commands, "waitUntilCompleted")
        status = self._send(commands, "status", returns=WORD)
        reason = ""
        if status == FAILED:
            error = self._send(commands, "error", returns=POINTER)
            reason = self._text(self._send(error, "localizedDescription", returns=POINTER))
        self.release(commands)
        if status == FAILED:
            raise DeviceUnsupported(f"[metal] the GPU failed: {reason}")
