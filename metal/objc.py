# SPDX-License-Identifier: MIT
"""Messages to Objective-C objects through libobjc and ctypes.

ctypes rather than pyobjc: the device side has no dependencies, pyobjc has no iOS wheels and costs
tens of megabytes for the two dozen selectors that Metal takes here. Objects are addresses.
"""

from __future__ import annotations

import ctypes
import sys

from bitnet_edge.errors import DeviceUnsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Runtime", "Size"]

LIBOBJC = "/usr/lib/libobjc.dylib"
FRAMEWORKS = (
    "/System/Library/Frameworks/Foundation.framework/Foundation",
    # Without CoreGraphics in the process macOS names no default device.
    "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics",
    "/System/Library/Frameworks/Metal.framework/Metal",
)


class Size(ctypes.Structure):
    """MTLSize."""

    _fields_ = (
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
    )


class Runtime:
    """The Objective-C runtime of this process, with Metal loaded.

    Raises
    ------
    DeviceUnsupported
        Where there is none.
    """

    def __init__(self) -> None:
        if sys.platform not in ("darwin", "ios"):
            raise DeviceUnsupported(f"[metal] expected macOS or iOS, this is {sys.platform}")
        self._objc: Any = ctypes.CDLL(LIBOBJC)
        self._frameworks: list[Any] = [ctypes.CDLL(path) for path in FRAMEWORKS]
        for name in ("objc_getClass", "sel_registerName", "objc_autoreleasePoolPush"):
            getattr(self._objc, name).restype = ctypes.c_void_p
        self._objc.objc_autoreleasePoolPop.argtypes = (ctypes.c_void_p,)
        self._selectors: dict[str, int] = {}
        self._calls: dict[tuple[type | None, ...], Any] = {}

    def default_device(self) -> int:
        """Return the system's GPU, 0 when it has none."""
        create = self._frameworks[-1].MTLCreateSystemDefaultDevice
        create.restype = ctypes.c_void_p
        return create() or 0

    def named_class(self, name: str) -> int:
        """Return a class."""
        return int(self._objc.objc_getClass(name.encode()))

    def send(
        self, receiver: int, selector: str, *arguments: Any, returns: type | None = None
    ) -> Any:
        """Send a message.

        Parameters
        ----------
        receiver : int
        selector : str
        *arguments
            ctypes values; an int goes as a pointer or NSUInteger, both of a machine word.
        returns : type, optional
            A ctypes type; nothing by default.
        """
        kinds = [ctypes.c_size_t if isinstance(a, int) else type(a) for a in arguments]
        key = (returns, *kinds)
        if key not in self._calls:
            prototype = ctypes.CFUNCTYPE(returns, ctypes.c_void_p, ctypes.c_void_p, *kinds)
            self._calls[key] = prototype(("objc_msgSend", self._objc))
        return self._calls[key](receiver, self.selector(selector), *arguments)

    def selector(self, name: str) -> int:
        """Return a registered selector."""
        if name not in self._selectors:
            self._selectors[name] = int(self._objc.sel_registerName(name.encode()))
        return self._selectors[name]

    def push_pool(self) -> int:
        """Begin an autorelease pool."""
        return int(self._objc.objc_autoreleasePoolPush())

    def pop_pool(self, pool: int) -> None:
        """End it."""
        self._objc.objc_autoreleasePoolPop(pool)
