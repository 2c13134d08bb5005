# SPDX-License-Identifier: MIT
"""The dependency rules, read from the sources and from a running interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each host module may import those before it.
ORDER = [
    ["errors"],
    ["dtypes", "_numpy", "atomic"],
    ["graph", "quantization"],
    ["ops"],
    ["packing", "profiles", "lowering"],
    ["head_packing"],
    ["head_screen"],
    ["reference"],
    ["plan_memory"],
    ["roofline"],
    ["planner"],
    ["program"],
    ["writer"],
    ["api", "losses"],
    ["alternatives", "measure_losses"],
]
DEVICE = {"runtime", "generation", "tokenizer", "container", "memory"}
HEAVY = {  # imported in exactly one file each
    "ai_edge_litert": "litert_runner.py",
    "coremltools": "coreml_package.py",
    "flatbuffers": "litert.py",
    "numpy": "_numpy.py",
    "onnx": "onnx_emitter.py",
    "onnxruntime": "onnx_runner.py",
    "pytest": "pytest_plugin.py",
    "tflite_runtime": "litert_runner.py",
    "yaml": "profiles.py",
}


def imports(path: Path, *, typing: bool = False) -> set[str]:
    """Modules a file imports anywhere, as written (`from a import b` gives a and a.b); those under
    `if TYPE_CHECKING:` cost nothing at run time and are left out unless ``typing``."""
    tree = ast.parse(path.read_text())
    if not typing:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("bitnet_edge.")}


def test_host_modules_import_only_earlier_ones():
    rank = {name: level for level, names in enumerate(ORDER) for name in names}
    for name, level in rank.items():
        path = ROOT / "bitnet_edge" / f"{name}.py"
        # graph asks the table of ops, which describes graphs, when it checks its nodes
        lazy = {"ops"} if name == "graph" else set()
        for other in own_imports(path) - lazy:
            if other in rank and other != name:
                assert rank[other] < level, f"{name} imports {other}"


def test_device_modules_import_only_the_standard_library_and_the_engine():
    allowed = DEVICE | {"errors", "_engine", "metal"}
    paths = [ROOT / "bitnet_edge" / f"{name}.py" for name in DEVICE]
    for path in [*paths, *(ROOT / "metal").glob("*.py")]:
        name = path.stem
        assert own_imports(path) <= allowed, name
        third_party = {
            module.split(".")[0]
            for module in imports(path)
            if module.split(".")[0] not in sys.stdlib_module_names | {"bitnet_edge", "__future__"}
        }
        assert not third_party, name


@pytest.mark.parametrize("module", sorted(HEAVY))
def test_each_heavy_dependency_is_imported_in_one_place(module):
    places = set()
    for folder in ("bitnet_edge", "exporters"):
        for path in (ROOT / folder).rglob("*.py"):
            if any(name.split(".")[0] == module for name in imports(path)):
                places.add(path.name)
    assert places == {HEAVY[module]}


def test_exporters_never_import_the_runtime():
    for path in (ROOT / "exporters").rglob("*.py"):
        assert not own_imports(path) & {"runtime", "generation"}, path


def test_loading_a_model_imports_no_third_party_module(bte):
    script = (
        f"import sys, bitnet_edge; m = bitnet_edge.load({str(bte)!r})\n"
        "next(m.generate('ROMEO:'))\n"
        "for name, module in sys.modules.items():\n"
        "    print(name, getattr(module, '__file__', None))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    loaded = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert "bitnet_edge._engine" in loaded
    # Cython's registry of shared types is made by our extension, not imported from a file; the
    # finder and the .pth hooks are this development environment's.
    registry = {name for name in loaded if name.startswith(("_cython_", "cython_runtime"))}
    assert all(loaded[name] == "None" for name in registry)
    hooks = {"_engine", "_editable_skbc_bitnet_edge", "_distutils_hack", "__main__"}
    foreign = {name.split(".")[0] for name in loaded} - registry - hooks - {"bitnet_edge"}
    assert foreign <= sys.stdlib_module_names
    # not third-party, but each costs the device up to a megabyte and a half
    assert not {"dataclasses", "inspect", "pathlib", "numpy"} & set(loaded)


def test_the_c_core_includes_no_python_header():
    for path in (ROOT / "cython_kernels").rglob("*.[ch]"):
        assert "Python.h" not in path.read_text(), path
