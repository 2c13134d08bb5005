# SPDX-License-Identifier: MIT
"""Every way a file can fail its validation, each by one clear line, and the reports of it."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.bench import measure
from bitnet_edge.cli import main
from bitnet_edge.container import PREFIX, open_bte
from bitnet_edge.errors import MissingDependency
from bitnet_edge.generation import Generation
from bitnet_edge.validate import numerics, run, speed
from bitnet_edge.validate.report import CheckFailed
from tests.conftest import checkpoint
from tests.fuzz.mutate_bte import mutate
from tests.graphs import decoder, mlp

HERE = set(_engine.cpu_isas())
OTHER = "raspberry-pi-5" if "neon" not in HERE else "laptop-avx2"  # not this CPU's
QUICK = ("--skip", "speed")
NUMERIC = ("--skip", "speed", "--skip", "memory")
ONLY_SPEED = ("--skip", "numerics", "--skip", "memory", "--skip", "checksums")
ONLY_MEMORY = ("--skip", "numerics", "--skip", "speed", "--skip", "checksums")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer rounds and rows: what is checked here is not how thorough the checks are."""
    monkeypatch.setattr(measure.read_buffer, "__defaults__", (1 << 20,))
    monkeypatch.setattr(speed, "RUNS", 2)
    monkeypatch.setattr(numerics, "MOST_ROWS", 20)
    monkeypatch.setattr(numerics, "REFERENCE_ROWS", 6)


@pytest.fixture
def validate(capsys):
    """Run the command; return its exit code, what it printed, and its lines on stderr."""

    def called(*arguments: object) -> tuple[int, str, list[str]]:
        code = main(["validate", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return called


def profile(folder: Path, name: str = "here", **keys: object) -> Path:
    """A device like generic-50mb, with other keys."""
    lines = [f"name: {name}", "extends: generic-50mb", "description: a test"]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]))
    return path


def statuses(out: str) -> dict[str, str]:
    return {name: status for status, name in re.findall(r"^  (\w+) +(\S+)  ", out, re.MULTILINE)}


# -- what passes ----------------------------------------------------------------------------


def test_the_bundled_model_passes_every_check(bte, validate):
    code, out, err = validate(bte, "--device", "generic-50mb")
    assert (code, err) == (0, [])
    found = statuses(out)
    expected = ("structure", "isa", "budget", "memory", "checksums", "reference", "scalar")
    assert set(found) == {*expected, "prefill", "threads", "speed"}
    assert set(found.values()) <= {"pass", "skip"}
    assert found["reference"] == "pass"
    assert re.search(r"memory +[\d.]+ MB private at context 512, under a limit of 50.0 MB \(", out)
    assert re.search(r"speed +decode \d+ tokens/s, prefill of 64", out)


def test_the_device_is_that_of_the_file_unless_named(bte, validate, tmp_path):
    assert "packed on generic-50mb" in validate(bte, *QUICK)[1]
    path = profile(tmp_path, "mine")
    assert "packed on mine" in validate(bte, "--device", path, *QUICK)[1]


@pytest.mark.parametrize("layout", ["bf16", "packed-bitlinear"])
def test_other_layouts(exported, layout, validate):
    assert validate(exported[layout], *NUMERIC)[0] == 0


@pytest.mark.parametrize("kv", ["f16", "int8", "int4"])
@pytest.mark.parametrize("head", ["int8", "int4"])
def test_every_stored_form_equals_the_reference(tmp_path, bte, kv, head, validate):
    path = tmp_path / "m.bte"
    bitnet_edge.export(checkpoint("packed"), out=path, kv_dtype=kv, head_dtype=head)
    code, out, _ = validate(path, *NUMERIC)
    assert code == 0, out
    assert statuses(out)["reference"] == "pass"


