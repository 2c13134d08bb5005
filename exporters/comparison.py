# SPDX-License-Identifier: MIT
"""One model for every target, side by side: packages, and a table of what each costs and keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.atomic import replacing
from bitnet_edge.errors import BitnetEdgeError, ExportError, VerificationFailed
from bitnet_edge.exporters.package import Package, write_package
from bitnet_edge.exporters.targets import TARGETS, load_target
from bitnet_edge.exporters.targets.target import Form, Settings
from bitnet_edge.exporters.verify import Verification, compare
from bitnet_edge.graph import Graph

if TYPE_CHECKING:
    from bitnet_edge.api import Export
    from bitnet_edge.exporters.sources.source import ModelSource
    from bitnet_edge.profiles import Profile

__all__ = ["Comparison", "Row", "compare_targets"]

HEAD = (
    "target", "form", "bytes", "bits/weight", "ternary", "memory", "largest error", "mean error",
    "top-1", "minimum", "verified in",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One target.

    Attributes
    ----------
    target, form : str
    status : str
        ``written``, ``refused`` (not for this model, device or environment) or ``failed``
        (written, and found to be wrong).
    detail : str
        The reason, where there is no package.
    bytes : int
    bits_per_weight, ternary_bits : float or None
        Of the whole package, and of its ternary weights; the latter is not known of ``.bte``.
    memory : int
        Private memory in bytes: planned and enforced by our engine, estimated for others.
    minimum : str
        Oldest runtime.
    verification : Verification or None
    """

    target: str
    form: str
    status: str
    detail: str = ""
    bytes: int = 0
    bits_per_weight: float | None = None
    ternary_bits: float | None = None
    memory: int = 0
    minimum: str = ""
    verification: Verification | None = None


@dataclass(frozen=True)
class Comparison:
    """All targets of one model on one device.

    Attributes
    ----------
    path : Path
        The directory of the packages, ``comparison.json`` and ``comparison.html``.
    model, device : str
    rows : tuple of Row
    """

    path: Path
    model: str
    device: str
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-serialisable data."""
        rows = [
            vars(row) | {"verification": row.verification and row.verification.to_json()}
            for row in self.rows
        ]
        return {"model": self.model, "device": self.device, "targets": rows}

    def cells(self) -> list[tuple[str, ...]]:
        """Return the table, its head first; targets without a package are left out."""
        return [HEAD, *(tuple(_cells(row)) for row in self.rows if row.status == "written")]

    def html(self) -> str:
        """Return the page, which needs no other file."""
        from bitnet_edge.validate.report_html import STYLE

        title = escape(f"{self.model} for {self.device}")
        lines = [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{title}</title><style>{STYLE} body {{ max-width: 1500px; }}</style></head>",
            f"<body><h1>{title}</h1><p>Packages for every runtime. Those with an error were run, "
            "as written, against the numpy reference of the graph; an error is a row's largest "
            "difference over its largest output. Memory is planned for bte, and an estimate for "
            "other runtimes.</p><table>",
        ]
        for index, cells in enumerate(self.cells()):
            tag = "td" if index else "th"
            lines.append(f"<tr>{''.join(f'<{tag}>{escape(c)}</{tag}>' for c in cells)}</tr>")
        lines.append("</table>")
        for row in self.rows:
            if row.detail:
                lines.append(f"<p>{escape(f'{row.target}: {row.status}: {row.detail}')}</p>")
        return "\n".join([*lines, "</body></html>", ""])


def _cells(row: Row) -> Iterator[str]:
    yield row.target
    yield row.form
    yield f"{row.bytes}"
    yield f"{row.bits_per_weight:.2f}"
    yield "" if row.ternary_bits is None else f"{row.ternary_bits:.3f}"
    yield f"{row.memory / (1 << 20):.1f} MB"
    v = row.verification
    yield f"{v.max_error:.1e}" if v else ""
    yield f"{v.mean_error:.1e}" if v else ""
    yield "" if v is None or v.agreement is None else f"{100 * v.agreement:.2f} %"
    yield row.minimum
    if v:
        yield f"{v.runtime}: {v.prompts} prompts, {v.steps} steps, {v.ops_checked} ops"
    else:
        yield "not verified"


def compare_targets(
    source: ModelSource,
    profile: Profile,
    path: Path,
    *,
    force: bool = False,
    ota_limit: bool = True,
    verify: bool = True,
    pinned: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Write a directory with a package for every target and the comparison of them.

    Parameters
    ----------
    source : ModelSource
    profile : Profile
    path : Path
        Replaced as a whole.
    force, ota_limit, verify
        As for `bitnet_edge.export`.
    pinned : Mapping, optional
        Pinned choices of `bitnet_edge.plan`; other runtimes take ``context`` and ``prefill_chunk``.
    progress : callable, optional
        Called with what begins.

    Raises
    ------
    ExportError
        When the destination exists or cannot be written.
    """
    if path.exists() and not force:
        raise ExportError(f"[export] {path} exists; --force (force=True) replaces it")
    choices = dict(pinned or {})
    shared = {key: choices.get(key) for key in ("context", "prefill_chunk")}
    limit = profile.ota_bytes if ota_limit else None
    name = source.graph.info.name.replace("/", "-")
    tell = progress or (lambda what: None)
    with replacing(path) as folder:
        folder.mkdir()

        def bte() -> Row:
            from bitnet_edge.api import export

            tell("writing bte")
            made = export(source, profile, folder / f"{name}.bte", ota_limit=ota_limit, **choices)
            return _bte_row(source, made, verify)

        def other(target: str) -> Row:
            suffix = load_target(target).suffix
            return _row(
                write_package(
                    source,
                    target,
                    profile,
                    folder / f"{name}{suffix}",
                    verified=verify,
                    max_bytes=limit,
                    progress=tell,
                    **shared,
                )
            )

        rows = [_attempt("bte", bte)]
        rows += [_attempt(target, partial(other, target)) for target in TARGETS]
        made = Comparison(path, source.graph.info.name, profile.name, tuple(rows))
        (folder / "comparison.json").write_text(json.dumps(made.to_json(), indent=2) + "\n")
        (folder / "comparison.html").write_text(made.html(), encoding="utf-8")
    return made


