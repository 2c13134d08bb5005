# SPDX-License-Identifier: MIT
"""Every way a .bte file can be malformed gives its own typed error."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitnet_edge
from bitnet_edge.container import PREFIX, open_bte, tensor_bytes
from bitnet_edge.errors import (
    BadMagic,
    FormatError,
    MissingTensor,
    OutOfRange,
    Truncated,
    UnsupportedVersion,
)
from bitnet_edge.exporters.sources.bte import load_bte
from tests.graphs import mlp


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("container") / "m.bte"
    bitnet_edge.export(mlp(), out=path)
    return path.read_bytes()


def with_header(raw: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Change the JSON header and make prefix and CRC fit again."""
    magic, version, length, total, _ = PREFIX.unpack_from(raw)
    header = json.loads(raw[PREFIX.size : PREFIX.size + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length, "the changed header must keep its length"
    prefix = PREFIX.pack(magic, version, length, total, binascii.crc32(text))
    return prefix + text + raw[PREFIX.size + length :]


def opened(tmp_path: Path, data: bytes):
    path = tmp_path / "m.bte"
    path.write_bytes(data)
    return open_bte(path)


def test_a_good_file_opens_and_verifies(raw, tmp_path):
    file = opened(tmp_path, raw)
    file.verify()
    assert file.size == len(raw)
    assert [s.offset % 16384 for s in file.sections.values()] == [0] * len(file.sections)
    assert all(t.offset % 64 == 0 for t in file.tensors)
    assert len(file.tensor(file.tensors[0])) == file.tensors[0].bytes


def prefix_with(raw: bytes, **fields: int) -> bytes:
    names = ("magic", "version", "length", "total", "crc")
    values = dict(zip(names, PREFIX.unpack_from(raw), strict=True)) | fields
    return PREFIX.pack(*values.values()) + raw[PREFIX.size :]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda r: b"", BadMagic, "not a .bte file"),
        (lambda r: b"PK\3\4" + r[4:], BadMagic, "expected b'\\\\x89BTE"),
        (lambda r: r[:40], Truncated, "expected a prefix of 64 bytes, got 40"),
        (lambda r: prefix_with(r, version=2), UnsupportedVersion, "expected format 1, got 2"),
        (lambda r: r[:40] + b"\1" + r[41:], FormatError, "reserved bytes"),
        (lambda r: r[:-1], Truncated, "bytes, got"),
        (lambda r: r + b"\0", OutOfRange, "bytes, got"),
        (lambda r: prefix_with(r, length=1), OutOfRange, "expected a header of 2"),
        (lambda r: prefix_with(r, length=(1 << 20) + 1), OutOfRange, "expected a header of 2"),
        (lambda r: prefix_with(r, length=len(r)), Truncated, "expected a header of"),
        (lambda r: r[:70] + b"~" + r[71:], FormatError, "the header is corrupt"),
    ],
)
def test_prefix(damage, error, message, raw, tmp_path):
    with pytest.raises(error, match=message):
        opened(tmp_path, damage(raw))