def test_a_model_that_is_no_language_model(tmp_path, validate):
    path = tmp_path / "mlp.bte"
    bitnet_edge.export(mlp(), out=path)
    golden = tmp_path / "golden.json"
    code, out, err = validate(path, "--save-golden", golden)
    assert (code, err) == (0, [])
    found = statuses(out)
    assert (found["reference"], found["memory"], found["speed"]) == ("pass", "pass", "skip")
    assert json.loads(golden.read_text())["texts"] == []
    assert validate(path, *NUMERIC, "--golden", golden)[0] == 0
    code, _, err = validate(path, *NUMERIC, "--save-golden", golden, "--prompt", "x")
    assert (code, len(err)) == (2, 1)
    assert "takes no text" in err[0]


def test_the_scalar_kernels_stand_in_for_what_is_missing(bte, validate, monkeypatch):
    """A board without numpy, a model too large for it, a CPU without vectors: each is said."""
    where = ("--skip", "speed", "--skip", "memory")

    def missing(*arguments: object) -> None:
        raise MissingDependency("[numpy] missing")

    monkeypatch.setattr(numerics, "_reference", missing)
    code, out, _ = validate(bte, *where)
    assert (code, statuses(out)["reference"]) == (0, "skip")
    assert "numpy is not installed here: the scalar kernels are the second impl" in out
    monkeypatch.setattr(numerics, "REFERENCE_WEIGHTS", 1_000_000)
    assert (
        "too large for the numpy reference (1 M multiply-adds a token" in validate(bte, *where)[1]
    )
    monkeypatch.setenv("BITNET_EDGE_CPU", "scalar")
    _engine.set_cpu("scalar")
    try:
        assert statuses(validate(bte, *where)[1])["scalar"] == "skip"
    finally:
        monkeypatch.delenv("BITNET_EDGE_CPU")
        _engine.set_cpu()


def test_arithmetic_that_differs(bte, validate, monkeypatch):
    """Each check of the numerics fails when one bit of one output is another."""
    honest = numerics.run_probe

    def lying(model, probe, chunk=None):
        outputs = honest(model, probe, chunk)
        if model.threads == 2 or chunk == 3 or _engine.kernel_isas()["add_f32"] == "scalar":
            outputs[0] = outputs[0][:-4] + b"\0\0\xc0\x7f"
        return outputs

    monkeypatch.setattr(numerics, "run_probe", lying)
    code, _, err = validate(bte, *NUMERIC)
    assert code == 1
    names = [line.split(": ")[1] for line in err]
    assert names == (["scalar"] if {"scalar"} != HERE else []) + ["prefill", "threads"]
    for line in err:
        assert re.search(
            r"expected \S+ \(0x[0-9a-f]{8}\), got \S+ \(0x[0-9a-f]{8}\) in row 19, column 2047 of "
            "output 0, probe 'spread'",
            line,
        ), line
    monkeypatch.setattr(numerics, "run_probe", lambda *a: [b""])
    assert "reference: expected 49152 bytes, got 0" in "".join(validate(bte, *NUMERIC)[2])


def test_what_goes_wrong_in_a_check_is_its_failure(bte, validate, monkeypatch):
    def exhausted(*arguments: object) -> str:
        raise MemoryError

    monkeypatch.setattr(run, "check_scalar", exhausted)
    failing(validate(bte, *NUMERIC), "scalar: out of memory")


def test_resident_memory_over_the_budget(bte, tmp_path, validate, monkeypatch):
    found = {"private": 1, "resident": 61 << 20, "peak": None, "counts_page_cache": False}
    found |= {"context": 1, "limit": 5, "mechanism": "RLIMIT_DATA", "stages": []}
    monkeypatch.setattr(run, "measure_memory", lambda *a, **k: found)
    device = profile(tmp_path, resident_mb=60)
    failing(
        validate(bte, "--device", device, *ONLY_MEMORY),
        f"resident: {61 << 20} bytes resident pages of the process, 1048576 more than the ",
    )

    def unmeasured(*arguments: object, **named: object) -> None:
        raise CheckFailed("killed")

    monkeypatch.setattr(run, "measure_memory", unmeasured)
    code, out, err = validate(bte, "--device", device, *ONLY_MEMORY)
    assert (code, statuses(out)["resident"], len(err)) == (1, "skip", 1)


# -- what fails, by one line each -----------------------------------------------------------


