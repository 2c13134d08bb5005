# SPDX-License-Identifier: MIT
"""A JSON object of settings whose accessors say what is wrong, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitnet_edge.errors import ModelError, UnsupportedModel

__all__ = ["Settings"]

MAX_SIZE = 2**31 - 1


class Settings:
    """See above; every method names the key.

    Parameters
    ----------
    data : Mapping[str, Any]
    where : str
        The file, and the table in it.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data = data
        self.where = where

    def error(self, message: str) -> ModelError:
        """Return an error that names the file."""
        return ModelError(f"[config] {message} ({self.where})")

    def unsupported(self, key: str, expected: str, found: object) -> UnsupportedModel:
        """Return a refusal of a setting that makes sense but is not implemented."""
        return UnsupportedModel(
            f"[config] {key}: expected {expected}, got {found!r:.80} ({self.where})"
        )

    def get(self, key: str) -> object:
        """Return a value, or None."""
        return self._data.get(key)

    def null(self, key: str) -> bool:
        """Return whether a key is there and null."""
        return key in self._data and self._data[key] is None

    def require(self, key: str) -> object:
        """Return a value that must be there."""
        value = self._data.get(key)
        if value is None:
            raise self.error(f"lacks {key!r}")
        return value

    def size(self, key: str) -> int:
        """Return an integer from 1 to `MAX_SIZE`."""
        value = self.require(key)
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            raise self.error(f"{key}: expected an integer from 1 to {MAX_SIZE}, got {value!r:.80}")
        return value

    def positive(self, key: str) -> float:
        """Return a positive number well inside float32."""
        value = self.require(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 1e-30 < value < 1e30  # well inside float32
        ):
            raise self.error(f"{key}: expected a positive number, got {value!r:.80}")
        return float(value)

    def flag(self, key: str, default: bool | None) -> bool | None:
        """Return true or false, or the default where the key is absent."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{key}: expected true or false, got {value!r:.80}")
        return value

    def table(self, key: str) -> Settings | None:
        """Return an object, or None where it is absent or empty."""
        value = self.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.error(f"{key}: expected an object, got {value!r:.80}")
        return Settings(value, f"{key} of {self.where}")

    def neutral(self, key: str, value: object) -> None:
        """Refuse a setting that would change the computation."""
        if self.get(key) is not None and self.get(key) != value:
            raise self.unsupported(key, repr(value), self.get(key))

    def only(self, known: set[str]) -> None:
        """Refuse keys that are not known: each could change the computation."""
        unknown = sorted(key for key in self._data if key not in known and not self.null(key))
        if unknown:
            raise UnsupportedModel(f"[config] unknown setting {unknown[0]!r} ({self.where})")
