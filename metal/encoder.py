# SPDX-License-Identifier: MIT
"""A verified program -> the dispatches of one forward pass, with every binding's extent.

The same records that ``engine/program_run.c`` executes. Rows of the arena and of inputs are indexed
by token, rows of outputs by output row, as there. Standard library and the engine only.
"""

from __future__ import annotations

from bitnet_edge._engine import kv_layout
from bitnet_edge.errors import DeviceUnsupported
from bitnet_edge.metal.geometry import Geometry, Pass, geometry
from bitnet_edge.metal.shader_library import kernels

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bitnet_edge._engine import Program

__all__ = ["Binding", "Dispatch", "encode", "moved"]

REGIONS = ("none", "weights", "arena", "state", "input", "output")  # be_region
OUTPUT_ROWS = 1  # BE_FLAG_OUTPUT_ROWS
ELEMENT = {0: 4, 1: 2, 2: 2}  # bytes by be_dtype

# Of a screened head, a run that wants all logits skips the estimates (engine/head_screen.h).
SKIPPED = ("screen_linear", "screen_limits")


class Binding:
    """Bytes of a region that one dispatch may touch.

    Attributes
    ----------
    name : str
        The kernel's parameter.
    index : int
        Of the buffer argument.
    region : str
        ``weights``, ``arena``, ``state``, ``input`` or ``output``.
    port : int
        Of an input or output.
    offset, bytes : int
    writable : bool
    """

    __slots__ = ("bytes", "index", "name", "offset", "port", "region", "writable")

    def __init__(
        self, name: str, index: int, region: str, port: int, offset: int, size: int, writable: bool
    ) -> None:
        self.name = name
        self.index = index
        self.region = region
        self.port = port
        self.offset = offset
        self.bytes = size
        self.writable = writable

    def overlaps(self, other: Binding) -> bool:
        """Whether both touch a byte."""
        return (
            (self.region, self.port) == (other.region, other.port)
            and self.offset < other.offset + other.bytes
            and other.offset < self.offset + self.bytes
        )


