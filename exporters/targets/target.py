# SPDX-License-Identifier: MIT
"""What a target is: how it says the ops, writes a package, and opens one to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError
from bitnet_edge.exporters.lowering import Lowering, Refusal, TernaryBytes
from bitnet_edge.graph import Graph

if TYPE_CHECKING:
    from bitnet_edge.exporters.sources.source import ModelSource
    from bitnet_edge.profiles import Profile

__all__ = [
    "VERIFICATION_BYTES",
    "VERIFICATION_KEY",
    "Form",
    "Runner",
    "Settings",
    "Target",
    "Tolerance",
    "dense_elements",
    "kv_elements",
    "make_settings",
    "unverified",
]

DEFAULT_CHUNK = 64
# A package is verified as it lies on the disk, then the result is written over a placeholder of
# this many bytes: what was verified is what is shipped.
VERIFICATION_KEY = "bitnet_edge.verification"
VERIFICATION_BYTES = 2048


@dataclass(frozen=True)
class Tolerance:
    """What verification allows.

    Attributes
    ----------
    op : float
        Of one op on the package's own inputs: largest error of a row over its largest magnitude,
        or a tenth of the run's where that is more.
    row : float
        Of the outputs of a row that no rounding of an activation flipped on its way: the same.
    agreement : float
        Least part of the rows with outputs whose largest element is the reference's, near ties
        aside.
    """

    op: float = 2e-5
    row: float = 1e-4
    agreement: float = 0.995


@dataclass(frozen=True)
class Form:
    """One of the ways a target can say a model.

    Attributes
    ----------
    name : str
    why : str
        When to choose it: printed with the export.
    minimum : str
        Oldest runtime, or system, that takes the package.
    kv_dtype : DType
        Of the caches.
    tolerance : Tolerance or None
        What verification allows; the target's by default.
    """

    name: str
    why: str
    minimum: str
    kv_dtype: DType = DType.F32
    tolerance: Tolerance | None = None


@dataclass(frozen=True)
class Settings:
    """What is decided before a package is written.

    Attributes
    ----------
    form : Form
    context : int
        Rows of the KV cache; 0 for a model without one.
    prefill_chunk : int
        Rows of a prompt's runs, where the target fixes them.
    """

    form: Form
    context: int
    prefill_chunk: int


class Runner(Protocol):
    """A package in its runtime, with its state."""

    runtime: str  # name and version

    def reset(self) -> None:
        """Forget all state."""

    def run(self, inputs: Mapping[str, Any], position: int = 0) -> dict[str, Any]:
        """Run rows from ``position``, as `bitnet_edge.reference.ReferenceModel.run`.

        Returns the graph's outputs, and of a debug package every activation, by tensor name. A
        target whose prompts give no outputs returns those of the last row only.
        """
        ...


class Target(ABC):
    """Writes and opens packages of one runtime.

    Attributes
    ----------
    name, suffix : str
    forms : Mapping[str, Form]
        By name; the first is the default.
    lowerings : Mapping[str, Lowering | Refusal]
        Op -> how it is said, or why it cannot be.
    tolerance : Tolerance
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    forms: ClassVar[Mapping[str, Form]]
    lowerings: ClassVar[Mapping[str, Lowering | Refusal]]
    tolerance: ClassVar[Tolerance] = Tolerance()

    @abstractmethod
    def write(
        self,
        source: ModelSource,
        settings: Settings,
        path: Path,
        *,
        metadata: Mapping[str, str],
        debug: bool = False,
    ) -> TernaryBytes:
        """Write a package at ``path``, which does not exist.

        ``metadata`` goes into the package as it is. A debug package also gives every activation.

        Raises
        ------
        UnsupportedOp
            Naming op, node and what to change.
        ExportError
            When the format cannot hold the model.
        """

    @abstractmethod
    def open(self, path: Path, source: ModelSource, settings: Settings) -> Runner:
        """Open a written package in its runtime."""

    @abstractmethod
    def memory(self, source: ModelSource, settings: Settings, package: int) -> int:
        """Return an estimate of the runtime's private memory with the package loaded, in bytes."""

    def allowed(self, form: Form) -> Tolerance:
        """Return what verification allows a form."""
        return form.tolerance or self.tolerance

    def choose(self, source: ModelSource, profile: Profile, name: str | None) -> Form:
        """Return a form by name, or the one that suits the model and the device.

        Raises
        ------
        ArgumentError
            For a name that is none.
        """
        return self.form(name)

    def form(self, name: str | None) -> Form:
        """Return a form by name, or the default.

        Raises
        ------
        ArgumentError
            For another name.
        """
        chosen = next(iter(self.forms)) if name is None else name
        if chosen not in self.forms:
            raise ArgumentError(
                f"[{self.name}] expected form {' or '.join(self.forms)}, got {chosen!r}"
            )
        return self.forms[chosen]


def make_settings(
    graph: Graph,
    profile: Profile,
    form: Form,
    context: int | None = None,
    prefill_chunk: int | None = None,
) -> Settings:
    """Decide what is left open: the profile's context, at most the model's.

    Raises
    ------
    ArgumentError
        For a pinned choice outside its domain.
    """
    limit = graph.info.context_length if graph.states() else 0
    context = min(profile.default_context, limit) if context is None else context
    if limit and not 1 <= context <= limit:
        raise ArgumentError(f"[export] expected context 1 .. {limit}, got {context}")
    if prefill_chunk is not None and not 1 <= prefill_chunk <= 4096:
        raise ArgumentError(f"[export] expected prefill_chunk 1 .. 4096, got {prefill_chunk}")
    chunk = prefill_chunk or DEFAULT_CHUNK
    return Settings(form, context if limit else 0, min(chunk, context) if limit else chunk)


def unverified() -> str:
    """Return the placeholder of the verification's result."""
    return "none".ljust(VERIFICATION_BYTES)


def kv_elements(source: ModelSource, context: int) -> int:
    """Return the elements of all caches."""
    return sum(t.shape[0] * t.shape[2] for t in source.graph.states()) * context


def dense_elements(source: ModelSource, *, ternary: bool) -> int:
    """Return the elements of all matrices that are ternary, or that are not."""
    total = 0
    for tensor in source.graph.constants():
        if len(tensor.shape) == 2 and (tensor.dtype is DType.TERNARY) == ternary:
            total += tensor.shape[0] * tensor.shape[1]
    return total