def failing(result: tuple[int, str, list[str]], line: str) -> None:
    code, out, err = result
    assert code == 1, out
    assert len(err) == 1, err
    assert re.match(f"bitnet-edge: {line}", err[0]), err[0]
    assert "Traceback" not in out


def test_the_wrong_instruction_set(bte, validate):
    result = validate(bte, "--device", OTHER, *QUICK)
    failing(result, f"isa: {OTHER} needs .*, this CPU .* has .*--host")
    code, out, _ = validate(bte, "--device", OTHER, "--host", *QUICK)
    assert (code, statuses(out)["isa"]) == (0, "skip")


def test_over_budget_by_one_page(bte, tmp_path, validate):
    needed = sum(bitnet_edge.load(bte).memory_report().planned.values())
    fits = profile(tmp_path, "fits", private_mb=repr(needed / (1 << 20)))
    assert validate(bte, "--device", fits, *NUMERIC)[0] == 0
    short = profile(tmp_path, "short", private_mb=repr((needed - 4096) / (1 << 20)))
    result = validate(bte, "--device", short)
    failing(result, f"budget: the plan needs {needed} bytes of private memory, 4096 more than")
    assert statuses(result[1])["reference"] == "skip", "it cannot be loaded there"


def test_measured_over_budget_by_one_page(bte, tmp_path, validate, monkeypatch):
    result = json.loads(validate(bte, *ONLY_MEMORY, "--json")[1])
    found = result["memory"]["measured"]
    monkeypatch.setattr(run, "measure_memory", lambda *a, **k: found)
    allowed = found["private"] - 4096
    monkeypatch.setattr(run._Validation, "_budget", lambda self: "fits")
    monkeypatch.setattr(run._Validation, "_needs_loading", lambda self: None)
    device = profile(tmp_path, private_mb=repr(allowed / (1 << 20)))
    result = validate(bte, "--device", device, *ONLY_MEMORY)
    failing(result, f"memory: {found['private']} bytes private, 4096 more than the {allowed} of")


@pytest.mark.parametrize("section", ["weights", "tokenizer", "graph"])
def test_a_corrupted_byte(bte, tmp_path, validate, section):
    raw = bytearray(bte.read_bytes())
    found = bitnet_edge.load(bte).file.sections[section]
    raw[found.offset + found.bytes // 2] ^= 1
    path = tmp_path / "corrupt.bte"
    path.write_bytes(raw)
    code, _, err = validate(path, *NUMERIC)
    assert code == 1
    assert f"bitnet-edge: checksums: [bte] section '{section}' is corrupt" in err[0]
    if section == "weights":
        assert len(err) == 1, "engine and reference read the same wrong byte"


def test_golden_outputs(bte, exported, tmp_path, validate):
    golden = tmp_path / "golden.json"
    code, _, err = validate(bte, *NUMERIC, "--save-golden", golden, "--prompt", "ROMEO:\n")
    assert (code, err) == (0, [])
    stored = json.loads(golden.read_text())
    assert [text["prompt"] for text in stored["texts"]] == [None, "ROMEO:\n"]
    code, out, _ = validate(bte, *NUMERIC, "--golden", golden)
    assert (code, statuses(out)["golden"]) == (0, "pass")

    raw = bytearray(bte.read_bytes())
    weights = bitnet_edge.load(bte).file.sections["weights"]
    raw[weights.offset + weights.bytes // 2] ^= 1
    damaged = tmp_path / "damaged.bte"
    damaged.write_bytes(raw)
    failing(
        validate(damaged, *NUMERIC, "--skip", "checksums", "--golden", golden),
        r"golden: text \d: .*: expected .*, got ",
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda g: g["texts"][0].update(logits_sha256="0" * 64), "text 0: logits as SHA-256: exp"),
        (lambda g: g["texts"][0].update(text="no"), "text 0: continuation: expected 'no', got '"),
        (lambda g: g["texts"][0]["new_ids"].pop(), r"text 0: .* from position 15: expected \[\], "),
        (lambda g: g["texts"][1]["ids"].append(7), "text 1: ids of the prompt from position 4: "),
        (lambda g: g["texts"][0].update(ids=[99999]), r"text 0: .*99999"),
        (lambda g: g["texts"][0].update(ids=[]), r"text 0: .*expected a prompt of"),
        (lambda g: g["probes"].update(spread="0"), "outputs of probe 'spread' as SHA-256: exp"),
        (lambda g: g["probes"].update(other="0"), "expected the probe 'other': there is none"),
    ],
)
def test_each_golden_mismatch(bte, tmp_path, validate, change, line):
    golden = tmp_path / "golden.json"
    command = (bte, *NUMERIC, "--skip", "checksums", "--skip", "numerics")
    assert validate(*command, "--save-golden", golden, "--prompt", "ROMEO:\n")[0] == 0
    stored = json.loads(golden.read_text())
    change(stored)
    golden.write_text(json.dumps(stored))
    failing(validate(*command, "--golden", golden), f"golden: {line}")


