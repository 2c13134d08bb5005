# SPDX-License-Identifier: MIT
"""The fine ops as ops of Core ML's intermediate language (MIL)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.exporters.lowering import Emitter, Handle, TernaryBytes
from bitnet_edge.exporters.targets.coreml_package import mb, types
from bitnet_edge.exporters.ternary_packing import pack_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitnet_edge.exporters.sources.source import ModelSource
    from bitnet_edge.exporters.targets.target import Settings

__all__ = ["AFTER", "POSITION", "UNROUNDED", "CoreMLEmitter", "StoredWeights", "identifier"]

POSITION = "position"  # the input that says where a run begins
AFTER = ".after"  # ends the name of a cache that goes out
NEGLIGIBLE = 2.0**-36  # float32 itself rounds by 2^-24
MIN_BLOB = 40  # fewer weights stand in the protobuf, where a field takes a byte
BLOB_HEADER = 64  # bytes before a constant in the weight file
TABLE = np.array([-1, 0, 1, 0], np.float32)
FLOAT16, UNROUNDED = "float16", "float16-unrounded"  # the forms that compute in float16
HALF_MASKED = 30000.0  # what a key is behind that a query may not see: softmax gives it zero
TRITS = 5  # 3^5 = 243 of the 256 entries of a table of vectors

# fine op -> MIL op over x, over x and y
_UNARY = {"abs": "abs", "round": "round", "sigmoid": "sigmoid", "sqrt": "sqrt"}
_BINARY = {name: name for name in ("add", "maximum", "minimum", "mul", "sub")} | {"div": "real_div"}
_REDUCTIONS = ("reduce_max", "reduce_mean")


def identifier(name: str) -> str:
    """Return a tensor's name as Core ML allows one; different names stay different."""
    made = re.sub(r"[^A-Za-z0-9]", "_", name)
    made = made if re.match(r"[A-Za-z]", made) else f"t_{made}"
    return made if made == name else f"{made}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


class StoredWeights:
    """Constants that the functions of a package share, by key.

    Attributes
    ----------
    bytes : TernaryBytes
    """

    def __init__(self) -> None:
        self.bytes = TernaryBytes()
        self._values: dict[str, Any] = {}

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what is filed under a key, made when it is new."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]


