# SPDX-License-Identifier: MIT
"""Checks a built wheel from outside the repository (run by .ci/wheel in a clean environment)."""

from __future__ import annotations

import sys
import zipfile
from importlib.metadata import files
from pathlib import Path

import bitnet_edge
from bitnet_edge import _engine

LIMIT = 1_500_000

wheel = Path(sys.argv[1])
size = wheel.stat().st_size
assert size < LIMIT, f"the wheel has {size} bytes, allowed are {LIMIT}"
names = zipfile.ZipFile(wheel).namelist()
roots = {name.split("/")[0] for name in names if ".dist-info/" not in name}
assert roots == {"bitnet_edge"}, f"only bitnet_edge may land in site-packages, got {roots}"
for needed in (
    "bitnet_edge/exporters/sources/huggingface.py",
    "bitnet_edge/device_profiles/generic-50mb.yaml",
    "bitnet_edge/models/shakespeare/model.safetensors",
    "bitnet_edge/py.typed",
    "bitnet_edge/_engine.pyi",
):
    assert needed in names, f"{needed} is missing from the wheel"
# Metal compiles its shaders, and the headers they include, on the device.
sources = [name for name in names if name.endswith((".c", ".pyx", ".h"))]
assert not [name for name in sources if not name.startswith("bitnet_edge/metal/")], sources
assert Path(bitnet_edge.__file__).is_relative_to(sys.prefix), bitnet_edge.__file__
assert Path(_engine.__file__).is_relative_to(sys.prefix), _engine.__file__
assert files("bitnet-edge")
assert "numpy" not in sys.modules
print(f"{wheel.name}: {size} bytes, {len(names)} files, roots {sorted(roots)}")
