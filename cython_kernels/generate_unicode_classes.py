#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
r"""Write engine/unicode_classes.c: the Unicode data of the tokenizer.

Character data differs between Unicode versions, and ids must equal those of the Hugging Face
``tokenizers`` library, whose regex engine and normalizer each carry a version of their own. So
the data is not taken from a Unicode release but asked of that library, one code point at a time:
``\p{L}``, ``\p{N}`` and ``\s`` of its regex engine; decompositions, compositions and the
reordering of marks of its NFD and NFC. ``tests/unit/test_tokenizer.py`` compares every code point
again.

Usage: ``python cython_kernels/generate_unicode_classes.py [--check]``
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

OUTPUT = Path(__file__).parent / "engine" / "unicode_classes.c"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
LETTER, NUMBER, SPACE = 1, 2, 3  # be_class; 0 is everything else
HANGUL = range(0xAC00, 0xD7A4)  # composed and decomposed by arithmetic
NFC_MAYBE, NFC_NO = 254, 255  # be_nfc_property of starters; every other value is a ccc

nfd = normalizers.NFD().normalize_str
nfc = normalizers.NFC().normalize_str


def matching(pattern: str) -> set[int]:
    """Return the code points that the library's regex engine matches."""
    splitter = pre_tokenizers.Split(Regex(pattern), "removed")
    found: set[int] = set()
    for start in range(0, len(CODE_POINTS), 4096):
        chunk = CODE_POINTS[start : start + 4096]
        pieces = splitter.pre_tokenize_str("".join(map(chr, chunk)))
        found.update(set(chunk) - {ord(char) for piece, _ in pieces for char in piece})
    return found


def character_classes() -> list[int]:
    """Return be_class of every code point."""
    classes = [0] * 0x110000
    for value, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s")):
        for code in matching(pattern):
            assert classes[code] == 0, f"U+{code:04X} is in two classes"
            classes[code] = value
    return classes


def combining_classes() -> dict[int, int]:
    """Return the canonical combining classes the library's normalizer uses, zeros left out."""
    probe = "\u0345"  # class 240, the highest there is: any other mark moves in front of it
    known = {0x345: 240}
    for code in CODE_POINTS:
        char = chr(code)
        if nfd(char) == char and nfd(probe + char) != probe + char:
            known[code] = unicodedata.combining(char)
            assert known[code], f"U+{code:04X} is newer than this Python's unicodedata"
    one_of_each = {value: code for code, value in known.items()}
    for code, value in known.items():
        for other, mark in one_of_each.items():
            pair = chr(mark) + chr(code)
            assert (nfd(pair) != pair) == (other > value), f"U+{code:04X} is not of class {value}"
    return known


def single_steps() -> dict[int, tuple[int, int]]:
    """Return each decomposable code point's (first, second); second is 0 for a singleton."""
    steps = {}
    for code in CODE_POINTS:
        full = nfd(chr(code))
        if full == chr(code) or code in HANGUL:
            continue
        head = full[:-1] if len(full) == 2 else nfc(full[:-1])
        if len(full) == 1:
            steps[code] = (ord(full), 0)
        elif len(head) == 1:
            steps[code] = (ord(head), ord(full[-1]))
        else:  # its first part is excluded from composition
            first, second = unicodedata.decomposition(chr(code)).split()
            steps[code] = (int(first, 16), int(second, 16))
    for code in steps:
        assert expand(steps, code) == nfd(chr(code)), f"U+{code:04X}"
    return steps


def expand(steps: dict[int, tuple[int, int]], code: int) -> str:
    """Decompose `code` with the table, as the C code does."""
    tail = ""
    while code in steps:
        code, second = steps[code]
        if second:
            tail = chr(second) + tail
    return chr(code) + tail


