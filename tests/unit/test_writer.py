# SPDX-License-Identifier: MIT
"""Export leaves a whole file or nothing, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bitnet_edge
from bitnet_edge import writer
from bitnet_edge.errors import ArgumentError, ExportError, FormatError, ModelError, ShapeMismatch
from tests.conftest import checkpoint
from tests.graphs import decoder, mlp


def test_export_is_deterministic(tmp_path):
    for name in ("a", "b"):
        bitnet_edge.export(decoder(), out=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_replanning_from_the_file_keeps_every_weight(bte, tmp_path):
    again = tmp_path / "again.bte"
    bitnet_edge.export(bte, device="raspberry-pi-5", context=64, out=again)
    ids = list(range(40))
    first = np.asarray(bitnet_edge.load(bte).logits(ids))
    second = np.asarray(bitnet_edge.load(again).logits(ids))
    assert first.tobytes() == second.tobytes()
    assert bitnet_edge.load(again).context == 64


def test_an_existing_file_needs_force(tmp_path):
    out = tmp_path / "m.bte"
    out.write_bytes(b"precious")
    with pytest.raises(ExportError, match=r"exists; --force \(force=True\) replaces it"):
        bitnet_edge.export(mlp(), out=out)
    assert out.read_bytes() == b"precious"
    bitnet_edge.export(mlp(), out=out, force=True)
    assert out.read_bytes() != b"precious"
    with pytest.raises(ExportError, match="exists"):
        writer.write_bte(out, mlp(), bitnet_edge.plan(mlp()))


def test_a_missing_directory(tmp_path):
    with pytest.raises(ExportError, match="cannot write in"):
        bitnet_edge.export(mlp(), out=tmp_path / "nowhere" / "m.bte")


def test_a_read_only_directory(tmp_path):
    if os.geteuid() == 0:  # root ignores modes: a directory no one can write to instead
        folder = Path("/proc/self")
    else:
        folder = tmp_path
        folder.chmod(0o555)
    with pytest.raises(ExportError, match=f"cannot write in {folder}"):
        bitnet_edge.export(mlp(), out=folder / "m.bte")


def limited(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process whose files may not exceed 64 KB (a full disk, as it sees it)."""
    prelude = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "import bitnet_edge\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )


def test_a_full_disk_leaves_nothing(tmp_path):
    result = limited(tmp_path, f"bitnet_edge.export({str(checkpoint('packed'))!r}, out='full.bte')")
    assert "ExportError: [export] cannot write full.bte: File too large" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path):
    (tmp_path / "old.bte").write_bytes(b"old")
    result = limited(
        tmp_path,
        f"bitnet_edge.export({str(checkpoint('packed'))!r}, out='old.bte', force=True)",
    )
    assert "ExportError" in result.stderr
    assert (tmp_path / "old.bte").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["old.bte"]


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bitnet_edge.export(mlp(), out=tmp_path / "m.bte", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1])
def test_kill_leaves_the_old_file_or_the_new_one(delay, tmp_path, bte):
    """SIGKILL cannot be cleaned up after, but it never leaves half a file under the real name."""
    out = tmp_path / "m.bte"
    out.write_bytes(bte.read_bytes())
    script = (
        "import bitnet_edge, sys\n"
        f"def p(done, total): print('x', flush=True) if done else None\n"
        f"bitnet_edge.export({str(bte)!r}, out={str(out)!r}, force=True, context=99, progress=p)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert bitnet_edge.load(out).context in (99, 512)


def test_progress_ends_at_the_total(tmp_path):
    seen: list[tuple[int, int]] = []
    bitnet_edge.export(decoder(), out=tmp_path / "m.bte", progress=lambda a, b: seen.append((a, b)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_the_default_name_is_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = bitnet_edge.export(mlp())
    assert result.path == Path("test.bte")
    assert result.bytes == result.path.stat().st_size
    assert 2 <= result.bits_per_weight <= 16


def test_a_weight_of_the_wrong_shape(tmp_path):
    source = mlp()
    source.weights.arrays["layers.0.linear.bias"] = np.zeros(7, np.float32)
    with pytest.raises(ShapeMismatch, match=r"expected float32 \(48,\), got float32 \(7,\)"):
        bitnet_edge.export(source, out=tmp_path / "m.bte")
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_would_be_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_HEADER", 100)
    with pytest.raises(FormatError, match="expected a header of at most 100 bytes"):
        bitnet_edge.export(mlp(), out=tmp_path / "m.bte")


def test_a_model_the_engine_would_refuse_is_not_written(tmp_path):
    with pytest.raises(ExportError, match="the engine cannot run this model.*rope_angles"):
        bitnet_edge.export(decoder(head_dim=600, layers=1), out=tmp_path / "m.bte")
    assert list(tmp_path.iterdir()) == []


def test_the_umask_is_respected(tmp_path):
    old = os.umask(0o077)
    try:
        bitnet_edge.export(mlp(), out=tmp_path / "m.bte")
    finally:
        os.umask(old)
    assert (tmp_path / "m.bte").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "link.bte").symlink_to(tmp_path / "m.bte")
    bitnet_edge.export(mlp(), out=tmp_path / "link.bte")
    assert (tmp_path / "link.bte").is_symlink()
    assert (tmp_path / "m.bte").is_file()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ExportError, match="cannot write .*pipe: it is no regular file"):
        bitnet_edge.export(mlp(), out=tmp_path / "pipe", force=True)


def test_unknown_target_and_checkpoint(tmp_path):
    with pytest.raises(ArgumentError, match="expected target bte or .*, got 'nothing'"):
        bitnet_edge.export(mlp(), out=tmp_path / "m", target="nothing")
    with pytest.raises(ModelError, match="expected a checkpoint directory or a .bte file"):
        bitnet_edge.export(tmp_path / "nothing", out=tmp_path / "m")
