# SPDX-License-Identifier: MIT
"""A model that has passed its validation, as a pytest fixture: ``validated_model``.

Installed as the plugin ``bitnet_edge``; ``pytest --bitnet-edge-model model.bte
--bitnet-edge-device raspberry-pi-5`` says which file is validated for which device. The file is
validated once a session; every test gets the model freshly loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bitnet_edge.runtime import Model
    from bitnet_edge.validate.report import Report

__all__ = ["pytest_addoption", "validated_model", "validation_report"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options; see ``bitnet-edge validate --help``."""
    group = parser.getgroup("bitnet-edge", "validating a .bte file (bitnet-edge validate)")
    group.addoption("--bitnet-edge-model", metavar="FILE", help="the .bte file of validated_model")
    group.addoption(
        "--bitnet-edge-device",
        metavar="DEVICE",
        help="profile name or YAML file; default: the one the file was planned for",
    )
    group.addoption(
        "--bitnet-edge-host",
        action="store_true",
        help="this machine stands in for the device: it need not have its instruction sets",
    )
    group.addoption("--bitnet-edge-golden", metavar="GOLDEN.json", help="expect these outputs")
    group.addoption(
        "--bitnet-edge-skip",
        action="append",
        default=[],
        metavar="CHECKS",
        help="checks to leave out: checksums, isa, memory, numerics or speed",
    )
    parser.addini("bitnet_edge_model", "the .bte file, unless --bitnet-edge-model names it")
    parser.addini("bitnet_edge_device", "the device, unless --bitnet-edge-device names it")


@pytest.fixture(scope="session")
def validation_report(request: pytest.FixtureRequest) -> Report:
    """Validate the file, whatever comes of it."""
    from bitnet_edge.errors import BitnetEdgeError
    from bitnet_edge.validate.golden import load_golden
    from bitnet_edge.validate.run import validate

    config = request.config
    path = config.getoption("--bitnet-edge-model") or config.getini("bitnet_edge_model")
    device = config.getoption("--bitnet-edge-device") or config.getini("bitnet_edge_device")
    golden = config.getoption("--bitnet-edge-golden")
    if not path:
        raise pytest.UsageError("validated_model needs --bitnet-edge-model FILE")
    try:
        return validate(
            path,
            device or None,
            host=config.getoption("--bitnet-edge-host"),
            skip=config.getoption("--bitnet-edge-skip"),
            golden=load_golden(golden) if golden else None,
        )
    except (BitnetEdgeError, OSError) as error:
        raise pytest.UsageError(f"validated_model: {error}") from None


@pytest.fixture
def validated_model(validation_report: Report) -> Iterator[Model]:
    """Give a freshly loaded model of a file that passed; fail with one line a failed check."""
    if not validation_report.passed:
        lines = [f"  {check.name}: {check.line}" for check in validation_report.failures()]
        text = f"{validation_report.file} fails its validation for {validation_report.device}"
        pytest.fail("\n".join([f"{text}:", *lines]), pytrace=False)
    from bitnet_edge.runtime import load

    with load(validation_report.file) as model:
        yield model
