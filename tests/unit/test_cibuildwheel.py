# SPDX-License-Identifier: MIT
"""The wheels that `[tool.cibuildwheel]` in pyproject.toml asks for; none is built here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.conftest import ROOT, require_tool

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="cibuildwheel needs Python 3.11")

# platform: oldest Python, what the names of its builds end with
PLATFORMS = {
    "linux": (
        10,
        {
            f"{libc}linux_{machine}"
            for libc in ("many", "musl")
            for machine in ("x86_64", "aarch64", "armv7l")
        },
    ),
    "macos": (10, {"macosx_x86_64", "macosx_arm64"}),
    "windows": (10, {"win_amd64"}),
    "android": (13, {"android_arm64_v8a", "android_x86_64"}),
    "ios": (
        13,
        {"ios_arm64_iphoneos", "ios_arm64_iphonesimulator", "ios_x86_64_iphonesimulator"},
    ),
}


@pytest.fixture(scope="module")
def package() -> Path:
    spec = importlib.util.find_spec("cibuildwheel")
    return Path(require_tool(spec.origin if spec else None, "cibuildwheel")).parent


def test_configuration_follows_the_schema(package: Path) -> None:
    import tomllib  # Python 3.11

    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    schema = json.loads((package / "resources" / "cibuildwheel.schema.json").read_text())
    jsonschema.validate(tools["cibuildwheel"], schema)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_has_its_builds(platform: str, package: Path) -> None:
    oldest, ends = PLATFORMS[platform]
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    done = subprocess.run(
        [*command, "--platform", platform, ROOT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # an option that is not used, a pattern that matches nothing
    builds = {tuple(line.split("-", 1)) for line in done.stdout.split()}
    pythons = {python for python, _ in builds}
    assert builds == {(python, end) for python in pythons for end in ends}
    assert min(int(python.removeprefix("cp3")) for python in pythons) == oldest
    assert len(pythons) >= 2