def nfc_properties(
    combining: dict[int, int], steps: dict[int, tuple[int, int]], composable: Iterable[int]
) -> list[int]:
    """Return be_nfc_property of every code point."""
    properties = [0] * 0x110000
    for code, value in combining.items():
        properties[code] = value
    for code in (*steps, *CODE_POINTS):
        if nfc(chr(code)) != chr(code):
            properties[code] = NFC_NO
    seconds = {steps[code][1] for code in composable}
    seconds |= {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # Hangul vowels and finals
    for code in seconds:
        if properties[code] == 0:
            properties[code] = NFC_MAYBE
    assert max(combining.values()) < NFC_MAYBE
    assert not any(properties[:0x300]), "be_nfc_is_inert skips these"
    assert not any(nfd(chr(code)) != chr(code) for code in range(0xC0)), "be_normalize_nfc too"
    assert all(2 * len(nfd(chr(c))) <= 3 * len(chr(c).encode()) for c in CODE_POINTS), "its scratch"
    assert all(properties[code] == 0 for code in composable), "compose() makes starters"
    return properties


def two_stage(values: Sequence[int], block: int) -> tuple[list[int], list[list[int]]]:
    """Split `values` into blocks; return each block's number and the distinct blocks.

    Trailing blocks of zeros are dropped: code points beyond the first stage have value 0.
    """
    distinct: dict[tuple[int, ...], int] = {(0,) * block: 0}
    stage = [
        distinct.setdefault(tuple(values[i : i + block]), len(distinct))
        for i in range(0, len(values), block)
    ]
    while stage and stage[-1] == 0:
        stage.pop()
    assert len(distinct) <= 256
    return stage, [list(key) for key in distinct]


def pack_two_bits(values: Sequence[int]) -> list[int]:
    """Pack four classes to a byte, lowest bits first."""
    return [
        values[i] | values[i + 1] << 2 | values[i + 2] << 4 | values[i + 3] << 6
        for i in range(0, len(values), 4)
    ]


def array(kind: str, name: str, values: Sequence[int]) -> str:
    """Return a C array definition, 100 columns wide."""
    lines, line = [], "   "
    for value in values:
        text = f" {value},"
        if len(line) + len(text) > 100:
            lines.append(line)
            line = "   "
        line += text
    return "\n".join([f"const {kind} {name}[] = {{", *lines, line, "};"])


def generate() -> str:
    """Return the text of unicode_classes.c."""
    class_stage, class_blocks = two_stage(character_classes(), 256)
    combining = combining_classes()
    steps = single_steps()
    composable = sorted(
        (code for code, (_, second) in steps.items() if second and nfc(chr(code)) == chr(code)),
        key=lambda code: steps[code],
    )
    nfc_stage, nfc_blocks = two_stage(nfc_properties(combining, steps, composable), 128)
    codes = sorted(steps)
    position = {code: index for index, code in enumerate(codes)}
    parts = [
        "// SPDX-License-Identifier: MIT",
        "// Generated by generate_unicode_classes.py: do not edit.",
        "// Layout and lookups: unicode_classes.h.",
        '#include "unicode_classes.h"',
        "",
        "// clang-format off",
        f"const uint32_t be_class_stage_size = {len(class_stage)};",
        array("uint8_t", "be_class_stage", class_stage),
        array("uint8_t", "be_class_blocks", [b for x in class_blocks for b in pack_two_bits(x)]),
        "",
        f"const uint32_t be_nfc_stage_size = {len(nfc_stage)};",
        array("uint8_t", "be_nfc_stage", nfc_stage),
        array("uint8_t", "be_nfc_blocks", [b for x in nfc_blocks for b in x]),
        "",
        f"const uint32_t be_nfc_step_count = {len(codes)};",
        array("uint32_t", "be_nfc_step_code", codes),
        array("uint32_t", "be_nfc_step_first", [steps[code][0] for code in codes]),
        array("uint32_t", "be_nfc_step_second", [steps[code][1] for code in codes]),
        "",
        f"const uint32_t be_nfc_pair_count = {len(composable)};",
        array("uint16_t", "be_nfc_pair_step", [position[code] for code in composable]),
        "// clang-format on",
        "",
    ]
    return "\n".join(parts)


def main() -> int:
    """Write the file, or with --check compare it."""
    parser = argparse.ArgumentParser(description="Write engine/unicode_classes.c.")
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 if it differs")
    text = generate()
    if parser.parse_args().check:
        if OUTPUT.read_text(encoding="ascii") == text:
            return 0
        print(f"{OUTPUT} is not what tokenizers {tokenizers.__version__} gives", file=sys.stderr)
        return 1
    OUTPUT.write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
