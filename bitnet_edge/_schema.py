# SPDX-License-Identifier: MIT
"""Checks a tree of located values against a JSON Schema, so that errors name file, line and column.

Only the keywords that ``device_profiles/profile.schema.json`` uses are implemented; a schema with
another one is refused. Verdicts are those of the ``jsonschema`` library (a test compares them), but
that library is not needed and the first error found is told in one line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bitnet_edge.errors import ProfileError

__all__ = ["Node", "check", "show", "typed"]

_ANNOTATIONS = {"$schema", "title", "description"}
_KEYWORDS = {
    "type",
    "enum",
    "minimum",
    "maximum",
    "pattern",
    "minItems",
    "items",
    "properties",
    "additionalProperties",
    "required",
    "anyOf",
}
_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "array": ("a list", (list,)),
    "integer": ("a whole number", (int, float)),
    "number": ("a number", (int, float)),
    "object": ("a mapping", (dict,)),
    "string": ("text", (str,)),
}


@dataclass(frozen=True)
class Node:
    """A value and where it stands; one inside a mapping stands where its key does.

    Attributes
    ----------
    value : scalar, list of Node, or dict of str to Node
    origin : str
        The file.
    line, column : int
        Counted from 1.
    """

    value: Any
    origin: str
    line: int = 1
    column: int = 1

    def error(self, text: str) -> ProfileError:
        """Return (not raise) an error that stands here."""
        return ProfileError(f"[profile] {self.origin}:{self.line}:{self.column}: {text}")


def check(schema: Mapping[str, Any], node: Node, name: str = "") -> None:
    """Check a value.

    Parameters
    ----------
    schema : Mapping
    node : Node
    name : str
        Path to the value, for messages: ``cores[0].ghz``.

    Raises
    ------
    ProfileError
        For the first thing that is wrong.
    """
    unknown = set(schema) - _KEYWORDS - _ANNOTATIONS
    if unknown:
        raise ValueError(f"JSON Schema keywords that are not implemented: {sorted(unknown)}")
    value = node.value
    label = f"{name}: " if name else ""
    if "type" in schema:
        _check_type(schema["type"], node, label)
    if "enum" in schema and value not in schema["enum"]:
        listed = ", ".join(str(choice) for choice in schema["enum"])
        raise node.error(f"{label}expected one of {listed}, got {show(value)}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if "minimum" in schema and value < schema["minimum"]:
            raise node.error(f"{label}expected at least {schema['minimum']}, got {value}")
        if "maximum" in schema and value > schema["maximum"]:
            raise node.error(f"{label}expected at most {schema['maximum']}, got {value}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        raise node.error(f"{label}expected text matching {schema['pattern']}, got {show(value)}")
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            raise node.error(f"{label}expected {schema['minItems']} or more, got {len(value)}")
        for index, item in enumerate(value):
            check(schema.get("items", {}), item, f"{name}[{index}]")
    if isinstance(value, dict):
        _check_keys(schema, node, value, name)
    _check_any(schema.get("anyOf", ()), node, name)


def typed(schema: Mapping[str, Any], node: Node) -> Any:
    """Return a checked value without positions, its numbers in the types of the schema."""
    value = node.value
    if isinstance(value, dict):
        return {key: typed(schema["properties"][key], inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(schema["items"], item) for item in value]
    convert = {"integer": int, "number": float}.get(schema["type"])
    return convert(value) if convert else value


def show(value: object) -> str:
    """Return a value as messages print it."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    return str(value)


def _check_type(wanted: str, node: Node, label: str) -> None:
    value = node.value
    expected, types = _TYPES[wanted]
    right = isinstance(value, types) and not isinstance(value, bool)
    if wanted == "integer" and isinstance(value, float):
        right = value.is_integer()
    if right:
        return
    hint = ""
    if wanted in ("integer", "number") and isinstance(value, str):
        hint = "; write the bare number, its unit is part of the key"
    elif wanted == "string" and isinstance(value, (bool, int, float)):
        hint = "; put it in quotes"
    raise node.error(f"{label}expected {expected}, got {show(value)}{hint}")


def _check_keys(
    schema: Mapping[str, Any], node: Node, value: Mapping[str, Node], name: str
) -> None:
    label = f"{name}: " if name else ""
    known = schema.get("properties", {})
    for key, inner in value.items():
        if key in known:
            check(known[key], inner, f"{name}.{key}" if name else key)
        elif not schema.get("additionalProperties", True):
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise inner.error(
                f"{label}expected one of the keys {', '.join(known)}, got {show(key)}{hint}"
            )
    for key in schema.get("required", ()):
        if key not in value:
            raise node.error(f"{label}expected the key {key!r}, got none")


def _check_any(schemas: Iterable[Mapping[str, Any]], node: Node, name: str) -> None:
    """Accept what one of the schemas accepts, or complain as the last one does."""
    failure = None
    for schema in schemas:
        try:
            check(schema, node, name)
        except ProfileError as error:
            failure = error
        else:
            return
    if failure:
        raise failure
