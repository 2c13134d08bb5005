# SPDX-License-Identifier: MIT
"""Device profiles: what a device offers, read from YAML files that anyone can add to.

A profile is looked for by name in the directories of ``BITNET_EDGE_DEVICES`` and then among the
packaged ones, or read from an explicit path. ``extends: NAME`` starts from another profile: first
one beside the file, then by the same search; each key given replaces the inherited one as a whole.

The files follow ``device_profiles/profile.schema.json``, which editors read too. The checks here
are driven by that same file (the few JSON Schema keywords it uses), so that an error can name
file, line and column. Scalars are read as YAML 1.2 and JSON agree on (``no`` is text, ``010`` is
not a number); anchors, aliases, tags and duplicate keys are refused.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from bitnet_edge._schema import Node, check, show, typed
from bitnet_edge.errors import MissingDependency, ProfileError

__all__ = ["CoreCluster", "OperatingSystem", "Profile", "list_profiles", "load_profile"]

ENVIRONMENT = "BITNET_EDGE_DEVICES"
SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 64 * 1024  # of a file
MAX_DEPTH = 8  # of nested values
MAX_EXTENDS = 8  # links from a profile to the end of its family
# Each instruction set needs another (cython_kernels/include/isa_table.def).
ISA_NEEDS = {"avx2": "scalar", "avx_vnni": "avx2", "avx512_vnni": "avx2"}
ISA_NEEDS |= {"neon": "scalar", "dotprod": "neon", "i8mm": "dotprod"}


@dataclass(frozen=True)
class CoreCluster:
    """Equal cores.

    Attributes
    ----------
    name : str
        Core design.
    count : int
    ghz : float
        Maximum clock in GHz.
    """

    name: str
    count: int
    ghz: float


@dataclass(frozen=True)
class OperatingSystem:
    """Operating system.

    Attributes
    ----------
    name : str
        Family: ``linux``, ``android``, ``ios``, ..., or ``any``.
    minimum : str or None
        Oldest version to support: the kernel's on Linux, the release's elsewhere.
    """

    name: str
    minimum: str | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a device offers to one model (1 MB = 2^20 bytes).

    Attributes
    ----------
    name, description, soc : str
    isa : tuple of str
        Instruction sets every core has, ascending (``isa_table.def``).
    cores : tuple of CoreCluster
        Fastest first.
    memory_bandwidth_gbps : float
        Effective read bandwidth of all cores together in 10^9 bytes/s.
    memory_bandwidth_one_core_gbps : float or None
        The same of one core, the fastest; None where it is not known.
    cache_mb : float or None
        Last-level cache that one process may fill in MB; None where it is not known.
    ram_mb : int
        Memory of the device in MB.
    private_mb : float
        Private memory the app leaves to the model in MB, at most 50.
    resident_mb : float or None
        Private memory and cached file pages together in MB; None: not limited.
    storage_read_mbps : float
        Sequential read speed of the storage in 10^6 bytes/s.
    ota_limit_mb : float or None
        Largest package the store delivers without extra steps in MB; None: no limit.
    os : OperatingSystem
    page_kb : int
        Memory page in KB.
    default_context : int
        Tokens.
    default_threads : int
    """

    name: str
    description: str
    soc: str
    isa: tuple[str, ...]
    cores: tuple[CoreCluster, ...]
    memory_bandwidth_gbps: float
    memory_bandwidth_one_core_gbps: float | None = None
    cache_mb: float | None = None
    ram_mb: int
    private_mb: float
    resident_mb: float | None = None
    storage_read_mbps: float
    ota_limit_mb: float | None = None
    os: OperatingSystem
    page_kb: int
    default_context: int
    default_threads: int

    @property
    def private_bytes(self) -> int:
        """Private memory the app leaves to the model, in bytes."""
        return int(self.private_mb * (1 << 20))

    @property
    def resident_bytes(self) -> int | None:
        """Memory the app leaves to the model with its file pages, in bytes; None without limit."""
        return None if self.resident_mb is None else int(self.resident_mb * (1 << 20))

    @property
    def ota_bytes(self) -> int | None:
        """Largest package that the store delivers, in bytes; None where there is no limit."""
        return None if self.ota_limit_mb is None else int(self.ota_limit_mb * (1 << 20))

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-serialisable data, keyed as in the YAML.

        Optional keys that are not set are left out.
        """
        data = asdict(self)
        data["isa"] = list(self.isa)
        data["cores"] = [asdict(cluster) for cluster in self.cores]
        data["os"] = {key: value for key, value in data["os"].items() if value is not None}
        return {key: value for key, value in data.items() if value is not None}


def load_profile(name_or_path: str | Path) -> Profile:
    """Return one profile.

    Parameters
    ----------
    name_or_path : str or Path
        A name, or a file: a `Path`, or text that ends in ``.yaml`` or ``.yml`` or contains a path
        separator.

    Raises
    ------
    ProfileError
        When there is no such profile, or a file is invalid; names file, line and column.
    MissingDependency
        When PyYAML is not installed.
    """
    text = str(name_or_path)
    separated = os.sep in text or (os.altsep is not None and os.altsep in text)
    if isinstance(name_or_path, Path) or separated or text.endswith(SUFFIXES):
        return _load(Path(name_or_path))
    files = _named_files(_directories())
    if text not in files:
        raise ProfileError(f"[profile] {_unknown(text, files)}")
    return _load(files[text], name=text)


def list_profiles() -> list[Profile]:
    """Return every profile that a name can reach, sorted by name.

    Raises
    ------
    ProfileError
        When a file, the user's included, is invalid.
    MissingDependency
        When PyYAML is not installed.
    """
    files = _named_files(_directories())
    return [_load(files[name], name=name) for name in sorted(files)]


# Finding files


def _packaged() -> Path:
    """Return the directory of the packaged profiles and their schema."""
    try:
        return Path(str(resources.files("bitnet_edge.device_profiles")))
    except ModuleNotFoundError:  # a source tree that is not installed
        return Path(__file__).parents[1] / "device_profiles"


def _directories() -> list[Path]:
    """Return where names are looked for, in order."""
    user = [Path(part) for part in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if part]
    for directory in user:
        if not directory.is_dir():
            raise ProfileError(
                f"[profile] expected directories in {ENVIRONMENT}, got {str(directory)!r}"
            )
    return [*user, _packaged()]


def _named_files(directories: list[Path]) -> dict[str, Path]:
    """Return name -> file; an earlier directory hides a later one's file of the same name."""
    found: dict[str, Path] = {}
    for directory in directories:
        for suffix in SUFFIXES:
            for path in directory.glob(f"[!.]*{suffix}"):
                found.setdefault(path.stem, path)
    return found


