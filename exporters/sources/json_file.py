# SPDX-License-Identifier: MIT
"""JSON objects of a checkpoint directory, read strictly: one meaning or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitnet_edge.errors import ModelError

__all__ = ["parse_object", "read_object"]


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a UTF-8 JSON object.

    Raises
    ------
    ValueError
        When the text is no JSON object, or any object in it has a key twice: readers disagree on
        which one counts.
    """
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, got {type(data).__name__}")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises
    ------
    ModelError
        Naming the file, when it cannot be read or `parse_object` refuses it.
    """
    try:
        return parse_object(path.read_bytes())
    except OSError as error:
        raise ModelError(f"[json] cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"[json] {error} ({path})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key!r}")
            seen.add(key)
    return data
