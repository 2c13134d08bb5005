# SPDX-License-Identifier: MIT
"""A written package, run in its own runtime, against the numpy reference of its graph.

Both are fed the same rows: prompts, then tokens that the reference chooses greedily, one at a time
with the state kept. A debug twin of the package then gives every activation (of a large model only
when some row's outputs do not agree closely), and

* each op is checked on the package's own inputs, so that the first op that is wrong is named and
  those after it are not blamed;
* a row may deviate only where the rounding of an activation to int8 fell the other way, in it or in
  a row whose keys it reads: two float sums in different order differ in the last bit, and the
  reference in float32 differs from itself in float64 just so.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.errors import ExportError, VerificationFailed
from bitnet_edge.exporters.targets.target import (
    VERIFICATION_BYTES,
    VERIFICATION_KEY,
    Runner,
    Settings,
    Target,
    dense_elements,
    unverified,
)
from bitnet_edge.reference import ReferenceModel, quantize
from bitnet_edge.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bitnet_edge.exporters.sources.source import ModelSource

__all__ = ["Verification", "compare", "stamp", "verify"]

TEXTS = (
    "ROMEO:\n",
    "Once upon a time there was a small machine that",
    "The quick brown fox jumps over the lazy dog. It is the spring of the year, and all the "
    "birds of the wood are singing.",
)
STEPS = 32
LARGE = 300_000_000  # weights; the reference takes seconds a token there
# A choice that the reference itself makes by so little of its largest logit is a near tie.
NEAR_TIE = 0.005
# A row of an op that is this much smaller than others is a sum that cancelled: its terms' rounding
# is of the others' size.
CANCELLED = 0.1


@dataclass(frozen=True)
class Verification:
    """What was compared, and how well it agreed.

    Attributes
    ----------
    runtime : str
        That ran the package.
    prompts, rows, steps : int
        Rows compared, prompts' rows included; ``steps`` of them were decoded one by one with the
        state kept.
    max_error, mean_error : float
        Of a row: its largest difference over its largest magnitude in the reference.
    exact_error : float
        The largest in the rows that no flipped rounding reaches.
    flipped_rows : int
        Rows with an int8 rounding that fell the other way before them.
    agreement : float or None
        Part of the rows whose largest output is the reference's, near ties aside; None for a model
        without tokens.
    near_ties : int
    perplexity, reference_perplexity : float or None
        Over the tokens compared.
    ops_checked : int
        Ops that were checked one by one, in every run; 0 for a large model that agreed without.
    """

    runtime: str
    prompts: int
    rows: int
    steps: int
    max_error: float
    mean_error: float
    exact_error: float
    flipped_rows: int
    agreement: float | None
    near_ties: int
    perplexity: float | None
    reference_perplexity: float | None
    ops_checked: int

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-serialisable data."""
        return asdict(self)


@dataclass
class _Run:
    """One run of the reference: rows in, every activation out."""

    inputs: Mapping[str, Any]
    position: int
    first: bool  # of its sequence: the state is empty
    values: Mapping[str, Any]
    following: Any  # ids of the tokens that come after each row


def verify(target: Target, path: Path, source: ModelSource, settings: Settings) -> Verification:
    """Run a written package against the reference.

    Raises
    ------
    VerificationFailed
        Naming the first op that is wrong, or the rows that deviate without a reason.
    """
    tolerance = target.allowed(settings.form)
    runs = _reference_runs(source, settings)
    measured = _measure(target.open(path, source, settings), source, runs)
    errors = measured.errors
    worst = max(float(e.max()) for e in errors)
    checked, flipped = 0, None
    if _is_small(source) or not worst <= tolerance.row:  # NaN is no agreement
        twin = _check_ops(target, source, settings, runs)
        checked = len(source.graph.nodes)
        flipped = _explain(target, source, settings, runs, errors, twin)
    result = _summarise(measured, source, runs, flipped, checked)
    if result.agreement is not None and result.agreement < tolerance.agreement:
        raise VerificationFailed(
            f"[{target.name}] expected {tolerance.agreement:.1%} of the largest outputs to "
            f"be the reference's, got {result.agreement:.1%}"
        )
    return result


def compare(runner: Runner, source: ModelSource, settings: Settings) -> Verification:
    """Measure a runner against the reference without judging it."""
    runs = _reference_runs(source, settings)
    return _summarise(_measure(runner, source, runs), source, runs, None, 0)


