# SPDX-License-Identifier: MIT
"""Running a model on the device: standard library and the compiled engine, nothing else."""

from __future__ import annotations

import sys
from array import array

from bitnet_edge import _engine
from bitnet_edge.container import BteFile, open_bte
from bitnet_edge.errors import ArgumentError, BudgetExceeded, FormatError
from bitnet_edge.generation import Generation, Sampling
from bitnet_edge.memory import THREAD_BYTES, MemoryReport, parse_bytes, private_bytes, private_in
from bitnet_edge.tokenizer import Tokenizer

TYPE_CHECKING = False  # typing and pathlib would cost the device 1.3 MB
if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Any

__all__ = ["Model", "load"]


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    memory_budget: int | str | None = None,
    residency: str | None = None,
    device: str = "cpu",
) -> Model:
    """Open a ``.bte`` file for running.

    Parameters
    ----------
    path : str or PathLike
    threads : int, optional
        Participants of a run; the file's plan by default, at most the CPUs available.
    memory_budget : int or str, optional
        Private bytes the whole process may use (``"48MB"``); the profile's by default.
    residency : str, optional
        What is kept of the weights in memory, the plan's by default: ``mapped`` (clean pages that
        the system may drop), ``resident`` (read at once and locked) or ``streamed`` (read ahead
        and dropped behind the computation).
    device : str
        ``cpu``; ``metal`` insists on the GPU, where weights are resident; ``auto`` takes the one
        that promises more.

    Returns
    -------
    Model

    Raises
    ------
    FormatError
        When the file is malformed (one subclass per cause).
    BudgetExceeded
        When the plan does not fit the budget.
    ArgumentError
        For threads, a budget, a residency or a device outside their domain.
    DeviceUnsupported
        When the system, or its limit on locked memory, does not allow the residency; when the GPU
        is insisted on and cannot run the program.
    OSError
        When the file cannot be opened.
    """
    return Model(open_bte(path), threads, memory_budget, residency, device)


