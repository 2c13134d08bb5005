# SPDX-License-Identifier: MIT
"""The tokenizer against the `tokenizers` library on any text; hostile texts and sections."""

from __future__ import annotations

import functools
import json
import random
import shutil
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from bitnet_edge._engine import TokenizerCore
from bitnet_edge.errors import (
    ArgumentError,
    BitnetEdgeError,
    FormatError,
    TokenizerError,
    Truncated,
    UnsupportedVersion,
)
from bitnet_edge.exporters.sources import tokenizer_json
from bitnet_edge.exporters.sources.tokenizer_json import pack_tokenizer_json
from bitnet_edge.tokenizer import StreamDecoder, Tokenizer
from tests.conftest import ROOT, checkpoint, require_tool

SHAKESPEARE = checkpoint("bf16")
REGEXES = {number: regex for regex, number in tokenizer_json.REGEXES.items()}
CORPUS = [
    "It's the first of 1234 tests; they'll say we've been there, I'm sure you'd agree.\r\n\r\n",
    "the the the theory of therein  and\tthen   THE WE'LL I'D don't 'tis 'S 3.14159 2,718,281",
    "def f(x):\n    return x + 1\n\n\nclass Thing:\n        pass\n",
    "Ça va déjà mieux à Zürich; смотри же, это тест. Ελληνικά κείμενα 漢字仮名交じり文 한국어 문장",
    "naïve café re\u0301sume\u0301 🤖👩\u200d👩\u200d👧 … “quoted” ½ ² ٣٤٥ हिन्दी में अनुवाद ไทย עִבְרִית",
] * 8
ADDED = [  # content, special, normalized: overlapping, one a prefix of another
    ("<s>", True, False),
    ("</s>", True, False),
    ("<|im|>", True, False),
    ("<|im|>end", True, False),
    ("<|", False, False),
    ("tool", False, False),
    ("the th", False, True),
    ("café", False, True),
    ("   ", False, True),
    ("ĠzĠ", False, True),  # decodes as " z ": its characters stand for bytes
    ("漢 字", True, False),  # decodes as it is written
]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@functools.cache
def trained(regex: str, *, alphabet: bool = True) -> str:
    """Return the tokenizer.json of a small BPE model."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    initial = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    library.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=initial, show_progress=False)
    )
    return library.to_str()


def document(kind: str) -> dict:
    """Return a tokenizer.json of one of KINDS."""
    pretokenizer, *options = kind.split("-")
    number = {"gpt2": 1, "llama3": 2, "qwen2": 3}[pretokenizer]
    doc = json.loads(trained(REGEXES[number], alphabet="partial" not in options))
    split = {"type": "Split", "pattern": {"Regex": REGEXES[number]}, "behavior": "Isolated"}
    if number == 1:
        doc["pre_tokenizer"] = {**BYTE_LEVEL, "add_prefix_space": "prefix" in options}
    else:
        members = [{**split, "invert": False}, {**BYTE_LEVEL, "use_regex": False}]
        doc["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": members}
    if "nfc" in options:
        doc["normalizer"] = {"type": "NFC"}
    if "ignore" in options:  # half of the tokens can no longer be reached by merges
        doc["model"]["ignore_merges"] = True
        doc["model"]["merges"] = doc["model"]["merges"][::2]
    size = len(doc["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    doc["added_tokens"] = [
        {"id": size + i, "content": text, "special": special, "normalized": normalized, **flags}
        for i, (text, special, normalized) in enumerate(ADDED)
    ]
    pieces = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>")]
    doc["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [pieces[0], {"Sequence": {"id": "A", "type_id": 0}}, pieces[1]],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [size + i], "tokens": [name]}
            for i, name in enumerate(("<s>", "</s>"))
        },
    }
    doc["decoder"] = BYTE_LEVEL
    return doc


KINDS = [
    "gpt2",
    "gpt2-prefix",
    "gpt2-prefix-nfc",
    "gpt2-partial",
    "gpt2-ignore",
    "llama3",
    "llama3-ignore",
    "llama3-partial-ignore",
    "qwen2",
    "qwen2-nfc",
    "qwen2-nfc-ignore",
]


@functools.cache
def pair(kind: str) -> tuple[Tokenizer, Library]:
    if kind == "shakespeare":
        path = SHAKESPEARE / "tokenizer.json"
        return Tokenizer(pack_tokenizer_json(path)), Library.from_file(str(path))
    doc = document(kind)
    return Tokenizer(pack_tokenizer_json(doc)), Library.from_str(json.dumps(doc))


@functools.cache
def section() -> bytes:
    return pack_tokenizer_json(document("qwen2-nfc-ignore"))


def assert_same(kind: str, text: str, *, add: bool = False, parse: bool = True) -> list[int]:
    ours, library = pair(kind)
    library.encode_special_tokens = not parse
    ids = ours.encode(text, add_special_tokens=add, parse_special_tokens=parse)
    assert ids == library.encode(text, add_special_tokens=add).ids
    return ids


FRAGMENTS = [
    *(text for text, _, _ in ADDED),
    *(
        "'s",
        "'S",
        "'\u017f",
        "'re",
        "'RE",
        "'vE",
        "'ll",
        "'lL",
        "'d",
        "'D",
        "'t",
        "'m",
        "'x",
        "'",
        "''",
    ),
    *(" ", "  ", "    ", "\t", "\n", "\r\n", "\n \n", "\u00a0", "\u2003", "\u3000", "\x85", "\x1c"),
    *("the", " the", "The", " of", "1", "12", "1234", "½", "٣", "!", " ?", "...", "_", "$x"),
    *("e\u0301", "\u0301", "\u0345", "\u0327\u0301", "\u1100\u1161\u11a8", "가\u11a8", "\u0344"),
    *(
        "漢字",
        "ﬁ",
        "Å",
        "Å",
        "\u0958",
        "\u0f43",
        "𝅗𝅥",
        "🤖",
        "\ufeff",
        "\x00",
        "\U0010ffff",
        "\ufffd",
    ),
]
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=60),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), CHARACTERS), max_size=40).map("".join),
    st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join),
)


@pytest.mark.parametrize("kind", [*KINDS, "shakespeare"])
@settings(max_examples=300, deadline=None)
@given(text=TEXTS, add=st.booleans(), parse=st.booleans())
def test_ids_equal_the_library(kind, text, add, parse):
    ids = assert_same(kind, text, add=add, parse=parse)
    ours, library = pair(kind)
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == library.decode(
            ids, skip_special_tokens=skip
        )


@pytest.mark.parametrize("kind", [*KINDS, "shakespeare"])
@settings(max_examples=100, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_texts_equal_the_library(kind, data, skip):
    ours, library = pair(kind)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size + 5), max_size=30))
    text = library.decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids, skip_special_tokens=skip) == text
    stream = StreamDecoder(ours, skip_special_tokens=skip)
    assert "".join([*map(stream.push, ids), stream.flush()]) == text


def all_characters():
    """Yield every character of planes 0 to 3 and 14 and some of the empty ones, in chunks."""
    codes = [*range(0xD800), *range(0xE000, 0x40000), *range(0x40000, 0xE0000, 97)]
    codes += [*range(0xE0000, 0xF0000), *range(0xF0000, 0x110000, 97), 0x10FFFF]
    for start in range(0, len(codes), 50_000):
        yield map(chr, codes[start : start + 50_000])


def assert_same_batch(both: tuple[Tokenizer, Library], texts: list[str]) -> None:
    ours, library = both
    for text, encoding in zip(texts, library.encode_batch_fast(texts), strict=True):
        assert ours.encode(text) == encoding.ids


@functools.cache
def revealing(regex_number: int) -> tuple[Tokenizer, Library]:
    """Return tokenizers that merge a, 1 and ! with any byte beside them: words become visible."""
    chars = tokenizer_json._BYTE_CHARS
    merges = [(left, right) for left in "a1!" for right in chars]
    vocab = {token: i for i, token in enumerate([*chars, *map("".join, merges)])}
    split = {"type": "Split", "pattern": {"Regex": REGEXES[regex_number]}, "behavior": "Isolated"}
    doc = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {**BYTE_LEVEL, "use_regex": False}],
        },
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": [" ".join(merge) for merge in merges]},
    }
    return Tokenizer(pack_tokenizer_json(doc)), Library.from_str(json.dumps(doc))


def test_the_character_data_is_what_the_library_gives():
    script = ROOT / "cython_kernels" / "generate_unicode_classes.py"
    subprocess.run([sys.executable, script, "--check"], check=True)


@pytest.mark.parametrize("number", [1, 2])  # 3 differs from 2 in the length of numbers alone
def test_every_code_point_is_cut_as_the_library_cuts_it(number):
    texts = ["".join(f"a{c}1{c}!{c}'{c}" for c in characters) for characters in all_characters()]
    assert_same_batch(revealing(number), texts)


@pytest.mark.parametrize("text", ["a{}", "a\u0345{}", "\u1100{}\u0301", "{}\u11a8\u0323\u0301"])
def test_every_code_point_is_normalized_as_the_library_does(text):
    texts = ["".join(map(text.format, characters)) for characters in all_characters()]
    assert_same_batch(pair("qwen2-nfc"), texts)


MARKS = [chr(c) for c in range(0x300, 0x370)] + list("\u0591\u05b0\u093c\u0e38\u302a\u1dfa")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(MARKS),
            st.sampled_from("aeiouAEIOU\u00c5\u1ea0\u03b1\u1f00\u0915\u0627\ufb2c"),
            st.integers(0x1100, 0x11FF).map(chr),
            st.integers(0xAC00, 0xD7A3).map(chr),
        ),
        max_size=60,
    ).map("".join)
)
def test_marks_are_ordered_and_composed_as_the_library_does(text):
    assert_same("qwen2-nfc", text)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen2-nfc"])
def test_any_long_word_equals_the_library(kind):
    generator = random.Random(1)
    for size in (63, 64, 65, 66, 100, 300, 5000):
        for letters in ("a", "ab", "the", "etaoin", "漢字", "0123456789", "!?", "\u0301\u0323"):
            assert_same(kind, "".join(generator.choices(letters, k=size)))
        assert_same(kind, generator.choice(" \n\t") * size + "x")
        assert_same(kind, "".join(generator.choices(" \n\r", k=size)))


@pytest.mark.parametrize("kind", ["gpt2-prefix-nfc", "llama3", "qwen2-nfc"])
@pytest.mark.parametrize(
    "text", ["a", " ", "\n", "!", "0", "é", "\u0301", "\U0001f916", "<", "the"]
)
def test_a_megabyte_of_anything_takes_no_longer_than_text(kind, text):
    text = text * (1_000_000 // len(text.encode()))
    ours, _ = pair(kind)
    start = time.perf_counter()
    ids = ours.encode(text, add_special_tokens=False)
    assert time.perf_counter() - start < 5  # quadratic would be an hour; this is about 0.2
    assert ours.decode(ids).lstrip() == text.lstrip()


def test_more_ids_than_bytes_halved():
    text = "qzxj" * 1000  # no merges: twice the ids that are first made room for
    ids = assert_same("gpt2-partial", text)
    assert len(ids) > len(text) // 2 + 64


def test_a_lone_surrogate_is_refused_by_its_index():
    ours, _ = pair("gpt2")
    with pytest.raises(TokenizerError, match=r"lone surrogate \(U\+DC80\) at index 2"):
        ours.encode("ab\udc80c")


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"\x80", 0),  # continuation without a lead
        (b"abcdefgh\xc3", 8),  # ends early
        (b"\xe2\x82", 0),
        (b"a\xf0\x9f\xa4", 1),
        (b"\xc1\x81", 0),  # overlong
        (b"\xe0\x9f\xbf", 0),
        (b"\xf0\x8f\xbf\xbf", 0),
        (b"\xed\xa0\x80", 0),  # surrogate
        (b"\xf4\x90\x80\x80", 0),  # beyond U+10FFFF
        (b"\xf5\x80\x80\x80", 0),
        (b"\xc3\xa9\xe2\x82\x41", 2),
        (b"\xf0\x9f\xa4\x41", 0),
    ],
)
def test_text_that_is_not_utf8_is_refused_by_its_offset(data, offset):
    with pytest.raises(TokenizerError, match=rf"invalid UTF-8.* at byte {offset}$"):
        TokenizerCore(section()).encode(data, False, True)


def test_text_beyond_the_limit_is_refused():
    with pytest.raises(ArgumentError):
        TokenizerCore(section()).encode(bytes(2**30 + 1), False, True)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_no_memory_is_an_error_and_not_a_crash(tmp_path):
    (tmp_path / "section").write_bytes(section())
    code = """
