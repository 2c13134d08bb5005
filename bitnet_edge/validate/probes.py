# SPDX-License-Identifier: MIT
"""Built-in inputs that reach the corners of a model, and running a model on them.

Standard library and engine only: the process whose memory is measured imports this too.
"""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bitnet_edge.runtime import Model

__all__ = ["DECODED", "Probe", "fill", "is_language_model", "probes", "run_probe", "spread_ids"]

DECODED = 8  # tokens that `fill` decodes one by one, up to the end of the context
_I32 = 3  # BE_DTYPE_I32
_EXTREMES = (0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e4, -1e4)


class Probe:
    """Rows of input for every port of a model.

    Attributes
    ----------
    name : str
    inputs : list of array
        int32 or float32, ``rows`` times the port's width.
    rows : int
    """

    __slots__ = ("inputs", "name", "rows")

    def __init__(self, name: str, inputs: list[array[int] | array[float]], rows: int) -> None:
        self.name = name
        self.inputs = inputs
        self.rows = rows


def is_language_model(model: Model) -> bool:
    """Return whether a model takes token ids and keeps a context: whether it can generate."""
    program = model.session.program
    return program.max_positions > 0 and program.inputs == [(_I32, 1)]


def spread_ids(model: Model, count: int) -> array[int]:
    """Return ``count`` token ids spread over the vocabulary."""
    vocab = _vocabulary(model)
    return array("i", [index * 7919 % vocab for index in range(count)])


def probes(model: Model, rows: int) -> list[Probe]:
    """Return the built-in probes.

    Parameters
    ----------
    model : Model
    rows : int
        Of the longest; at most what the model takes. The others have 8 or fewer.

    Returns
    -------
    list of Probe
        ``spread`` (over the vocabulary, or a ramp over -2 .. 2), ``first`` and ``last`` (one id, or
        zeros and ones), ``extremes`` (both ends of the vocabulary in turn; numbers from 1e-30 to
        1e4 of both signs).
    """
    program = model.session.program
    rows = max(1, min(rows, program.max_positions or program.max_tokens))
    few = min(rows, 8)
    last = _vocabulary(model) - 1

    def made(name: str, count: int, ids: Sequence[int], numbers: Sequence[float]) -> Probe:
        inputs: list[array[int] | array[float]] = []
        for dtype, width in program.inputs:
            size = count * width
            if dtype == _I32:
                inputs.append(array("i", [ids[i % len(ids)] for i in range(size)]))
            else:
                inputs.append(array("f", [numbers[i % len(numbers)] for i in range(size)]))
        return Probe(name, inputs, count)

    ramp = [(i * 37 % 101 - 50) / 25 for i in range(101)]
    return [
        made("spread", rows, spread_ids(model, rows), ramp),
        made("first", few, (0,), (0.0,)),
        made("last", few, (last,), (1.0,)),
        made("extremes", few, (0, last), _EXTREMES),
    ]


def run_probe(model: Model, probe: Probe, chunk: int | None = None) -> list[bytes]:
    """Run a probe and return the bits of every output.

    Parameters
    ----------
    model : Model
    probe : Probe
    chunk : int, optional
        Rows of one run; as many as planned by default.
    """
    program = model.session.program
    step = min(chunk or program.max_tokens, program.max_tokens)
    out_bytes = [4 * width for _, width in program.outputs]
    outputs = [bytearray(probe.rows * size) for size in out_bytes]
    for start in range(0, probe.rows, step):
        rows = min(step, probe.rows - start)
        model.session.run(
            [
                data[start * width : (start + rows) * width]
                for data, (_, width) in zip(probe.inputs, program.inputs, strict=True)
            ],
            [
                memoryview(data)[start * size : (start + rows) * size]
                for data, size in zip(outputs, out_bytes, strict=True)
            ],
            rows,
            start if program.max_positions else 0,
        )
    return [bytes(data) for data in outputs]


def fill(model: Model) -> Iterator[str]:
    """Run a model until its context is full; yield what has been done after each part of it."""
    if not is_language_model(model):
        rows = model.session.program.max_positions or model.session.program.max_tokens
        run_probe(model, probes(model, rows)[0])
        yield "run"
        return
    prompt = spread_ids(model, max(1, model.context - DECODED))
    generation = model.generate(prompt, max_tokens=model.context, ignore_eos=True)
    generation.advance()
    yield "prefilled"
    generation.text()
    yield "decoded"


def _vocabulary(model: Model) -> int:
    """Return the smallest table that ids of this model select from; 1 where there is none."""
    program = model.session.program
    sizes = [
        dims["vocab"]
        for _, _, dims, _ in map(program.instruction, range(program.instruction_count))
        if "vocab" in dims
    ]
    return min(sizes, default=1)