class Model:
    """A loaded model: weights mapped, arena and KV cache allocated once.

    One generation at a time; use one `Model` per concurrent caller (weights are shared pages): a
    call while another is running, or after another generation has begun, is an `ArgumentError`.
    Closing is optional; a closed or garbage-collected model gives its memory and its map back.

    Parameters
    ----------
    file : BteFile
    threads, memory_budget, residency, device
        As for `load`.
    """

    def __init__(
        self,
        file: BteFile,
        threads: int | None = None,
        memory_budget: int | str | None = None,
        residency: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.file = file
        self._budget = file.plan["allowed_bytes"]
        if memory_budget is not None:
            self._budget = parse_bytes(memory_budget)
        if threads is None:
            threads = min(file.plan["threads"], _engine.cpu_available())
        if not 1 <= threads <= _engine.MAX_THREADS:
            raise ArgumentError(
                f"[runtime] expected threads 1 .. {_engine.MAX_THREADS}, got {threads}"
            )
        self.threads = threads
        program = _engine.Program(file.section("program"), file.section("weights"))
        needed = self._check_budget(program)
        self.residency = file.plan["residency"] if residency is None else residency
        self._session: _engine.Session | None = self._on_gpu(program, device, needed)
        if self._session is None:
            self._session = _engine.Session(program, threads)
            at = file.sections["weights"].offset
            self._session.residency(self.residency, file.descriptor, at)
        self._turn = 0  # the generation that may use the session
        self._tokenizer: Tokenizer | None = None
        if "tokenizer" in file.sections:
            self._tokenizer = Tokenizer(file.section("tokenizer"))

    def _on_gpu(self, program: _engine.Program, device: str, needed: int) -> Any:
        """Return a session with the methods of the engine's; None where the CPU is to run."""
        if device == "cpu":
            return None
        from bitnet_edge.metal.session import open_session

        return open_session(program, device, self._budget, needed)

    def _check_budget(self, program: _engine.Program) -> int:
        """Return the private bytes needed; refuse before anything is allocated."""
        classes = dict(self.file.plan["private_bytes"])
        classes["arena"] = program.arena_bytes
        classes["kv_cache"] = program.state_bytes
        extra_threads = max(0, self.threads - self.file.plan["threads"])
        classes["engine"] = classes.get("engine", 0) + extra_threads * THREAD_BYTES
        needed = sum(classes.values())
        if needed > self._budget:
            raise BudgetExceeded(
                f"[runtime] {self.file.path} needs {needed} bytes of private memory, "
                f"{needed - self._budget} over the budget of {self._budget}: export it again for a "
                "smaller context or device",
                needed=needed,
                allowed=self._budget,
                breakdown=classes,
            )
        return needed

    # -- what it is -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.file.model["name"])

    @property
    def context(self) -> int:
        """Positions that a token sees; of an endless sequence, its sinks and its window."""
        program = self.session.program
        return program.sinks + program.window if program.window else program.max_positions

    @property
    def max_positions(self) -> int:
        """Longest sequence: the context, or 2^20 positions of an endless one."""
        return self.session.program.max_positions

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self.session.program.outputs[0][1])

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises
        ------
        FormatError
            When the file holds none.
        """
        _ = self.session  # a closed model says so
        if self._tokenizer is None:
            raise FormatError(f"[runtime] {self.file.path} holds no tokenizer")
        return self._tokenizer

    @property
    def session(self) -> _engine.Session:
        """The engine's session.

        Raises
        ------
        ArgumentError
            When the model is closed.
        """
        if self._session is None:
            raise ArgumentError("[runtime] the model is closed")
        return self._session

    @property
    def has_tokenizer(self) -> bool:
        """Whether the file holds a tokenizer."""
        return self._tokenizer is not None

    def session_for(self, turn: int) -> _engine.Session:
        """Return the session to the generation (or `logits`) whose turn it is.

        Raises
        ------
        ArgumentError
            When another has taken over since, or the model is closed.
        """
        session = self._session  # once a token: no property
        if session is None:
            return self.session
        if turn != self._turn:
            raise ArgumentError("[runtime] another generation has begun on this model")
        return session

    # -- running ----------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        ignore_eos: bool = False,
    ) -> Generation:
        """Continue a prompt; iterate over the result for pieces of text as they come.

        Parameters
        ----------
        prompt : str or sequence of int
            Text (the tokenizer adds its special tokens) or token ids.
        max_tokens : int
            Most new tokens; the context is the other bound.
        temperature : float
            0 is greedy.
        top_k, top_p, min_p, repetition_penalty : int or float
            Filters as in transformers' ``generate``; 0, 1, 0 and 1 switch them off.
        repetition_window : int
            Latest tokens the penalty applies to.
        seed : int
            Same seed, same text, on any CPU and thread count.
        stop : str or iterable of str
            Text that ends the generation; it is not part of the output.
        ignore_eos : bool
            Go on after an end-of-text token.

        Returns
        -------
        Generation
            An iterator of str with ``token_ids``, ``finish_reason`` and ``statistics``.

        Raises
        ------
        ArgumentError
            For a parameter outside its domain, an empty prompt, or one longer than the context.
        TokenizerError
            For text that is not valid Unicode.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        sampling = Sampling(
            temperature, top_k, top_p, min_p, repetition_penalty, repetition_window, seed
        )
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        eos = frozenset() if ignore_eos else self._eos_ids()
        self._turn += 1
        return Generation(self, ids, max_tokens, sampling, stops, eos, self._turn)

    def _eos_ids(self) -> frozenset[int]:
        """Ids that end a text: the model's and the tokenizer's (a chat model has both)."""
        tokenizer = self._tokenizer.eos_ids if self._tokenizer else ()
        return frozenset(self.file.model["eos_ids"]) | frozenset(tokenizer)

    def logits(self, token_ids: Sequence[int]) -> Any:
        """Return the logits after every token of a sequence, teacher-forced.

        Parameters
        ----------
        token_ids : sequence of int
            1 .. `context` ids.

        Returns
        -------
        memoryview or numpy.ndarray of float32, shape (n_tokens, vocab_size)
            An array when the caller has imported numpy.

        Raises
        ------
        ArgumentError
            For an empty or too long sequence, or an id outside the vocabulary.
        """
        ids = token_array(token_ids)
        if not 1 <= len(ids) <= self.max_positions:
            raise ArgumentError(
                f"[runtime] expected 1 .. {self.max_positions} tokens, got {len(ids)}"
            )
        shape = (len(ids), self.vocab_size)
        data = bytearray(shape[0] * shape[1] * 4)
        self._turn += 1
        turn = self._turn
        row_bytes = shape[1] * 4
        for start, chunk in self.chunks(ids):
            out = memoryview(data)[start * row_bytes :]
            self.session_for(turn).run((chunk,), (out,), len(chunk), start)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            return numpy.frombuffer(data, numpy.float32).reshape(shape)
        return memoryview(data).cast("f", shape)

    def chunks(self, ids: array[int], start: int = 0) -> Iterable[tuple[int, array[int]]]:
        """Cut ids into runs of at most the planned prefill chunk: (position, ids)."""
        size = self.session.program.max_tokens
        for first in range(0, len(ids), size):
            yield start + first, ids[first : first + size]

    # -- memory -----------------------------------------------------------------------------

    def memory_report(self) -> MemoryReport:
        """Return planned and measured memory."""
        session = self.session
        own = private_in(session.blocks)
        return MemoryReport(
            dict(self.file.plan["private_bytes"]),
            {
                **(dict(zip(("arena", "kv_cache"), own, strict=True)) if own else {}),
                "tokenizer": self._tokenizer.private_bytes if self._tokenizer else 0,
                "engine": session.program.private_bytes + session.private_bytes,
            },
            self._budget,
            private_bytes(),
            self.file.sections["weights"].bytes,
        )

    def close(self) -> None:
        """Free the arena and the KV cache; further use raises `ArgumentError`."""
        self._turn += 1
        self._session = None
        self._tokenizer = None
        self.file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def token_array(token_ids: Iterable[int]) -> array[int]:
    """Return ids as an int32 array.

    Raises
    ------
    ArgumentError
        When an id is not an integer of 32 bits.
    """
    if isinstance(token_ids, (bytes, bytearray, memoryview, str)):
        raise ArgumentError(f"[runtime] expected token ids, got {type(token_ids).__name__}")
    try:
        return array("i", token_ids)
    except (TypeError, OverflowError) as error:
        raise ArgumentError(f"[runtime] token ids must be 32-bit integers: {error}") from None
