# SPDX-License-Identifier: MIT
"""Stored outputs of a model: what it said when someone last looked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitnet_edge.errors import ArgumentError, BitnetEdgeError
from bitnet_edge.runtime import Model, load
from bitnet_edge.validate.numerics import ROOM
from bitnet_edge.validate.probes import is_language_model, probes, run_probe, spread_ids
from bitnet_edge.validate.report import CheckFailed, plain

__all__ = ["check_golden", "load_golden", "make_golden"]

FORMAT = 1
NEW_TOKENS = 16
PROBE_ROWS = 8


def make_golden(path: str, prompts: Sequence[str] = ()) -> dict[str, Any]:
    """Return what is stored of a file.

    Parameters
    ----------
    path : str
    prompts : sequence of str
        Texts to continue greedily, beside the built-in probes.

    Returns
    -------
    dict
        ``probes``: name -> SHA-256 of all outputs; ``texts``: one entry a prompt with its ids, the
        greedy continuation as ids and text, and the SHA-256 of the teacher-forced logits of both.

    Raises
    ------
    ArgumentError, FormatError, TokenizerError
        For prompts that this model cannot take.
    """
    with load(path, 1, ROOM) as model:
        texts: list[dict[str, Any]] = []
        if is_language_model(model):
            count = min(8, max(1, model.context // 2))
            texts.append(_said(model, None, list(spread_ids(model, count))))
        elif prompts:
            raise ArgumentError(f"[validate] {model.name!r} takes no text, expected no --prompt")
        texts += [_said(model, prompt, model.tokenizer.encode(prompt)) for prompt in prompts]
        return {
            "format": FORMAT,
            "model": model.name,
            "probes": {
                probe.name: hashlib.sha256(b"".join(run_probe(model, probe))).hexdigest()
                for probe in probes(model, PROBE_ROWS)
            },
            "texts": texts,
        }


def _said(model: Model, prompt: str | None, ids: Sequence[int]) -> dict[str, Any]:
    generation = model.generate(ids, max_tokens=NEW_TOKENS, ignore_eos=True)
    text = generation.text()
    new_ids = list(generation.token_ids)
    everything = [*ids, *new_ids][: model.context]
    return {
        "prompt": prompt,
        "ids": list(ids),
        "new_ids": new_ids,
        "text": text if model.has_tokenizer else None,
        "logits_sha256": hashlib.sha256(model.logits(everything)).hexdigest(),
    }


def load_golden(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read stored outputs.

    Raises
    ------
    ArgumentError
        When the file holds none.
    OSError
        When it cannot be read.
    """
    raw = Path(path).read_bytes()
    try:
        data = json.loads(raw)
        valid = (
            data["format"] == FORMAT
            and isinstance(data["model"], str)
            and _are(data["probes"].values(), str)
            and all(
                _are(entry["ids"], int)
                and _are(entry["new_ids"], int)
                and _are([entry["logits_sha256"]], str)
                and _are([entry["prompt"], entry["text"]], str | None)
                for entry in data["texts"]
            )
            and bool(data["probes"] or data["texts"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise ArgumentError(
            f"[validate] expected a file of validate --save-golden, got something else ({path})"
        )
    return dict(data)


def _are(values: Any, kind: Any) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def check_golden(path: str, golden: dict[str, Any]) -> str:
    """Compare a file's outputs with stored ones.

    Raises
    ------
    CheckFailed
        Naming the first that differs.
    """
    with load(path, 1, ROOM) as model:
        for index, entry in enumerate(golden["texts"]):
            _check_text(model, f"text {index}", entry)
        known = {probe.name: probe for probe in probes(model, PROBE_ROWS)}
        for name, digest in golden["probes"].items():
            if name not in known:
                raise CheckFailed(f"expected the probe {plain(name)!r}: there is none")
            got = hashlib.sha256(b"".join(run_probe(model, known[name]))).hexdigest()
            _same(f"outputs of probe {name!r} as SHA-256", digest, got)
    return f"{len(golden['probes'])} probes and {len(golden['texts'])} texts as stored"


def _check_text(model: Model, where: str, entry: dict[str, Any]) -> None:
    try:
        if entry["prompt"] is not None:
            _same(
                f"{where}: ids of the prompt", entry["ids"], model.tokenizer.encode(entry["prompt"])
            )
        now = _said(model, entry["prompt"], entry["ids"])
    except BitnetEdgeError as error:
        raise CheckFailed(plain(f"{where}: {error}")) from error
    for key, what in (
        ("new_ids", "continuation as ids"),
        ("text", "continuation"),
        ("logits_sha256", "logits as SHA-256"),
    ):
        _same(f"{where}: {what}", entry[key], now[key])


def _same(what: str, expected: Any, got: Any) -> None:
    if expected == got:
        return
    if isinstance(expected, list) and isinstance(got, list):
        common = min(len(expected), len(got))
        at = next((i for i in range(common) if expected[i] != got[i]), common)
        expected, got = expected[at : at + 4], got[at : at + 4]
        what = f"{what} from position {at}"
    raise CheckFailed(f"{what}: expected {_short(expected)}, got {_short(got)}")


def _short(value: Any) -> str:
    text = plain(repr(value))
    return text if len(text) <= 40 else f"{text[:37]}..."
