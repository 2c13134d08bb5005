# SPDX-License-Identifier: MIT
"""Core ML packages on the disk: the one place that imports coremltools.

A program goes to its protobuf without any of coremltools' passes, so that what was lowered is what
is saved: its `remove_redundant_ops` merges two reads of a state across a write (coremltools #2786).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_edge.errors import ExportError, MissingDependency

# On Linux it warns of each part of itself that needs a Mac.
logging.getLogger("coremltools").setLevel(logging.ERROR)
try:
    import coremltools
    from coremltools.converters.mil.backend.mil.load import load as _to_proto
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, get_new_symbol, types
    from coremltools.proto import Model_pb2
except ImportError as error:
    raise MissingDependency(
        f"[coreml] this target needs coremltools: pip install 'bitnet-edge[coreml]' ({error})"
    ) from error

__all__ = ["OPSETS", "VERSION", "Function", "get_new_symbol", "mb", "read", "rows", "save", "types"]

VERSION = coremltools.__version__
OPSETS = {16: coremltools.target.iOS16, 18: coremltools.target.iOS18}
_MODEL = "Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def rows(name: str, most: int, shape: tuple[int, ...]) -> Any:
    """Return the description of an input of 1 .. ``most`` rows."""
    count = coremltools.RangeDim(1, most, default=most) if most > 1 else 1
    return coremltools.TensorType(name, shape=(count, *shape))


def save(
    functions: Mapping[str, Any], path: Path, *, ios: int, metadata: Mapping[str, str]
) -> None:
    """Write functions as one package; the last of them is the default.

    Raises
    ------
    ExportError
        When ``path`` does not end with ``.mlpackage``, which Core ML demands.
    """
    if path.suffix != ".mlpackage":
        raise ExportError(f"[coreml] expected a name that ends with .mlpackage, got {path.name!r}")
    program = Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.default_function_name = list(functions)[-1]
    program.export_as_multifunction = len(functions) > 1
    with tempfile.TemporaryDirectory(prefix="bitnet-edge-", dir=path.parent) as weights:
        model = _to_proto(
            program,
            weights,
            specification_version=OPSETS[ios].value,
            convert_to="mlprogram",
            convert_from="milinternal",
        )
        model.description.metadata.userDefined.update(metadata)
        coremltools.utils.save_spec(model, str(path), weights_dir=weights)


def read(path: Path) -> tuple[Any, Path]:
    """Return the protobuf of a package and the path of its weights."""
    model = Model_pb2.Model()
    model.ParseFromString((path / _MODEL).read_bytes())
    return model, path / _WEIGHTS
