# SPDX-License-Identifier: MIT
"""Export the bundled checkpoint for a device, then run the package: python export_and_run.py."""

from pathlib import Path

import bitnet_edge

checkpoint = Path(bitnet_edge.__file__).parent / "models" / "shakespeare"
result = bitnet_edge.export(
    checkpoint, device="raspberry-pi-zero-2w", out="shakespeare.bte", force=True
)
print(f"{result.path}: {result.bytes} bytes, {result.bits_per_weight:.2f} bits per weight")
print(f"private memory {result.plan.budget.needed} of {result.plan.budget.allowed} bytes")

with bitnet_edge.load(result.path) as model:
    for piece in model.generate("JULIET:\n", max_tokens=60, temperature=0.8, top_k=40, seed=3):
        print(piece, end="", flush=True)
    print()
