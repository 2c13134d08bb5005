# SPDX-License-Identifier: MIT
"""The shaders of this folder and their signatures, read from the sources: nothing is said twice.

The host binds buffers and fills parameter structures by the names that stand in the ``.metal``
files; the tests generate their launch glue from the same description. Standard library only.
"""

from __future__ import annotations

import os
import re
import struct

TYPE_CHECKING = False  # typing and dataclasses would cost the device 2 MB
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Buffer", "Kernel", "kernels", "parse", "source"]

FOLDER = os.path.dirname(os.path.abspath(__file__))
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
STRUCT = re.compile(r"struct (\w+) \{(.*?)\};", re.DOTALL)
FIELD = re.compile(r"(uint|int|float) (\w+);")
KERNEL = re.compile(r"kernel void (\w+)\(")
PARAMETER = re.compile(r"(.*?)([*&\s])(\w+) \[\[(\w+)(?:\((\d+)\))?\]\]$", re.DOTALL)
MEMORY = re.compile(r"THREADGROUP_MEMORY\((\d+)\)")
INCLUDE = re.compile(r'^#include "(\w+\.h)"\n', re.MULTILINE)


class Buffer:
    """A buffer argument: its name, index, element type and whether the shader may write it."""

    __slots__ = ("index", "name", "type", "writable")

    def __init__(self, name: str, index: int, type_: str, writable: bool) -> None:
        self.name = name
        self.index = index
        self.type = type_
        self.writable = writable


class Kernel:
    """One shader function.

    Attributes
    ----------
    name, file : str
    fields : tuple of (name, type)
        Of the structure at buffer 0, four bytes each.
    buffers : tuple of Buffer
        The others, in order of index.
    threadgroup : tuple of (index, name, type)
        Threadgroup memory whose length the host sets.
    builtins : tuple of (name, type, attribute)
    parameters : tuple of str
        Every argument's name as the signature has them.
    """

    __slots__ = (
        "buffers",
        "builtins",
        "fields",
        "file",
        "name",
        "parameters",
        "struct",
        "threadgroup",
    )

    def __init__(
        self,
        name: str,
        file: str,
        struct_name: str,
        fields: tuple[tuple[str, str], ...],
        buffers: tuple[Buffer, ...],
        threadgroup: tuple[tuple[int, str, str], ...],
        builtins: tuple[tuple[str, str, str], ...],
        parameters: tuple[str, ...],
    ) -> None:
        self.name = name
        self.file = file
        self.struct = struct_name
        self.fields = fields
        self.buffers = buffers
        self.threadgroup = threadgroup
        self.builtins = builtins
        self.parameters = parameters

    def pack(self, values: Mapping[str, float]) -> bytes:
        """Return the structure at buffer 0.

        Raises
        ------
        KeyError
            When a field has no value.
        """
        return b"".join(
            struct.pack("<" + {"uint": "I", "int": "i", "float": "f"}[kind], values[name])
            for name, kind in self.fields
        )


def source(file: str, folder: str = FOLDER) -> str:
    """Return one ``.metal`` file with our headers in place of their includes, each once."""
    seen: set[str] = set()

    def expand(name: str) -> str:
        with open(os.path.join(folder, name), encoding="utf-8") as handle:
            text = handle.read()

        def include(match: re.Match[str]) -> str:
            header = match.group(1)
            if header in seen:
                return ""
            seen.add(header)
            return expand(header)

        return INCLUDE.sub(include, text)

    return expand(file)


def parse(text: str, file: str) -> tuple[Kernel, ...]:
    """Return the kernels of a source text.

    Raises
    ------
    ValueError
        For a signature outside the subset that the shaders here keep to.
    """
    text = MEMORY.sub(r"[[threadgroup(\1)]]", COMMENT.sub("", text))
    structs = {name: tuple(FIELD.findall(body)) for name, body in STRUCT.findall(text)}
    found = []
    for match in KERNEL.finditer(text):
        found.append(_kernel(match.group(1), file, _arguments(text, match.end()), structs))
    return tuple(found)


def _arguments(text: str, start: int) -> list[str]:
    """Split a parameter list that begins at ``start``."""
    depth, begin, result = 0, start, []
    for at in range(start, len(text)):
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            if depth == 0:
                result.append(text[begin:at])
                return result
            depth -= 1
        elif text[at] == "," and depth == 0:
            result.append(text[begin:at])
            begin = at + 1
    raise ValueError("[metal] a kernel's parameter list does not end")


def _kernel(
    name: str,
    file: str,
    arguments: list[str],
    structs: Mapping[str, tuple[tuple[str, str], ...]],
) -> Kernel:
    struct_name = ""
    fields: tuple[tuple[str, str], ...] = ()
    buffers: list[Buffer] = []
    threadgroup: list[tuple[int, str, str]] = []
    builtins: list[tuple[str, str, str]] = []
    names: list[str] = []
    for argument in arguments:
        match = PARAMETER.match(" ".join(argument.split()))
        if match is None:
            raise ValueError(f"[metal] {name}: cannot read parameter {argument.strip()!r}")
        declared, _, parameter, attribute, index = match.groups()
        words = declared.replace("*", " ").replace("&", " ").split()
        names.append(parameter)
        if attribute == "buffer" and words[0] == "constant":
            struct_name = words[1]
            fields = tuple((field, kind) for kind, field in structs[struct_name])
        elif attribute == "buffer":
            buffers.append(Buffer(parameter, int(index), words[-1], "const" not in words))
        elif attribute == "threadgroup":
            threadgroup.append((int(index), parameter, words[-1]))
        else:
            builtins.append((parameter, words[-1], attribute))
    return Kernel(
        name,
        file,
        struct_name,
        fields,
        tuple(sorted(buffers, key=lambda buffer: buffer.index)),
        tuple(threadgroup),
        tuple(builtins),
        tuple(names),
    )


def files(folder: str = FOLDER) -> tuple[str, ...]:
    """Return the names of the shader files."""
    return tuple(sorted(name for name in os.listdir(folder) if name.endswith(".metal")))


_KNOWN: dict[str, dict[str, Kernel]] = {}  # by folder


def kernels(folder: str = FOLDER) -> dict[str, Kernel]:
    """Return every kernel of the folder by name; the sources are read once."""
    if folder not in _KNOWN:
        _KNOWN[folder] = {
            kernel.name: kernel
            for file in files(folder)
            for kernel in parse(source(file, folder), file)
        }
    return _KNOWN[folder]
