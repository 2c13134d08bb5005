# SPDX-License-Identifier: MIT
"""The safetensors reader: what it gives, and that no file whatsoever gets past its checks."""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from bitnet_edge.errors import (
    BitnetEdgeError,
    FormatError,
    MissingTensor,
    ModelError,
    OutOfRange,
    Truncated,
)
from bitnet_edge.exporters.sources.checkpoint import open_checkpoint
from bitnet_edge.exporters.sources.safetensors_file import MAX_HEADER, SafetensorsFile
from tests.checkpoints import encode, write_safetensors
from tests.conftest import checkpoint


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# -- reading --------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path: Path) -> SafetensorsFile:
    values = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
    tensors = {
        "odd": ("U8", (3,), np.array([1, 2, 3], np.uint8)),  # leaves the rest unaligned
        "f32": ("F32", (3, 4), values),
        "bf16": ("BF16", (3, 4), encode(values, "BF16")),
        "f16": ("F16", (3, 4), encode(values, "F16")),
        "scalar": ("F32", (), np.float32(2.5).reshape(())),
        "empty": ("F32", (0, 7), np.zeros((0, 7), np.float32)),
    }
    write_safetensors(tmp_path / "sample.safetensors", tensors)
    return SafetensorsFile(tmp_path / "sample.safetensors")


def test_values_shapes_dtypes(sample):
    assert sample.names == ("odd", "f32", "bf16", "f16", "scalar", "empty")
    assert sample.metadata == {"format": "pt"}
    assert sample.info("bf16") == ("BF16", (3, 4))
    assert str(sample.info("bf16")) == "BF16[3, 4]"
    values = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
    np.testing.assert_array_equal(sample.array("f32"), values)
    np.testing.assert_array_equal(sample.array("f16"), values.astype(np.float16))
    assert sample.array("bf16").dtype == np.uint16
    np.testing.assert_array_equal(sample.array("bf16"), values.view(np.uint32) >> 16)
    assert sample.array("scalar")[()] == np.float32(2.5)
    assert sample.array("empty").shape == (0, 7)
    assert "f32" in sample
    assert "f33" not in sample


def test_arrays_are_read_only_views_of_the_map(sample):
    for name in sample.names:
        array = sample.array(name)
        assert not array.flags.writeable
        base = array
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        assert name == "empty" or isinstance(memoryview(base).obj, mmap.mmap)


@pytest.mark.parametrize("block_bytes", [1, 16, 33, 1 << 20])
def test_row_blocks_cover_a_tensor_once_and_it_stays_readable(sample, block_bytes):
    for name in ("f32", "bf16", "odd", "empty"):
        rows = []
        for first, block in sample.row_blocks(name, block_bytes):
            assert first == len(rows)
            rows.extend(block.copy())
        np.testing.assert_array_equal(rows, list(sample.array(name)))
    sample.release("f32")
    sample.release("empty")
    assert sample.array("f32")[2, 3] == 6


def test_missing_tensor_names_it(sample):
    with pytest.raises(MissingTensor, match=r"no tensor 'x'.*sample\.safetensors"):
        sample.array("x")


@pytest.mark.parametrize("layout", ["bf16", "packed", "packed-bitlinear"])
def test_equals_the_safetensors_package(layout):
    safe_open = pytest.importorskip("safetensors").safe_open
    path = checkpoint(layout) / "model.safetensors"
    ours = SafetensorsFile(path)
    with safe_open(path, framework="np") as theirs:
        assert set(ours.names) == set(theirs.keys())
        assert dict(ours.metadata) == theirs.metadata()
        for name in ours.names:
            if ours.info(name).dtype != "BF16":  # numpy of the package has none
                np.testing.assert_array_equal(ours.array(name), theirs.get_tensor(name))


# -- refusing -------------------------------------------------------------------------------

