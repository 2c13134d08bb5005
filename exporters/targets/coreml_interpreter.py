# SPDX-License-Identifier: MIT
"""A saved ML program, run in numpy: no Mac, and nothing of coremltools but the protobuf's classes.

What lies on the disk is what runs: constants are read from the package's weight file, ops, states
and functions from its protobuf. The result of every op has the type that the program says; one of
float16 is computed in float32 and rounded once, as an accelerator with wide accumulators does.
Products are summed in numpy's order, Core ML's in its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MLProgram"]

_BLOB = struct.Struct("<IIQQQ")  # sentinel, type, bytes, offset of the data, bits of padding
_SENTINEL = 0xDEADBEEF
_DTYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "INT32": np.int32,
    "UINT32": np.uint32,
    "UINT8": np.uint8,
}
_CASTS = {"bool": np.bool_, "fp16": np.float16, "fp32": np.float32, "int32": np.int32}
KEPT = 1 << 20  # elements of a constant that is kept unpacked


class MLProgram:
    """Functions and states of a package.

    Parameters
    ----------
    model : Model
        The protobuf.
    weights : Path
        The file that its constants are in.
    """

    def __init__(self, model: Any, weights: Path) -> None:
        self._functions = model.mlProgram.functions
        self._blob = np.memmap(weights, np.uint8, "r") if weights.exists() else None
        self._constants: dict[Any, Any] = {}
        self.states: dict[str, Any] = {}
        self.reset()

    @property
    def functions(self) -> list[str]:
        """The names of the functions."""
        return sorted(self._functions)

    def inputs(self, function: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a function's inputs, without states; -1 where one is open."""
        return {
            port.name: _shape(port.type.tensorType)
            for port in self._functions[function].inputs
            if port.type.WhichOneof("type") == "tensorType"
        }

    def reset(self) -> None:
        """Fill all states with zeros, as ``makeState()`` does."""
        for function in self._functions.values():
            for port in function.inputs:
                if port.type.WhichOneof("type") == "stateType":
                    kind = port.type.stateType.wrappedType.tensorType
                    self.states[port.name] = np.zeros(_shape(kind), _dtype(kind))

    def operations(self, function: str) -> Any:
        """Return the ops of a function, in order."""
        specialised = self._functions[function].block_specializations
        (block,) = specialised.values()
        return block.operations

    def run(self, function: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a function.

        Raises
        ------
        FormatError
            For an op that has no meaning here, or a blob that is none.
        """
        (block,) = self._functions[function].block_specializations.values()
        values: dict[str, Any] = dict(inputs)
        for index, operation in enumerate(block.operations):
            kind = operation.type
            if kind == "read_state":
                name = operation.inputs["input"].arguments[0].name
                values[operation.outputs[0].name] = self.states[name].copy()
            elif kind == "write_state":
                state, data = (operation.inputs[key].arguments[0].name for key in ("input", "data"))
                self.states[state] = values[data].astype(self.states[state].dtype)
            elif kind == "const" or kind.startswith("constexpr_"):
                # Unpacked where it is used: all of a large model's at once would not fit.
                values[operation.outputs[0].name] = partial(
                    self._constant, function, index, operation
                )
            else:
                values[operation.outputs[0].name] = self._apply(operation, values)
        return {name: values[name] for name in block.outputs}

    def _apply(self, operation: Any, values: Mapping[str, Any]) -> Any:
        if operation.type not in _OPS:
            raise FormatError(f"[coreml] no meaning is written for op {operation.type!r}")
        operands = {}
        for key, argument in operation.inputs.items():
            given = [
                _resolved(values[binding.name]) if binding.name else self._value(binding.value)
                for binding in argument.arguments
            ]
            operands[key] = given if key == "values" else given[0]
        kind = operation.outputs[0].type.tensorType
        with np.errstate(all="ignore"):  # infinities are the program's business
            result = np.asarray(_OPS[operation.type](**operands))
            return result.astype(_dtype(kind))

    # Constants

    def _constant(self, function: str, index: int, operation: Any) -> Any:
        if (function, index) in self._constants:
            return self._constants[function, index]
        attributes = {
            **{key: self._value(v) for key, v in operation.attributes.items()},
            **{k: self._value(v.arguments[0].value) for k, v in operation.inputs.items()},
        }
        if operation.type == "const":
            value = attributes["val"]
        else:
            del attributes["name"]
            if operation.type not in _CONSTANT_OPS:
                raise FormatError(f"[coreml] no meaning is written for op {operation.type!r}")
            value = _CONSTANT_OPS[operation.type](**attributes)
        kind = operation.outputs[0].type.tensorType
        if operation.outputs[0].type.WhichOneof("type") == "tensorType" and _shape(kind) != (
            found := np.shape(value)
        ):
            raise FormatError(f"[coreml] expected a constant {_shape(kind)}, got {found}")
        if np.size(value) <= KEPT:
            self._constants[function, index] = value
        return value

    def _value(self, value: Any) -> Any:
        """Return a constant of the protobuf or of the weight file."""
        kind = value.type.tensorType
        shape, name = _shape(kind), _type_name(kind)
        if value.WhichOneof("value") == "blobFileValue":
            return self._read(value.blobFileValue.offset, name, shape)
        tensor = value.immediateValue.tensor
        field = tensor.WhichOneof("value")
        if name == "STRING":
            return tensor.strings.values[0]
        given = getattr(tensor, field).values
        if field == "bytes":
            return _unpack(np.frombuffer(given, np.uint8), name, shape)
        return np.array(list(given), _dtype(kind)).reshape(shape)

    def _read(self, offset: int, name: str, shape: tuple[int, ...]) -> Any:
        assert self._blob is not None
        sentinel, _, size, start, _ = _BLOB.unpack_from(
            self._blob[offset : offset + _BLOB.size].tobytes().ljust(_BLOB.size, b"\0")
        )
        if sentinel != _SENTINEL or start + size > len(self._blob):
            raise FormatError(f"[coreml] expected a blob at {offset} of the weights, got none")
        return _unpack(self._blob[start : start + size], name, shape)


def _resolved(value: Any) -> Any:
    return value() if isinstance(value, partial) else value


def _type_name(kind: Any) -> str:
    field = kind.DESCRIPTOR.fields_by_name["dataType"]
    return str(field.enum_type.values_by_number[kind.dataType].name)


def _dtype(kind: Any) -> Any:
    return _DTYPES[_type_name(kind)]


def _shape(kind: Any) -> tuple[int, ...]:
    return tuple(
        size.constant.size if size.WhichOneof("dimension") == "constant" else -1
        for size in kind.dimensions
    )


def _unpack(data: NDArray[np.uint8], name: str, shape: tuple[int, ...]) -> Any:
    """Return an array out of its bytes; fields of fewer than 8 bits lie low bits first."""
    count = int(np.prod(shape))
    if name in _DTYPES:
        return data.view(_DTYPES[name])[:count].reshape(shape)
    bits = int(name.removeprefix("UINT"))
    if 8 % bits:
        raise FormatError(f"[coreml] no meaning is written for constants of type {name}")
    fields = [(data >> np.uint8(at)) & np.uint8((1 << bits) - 1) for at in range(0, 8, bits)]
    return np.stack(fields, axis=1).reshape(-1)[:count].reshape(shape)


# Constant ops


def _table(indices: Any, lut: Any, vector_axis: Any = None, shape: Any = None) -> Any:
    """One table for all; entries are scalars or vectors along an axis.

    With ``shape`` (iOS 16) the indices are packed in bytes.
    """
    if shape is not None:
        bits = len(lut).bit_length() - 1
        return lut[_unpack(indices, f"UINT{bits}", tuple(shape))]
    entries = lut.reshape(lut.shape[-2:])
    if vector_axis is None:
        return entries[:, 0][indices]
    axis = int(vector_axis) % indices.ndim
    vectors = np.moveaxis(entries[indices], -1, axis + 1)
    sizes = list(indices.shape)
    sizes[axis] *= entries.shape[1]
    return vectors.reshape(sizes)


def _cast_constant(source_val: Any, output_dtype: Any) -> Any:
    return source_val.astype(_CASTS[str(output_dtype)])


_CONSTANT_OPS: Mapping[str, Callable[..., Any]] = {
    "constexpr_cast": _cast_constant,
    "constexpr_lut_to_dense": _table,
}


# Ops, by the names of their parameters


def _wide(x: Any) -> Any:
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _binary(function: Any) -> Callable[..., Any]:
    def apply(x: Any, y: Any) -> Any:
        return function(_wide(x), _wide(y))

    return apply


def _unary(function: Any) -> Callable[..., Any]:
    def apply(x: Any) -> Any:
        return function(_wide(x))

    return apply


def _cast(x: Any, dtype: Any) -> Any:
    return x.astype(_CASTS[str(dtype)])


def _concat(values: Any, axis: Any, interleave: Any = False) -> Any:
    return np.concatenate(values, axis=int(axis))


def _gather(x: Any, indices: Any, axis: Any, batch_dims: Any = 0, validate_indices: Any = 0) -> Any:
    return np.take(x, indices, axis=int(axis))


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    y = _wide(x) @ _wide(weight).T
    return y if bias is None else y + _wide(bias)


def _matmul(x: Any, y: Any, transpose_x: Any = False, transpose_y: Any = False) -> Any:
    x = np.swapaxes(x, -1, -2) if transpose_x else x
    return _wide(x) @ _wide(np.swapaxes(y, -1, -2) if transpose_y else y)


def _reduction(function: Any) -> Callable[..., Any]:
    def apply(x: Any, axes: Any, keep_dims: Any) -> Any:
        return function(_wide(x), axis=tuple(axes), keepdims=bool(keep_dims))

    return apply


def _scatter(data: Any, indices: Any, updates: Any, axis: Any, mode: Any, **checks: Any) -> Any:
    assert str(mode) == "update"
    result = data.copy()
    result[(slice(None),) * int(axis) + (indices,)] = updates
    return result


def _sigmoid(x: Any) -> Any:
    return np.float32(1) / (np.float32(1) + np.exp(-x))


def _softmax(x: Any, axis: Any) -> Any:
    x = _wide(x)
    e = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return e / e.sum(axis=int(axis), keepdims=True)


def _window(shape: Any, begin: Any, end: Any, begin_mask: Any, end_mask: Any) -> Any:
    return tuple(
        slice(0 if first_open else int(first), size if last_open else int(last))
        for size, first, last, first_open, last_open in zip(
            shape, begin, end, begin_mask, end_mask, strict=True
        )
    )


def _slice_by_index(
    x: Any, begin: Any, end: Any, begin_mask: Any, end_mask: Any, **defaults: Any
) -> Any:
    return x[_window(x.shape, begin, end, begin_mask, end_mask)]


def _slice_update(
    x: Any, update: Any, begin: Any, end: Any, begin_mask: Any, end_mask: Any, **defaults: Any
) -> Any:
    result = x.copy()
    result[_window(x.shape, begin, end, begin_mask, end_mask)] = update
    return result


_OPS: Mapping[str, Callable[..., Any]] = {
    "abs": _unary(np.abs),
    "add": _binary(np.add),
    "cast": _cast,
    "concat": _concat,
    "gather": _gather,
    "identity": lambda x: x,
    "linear": _linear,
    "matmul": _matmul,
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "mul": _binary(np.multiply),
    "range_1d": lambda start, end, step: np.arange(int(start), int(end), int(step)),
    "real_div": _binary(np.divide),
    "reduce_max": _reduction(np.max),
    "reduce_mean": _reduction(np.mean),
    "reshape": lambda x, shape: x.reshape(tuple(shape)),
    "round": _unary(np.rint),
    "scatter": _scatter,
    "shape": lambda x: np.array(x.shape, np.int32),
    "sigmoid": _unary(_sigmoid),
    "slice_by_index": _slice_by_index,
    "slice_by_size": lambda x, begin, size: x[
        tuple(slice(int(b), int(b) + int(s)) for b, s in zip(begin, size, strict=True))
    ],
    "slice_update": _slice_update,
    "softmax": _softmax,
    "sqrt": _unary(np.sqrt),
    "squeeze": lambda x, axes=None: np.squeeze(x, axis=None if axes is None else tuple(axes)),
    "sub": _binary(np.subtract),
    "transpose": lambda x, perm: np.transpose(x, tuple(perm)),
}
