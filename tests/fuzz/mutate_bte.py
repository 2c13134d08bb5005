# SPDX-License-Identifier: MIT
"""Feeds damaged .bte files to the whole runtime; run by test_bte.py under sanitizers.

    python mutate_bte.py MODEL.bte truncations
    python mutate_bte.py MODEL.bte mutations SEED COUNT

Every file must end in a typed error or a correct run. Prints one line of counts; a crash or a
sanitizer report ends the process otherwise. ``--one N`` repeats mutation N alone.
"""

from __future__ import annotations

import binascii
import collections
import random
import signal
import struct
import sys
import tempfile
from pathlib import Path

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.container import PREFIX, open_bte
from bitnet_edge.errors import BitnetEdgeError

# Numbers that break arithmetic: boundaries of widths, of our limits, of alignment.
INTERESTING = (0, 1, 15, 16, 63, 64, 65, 127, 128, 255, 4095, 65535, 1 << 16, 1 << 20, 1 << 24)
INTERESTING += ((1 << 24) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
SECONDS = 20  # for one file, with sanitizers, on a loaded machine


def use(path: Path) -> str:
    """Open and run a file; return how it ended."""
    try:
        check = binascii.crc32(path.read_bytes())
        model = bitnet_edge.load(
            path,
            threads=1 + check % 2,
            memory_budget="50MB",
            residency=("mapped", "streamed")[check // 2 % 2],
        )
        if model.has_tokenizer:
            ids = model.tokenizer.encode("To be, or\nnot: 42 \u00e9\U0001f600<|end_of_text|>")
            model.tokenizer.decode(ids)
        program = model.session.program
        rows = min(program.max_tokens, 66)
        inputs = [bytes(rows * width * 4) for _, width in program.inputs]
        outputs = [bytearray(rows * width * 4) for _, width in program.outputs]
        model.session.run(inputs, outputs, rows)
        if program.inputs == [(3, 1)]:  # tokens: the largest logits only
            model.generate([0, 1], max_tokens=2).text()
        if model.has_tokenizer and model.file.model["vocab_size"] == model.vocab_size:
            model.generate([0, 1], max_tokens=2, temperature=1.0).text()
    except (BitnetEdgeError, MemoryError) as error:
        return type(error).__name__
    return "ran"


def truncations(data: bytes, path: Path) -> collections.Counter[str]:
    """Cut at every section boundary, one byte before and one after, and inside the prefix."""
    path.write_bytes(data)
    file = open_bte(path)
    cuts = {0, 1, 7, 8, 63, 64, 65, len(data) - 1}
    for section in file.sections.values():
        for edge in (section.offset, section.offset + section.bytes):
            cuts |= {edge - 1, edge, edge + 1}
    del file
    results: collections.Counter[str] = collections.Counter()
    for cut in sorted(c for c in cuts if c < len(data)):
        path.write_bytes(data[:cut])
        results[use(path)] += 1
        fixed = bytearray(data[:cut])  # and with a file length that admits it
        if cut >= PREFIX.size:
            struct.pack_into("<Q", fixed, 16, cut)
            path.write_bytes(fixed)
            results[use(path)] += 1
    assert "ran" not in results, results
    return results


def mutate(data: bytes, regions: list[tuple[int, int]], rng: random.Random) -> bytes:
    """Return a damaged copy: bytes, numbers, swaps or digits, mostly in headers and the program."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        begin, end = rng.choice(regions)
        at = rng.randrange(begin, end)
        kind = rng.randrange(5)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at] = rng.randrange(256)
        elif kind == 2:
            at = min(begin + (at - begin) // 4 * 4, len(damaged) - 4)
            struct.pack_into("<I", damaged, at, rng.choice(INTERESTING))
        elif kind == 3:
            length = rng.randrange(1, 9)
            other = rng.randrange(begin, end)
            piece = bytes(damaged[other : other + length])
            damaged[at : at + len(piece)] = piece
            del damaged[len(data) :]
        elif 48 <= damaged[at] < 58:  # a digit of the JSON header
            damaged[at] = 48 + rng.randrange(10)
    if rng.random() < 0.8:  # as an attacker would
        length = struct.unpack_from("<I", damaged, 12)[0]
        header = damaged[PREFIX.size : PREFIX.size + min(length, len(damaged))]
        struct.pack_into("<I", damaged, 24, binascii.crc32(header))
    return bytes(damaged)


def mutations(data: bytes, path: Path, seed: int, numbers: range) -> collections.Counter[str]:
    path.write_bytes(data)
    sections = open_bte(path).sections
    header = (PREFIX.size, PREFIX.size + struct.unpack_from("<I", data, 12)[0])
    spans = {name: (s.offset, s.offset + s.bytes) for name, s in sections.items()}
    regions = [(0, PREFIX.size), header, *[spans["program"]] * 5, *spans.values()]
    results: collections.Counter[str] = collections.Counter()
    for number in numbers:
        rng = random.Random(f"{seed}/{number}")
        path.write_bytes(mutate(data, regions, rng))
        isas = list(_engine.cpu_isas())
        _engine.set_cpu(isas[number % len(isas)])
        signal.alarm(SECONDS)  # a hang ends the process
        results[use(path)] += 1
        signal.alarm(0)
    return results


def main(arguments: list[str]) -> None:
    data = Path(arguments[0]).read_bytes()
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "damaged.bte"
        if arguments[1] == "truncations":
            results = truncations(data, path)
        elif "--one" in arguments:
            number = int(arguments[-1])
            results = mutations(data, path, int(arguments[2]), range(number, number + 1))
        else:
            results = mutations(data, path, int(arguments[2]), range(int(arguments[3])))
    print(sum(results.values()), "files:", dict(sorted(results.items())))


if __name__ == "__main__":
    main(sys.argv[1:])