class Dispatch:
    """One kernel launch: its geometry, parameters packed, bindings, and whether a barrier precedes.

    ``barrier`` says that something it touches was written, or something it writes was touched,
    since the barrier before.
    """

    __slots__ = ("barrier", "bindings", "geometry", "instruction", "params")

    def __init__(
        self, instruction: int, made: Geometry, params: bytes, bindings: tuple[Binding, ...]
    ) -> None:
        self.instruction = instruction
        self.geometry = made
        self.params = params
        self.bindings = bindings
        self.barrier = False


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _head_bytes(bits: int, rows: int, k: int) -> int:
    panels = -(-rows // 16)
    return panels * (64 + 64 * -(-k // 4) if bits == 8 else 576 * -(-k // 64))


def _caches(d: Mapping[str, int], name: str, positions: int) -> int:
    return d[name] * kv_layout(d["dtype"], d["head_dim"], positions)["head_bytes"]


# op -> operand -> bytes; those of ROWS are of one row of the run, the others of the whole. The same
# as program_ops.c has verified.
ROWS: dict[str, dict[str, Callable[[Mapping[str, int]], int]]] = {
    "embed": {"y": lambda d: 4 * d["width"], "ids": lambda d: 4},
    "head_embed": {"y": lambda d: 4 * d["width"], "ids": lambda d: 4},
    "rms_norm": {"y": lambda d: 4 * d["width"], "x": lambda d: 4 * d["width"]},
    "quantize": {
        "q": lambda d: _round_up(d["width"], 16),
        "s": lambda d: 4,
        "q_sum": lambda d: 4 * d["groups"],
        "x": lambda d: 4 * d["width"],
    },
    "quantize_wide": {
        "q": lambda d: 2 * _round_up(d["width"], 64),
        "s": lambda d: 4,
        "q_sum": lambda d: _round_up(d["width"], 64) // 8,
        "x": lambda d: 4 * d["width"],
    },
    "ternary_linear": {
        "y": lambda d: 4 * d["rows"],
        "q": lambda d: _round_up(d["k"], 16),
        "s": lambda d: 4,
        "q_sum": lambda d: 4,
    },
    "dense_linear": {"y": lambda d: 4 * d["rows"], "x": lambda d: 4 * d["k"]},
    "head_linear": {
        "y": lambda d: 4 * d["rows"],
        "q": lambda d: 2 * _round_up(d["k"], 64),
        "s": lambda d: 4,
        "q_sum": lambda d: _round_up(d["k"], 64) // 8,
    },
    "gated_activation": dict.fromkeys(("y", "gate", "up"), lambda d: 4 * d["width"]),
    "add": dict.fromkeys(("y", "a", "b"), lambda d: 4 * d["width"]),
    "rope_angles": {"y": lambda d: 8 * d["half"]},
    "rope": {
        "y": lambda d: 4 * d["heads"] * d["head_dim"],
        "x": lambda d: 4 * d["heads"] * d["head_dim"],
        "angles": lambda d: 4 * d["head_dim"],
    },
    "kv_append": {
        "x": lambda d: 4 * d["kv_heads"] * d["head_dim"],
        "angles": lambda d: 4 * d["head_dim"],
    },
    "attention": dict.fromkeys(("y", "q"), lambda d: 4 * d["heads"] * d["head_dim"]),
}
ROWS["rms_norm_quantize"] = ROWS["quantize"]
WHOLE: dict[str, dict[str, Callable[[Mapping[str, int], int], int]]] = {
    "embed": {"table": lambda d, n: d["vocab"] * d["width"] * ELEMENT[d["dtype"]]},
    "head_embed": {"table": lambda d, n: _head_bytes(d["bits"], d["vocab"], d["width"])},
    "rms_norm": {"gain": lambda d, n: 4 * d["width"]},
    "rms_norm_quantize": {"gain": lambda d, n: 4 * d["width"]},
    "ternary_linear": {
        "w": lambda d, n: _round_up(d["rows"], 16) * _round_up(d["k"], 16) // 4,
        "bias": lambda d, n: 4 * d["rows"],
    },
    "dense_linear": {
        "w": lambda d, n: d["rows"] * d["k"] * ELEMENT[d["dtype"]],
        "bias": lambda d, n: 4 * d["rows"],
    },
    "head_linear": {
        "w": lambda d, n: _head_bytes(d["bits"], d["rows"], d["k"]),
        "bias": lambda d, n: 4 * d["rows"],
    },
    "rope_angles": {"inv_freq": lambda d, n: 4 * d["half"]},
    "kv_append": {"cache": lambda d, n: _caches(d, "kv_heads", n)},
    "attention": dict.fromkeys(("k_cache", "v_cache"), lambda d, n: _caches(d, "kv_heads", n)),
}


def encode(
    program: Program,
    n_tokens: int,
    position: int = 0,
    output_rows: int | None = None,
    *,
    matrix: bool = False,
) -> list[Dispatch]:
    """Return the dispatches of one forward pass, in order, barriers marked.

    Parameters
    ----------
    program : Program
        Verified by the engine.
    n_tokens, position : int
        Rows of the run and where the first goes in the KV cache.
    output_rows : int, optional
        Last rows whose outputs are wanted; all by default, 0 skips the tail.
    matrix : bool
        Whether the GPU multiplies matrices in simdgroups.

    Raises
    ------
    DeviceUnsupported
        For an instruction that no shader serves.
    """
    wanted = n_tokens if output_rows is None else output_rows
    made = list(_dispatches(program, n_tokens, position, wanted, matrix))
    _mark_barriers(made)
    return made


def _dispatches(
    program: Program, n_tokens: int, position: int, output_rows: int, matrix: bool
) -> Iterator[Dispatch]:
    if program.window:
        raise DeviceUnsupported(
            f"[metal] expected a program that sees its whole sequence, got a window of "
            f"{program.window} positions"
        )
    signatures = kernels()
    for index in range(program.instruction_count):
        op, flags, dims, operands = program.instruction(index)
        begin = n_tokens - output_rows if flags & OUTPUT_ROWS else 0
        if begin == n_tokens or op in SKIPPED:
            continue
        if op == "screened_linear":
            op = "dense_linear"
            operands = {name: operands[name] for name in ("y", "x")} | {"w": operands["table"]}
        if dims.get("groups", 1) != 1 or operands.get("scales"):
            raise DeviceUnsupported(
                f"[metal] {op}: expected one scale for the matrix, got scales of rows or groups "
                f"(instruction {index})"
            )
        run = Pass(n_tokens - begin, position + begin, program.max_positions, matrix)
        optional = bool(operands.get("bias") or operands.get("angles"))
        shape = geometry(op, dims, program.scalars(index), run, optional=optional)
        kernel = signatures[shape.kernel]
        bindings = []
        for buffer in kernel.buffers:
            operand = operands.get(buffer.name, 0)
            region = REGIONS[operand >> 56]
            port, offset = operand >> 48 & 0xFF, operand & ((1 << 48) - 1)
            size = 0
            if region == "none":  # absent, never read: any buffer will do
                region, port, offset = "weights", 0, 0
            elif buffer.name in ROWS[op]:
                row_bytes = ROWS[op][buffer.name](dims)
                size = row_bytes * run.tokens
                offset += 0 if region == "output" else begin * row_bytes
            else:
                size = WHOLE[op][buffer.name](dims, program.max_positions)
            bindings.append(
                Binding(buffer.name, buffer.index, region, port, offset, size, buffer.writable)
            )
        yield Dispatch(index, shape, kernel.pack(shape.params), tuple(bindings))


def _mark_barriers(dispatches: list[Dispatch]) -> None:
    """Set barriers: a concurrent encoder keeps no other order."""
    since: list[Dispatch] = []
    for dispatch in dispatches:
        if any(_conflict(dispatch, earlier) for earlier in since):
            dispatch.barrier = True
            since = []
        since.append(dispatch)


def _conflict(a: Dispatch, b: Dispatch) -> bool:
    return any((x.writable or y.writable) and x.overlaps(y) for x in a.bindings for y in b.bindings)


def moved(dispatches: list[Dispatch], position: int) -> list[Dispatch]:
    """Return the dispatches of a pass that was encoded at position 0, elsewhere in the cache."""
    return [_moved(dispatch, position) if position else dispatch for dispatch in dispatches]


def _moved(dispatch: Dispatch, position: int) -> Dispatch:
    made = dispatch.geometry
    if "position" not in made.params:
        return dispatch
    params = {**made.params, "position": made.params["position"] + position}
    shape = Geometry(made.kernel, made.groups[:2], made.threads, params, made.memory)
    packed = kernels()[made.kernel].pack(params)
    result = Dispatch(dispatch.instruction, shape, packed, dispatch.bindings)
    result.barrier = dispatch.barrier
    return result
