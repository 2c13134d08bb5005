# SPDX-License-Identifier: MIT
"""The host side in two calls: `plan` sizes a model to a device, `export` writes its package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, ExportError, ModelError
from bitnet_edge.exporters.sources.source import ModelSource
from bitnet_edge.exporters.targets import TARGETS as PACKAGES
from bitnet_edge.graph import Graph
from bitnet_edge.planner import Plan, Planner
from bitnet_edge.profiles import Profile, load_profile

if TYPE_CHECKING:
    from bitnet_edge.exporters.package import Package

__all__ = ["TARGETS", "Export", "export", "import_model", "plan"]

TARGETS = ("bte", *PACKAGES)


@dataclass(frozen=True)
class Export:
    """What `export` wrote.

    Attributes
    ----------
    path : Path
    bytes : int
        Size of the file.
    sha256 : str
        Of the whole file.
    graph : Graph
    plan : Plan
    bits_per_weight : float
        Stored bits of all weights over their number, head and embedding included.
    """

    path: Path
    bytes: int
    sha256: str
    graph: Graph
    plan: Plan
    bits_per_weight: float


def import_model(checkpoint: str | Path) -> ModelSource:
    """Read a checkpoint: a Hugging Face directory, or a ``.bte`` file (to plan it anew).

    Raises
    ------
    ModelError
        When ``checkpoint`` is neither, or cannot be read as a model.
    """
    path = Path(checkpoint)
    if path.is_file():
        from bitnet_edge.exporters.sources.bte import load_bte

        return load_bte(path)
    if path.is_dir():
        from bitnet_edge.exporters.sources.huggingface import load_huggingface

        return load_huggingface(path)
    raise ModelError(f"[import] expected a checkpoint directory or a .bte file, got {str(path)!r}")


def plan(
    checkpoint: str | Path | ModelSource,
    device: str | Path | Profile = "generic-50mb",
    *,
    context: int | None = None,
    prefill_chunk: int | None = None,
    kv_dtype: DType | str | None = None,
    head_dtype: str | None = None,
    threads: int | None = None,
    residency: str | None = None,
    window: int | None = None,
    sinks: int | None = None,
) -> Plan:
    """Size a model to a device without writing anything; see `bitnet_edge.planner.Planner`.

    Parameters
    ----------
    checkpoint : str, Path or ModelSource
    device : str, Path or Profile
        A profile's name, or a YAML file.
    context, prefill_chunk, kv_dtype, head_dtype, threads, residency, window, sinks
        Pinned choices.

    Raises
    ------
    ModelError, ProfileError, BudgetExceeded, ArgumentError
        As the parts say.
    """
    source = checkpoint if isinstance(checkpoint, ModelSource) else import_model(checkpoint)
    profile = device if isinstance(device, Profile) else load_profile(device)
    return planner_of(
        source,
        profile,
        context=context,
        prefill_chunk=prefill_chunk,
        kv_dtype=kv_dtype,
        head_dtype=head_dtype,
        threads=threads,
        residency=residency,
        window=window,
        sinks=sinks,
    ).solve()


def planner_of(
    source: ModelSource, profile: Profile, *, head_dtype: str | None = None, **pins: Any
) -> Planner:
    """Return what plans a source for a device, with the other arguments of `plan`."""
    return Planner(
        source.graph,
        profile,
        tokenizer_bytes=len(source.tokenizer or b""),
        head_dtype=source.choose_head_dtype(head_dtype),
        **pins,
    )


@overload
def export(
    checkpoint: str | Path | ModelSource,
    device: str | Path | Profile = ...,
    out: str | Path | None = ...,
    target: Literal["bte"] = ...,
    *,
    force: bool = ...,
    ota_limit: bool = ...,
    context: int | None = ...,
    prefill_chunk: int | None = ...,
    kv_dtype: DType | str | None = ...,
    head_dtype: str | None = ...,
    threads: int | None = ...,
    residency: str | None = ...,
    window: int | None = ...,
    sinks: int | None = ...,
    progress: Callable[[int, int], None] | None = ...,
) -> Export: ...


@overload
def export(
    checkpoint: str | Path | ModelSource,
    device: str | Path | Profile = ...,
    out: str | Path | None = ...,
    target: str = ...,
    *,
    force: bool = ...,
    ota_limit: bool = ...,
    context: int | None = ...,
    prefill_chunk: int | None = ...,
    kv_dtype: DType | str | None = ...,
    head_dtype: str | None = ...,
    threads: int | None = ...,
    residency: str | None = ...,
    window: int | None = ...,
    sinks: int | None = ...,
    form: str | None = ...,
    verify: bool = ...,
    progress: Callable[[int, int], None] | None = ...,
) -> Export | Package: ...


def export(
    checkpoint: str | Path | ModelSource,
    device: str | Path | Profile = "generic-50mb",
    out: str | Path | None = None,
    target: str = "bte",
    *,
    force: bool = False,
    ota_limit: bool = True,
    context: int | None = None,
    prefill_chunk: int | None = None,
    kv_dtype: DType | str | None = None,
    head_dtype: str | None = None,
    threads: int | None = None,
    residency: str | None = None,
    window: int | None = None,
    sinks: int | None = None,
    form: str | None = None,
    verify: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Export | Package:
    """Write a model as a package for a device.

    Parameters
    ----------
    checkpoint, device, context, prefill_chunk, kv_dtype, head_dtype, threads, residency, window
        As for `plan`, like ``sinks``; a package for another runtime keeps the cache in float32 and
        the head as stored, and leaves threads and residency to that runtime.
    out : str or Path, optional
        Destination; ``<model>.<target>`` in the current directory by default.
    target : str
        ``"bte"``, or a runtime of `bitnet_edge.exporters.targets.TARGETS`.
    force : bool
        Replace what stands at the destination.
    ota_limit : bool
        Refuse a package that is larger than the profile's store delivers.
    form : str, optional
        How another runtime is told the model; by default its first form.
    verify : bool
        Run a package for another runtime, in that runtime, against the numpy reference before it
        is put in place. (The engine checks every ``.bte`` file as it is written.)
    progress : callable, optional
        Called with (bytes written, bytes in all) of a ``.bte`` file.

    Returns
    -------
    Export or Package

    Raises
    ------
    ArgumentError
        For an unknown target, or a choice that the target does not have.
    ExportError
        When the destination exists or cannot be written, or the package is larger than the
        profile's store delivers; nothing is left behind.
    VerificationFailed
        Naming the first op that the package computes otherwise than the reference.
    ModelError, ProfileError, BudgetExceeded, UnsupportedOp, MissingDependency
        As the parts say.
    """
    if target not in TARGETS:
        raise ArgumentError(f"[export] expected target {' or '.join(TARGETS)}, got {target!r}")
    source = checkpoint if isinstance(checkpoint, ModelSource) else import_model(checkpoint)
    path = Path(out if out is not None else f"{source.graph.info.name}.{target}")
    if path.exists() and not force:  # before the work, not after it
        raise ExportError(f"[export] {path} exists; --force (force=True) replaces it")
    profile = device if isinstance(device, Profile) else load_profile(device)
    max_bytes = profile.ota_bytes if ota_limit else None
    choices: dict[str, Any] = {  # that only a .bte file has
        "kv_dtype": kv_dtype,
        "head_dtype": head_dtype,
        "threads": threads,
        "residency": residency,
        "window": window,
        "sinks": sinks,
    }
    if target != "bte":
        from bitnet_edge.exporters.package import write_package

        for name, value in choices.items():
            if value not in (None, "stored"):
                raise ArgumentError(
                    f"[{target}] expected no {name}, got {value!r}: it is the .bte's"
                )
        return write_package(
            source,
            target,
            profile,
            path,
            form=form,
            verified=verify,
            context=context,
            prefill_chunk=prefill_chunk,
            max_bytes=max_bytes,
        )
    if form is not None:
        raise ArgumentError(f"[export] expected no form of a .bte file, got {form!r}")
    from bitnet_edge.writer import write_bte

    made = plan(source, profile, context=context, prefill_chunk=prefill_chunk, **choices)
    write_bte(path, source, made, force=force, progress=progress, max_bytes=max_bytes)
    return Export(
        path,
        path.stat().st_size,
        _sha256(path),
        source.graph,
        made,
        8 * sum(slot.bytes for slot in made.weights) / parameter_count(source.graph),
    )


def parameter_count(graph: Graph) -> int:
    """Return the number of weights of a graph."""
    total = 0
    for tensor in graph.constants():
        count = 1
        for size in tensor.shape:
            count *= size
        total += count
    return total


def _sha256(path: Path) -> str:
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
