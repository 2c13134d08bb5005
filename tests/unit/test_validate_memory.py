# SPDX-License-Identifier: MIT
"""The measured process: what it holds, and every way it can end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import bitnet_edge
from bitnet_edge.errors import DeviceUnsupported
from bitnet_edge.memory_limit import CGROUP_V1, RLIMIT, LimitedRun
from bitnet_edge.validate import memory, memory_child
from bitnet_edge.validate.memory import measure_memory
from bitnet_edge.validate.report import CheckFailed
from tests.graphs import mlp

STAGES = ["interpreter", "loaded", "prefilled", "decoded"]
MB = 1 << 20
LIMIT = "the memory limit of 5 bytes"


def test_a_fresh_process_is_measured_at_its_full_context(bte):
    found = measure_memory(str(bte), private=50 * MB)
    assert [stage["stage"] for stage in found["stages"]] == STAGES
    private = [stage["private"] for stage in found["stages"]]
    assert found["private"] == max(private)
    with bitnet_edge.load(bte) as model:
        kv_cache = model.session.program.state_bytes
        assert found["context"] == model.context
    assert private[2] - private[1] >= kv_cache, "every position of the context was written"
    assert found["limit"] == 50 * MB
    assert found["resident"] > 0
    if found["counts_page_cache"]:
        assert found["peak"] >= bte.stat().st_size / 2, "its pages were dropped, then charged to it"


def test_numpy_is_not_what_is_measured(bte, capsys):
    """In the child nothing is imported that an application on the device would not have."""
    script = (
        "import sys; from bitnet_edge.validate.memory_child import main\n"
        f"main({str(bte)!r}, '1')\n"
        "assert not {'numpy', 'yaml', 'dataclasses', 'pathlib', 'typing'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert memory_child.main(str(bte), "") == 0
    assert [s["stage"] for s in json.loads(capsys.readouterr().out)["stages"]] == STAGES


def test_a_process_beyond_the_limit_is_reported_in_one_line(bte):
    mechanism = measure_memory(str(bte), private=50 * MB)["mechanism"]
    with pytest.raises(CheckFailed) as caught:
        measure_memory(str(bte), private=4 * MB)
    # a group's kernel kills; under RLIMIT_DATA an allocation fails
    end = "out of memory within" if mechanism == RLIMIT else "killed by"
    assert str(caught.value) == f"{end} the memory limit of {4 * MB} bytes ({mechanism})"


def test_the_page_cache_counts_where_resident_memory_is_limited(bte):
    found = measure_memory(str(bte), private=50 * MB, resident=64 * MB)
    assert found["limit"] == (64 if found["counts_page_cache"] else 50) * MB


def test_a_model_without_tokens(tmp_path):
    bitnet_edge.export(mlp(), out=tmp_path / "m.bte")
    found = measure_memory(str(tmp_path / "m.bte"), private=50 * MB)
    assert [stage["stage"] for stage in found["stages"]] == ["interpreter", "loaded", "run"]


def limited(returncode: int, mechanism: str = CGROUP_V1, **keys: object) -> LimitedRun:
    fields = {"stdout": "", "stderr": "", "peak": None, "out_of_memory": False, "refused": ()}
    return LimitedRun(returncode=returncode, mechanism=mechanism, limit=5, **(fields | keys))


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (limited(-9, out_of_memory=True), f"killed by {LIMIT} (cgroup v1 memory.limit_in_bytes)"),
        (limited(1, RLIMIT, stderr="x\nMemoryError\n"), f"out of memory within {LIMIT}"),
        (limited(1, RLIMIT, stderr="out of memory\n"), f"out of memory within {LIMIT}"),
        (limited(-11), f"ended by SIGSEGV within {LIMIT}"),
        (limited(1, stderr="a\n[bte] b\n"), f"exit code 1 within {LIMIT}"),
        (limited(126), f"exit code 126 within {LIMIT} (cgroup v1 memory.limit_in_bytes): no mess"),
        (limited(0, stdout='{"context": 1, "stages": [{"private": 0}]}'), "cannot be measured"),
        (limited(0, stdout="noise"), "exit code 0 within"),
    ],
)
def test_how_the_process_ended(monkeypatch, run, line):
    monkeypatch.setattr(memory, "run_limited", lambda *a, **k: run)
    with pytest.raises(CheckFailed) as caught:
        measure_memory("m.bte", private=5)
    assert str(caught.value).startswith(line)


def test_without_a_cgroup_private_memory_is_limited(monkeypatch):
    stdout = '{"context": 1, "stages": [{"private": 3}]}'
    limits = []

    def run(command, limit, **options):
        limits.append(limit)
        return limited(0, RLIMIT, stdout=stdout)

    monkeypatch.setattr(memory, "run_limited", run)
    found = measure_memory("m.bte", private=5, resident=9)
    assert limits == [9, 5]
    assert (found["private"], found["resident"], found["counts_page_cache"]) == (3, 0, False)


def test_what_cannot_be_limited_or_takes_too_long_fails(monkeypatch):
    def refuse(*arguments, **options):
        raise DeviceUnsupported("[memory limit] no hard limit is implemented for darwin")

    monkeypatch.setattr(memory, "run_limited", refuse)
    with pytest.raises(CheckFailed, match="cannot be measured here: .*darwin"):
        measure_memory("m.bte", private=5)

    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(memory, "run_limited", hang)
    with pytest.raises(CheckFailed, match="did not finish in 600 s under a memory limit of 5 byt"):
        measure_memory("m.bte", private=5)


def test_the_child_says_what_is_wrong(bte, tmp_path, capsys, monkeypatch):
    (tmp_path / "x.bte").write_bytes(b"nothing")
    assert memory_child.main(str(tmp_path / "x.bte"), "") == 1
    assert "not a .bte file" in capsys.readouterr().err
    assert memory_child.main(str(tmp_path / "missing"), "") == 1

    def exhausted(*arguments):
        raise MemoryError

    monkeypatch.setattr(memory_child, "load", exhausted)
    assert memory_child.main(str(bte), "") == 1
    assert capsys.readouterr().err.endswith("out of memory\n")


def test_a_system_that_tells_nothing(monkeypatch):
    def refused(*arguments):
        raise PermissionError

    monkeypatch.setattr("builtins.open", refused)
    assert memory_child._figures("loaded") == {"stage": "loaded", "private": 0}
