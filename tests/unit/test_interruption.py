# SPDX-License-Identifier: MIT
"""Signals during one long engine call: heard in time, and the session stays whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bitnet_edge
from bitnet_edge.bench.made import write_geometry
from bitnet_edge.errors import ArgumentError

TOKENS = 2048  # in one call: 0.4 s on one thread of a fast server
LATEST = 0.25  # seconds from Ctrl-C to KeyboardInterrupt; 2 to 13 ms where it was measured

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX signals")


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    return Path(write_geometry("20m-class", folder, positions=TOKENS, prefill_chunk=TOKENS))


@contextmanager
def alarm(seconds: float, handler: Callable[..., object]) -> Iterator[None]:
    """Raise SIGALRM once after ``seconds``."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prefill(model: bitnet_edge.Model, position: int = 0) -> bytes:
    """Run the rest of the context in one call; return the last token's logits."""
    ids = array("i", [i * 7919 % model.vocab_size for i in range(position, TOKENS)])
    model.session.prefill(ids, position)
    return bytes(model.session.logits)


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_one_long_call(long_model: Path, threads: int) -> None:
    model = bitnet_edge.load(long_model, threads=threads)
    sent = []

    def press() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.05, press)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        prefill(model)
    assert time.perf_counter() - sent[0] < LATEST
    timer.join()
    assert model.session.position == 0
    fresh = bitnet_edge.load(long_model, threads=1)
    assert prefill(model) == prefill(fresh)


def test_an_interrupted_call_takes_its_rows_with_it(long_model: Path) -> None:
    """Rows before the call's position stay valid, those it overwrote do not."""
    model = bitnet_edge.load(long_model, threads=1)
    expected = prefill(model)

    def handler(number: int, frame: object) -> None:
        raise ZeroDivisionError

    with alarm(0.05, handler), pytest.raises(ZeroDivisionError):
        prefill(model, 100)
    assert model.session.position == 100
    with pytest.raises(ArgumentError, match="position.*expected 100, got 101"):
        model.session.step(0, 101)
    assert prefill(model, 100) == expected


def test_a_handler_that_returns_changes_nothing(long_model: Path) -> None:
    model = bitnet_edge.load(long_model, threads=2)
    expected = prefill(model)
    heard: list[str] = []

    def handler(number: int, frame: object) -> None:
        heard.append("during")
        with pytest.raises(ArgumentError, match="in use by another call"):
            model.session.step(0, 0)

    with alarm(0.05, handler):
        assert prefill(model) == expected
        heard.append("after")
    assert heard == ["during", "after"]


def test_other_threads_are_not_asked(long_model: Path) -> None:
    """Python handles signals on its main thread: a run elsewhere goes on, and so does its owner."""
    model = bitnet_edge.load(long_model, threads=1)
    expected = prefill(model)
    results: list[bytes] = []
    worker = threading.Thread(target=lambda: results.append(prefill(model)))

    def handler(number: int, frame: object) -> None:
        raise ZeroDivisionError

    with alarm(0.05, handler), pytest.raises(ZeroDivisionError):
        worker.start()
        time.sleep(10)
    worker.join()
    assert results == [expected]


def test_generation_is_interrupted(long_model: Path) -> None:
    model = bitnet_edge.load(long_model, threads=1)

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    generation = model.generate([1] * TOKENS, max_tokens=1)
    with alarm(0.05, handler), pytest.raises(KeyboardInterrupt):
        generation.advance()
    assert generation.finish_reason == "interrupted"
    following = model.generate([1, 2, 3], max_tokens=2)
    following.text()
    assert len(following.token_ids) == 2


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_that_forks(long_model: Path, threads: int, busy: bool) -> None:
    """The child has lost the other threads: it gets an error and no wait without end, also when it
    has run another model on threads of its own meanwhile."""
    model = bitnet_edge.load(long_model, threads=threads)
    expected = prefill(model)
    children = []

    def handler(number: int, frame: object) -> None:
        children.append(os.fork())
        if children == [0] and busy:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the child if it hangs
            signal.alarm(60)
            with bitnet_edge.load(long_model, threads=threads) as other:
                assert prefill(other) == expected

    with alarm(0.05, handler):
        try:
            assert prefill(model) == expected
        except RuntimeError as error:
            os._exit(7 if children == [0] and "forked" in str(error) else 8)
        except BaseException:
            os._exit(9)
        if children == [0]:
            os._exit(10)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
