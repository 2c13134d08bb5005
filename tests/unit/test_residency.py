# SPDX-License-Identifier: MIT
"""What is kept of the weights in memory, and that it changes no bit of the results."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.container import open_bte
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, BudgetExceeded
from bitnet_edge.planner import RESIDENCIES, make_plan
from bitnet_edge.profiles import load_profile
from tests.conftest import require_tool
from tests.graphs import decoder

needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux only")
IDS = np.random.default_rng(2).integers(0, 30000, 20)


@pytest.fixture(scope="module")
def large():
    """A head of 38 MB: several steps of the stream."""
    return decoder(vocab=30000, hidden=320, ffn=400, heads=4, kv_heads=2, head_dim=80, bias=False)


@pytest.fixture(scope="module")
def path(large, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("residency") / "m.bte"
    bitnet_edge.export(large, out=path, prefill_chunk=8, head_dtype="stored")
    return path


def mapped_mb(path: Path) -> tuple[float, set[str]]:
    """Resident megabytes of this process's map of a file, and the flags of its parts."""
    kilobytes, flags, ours = 0, set(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
        elif ours and line.startswith("VmFlags:"):
            flags |= set(line.split()[1:])
    return kilobytes / 1024, flags


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("head", ["stored", "int8", "screened-int4"])
def test_streamed_weights_give_the_same_bits(large, head, threads, tmp_path):
    path = tmp_path / "m.bte"
    bitnet_edge.export(large, out=path, prefill_chunk=8, head_dtype=head)
    with bitnet_edge.load(path, threads=threads) as model:
        expected = np.asarray(model.logits(IDS)).copy()
        tokens = list(model.generate(IDS.tolist(), max_tokens=6).token_ids)
    with bitnet_edge.load(path, threads=threads, residency="streamed") as model:
        assert np.asarray(model.logits(IDS)).tobytes() == expected.tobytes()
        assert list(model.generate(IDS.tolist(), max_tokens=6).token_ids) == tokens


@needs_smaps
def test_streamed_weights_do_not_stay(path):
    with bitnet_edge.load(path) as model:
        model.logits(IDS)
        assert mapped_mb(path)[0] > 15  # the head, and what else was read
    with bitnet_edge.load(path, residency="streamed") as model:
        model.logits(IDS)
        # Pages that hold the end of one tensor and the beginning of another
        assert mapped_mb(path)[0] < 1


@needs_smaps
def test_resident_weights_are_locked(path):
    with bitnet_edge.load(path, residency="resident") as model:
        resident, flags = mapped_mb(path)
        assert resident > model.file.sections["weights"].bytes / (1 << 20) - 0.1
        assert "lo" in flags
        expected = np.asarray(model.logits(IDS)).copy()
    with bitnet_edge.load(path) as model:
        assert "lo" not in mapped_mb(path)[1]
        assert np.asarray(model.logits(IDS)).tobytes() == expected.tobytes()


@needs_smaps
@pytest.mark.parametrize(("tied", "random"), [(False, True), (True, False)])
def test_tables_read_by_rows_are_not_read_ahead(tied, random, tmp_path):
    path = tmp_path / "m.bte"
    bitnet_edge.export(decoder(vocab=3000, hidden=64, tied=tied, table=DType.BF16), out=path)
    with bitnet_edge.load(path):
        assert ("rr" in mapped_mb(path)[1]) is random


@needs_smaps
def test_the_embedding_table_never_becomes_resident(tmp_path):
    """Reading 2000 tokens touches their rows, not the 30 MB between them."""
    source = decoder(vocab=60000, hidden=256, heads=2, kv_heads=1, head_dim=8, ffn=16, context=4096)
    path = tmp_path / "m.bte"
    bitnet_edge.export(source, out=path, context=2048)
    with bitnet_edge.load(path, residency="streamed") as model:
        ids = np.random.default_rng(0).integers(0, 60000, 2000)
        for first in range(0, 2000, 128):
            chunk = ids[first : first + 128].astype(np.int32)
            model.session.prefill(chunk, first, False)
        assert mapped_mb(path)[0] < 2


CHILD = """
import os, resource, sys
import bitnet_edge
from bitnet_edge.container import open_bte
from bitnet_edge.errors import DeviceUnsupported
from bitnet_edge.runtime import Model

file = open_bte(sys.argv[1])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
if os.getuid() == 0:
    os.setuid(65534)
try:
    Model(file, residency="resident")
except DeviceUnsupported as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_locking_beyond_the_limit_is_an_error(path):
    command = [sys.executable, "-c", CHILD, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "refuses this residency of the weights: mlock: expected" in run.stdout, run.stderr


def test_arguments(path):
    with pytest.raises(ArgumentError, match="mapped or resident or streamed, got 'cached'"):
        bitnet_edge.load(path, residency="cached")
    with bitnet_edge.load(path, residency="streamed") as model:
        with pytest.raises(ArgumentError, match="residency"):  # it is set once
            model.session.residency("mapped")
        assert model.residency == "streamed"
    with pytest.raises(ArgumentError, match="expected residency mapped or resident or streamed"):
        bitnet_edge.plan(decoder(), residency="cached")


def test_a_bad_descriptor_is_an_error(path):
    with bitnet_edge.load(path) as model:
        with pytest.raises(bitnet_edge.errors.DeviceUnsupported, match="file descriptor"):
            model.session.residency("streamed", 1 << 20)
        model.logits(IDS)  # still mapped, and usable


def test_only_the_pages_of_a_mapped_file_are_dropped(path):
    """Other memory would lose what it holds, the weights' neighbours included."""
    file = open_bte(path)
    weights = np.frombuffer(file.section("weights"), np.uint8)
    room = np.zeros(weights.size + 64, np.uint8)
    skip = -room.ctypes.data % 64
    room[skip : skip + weights.size] = weights
    for buffer in (room[skip : skip + weights.size], memoryview(room)[skip:]):
        session = _engine.Session(_engine.Program(file.section("program"), buffer))
        with pytest.raises(ArgumentError, match="expected weights in a mapped file"):
            session.residency("streamed")
        session.step(0, 0)
        np.testing.assert_array_equal(room[skip : skip + weights.size], weights)


def test_a_program_of_nothing_but_tables_is_opened_at_once(tmp_path):
    """A hostile file must not buy time that is quadratic in its instructions."""
    count, page, width = 8192, 4096, 16
    ids, sums, logits, table = 4 << 56, 2 << 56, 5 << 56, 1 << 56

    def record(opcode, flags, dims, scalar, operands):
        dims, operands = (*dims, *[0] * 7)[:7], (*operands, *[0] * 8)[:8]
        return struct.pack("<HH7I4f4I8Q", opcode, flags, *dims, scalar, *[0] * 7, *operands)

    embeds = [
        record(1, 0, (width, 32, 0), 1.0, (sums, table | i * page, ids)) for i in range(count - 1)
    ]
    header = struct.pack("<4s7IQQ16x", b"BEPR", 1, count, 1, 0, 1, 1, 0, 4 * width, 0)
    ports = struct.pack("<IIII", 3, 1, 0, width) + bytes(8 * 14)
    section = header + ports + b"".join(embeds) + record(8, 1, (width,), 0, (logits, sums, sums))
    path = tmp_path / "zeros"
    path.write_bytes(b"")
    os.truncate(path, count * page)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
        session = _engine.Session(_engine.Program(section, memoryview(weights)))
        begin = time.process_time()
        session.residency("mapped")
        assert time.process_time() - begin < 1
        session.step(0, 0)
        del session


# Counts what is read ahead, slowly enough that the run is polled before its first step.
COUNTER = """
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int wanted;
int madvise(void *pages, size_t size, int advice) {
  struct timespec pause = {0, 1000000};
  if (advice == MADV_WILLNEED) {
    wanted++;
    nanosleep(&pause, 0);
  }
  return (int)syscall(SYS_madvise, pages, size, advice);
}
"""

INTERRUPTED = """
import ctypes, signal, sys
import bitnet_edge

def interrupt(*_):
    raise KeyboardInterrupt

wanted = ctypes.c_int.in_dll(ctypes.CDLL(None), "wanted")
signal.signal(signal.SIGALRM, interrupt)
with bitnet_edge.load(sys.argv[1], threads=int(sys.argv[2]), residency="streamed") as model:
    model.session.step(0, 0)
    whole = wanted.value
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    try:
        model.session.step(0, 0)
    except KeyboardInterrupt:
        print(whole, wanted.value - whole)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_run_reads_no_further(path, threads, tmp_path):
    gcc = require_tool(shutil.which("gcc"), "gcc")
    source, library = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run([gcc, "-shared", "-fPIC", source, "-o", library], check=True)
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(path), str(threads)],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    whole, interrupted = map(int, run.stdout.split())
    assert whole > 140  # the head of 18 MB and the layers, by 128 KB
    assert interrupted < 100  # 8 MB ahead, small tensors one by one


def test_the_plan_streams_what_does_not_fit_the_resident_budget(large):
    profile = load_profile("generic-50mb")
    assert make_plan(large.graph, profile).residency == "mapped"
    roomy = replace(profile, resident_mb=100.0)
    assert make_plan(large.graph, roomy).residency == "mapped"
    tight = replace(profile, resident_mb=40.0)
    plan = make_plan(large.graph, tight)
    assert plan.residency == "streamed"
    assert plan.choices_json()["residency"] == "streamed"
    with pytest.raises(BudgetExceeded, match="MB of resident memory on generic-50mb"):
        make_plan(large.graph, tight, residency="resident")
    for residency in RESIDENCIES[:2]:
        assert make_plan(large.graph, roomy, residency=residency).residency == residency


def test_a_file_says_how_it_was_planned(large, tmp_path):
    path = tmp_path / "m.bte"
    bitnet_edge.export(large, out=path, residency="streamed")
    with bitnet_edge.load(path) as model:
        assert model.residency == "streamed"
