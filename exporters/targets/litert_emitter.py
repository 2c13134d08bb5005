# SPDX-License-Identifier: MIT
"""The fine ops as LiteRT's builtin ones, and the model they are collected in.

Shapes are fixed, so they are inferred here as the ops are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.exporters.lowering import Emitter, Handle, TernaryBytes
from bitnet_edge.exporters.targets.litert_runner import POSITION
from bitnet_edge.exporters.ternary_packing import pack_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitnet_edge.exporters.sources.source import ModelSource
    from bitnet_edge.exporters.targets.target import Settings

__all__ = ["LiteRTEmitter", "ModelBuilder"]

# fine op -> builtin op, the class of its options
_UNARY = {"abs": ("ABS", "Abs"), "round": ("ROUND", ""), "sigmoid": ("LOGISTIC", "")}
_UNARY |= {"sqrt": ("SQRT", "")}
_BINARY = {
    "add": ("ADD", "Add"),
    "div": ("DIV", "Div"),
    "maximum": ("MAXIMUM", "MaximumMinimum"),
    "minimum": ("MINIMUM", "MaximumMinimum"),
    "mul": ("MUL", "Mul"),
    "sub": ("SUB", "Sub"),
}
# Versions of fully-connected that say the weights' type; other ops are of version 1.
_VERSIONS = {"INT2": 12, "INT4": 10, "INT8": 3}
_WEIGHTS = {"xnnpack": "INT2", "builtin": "INT2", "int4": "INT4", "int8": "INT8"}
_SENTINELS = {"xnnpack": (-128.0, 127.0)}  # other forms:
_SENTINEL = (127.0,)
_FIELDS_PER_BYTE = 4  # rows begin at whole bytes in every form
_PLACEHOLDER = 127  # in the byte that once held op codes, for those beyond it


class ModelBuilder:
    """Collects buffers, op codes and subgraphs; weights are shared between subgraphs."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "bitnet-edge"
        self.model.subgraphs, self.model.signatureDefs = [], []
        self.model.operatorCodes = []
        self.model.buffers = [schema.BufferT()]  # the first is that of tensors without data
        self.ternary = TernaryBytes()
        self._buffers: dict[Any, int] = {}
        self._codes: dict[tuple[str, int], int] = {}

    def buffer(self, key: Any, data: NDArray[Any] | bytes) -> int:
        """Return the buffer that is filed under a key, made when it is new."""
        if key not in self._buffers:
            made = self.schema.BufferT()
            made.data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
            self._buffers[key] = len(self.model.buffers)
            self.model.buffers.append(made)
        return self._buffers[key]

    def has(self, key: Any) -> bool:
        """Whether a buffer is filed under a key."""
        return key in self._buffers

    def code(self, name: str, version: int) -> int:
        """Return the index of an op code."""
        if (name, version) not in self._codes:
            made = self.schema.OperatorCodeT()
            made.builtinCode = getattr(self.schema.BuiltinOperator, name)
            made.deprecatedBuiltinCode = min(made.builtinCode, _PLACEHOLDER)
            made.version = version
            self._codes[name, version] = len(self._codes)
            self.model.operatorCodes.append(made)
        return self._codes[name, version]

    def add_signature(self, name: str, e: LiteRTEmitter, outputs: Mapping[str, int]) -> None:
        """Add a subgraph and the names of its inputs and outputs."""
        e.subgraph.name = name
        e.subgraph.outputs = list(outputs.values())
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = name, len(self.model.subgraphs)
        signature.inputs = [self._named(n, e.inputs[n]) for n in e.inputs]
        signature.outputs = [self._named(n, index) for n, index in outputs.items()]
        self.model.subgraphs.append(e.subgraph)
        self.model.signatureDefs.append(signature)

    def _named(self, name: str, index: int) -> Any:
        made = self.schema.TensorMapT()
        made.name, made.tensorIndex = name, index
        return made

    def finish(self, metadata: Mapping[str, str]) -> Any:
        """Return the model."""
        self.model.metadata = []
        for name, value in metadata.items():
            made = self.schema.MetadataT()
            made.name, made.buffer = name, self.buffer(("metadata", name), value.encode())
            self.model.metadata.append(made)
        return self.model


