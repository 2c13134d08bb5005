# SPDX-License-Identifier: MIT
"""The fine ops as ONNX ones, and the model of them: the one place that imports onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ExportError, MissingDependency
from bitnet_edge.exporters.lowering import Emitter, Handle
from bitnet_edge.exporters.ternary_packing import pack_bits, with_sentinels

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise MissingDependency(
        f"[onnx] this target needs onnx: pip install 'bitnet-edge[onnx]' ({error})"
    ) from error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitnet_edge.exporters.sources.source import ModelSource
    from bitnet_edge.exporters.targets.target import Settings

__all__ = ["OnnxEmitter"]

MAX_BYTES = (1 << 31) - 1  # of a protobuf message
OPSETS = {"int4": (21, 10)}  # form -> opset, IR version; other forms:
OPSET = (25, 13)
SENTINEL = 127.0
BLOCK = {"dequantize": 32, "ort": 128}  # columns that share a scale, the sentinel included
_FLOATS = {
    DType.F32: TensorProto.FLOAT,
    DType.F16: TensorProto.FLOAT16,
    DType.BF16: TensorProto.BFLOAT16,
}
_UNARY = {
    "abs": "Abs",
    "round": "Round",
    "sigmoid": "Sigmoid",
    "sqrt": "Sqrt",
}
_BINARY = {
    "add": "Add",
    "div": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "mul": "Mul",
    "sub": "Sub",
}


class OnnxEmitter(Emitter):
    """Collects nodes and initializers; a handle is a value's name."""

    def __init__(self, source: ModelSource, settings: Settings) -> None:
        super().__init__(source, -1, settings.context)
        self.form = settings.form.name
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.presents: dict[str, str] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output."""
        name = f"{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        """See `Emitter.constant`; equal ones are one."""
        values = np.asarray(values, order="C")
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            self.initializers[name] = numpy_helper.from_array(values, name)
            self._constants[key] = name
        return self._constants[key]

    def _integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, name: str, *operands: Handle | float, **keywords: Any) -> str:
        """See `Emitter.op`."""
        a, *rest = [self.constant(np.float32(o)) if isinstance(o, float) else o for o in operands]
        if name in _UNARY or name in _BINARY:
            return self.node((_UNARY | _BINARY)[name], a, *rest)
        if name == "matmul":
            b = rest[0]
            if keywords["transpose_b"]:
                b = self.node("Transpose", b, perm=[0, 2, 1])
            return self.node("MatMul", a, b)
        if name == "reshape":
            return self.node("Reshape", a, self._integers(*keywords["shape"]))
        if name == "columns":
            begin, end = self._integers(keywords["begin"]), self._integers(keywords["end"])
            return self.node("Slice", a, begin, end, self._integers(-1))
        if name == "concat":
            return self.node("Concat", a, *rest, axis=-1)
        if name == "transpose":
            return self.node("Transpose", a, perm=list(keywords["axes"]))
        if name == "softmax":
            return self.node("Softmax", a, axis=-1)
        kind = {"reduce_max": "ReduceMax", "reduce_mean": "ReduceMean"}[name]
        return self.node(kind, a, self._integers(-1), keepdims=1)

    # Weights

    def ternary_product(self, q: str, weight: str, begin: int, end: int) -> str:
        """See `Emitter.ternary_product`."""
        codes = self.load(weight)[:, begin:end]
        name = weight if codes.shape[1] == self._columns(weight) else f"{weight}.{begin}"
        self.ternary.weights += codes.size
        if self.form == "ort":
            return self._matmul_n_bits(q, name, codes)
        if self.form == "dequantize":
            return self._dequantized_product(q, name, codes)
        matrix = self._packed(name, codes, "INT2" if self.form == "int2" else "INT4")
        narrow = self.node("Cast", matrix, to=TensorProto.INT8)
        product = self.node(
            "MatMulInteger",
            self._unsigned(q),
            self.node("Transpose", narrow, perm=[1, 0]),
            self.constant(np.uint8(128)),
        )
        return self.node("Cast", product, to=TensorProto.FLOAT)

    def _columns(self, weight: str) -> int:
        return self.source.graph.tensors[weight].shape[1]

    def _unsigned(self, q: str) -> str:
        """Return q + 128 as UINT8: the fast kernels take unsigned times signed bytes."""
        if ("unsigned", q) not in self.memo:
            shifted = self.op("add", q, 128.0)
            self.memo["unsigned", q] = self.node("Cast", shifted, to=TensorProto.UINT8)
        return str(self.memo["unsigned", q])

    def _packed(self, name: str, codes: NDArray[np.int8], dtype: str) -> str:
        bits = int(dtype[-1])
        if name not in self.initializers:
            data = pack_bits(codes, bits)
            self.initializers[name] = helper.make_tensor(
                name, getattr(TensorProto, dtype), codes.shape, data.tobytes(), raw=True
            )
            self.ternary.stored += data.nbytes
        return name

    def _with_sentinels(self, q: str, k: int) -> str:
        """Return rows in blocks of columns that end in a sentinel, the last one filled with 0."""
        block = BLOCK[self.form]
        if ("sentinels", q) not in self.memo:
            blocks = -(-k // (block - 1))
            filled = self._padded(q, blocks * (block - 1) - k, 0.0)
            rows = self.op("reshape", filled, shape=(-1, block - 1))
            wide = self._padded(rows, 1, SENTINEL)
            self.memo["sentinels", q] = self.op("reshape", wide, shape=(-1, blocks * block))
        return str(self.memo["sentinels", q])

    def _padded(self, rows: str, columns: int, value: float) -> str:
        if not columns:
            return rows
        return self.node(
            "Pad", rows, self._integers(0, 0, 0, columns), self.constant(np.float32(value))
        )

    def _dequantized_product(self, q: str, name: str, codes: NDArray[np.int8]) -> str:
        """`DequantizeLinear` and `MatMul`; onnxruntime 1.32 misreads rows that share a byte."""
        rows, k = codes.shape
        wide = np.pad(with_sentinels(codes, BLOCK[self.form]), ((0, -rows % 4), (0, 0)))
        matrix = self._packed(name, np.ascontiguousarray(wide.T), "INT2")
        # A scale for each row: onnxruntime makes equal single numbers one, and fuses no op whose
        # scale others share.
        ones = f"{name}.ones"
        if ones not in self.initializers:
            self.initializers[ones] = numpy_helper.from_array(np.ones(len(wide), np.float32), ones)
            self.ternary.stored += 4 * len(wide)
        dense = self.node("DequantizeLinear", matrix, ones, axis=1)
        y = self.node("MatMul", self._with_sentinels(q, k), dense)
        return y if rows == len(wide) else self.op("columns", y, begin=0, end=rows)

    def _matmul_n_bits(self, q: str, name: str, codes: NDArray[np.int8]) -> str:
        """``MatMulNBits``: blocks of 2-bit fields around an integer zero point of 2.

        accuracy_level 4 is integer arithmetic; level 0 dequantises to floats, 300 times slower.
        """
        block = BLOCK[self.form]
        wide = with_sentinels(codes, block)
        rows, k = wide.shape
        blocks = k // block
        if f"{name}.blocks" not in self.initializers:
            packed = pack_bits(wide + 2, 2).reshape(rows, blocks, block // 4)
            scales = np.ones(rows * blocks, np.float32)
            for key, array in ((f"{name}.blocks", packed), (f"{name}.ones", scales)):
                self.initializers[key] = numpy_helper.from_array(array, key)
                self.ternary.stored += array.nbytes
        return self.node(
            "MatMulNBits",
            self._with_sentinels(q, codes.shape[1]),
            f"{name}.blocks",
            f"{name}.ones",
            domain="com.microsoft",
            K=k,
            N=rows,
            bits=2,
            block_size=block,
            accuracy_level=4,
        )

    def _dense(self, name: str) -> str:
        tensor = self.source.graph.tensors[name]
        if name not in self.initializers:
            raw = np.ascontiguousarray(self.source.weights.load(name)).tobytes()
            self.initializers[name] = helper.make_tensor(
                name, _FLOATS[tensor.dtype], tensor.shape, raw, raw=True
            )
        return name

    def _float(self, value: str, name: str) -> str:
        """Return a value of a constant's type as float32."""
        if self.source.graph.tensors[name].dtype is DType.F32:
            return value
        return self.node("Cast", value, to=TensorProto.FLOAT)

    def dense_product(self, x: str, weight: str) -> str:
        """See `Emitter.dense_product`."""
        matrix = self._float(self._dense(weight), weight)
        return self.node("MatMul", x, self.node("Transpose", matrix, perm=[1, 0]))

    def embedding(self, ids: str, table: str) -> str:
        """See `Emitter.embedding`."""
        return self._float(self.node("Gather", self._dense(table), ids, axis=0), table)

    # State and positions

    def append(self, state: str, rows: str) -> str:
        """See `Emitter.append`."""
        self.presents[state] = self.node("Concat", past(state), rows, axis=1)
        return self.presents[state]

    def _run_positions(self) -> str:
        """Return the positions of the run's rows as int64, (n,): past .. past + n."""
        if "positions" not in self.memo:
            first = self.source.graph.states()[0].name
            begin = self._size(past(first), 1)
            self.memo["positions"] = self.node(
                "Range",
                begin,
                self._keys(),
                self.constant(np.int64(1)),
            )
        return str(self.memo["positions"])

    def _keys(self) -> str:
        """Return how many keys the run's queries see, a scalar."""
        if "keys" not in self.memo:
            first = self.source.graph.states()[0].name
            begin = self._size(past(first), 1)
            rows = self._size(self.source.graph.inputs[0], 0)
            self.memo["keys"] = self.node("Add", begin, rows)
        return str(self.memo["keys"])

    def _size(self, value: str, axis: int) -> str:
        shape = self.node("Shape", value, start=axis, end=axis + 1)
        return self.node("Squeeze", shape)

    def positions(self) -> str:
        """See `Emitter.positions`."""
        wide = self.node("Cast", self._run_positions(), to=TensorProto.FLOAT)
        return self.op("reshape", wide, shape=(-1, 1))

    def key_positions(self) -> str:
        """See `Emitter.key_positions`."""
        zero, one = self.constant(np.int64(0)), self.constant(np.int64(1))
        keys = self.node("Range", zero, self._keys(), one)
        return self.op("reshape", self.node("Cast", keys, to=TensorProto.FLOAT), shape=(1, -1))

    def at_positions(self, table: NDArray[np.float32]) -> str:
        """See `Emitter.at_positions`."""
        return self.node("Gather", self.constant(table), self._run_positions(), axis=0)

    def save(self, path: Path, wanted: Sequence[str], metadata: Mapping[str, str]) -> None:
        """Check the model and write it; it gives ``wanted`` tensors of the graph, and the caches.

        Raises
        ------
        ExportError
            When it is larger than the format's limit.
        """
        graph = self.source.graph
        given: list[tuple[str, str, list[Any]]] = [
            (name, "INT32" if tensor.dtype is DType.I32 else "FLOAT", ["n", *tensor.shape[1:]])
            for name, tensor in ((name, graph.tensors[name]) for name in graph.inputs)
        ]
        results = {name: (self.handles[name], graph.tensors[name].shape[1:]) for name in wanted}
        shapes: dict[str, list[Any]] = {name: ["n", *shape] for name, (_, shape) in results.items()}
        handles = {name: handle for name, (handle, _) in results.items()}
        for state in graph.states():
            heads, _, head_dim = state.shape
            given.append((past(state.name), "FLOAT", [heads, "past", head_dim]))
            shapes[present(state.name)] = [heads, "keys", head_dim]
            handles[present(state.name)] = self.presents[state.name]
        for name, handle in handles.items():
            self.nodes.append(helper.make_node("Identity", [handle], [name], name=f"{name}.output"))
        made = helper.make_graph(
            self.nodes,
            graph.info.name,
            [
                helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
                for name, kind, shape in given
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in shapes.items()
            ],
            list(self.initializers.values()),
        )
        opset, ir_version = OPSETS.get(self.form, OPSET)
        imports = [helper.make_opsetid("", opset)]
        if self.form == "ort":
            imports.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(
            made, opset_imports=imports, ir_version=ir_version, producer_name="bitnet-edge"
        )
        helper.set_model_props(model, dict(metadata))
        if model.ByteSize() > MAX_BYTES:
            raise ExportError(
                f"[onnx] expected a model of at most {MAX_BYTES} bytes, got {model.ByteSize()}: "
                "choose form int2, or another target"
            )
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def past(state: str) -> str:
    """Return the input that holds a cache before a run."""
    return f"past.{state}"


def present(state: str) -> str:
    """Return the output that holds a cache after a run."""
    return f"present.{state}"
