# SPDX-License-Identifier: MIT
"""The 2B-4T geometry within 50 MB: private memory, and private memory and page cache together."""

from __future__ import annotations

import json
import sys

import pytest

from bitnet_edge.memory_limit import run_limited
from tests.processes import measure

MB = 1 << 20
PROMPT, NEW = 256, 64

GENERATE = """
import json, sys
import bitnet_edge
from bitnet_edge.memory import private_bytes
path, prompt, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = json.loads(sys.argv[4])
model = bitnet_edge.load(path, **options)
ids = [(7919 * i + 1) % model.vocab_size for i in range(prompt)]
generation = model.generate(ids, max_tokens=new, ignore_eos=True)
generation.text()
s = generation.statistics
print(json.dumps({"ids": generation.token_ids, "private": private_bytes(),
                  "prefill": s.prefill_seconds, "decode": s.decode_seconds}))
"""


@pytest.fixture(scope="module")
def file(big):
    return big(kv_dtype="int8", context=PROMPT + NEW)


@pytest.fixture(scope="module")
def mapped(file):
    """What a run without any limit says."""
    return measure(GENERATE, file, PROMPT, NEW, json.dumps({}))


@pytest.mark.slow
def test_private_memory_of_the_whole_process(mapped):
    print({key: value for key, value in mapped.items() if key != "ids"})
    assert len(mapped["ids"]) == NEW
    assert 20 * MB < mapped["private"] < 50 * 10**6


@pytest.mark.slow
def test_streamed_within_50_mib_of_page_cache_and_memory(file, mapped, memory_cgroup):
    options = json.dumps({"residency": "streamed"})
    command = [sys.executable, "-c", GENERATE, file, str(PROMPT), str(NEW), options]
    run = run_limited(command, 50 * MB, files=[file], timeout=900)
    assert run.counts_page_cache
    assert (run.returncode, run.out_of_memory) == (0, False), run.stderr
    assert run.peak is not None
    assert run.peak < 50 * MB  # by its own dropping: the kernel never had to reclaim a page
    result = json.loads(run.stdout)
    print(run.mechanism, run.peak, {k: v for k, v in result.items() if k != "ids"})
    assert result["ids"] == mapped["ids"]  # where the weights are read from changes no bit
