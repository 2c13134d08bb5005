# SPDX-License-Identifier: MIT
"""The benchmark measures what it says, the trace is complete, the gate opens and closes. No test
here asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.bench import gate, kernels, measure
from bitnet_edge.bench.trace import trace_model
from bitnet_edge.bench.work import decode_bytes, decode_macs, describe, prefill_macs, screened_bytes
from bitnet_edge.cli import main
from bitnet_edge.errors import ArgumentError
from bitnet_edge.exporters.sources import synthetic
from tests.conftest import checkpoint
from tests.unit.test_synth import TINY

QUICK = ["--runs", "1", "--new-tokens", "4", "--prompt-tokens", "8,16"]
CLI = [sys.executable, "-m", "bitnet_edge.cli"]


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch):
    monkeypatch.setattr(measure, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(measure.read_buffer, "__defaults__", (1 << 20,))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(synthetic.GEOMETRIES, "tiny", TINY)
    return "tiny"


# -- work -----------------------------------------------------------------------------------


def test_work_counts_every_weight_once(model):
    works = describe(model)
    assert len(works) == model.session.program.instruction_count
    tensors = {tensor.name: tensor for tensor in model.file.tensors}
    matrices = [tensors[w.name] for w in works if w.op in ("ternary_linear", "dense_linear")]
    macs = sum(t.shape[0] * t.shape[1] for t in matrices)
    assert decode_macs(works) == macs
    size = decode_bytes(model, works, 0) - model.session.program.state_bytes / model.context
    # everything, the table being read as the head, and one of its rows
    stored = sum(t.bytes for t in model.file.tensors)
    row = tensors["embed_tokens"].bytes // model.vocab_size
    angles = tensors["rope.inv_freq"].bytes
    assert stored <= size <= stored + row + angles
    head = works[-1]
    assert head.tail
    assert str(head) == "dense_linear embed_tokens"
    assert prefill_macs(works, 10) < 10 * macs
    assert prefill_macs(works, 1) == macs


# -- the profile ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_profile_records_every_instruction_in_order(bte, threads):
    with bitnet_edge.load(bte, threads=threads) as model:
        count = model.session.program.instruction_count
        profile = _engine.Profile(threads, 8 * count)
        model.session.step(1, 0)
        before = bytes(model.session.logits)
        model.session.profile(profile)
        model.session.step(1, 0)
        assert bytes(model.session.logits) == before, "recording changes nothing"
        model.session.step(1, 1)
        model.session.profile(None)
        model.session.step(1, 2)
        assert profile.runs == 2
        events = [profile.events(thread) for thread in range(threads)]
        assert {e[0] for thread in events for e in thread} == set(range(count))
        for thread, own in enumerate(events):
            assert profile.count(thread) == len(own)
            assert all(begin <= end for _, begin, end in own)
            assert all(a[2] <= b[1] for a, b in pairwise(own))
        busy = sum(end - begin for own in events for _, begin, end in own)
        assert 0 < busy <= threads * profile.run_ns
        if threads == 1:
            assert [e[0] for e in events[0]] == 2 * list(range(count))
        profile.clear()
        assert (profile.runs, profile.run_ns, profile.events(0)) == (0, 0, [])


def test_a_full_profile_keeps_the_latest(model):
    count = model.session.program.instruction_count
    profile = _engine.Profile(1, 5)
    model.session.profile(profile)
    model.session.step(1, 0)
    assert profile.count(0) == count
    assert [e[0] for e in profile.events(0)] == list(range(count))[-5:]


def test_a_profile_without_room_counts_runs(model):
    profile = _engine.Profile()
    model.session.profile(profile)
    del profile  # the session keeps it
    model.session.step(1, 0)
    profile = _engine.Profile()
    model.session.profile(profile)
    model.session.step(1, 1)
    assert profile.runs == 1
    assert profile.run_ns > 0
    assert profile.events(0) == []
    assert profile.events(1) == []


def test_profiles_are_checked(bte):
    for threads, capacity in ((0, 1), (65, 1), (1, 1 << 25)):
        with pytest.raises(ArgumentError, match="profile"):
            _engine.Profile(threads, capacity)
    with bitnet_edge.load(bte, threads=2) as model, pytest.raises(ArgumentError, match="threads"):
        model.session.profile(_engine.Profile(1))
    assert _engine.Profile(3).threads == 3


def test_instruction_names_its_fields(model):
    op, flags, dims, operands = model.session.program.instruction(0)
    assert (op, flags) == ("embed", 0)
    assert dims["vocab"] == model.vocab_size
    assert set(operands) == {"y", "table", "ids"}
    with pytest.raises(IndexError):
        model.session.program.instruction(1 << 20)


# -- yardsticks -----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("prefetch", [True, False])
def test_measure_read_accepts_any_size(threads, prefetch):
    for size in (0, 1, 127, 128, (1 << 20) + 77):
        assert _engine.measure_read(bytes(size), threads, prefetch) >= 0
    with pytest.raises(ArgumentError):
        _engine.measure_read(b"x", 65)


@pytest.mark.parametrize("m", [1, 3, 70])
@pytest.mark.parametrize("scalar", [True, False])
def test_measure_ternary_runs_every_shape(m, scalar):
    rows, k = 80, 48  # five panels: a whole work item and a part
    buffer = bytes(range(256)) * 8  # two matrices and a rest
    assert _engine.measure_ternary(buffer, rows, k, m, 2, 2, scalar) > 0


@pytest.mark.parametrize(
    "sizes", [(17, 16, 1, 1), (16, 17, 1, 1), (0, 16, 1, 1), (16, 16, 0, 1), (16, 16, 1, 0)]
)
def test_measure_ternary_refuses(sizes):
    with pytest.raises(ArgumentError):
        _engine.measure_ternary(bytes(4096), *sizes)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("k", [1, 640, 2560])
def test_measure_head_runs_every_type(k, bits):
    assert _engine.measure_head(bytes(1 << 20), k, bits, 2) > 0


@pytest.mark.parametrize(("size", "k", "bits"), [(10, 64, 8), (4096, 0, 8), (1 << 20, 64, 5)])
def test_measure_head_refuses(size, k, bits):
    with pytest.raises(ArgumentError, match=f"{k} columns of {bits} bits in {size} bytes"):
        _engine.measure_head(bytes(size), k, bits)


def test_measure_ternary_needs_one_matrix():
    with pytest.raises(ArgumentError, match=r"\(64, 64\) x 1 in 1023 bytes"):
        _engine.measure_ternary(bytes(1023), 64, 64)


def test_read_buffer_takes_a_quarter_of_the_memory_at_most(monkeypatch):
    values = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(measure.os, "sysconf", values.__getitem__)
    assert len(measure.read_buffer(256 << 20)) == 1000 * 4096 // 4


def test_the_median_is_the_middle_one():
    assert measure.median([3.0, 1.0, 2.0]) == 2.0
    assert measure.median([4.0, 1.0]) == 4.0


# -- the command ----------------------------------------------------------------------------


def test_bench_of_a_file(bte, capsys):
    assert main(["bench", str(bte), *QUICK, "--threads", "1,2", "--x-scalar"]) == 0
    out = capsys.readouterr().out
    assert "1 thread, medians of 1 rounds" in out
    assert "2 threads, medians" in out
    for text in ("prefill", "decode", "of bandwidth", "Python", "calibration", "private memory"):
        assert text in out
    for text in ("ternary_linear", "attention", "(waiting)", "x scalar", "gb per s", "gmac per s"):
        assert text in out


def test_bench_json_is_consistent(bte, capsys):
    assert main(["bench", str(bte), *QUICK, "--threads", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [p["tokens"] for p in data["prefill"]] == [8, 16]
    assert data["decode_engine_us"] > 0  # noise may put it above the time of a token
    assert data["decode_tokens_per_second"] == pytest.approx(1e6 / data["decode_us_per_token"])
    assert set(data["ratios"]) == {"decode", "prefill_8", "prefill_16"}
    for ops in (data["decode_ops"], data["prefill_ops"]):
        assert sum(row["percent"] for row in ops) == pytest.approx(100, abs=0.1)
        assert {"embed", "attention", "ternary_linear"} <= {row["op"] for row in ops}
    assert main(["bench", str(bte), *QUICK, "--threads", "1,2", "--json"]) == 0
    assert [m["threads"] for m in json.loads(capsys.readouterr().out)["models"]] == [1, 2]


def test_bench_of_a_file_imports_no_host_module(bte, tmp_path):
    script = (
        "import sys; from bitnet_edge.cli import main\n"
        f"main(['bench', {str(bte)!r}, '--runs', '1', '--new-tokens', '2', '--profile', "
        f"{str(tmp_path / 't.json')!r}])\n"
        "assert not {'numpy', 'yaml', 'bitnet_edge.graph'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_prompts_beyond_the_context_are_left_out(bte, capsys):
    assert main(["bench", str(bte), *QUICK[:4], "--prompt-tokens", "4,100000", "--json"]) == 0
    assert [p["tokens"] for p in json.loads(capsys.readouterr().out)["prefill"]] == [4]
    assert main(["bench", str(bte), *QUICK[:4], "--prompt-tokens", "100000", "--json"]) == 0
    context = bitnet_edge.load(bte).context
    assert [p["tokens"] for p in json.loads(capsys.readouterr().out)["prefill"]] == [context]


def test_bench_of_a_geometry(tiny, capsys):
    assert main(["bench", "--geometry", tiny, *QUICK, "--threads", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["model"] == "tiny"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["FILE", "--geometry", "sensor-1m"],
        ["FILE", "--vs", "llama-cpp"],
        ["--kernels", "--save", "base.json"],
        ["--geometry", "no-such"],
        ["FILE", "--max-latency", "much"],
        ["FILE", "--baseline", "/nowhere.json"],
        ["FILE", "--new-tokens", "0"],
    ],
)
def test_bad_arguments_exit_2(bte, arguments, capsys):
    assert main(["bench", *(str(bte) if a == "FILE" else a for a in arguments)]) == 2
    assert "bitnet-edge: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-latency", "+5%"], "--max-latency needs --baseline"),
        (["--kv-dtype", "int8"], "--kv-dtype and --head-dtype need --geometry"),
        (["--head-dtype", "int8"], "--kv-dtype and --head-dtype need --geometry"),
        (["--profile", "t.json", "--threads", "1,2"], "expected one number of --threads"),
        (["--baseline", ""], "baseline: expected a value, got an empty one"),
    ],
)
def test_no_flag_goes_unheard(bte, flags, message, capsys):
    assert main(["bench", str(bte), *flags]) == 2
    assert message in capsys.readouterr().err


def test_counts_that_are_none(bte, capsys):
    with pytest.raises(SystemExit):
        main(["bench", str(bte), "--threads", "1,,2"])
    assert "expected numbers such as 1 or 1,2, got '1,,2'" in capsys.readouterr().err


def test_a_trace_that_cannot_be_written(bte, tmp_path, capsys):
    assert main(["bench", str(bte), *QUICK, "--profile", str(tmp_path / "no" / "t.json")]) == 2
    assert f"[export] cannot write in {tmp_path / 'no'}" in capsys.readouterr().err


def test_kernels_alone(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "ROWS", 64)
    monkeypatch.setattr(kernels, "K", 64)
    monkeypatch.setattr(kernels, "_MATRIX", 1024)
    monkeypatch.setattr(kernels, "_MACS", 1 << 16)
    monkeypatch.setattr(kernels.bench_kernels, "__defaults__", (1, 1 << 20))
    assert main(["bench", "--kernels", "--threads", "1,2", "--runs", "1"]) == 0
    out = capsys.readouterr().out
    for text in ("read, memory", "gemv 64x64, mapped file", "gemm m=128 64x64, in cache"):
        assert text in out
    assert "x scalar" in out


# -- the trace ------------------------------------------------------------------------------


def test_of_a_screened_table_the_rows_read_count(tmp_path, capsys):
    path = tmp_path / "m.bte"
    bitnet_edge.export(checkpoint("packed"), out=path, head_dtype="screened-int4")
    with bitnet_edge.load(path, threads=1) as model:
        works = describe(model)
        tensors = {tensor.name: tensor for tensor in model.file.tensors}
        read = {work.op: work.bytes for work in works}
        assert read["screen_linear"] == tensors["embed_tokens.screen"].bytes
        assert read["screen_limits"] == 0
        assert read["screened_linear"] == tensors["embed_tokens.bounds"].bytes
        assert screened_bytes(model) == tensors["embed_tokens"].bytes
    assert main(["bench", str(path), *QUICK, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["head_rescored_percent"] < 10
    assert main(["bench", str(path), *QUICK]) == 0
    assert "of the screened head, in greedy decoding" in capsys.readouterr().out


@pytest.mark.parametrize("threads", [1, 2])
def test_the_trace_has_all_ops_and_threads(bte, tmp_path, capsys, threads):
    path = tmp_path / "trace.json"
    assert main(["bench", str(bte), *QUICK, "--threads", str(threads), "--profile", str(path)]) == 0
    trace = json.loads(path.read_text())
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    named = {
        e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"
    }
    assert named == {0: "caller", 1: "worker 1"} if threads == 2 else {0: "caller"}
    with bitnet_edge.load(bte, threads=1) as model:
        works = describe(model)
    assert {e["name"] for e in events} == {str(work) for work in works}
    assert {e["cat"] for e in events} == {work.op for work in works}
    assert {e["args"]["instruction"] for e in events} == set(range(len(works)))
    assert min(e["ts"] for e in events) == 0
    assert all(e["dur"] >= 0 for e in events)


def test_the_trace_stays_inside_the_context(bte):
    with bitnet_edge.load(bte, threads=1) as model:
        trace = trace_model(model, 10**6, 8)
        per_run = model.session.program.instruction_count
        runs = -(-model.context // model.session.program.max_tokens)
        events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
        assert 0 < len(events) <= runs * per_run


# -- the gate -------------------------------------------------------------------------------


def result(**ratios: float) -> dict:
    return {"model": "m", "threads": 1, "ratios": ratios}


def test_the_gate_passes_and_fails_by_the_numbers():
    base = gate.baseline_of("m", [result(decode=10.0, prefill_128=4.0)])
    assert gate.regressions(base, [result(decode=10.9, prefill_128=3.0)], 0.1) == []
    (line,) = gate.regressions(base, [result(decode=11.1, prefill_128=4.0)], 0.1)
    assert line == (
        "decode, 1 threads: 11.1 x calibration, +11.0 % against the baseline's 10 (allowed +10 %)"
    )
    (line,) = gate.regressions(base, [result(decode=1.0)], 0.1)
    assert line == "prefill_128, 1 threads: in the baseline, but not measured"
    with pytest.raises(ArgumentError, match="baseline of 'm', got one of 'other'"):
        gate.regressions(base | {"model": "other"}, [result(decode=1.0)], 0.1)


def test_the_gate_through_the_command(bte, tmp_path, capsys):
    path = tmp_path / "base.json"
    command = ["bench", str(bte), *QUICK, "--threads", "1"]
    assert main([*command, "--save", str(path)]) == 0
    stored = json.loads(path.read_text())
    assert set(stored["ratios"]) == {
        "decode, 1 threads",
        "prefill_8, 1 threads",
        "prefill_16, 1 threads",
    }
    slow = dict.fromkeys(stored["ratios"], 1e9)
    path.write_text(json.dumps(stored | {"ratios": slow}))
    assert main([*command, "--baseline", str(path)]) == 0
    path.write_text(json.dumps(stored | {"ratios": slow | {"decode, 1 threads": 1e-9}}))
    capsys.readouterr()
    assert main([*command, "--baseline", str(path), "--max-latency", "+50%"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("bitnet-edge: regression: decode, 1 threads: ")
    assert errors[0].endswith("(allowed +50 %)")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1, "model": "m", "ratios": {}}', '{"format": 2}', "\x00",
             '{"format": 1, "model": "m", "ratios": {"decode": "fast"}}']
)  # fmt: skip
def test_a_baseline_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ArgumentError, match=r"bench --save.*b\.json"):
        gate.load_baseline(tmp_path / "b.json")


@pytest.mark.parametrize(("text", "value"), [("+10%", 0.1), ("5%", 0.05), (" +0.5% ", 0.005)])
def test_allowances(text, value):
    assert gate.parse_allowance(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["10", "-10%", "ten%", "", "%", "nan%"])
def test_nonsense_allowances(text):
    with pytest.raises(ArgumentError, match="allowance"):
        gate.parse_allowance(text)
