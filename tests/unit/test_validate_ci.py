# SPDX-License-Identifier: MIT
"""The GitHub Action and the pytest plugin, each run as its worked example says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from bitnet_edge.cli import main
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples" / "ci"
DEVICE = "raspberry-pi-zero-2w"
BIN = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, bte: Path) -> Path:
    """What the example's repository holds: a model, its golden outputs, its baseline."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "model.bte").write_bytes(bte.read_bytes())
    arguments = ["--host", "--device", DEVICE, "--skip", "numerics"]
    stored = [f"--save-golden={folder / 'golden.json'}"]
    stored += [f"--save-baseline={folder / 'baseline.json'}"]
    assert main(["validate", str(folder / "model.bte"), *arguments, *stored]) == 0
    return folder


# -- the Action -----------------------------------------------------------------------------


def expand(text: str, values: dict[str, str]) -> str:
    """Replace ``${{ inputs.x }}`` as a runner does."""
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: values[found.group(1)], text)


def run_action(folder: Path, given: dict[str, str], commands: Path) -> tuple[int, str, dict]:
    """Run the steps of action.yml with a workflow's inputs; return exit code, output, outputs."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert set(given) <= set(action["inputs"]), "inputs that the action does not have"
    values = {}
    for name, described in action["inputs"].items():
        assert name in given or not described.get("required"), name
        values[f"inputs.{name}"] = str(given.get(name, described.get("default", "")))
    outputs = commands / "outputs"
    outputs.write_text("")
    env = {"PATH": f"{commands}{os.pathsep}{BIN}", "HOME": str(commands)}
    env |= {"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(outputs), "CI": "true"}
    code, said = 0, ""
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash"
        if "if" in step:
            assert step["if"] == "inputs.package != ''"
            if not values["inputs.package"]:
                continue
        script = commands / "script"
        script.write_text(step["run"])
        assert "${{" not in step["run"], "inputs reach a script by its environment only"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
            cwd=folder,
            env=env | {key: expand(text, values) for key, text in step["env"].items()},
            capture_output=True,
            text=True,
            check=False,
        )
        code, said = done.returncode, said + done.stdout + done.stderr
        if code:
            break
    return code, said, dict(line.split("=", 1) for line in outputs.read_text().splitlines())


def workflow() -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "validate.yml").read_text())


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder first in PATH; its python notes what would be installed instead of fetching it."""
    folder = tmp_path / "commands"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\necho "$@" >>{folder}/installed\n')
    (folder / "python").chmod(0o755)
    return folder


def test_the_workflow_of_the_example(project, commands):
    (step,) = (
        step
        for step in workflow()["jobs"]["model"]["steps"]
        if step["uses"].startswith("bitnet-edge/bitnet-edge@")
    )
    given = step["with"] | {"max-latency": "+2000%"}  # this machine has others on it
    code, said, outputs = run_action(project, given, commands)
    assert code == 0, said
    assert (commands / "installed").read_text() == "-m pip install --quiet bitnet-edge[export]\n"
    for check in ("golden", "baseline: private", "baseline: decode, 1 threads"):
        assert f"  pass  {check} " in said
    root = ElementTree.parse(project / outputs["junit"])
    assert root.find("testsuite").get("failures") == "0"
    assert "<svg" in (project / outputs["html"]).read_text()
    following = workflow()["jobs"]["model"]["steps"][-1]["with"]["path"]
    assert set(re.findall(r"outputs\.(\w+)", following)) <= set(outputs)


def test_the_action_fails_with_an_annotation(project, commands):
    given = {"file": "model.bte", "device": "laptop-avx2", "package": "", "skip": "speed numerics"}
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        given["device"] = DEVICE
    code, said, outputs = run_action(project, given, commands)
    assert code == 1
    assert "::error file=model.bte,title=bitnet-edge validate%3A isa::" in said
    assert not (commands / "installed").exists()
    root = ElementTree.parse(project / outputs["junit"])
    assert root.find("testsuite").get("failures") == "1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"file": "missing.bte"}, "No such file"),
        ({"file": "model.bte", "device": "$(touch hacked); `touch hacked`"}, "expected the name"),
        ({"file": "-x.bte"}, "No such file"),
        ({"file": "model.bte", "skip": "everything"}, "invalid choice"),
    ],
)
def test_the_action_passes_on_unusable_input(project, commands, given, message):
    code, said, _ = run_action(project, {"package": "", **given}, commands)
    assert code == 2, said
    assert message in said
    assert not (project / "hacked").exists()