@dataclass
class _Measured:
    """Outputs of a runner, and each row's error."""

    runtime: str
    rows: list[Any]
    errors: list[Any]


def _measure(runner: Runner, source: ModelSource, runs: list[_Run]) -> _Measured:
    rows: list[Any] = []
    for run in runs:
        if run.first:
            runner.reset()
        rows.append(runner.run(run.inputs, run.position))
    errors = [
        np.max([_errors(row[n], run.values[n]) for n in source.graph.outputs], axis=0)
        for run, row in zip(runs, rows, strict=True)
    ]
    return _Measured(runner.runtime, rows, errors)


def _summarise(
    measured: _Measured,
    source: ModelSource,
    runs: list[_Run],
    flipped: list[Any] | None,
    checked: int,
) -> Verification:
    errors = np.concatenate(measured.errors)
    reached = np.zeros(len(errors), bool) if flipped is None else np.concatenate(flipped)
    output = source.graph.outputs[0]
    agreement, ties = None, 0
    perplexities: tuple[float | None, float | None] = (None, None)
    if source.graph.info.vocab_size:
        found = [row[output] for row in measured.rows]
        expected = [run.values[output][-len(f) :] for run, f in zip(runs, found, strict=True)]
        agreement, ties = _agreement(expected, found)
        perplexities = (_perplexity(runs, found), _perplexity(runs, expected))
    return Verification(
        measured.runtime,
        sum(run.first for run in runs),
        len(errors),
        sum(not run.first for run in runs),
        float(errors.max()),
        float(errors.mean()),
        float(errors[~reached].max(initial=0)),
        int(reached.sum()),
        agreement,
        ties,
        *perplexities,
        checked,
    )


def stamp(path: Path, verification: Verification) -> None:
    """Write what was verified over the placeholder in a package's metadata; nothing else changes.

    Raises
    ------
    ExportError
        When the package does not hold the placeholder once.
    """
    text = json.dumps(verification.to_json(), separators=(",", ":"))
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    places = []
    for file in files:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m:
            at = m.find(unverified().encode())
            if at >= 0:
                places.append((file, at))
    if len(places) != 1 or len(text) > VERIFICATION_BYTES:
        raise ExportError(f"[export] {path} does not hold {VERIFICATION_KEY} once")
    with places[0][0].open("r+b") as written:
        written.seek(places[0][1])
        written.write(text.ljust(VERIFICATION_BYTES).encode())


def _is_small(source: ModelSource) -> bool:
    return dense_elements(source, ternary=True) < LARGE


def _reference_runs(source: ModelSource, settings: Settings) -> list[_Run]:
    graph = source.graph
    small = _is_small(source)
    if not graph.info.vocab_size:
        return _row_runs(source)
    prompts = _prompts(source, settings, small)
    steps = STEPS if small else 4
    runs = []
    for prompt in prompts:
        ids = np.array(prompt[: max(1, settings.context - steps - 1)], np.int32)
        reference = ReferenceModel(source, max(settings.context, 1), settings.form.kv_dtype)
        position = 0
        for step in range(steps + 1 if graph.states() else 1):
            if position + len(ids) > max(settings.context, len(ids)):
                break
            inputs = {graph.inputs[0]: ids}
            values = reference.run(inputs, position)
            chosen = np.argmax(values[graph.outputs[0]][-1:], axis=1).astype(np.int32)
            runs.append(_Run(inputs, position, step == 0, values, np.append(ids[1:], chosen)))
            position += len(ids)
            ids = chosen
    return runs


def _row_runs(source: ModelSource) -> list[_Run]:
    """Rows of noise in several sizes, for a model without tokens."""
    rng = np.random.default_rng(0)
    reference = ReferenceModel(source, 1)
    runs = []
    for scale in (1e-3, 1.0, 1.0, 30.0):
        inputs = {
            name: (scale * rng.normal(size=(5, *source.graph.tensors[name].shape[1:]))).astype(
                np.float32
            )
            for name in source.graph.inputs
        }
        runs.append(_Run(inputs, 0, True, reference.run(inputs), np.zeros(5, np.int32)))
    return runs


