# SPDX-License-Identifier: MIT
"""Files and directories are replaced whole, or not at all."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from bitnet_edge import atomic
from bitnet_edge.atomic import replacing, replacing_file
from bitnet_edge.errors import ArgumentError, ExportError


def fill(path, text):
    path.mkdir()
    for name in "abc":
        (path / name).write_text(text)


def texts(path):
    return {(path / name).read_text() for name in "abc"}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("old", ["nothing", "file", "directory"])
@pytest.mark.parametrize("new", ["file", "directory"])
def test_whatever_stood_there_is_replaced(old, new, exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    path = tmp_path / "p"
    if old == "file":
        path.write_text("old")
    elif old == "directory":
        fill(path, "old")
    with replacing(path) as made:
        assert not made.exists()
        made.write_text("new") if new == "file" else fill(made, "new")
    assert path.read_text() == "new" if new == "file" else texts(path) == {"new"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old(tmp_path):
    path = tmp_path / "p"
    fill(path, "old")
    with pytest.raises(ArgumentError), replacing(path) as made:
        fill(made, "new")
        raise ArgumentError("x")
    with pytest.raises(ExportError, match="cannot write .*: No space"), replacing(path) as made:
        raise OSError(28, "No space left on device")
    assert texts(path) == {"old"}
    assert list(tmp_path.iterdir()) == [path]


def test_nowhere_to_write(tmp_path):
    with pytest.raises(ExportError, match="cannot write in"), replacing_file(tmp_path / "a" / "b"):
        pass


def test_a_c_library_without_exchange(monkeypatch, tmp_path):
    class Library:
        pass

    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda name: Library())
    for platform in ("linux", "darwin"):
        monkeypatch.setattr(atomic.sys, "platform", platform)
        assert not atomic._exchange(tmp_path, tmp_path)


def test_what_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    def refused(*arguments: object) -> int:
        raise PermissionError

    monkeypatch.setattr(atomic.os, "open", refused)
    atomic._sync(tmp_path)


KILLED = """
import sys
from pathlib import Path
from bitnet_edge.atomic import replacing
print("ready", flush=True)
while True:
    for text in ("one", "two"):
        with replacing(Path(sys.argv[1])) as made:
            made.mkdir()
            for name in "abc":
                (made / name).write_text(text)
"""


def test_a_kill_leaves_one_whole_directory(tmp_path):
    path, moments = tmp_path / "p", random.Random(7)
    fill(path, "one")
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert texts(path) in ({"one"}, {"two"})
