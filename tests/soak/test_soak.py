# SPDX-License-Identifier: MIT
"""Many decode steps over many sessions: private memory does not grow.

BITNET_EDGE_SOAK_STEPS sets the number of steps; 1,000,000 model a day of use.
"""

from __future__ import annotations

import os

import pytest

from tests.processes import measure

STEPS = int(os.environ.get("BITNET_EDGE_SOAK_STEPS", "50000"))
GROWTH = 64 * 1024
# Sessions before measuring. Python's heap takes its lasting shape late: 76 KB over the first 40,
# 16 KB over the next 40, then none (the curve is flat from session 80 to 270).
WARM_UP = 100

SOAK = """
import json, sys
import bitnet_edge
from bitnet_edge.memory import private_bytes

path, steps, WARM_UP = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
styles = [
    {},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1},
    {"temperature": 1.2, "min_p": 0.05, "stop": "ROMEO:"},
]

def session(number):
    with bitnet_edge.load(path, threads=1 + number % 2) as model:
        done = 0
        for turn in range(6):
            generation = model.generate(f"Scene {number}.{turn}\\n", max_tokens=160, seed=number,
                                        ignore_eos=True, **styles[turn % 3])
            generation.text()
            done += generation.statistics.new_tokens
        return done

done = sessions = 0
while sessions < WARM_UP:
    session(sessions)
    sessions += 1
warm, most = private_bytes(), 0
while done < steps:
    done += session(sessions)
    sessions += 1
    most = max(most, private_bytes())
print(json.dumps({"steps": done, "sessions": sessions, "warm": warm, "most": most,
                  "end": private_bytes()}))
"""


@pytest.mark.slow
def test_private_memory_does_not_grow(bte):
    result = measure(SOAK, bte, STEPS, WARM_UP)
    print(result)
    assert result["steps"] >= STEPS
    assert result["warm"] > 0
    assert result["most"] - result["warm"] <= GROWTH
