# SPDX-License-Identifier: MIT
"""What each instruction of a program must do: multiply-adds, and bytes of weights to read."""

from __future__ import annotations

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from bitnet_edge.runtime import Model

__all__ = ["Work", "decode_bytes", "decode_macs", "describe", "prefill_macs", "screened_bytes"]

_SCREENED = ("screen_limits", "screened_linear")
_WEIGHTS_REGION = 1  # BE_REGION_WEIGHTS
_OUTPUT_ROWS = 1  # BE_FLAG_OUTPUT_ROWS


class Work:
    """One instruction.

    Attributes
    ----------
    op : str
    name : str
        The weights it reads first, or the empty string.
    layer : str
        ``layers.N`` as in the names of its weights, or the part of the model they stand for
        outside the layers; what reads no weights belongs to the instruction before it.
    macs : int
        Multiply-adds of one token's row; those of attention, which grow with the position, are not
        counted.
    bytes : int
        Weights read by one run, however many tokens it has (of a table: one row; of a screened
        head: what is read for every token).
    tail : bool
        Works on the rows whose outputs are wanted only: of a prompt, the last.
    """

    __slots__ = ("bytes", "layer", "macs", "name", "op", "tail")

    def __init__(self, op: str, name: str, layer: str, macs: int, size: int, *, tail: bool) -> None:
        self.op = op
        self.name = name
        self.layer = layer
        self.macs = macs
        self.bytes = size
        self.tail = tail

    def __str__(self) -> str:
        return f"{self.op} {self.name}".rstrip()


def describe(model: Model) -> list[Work]:
    """Return the work of every instruction of a loaded model."""
    program = model.session.program
    tensors = {tensor.offset: tensor for tensor in model.file.tensors}
    works = []
    layer = ""
    for index in range(program.instruction_count):
        op, flags, dims, operands = program.instruction(index)
        offsets = [
            operand & ((1 << 48) - 1)
            for operand in operands.values()
            if operand >> 56 == _WEIGHTS_REGION
        ]
        read = [tensors[offset] for offset in offsets]
        size = sum(t.bytes // dims.get("vocab", 1) for t in read)
        macs = dims["rows"] * dims["k"] if "rows" in dims and "k" in dims else 0
        if op in _SCREENED:  # of its table few rows, which depend on the token
            size -= dims["rows"] * row_bytes(dims)
            macs = 0
        name = read[0].name if read else ""
        layer = _layer(name) or layer
        works.append(Work(op, name, layer, macs, size, tail=bool(flags & _OUTPUT_ROWS)))
    return works


def _layer(name: str) -> str:
    """Return a tensor's layer: ``layers.3`` of ``layers.3.q_proj``, none of ``rope.inv_freq``."""
    parts = name.split(".")
    if parts[0] == "layers":
        return ".".join(parts[:2])
    name = name.removesuffix(".screen").removesuffix(".bounds")  # as what they screen
    return "" if parts[0] == "rope" else name


def row_bytes(dims: dict[str, int]) -> int:
    """Return the bytes of a float row of an instruction with ``k`` and ``dtype``."""
    return dims["k"] * (2 if dims["dtype"] in (1, 2) else 4)


def screened_bytes(model: Model) -> int:
    """Return the bytes of the tables that are read by rows, as a screen finds them."""
    program, total = model.session.program, 0
    for index in range(program.instruction_count):
        op, _, dims, _ = program.instruction(index)
        total += dims["rows"] * row_bytes(dims) if op == "screened_linear" else 0
    return total


def decode_bytes(model: Model, works: list[Work], position: int) -> float:
    """Return the bytes one token reads: every weight once, and the cached keys and values."""
    program = model.session.program
    cached = program.state_bytes * (position + 1) / max(1, program.max_positions)
    return sum(work.bytes for work in works) + cached


def decode_macs(works: list[Work]) -> int:
    """Return the multiply-adds of one token's linears."""
    return sum(work.macs for work in works)


def prefill_macs(works: list[Work], tokens: int) -> int:
    """Return the multiply-adds of a prompt's linears."""
    return sum(work.macs * (1 if work.tail else tokens) for work in works)
