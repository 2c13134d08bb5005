# SPDX-License-Identifier: MIT
"""One continuation of a prompt: prefill, decode, sample, stop, and text in whole characters."""

from __future__ import annotations

from array import array
from time import perf_counter

from bitnet_edge import _engine
from bitnet_edge.errors import ArgumentError
from bitnet_edge.tokenizer import StreamDecoder

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitnet_edge.runtime import Model

__all__ = ["Generation", "Sampling", "Statistics"]


class Sampling:
    """How the next token is chosen; see `Model.generate`. The engine computes in float32.

    Raises
    ------
    ArgumentError
        For a parameter outside its domain.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
        seed: int = 0,
    ) -> None:
        p, floor, penalty = array("f", (top_p, min_p, repetition_penalty))
        for name, value, valid, expected in (
            ("temperature", temperature, 0 <= temperature <= 100, "0 .. 100"),
            ("top_k", top_k, 0 <= top_k < 1 << 31, "0 or more"),
            ("top_p", top_p, 0 < p <= 1, "above 0, at most 1, in float32"),
            ("min_p", min_p, 0 <= floor < 1, "0 or more, below 1, in float32"),
            (
                "repetition_penalty",
                repetition_penalty,
                0 < penalty <= 100,
                "above 0, at most 100, in float32",
            ),
            ("repetition_window", repetition_window, 0 <= repetition_window < 1 << 31, "0 or more"),
            ("seed", seed, 0 <= seed < 1 << 64, "0 .. 2^64 - 1"),
        ):
            if not valid:
                raise ArgumentError(f"[generate] expected {name} {expected}, got {value}")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self.repetition_window = repetition_window
        self.seed = seed


class Statistics:
    """Counts and times of a generation, in seconds."""

    def __init__(self, prompt_tokens: int, sampler: _engine.Sampler) -> None:
        self._sampler = sampler
        self.prompt_tokens = prompt_tokens
        self.new_tokens = 0
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0

    @property
    def rescored_share(self) -> float | None:
        """Share of a screened head's rows that were computed exactly, of all tokens so far.

        None where no token was screened: another head, or a sampling that needs every logit.
        """
        sampler = self._sampler
        if sampler.screened_rows == 0:
            return None
        return sampler.rescored_rows / sampler.screened_rows

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens per second, 0 before the second token."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


class Generation:
    """An iterator over the text of one continuation.

    Pieces are whole characters; text that may be the beginning of a stop string is held back until
    it is known not to be.

    Attributes
    ----------
    token_ids : list of int
        New tokens so far, the end-of-text token included.
    finish_reason : str or None
        ``"eos"``, ``"stop"``, ``"max_tokens"``, ``"context"``, ``"interrupted"`` (by an exception
        or `close`); None while running.
    statistics : Statistics
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop: tuple[str, ...],
        eos_ids: frozenset[int],
        turn: int,
    ) -> None:
        from bitnet_edge.runtime import token_array

        ids = token_array(prompt)
        if not 1 <= len(ids) <= model.max_positions:
            raise ArgumentError(
                f"[generate] expected a prompt of 1 .. {model.max_positions} tokens, got {len(ids)}"
            )
        if max_tokens < 1:
            raise ArgumentError(f"[generate] expected max_tokens 1 or more, got {max_tokens}")
        if not all(isinstance(text, str) and text for text in stop):
            raise ArgumentError(f"[generate] stop strings must be non-empty text, got {stop!r}")
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self._model = model
        self._max_positions = model.max_positions
        self._ids = ids
        self._max_tokens = max_tokens
        self._window = 0 if sampling.repetition_penalty == 1 else sampling.repetition_window
        self._stop = stop
        self._eos_ids = eos_ids
        self._turn = turn
        self._sampler = _engine.Sampler(
            model.vocab_size,
            sampling.seed,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
        )
        self.statistics = Statistics(len(ids), self._sampler)
        self._decoder = StreamDecoder(model.tokenizer) if model.has_tokenizer else None
        self._held = ""  # decoded, but possibly the beginning of a stop string

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        """Return the next piece of text, decoding as many tokens as that takes.

        Raises
        ------
        ArgumentError
            When another generation has begun on the same model, or it was closed.
        """
        while self.finish_reason is None:
            piece = self.advance()
            if piece:
                return piece
        raise StopIteration

    @property
    def private_bytes(self) -> int:
        """Bytes of the sampler, which lives as long as this generation."""
        return self._sampler.private_bytes

    def text(self) -> str:
        """Run to the end and return the rest of the text."""
        return "".join(self)

    def advance(self) -> str:
        """Decode one token; return the text that became final.

        Like a Python generator, a generation that was interrupted by an exception is finished.

        Raises
        ------
        ArgumentError
            When it is finished, or as for ``next``.
        """
        if self.finish_reason is not None:
            raise ArgumentError(f"[generate] this generation is finished ({self.finish_reason})")
        try:
            return self._decode()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it here: a generation still running is ``"interrupted"``."""
        if self.finish_reason is None:
            self.finish_reason = "interrupted"

    def _decode(self) -> str:
        start = perf_counter()
        session = self._model.session_for(self._turn)
        ids, tokens, statistics = self._ids, self.token_ids, self.statistics
        recent = ids[-self._window :] if self._window else None
        if tokens:
            token = session.next(self._sampler, ids[-1], len(ids) - 1, recent)
            statistics.decode_seconds += perf_counter() - start
        else:
            self._prefill(len(recent) if recent else 0)
            token = session.sample(self._sampler, recent)
            statistics.prefill_seconds += perf_counter() - start
        ids.append(token)
        tokens.append(token)
        statistics.new_tokens += 1
        if token in self._eos_ids:
            return self._finish("eos")
        if self._decoder is not None:
            self._held += self._decoder.push(token)
            if self._stop and self._cut_at_stop():
                return self._finish("stop")
        if len(tokens) >= self._max_tokens:
            return self._finish("max_tokens")
        if len(ids) > self._max_positions:
            return self._finish("context")
        if not self._stop:
            ready, self._held = self._held, ""
            return ready
        cut = len(self._held) - _stop_prefix(self._held, self._stop)
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def _cut_at_stop(self) -> bool:
        """End the held text where the earliest stop string begins; False when it has none."""
        found = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            self._held = self._held[: min(found)]
            self._decoder = None
        return bool(found)

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        tail = self._decoder.flush() if self._decoder is not None else ""
        return self._held + tail

    def _prefill(self, n_recent: int) -> None:
        """Run the prompt, a chunk a call."""
        for position, chunk in self._model.chunks(self._ids):
            session = self._model.session_for(self._turn)
            last = position + len(chunk) == len(self._ids)
            session.prefill(chunk, position, last, self._sampler, n_recent)


def _stop_prefix(text: str, stop: tuple[str, ...]) -> int:
    """Return the length of the longest end of ``text`` that begins a stop string."""
    longest = max((len(s) for s in stop), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[-length:]) for s in stop):
            return length
    return 0
