# SPDX-License-Identifier: MIT
"""A vocabulary of 128,256 tokens, Llama-3 style: its memory, its ids, its speed on English."""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import random
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from bitnet_edge.exporters.sources import tokenizer_json
from bitnet_edge.exporters.sources.tokenizer_json import pack_tokenizer_json
from bitnet_edge.tokenizer import Tokenizer

VOCABULARY = 128_256
SPECIAL = 256
LLAMA3 = next(regex for regex, number in tokenizer_json.REGEXES.items() if number == 2)
# The reference manual of Python, about 700 KB of English with some code and tables.
ENGLISH = "\n\n".join(pydoc_data.topics.topics.values())


def grown(doc: dict, size: int) -> dict:
    """Add merges of existing tokens, as real ones would come next, up to a vocabulary's size."""
    vocab, merges = doc["model"]["vocab"], doc["model"]["merges"]
    words = [token for token in vocab if token[0] == "Ġ" and len(token) > 2]
    tails = [token for token in vocab if token.isalpha() and token.islower() and token.isascii()]
    pairs = ((word, tail) for tail in tails for word in words)
    while len(vocab) < size:
        left, right = next(pairs)
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    return doc


@pytest.fixture(scope="module")
def document() -> dict:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.train_from_iterator(
        texts_of_the_library(),
        trainers.BpeTrainer(
            vocab_size=40_000,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    doc = grown(json.loads(library.to_str()), VOCABULARY - SPECIAL)
    doc["model"]["ignore_merges"] = True  # as Llama 3 has it
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    doc["added_tokens"] = [
        {"id": VOCABULARY - SPECIAL + i, "content": f"<|{i}|>", "special": True, **flags}
        for i in range(SPECIAL)
    ]
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    doc["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{**split, "invert": False}, {**byte_level, "use_regex": False}],
    }
    doc["decoder"] = byte_level
    return doc


def texts_of_the_library() -> list[str]:
    """Return the largest modules of Python's library, 4 MB at most, and its manual."""
    files = [
        path
        for path in Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")
        if "site-packages" not in path.parts
    ]
    texts, size = [ENGLISH], 0
    for path in sorted(files, key=lambda path: (-path.stat().st_size, str(path))):
        texts.append(path.read_text("utf-8", errors="ignore"))
        size += len(texts[-1])
        if size > 4 << 20:
            break
    return texts


@pytest.fixture(scope="module")
def section(document) -> bytes:
    return pack_tokenizer_json(document)


def test_ids_equal_the_library(document, section):
    ours, library = Tokenizer(section), Library.from_str(json.dumps(document))
    assert ours.vocab_size == VOCABULARY
    assert library.get_vocab_size() == VOCABULARY
    ids = ours.encode(ENGLISH)
    assert ids == library.encode(ENGLISH).ids
    assert ours.decode(ids) == ENGLISH
    assert len(set(ids)) > 2000
    # tokens from all of the vocabulary, the merges that English does not reach included
    words = random.Random(0).sample(range(VOCABULARY - SPECIAL), 5000)
    text = library.decode(words)
    ids = ours.encode(text)
    assert ids == library.encode(text).ids
    assert sum(token > 40_000 for token in ids) > 500
    marked = "<|0|>Hello <|255|>, world <|12|"
    assert ours.encode(marked) == library.encode(marked).ids


def test_private_memory_stays_under_2_mb(section, tmp_path, capsys):
    """In a process of its own, after opening the section and encoding the whole text."""
    with (tmp_path / "tokenizer").open("wb") as file:
        file.write(section)
        file.flush()
        os.fsync(file.fileno())  # pages that wait to be written count as dirty
    (tmp_path / "text").write_text(ENGLISH, "utf-8")
    script = """
import mmap, sys
from bitnet_edge.memory import private_bytes
from bitnet_edge.tokenizer import Tokenizer
text = open(sys.argv[2], encoding="utf-8").read()
pieces = [text[i : i + 4096] for i in range(0, len(text), 4096)]
before = private_bytes()
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
tokenizer = Tokenizer(memoryview(mapped))
count = sum(len(tokenizer.encode(piece)) for piece in pieces)
print(private_bytes() - before, tokenizer.private_bytes, count)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "tokenizer", tmp_path / "text"],
        capture_output=True,
        text=True,
        check=True,
    )
    grown_by, handle, count = map(int, done.stdout.split())
    with capsys.disabled():
        print(f"\n  128,256 tokens, a section of {len(section):,} bytes: {grown_by:,} private")
    assert count > 50_000
    assert handle < 4096, "the vocabulary stays in the file"
    assert grown_by < 2 << 20


def test_a_core_encodes_a_megabyte_a_second(section, capsys):
    """Tens of times that on an idle core; processor time, and the best of five, so that only a
    change of the algorithm can fail here."""
    tokenizer, size = Tokenizer(section), len(ENGLISH.encode())
    times = []
    for _ in range(5):
        start = time.process_time()
        tokenizer.encode(ENGLISH)
        times.append(time.process_time() - start)
    speed = size / min(times) / 1e6
    with capsys.disabled():
        print(f"\n  128,256 tokens: {speed:.1f} MB/s of English on one core")
    assert speed >= 1