def test_a_latency_regression(bte, tmp_path, validate, monkeypatch):
    monkeypatch.setattr(speed, "RUNS", 7)  # on a busy machine two rounds can both be unlucky
    base = tmp_path / "base.json"
    assert validate(bte, *ONLY_SPEED[:2], *ONLY_SPEED[4:], "--save-baseline", base)[0] == 0
    arguments = (bte, *ONLY_SPEED, "--baseline", base, "--max-latency", "+1000%")
    code, out, _ = validate(*arguments)
    assert code == 0, out
    advance = Generation.advance

    def slow(self: Generation) -> str:
        time.sleep(0.005)  # ten times what a token takes when coverage counts each line of C
        return advance(self)

    monkeypatch.setattr(Generation, "advance", slow)
    failing(
        validate(*arguments),
        r"baseline: decode, 1 threads: [\d.]+ x calibration, \+[\d.]+ % against .* \+1000 %\)",
    )


def test_a_memory_regression(bte, tmp_path, validate):
    base = tmp_path / "base.json"
    assert validate(bte, "--skip", "numerics", "--save-baseline", base)[0] == 0
    stored = json.loads(base.read_text())
    stored["bytes"]["private"] //= 2
    base.write_text(json.dumps(stored))
    command = (bte, *ONLY_MEMORY, "--baseline", base, "--max-memory")
    failing(validate(*command, "+10%"), r"baseline: private: [\d,]+ bytes, \+\d+.*allowed \+10 %")
    assert validate(*command, "+150%")[0] == 0


def test_a_missing_baseline_entry(bte, tmp_path, validate):
    base = tmp_path / "base.json"
    assert validate(bte, "--skip", "numerics", "--save-baseline", base)[0] == 0
    stored = json.loads(base.read_text())
    allow = ("--max-latency", "+9000%")
    del stored["ratios"]["decode, 1 threads"]
    base.write_text(json.dumps(stored))
    result = validate(bte, *ONLY_SPEED, "--baseline", base, *allow)
    failing(result, "baseline: decode, 1 threads: measured, but not in the baseline")
    stored["ratios"]["decode, 1 threads"] = 1e6
    stored["ratios"]["decode, 4 threads"] = 1e6
    base.write_text(json.dumps(stored))
    result = validate(bte, *ONLY_SPEED, "--baseline", base, *allow)
    failing(result, "baseline: decode, 4 threads: in the baseline, but not measured")


def test_damaged_files_end_in_an_exit_code(tmp_path, capsys):
    """Whatever a file holds: 0 where nothing that matters was hit, 1 or 2 with a reason."""
    whole = tmp_path / "whole.bte"
    bitnet_edge.export(decoder(), out=whole)
    file = open_bte(whole)
    spans = [(s.offset, s.offset + s.bytes) for s in file.sections.values()]
    regions = [(0, PREFIX.size), (PREFIX.size, spans[0][0]), *spans]
    codes = set()
    for number in range(60):
        path = tmp_path / "damaged.bte"
        path.write_bytes(mutate(whole.read_bytes(), regions, random.Random(number)))
        code = main(["validate", str(path), "--device", "generic-50mb", *NUMERIC])
        out, err = capsys.readouterr()
        assert code in (0, 1, 2)
        assert bool(err) == (code > 0)
        assert "Traceback" not in out + err
        codes.add(code)
    assert codes == {0, 1, 2}
