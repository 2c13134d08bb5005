# SPDX-License-Identifier: MIT
"""Hugging Face ``tokenizer.json`` -> the tokenizer section of a ``.bte`` file.

The section (``bitnet_edge/tokenizer_format.md``) makes the C tokenizer give the ids of the
``tokenizers`` library on any text. That holds for byte-level BPE with a GPT-2, Llama 3 or Qwen2
pre-tokenizer, NFC or no normalizer, a template of constant ids around the text, and added tokens
that are plain strings. Every component is read completely: an unknown type, field or value raises
`UnsupportedTokenizer` naming it, because a tokenizer that is nearly right degrades a model without
a sign.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

from bitnet_edge.errors import UnsupportedTokenizer

__all__ = ["pack_tokenizer_json"]

Json: TypeAlias = Mapping[str, Any]
Source: TypeAlias = str | os.PathLike[str] | Json

MAGIC, VERSION, HEADER_BYTES = b"BETK", 1, 128
NO_ID = 0xFFFFFFFF
IGNORE_MERGES, ADD_PREFIX_SPACE = 1, 2  # flags of the section
SPECIAL, ADDED, ABSENT = 1, 2, 4  # flags of a token
MAX_VOCAB, MAX_BITS, MAX_BUCKET = 1 << 24, 24, 32
MAX_ADDED, MAX_ADDED_BYTES, MAX_TEMPLATE = 1 << 16, 255, 64
GOLDEN, MASK64 = 0x9E3779B97F4A7C15, (1 << 64) - 1

GPT2, LLAMA3, QWEN2 = 1, 2, 3
_GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REGEXES = {
    _GPT2_REGEX: GPT2,
    _LLAMA3_REGEX: LLAMA3,
    _LLAMA3_REGEX.replace("{1,3}", ""): QWEN2,
}


def pack_tokenizer_json(
    tokenizer: Source,
    tokenizer_config: Source | None = None,
    generation_config: Source | None = None,
) -> bytes:
    """Turn a ``tokenizer.json`` into the tokenizer section of a ``.bte`` file.

    Parameters
    ----------
    tokenizer : path or mapping
        ``tokenizer.json``, or its parsed contents.
    tokenizer_config, generation_config : path or mapping, optional
        The checkpoint's ``tokenizer_config.json`` and ``generation_config.json``, which name the
        BOS token and the tokens that end a generation. Generation stops at any that either names.

    Returns
    -------
    bytes
        The section.

    Raises
    ------
    UnsupportedTokenizer
        When a component is not implemented exactly, or the files are malformed or disagree.
    """
    parts = _read_tokenizer(_load(tokenizer, "tokenizer.json"))
    settings = {} if tokenizer_config is None else _load(tokenizer_config, "tokenizer_config.json")
    generation = (
        {} if generation_config is None else _load(generation_config, "generation_config.json")
    )
    _check_added_tokens_decoder(parts, settings)
    bos = _ids_of(generation, "bos_token_id", parts) or _id_of_token(settings, "bos_token", parts)
    eos = _ids_of(generation, "eos_token_id", parts) + _id_of_token(settings, "eos_token", parts)
    return _write_section(parts, bos[0] if bos else NO_ID, list(dict.fromkeys(eos)))


def _refuse(component: str, problem: str) -> UnsupportedTokenizer:
    return UnsupportedTokenizer(f"[tokenizer] {component}: {problem}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _load(source: Source, name: str) -> Json:
    if not isinstance(source, Mapping):
        try:
            source = json.loads(Path(source).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise _refuse(name, f"cannot be read: {error}") from error
    return _object(source, name)


def _object(value: object, component: str) -> Json:
    if not isinstance(value, Mapping):
        raise _refuse(component, f"expected an object, got {_shown(value)}")
    return value


def _list(value: object, component: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _refuse(component, f"expected a list, got {_shown(value)}")
    return value


def _token_id(value: object, component: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_VOCAB:
        raise _refuse(component, f"expected a token id below 2^24, got {_shown(value)}")
    return value


def _text(value: object, component: str) -> str:
    if not isinstance(value, str):
        raise _refuse(component, f"expected a string, got {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _refuse(component, f"{_shown(value)} is not valid Unicode") from error
    return value


def _read(value: object, component: str, fields: Mapping[str, tuple[object, ...] | None]) -> Json:
    """Check an object's fields: each name must be known, each value one of those listed.

    ``None`` in place of a list leaves the value to the caller. A field may be absent if ``None``
    is listed or nothing is.
    """
    found = _object(value, component)
    for name in found:
        if name not in fields:
            raise _refuse(f"{component}.{name}", f"unknown field (value {_shown(found[name])})")
    for name, allowed in fields.items():
        if allowed is None:
            continue
        given = found.get(name)
        if not any(given == choice and type(given) is type(choice) for choice in allowed):
            choices = " or ".join(repr(choice) for choice in allowed)
            raise _refuse(
                f"{component}.{name}", f"only {choices} is implemented, got {_shown(given)}"
            )
    return found


@dataclass(frozen=True)
class _AddedToken:
    text: bytes
    token: int
    normalized: bool


@dataclass
class _Parts:
    """A tokenizer.json, understood."""

    flags: int = 0
    pretokenizer: int = 0
    nfc: bool = False
    vocab: dict[str, int] = field(default_factory=dict)  # of the model
    ids: dict[str, int] = field(default_factory=dict)  # with added tokens
    special: set[int] = field(default_factory=set)
    added: list[_AddedToken] = field(default_factory=list)
    merges: list[tuple[int, int, int]] = field(default_factory=list)  # by rank: left, right, merged
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)


_COMPONENTS = (
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
)


def _read_tokenizer(document: Json) -> _Parts:
    fields = {"version": ("1.0", None), "truncation": (None,), "padding": (None,)}
    _read(document, "tokenizer.json", {**fields, **dict.fromkeys(_COMPONENTS)})
    parts = _Parts()
    parts.nfc = _read_normalizer(document.get("normalizer"))
    _read_model(document.get("model"), parts)
    _read_added_tokens(document.get("added_tokens", []), parts)
    _read_pretokenizer(document.get("pre_tokenizer"), parts)
    _read_post_processor(document.get("post_processor"), parts)
    _read_decoder(document.get("decoder"))
    return parts


def _flatten(value: object, component: str, members: str) -> list[tuple[object, str]]:
    """Return the members of a ``Sequence``, nested or not, or the component alone."""
    if not isinstance(value, Mapping) or value.get("type") != "Sequence":
        return [] if value is None else [(value, component)]
    _read(value, component, {"type": ("Sequence",), members: None})
    found = []
    for index, member in enumerate(_list(value.get(members), f"{component}.{members}")):
        found += _flatten(member, f"{component}.{members}[{index}]", members)
    return found


def _type(value: object, component: str) -> object:
    return _object(value, component).get("type")


def _read_normalizer(value: object) -> bool:
    normalizers = _flatten(value, "normalizer", "normalizers")
    for member, component in normalizers:
        _read(member, component, {"type": ("NFC",)})
    return bool(normalizers)


def _read_model(value: object, parts: _Parts) -> None:
    model = _read(
        value,
        "model",
        {
            "type": ("BPE", None),  # files of 2020 leave it out
            "dropout": (None, 0, 0.0),
            "continuing_subword_prefix": (None, ""),
            "end_of_word_suffix": (None, ""),
            "ignore_merges": (None, False, True),
            "unk_token": None,
            "fuse_unk": (None, False, True),
            "byte_fallback": (None, False, True),
            "vocab": None,
            "merges": None,
        },
    )
    for token, number in _object(model.get("vocab"), "model.vocab").items():
        parts.vocab[_text(token, "model.vocab")] = _token_id(number, f"model.vocab[{token!r}]")
    if len(set(parts.vocab.values())) != len(parts.vocab):
        raise _refuse("model.vocab", "two tokens share an id")
    parts.ids = dict(parts.vocab)
    if model.get("ignore_merges"):
        parts.flags |= IGNORE_MERGES
    missing = sum(char not in parts.vocab for char in _BYTE_CHARS)
    for name in ("unk_token", "byte_fallback"):  # of no effect while every byte has a token
        if model.get(name) and missing:
            raise _refuse(
                f"model.{name}", f"{_shown(model[name])} with {missing} byte tokens missing"
            )
    parts.merges = _read_merges(model.get("merges"), parts.vocab)


def _read_merges(value: object, vocab: Mapping[str, int]) -> list[tuple[int, int, int]]:
    ranked: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(_list(value, "model.merges")):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        component = f"model.merges[{rank}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _refuse(component, f"expected two tokens, got {_shown(merge)}")
        left, right = (_text(token, component) for token in pair)
        for token in (left, right, left + right):
            if token not in vocab:
                raise _refuse(component, f"{_shown(token)} is not in the vocabulary")
        ranked[vocab[left], vocab[right]] = (rank, vocab[left + right])  # the last one counts
    if len(ranked) > MAX_VOCAB:
        raise _refuse("model.merges", f"at most 2^24, got {len(ranked)}")
    in_order = sorted(ranked.items(), key=lambda item: item[1])
    return [(left, right, merged) for (left, right), (_, merged) in in_order]


def _read_added_tokens(value: object, parts: _Parts) -> None:
    next_id = len(parts.vocab)  # what the library assigns, whatever the file says
    holders = {number: token for token, number in parts.vocab.items()}
    seen: set[str] = set()
    for index, entry in enumerate(_list(value, "added_tokens")):
        component = f"added_tokens[{index}]"
        token = _read(
            entry,
            component,
            {
                "id": None,
                "content": None,
                **dict.fromkeys(("single_word", "lstrip", "rstrip"), (False,)),
                **dict.fromkeys(("normalized", "special"), (False, True)),
            },
        )
        content = _text(token.get("content"), f"{component}.content")
        stated = _token_id(token.get("id"), f"{component}.id")
        size = len(content.encode())
        if not 1 <= size <= MAX_ADDED_BYTES or content in seen:
            raise _refuse(component, f"{_shown(content)} is empty, too long or given twice")
        seen.add(content)
        if content not in parts.vocab:
            if next_id != stated:
                raise _refuse(f"{component}.id", f"expected {next_id}, got {stated}")
            if next_id in holders:
                raise _refuse(f"{component}.id", f"{stated} is {_shown(holders[next_id])} already")
            holders[next_id] = content
            parts.ids[content] = next_id
            next_id += 1
        elif parts.vocab[content] != stated:
            raise _refuse(f"{component}.id", f"expected {parts.vocab[content]}, got {stated}")
        if token["normalized"] and parts.nfc and max(content) >= "\u0300":
            raise _refuse(component, f"{_shown(content)} may change under the normalizer")
        if token["special"]:
            parts.special.add(stated)
        parts.added.append(_AddedToken(content.encode(), stated, bool(token["normalized"])))
    if len(parts.added) > MAX_ADDED:
        raise _refuse("added_tokens", f"at most {MAX_ADDED}, got {len(parts.added)}")
    if not parts.ids:
        raise _refuse("model.vocab", "no tokens")


def _read_pretokenizer(value: object, parts: _Parts) -> None:
    members = _flatten(value, "pre_tokenizer", "pretokenizers")
    kinds = [_type(member, component) for member, component in members]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise _refuse("pre_tokenizer", f"expected [Split,] ByteLevel, got {_shown(value)}")
    split = members[0] if len(members) == 2 else None
    byte_level = _read(
        *members[-1],
        {
            "type": ("ByteLevel",),
            "add_prefix_space": (False,) if split else (False, True),
            "trim_offsets": None,  # of offsets, which we do not give
            "use_regex": (False,) if split else (True, None),
        },
    )
    parts.pretokenizer = _read_split(*split) if split else GPT2
    if byte_level["add_prefix_space"]:
        parts.flags |= ADD_PREFIX_SPACE


def _read_split(value: object, component: str) -> int:
    split = _read(
        value,
        component,
        {"type": ("Split",), "pattern": None, "behavior": ("Isolated",), "invert": (False,)},
    )
    pattern = _read(split.get("pattern"), f"{component}.pattern", {"Regex": None}).get("Regex")
    if not isinstance(pattern, str) or pattern not in REGEXES:
        raise _refuse(f"{component}.pattern", f"unknown regex {pattern!r}")
    return REGEXES[pattern]


def _read_post_processor(value: object, parts: _Parts) -> None:
    templates = []
    for member, component in _flatten(value, "post_processor", "processors"):
        if _type(member, component) == "ByteLevel":  # adjusts offsets alone
            fields = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"))
            _read(member, component, {"type": ("ByteLevel",), **fields})
        else:
            templates.append((member, component))
    if len(templates) > 1:
        raise _refuse("post_processor", "only one template is implemented")
    for member, component in templates:
        _read_template(member, component, parts)


def _read_template(value: object, component: str, parts: _Parts) -> None:
    fields = dict.fromkeys(("single", "pair", "special_tokens"))  # pair: two texts at once
    template = _read(value, component, {"type": ("TemplateProcessing",), **fields})
    specials = _object(template.get("special_tokens"), f"{component}.special_tokens")
    target = parts.prefix
    for index, piece in enumerate(_list(template.get("single"), f"{component}.single")):
        name = f"{component}.single[{index}]"
        kind = _read(piece, name, dict.fromkeys(("Sequence", "SpecialToken")))
        if len(kind) != 1:
            raise _refuse(name, f"expected Sequence or SpecialToken, got {_shown(piece)}")
        if "SpecialToken" in kind:
            special = _object(kind["SpecialToken"], name).get("id")
            if not isinstance(special, str) or special not in specials:
                raise _refuse(name, f"no special token {_shown(special)}")
            target += _template_ids(specials[special], f"{component}.special_tokens", parts)
        elif _object(kind["Sequence"], name).get("id") != "A" or target is parts.suffix:
            raise _refuse(name, f"only one Sequence A is implemented, got {_shown(piece)}")
        else:
            target = parts.suffix
    if target is parts.prefix:
        raise _refuse(f"{component}.single", "has no Sequence A")
    if max(len(parts.prefix), len(parts.suffix)) > MAX_TEMPLATE:
        raise _refuse(f"{component}.single", f"more than {MAX_TEMPLATE} special tokens in a row")


def _template_ids(value: object, component: str, parts: _Parts) -> list[int]:
    ids = _object(value, component).get("ids")
    known = set(parts.ids.values())
    found = [_token_id(number, component) for number in _list(ids, component)]
    if not known.issuperset(found):
        raise _refuse(component, f"ids {found} are not all in the vocabulary")
    return found


def _read_decoder(value: object) -> None:
    members = _flatten(value, "decoder", "decoders")
    if len(members) != 1:
        raise _refuse("decoder", f"only ByteLevel is implemented, got {_shown(value)}")
    fields = dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"))  # of no effect here
    _read(*members[0], {"type": ("ByteLevel",), **fields})


def _check_added_tokens_decoder(parts: _Parts, settings: Json) -> None:
    """Refuse a tokenizer_config.json that adds or renames tokens: they would be lost."""
    name = "tokenizer_config.json.added_tokens_decoder"
    for number, entry in _object(settings.get("added_tokens_decoder") or {}, name).items():
        content = _object(entry, name).get("content")
        if not isinstance(content, str) or str(parts.ids.get(content)) != number:
            raise _refuse(name, f"{number}: {_shown(content)} is not that token in tokenizer.json")


def _ids_of(settings: Json, name: str, parts: _Parts) -> list[int]:
    value = settings.get(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    component = f"generation_config.json.{name}"
    if len(values) > MAX_TEMPLATE // 2:
        raise _refuse(component, f"at most {MAX_TEMPLATE // 2} ids, got {len(values)}")
    known = set(parts.ids.values())
    for number in values:
        if _token_id(number, component) not in known:
            raise _refuse(component, f"{number} is not in the vocabulary")
    return values


def _id_of_token(settings: Json, name: str, parts: _Parts) -> list[int]:
    value = settings.get(name)
    content = value.get("content") if isinstance(value, Mapping) else value
    if content is None:
        return []
    if not isinstance(content, str) or content not in parts.ids:
        raise _refuse(f"tokenizer_config.json.{name}", f"{_shown(value)} is not in the vocabulary")
    return [parts.ids[content]]


def _byte_characters() -> str:
    """Return the 256 characters that stand for bytes in byte-level vocabularies (GPT-2's map)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    code = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
    return "".join(chr(code[byte]) for byte in range(256))


_BYTE_CHARS = _byte_characters()
_BYTE_OF = {char: byte for byte, char in enumerate(_BYTE_CHARS)}


def _byte_level(token: str) -> bytes | None:
    """Return the bytes that a token's characters stand for, or None if one stands for none."""
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return None


def _merge_hash(left: int, right: int) -> int:
    return ((left << 32 | right) * GOLDEN) & MASK64


def _bytes_hash(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & MASK64
    return value * GOLDEN & MASK64


def _buckets(hashes: Sequence[int]) -> tuple[int, list[int], list[int]]:
    """Group entries by the top bits of their hashes, one or two to a bucket.

    Returns
    -------
    tuple
        The number of bits, the entries' indices in order of their buckets, and each bucket's
        start in that order, with the end of the last.
    """
    for bits in range(max(len(hashes).bit_length() - 1, 0), MAX_BITS + 1):
        bucket = [value >> (64 - bits) for value in hashes]
        counts = [0] * (1 << bits)
        for number in bucket:
            counts[number] += 1
        if max(counts) <= MAX_BUCKET:
            order = sorted(range(len(hashes)), key=bucket.__getitem__)
            return bits, order, list(accumulate(counts, initial=0))
    raise _refuse("model", "its tokens collide in the hash tables")


def _u32(values: Iterable[int]) -> bytes:
    items = list(values)
    return struct.pack(f"<{len(items)}I", *items)


def _starts(items: Iterable[bytes]) -> Iterable[int]:
    return accumulate((len(item) for item in items), initial=0)


def _write_section(parts: _Parts, bos: int, eos: list[int]) -> bytes:
    size = max(parts.ids.values()) + 1
    tokens = [b""] * size
    flags = bytearray([ABSENT]) * size
    for token, number in parts.ids.items():
        data = _byte_level(token)
        tokens[number] = token.encode() if data is None else data
        flags[number] = 0
    for added in parts.added:
        flags[added.token] |= ADDED | (SPECIAL if added.token in parts.special else 0)

    merge_bits, merge_order, merge_starts = _buckets(
        [_merge_hash(left, right) for left, right, _ in parts.merges]
    )
    merges = [(*parts.merges[rank][:2], rank, parts.merges[rank][2]) for rank in merge_order]

    found = [] if not parts.flags & IGNORE_MERGES else _found_by_bytes(parts.vocab)
    lookup_bits, lookup_order, lookup_starts = _buckets([_bytes_hash(data) for data, _ in found])

    by_text = sorted(parts.added, key=lambda added: (added.normalized, added.text))
    texts = [added.text for added in by_text]
    normalized = sum(added.normalized for added in by_text)

    header = (
        *(VERSION, parts.flags, parts.pretokenizer, int(parts.nfc), size, bos),
        *(len(merges), merge_bits, len(found), lookup_bits, len(texts) - normalized, normalized),
        *(len(parts.prefix), len(parts.suffix), len(eos)),
        *(sum(map(len, tokens)), sum(map(len, texts))),
    )
    return b"".join(
        (
            (MAGIC + _u32(header)).ljust(HEADER_BYTES, b"\0"),
            _u32(number for merge in merges for number in merge),
            _u32(merge_starts),
            _u32(found[i][1] for i in lookup_order),
            _u32(lookup_starts),
            _u32(parts.vocab.get(char, NO_ID) for char in _BYTE_CHARS),
            _u32(parts.prefix),
            _u32(parts.suffix),
            _u32(eos),
            _u32(added.token for added in by_text),
            _u32(_starts(texts)),
            _u32(_starts(tokens)),
            bytes(flags),
            *tokens,
            *texts,
        )
    )


def _found_by_bytes(vocab: Mapping[str, int]) -> list[tuple[bytes, int]]:
    """Return the tokens that a word can equal, with their ids."""
    pairs = ((_byte_level(token), number) for token, number in vocab.items())
    return [(data, number) for data, number in pairs if data]
