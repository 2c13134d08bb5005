# SPDX-License-Identifier: MIT
"""llama.cpp, through llama-cpp-python, on the same geometry and in alternation with ours."""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bitnet_edge.bench.gguf_model import write_gguf
from bitnet_edge.bench.measure import median, prefill_seconds, prompt_ids
from bitnet_edge.errors import MissingDependency, ModelError
from bitnet_edge.exporters.sources.synthetic import GEOMETRIES
from bitnet_edge.runtime import Model, load

__all__ = ["against_llama_cpp"]

_DECODED = 32
_SETTLE_SECONDS = 0.02  # OpenMP's workers spin for milliseconds after the last parallel region


class LlamaCpp:
    """A GGUF model in llama.cpp, driven by its C API: no tokenizer, no sampler.

    Raises
    ------
    MissingDependency
        When llama-cpp-python is not installed.
    ModelError
        When it refuses the file.
    """

    def __init__(self, path: Path, threads: int, context: int) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise MissingDependency(
                "[bench] comparing with llama.cpp needs llama-cpp-python: pip install "
                "'bitnet-edge[bench]'"
            ) from error
        self._api: Any = llama_cpp
        self._silence = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise ModelError(f"[bench] llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ModelError(f"[bench] llama.cpp cannot make a context of {context} for {path}")

    @property
    def version(self) -> str:
        """Of llama-cpp-python."""
        return str(self._api.__version__)

    def run(self, ids: Sequence[int]) -> None:
        """Run ids after those run before; the last one's logits are computed."""
        tokens = (self._api.llama_token * len(ids))(*ids)
        batch = self._api.llama_batch_get_one(tokens, len(ids))
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise ModelError(f"[bench] llama.cpp: llama_decode gave {status}")
        self._api.llama_get_logits(self._context)  # waits

    def forget(self) -> None:
        """Empty the KV cache."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


def against_llama_cpp(
    path: str | os.PathLike[str],
    geometry: str,
    threads: int,
    prompts: Sequence[int] = (128, 512),
    runs: int = 7,
) -> dict[str, Any]:
    """Measure a synthetic ``.bte`` file and llama.cpp in turn: ours, theirs, ours, theirs.

    Parameters
    ----------
    path : str or PathLike
        The file, of ``geometry``.
    geometry : str
    threads : int
    prompts : sequence of int
        Lengths; those beyond the file's context are left out.
    runs : int
        Rounds of which the median counts; one more comes first to warm up.

    Returns
    -------
    dict
        ``what`` was compared and a row per measurement: tokens/s of both, and the median of the
        rounds' own ratios.

    Raises
    ------
    MissingDependency
        Without the extra ``[bench]``.
    """
    config = GEOMETRIES[geometry]
    with tempfile.TemporaryDirectory(prefix="bitnet-edge-") as scratch:
        gguf = Path(scratch) / f"{geometry}.gguf"
        write_gguf(gguf, geometry, config)
        with load(path, threads) as ours, LlamaCpp(gguf, threads, ours.context) as theirs:
            rows = _alternate(ours, theirs, [p for p in prompts if p <= ours.context], runs)
            head = _head(ours)
            version = theirs.version
    return {
        "threads": threads,
        "what": f"llama-cpp-python {version}, TQ2_0 weights, Q6_K head, same shapes and "
        f"multiply-adds (its activation is SiLU); ours with {head} head",
        "rows": rows,
    }


def _alternate(
    ours: Model, theirs: LlamaCpp, lengths: list[int], runs: int
) -> list[dict[str, Any]]:
    samples: list[dict[str, tuple[float, float]]] = []
    decoded = min(_DECODED, ours.context - 1)
    for _ in range(runs + 1):
        sample = {}
        for length in lengths:
            ids = prompt_ids(ours, length)
            our_s = prefill_seconds(ours, ids)
            theirs.forget()
            their_s = _seconds(lambda ids=ids: theirs.run(ids))
            time.sleep(_SETTLE_SECONDS)
            sample[f"prefill {length}"] = (length / our_s, length / their_s)
        sample["decode"] = (_decode_ours(ours, decoded), _decode_theirs(theirs, decoded))
        time.sleep(_SETTLE_SECONDS)
        samples.append(sample)
    return [
        {
            "what": what,
            "ours_tokens_per_s": median(s[what][0] for s in samples[1:]),
            "llama_cpp_tokens_per_s": median(s[what][1] for s in samples[1:]),
            "ratio": median(s[what][0] / s[what][1] for s in samples[1:]),
        }
        for what in samples[0]
    ]


def _decode_ours(model: Model, tokens: int) -> float:
    step = model.session.step
    step(0, 0)
    start = time.perf_counter()
    for position in range(1, tokens + 1):
        step(position, position)
    return tokens / (time.perf_counter() - start)


def _decode_theirs(peer: LlamaCpp, tokens: int) -> float:
    peer.forget()
    peer.run([0])
    start = time.perf_counter()
    for token in range(1, tokens + 1):
        peer.run([token])
    return tokens / (time.perf_counter() - start)


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _head(model: Model) -> str:
    """Return the head's dtype, from the last matrix the program reads."""
    return model.file.tensors[0].dtype
