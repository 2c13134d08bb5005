# SPDX-License-Identifier: MIT
"""tokenizer.json -> section: what is read, and that everything else is refused by name."""

from __future__ import annotations

import copy
import json
import operator

import pytest
from tokenizers import Tokenizer as Library

from bitnet_edge._engine import TokenizerCore
from bitnet_edge.errors import ModelError, UnsupportedTokenizer
from bitnet_edge.exporters.sources import tokenizer_json
from bitnet_edge.exporters.sources.tokenizer_json import REGEXES, pack_tokenizer_json
from bitnet_edge.tokenizer import Tokenizer
from tests.conftest import LAYOUTS, checkpoint

CHARS = tokenizer_json._BYTE_CHARS
LLAMA3 = next(regex for regex, number in REGEXES.items() if number == tokenizer_json.LLAMA3)
DELETE = object()


def document() -> dict:
    """Return a small tokenizer.json in the shape that the library writes."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    words = ["th", "the", "Ġthe", "Ġt"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 260, "content": "<s>", "special": True, **flags},
            {"id": 261, "content": "</s>", "special": True, **flags},
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [260], "tokens": ["<s>"]}},
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate([*CHARS, *words])},
            "merges": [["t", "h"], ["th", "e"], ["Ġ", "t"], ["Ġ", "the"]],
        },
    }


def changed(path: str, value: object) -> dict:
    doc = document()
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = doc
    for part in parents:
        place = place[part]
    if value is DELETE:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return doc


def split(regex: str = LLAMA3, **changes: object) -> dict:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": regex},
                "behavior": "Isolated",
                "invert": False,
                **changes,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    }


def sequence(name: str, *members: object) -> dict:
    return {"type": "Sequence", name: list(members)}


# Accepted -----------------------------------------------------------------------------------------

TEMPLATE = document()["post_processor"]
BYTE_LEVEL = document()["decoder"]
ACCEPTED = {
    "as it is": ("version", "1.0"),
    "no version": ("version", DELETE),
    "no normalizer field": ("normalizer", DELETE),
    "NFC": ("normalizer", {"type": "NFC"}),
    "NFC twice": ("normalizer", sequence("normalizers", {"type": "NFC"}, {"type": "NFC"})),
    "no normalizers": ("normalizer", sequence("normalizers")),
    "no added tokens": ("added_tokens", DELETE),
    "pre-tokenizer of 2020": ("pre_tokenizer.use_regex", DELETE),
    "prefix space": ("pre_tokenizer.add_prefix_space", True),
    "a sequence of one": ("pre_tokenizer", sequence("pretokenizers", BYTE_LEVEL)),
    "llama3": ("pre_tokenizer", split()),
    "qwen2": ("pre_tokenizer", split(LLAMA3.replace("{1,3}", ""))),
    "gpt2 as a split": ("pre_tokenizer", split(next(iter(REGEXES)))),
    "no post-processor": ("post_processor", None),
    "offsets alone": ("post_processor", BYTE_LEVEL),
    "offsets and template": ("post_processor", sequence("processors", BYTE_LEVEL, TEMPLATE)),
    "a template of nothing": ("post_processor.single", [{"Sequence": {"id": "A", "type_id": 0}}]),
    "a decoder in a sequence": ("decoder", sequence("decoders", BYTE_LEVEL)),
    "a model of 2020": ("model.type", DELETE),
    "no dropout": ("model.dropout", 0.0),
    "empty affixes": ("model.continuing_subword_prefix", ""),
    "merges as strings": ("model.merges", ["t h", "th e", "Ġ t", "Ġ the"]),
    "no merges": ("model.merges", []),
    "a merge given twice": ("model.merges.4", ["t", "h"]),
    "a needless unk": ("model.unk_token", "<s>"),
    "a needless byte fallback": ("model.byte_fallback", True),
    "ignored merges": ("model.ignore_merges", True),
    "a hole in the ids": ("model.vocab.Ġthe", 400),
    "a token that is no bytes": ("model.vocab.漢", 500),
    "a token of nothing": ("model.vocab.", 500),
    "no token for a byte": ("model.vocab.!", DELETE),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted_gives_the_library_s_ids(case):
    doc = changed(*ACCEPTED[case])
    size = len(doc["model"]["vocab"])
    if case == "no token for a byte":  # nor room for added tokens, see REFUSED
        doc["added_tokens"] = []
    if doc.get("added_tokens"):  # the library numbers them from the vocabulary's size
        for i, token in enumerate(doc["added_tokens"]):
            token["id"] = size + i
        if doc["post_processor"] and "special_tokens" in doc["post_processor"]:
            doc["post_processor"]["special_tokens"]["<s>"]["ids"] = [size]
    else:
        doc["post_processor"] = None
    ours, library = Tokenizer(pack_tokenizer_json(doc)), Library.from_str(json.dumps(doc))
    for text in ("", "the thé! t<s>he", " the 12345</s>  THE they're", "cafe\u0301 漢字\n\n the"):
        for add in (True, False):
            ids = library.encode(text, add_special_tokens=add).ids
            assert ours.encode(text, add_special_tokens=add) == ids
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == library.decode(
                    ids, skip_special_tokens=skip
                )
    everything = list(range(ours.vocab_size + 3))
    assert ours.decode(everything) == library.decode(everything)


def test_holes_have_no_token():
    core = TokenizerCore(pack_tokenizer_json(changed("model.vocab.Ġthe", 400)))
    assert core.vocab_size == 401
    assert [core.token_flags(token) for token in (258, 399, 400)] == [4, 4, 0]
    assert core.token_bytes(399) == b""


def test_a_token_of_the_vocabulary_may_be_added():
    doc = changed("model.vocab.<s>", 260)
    doc["model"]["vocab"]["</s>"] = 261
    ours, library = Tokenizer(pack_tokenizer_json(doc)), Library.from_str(json.dumps(doc))
    assert ours.encode("<s>the") == library.encode("<s>the").ids == [260, 260, 257]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints(layout):
    folder = checkpoint(layout)
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    from_paths = pack_tokenizer_json(*(folder / name for name in names))
    from_strings = pack_tokenizer_json(*(str(folder / name) for name in names))
    from_objects = pack_tokenizer_json(*(json.loads((folder / n).read_text()) for n in names))
    assert from_paths == from_strings == from_objects


def test_packing_is_deterministic_and_leaves_its_input_alone():
    doc = document()
    before = copy.deepcopy(doc)
    assert pack_tokenizer_json(doc) == pack_tokenizer_json(json.loads(json.dumps(doc)))
    assert doc == before


# BOS and EOS --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "generation", "bos", "eos"),
    [
        (None, None, None, ()),
        ({}, {}, None, ()),
        ({"bos_token": None, "eos_token": None}, {"eos_token_id": None}, None, ()),
        ({"bos_token": "<s>", "eos_token": "</s>"}, None, 260, (261,)),
        ({"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}}, {}, 260, (261,)),
        (None, {"bos_token_id": 260, "eos_token_id": 261}, 260, (261,)),
        ({"eos_token": "</s>"}, {"eos_token_id": [261, 256]}, None, (261, 256)),
        ({"eos_token": "</s>"}, {"eos_token_id": 256}, None, (256, 261)),  # stops at either
        ({"bos_token": "</s>"}, {"bos_token_id": 260}, 260, ()),
    ],
)
def test_bos_and_eos(config, generation, bos, eos):
    tokenizer = Tokenizer(pack_tokenizer_json(document(), config, generation))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (bos, eos)


@pytest.mark.parametrize(
    ("config", "generation", "component"),
    [
        ({"bos_token": "<none>"}, None, "tokenizer_config.json.bos_token: '<none>' is not in"),
        ({"eos_token": 7}, None, "tokenizer_config.json.eos_token: 7 is not in"),
        (None, {"bos_token_id": 9999}, "generation_config.json.bos_token_id: 9999 is not in"),
        (
            None,
            {"eos_token_id": [261, -1]},
            "generation_config.json.eos_token_id: expected a token",
        ),
        (None, {"eos_token_id": True}, "generation_config.json.eos_token_id: expected a token"),
        (None, {"eos_token_id": "</s>"}, "generation_config.json.eos_token_id: expected a token"),
        (None, {"eos_token_id": [261] * 33}, "generation_config.json.eos_token_id: at most 32"),
        (
            {"added_tokens_decoder": {"260": {"content": "<x>"}}},
            None,
            "added_tokens_decoder: 260: '<x>' is not that token",
        ),
        (
            {"added_tokens_decoder": {"7": {"content": "<s>"}}},
            None,
            "added_tokens_decoder: 7: '<s>' is not that token",
        ),
        (
            {"added_tokens_decoder": {"260": "<s>"}},
            None,
            "added_tokens_decoder: expected an object",
        ),
    ],
)
def test_configs_that_disagree_are_refused(config, generation, component):
    with pytest.raises(UnsupportedTokenizer) as raised:
        pack_tokenizer_json(document(), config, generation)
    assert component in str(raised.value)


def test_configs_that_agree_are_accepted():
    config = {"added_tokens_decoder": {"260": {"content": "<s>"}, "261": {"content": "</s>"}}}
    assert pack_tokenizer_json(document(), config) == pack_tokenizer_json(document())


# Refused ------------------------------------------------------------------------------------------

ADDED = document()["added_tokens"][0]
REFUSED = [
    ("version", "2.0", "tokenizer.json.version: only '1.0' or None is implemented, got '2.0'"),
    ("truncation", {"max_length": 9}, "tokenizer.json.truncation: only None is implemented"),
    ("padding", {"strategy": "x"}, "tokenizer.json.padding: only None is implemented"),
    ("surprise", 1, "tokenizer.json.surprise: unknown field (value 1)"),
    # normalizer
    ("normalizer", {"type": "Lowercase"}, "normalizer.type: only 'NFC' is implemented"),
    ("normalizer", {"type": "NFC", "x": 1}, "normalizer.x: unknown field"),
    ("normalizer", "NFC", "normalizer: expected an object, got 'NFC'"),
    ("normalizer", sequence("normalizers", {"type": "NFKC"}), "normalizer.normalizers[0].type"),
    ("normalizer", {"type": "Sequence"}, "normalizer.normalizers: expected a list, got None"),
    ("normalizer", {"type": "Sequence", "x": 1}, "normalizer.x: unknown field"),
    # pre-tokenizer
    ("pre_tokenizer", None, "pre_tokenizer: expected [Split,] ByteLevel, got None"),
    ("pre_tokenizer", 1, "pre_tokenizer: expected an object, got 1"),
    ("pre_tokenizer", {"type": "Metaspace"}, "pre_tokenizer: expected [Split,] ByteLevel"),
    ("pre_tokenizer", split()["pretokenizers"][0], "pre_tokenizer: expected [Split,] ByteLevel"),
    ("pre_tokenizer.use_regex", False, "pre_tokenizer.use_regex: only True or None"),
    ("pre_tokenizer.add_prefix_space", DELETE, "pre_tokenizer.add_prefix_space: only False or"),
    ("pre_tokenizer", split(LLAMA3 + "x"), "pre_tokenizer.pretokenizers[0].pattern: unknown regex"),
    ("pre_tokenizer", split(behavior="Removed"), "pretokenizers[0].behavior: only 'Isolated'"),
    ("pre_tokenizer", split(invert=True), "pretokenizers[0].invert: only False"),
    ("pre_tokenizer", split(pattern={"String": " "}), "pattern.String: unknown field"),
    ("pre_tokenizer", split(pattern={"Regex": 1}), "pattern: unknown regex 1"),
    ("pre_tokenizer", split(pattern=LLAMA3), "pretokenizers[0].pattern: expected an object"),
    (
        "pre_tokenizer",
        sequence("pretokenizers", split()["pretokenizers"][0], document()["pre_tokenizer"]),
        "pre_tokenizer.pretokenizers[1].use_regex: only False is implemented, got True",
    ),
    (
        "pre_tokenizer",
        sequence(
            "pretokenizers",
            split()["pretokenizers"][0],
            {**split()["pretokenizers"][1], "add_prefix_space": True},
        ),
        "pre_tokenizer.pretokenizers[1].add_prefix_space: only False is implemented, got True",
    ),
    # post-processor
    ("post_processor", 1, "post_processor: expected an object"),
    (
        "post_processor",
        {"type": "BertProcessing"},
        "post_processor.type: only 'TemplateProcessing'",
    ),
    ("post_processor.x", 1, "post_processor.x: unknown field"),
    ("post_processor", {**BYTE_LEVEL, "x": 1}, "post_processor.x: unknown field"),
    ("post_processor", sequence("processors", TEMPLATE, TEMPLATE), "only one template"),
    ("post_processor.single", "$A", "post_processor.single: expected a list"),
    ("post_processor.single", [], "post_processor.single: has no Sequence A"),
    ("post_processor.single.0", {}, "single[0]: expected Sequence or SpecialToken"),
    ("post_processor.single.0", {"Text": 1}, "single[0].Text: unknown field"),
    ("post_processor.single.0.SpecialToken.id", "<x>", "single[0]: no special token '<x>'"),
    ("post_processor.single.0.SpecialToken.id", 1, "single[0]: no special token 1"),
    ("post_processor.single.1.Sequence.id", "B", "single[1]: only one Sequence A"),
    ("post_processor.single.2", {"Sequence": {"id": "A"}}, "single[2]: only one Sequence A"),
    ("post_processor.special_tokens", [], "special_tokens: expected an object"),
    ("post_processor.special_tokens.<s>.ids", [999], "ids [999] are not all in the vocabulary"),
    ("post_processor.special_tokens.<s>.ids", 260, "special_tokens: expected a list"),
    ("post_processor.special_tokens.<s>.ids", ["a"], "special_tokens: expected a token id"),
    ("post_processor.special_tokens.<s>.ids", [260] * 65, "more than 64 special tokens"),
    # decoder
    ("decoder", None, "decoder: only ByteLevel is implemented, got None"),
    ("decoder", {"type": "Metaspace"}, "decoder.type: only 'ByteLevel' is implemented"),
    ("decoder", sequence("decoders", BYTE_LEVEL, BYTE_LEVEL), "decoder: only ByteLevel"),
    ("decoder.x", 1, "decoder.x: unknown field"),
    # model
    ("model", None, "model: expected an object"),
    ("model.type", "Unigram", "model.type: only 'BPE' or None is implemented, got 'Unigram'"),
    ("model.dropout", 0.1, "model.dropout: only None or 0 or 0.0 is implemented, got 0.1"),
    ("model.continuing_subword_prefix", "##", "model.continuing_subword_prefix: only None or ''"),
    ("model.end_of_word_suffix", "</w>", "model.end_of_word_suffix: only None or ''"),
    ("model.ignore_merges", 1, "model.ignore_merges: only None or False or True"),
    ("model.x", 1, "model.x: unknown field"),
    ("model.vocab", [], "model.vocab: expected an object"),
    ("model.vocab.the", "9", "model.vocab['the']: expected a token id below 2^24, got '9'"),
    ("model.vocab.the", -1, "model.vocab['the']: expected a token id"),
    ("model.vocab.the", True, "model.vocab['the']: expected a token id"),
    ("model.vocab.the", 1 << 24, "model.vocab['the']: expected a token id"),
    ("model.vocab.the", 5, "model.vocab: two tokens share an id"),
    ("model.vocab.\ud800", 300, "model.vocab: '\\ud800' is not valid Unicode"),
    ("model.merges", None, "model.merges: expected a list"),
    ("model.merges.1", "t h e", "model.merges[1]: expected two tokens, got 't h e'"),
    ("model.merges.1", ["t"], "model.merges[1]: expected two tokens"),
    ("model.merges.1", 5, "model.merges[1]: expected two tokens"),
    ("model.merges.1", ["t", 5], "model.merges[1]: expected a string, got 5"),
    ("model.merges.1", ["xyz", "h"], "model.merges[1]: 'xyz' is not in the vocabulary"),
    ("model.merges.1", ["h", "t"], "model.merges[1]: 'ht' is not in the vocabulary"),
    # added tokens
    ("added_tokens", {}, "added_tokens: expected a list"),
    ("added_tokens", None, "added_tokens: expected a list"),
    ("added_tokens.0", 1, "added_tokens[0]: expected an object"),
    ("added_tokens.0.single_word", True, "added_tokens[0].single_word: only False is implemented"),
    ("added_tokens.0.lstrip", True, "added_tokens[0].lstrip: only False is implemented, got True"),
    ("added_tokens.0.rstrip", True, "added_tokens[0].rstrip: only False is implemented, got True"),
    ("added_tokens.0.normalized", DELETE, "added_tokens[0].normalized: only False or True"),
    ("added_tokens.0.special", None, "added_tokens[0].special: only False or True"),
    ("added_tokens.0.x", 1, "added_tokens[0].x: unknown field"),
    ("added_tokens.0.content", "", "added_tokens[0]: '' is empty, too long or given twice"),
    ("added_tokens.0.content", "x" * 256, "is empty, too long or given twice"),
    ("added_tokens.0.content", "</s>", "added_tokens[1]: '</s>' is empty, too long or given twice"),
    ("added_tokens.0.content", 7, "added_tokens[0].content: expected a string, got 7"),
    ("added_tokens.0.content", "\udfff", "added_tokens[0].content: '\\udfff' is not valid Unicode"),
    ("added_tokens.0.id", None, "added_tokens[0].id: expected a token id"),
    ("added_tokens.0.id", 300, "added_tokens[0].id: expected 260, got 300"),
    ("added_tokens.0.content", "the", "added_tokens[0].id: expected 257, got 260"),
    ("model.vocab.Ġt", 260, "added_tokens[0].id: 260 is 'Ġt' already"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_what_is_not_implemented_is_refused_by_name(path, value, message):
    with pytest.raises(UnsupportedTokenizer) as raised:
        pack_tokenizer_json(changed(path, value))
    assert str(raised.value).startswith("[tokenizer] ")
    assert message in str(raised.value)


@pytest.mark.parametrize(("field", "value"), [("unk_token", "<s>"), ("byte_fallback", True)])
def test_fallbacks_are_refused_where_they_could_be_used(field, value):
    doc = changed("model.vocab.!", DELETE)
    doc["added_tokens"] = []
    doc["post_processor"] = None
    pack_tokenizer_json(doc)
    doc["model"][field] = value
    with pytest.raises(UnsupportedTokenizer, match=f"{field}: .* with 1 byte tokens missing"):
        pack_tokenizer_json(doc)


def test_an_added_token_that_the_normalizer_may_change_is_refused():
    doc = changed("normalizer", {"type": "NFC"})
    doc["added_tokens"][0] |= {"content": "e\u0301", "normalized": True}
    doc["post_processor"] = None
    with pytest.raises(UnsupportedTokenizer, match="may change under the normalizer"):
        pack_tokenizer_json(doc)
    doc["normalizer"] = None
    pack_tokenizer_json(doc)


def test_no_tokens_at_all():
    doc = changed("model.vocab", {})
    doc |= {"added_tokens": [], "post_processor": None}
    doc["model"]["merges"] = []
    with pytest.raises(UnsupportedTokenizer, match="model.vocab: no tokens"):
        pack_tokenizer_json(doc)


def test_too_many(monkeypatch):
    monkeypatch.setattr(tokenizer_json, "MAX_ADDED", 1)
    with pytest.raises(UnsupportedTokenizer, match="added_tokens: at most 1, got 2"):
        pack_tokenizer_json(document())
    monkeypatch.undo()
    monkeypatch.setattr(tokenizer_json, "MAX_VOCAB", 3)
    vocab = {"a": 0, "b": 1, "ab": 2, "ba": 3, "aa": 4, "bb": 5}
    with pytest.raises(UnsupportedTokenizer, match=r"model\.merges: at most 2\^24, got 4"):
        tokenizer_json._read_merges([["a", "b"]] * 2 + [["b", "a"], ["a", "a"], ["b", "b"]], vocab)
    monkeypatch.undo()
    monkeypatch.setattr(tokenizer_json, "MAX_BITS", 1)
    monkeypatch.setattr(tokenizer_json, "MAX_BUCKET", 1)
    with pytest.raises(UnsupportedTokenizer, match="collide"):
        pack_tokenizer_json(document())


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", '{"a": ' * 100_000])
def test_files_that_are_not_a_tokenizer(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(UnsupportedTokenizer, match=r"tokenizer\.json"):
        pack_tokenizer_json(path)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read"):
        pack_tokenizer_json(tmp_path / "tokenizer.json")


def test_the_worst_bucket_of_a_vocabulary_is_small():
    """The hashes spread what vocabularies hold: neighbouring ids, texts that begin alike."""
    pairs = [(left, right) for left in range(300) for right in range(200)]
    _, _, starts = tokenizer_json._buckets([tokenizer_json._merge_hash(*pair) for pair in pairs])
    assert max(map(operator.sub, starts[1:], starts)) <= 8
    texts = [f"<|reserved_special_token_{i}|>".encode() for i in range(60_000)]
    _, _, starts = tokenizer_json._buckets([tokenizer_json._bytes_hash(text) for text in texts])
    assert max(map(operator.sub, starts[1:], starts)) <= 12