def _unknown(name: str, files: Mapping[str, Path]) -> str:
    close = ", ".join(repr(n) for n in difflib.get_close_matches(name, files, n=3))
    hint = f"did you mean {close}? " if close else ""
    return (
        f"expected the name of a profile, or a .yaml file, got {show(name)}; {hint}"
        "'bitnet-edge devices' lists all names"
    )


# Reading YAML

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


def _read(data: bytes, origin: str) -> Node:
    """Return a file's only document, a mapping."""
    start = Node(None, origin)
    if len(data) > MAX_BYTES:
        raise start.error(f"expected at most {MAX_BYTES} bytes, got more")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = _after(data[: error.start].decode("utf-8"), origin)
        raise at.error(f"expected UTF-8, got the byte {data[error.start]:#04x}") from error
    events = _events(text, origin)
    first = next(events, None)
    if first is None:
        raise start.error("expected a mapping, got an empty file")
    root = _build(first, events, 1)
    next(events, None)  # nothing more, unless a second document: an error
    if not isinstance(root.value, dict):
        raise root.error(f"expected a mapping, got {show(root.value)}")
    return root


def _build(event: tuple[str, Node], events: Iterator[tuple[str, Node]], depth: int) -> Node:
    """Return the value that begins with ``event``, reading on as far as it goes."""
    kind, at = event
    if depth > MAX_DEPTH:
        raise at.error(f"expected at most {MAX_DEPTH} nested values, got more")
    if kind == "list":
        items: list[Node] = []
        while (event := next(events))[0] != "end":
            items.append(_build(event, events, depth + 1))
        return replace(at, value=items)
    if kind == "mapping":
        mapping: dict[str, Node] = {}
        while (event := next(events))[0] != "end":
            key = _build(event, events, depth + 1)
            name = key.value
            if not isinstance(name, str):
                raise key.error(f"expected a key that is text, got {show(name)}")
            if name in mapping:
                line = mapping[name].line
                raise key.error(f"expected each key once, got {show(name)}, as in line {line}")
            value = _build(next(events), events, depth + 1).value
            mapping[name] = replace(key, value=value)
        return replace(at, value=mapping)
    return at


