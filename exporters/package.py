# SPDX-License-Identifier: MIT
"""Exporting to another runtime: written beside the destination, verified, put in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_edge.atomic import replacing
from bitnet_edge.errors import UnsupportedOp
from bitnet_edge.exporters.targets import load_target
from bitnet_edge.exporters.targets.target import (
    VERIFICATION_KEY,
    Settings,
    dense_elements,
    make_settings,
    unverified,
)
from bitnet_edge.exporters.verify import Verification, stamp, verify
from bitnet_edge.head_packing import STORED
from bitnet_edge.writer import store_limit_error

if TYPE_CHECKING:
    from bitnet_edge.exporters.sources.source import ModelSource
    from bitnet_edge.graph import ModelInfo
    from bitnet_edge.profiles import Profile

__all__ = ["Package", "package_bytes", "write_package"]


@dataclass(frozen=True)
class Package:
    """What was written for another runtime.

    Attributes
    ----------
    path : Path
        A file, or a directory.
    target : str
    settings : Settings
    profile : Profile
    info : ModelInfo
    bytes : int
    bits_per_weight : float
        Of the whole package over all its matrices' elements.
    ternary_bits : float
        Of the ternary weights, their scales and sentinel columns included; 0 without any.
    memory : int
        Private memory of the runtime with the package loaded, in bytes: an estimate.
    verification : Verification or None
    """

    path: Path
    target: str
    settings: Settings
    profile: Profile
    info: ModelInfo
    bytes: int
    bits_per_weight: float
    ternary_bits: float
    memory: int
    verification: Verification | None

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON-serialisable data."""
        return {
            "path": str(self.path),
            "target": self.target,
            "form": self.settings.form.name,
            "minimum": self.settings.form.minimum,
            "device": self.profile.name,
            "context": self.settings.context,
            "prefill_chunk": self.settings.prefill_chunk,
            "bytes": self.bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "ternary_bits_per_weight": round(self.ternary_bits, 4),
            "memory_estimate_bytes": self.memory,
            "memory_allowed_bytes": self.profile.private_bytes,
            "verification": self.verification.to_json() if self.verification else None,
        }


def write_package(
    source: ModelSource,
    target: str,
    profile: Profile,
    path: Path,
    *,
    form: str | None = None,
    verified: bool = True,
    context: int | None = None,
    prefill_chunk: int | None = None,
    max_bytes: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Package:
    """Write, verify and put in place a package; what stands at ``path`` is replaced as a whole.

    Parameters
    ----------
    source : ModelSource
    target : str
        Of `bitnet_edge.exporters.targets.TARGETS`.
    profile : Profile
    path : Path
    form : str, optional
        Of the target's forms; its first by default.
    verified : bool
        Run the package against the reference before it is put in place.
    context, prefill_chunk : int, optional
        Pinned choices.
    max_bytes : int, optional
        Refuse a larger package.
    progress : callable, optional
        Called with what begins.

    Raises
    ------
    UnsupportedOp, ArgumentError, MissingDependency
        As the target says.
    VerificationFailed
        Naming the first op that diverges.
    ExportError
        When the package is larger than the device's store delivers, or cannot be written.
    """
    tell = progress or (lambda what: None)
    if source.head_dtype != STORED:
        raise UnsupportedOp(
            f"[linear] cannot be exported: the head of {source.graph.info.name!r} was quantised to "
            f"{source.head_dtype} when this file was written (node {source.graph.nodes[-1].name!r})"
            "; export the original checkpoint"
        )
    chosen = load_target(target)
    settings = make_settings(
        source.graph, profile, chosen.choose(source, profile, form), context, prefill_chunk
    )
    metadata = {
        "bitnet_edge.model": source.graph.info.name,
        "bitnet_edge.form": settings.form.name,
        "bitnet_edge.minimum": settings.form.minimum,
        "bitnet_edge.device": profile.name,
        "bitnet_edge.plan": json.dumps(
            {"context": settings.context, "prefill_chunk": settings.prefill_chunk}
        ),
        VERIFICATION_KEY: unverified(),
    }
    with replacing(path) as made:
        tell(f"writing {target}")
        ternary = chosen.write(source, settings, made, metadata=metadata)
        size = package_bytes(made)
        if max_bytes is not None and size > max_bytes:
            raise store_limit_error(size, max_bytes, profile.name)
        result = None
        if verified:
            tell(f"verifying {target}")
            result = verify(chosen, made, source, settings)
            stamp(made, result)
    elements = sum(dense_elements(source, ternary=kind) for kind in (True, False))
    return Package(
        path,
        target,
        settings,
        profile,
        source.graph.info,
        size,
        8 * size / elements,
        ternary.bits,
        chosen.memory(source, settings, size),
        result,
    )


def package_bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a directory."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)