def _attempt(target: str, make: Callable[[], Row]) -> Row:
    try:
        return make()
    except VerificationFailed as error:
        return Row(target, "", "failed", str(error))
    except BitnetEdgeError as error:
        return Row(target, "", "refused", str(error))


def _row(package: Package) -> Row:
    form = package.settings.form
    return Row(
        package.target,
        form.name,
        "written",
        bytes=package.bytes,
        bits_per_weight=package.bits_per_weight,
        ternary_bits=package.ternary_bits,
        memory=package.memory,
        minimum=form.minimum,
        verification=package.verification,
    )


def _bte_row(source: ModelSource, made: Export, verify: bool) -> Row:
    plan = made.plan
    form = Form(f"{plan.kv_dtype.value} cache, {plan.head_dtype} head", "", "bitnet-edge")
    settings = Settings(form, plan.context, plan.prefill_chunk)
    return Row(
        "bte",
        form.name,
        "written",
        bytes=made.bytes,
        bits_per_weight=made.bits_per_weight,
        memory=plan.budget.needed,
        minimum=form.minimum,
        verification=compare(_Engine(made.path, source.graph), source, settings)
        if verify
        else None,
    )


class _Engine:
    """A ``.bte`` file in our own engine, as a `Runner`."""

    def __init__(self, path: Path, graph: Graph) -> None:
        import bitnet_edge

        self.runtime = f"bitnet-edge {bitnet_edge.__version__}"
        self._model, self._graph = bitnet_edge.load(path, threads=1), graph

    def reset(self) -> None:
        """Need nothing: what lies beyond a position is never read."""

    def run(self, inputs: Mapping[str, Any], position: int = 0) -> dict[str, Any]:
        """See `Runner.run`."""
        given = [np.ascontiguousarray(inputs[name]) for name in self._graph.inputs]
        names = self._graph.outputs
        found = {
            name: np.empty((len(given[0]), self._graph.tensors[name].shape[1]), np.float32)
            for name in names
        }
        chunk = self._model.session.program.max_tokens
        for first in range(0, len(given[0]), chunk):
            part: list[Any] = [values[first : first + chunk] for values in given]
            outputs: list[Any] = [found[name][first : first + chunk] for name in names]
            self._model.session.run(tuple(part), tuple(outputs), len(part[0]), position + first)
        return found
