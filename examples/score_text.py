# SPDX-License-Identifier: MIT
"""How likely a model finds a text, without numpy: python score_text.py model.bte "some text"."""

import math
import sys

import bitnet_edge

path, text = sys.argv[1:3]
model = bitnet_edge.load(path)
ids = model.tokenizer.encode(text)
logits = model.logits(ids)  # float32, (n_tokens, vocab_size): row t predicts token t + 1

nats = 0.0
for row, following in zip(logits.tolist(), ids[1:], strict=False):
    largest = max(row)
    nats += largest + math.log(sum(math.exp(x - largest) for x in row)) - row[following]
print(f"{nats / (len(ids) - 1):.3f} nats a token, perplexity {math.exp(nats / (len(ids) - 1)):.2f}")