def _events(text: str, origin: str) -> Iterator[tuple[str, Node]]:
    """Parse step by step, so that nothing is expanded: mapping, list, end, or a scalar's value."""
    try:
        import yaml
    except ImportError as error:
        raise MissingDependency(
            "[profile] device profiles need PyYAML: pip install 'bitnet-edge[export]'"
        ) from error
    at = Node(None, origin)
    documents = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            at = _at(event.start_mark, at)
            if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
                raise at.error("expected a plain value, got an anchor or an alias")
            if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag:
                raise at.error(f"expected a plain value, got the tag {show(event.tag)}")
            if isinstance(event, yaml.ScalarEvent):
                yield "scalar", replace(at, value=_scalar(event.value, event.style is None, at))
            elif isinstance(event, yaml.CollectionStartEvent):
                yield "mapping" if isinstance(event, yaml.MappingStartEvent) else "list", at
            elif isinstance(event, yaml.CollectionEndEvent):
                yield "end", at
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise at.error("expected one document, got a second one")
    except yaml.MarkedYAMLError as error:
        at = _at(error.problem_mark or error.context_mark, at)
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise at.error(f"expected YAML, got an error {problem}") from error
    except yaml.reader.ReaderError as error:
        at = _after(text[: error.position], origin)
        raise at.error(f"expected text, got the character {error.character:#06x}") from error
    except (ValueError, OverflowError) as error:  # PyYAML converts some escapes unchecked
        if isinstance(error, ProfileError):
            raise
        raise at.error("expected YAML, got an escape or a number out of range") from error


def _scalar(text: str, plain: bool, at: Node) -> object:
    if plain:
        if text in _WORDS:
            return _WORDS[text]
        if len(text) <= 32 and _NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return int(text) if text.lstrip("-").isdigit() else float(text)
    if not text.isprintable():
        raise at.error(f"expected printable text on one line, got {show(text)}")
    return text


def _at(mark: Any, default: Node) -> Node:
    return Node(None, default.origin, mark.line + 1, mark.column + 1) if mark else default


def _after(text: str, origin: str) -> Node:
    return Node(None, origin, text.count("\n") + 1, len(text) - text.rfind("\n"))


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((_packaged() / "profile.schema.json").read_text("utf-8"))
    return schema


def _load(path: Path, name: str | None = None) -> Profile:
    keys = _keys(path, name, ())
    data = {key: typed(_schema()["properties"][key], node) for key, node in keys.items()}
    data["isa"] = tuple(data["isa"])
    data["cores"] = tuple(CoreCluster(**cluster) for cluster in data["cores"])
    data["os"] = OperatingSystem(**data["os"])
    profile = Profile(**data)
    _check_together(profile, keys, str(path))
    return profile


def _check_together(profile: Profile, keys: Mapping[str, Node], origin: str) -> None:
    """Check what one key says against what others say."""
    for index, name in enumerate(profile.isa):
        at, before = keys["isa"].value[index], profile.isa[:index]
        if name in before:
            raise at.error(f"isa[{index}]: expected each name once, got {name} again")
        if ISA_NEEDS.get(name, name) not in (name, *before):
            raise at.error(f"isa[{index}]: expected {ISA_NEEDS[name]} before {name}, got none")
    if "scalar" not in profile.isa or {"avx2", "neon"} <= set(profile.isa):
        raise keys["isa"].error("isa: expected scalar and one processor family")
    cores = sum(cluster.count for cluster in profile.cores)
    limits: list[tuple[str, float, str, float]]
    limits = [("default_threads", profile.default_threads, "cores", cores)]
    if profile.memory_bandwidth_one_core_gbps is not None:
        limits.append(
            (
                "memory_bandwidth_one_core_gbps",
                profile.memory_bandwidth_one_core_gbps,
                "memory_bandwidth_gbps",
                profile.memory_bandwidth_gbps,
            )
        )
    if profile.resident_mb is not None:
        limits.append(("private_mb", profile.private_mb, "resident_mb", profile.resident_mb))
        limits.append(("resident_mb", profile.resident_mb, "ram_mb", profile.ram_mb))
    for low, least, high, most in limits:
        if least > most:
            # Complain at the key that this file gives, for the other one may be inherited.
            at = keys[low] if keys[low].origin == origin else keys[high]
            raise at.error(f"expected {low} <= {high}, got {least:g} and {most:g}")


def _keys(path: Path, name: str | None, children: tuple[Path, ...]) -> dict[str, Node]:
    """Return a file's checked keys over those of its parents."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ProfileError(f"[profile] cannot read {str(path)!r}: {reason}") from error
    root = _read(data, str(path))
    check(_schema(), root)
    keys: dict[str, Node] = dict(root.value)
    own = keys["name"]
    if name is not None and own.value != name:
        raise own.error(f"name: expected {name!r}, as the file is called, got {own.value!r}")
    extends = keys.pop("extends", None)
    if extends is None:
        return keys
    family = (*children, path.resolve())
    files = _named_files([path.parent, *_directories()])
    if extends.value not in files:
        raise extends.error(f"extends: {_unknown(extends.value, files)}")
    parent = files[extends.value]
    if parent.resolve() in family:
        raise extends.error(f"extends: expected an end, got {extends.value!r} again (a cycle)")
    if len(family) > MAX_EXTENDS:
        raise extends.error(f"extends: expected at most {MAX_EXTENDS} links, got more")
    return {**_keys(parent, extends.value, family), **keys}