def set_at(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one header value that keeps the text's length where it can (spaces absorb)."""

    def change(header: dict[str, Any]) -> None:
        target: Any = header
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value

    return change


def drop(header: dict[str, Any], name: str) -> None:
    header["sections"] = [s for s in header["sections"] if s["name"] != name]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (set_at("requires", value=["p17"]), UnsupportedVersion, r"lacks: \['p17'\]"),
        (set_at("requires", value=3), FormatError, "'requires' must be list"),
        (set_at("sections", value=[]), FormatError, "missing sections"),
        (set_at("sections", value=[1]), FormatError, "a section must be an object"),
        (set_at("sections", 0, "name", value="prog"), FormatError, "unexpected section 'prog'"),
        (set_at("sections", 1, "name", value="program"), FormatError, "unexpected section"),
        (set_at("sections", 0, "offset", value=0), OutOfRange, "expected section 'program' at"),
        (set_at("sections", 0, "offset", value=-1), OutOfRange, "expected offset of section"),
        (set_at("sections", 0, "bytes", value=1 << 60), OutOfRange, "expected bytes of section"),
        (set_at("sections", 0, "bytes", value=True), OutOfRange, "got True"),
        (set_at("sections", 0, "sha256", value=1), FormatError, "'sha256' must be str"),
        (set_at("sections", 2, "bytes", value=1), OutOfRange, "expected bytes of 'layers"),
        (lambda h: drop(h, "graph"), OutOfRange, "expected section 'weights' at"),
        (set_at("tensors", 0, value=[]), FormatError, "a tensor must be"),
        (set_at("tensors", 0, 0, value=7), FormatError, "a tensor must be"),
        (set_at("tensors", 0, 1, value="f64"), FormatError, "unknown dtype 'f64'"),
        (set_at("tensors", 0, 2, value=[0, 4]), OutOfRange, "expected a size of"),
        (set_at("tensors", 0, 2, value=[4]), FormatError, "a ternary tensor has 2 dimensions"),
        (set_at("tensors", 0, 3, value=64), OutOfRange, "expected offset 0"),
        (set_at("tensors", 0, 4, value=1), OutOfRange, "expected 384 bytes"),
        (set_at("tensors", 0, 3, value=0.0), OutOfRange, "expected offset of"),
        (set_at("tensors", 0, 2, value=[1] * 9), OutOfRange, "expected rank 0 .. 8"),
        (set_at("model", "name", value="\x1b[2J"), FormatError, "must be printable text"),
        (set_at("plan", "kv_dtype", value=1), FormatError, "'kv_dtype' must be str"),
        (set_at("model", value=[]), FormatError, "'model' must be dict"),
        (set_at("model", "name", value=1), FormatError, "'name' must be str"),
        (set_at("model", "vocab_size", value=-1), OutOfRange, "expected vocab_size 0"),
        (set_at("model", "bos_id", value=-2), OutOfRange, "expected bos_id -1"),
        (set_at("model", "eos_ids", value=[-1]), OutOfRange, "expected an eos id"),
        (set_at("plan", "threads", value=0), OutOfRange, "expected plan threads 1 .. 64"),
        (set_at("plan", "profile", value=0), FormatError, "'profile' must be str"),
        (set_at("plan", "private_bytes", value=0), FormatError, "'private_bytes' must be dict"),
        (set_at("plan", "private_bytes", value={"x": -1}), OutOfRange, "plan bytes of 'x'"),
    ],
)
def test_header(change, error, message, raw, tmp_path):
    with pytest.raises(error, match=message):
        opened(tmp_path, with_header(raw, change))


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff" * 8, b"[" * 5000, b"9" * 5000])
def test_header_that_is_no_object(text, raw, tmp_path):
    magic, version, length, total, _ = PREFIX.unpack_from(raw)
    text = text.ljust(max(length, len(text)))[: max(length, len(text))]
    data = PREFIX.pack(magic, version, len(text), total, binascii.crc32(text)) + text
    data = data.ljust(total, b"\0")[:total]
    with pytest.raises(FormatError, match="the header"):
        opened(tmp_path, data)


def test_a_changed_weight_is_found_by_verify(raw, tmp_path):
    file = opened(tmp_path, raw)
    position = file.sections["weights"].offset + 5
    changed = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
    file = opened(tmp_path, changed)
    with pytest.raises(FormatError, match="section 'weights' is corrupt: expected SHA-256"):
        file.verify()


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_bte(tmp_path / "none.bte")


def test_tensor_bytes():
    assert tensor_bytes("ternary", (17, 33)) == 32 * 48 // 4
    assert tensor_bytes("bf16", (3, 5)) == 30
    assert tensor_bytes("f32", ()) == 4


def graph_section(raw: bytes, tmp_path: Path, change: Callable[[bytes], bytes]) -> Path:
    """The file with its graph section rewritten in place (same length)."""
    section = opened(tmp_path, raw).sections["graph"]
    graph = raw[section.offset : section.offset + section.bytes]
    changed = change(graph).ljust(len(graph))
    assert len(changed) == len(graph)
    path = tmp_path / "g.bte"
    path.write_bytes(raw[: section.offset] + changed + raw[section.offset + section.bytes :])
    return path


def test_a_graph_that_is_no_json(raw, tmp_path):
    with pytest.raises(FormatError, match="the graph is not JSON"):
        load_bte(graph_section(raw, tmp_path, lambda g: b"{"))


def test_a_graph_whose_constant_is_not_stored(raw, tmp_path):
    name = b"layers.0.linear.bias"
    with pytest.raises(MissingTensor, match=r"'layers\.0\.linear\.bia5' is not stored"):
        load_bte(graph_section(raw, tmp_path, lambda g: g.replace(name, name[:-1] + b"5")))


def test_a_graph_that_contradicts_the_tensor_table(raw, tmp_path):
    def change(graph: bytes) -> bytes:
        data = json.loads(graph)
        for tensor in data["tensors"]:
            if tensor[0] == "layers.0.linear.bias":
                tensor[1] = [4]
            if tensor[0] == "layers.0.linear.weight":
                tensor[1] = [4, 20]
            if tensor[0] == "layers.0.linear.out":
                tensor[1] = [-1, 4]
            if tensor[0] == "layers.1.linear.weight":
                tensor[1] = [33, 4]
        return json.dumps(data, separators=(",", ":")).encode()

    with pytest.raises(FormatError, match=r"expected ternary\[4, 20\]"):
        load_bte(graph_section(raw, tmp_path, change))


def test_prefix_is_as_the_format_page_says(raw):
    assert raw[:8] == b"\x89BTE\r\n\x1a\n"
    assert struct.unpack_from("<I", raw, 8) == (1,)
    assert struct.unpack_from("<Q", raw, 16) == (len(raw),)
