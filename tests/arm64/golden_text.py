# SPDX-License-Identifier: MIT
"""What a model says, as JSON: run natively and emulated, and compared to the bit.

Usage: golden_text.py MODEL.bte IDS.json
"""

import hashlib
import json
import platform
import sys
from pathlib import Path

import bitnet_edge

path, ids = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
text = bitnet_edge.load(path).tokenizer.decode(ids)
said = {"text": text, "ids": bitnet_edge.load(path).tokenizer.encode(text)}
for threads in (1, 2):
    logits = bitnet_edge.load(path, threads=threads).logits(ids)
    said[f"logits, {threads} threads"] = hashlib.sha256(logits).hexdigest()
for name, sampling in {
    "greedy": {},
    "hot": {"temperature": 1.3, "seed": 7},
    "filtered": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 2**63},
    "penalty": {"temperature": 0.7, "repetition_penalty": 1.2, "seed": 1},
}.items():
    generation = bitnet_edge.load(path).generate("JULIET:\n", 32, **sampling)
    said[name] = generation.text()
    said[f"{name}, exact rows"] = generation.statistics.rescored_share
assert "numpy" not in sys.modules
print(json.dumps({"machine": platform.machine(), "said": said}))