import resource, sys
from pathlib import Path
from bitnet_edge.tokenizer import Tokenizer
tokenizer = Tokenizer(Path(sys.argv[1]).read_bytes())
texts = ["a" * 30_000_000, "\\u0301" * 15_000_000]
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
for text in texts:
    try:
        tokenizer.encode(text)
    except MemoryError:
        print("MemoryError")
print(len(tokenizer.encode("still alive")))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "section"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["MemoryError"] * 2 + [
        str(len(Tokenizer(section()).encode("still alive")))
    ]


def test_threads_share_a_tokenizer():
    ours, library = pair("llama3-ignore")
    texts = [f"{i} " + CORPUS[i % 5] * 20 for i in range(8)]
    wanted = [library.encode(text).ids for text in texts]
    wrong: list[int] = []

    def encode(i: int) -> None:
        for _ in range(20):
            if ours.encode(texts[i]) != wanted[i]:
                wrong.append(i)

    threads = [threading.Thread(target=encode, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_model_s_tokens():
    ours = Tokenizer(
        pack_tokenizer_json(
            SHAKESPEARE / "tokenizer.json",
            SHAKESPEARE / "tokenizer_config.json",
            SHAKESPEARE / "generation_config.json",
        )
    )
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (2048, 0, (1,))
    assert ours.private_bytes < 1024
    plain = Tokenizer(pack_tokenizer_json(SHAKESPEARE / "tokenizer.json"))
    assert (plain.bos_id, plain.eos_ids) == (None, ())


def test_tokens_by_id():
    core = TokenizerCore(section())
    size = core.vocab_size - len(ADDED)
    assert [core.token_flags(size + i) for i in (0, 4, 6)] == [3, 2, 2]
    assert core.token_bytes(size) == b"<s>"
    assert core.token_bytes(size + 9) == b" z "
    assert core.token_bytes(size + 10) == "漢 字".encode()
    for token in (-1, core.vocab_size, 2**31 - 1):
        for method in (core.token_bytes, core.token_flags):
            with pytest.raises(ArgumentError, match=f"no token {token} in 0 .. "):
                method(token)


def test_ids_without_a_token():
    ours, _ = pair("gpt2")
    assert ours.decode([10**6, 2**40]) == ""
    with pytest.raises(TokenizerError, match="got -1"):
        ours.decode([-1])
    with pytest.raises(TokenizerError, match="got -7"):
        StreamDecoder(ours).push(-7)


def test_a_stream_shows_whole_characters_and_starts_anew_after_a_flush():
    ours, _ = pair("gpt2")
    ids = ours.encode("\U0001f300", add_special_tokens=False)
    assert len(ids) > 1
    stream = StreamDecoder(ours)
    assert [stream.push(token) for token in ids] == [""] * (len(ids) - 1) + ["\U0001f300"]
    assert stream.flush() == ""
    assert stream.push(ids[0]) == ""
    assert stream.flush() == "\ufffd"
    assert "".join(map(stream.push, ids)) == "\U0001f300"


def test_a_section_anywhere_in_memory():
    wanted = Tokenizer(section()).encode(CORPUS[0])
    for shift in range(1, 8):
        view = memoryview(bytes(shift) + section())[shift:]
        assert Tokenizer(view).encode(CORPUS[0]) == wanted


# The C API ----------------------------------------------------------------------------------------

BUILDS = {
    "gcc": (["gcc"], []),
    "sanitized": (["clang", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], []),
    "aarch64": (["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64-static"]),
    "arm": (["arm-linux-gnueabihf-gcc", "-static"], ["qemu-arm-static"]),  # 32-bit size_t
}
# Every allocation of encode is needed: NFC, a space in front, a word above 64 bytes.
C_TEXT = (
    "It's e\u0301 </s> caf\u00e9 "
    + "ab" * 50
    + " \u1100\u1161"
    + "\u0301\u0323" * 20
    + "\n\n<s>\u6f22"
)


@pytest.fixture(scope="module")
def c_program(tmp_path_factory):
    """Build test_tokenizer.c once per way of building it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    kernels = ROOT / "cython_kernels"
    sources = [ROOT / "tests/unit/c/test_tokenizer.c", kernels / "engine/unicode_classes.c"]
    sources += sorted((kernels / "engine").glob("tokenizer_*.c"))
    (folder / "section").write_bytes(pack_tokenizer_json(document("gpt2-prefix-nfc")))
    (folder / "text").write_bytes(C_TEXT.encode())

    @functools.cache
    def command(build: str) -> list[str]:
        compiler, emulator = BUILDS[build]
        for tool in (compiler[0], *emulator):
            require_tool(shutil.which(tool), tool)
        warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
        flags = ["-std=c11", "-O2", "-g", *warnings, "-Wl,--wrap=malloc", "-Wl,--wrap=calloc"]
        program = folder / build
        subprocess.run(
            [*compiler, *flags, f"-I{kernels / 'include'}", *sources, "-o", program], check=True
        )
        return [*emulator, str(program)]

    def run(build: str, case: str) -> str:
        full = [*command(build), case, folder / "section", folder / "text"]
        return subprocess.run(full, check=True, capture_output=True, text=True).stdout

    return run


@pytest.mark.parametrize("case", ["capacity", "arguments", "no_memory", "truncations"])
@pytest.mark.parametrize("build", ["gcc", "sanitized", "arm"])
def test_the_c_api(c_program, build, case):
    c_program(build, case)


@pytest.mark.parametrize("build", BUILDS)
def test_ids_are_the_same_on_every_machine(c_program, build):
    lines = c_program(build, "print_ids").splitlines()
    for flags, line in enumerate(lines):
        ids = assert_same("gpt2-prefix-nfc", C_TEXT, add=bool(flags & 1), parse=bool(flags & 2))
        assert line == " ".join(map(str, ids))
    assert len(lines) == 4


# Hostile sections ---------------------------------------------------------------------------------

HEADER_FIELDS = [
    *(
        "magic",
        "version",
        "flags",
        "pretokenizer",
        "normalizer",
        "vocab_size",
        "bos",
        "merge_count",
    ),
    *("merge_bits", "lookup_count", "lookup_bits", "raw_count", "normalized_count"),
    *("prefix_count", "suffix_count", "eos_count", "token_bytes_size", "added_text_size"),
]


def header(data: bytes) -> dict[str, int]:
    numbers = [int.from_bytes(data[i : i + 4], "little") for i in range(0, 128, 4)]
    return dict(zip(HEADER_FIELDS, numbers, strict=False))


def table_offsets(data: bytes) -> dict[str, int]:
    """Return where each table begins, as tokenizer_format.md lays them out."""
    h = header(data)
    added = h["raw_count"] + h["normalized_count"]
    sizes = {
        "header": 128,
        "merges": 16 * h["merge_count"],
        "merge_starts": 4 * (2 ** h["merge_bits"] + 1),
        "lookup_ids": 4 * h["lookup_count"],
        "lookup_starts": 4 * (2 ** h["lookup_bits"] + 1),
        "byte_ids": 1024,
        "prefix": 4 * h["prefix_count"],
        "suffix": 4 * h["suffix_count"],
        "eos": 4 * h["eos_count"],
        "added_ids": 4 * added,
        "added_starts": 4 * (added + 1),
        "token_starts": 4 * (h["vocab_size"] + 1),
        "token_flags": h["vocab_size"],
        "token_bytes": h["token_bytes_size"],
        "added_texts": h["added_text_size"],
    }
    offsets, at = {}, 0
    for name, size in sizes.items():
        offsets[name] = at
        at += size
    assert at == len(data)
    return offsets


def with_u32(offset: int, value: int, data: bytes | None = None) -> bytes:
    data = data or section()
    return data[:offset] + value.to_bytes(4, "little") + data[offset + 4 :]


def test_an_unchanged_section_opens():
    assert Tokenizer(section()).vocab_size == header(section())["vocab_size"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("flags", 4, "unknown flag"),
        ("pretokenizer", 0, "unknown pre-tokenizer"),
        ("pretokenizer", 4, "unknown pre-tokenizer"),
        ("normalizer", 2, "unknown normalizer"),
        ("vocab_size", 0, "vocabulary size"),
        ("vocab_size", 2**24 + 1, "vocabulary size"),
        ("bos", 5000, "BOS id"),
        ("merge_count", 2**24 + 1, "too many merges"),
        ("lookup_count", 2**24, "too many merges or lookup entries"),
        ("merge_bits", 25, "hash tables"),
        ("lookup_bits", 0xFFFFFFFF, "hash tables"),
        ("raw_count", 2**16 + 1, "too many added"),
        ("normalized_count", 2**16 + 1, "too many added"),
        ("prefix_count", 65, "at most 64 ids"),
        ("suffix_count", 65, "at most 64 ids"),
        ("eos_count", 65, "at most 64 ids"),
        ("token_bytes_size", 2**30 + 1, "at most 2\\^30 bytes"),
        ("added_text_size", 2**31, "at most 2\\^30 bytes"),
        ("magic", 0, "does not begin with BETK"),
    ],
)
def test_a_bad_header_field_is_refused_by_name(field, value, message):
    with pytest.raises(FormatError, match=message):
        Tokenizer(with_u32(4 * HEADER_FIELDS.index(field), value))


def test_reserved_fields_must_be_zero():
    for offset in range(4 * len(HEADER_FIELDS), 128, 4):
        with pytest.raises(FormatError, match="reserved"):
            Tokenizer(with_u32(offset, 1))


def test_another_version_is_refused():
    with pytest.raises(UnsupportedVersion, match="only version 1"):
        Tokenizer(with_u32(4, 2))


@pytest.mark.parametrize("field", HEADER_FIELDS[7:])
def test_counts_must_give_the_size(field):
    offset = 4 * HEADER_FIELDS.index(field)
    for change in (1, -1):
        number = max(header(section())[field] + change, 0)
        if number != header(section())[field]:
            with pytest.raises(FormatError):
                Tokenizer(with_u32(offset, number))
    with pytest.raises(FormatError, match="size does not follow"):
        Tokenizer(section() + b"\0")


@pytest.mark.parametrize(
    ("table", "index", "value", "message"),
    [
        ("merges", 2, 2**31, "rank or id"),
        ("merges", 3, 5000, "rank or id"),
        ("merge_starts", 0, 1, "merge buckets"),
        ("merge_starts", 5, 2**31, "merge buckets"),
        ("lookup_ids", 0, 5000, "lookup id"),
        ("lookup_starts", 3, 5000, "lookup buckets"),
        ("byte_ids", 65, 5000, "byte's id"),
        ("prefix", 0, 5000, "prefix, suffix or EOS"),
        ("suffix", 0, 5000, "prefix, suffix or EOS"),
        ("eos", 0, 5000, "prefix, suffix or EOS"),
        ("added_ids", 0, 5000, "added token's id"),
        ("added_ids", 0, 7, "not flagged as added"),
        ("added_starts", 1, 0, "not empty"),
        ("added_starts", 1, 5000, "added-token offsets"),
        ("token_starts", 9, 2**30, "token offsets"),
        ("token_starts", 0, 1, "token offsets"),
        ("token_flags", 0, 8, "unknown token flag"),
        ("token_flags", 0, 4, "absent token"),
        ("added_texts", 0, 0x80, "must be UTF-8"),
        ("added_texts", 0, 0x7F7F7F7F, "sorted"),
    ],
)
def test_a_bad_table_entry_is_refused_by_name(table, index, value, message):
    doc = document("qwen2-nfc-ignore")
    data = pack_tokenizer_json(doc, {"eos_token": "</s>"})
    with pytest.raises(FormatError, match=message):
        Tokenizer(with_u32(table_offsets(data)[table] + 4 * index, value, data))


def test_a_bucket_holds_at_most_32():
    data = section()
    start = table_offsets(data)["merge_starts"]
    bits = header(data)["merge_bits"]
    total = header(data)["merge_count"]
    assert total > 32
    starts = [0] + [total] * 2**bits
    crowded = b"".join(value.to_bytes(4, "little") for value in starts)
    with pytest.raises(FormatError, match="at most 32 merges"):
        Tokenizer(data[:start] + crowded + data[start + len(crowded) :])


def exercise(data: bytes) -> bool:
    """Open and use a section, which may raise typed errors but nothing else."""
    try:
        tokenizer = Tokenizer(data)
    except BitnetEdgeError:
        return False
    size = tokenizer.vocab_size
    for text in (*CORPUS[:5], "ab" * 50, "<s><|im|>end the th"):
        for parse in (True, False):
            ids = tokenizer.encode(text, parse_special_tokens=parse)
            assert all(0 <= token < size for token in ids)
    tokenizer.decode(range(size))
    return True


def test_every_truncation_is_refused():
    data = section()
    for size in range(len(data)):
        with pytest.raises(Truncated):
            Tokenizer(data[:size])


@pytest.mark.parametrize("seed", range(4))
def test_mutations_are_refused_or_harmless(seed):
    generator = random.Random(seed)
    tables = table_offsets(section())
    bounds = [*tables.values(), len(section())]
    opened = 0
    for _ in range(400):
        data = bytearray(section())
        for _ in range(generator.choice((1, 1, 1, 2, 8))):
            table = generator.randrange(len(tables))  # every table as often as the largest
            if bounds[table] < bounds[table + 1]:
                at = generator.randrange(bounds[table], bounds[table + 1])
                data[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
        opened += exercise(bytes(data))
    assert opened > 20  # the mutations reach beyond open