MALFORMED = {
    "empty file": (b"", Truncated, "at least 8 bytes, got 0"),
    "no length": (b"\1\0\0", Truncated, "at least 8 bytes, got 3"),
    "header too large": (struct.pack("<Q", MAX_HEADER + 1), OutOfRange, "at most 100000000"),
    "header length wraps": (b"\xff" * 8, OutOfRange, "at most 100000000"),
    "header cut": (struct.pack("<Q", 50) + b"{}", Truncated, "of 50 bytes, the file ends after 2"),
    "header empty": (bytes(8), FormatError, "begins with '{'"),
    "header is a list": (struct.pack("<Q", 2) + b"[]", FormatError, "begins with '{'"),
    "header not JSON": (struct.pack("<Q", 2) + b"{]", FormatError, "not JSON"),
    "header not UTF-8": (struct.pack("<Q", 4) + b'{"\xff"', FormatError, "not JSON"),
    "nested deeply": (
        struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000,
        FormatError,
        "not JSON: (nested too deeply|Expecting)",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_prefix(case, tmp_path):
    data, error, message = MALFORMED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


HUGE = 2**62
ENTRIES = {
    "not an object": (7, FormatError, "expected an object, got 7"),
    "no dtype": ({"shape": [4], "data_offsets": [0, 4]}, FormatError, "lacks 'dtype'"),
    "no shape": ({"dtype": "U8", "data_offsets": [0, 4]}, FormatError, "lacks 'shape'"),
    "no offsets": ({"dtype": "U8", "shape": [4]}, FormatError, "lacks 'data_offsets'"),
    "unknown dtype": (entry("F7"), FormatError, "expected dtype BOOL or .*, got 'F7'"),
    "dtype is a list": (entry(["U8"]), FormatError, "expected dtype"),
    "negative size": (entry(shape=[-4]), FormatError, "non-negative integers"),
    "fractional size": (entry(shape=[4.0]), FormatError, "non-negative integers"),
    "boolean size": (entry(shape=[True, 4]), FormatError, "non-negative integers"),
    "shape is text": (entry(shape="4"), FormatError, "non-negative integers"),
    "one offset": (entry(offsets=[4]), FormatError, r"\[begin, end\]"),
    "negative offset": (entry(offsets=[-4, 0]), FormatError, r"\[begin, end\]"),
    "backwards": (entry(shape=[0], offsets=[4, 0]), OutOfRange, "end before they begin"),
    "wrong length": (entry(shape=[5]), OutOfRange, "expected 5 bytes for U8 .* hold 4"),
    "wraps to 4": (entry("U8", [2**33, 2**31 + 1]), OutOfRange, "too large"),
    "wraps to 0": (entry("F32", [HUGE], [0, 0]), OutOfRange, "too large"),
    "huge but empty": (entry("F32", [0, HUGE, HUGE], [0, 0]), OutOfRange, "too large"),
    "too many dimensions": (entry(shape=[4] + [1] * 99), OutOfRange, "at most 32 dimensions"),
    "beyond the file": (entry(offsets=[0, 8], shape=[8]), Truncated, "expected 8 bytes .* got 4"),
    "hole before": (entry(offsets=[1, 5]), OutOfRange, "a hole: expected offset 0 after the head"),
    "left over": (entry(shape=[3], offsets=[0, 3]), OutOfRange, "1 belong to no tensor"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_malformed_entry(case, tmp_path):
    fields, error, message = ENTRIES[case]
    path = raw_file(tmp_path / "bad.safetensors", {"blk.0.w": fields}, b"abcd")
    with pytest.raises(error, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    assert case == "left over" or "'blk.0.w'" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        ({"a": entry(), "b": entry(offsets=[5, 9])}, OutOfRange, "a hole: expected offset 4"),
        ({"a": entry(), "b": entry(offsets=[3, 7])}, OutOfRange, "an overlap: expected offset 4"),
        ({"a": entry(), "b": entry()}, OutOfRange, "an overlap.* after 'a', got 0"),
        (b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), FormatError, "key 'a'"),
        (b'{"a": {"dtype": "U8", "dtype": "I8"}}', FormatError, "duplicate key 'dtype'"),
        ({"__metadata__": {"a": 1}, "a": entry()}, FormatError, "__metadata__ of strings"),
        ({"__metadata__": [], "a": entry()}, FormatError, "__metadata__ of strings"),
        ({"\ud800": entry("F7")}, FormatError, "ud800"),
    ],
)
def test_malformed_header(header, error, message, tmp_path):
    path = raw_file(tmp_path / "bad.safetensors", header, b"abcdefghi")
    with pytest.raises(error, match=message) as caught:
        SafetensorsFile(path)
    str(caught.value).encode()  # no lone surrogate on its way to a terminal


def test_padding_after_the_header_and_empty_tensors_between_others_are_fine(tmp_path):
    header = {"a": entry(), "none": entry(shape=[0], offsets=[4, 4]), "b": entry(offsets=[4, 8])}
    path = raw_file(tmp_path / "ok.safetensors", json.dumps(header).encode() + b"   ", b"abcdefgh")
    assert bytes(SafetensorsFile(path).array("b")) == b"efgh"


def test_what_is_no_file(tmp_path):
    with pytest.raises(ModelError, match=r"cannot open .*No such file"):
        SafetensorsFile(tmp_path / "absent")
    with pytest.raises(ModelError, match="expected a regular file"):
        SafetensorsFile(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelError, match="expected a regular file"):  # and no hang
        SafetensorsFile(tmp_path / "fifo")


def test_random_mutations_end_in_a_typed_error_or_a_readable_file(tmp_path, sample):
    """And whatever we accept, the safetensors package accepts with the same shapes."""
    try:
        from safetensors import deserialize
    except ImportError:
        deserialize = None
    rng = random.Random(20240611)
    original = sample.path.read_bytes()
    header_end = 8 + struct.unpack("<Q", original[:8])[0]
    path, accepted = tmp_path / "mutant.safetensors", 0
    for _ in range(4000):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            position = rng.randrange(header_end if rng.random() < 0.9 else len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[position] = rng.randrange(256)
            elif kind == 1:
                data[position] = rng.choice(b'0123456789[]{},:"-.eUFIB')
            elif kind == 2:
                del data[position : position + rng.randrange(1, 9)]
            else:
                data[position:position] = rng.randbytes(rng.randrange(1, 9))
        path.write_bytes(data)
        try:
            file = SafetensorsFile(path)
        except BitnetEdgeError:
            continue
        accepted += 1
        shapes = {name: file.array(name).copy().shape for name in file.names}
        if deserialize:
            assert {name: tuple(t["shape"]) for name, t in deserialize(bytes(data))} == shapes
    assert accepted > 50


@pytest.mark.parametrize("end", ["header", "data"])
def test_every_truncation_is_told(tmp_path, sample, end):
    data = sample.path.read_bytes()
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    path = tmp_path / "cut.safetensors"
    for size in range(header_end) if end == "header" else range(header_end, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(Truncated):
            SafetensorsFile(path)


# -- shards ---------------------------------------------------------------------------------


def byte_tensor(value: int) -> tuple:
    return ("U8", (1,), np.array([value], np.uint8))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_safetensors(tmp_path / "one.safetensors", {"a": byte_tensor(1), "b": byte_tensor(2)})
    write_safetensors(tmp_path / "two.safetensors", {"c": byte_tensor(3)})
    index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return tmp_path


def index(directory: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {"total_size": 3}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text)


def test_shards(sharded):
    tensors = open_checkpoint(sharded)
    assert tensors.names == ("a", "b", "c")
    assert [int(tensors.array(name)[0]) for name in tensors.names] == [1, 2, 3]
    assert tensors.info("c") == ("U8", (1,))
    assert [first for first, _ in tensors.row_blocks("c")] == [0]
    tensors.release("c")
    assert "c" in tensors
    assert "d" not in tensors
    with pytest.raises(MissingTensor, match="no tensor 'd'"):
        tensors.array("d")


def test_a_single_file_wins_over_an_index(sharded):
    write_safetensors(sharded / "model.safetensors", {"z": byte_tensor(9)})
    assert open_checkpoint(sharded).names == ("z",)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"c": "three.safetensors"}, ModelError, "shard 'three.safetensors' is missing"),
        ({"c": "../two.safetensors"}, ModelError, "without a path as the shard of 'c', got '../tw"),
        ({"c": "/etc/passwd"}, ModelError, "without a path"),
        ({"c": ".."}, ModelError, "without a path"),
        ({"c": "..\\two.safetensors"}, ModelError, "without a path"),
        ({"c": 3}, ModelError, "without a path"),
        ({"d": "two.safetensors"}, MissingTensor, "places 'd' in 'two.safetensors', which lacks"),
        ({"c": "one.safetensors"}, MissingTensor, "places 'c' in 'one.safetensors'"),
        ({"b": None}, ModelError, "tensor 'b' of shard 'one.safetensors' is not in the index"),
    ],
)
def test_contradictory_index(sharded, changes, error, message):
    places = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"} | changes
    index(sharded, {name: shard for name, shard in places.items() if shard is not None})
    with pytest.raises(error, match=message) as caught:
        open_checkpoint(sharded)
    assert "index.json" in str(caught.value)


def test_a_tensor_in_two_shards(sharded):
    write_safetensors(sharded / "two.safetensors", {"c": byte_tensor(3), "a": byte_tensor(4)})
    with pytest.raises(ModelError, match=r"'a' is in two shards, 'one\.safetensors' and 'two"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "expected an object, got list"),
        ("{}", "an object 'weight_map'"),
        ('{"weight_map": []}', "an object 'weight_map'"),
        ('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}', "duplicate key 'a'"),
    ],
)
def test_malformed_index(sharded, text, message):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(sharded)


def test_no_weights(tmp_path):
    with pytest.raises(ModelError, match=r"expected model\.safetensors or .*found neither$"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"pickled .* are not read"):
        open_checkpoint(tmp_path)