class CoreMLEmitter(Emitter):
    """Writes one function, within whose block it is used; a handle is a variable.

    Parameters
    ----------
    source : ModelSource
    rows : int
        Of a run; -1 for any number.
    settings : Settings
    inputs : dict
        The function's inputs and states by the names of the graph, and `POSITION`.
    weights : StoredWeights
    """

    def __init__(
        self,
        source: ModelSource,
        rows: int,
        settings: Settings,
        inputs: Mapping[str, Any],
        weights: StoredWeights,
    ) -> None:
        super().__init__(source, rows, settings.context)
        self.form = settings.form.name
        self.half = self.form in (FLOAT16, UNROUNDED)
        self.inputs = inputs
        self.ternary = weights.bytes
        self.weights = weights
        self.handles = dict(inputs)
        self.divisors: dict[Any, tuple[Any, ...]] = {}  # see coreml_float16
        self.appended: dict[str, Any] = {}  # caches after the run, where they are outputs

    def cast(self, x: Any) -> Any:
        """Return a value in the type that the function computes in."""
        return _cast(x, "fp16" if self.half else "fp32")

    def result(self, name: str) -> Any:
        """Return a tensor of the graph in float32, its divisors multiplied in."""
        handle = self.handles[name]
        y = _cast(handle, "fp32")
        for divisor in self.divisors.get(handle, ()):
            y = mb.mul(x=y, y=_cast(divisor, "fp32"))
        return y

    def op(self, name: str, *operands: Handle | float, **keywords: Any) -> Any:
        """See `Emitter.op`."""
        kind = next((o.dtype for o in operands if not isinstance(o, float)), types.fp32)
        number = np.float16 if kind == types.fp16 else np.float32
        a, *rest = [self.constant(number(o)) if isinstance(o, float) else o for o in operands]
        if name in _UNARY:
            return getattr(mb, _UNARY[name])(x=a)
        if name in _BINARY:
            return getattr(mb, _BINARY[name])(x=a, y=rest[0])
        if name in _REDUCTIONS:
            return getattr(mb, name)(x=a, axes=[-1], keep_dims=True)
        if name == "matmul":
            return mb.matmul(x=a, y=rest[0], transpose_y=keywords["transpose_b"])
        if name == "reshape":
            return mb.reshape(x=a, shape=keywords["shape"])
        if name == "transpose":
            return mb.transpose(x=a, perm=keywords["axes"])
        if name == "concat":
            return mb.concat(values=[a, rest[0]], axis=-1)
        if name == "softmax":
            return mb.softmax(x=a, axis=-1)
        whole = [True] * (a.rank - 1) + [False]
        return mb.slice_by_index(
            x=a,
            begin=[0] * (a.rank - 1) + [keywords["begin"]],
            end=[0] * (a.rank - 1) + [keywords["end"]],
            begin_mask=whole,
            end_mask=whole,
        )

    def constant(self, values: NDArray[Any]) -> Any:
        """See `Emitter.constant`; equal ones are one, in all functions.

        Those in float32 come in the type that the function computes in.
        """
        values = np.asarray(values)
        if self.half and values.dtype == np.float32:
            values = values.astype(np.float16)
        content = (values.dtype.str, values.shape, values.tobytes())
        return self._stored(hashlib.sha256(repr(content).encode()).hexdigest(), lambda: values)

    def _stored(self, key: str, make: Callable[[], Any]) -> Any:
        """Return the constant that is filed under a key, made when it is new."""
        if ("constant", key) not in self.memo:
            self.memo["constant", key] = mb.const(val=self.weights.get(key, make))
            self.memo["constant", key].op.weight_id = key
        return self.memo["constant", key]

    # Weights

    def ternary_product(self, q: Any, weight: str, begin: int, end: int) -> Any:
        """See `Emitter.ternary_product`."""
        return mb.linear(x=q, weight=self._ternary(weight, begin, end))

    def _ternary(self, name: str, begin: int, end: int) -> Any:
        """Return columns of a ternary matrix as floats, out of a table."""
        key = f"{name} {begin} {end}"
        shape = (self.source.graph.tensors[name].shape[0], end - begin)
        if shape[0] * shape[1] < MIN_BLOB:
            number = np.float16 if self.half else np.float32
            return self._stored(key, lambda: self.load(name)[:, begin:end].astype(number))
        axis = _vector_axis(shape) if self.form == "trits5" else None
        table = _vectors() if axis is not None else TABLE

        def indices() -> Any:
            codes = self.load(name)[:, begin:end]
            if axis is not None:
                made = _vector_indices(codes, axis)
            elif self.form == "ios16":
                made = pack_bits(codes + 1, 2)
            else:
                made = (codes + 1).astype(types.np_uint2_dtype)
            self.ternary.weights += codes.size
            packed = made.size if made.dtype.metadata is None else -(-made.size // 4)
            self.ternary.stored += packed + BLOB_HEADER + table.nbytes
            return made

        stored = self._stored(key, indices)
        if self.form == "ios16":
            lut = self.constant(table)
            return mb.constexpr_lut_to_dense(
                indices=stored, lut=lut, shape=np.array(shape, np.uint32)
            )
        if axis is None:
            lut = self.constant(table.reshape(1, 1, -1, 1))
            return mb.constexpr_lut_to_dense(indices=stored, lut=lut)
        lut = self.constant(table.reshape(1, 1, -1, TRITS))
        return mb.constexpr_lut_to_dense(indices=stored, lut=lut, vector_axis=np.int32(axis))

    def _dense(self, name: str) -> tuple[Any, float]:
        """Return a matrix as it is stored, and what its values are to be multiplied by.

        In float16 where that holds every value, or every value but for `NEGLIGIBLE` of the
        largest when all are multiplied by a power of two (bfloat16's small ones are those).
        """

        def values() -> Any:
            exact = self.load(name).astype(np.float32)
            largest = float(np.abs(exact).max())
            factor = 1.0
            with np.errstate(over="ignore"):
                half = exact.astype(np.float16)
            if not self.half and not np.array_equal(half, exact) and 0 < largest < np.inf:
                factor = 2.0 ** (15 - math.frexp(largest)[1])
                half = (exact * np.float32(factor)).astype(np.float16)
                error = np.abs(half.astype(np.float32) / np.float32(factor) - exact).max()
                if not error <= NEGLIGIBLE * largest:
                    return exact, 1.0
            return half, 1 / factor

        stored, factor = self.weights.get(name, values)
        return self._stored(f"{name} stored", lambda: stored), factor

    def dense_product(self, x: Any, weight: str) -> Any:
        """See `Emitter.dense_product`."""
        stored, factor = self._dense(weight)
        if stored.dtype == types.fp16 and not self.half:
            stored = mb.constexpr_cast(source_val=stored, output_dtype="fp32")
        return self._times(mb.linear(x=x, weight=stored), factor)

    def embedding(self, ids: Any, table: str) -> Any:
        """See `Emitter.embedding`."""
        stored, factor = self._dense(table)
        return self._times(self.cast(mb.gather(x=stored, indices=ids, axis=0)), factor)

    def _times(self, x: Any, factor: float) -> Any:
        return x if factor == 1.0 else self.op("mul", x, factor)

    # State and positions

    def append(self, state: str, rows: Any) -> Any:
        """See `Emitter.append`.

        Each cache is a state of its own, read once before its write; what follows uses the value
        that the write returns.
        """
        variable = self.inputs[state]
        if self.form == "ios16":  # no states: a cache comes in and goes out whole
            self.appended[state] = mb.scatter(
                data=variable, indices=self._run_positions(), updates=rows, axis=1, mode="update"
            )
            return self.appended[state]
        begin, end = self._window()
        mask = [True, False, True]
        written = mb.slice_update(
            x=mb.read_state(input=variable),
            update=_cast(rows, "fp16"),
            begin=begin,
            end=end,
            begin_mask=mask,
            end_mask=mask,
        )
        return self.cast(mb.coreml_update_state(state=variable, value=written))

    def _window(self) -> Any:
        """Return where the run's rows begin and end in a cache."""
        if "window" not in self.memo:
            zero, first = self.constant(np.zeros(1, np.int32)), self.inputs[POSITION]
            last = mb.add(x=first, y=self._count())
            self.memo["window"] = tuple(
                mb.concat(values=[zero, edge, zero], axis=0) for edge in (first, last)
            )
        return self.memo["window"]

    def _count(self) -> Any:
        """Return the number of the run's rows, (1,)."""
        if self.rows > 0:
            return self.constant(np.array([self.rows], np.int32))
        first = self.inputs[self.source.graph.inputs[0]]
        return mb.slice_by_size(x=mb.shape(x=first), begin=[0], size=[1])

    def _run_positions(self) -> Any:
        """Return the positions of the run's rows as int32, (n,)."""
        if "positions" not in self.memo:
            first = self.inputs[POSITION]
            if self.rows != 1:
                count = mb.squeeze(x=self._count())
                steps = mb.range_1d(start=np.int32(0), end=count, step=np.int32(1))
                first = mb.add(x=first, y=steps)
            self.memo["positions"] = first
        return self.memo["positions"]

    def positions(self) -> Any:
        """See `Emitter.positions`."""
        return mb.reshape(x=mb.cast(x=self._run_positions(), dtype="fp32"), shape=(-1, 1))

    def key_positions(self) -> Any:
        """See `Emitter.key_positions`."""
        return self.constant(np.arange(self.context, dtype=np.float32)[None])

    def bounded_mask(self, group: int) -> Any:
        """Return `lowering.causal_mask` without a product of positions, which float16 overflows."""
        ones = self.constant(np.ones((1, group), np.int32))
        positions = mb.reshape(x=self._run_positions(), shape=(-1, 1))
        queries = mb.reshape(x=mb.mul(x=positions, y=ones), shape=(-1, 1))
        keys = self.constant(np.arange(self.context, dtype=np.int32)[None])
        ahead = mb.maximum(x=mb.sub(x=queries, y=keys), y=np.int32(-1))
        ahead = mb.minimum(x=ahead, y=np.int32(0))
        return mb.mul(x=mb.cast(x=ahead, dtype="fp16"), y=np.float16(HALF_MASKED))

    def at_positions(self, table: NDArray[np.float32]) -> Any:
        """See `Emitter.at_positions`."""
        return mb.gather(x=self.constant(table), indices=self._run_positions(), axis=0)


def _vectors() -> NDArray[np.float32]:
    """Return the table of vectors, (256, TRITS): an entry's ternary digits, the first lowest."""
    entries = np.arange(256)[:, None] // 3 ** np.arange(TRITS) % 3 - 1
    entries[3**TRITS :] = 0
    return entries.astype(np.float32)


def _vector_axis(shape: tuple[int, int]) -> int | None:
    """Return the axis along which whole vectors lie, columns first; None without one."""
    return next((axis for axis in (1, 0) if shape[axis] % TRITS == 0), None)


def _vector_indices(codes: NDArray[np.int8], axis: int) -> NDArray[np.uint8]:
    """Return the entries of `_vectors` along an axis."""
    rows, k = codes.shape
    shape = (rows, k // TRITS) if axis else (rows // TRITS, k)
    index: NDArray[np.uint8] = np.zeros(shape, np.uint8)
    for place in range(TRITS):
        digits = codes[:, place::TRITS] if axis else codes[place::TRITS]
        index += np.uint8(3**place) * (digits + 1).astype(np.uint8)
    return index


def _cast(x: Any, dtype: str) -> Any:
    return x if x.dtype == types.string_to_builtin(dtype) else mb.cast(x=x, dtype=dtype)