def test_every_input_of_the_action_is_used():
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    text = (ROOT / "action.yml").read_text()
    for name in action["inputs"]:
        assert f"${{{{ inputs.{name} }}}}" in text


# -- the pytest plugin ----------------------------------------------------------------------


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder of its own, where the installed plugin loads by its entry point."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:cov",
            *arguments,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tests_of(project: Path, tmp_path: Path) -> Path:
    """A folder with the example's test and the model."""
    for source in (EXAMPLES / "test_on_device.py", project / "model.bte", project / "golden.json"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path


MODEL = ("--bitnet-edge-model", "model.bte", "--bitnet-edge-skip", "speed")


def test_the_tests_of_the_example(tests_of):
    options = ("--bitnet-edge-device", DEVICE, "--bitnet-edge-host")
    golden = ("--bitnet-edge-golden", "golden.json")
    done = run_pytest(tests_of, *MODEL, *options, *golden)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_ini_file_names_model_and_device(tests_of):
    (tests_of / "pytest.ini").write_text(
        "[pytest]\nbitnet_edge_model = model.bte\nbitnet_edge_device = generic-50mb\n"
    )
    done = run_pytest(tests_of, *MODEL[2:], "--bitnet-edge-skip", "numerics")
    assert "2 passed" in done.stdout, done.stdout


def test_a_model_that_fails_its_validation(tests_of):
    raw = bytearray((tests_of / "model.bte").read_bytes())
    raw[-20000] ^= 1
    (tests_of / "model.bte").write_bytes(raw)
    done = run_pytest(tests_of, *MODEL)
    assert done.returncode == 1
    assert "2 errors" in done.stdout
    assert "model.bte fails its validation for generic-50mb:" in done.stdout
    assert re.search(r"checksums: \[bte\] section '\w+' is corrupt", done.stdout)
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "validated_model needs --bitnet-edge-model FILE"),
        (("--bitnet-edge-model", "missing.bte"), "No such file"),
        ((*MODEL, "--bitnet-edge-device", "pixle-8"), "did you mean 'pixel-8'"),
        ((*MODEL, "--bitnet-edge-golden", "model.bte"), "expected a file of validate"),
        ((*MODEL, "--bitnet-edge-skip", "all"), "expected to skip"),
    ],
)
def test_unusable_options(tests_of, arguments, message):
    done = run_pytest(tests_of, *arguments)
    assert done.returncode != 0
    assert message in done.stdout


def test_the_plugin_imports_nothing_until_it_is_used(tmp_path):
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\n\ndef test_nothing():\n"
        "    assert 'bitnet_edge.pytest_plugin' in sys.modules\n"
        "    assert not {'numpy', 'yaml', 'bitnet_edge._engine'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path)
    assert "1 passed" in done.stdout, done.stdout


def test_the_fixtures_in_this_process(bte, monkeypatch):
    """The same code again, where coverage sees it."""
    from bitnet_edge import pytest_plugin
    from bitnet_edge.errors import BadMagic
    from bitnet_edge.validate import run

    options: dict[str, Any] = {"--bitnet-edge-model": str(bte), "--bitnet-edge-skip": ["speed"]}

    class Config:
        getoption = staticmethod(options.get)
        getini = staticmethod({}.get)

    class Request:
        config = Config

    report_of = pytest_plugin.validation_report.__wrapped__
    model_of = pytest_plugin.validated_model.__wrapped__
    monkeypatch.setattr(run._Validation, "numerics", lambda self, golden: None)
    report = report_of(Request)
    assert next(model_of(report)).name == "packed"
    monkeypatch.setattr(run, "validate", lambda *a, **k: 1 / 0)
    options.clear()
    with pytest.raises(pytest.UsageError, match="needs --bitnet-edge-model"):
        report_of(Request)

    def refuse(*arguments: object, **named: object) -> None:
        raise BadMagic("not a .bte file")

    monkeypatch.setattr(run, "validate", refuse)
    options["--bitnet-edge-model"] = str(bte)
    with pytest.raises(pytest.UsageError, match="validated_model: not a .bte file"):
        report_of(Request)
    report.checks[0] = type(report.checks[0])("structure", "fail", "broken", 0.0)
    with pytest.raises(pytest.fail.Exception, match="structure: broken"):
        next(model_of(report))


def test_the_options_are_declared():
    from bitnet_edge import pytest_plugin

    parser = pytest.Parser(_ispytest=True)
    pytest_plugin.pytest_addoption(parser)
    known = parser.parse_known_args(["--bitnet-edge-device", "x"])
    assert known.bitnet_edge_device == "x"
    assert json.dumps(known.bitnet_edge_skip) == "[]"
