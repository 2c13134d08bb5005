# SPDX-License-Identifier: MIT
"""A model's runs as a trace for ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json

from bitnet_edge import _engine
from bitnet_edge.bench.measure import prefill_seconds, prompt_ids
from bitnet_edge.bench.work import describe

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    import os
    from typing import Any

    from bitnet_edge.runtime import Model

__all__ = ["trace_model", "write_trace"]


def trace_model(model: Model, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Record a prompt and the tokens after it.

    Returns
    -------
    dict
        In Chrome's trace event format: one complete event (``ph`` X) per instruction and thread
        that worked on it, times in microseconds since the first; gaps are waiting.
    """
    works = describe(model)
    prompt_tokens = min(prompt_tokens, model.context)
    new_tokens = min(new_tokens, model.context - prompt_tokens)
    runs = -(-prompt_tokens // model.session.program.max_tokens) + new_tokens
    profile = _engine.Profile(
        model.threads, 4 * len(works) * runs
    )  # stolen work: events of its own
    ids = prompt_ids(model, prompt_tokens)
    prefill_seconds(model, ids)  # warm up
    model.session.profile(profile)
    prefill_seconds(model, ids)
    for position in range(prompt_tokens, prompt_tokens + new_tokens):
        model.session.step(0, position)
    model.session.profile(None)
    threads = [profile.events(thread) for thread in range(model.threads)]
    origin = min(events[0][1] for events in threads if events)
    records: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": model.name}}
    ]
    for thread, events in enumerate(threads):
        name = "caller" if thread == 0 else f"worker {thread}"
        records.append(
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": thread, "args": {"name": name}}
        )
        records += [
            {
                "ph": "X",
                "name": str(works[instruction]),
                "cat": works[instruction].op,
                "pid": 1,
                "tid": thread,
                "ts": (begin - origin) / 1000,
                "dur": (end - begin) / 1000,
                "args": {"instruction": instruction},
            }
            for instruction, begin, end in events
        ]
    return {"displayTimeUnit": "ns", "traceEvents": records}


def write_trace(trace: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a trace as JSON.

    Raises
    ------
    ExportError
        When the file cannot be written.
    """
    from bitnet_edge.atomic import write_text  # after measuring: it costs the device memory

    write_text(path, json.dumps(trace, separators=(",", ":")))