def _prompts(source: ModelSource, settings: Settings, small: bool) -> list[list[int]]:
    if source.tokenizer is None:
        rng = np.random.default_rng(0)
        vocab = source.graph.info.vocab_size
        prompts = [rng.integers(0, vocab, n).tolist() for n in (5, 11, 23)]
    else:
        tokenizer = Tokenizer(source.tokenizer)
        prompts = [list(tokenizer.encode(text)) for text in TEXTS]
    if not small:
        return [prompts[0]]
    longer = settings.prefill_chunk + 5  # more than one run of a prompt, the last one short
    prompts.append((prompts[-1] * (longer // len(prompts[-1]) + 1))[:longer])
    return prompts


def _errors(found: Any, expected: Any, floor: float = 0.0) -> Any:
    """Return each row's largest difference over the reference's largest magnitude in it.

    That magnitude counts as at least ``floor`` times the largest of all rows.
    """
    expected = expected[-len(found) :]
    largest = np.abs(expected).max(axis=-1)
    largest = np.maximum(largest, max(floor * largest.max(), 1e-30))
    return np.abs(found - expected).max(axis=-1) / largest


def _check_ops(
    target: Target, source: ModelSource, settings: Settings, runs: list[_Run]
) -> list[dict[str, Any]]:
    """Check each op on the package's own inputs; return the activations of each run."""
    graph, tolerance = source.graph, target.allowed(settings.form)
    with tempfile.TemporaryDirectory(prefix="bitnet-edge-") as scratch:
        path = Path(scratch) / f"debug{target.suffix}"
        target.write(source, settings, path, metadata={VERIFICATION_KEY: unverified()}, debug=True)
        runner = target.open(path, source, settings)
        twin = []
        for run in runs:
            if run.first:
                runner.reset()
                replay = ReferenceModel(source, max(settings.context, 1), settings.form.kv_dtype)
            found = runner.run(run.inputs, run.position)
            given = {**run.inputs, **found}
            for node in graph.nodes:
                name = node.outputs[0]
                expected = replay.apply(node, given, run.position)
                error = float(_errors(found[name], expected, CANCELLED).max())
                if not error <= tolerance.op:
                    raise VerificationFailed(
                        f"[{node.op}] expected {target.name} to be within "
                        f"{tolerance.op:.0e} of the reference on the same inputs, got "
                        f"{error:.1e} (node {node.name!r}, positions {run.position} to "
                        f"{run.position + len(found[name]) - 1}, {runner.runtime})"
                    )
            twin.append(found)
    return twin


def _explain(
    target: Target,
    source: ModelSource,
    settings: Settings,
    runs: list[_Run],
    errors: list[Any],
    twin: list[dict[str, Any]],
) -> list[Any]:
    """Return which of each run's rows a flipped rounding reaches; all others must agree.

    A flip reaches the rows after it through the keys and values they read.
    """
    tolerance = target.allowed(settings.form)
    rounded = {node.inputs[0] for node in source.graph.nodes if node.op == "ternary_linear"}
    stateful = bool(source.graph.states())
    reached, before = [], False
    for run, error, found in zip(runs, errors, twin, strict=True):
        before = before and not run.first
        given, expected = {**run.inputs, **found}, {**run.inputs, **run.values}
        flips = np.zeros(len(run.following), bool)
        for name in rounded:
            flips |= (quantize(given[name])[0] != quantize(expected[name])[0]).any(axis=1)
        if stateful:
            flips = np.logical_or.accumulate(flips) | before
            before = bool(flips[-1])
        reached.append(flips[-len(error) :])
        unexplained = error[~reached[-1]]
        if unexplained.size and not unexplained.max() <= tolerance.row:
            raise VerificationFailed(
                f"[{target.name}] expected outputs within {tolerance.row:.0e} where no "
                f"rounding flips, got {unexplained.max():.1e} (positions from {run.position}); "
                "every op alone agrees"
            )
    return reached


def _agreement(expected: list[Any], found: list[Any]) -> tuple[float | None, int]:
    """Return the part of rows with the same largest output, near ties aside, and the ties."""
    same, ties, count = 0, 0, 0
    for a, b in zip(np.concatenate(expected), np.concatenate(found), strict=True):
        ours, theirs = int(np.argmax(a)), int(np.argmax(b))
        tie = bool(ours != theirs and a[ours] - a[theirs] < NEAR_TIE * np.abs(a).max())
        ties += tie
        same += ours == theirs
        count += not tie
    return (same / count if count else None), ties


def _perplexity(runs: list[_Run], rows: list[Any]) -> float:
    losses: list[float] = []
    for run, found in zip(runs, rows, strict=True):
        logits = found.astype(np.float64)
        top = logits.max(axis=1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        following = run.following[-len(found) :]
        losses.extend(total - logits[np.arange(len(found)), following])
    return float(np.exp(np.mean(losses)))
