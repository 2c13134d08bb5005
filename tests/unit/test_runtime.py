# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.errors import ArgumentError, BudgetExceeded, FormatError
from bitnet_edge.memory import parse_bytes, private_bytes, private_in
from tests.conftest import PROMPT
from tests.graphs import decoder, mlp


def test_model_describes_itself(model):
    assert model.name
    assert model.context == 512
    assert model.vocab_size == 2048
    assert model.has_tokenizer


def test_logits_of_text(model):
    ids = model.tokenizer.encode(PROMPT)
    logits = model.logits(ids)
    assert isinstance(logits, np.ndarray)
    assert logits.shape == (len(ids), 2048)
    assert logits.dtype == np.float32


def test_logits_without_numpy(bte):
    script = (
        f"import bitnet_edge; m = bitnet_edge.load({str(bte)!r}); l = m.logits([0, 5, 7])\n"
        "print(type(l).__name__, l.shape, l.format, l[2, 100] == l.tolist()[2][100])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["memoryview", "(3,", "2048)", "f", "True"]


@pytest.mark.parametrize("ids", [[], [0] * 513])
def test_logits_need_a_sequence_that_fits(ids, model):
    with pytest.raises(ArgumentError, match="expected 1 .. 512 tokens"):
        model.logits(ids)


@pytest.mark.parametrize("ids", [["a"], [2**31], [1.5], None, b"\1\0\0\0", "text"])
def test_ids_must_be_integers(ids, model):
    with pytest.raises(ArgumentError, match="token ids"):
        model.logits(ids)


def test_ids_must_be_in_the_vocabulary(model):
    with pytest.raises(ArgumentError, match="token id.*expected 2048, got 2048"):
        model.logits([0, 2048])


def test_numpy_ids_are_welcome(model):
    expected = model.logits([0, 1, 2])
    assert (model.logits(np.array([0, 1, 2])) == expected).all()


def test_threads_are_checked(bte):
    for threads in (0, _engine.MAX_THREADS + 1):
        with pytest.raises(ArgumentError, match="expected threads 1 .. 64"):
            bitnet_edge.load(bte, threads=threads)
    assert bitnet_edge.load(bte, threads=2).threads == 2


def test_a_budget_below_the_plan_is_refused(bte):
    with pytest.raises(BudgetExceeded, match="over the budget of 2097152") as caught:
        bitnet_edge.load(bte, memory_budget="2MB")
    assert caught.value.needed > caught.value.allowed == 2 << 20
    assert bitnet_edge.load(bte, memory_budget=caught.value.needed)


def test_a_file_without_tokenizer(tmp_path):
    path = tmp_path / "m.bte"
    bitnet_edge.export(decoder(), out=path)
    model = bitnet_edge.load(path)
    assert not model.has_tokenizer
    with pytest.raises(FormatError, match="holds no tokenizer"):
        model.generate("text")
    generation = model.generate([1, 2, 3], max_tokens=5)
    assert generation.text() == ""
    assert len(generation.token_ids) == 5


def test_rows_models_load(tmp_path):
    bitnet_edge.export(mlp(), out=tmp_path / "m.bte")
    model = bitnet_edge.load(tmp_path / "m.bte")
    assert model.session.program.inputs == [(0, 20)]


def test_close_and_context_manager(bte):
    with bitnet_edge.load(bte) as model:
        generation = model.generate(PROMPT)
        next(generation)
    with pytest.raises(ArgumentError, match="the model is closed"):
        next(generation)
    with pytest.raises(ArgumentError, match="the model is closed"):
        model.logits([0])


def test_a_second_generation_takes_over(model):
    first = model.generate(PROMPT)
    next(first)
    second = model.generate("KING")
    next(second)
    with pytest.raises(ArgumentError, match="another generation has begun"):
        next(first)
    assert next(second)


def test_one_model_in_two_threads_is_an_error_never_a_wrong_answer(bte):
    model = bitnet_edge.load(bte, threads=1)
    ids = list(range(300))
    expected = model.logits(ids).tobytes()
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            try:
                if model.logits(ids).tobytes() != expected:
                    wrong.append("wrong logits")
            except ArgumentError:
                continue

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert model.logits(ids).tobytes() == expected


def test_a_forked_child_does_not_hang(bte):
    """fork() while another thread is inside the engine: the child gets an error or an answer."""
    script = (
        "import os, threading, warnings, bitnet_edge\n"
        "warnings.simplefilter('ignore')\n"
        f"m = bitnet_edge.load({str(bte)!r}, threads=2)\n"
        "stop = False\n"
        "def work():\n"
        "    while not stop: m.logits(list(range(200)))\n"
        "t = threading.Thread(target=work); t.start()\n"
        "for _ in range(5):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        try: m.logits([1, 2, 3])\n"
        "        except bitnet_edge.errors.ArgumentError: pass\n"
        "        os._exit(7)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
        "stop = True; t.join()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_more_threads_than_planned_count_against_the_budget(bte):
    needed = bitnet_edge.load(bte).file.plan["needed_bytes"]
    with pytest.raises(BudgetExceeded):
        bitnet_edge.load(bte, threads=8, memory_budget=needed)


def test_a_closed_model_gives_its_map_back(tmp_path, bte):
    path = tmp_path / "closing.bte"
    path.write_bytes(bte.read_bytes())
    model = bitnet_edge.load(path)
    model.close()
    assert "closing.bte" not in Path("/proc/self/maps").read_text()
    with pytest.raises(ArgumentError, match="is closed"):
        model.generate("A")
    with pytest.raises(ArgumentError, match="is closed"):
        model.file.verify()


def test_models_in_threads_do_not_disturb_each_other(bte):
    expected = bitnet_edge.load(bte).generate(PROMPT, max_tokens=40).text()
    results: list[str] = []

    def work() -> None:
        model = bitnet_edge.load(bte, threads=2)
        results.append(model.generate(PROMPT, max_tokens=40).text())

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [expected] * 6


def test_memory_report(model):
    fresh = model.memory_report()
    assert set(fresh.measured) == {"arena", "kv_cache", "tokenizer", "engine"}
    assert fresh.measured["kv_cache"] == 0  # reserved, and not private before it is written
    model.generate(PROMPT, max_tokens=8).text()
    report = model.memory_report()
    for name, measured in report.measured.items():
        assert 0 < measured <= report.planned[name] + 8192, name  # two half-used pages
    assert report.budget == 50 << 20
    assert report.process_private > 1 << 20
    assert report.to_json()["weights_bytes"] == report.weights


def test_a_report_without_smaps_says_what_it_knows(model, monkeypatch):
    monkeypatch.setattr("bitnet_edge.runtime.private_in", lambda blocks: None)
    assert set(model.memory_report().measured) == {"tokenizer", "engine"}


def test_private_bytes_of_mappings(monkeypatch):
    smaps = (
        b"1000-3000 rw-p 00000000 00:00 0\nPrivate_Dirty:         8 kB\nSwap:     4 kB\n"
        b"3000-4000 ---p 00000000 00:00 0\nPrivate_Dirty:         0 kB\nVmFlags: mr mw\n"
        b"5000-9000 rw-p 00000000 00:00 0 [anon:x]\nPrivate_Dirty:        16 kB\n"
    )
    monkeypatch.setattr("builtins.open", lambda *_: io.BytesIO(smaps))
    assert private_in([(0x1040, 0x1000), (0x5000, 0x4000), (0x4000, 0x1000)]) == [12288, 16384, 0]

    def missing(*_):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert private_in([(0, 1)]) is None


def test_private_memory_of_a_whole_process_stays_under_12_mb(bte):
    """Opening and generating 128 tokens, by the strictest count: dirty pages, and the clean ones
    that no other process happens to map."""
    script = (
        "import bitnet_edge, re\n"
        f"m = bitnet_edge.load({str(bte)!r})\n"
        f"m.generate({PROMPT!r}, max_tokens=128, ignore_eos=True).text()\n"
        "rollup = open('/proc/self/smaps_rollup').read()\n"
        "print(sum(int(kb) for kb in re.findall(r'Private_(?:Dirty|Clean): *(\\d+)', rollup)))\n"
        "print(m.memory_report().process_private, sum(m.memory_report().planned.values()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    strict_kb, dirty, planned = map(int, result.stdout.split())
    assert 1 << 10 < strict_kb < 12 << 10
    assert dirty <= strict_kb << 10 <= planned, "the plan must not be optimistic"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1), ("1", 1), ("48MB", 48 << 20), ("1.5 kb", 1536), (" 2 GB ", 2 << 30), ("7b", 7)],
)
def test_parse_bytes(value, expected):
    assert parse_bytes(value) == expected


@pytest.mark.parametrize(
    "value",
    [0, -1, "", "MB", "3 apples", "1TB", "0.1b", True, 1e300, "1e999", 10**400, None, [48], b"MB"],
)
def test_parse_bytes_refuses(value):
    with pytest.raises(ArgumentError, match="expected a size such as"):
        parse_bytes(value)


def test_private_bytes_is_unmeasured_elsewhere(monkeypatch):
    assert private_bytes() > 0
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert private_bytes() == 0

    def no_proc(*arguments: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", no_proc)
    assert private_bytes() == 0


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'imaginary'"):
        _ = bitnet_edge.imaginary
    assert set(dir(bitnet_edge)) == {"Model", "__version__", "errors", "export", "load", "plan"}