class LiteRTEmitter(Emitter):
    """Writes one subgraph; a handle is a tensor's index.

    Attributes
    ----------
    inputs : dict
        Name -> tensor, as the signature will say.
    appended : dict
        Cache -> tensor that holds it after the run.
    """

    def __init__(
        self, builder: ModelBuilder, source: ModelSource, rows: int, settings: Settings
    ) -> None:
        super().__init__(source, rows, settings.context)
        self.builder, self.schema = builder, builder.schema
        self.form = settings.form.name
        self.ternary = builder.ternary  # of all subgraphs
        self.subgraph = self.schema.SubGraphT()
        self.subgraph.tensors, self.subgraph.operators = [], []
        self.subgraph.inputs = []
        self.inputs: dict[str, int] = {}
        self.appended: dict[str, int] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._constants: dict[Any, int] = {}

    def tensor(self, name: str, shape: Sequence[int], kind: str, buffer: int = 0) -> int:
        """Add a tensor."""
        made = self.schema.TensorT()
        made.name, made.shape = name, list(shape)
        made.type, made.buffer = getattr(self.schema.TensorType, kind), buffer
        self.subgraph.tensors.append(made)
        self._shapes.append(tuple(shape))
        return len(self._shapes) - 1

    def input(self, name: str, shape: Sequence[int], kind: str) -> int:
        """Add an input of the subgraph."""
        self.inputs[name] = self.tensor(name, shape, kind)
        self.subgraph.inputs.append(self.inputs[name])
        return self.inputs[name]

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        options: str = "",
        version: int = 1,
        kind: str = "FLOAT32",
        **values: Any,
    ) -> int:
        """Add an operator of one output; ``values`` are fields of its options."""
        made = self.schema.OperatorT()
        made.opcodeIndex = self.builder.code(name, version)
        made.inputs = list(inputs)
        output = self.tensor(f"{name.lower()}.{len(self._shapes)}", shape, kind)
        made.outputs = [output]
        if options:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, f"{options}Options")
            made.builtinOptions = getattr(self.schema, f"{options}OptionsT")()
            for key, value in values.items():
                setattr(made.builtinOptions, key, value)
        self.subgraph.operators.append(made)
        return output

    def constant(self, values: NDArray[Any]) -> int:
        """See `Emitter.constant`; equal ones are one."""
        values = np.atleast_1d(np.asarray(values))
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            kind = {"f": "FLOAT32", "i": "INT32"}[values.dtype.kind]
            buffer = self.builder.buffer(key, key[2])
            self._constants[key] = self.tensor(
                f"constant.{len(self._constants)}", values.shape, kind, buffer
            )
        return self._constants[key]

    def _integers(self, *values: int) -> int:
        return self.constant(np.array(values, np.int32))

    def op(self, name: str, *operands: Handle | float, **keywords: Any) -> int:
        """See `Emitter.op`."""
        a, *rest = [self.constant(np.float32(o)) if isinstance(o, float) else o for o in operands]
        shape = self._shapes[a]
        if name in _UNARY:
            kind, options = _UNARY[name]
            return self.operator(kind, [a], shape, options=options)
        if name in _BINARY:
            kind, options = _BINARY[name]
            both = np.broadcast_shapes(shape, self._shapes[rest[0]])
            return self.operator(kind, [a, rest[0]], both, options=options)
        if name == "matmul":
            turned = keywords["transpose_b"]
            result = (*shape[:-1], self._shapes[rest[0]][-2 if turned else -1])
            inputs = [a, rest[0]]
            return self.operator("BATCH_MATMUL", inputs, result, options="BatchMatMul", adjY=turned)
        if name == "reshape":
            result = np.empty(shape, np.bool_).reshape(keywords["shape"]).shape
            inputs = [a, self._integers(*result)]
            return self.operator(
                "RESHAPE", inputs, result, options="Reshape", newShape=list(result)
            )
        if name == "columns":
            begin, width = keywords["begin"], keywords["end"] - keywords["begin"]
            result = (*shape[:-1], width)
            starts = self._integers(*[0] * (len(shape) - 1), begin)
            return self.operator(
                "SLICE", [a, starts, self._integers(*result)], result, options="Slice"
            )
        if name == "concat":
            result = (*shape[:-1], shape[-1] + self._shapes[rest[0]][-1])
            return self._concatenation([a, *rest], result, axis=len(shape) - 1)
        if name == "transpose":
            axes = keywords["axes"]
            result = tuple(shape[axis] for axis in axes)
            return self.operator(
                "TRANSPOSE", [a, self._integers(*axes)], result, options="Transpose"
            )
        if name == "softmax":
            return self.operator("SOFTMAX", [a], shape, options="Softmax", beta=1.0)
        kind = {"reduce_max": "REDUCE_MAX", "reduce_mean": "MEAN"}[name]
        inputs = [a, self._integers(len(shape) - 1)]
        return self.operator(kind, inputs, (*shape[:-1], 1), options="Reducer", keepDims=True)

    def _concatenation(
        self, parts: Sequence[int], shape: Sequence[int], *, axis: int, kind: str = "FLOAT32"
    ) -> int:
        return self.operator(
            "CONCATENATION", parts, shape, options="Concatenation", axis=axis, kind=kind
        )

    # Weights

    def _fully_connected(self, x: int, weight: int, version: int = 1) -> int:
        shape = (self._shapes[x][0], self._shapes[weight][0])
        return self.operator(
            "FULLY_CONNECTED", [x, weight, -1], shape, options="FullyConnected", version=version
        )

    def ternary_product(self, q: int, weight: str, begin: int, end: int) -> int:
        """See `Emitter.ternary_product`."""
        sentinels = _SENTINELS.get(self.form, _SENTINEL)
        rows, k = self.source.graph.tensors[weight].shape[0], end - begin
        wide = -(-(k + len(sentinels)) // _FIELDS_PER_BYTE) * _FIELDS_PER_BYTE
        kind, key = _WEIGHTS[self.form], ("ternary", weight, begin)
        if not self.builder.has(key):
            codes = np.pad(self.load(weight)[:, begin:end], ((0, 0), (0, wide - k)))
            data = (
                codes.reshape(-1).view(np.uint8)
                if kind == "INT8"
                else pack_bits(codes, int(kind[-1]))
            )
            self.builder.buffer(key, data)
            self.ternary.weights += rows * k
            self.ternary.stored += data.nbytes
        buffer = self.builder.buffer(key, b"")
        scales = rows if self.form == "xnnpack" else 1
        self.ternary.stored += 12 * scales  # a scale and a zero point, in each subgraph
        matrix = self.tensor(f"{weight}.{begin}", (rows, wide), kind, buffer)
        quantization = self.schema.QuantizationParametersT()
        quantization.scale = np.ones(scales, np.float32)
        quantization.zeroPoint = np.zeros(scales, np.int64)  # as many, or it is refused
        self.subgraph.tensors[matrix].quantization = quantization
        return self._fully_connected(self._with_sentinels(q, wide - k), matrix, _VERSIONS[kind])

    def _with_sentinels(self, q: int, columns: int) -> int:
        """Return rows with the sentinels, and zeros, as their last columns."""
        if ("sentinels", q) not in self.memo:
            last = np.zeros((self.rows, columns), np.float32)
            sentinels = _SENTINELS.get(self.form, _SENTINEL)
            last[:, : len(sentinels)] = sentinels
            self.memo["sentinels", q] = self.op("concat", q, self.constant(last))
        return int(self.memo["sentinels", q])

    def _dense(self, name: str) -> int:
        """Return a matrix in float32 (bfloat16 is no type of the kernels), one tensor a graph."""
        if ("dense", name) not in self.memo:
            key = ("dense", name)
            if not self.builder.has(key):
                self.builder.buffer(key, self.load(name).astype(np.float32).tobytes())
            shape = self.source.graph.tensors[name].shape
            self.memo[key] = self.tensor(name, shape, "FLOAT32", self.builder.buffer(key, b""))
        return int(self.memo["dense", name])

    def dense_product(self, x: int, weight: str) -> int:
        """See `Emitter.dense_product`."""
        return self._fully_connected(x, self._dense(weight))

    def embedding(self, ids: int, table: str) -> int:
        """See `Emitter.embedding`."""
        return self._gather(self._dense(table), ids)

    def _gather(self, table: int, rows: int) -> int:
        shape = (*self._shapes[rows], self._shapes[table][1])
        return self.operator("GATHER", [table, rows], shape, options="Gather", axis=0)

    # State and positions

    def append(self, state: str, rows: int) -> int:
        """See `Emitter.append`."""
        if "start" not in self.memo:
            zero = self._integers(0)
            parts = [zero, self.inputs[POSITION], zero]
            self.memo["start"] = self._concatenation(parts, (3,), axis=0, kind="INT32")
        cache = self.inputs[state]
        self.appended[state] = self.operator(
            "DYNAMIC_UPDATE_SLICE", [cache, rows, self.memo["start"]], self._shapes[cache]
        )
        return self.appended[state]

    def _run_positions(self) -> int:
        """Return the positions of the run's rows as int32, (n,).

        Those of a filled-up prompt may lie beyond the cache; they read its last angles.
        """
        if "positions" not in self.memo:
            steps = self._integers(*range(self.rows))
            inputs, shape = [self.inputs[POSITION], steps], (self.rows,)
            moved = self.operator("ADD", inputs, shape, options="Add", kind="INT32")
            last = self._integers(self.context - 1)
            self.memo["positions"] = self.operator(
                "MINIMUM", [moved, last], shape, options="MaximumMinimum", kind="INT32"
            )
        return int(self.memo["positions"])

    def positions(self) -> int:
        """See `Emitter.positions`."""
        kinds = self.schema.TensorType
        wide = self.operator(
            "CAST",
            [self._run_positions()],
            (self.rows,),
            options="Cast",
            inDataType=kinds.INT32,
            outDataType=kinds.FLOAT32,
        )
        return self.op("reshape", wide, shape=(-1, 1))

    def key_positions(self) -> int:
        """See `Emitter.key_positions`."""
        return self.constant(np.arange(self.context, dtype=np.float32)[None])

    def at_positions(self, table: NDArray[np.float32]) -> int:
        """See `Emitter.at_positions`."""
        return self._gather(self.constant(table), self._run_positions())
