# SPDX-License-Identifier: MIT
"""Every error bitnet-edge raises, in one tree.

A message names the thing, what was expected and what was found, for example
``[ternary_linear] expected k % 16 == 0, got 100 (tensor 'blk.3.ffn_up')``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bitnet_edge.planner import Choices

__all__ = [
    "ArgumentError",
    "BadMagic",
    "BitnetEdgeError",
    "BudgetExceeded",
    "DeviceUnsupported",
    "ExportError",
    "FormatError",
    "GraphError",
    "InvalidProgram",
    "MissingDependency",
    "MissingTensor",
    "ModelError",
    "NotTernary",
    "OutOfRange",
    "ProfileError",
    "ShapeMismatch",
    "TokenizerError",
    "Truncated",
    "UnsupportedModel",
    "UnsupportedOp",
    "UnsupportedTokenizer",
    "UnsupportedVersion",
    "VerificationFailed",
]


class BitnetEdgeError(Exception):
    """Base of all bitnet-edge errors."""


class ArgumentError(BitnetEdgeError, ValueError):
    """An argument of a public function is outside its documented domain."""


class MissingDependency(BitnetEdgeError, ImportError):
    """A host-side extra is not installed; the message says which ``pip install`` brings it."""


class ModelError(BitnetEdgeError):
    """A checkpoint cannot be read as a model."""


class MissingTensor(ModelError):
    """The checkpoint lacks a tensor the architecture needs."""


class NotTernary(ModelError):
    """A tensor that must hold only -1, 0 and +1 holds something else."""


class UnsupportedModel(ModelError):
    """The architecture, or one of its settings, is not implemented."""


class GraphError(BitnetEdgeError):
    """A graph is inconsistent."""


class ShapeMismatch(GraphError):
    """Operand shapes or dtypes violate an op's shape rule."""


class UnsupportedOp(GraphError):
    """A target has no lowering for an op."""


class ProfileError(BitnetEdgeError, ValueError):
    """A device profile is unknown or invalid."""


class BudgetExceeded(BitnetEdgeError):
    """A plan does not fit the memory it was given.

    Attributes
    ----------
    needed, allowed : int
        Bytes of private memory.
    breakdown : Mapping[str, int]
        Bytes per memory class.
    nearest : tuple of Choices
        Of a planner: the choices nearest to those asked for that fit (at most three), each with
        the ``flags`` that pin it.
    """

    def __init__(
        self,
        message: str,
        *,
        needed: int,
        allowed: int,
        breakdown: Mapping[str, int],
        nearest: Iterable[Choices] = (),
    ) -> None:
        super().__init__(message)
        self.needed = needed
        self.allowed = allowed
        self.breakdown = dict(breakdown)
        self.nearest = tuple(nearest)


class ExportError(BitnetEdgeError, OSError):
    """The output cannot be written; whatever stood there before is untouched."""


class VerificationFailed(BitnetEdgeError):
    """A written package does not compute what its graph says; nothing was left in place."""


class TokenizerError(BitnetEdgeError, ValueError):
    """Text or ids cannot be converted."""


class UnsupportedTokenizer(ModelError):
    """A tokenizer component is not implemented exactly, so it is refused."""


class FormatError(BitnetEdgeError, ValueError):
    """A ``.bte`` file (or a section of it) is malformed."""


class BadMagic(FormatError):
    """The file does not begin as a ``.bte`` file does."""


class UnsupportedVersion(FormatError):
    """The file needs a newer reader."""


class Truncated(FormatError):
    """The file ends before its contents do."""


class OutOfRange(FormatError):
    """A size, offset or number is outside its bounds."""


class InvalidProgram(FormatError):
    """An instruction would read or write outside its region, or means nothing.

    Attributes
    ----------
    index : int
        The instruction's position, -1 for the program header.
    """

    def __init__(self, message: str, index: int = -1) -> None:
        super().__init__(message)
        self.index = index


class DeviceUnsupported(BitnetEdgeError):
    """This CPU or device lacks what was asked for."""
