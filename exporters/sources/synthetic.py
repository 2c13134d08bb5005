# SPDX-License-Identifier: MIT
"""Models of a true geometry with made-up weights, for measuring memory and speed.

A synthetic checkpoint stands where a real one would: the importer's own graph builder reads it, so
a file of it has the ops, shapes and sizes of an exported model. Every tensor is made when it is
asked for, from the seed and its name alone. What it says is noise: the tokens are numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.errors import ArgumentError
from bitnet_edge.exporters.sources.checkpoint import Checkpoint
from bitnet_edge.exporters.sources.huggingface_config import BITNET, BitNetConfig, Layout
from bitnet_edge.exporters.sources.huggingface_graph import GraphBuilder
from bitnet_edge.exporters.sources.rope import Rope
from bitnet_edge.exporters.sources.safetensors_file import BLOCK_BYTES, TensorInfo
from bitnet_edge.exporters.sources.source import ModelSource
from bitnet_edge.exporters.sources.ternary_codes import packed_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GEOMETRIES", "SyntheticCheckpoint", "geometry", "load_synthetic"]


def geometry(
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    vocab: int,
    context_length: int,
    rope_theta: float = 500000.0,
) -> BitNetConfig:
    """Return a BitNet b1.58 configuration: relu2, sub-norms, no biases, tied bf16 head."""
    return BitNetConfig(
        architecture=BITNET,
        layout=Layout.MULTIPLY,
        dense_modules=("lm_head",),
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        context_length=context_length,
        eps=1e-5,
        activation="relu2",
        rope=Rope(rope_theta),
        tied=True,
        attention_bias=False,
        mlp_bias=False,
        sub_norms=True,
        linear_norm_eps=None,
        bos_id=-1,
        eos_ids=(),  # a measurement must not end early
    )


GEOMETRIES: dict[str, BitNetConfig] = {
    # microsoft/bitnet-b1.58-2B-4T, as its config.json says
    "bitnet-2b-4t": geometry(
        layers=30,
        hidden=2560,
        heads=20,
        kv_heads=5,
        head_dim=128,
        intermediate=6912,
        vocab=128256,
        context_length=4096,
    ),
    "100m-class": geometry(
        layers=12,
        hidden=768,
        heads=12,
        kv_heads=12,
        head_dim=64,
        intermediate=2048,
        vocab=32000,
        context_length=2048,
    ),
    "20m-class": geometry(
        layers=8,
        hidden=512,
        heads=8,
        kv_heads=8,
        head_dim=64,
        intermediate=1536,
        vocab=8192,
        context_length=2048,
    ),
    # the size of a wearable's model
    "sensor-1m": geometry(
        layers=5,
        hidden=128,
        heads=4,
        kv_heads=4,
        head_dim=32,
        intermediate=384,
        vocab=1024,
        context_length=512,
    ),
}


def load_synthetic(name: str, config: BitNetConfig | None = None, seed: int = 0) -> ModelSource:
    """Return a model of a geometry.

    Parameters
    ----------
    name : str
        A key of `GEOMETRIES`, or any name when ``config`` is given.
    config : BitNetConfig, optional
    seed : int
        0 .. 2^64 - 1.

    Returns
    -------
    ModelSource
        Without a tokenizer.

    Raises
    ------
    ArgumentError
        For an unknown geometry or a seed out of range.
    """
    config = config or GEOMETRIES.get(name)
    if config is None:
        raise ArgumentError(f"[synth] expected a geometry of {', '.join(GEOMETRIES)}, got {name!r}")
    if not 0 <= seed < 1 << 64:
        raise ArgumentError(f"[synth] expected a seed 0 .. 2^64 - 1, got {seed}")
    builder = GraphBuilder(config, SyntheticCheckpoint(name, config, seed))
    graph = builder.build(name)
    info = replace(graph.info, notes=(f"made-up weights, seed {seed}",))
    return ModelSource(replace(graph, info=info), builder.weights)


class SyntheticCheckpoint(Checkpoint):
    """A packed checkpoint (two bits a weight) that exists only as far as it is read.

    Ternary weights are -1, 0, 0 or +1 with equal chances; their scale, sqrt(2 / k), keeps the
    variance of what passes through. The rows of the embedding are windows on one random sequence,
    a few elements apart: all different, and no 657 MB to make or to hold.
    """

    def __init__(self, name: str, config: BitNetConfig, seed: int) -> None:
        super().__init__(Path(name), {})
        self._seed = seed
        self._infos = dict(_tensors(config))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def info(self, name: str) -> TensorInfo:
        """See `SafetensorsFile.info`."""
        return self._infos[name]

    def array(self, name: str) -> NDArray[Any]:
        """Make a tensor."""
        dtype, shape = self._infos[name]
        if dtype == "U8":
            return _packed_codes(self._generator(name), shape)
        if dtype == "BF16":
            return _windows(self._generator(name), shape)
        if name.endswith(".weight_scale"):
            k = self._infos[name.removesuffix("_scale")].shape[1]
            return np.full(shape, math.sqrt(2 / k), np.float32)
        return self._generator(name).normal(1.0, 0.02, shape).astype(np.float32)

    def row_blocks(
        self, name: str, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """See `SafetensorsFile.row_blocks`."""
        rows = self.array(name)
        step = max(1, block_bytes // max(1, rows[:1].nbytes))
        for first in range(0, len(rows), step):
            yield first, rows[first : first + step]

    def release(self, name: str) -> None:
        """Do nothing: no pages are held."""

    def _generator(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def _packed_codes(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return four codes a byte, each the number of ones in two random bits: 0, 1, 1 or 2."""
    bits = np.frombuffer(generator.bytes(math.prod(shape)), np.uint8).reshape(shape)
    codes: NDArray[np.uint8] = (bits & np.uint8(0x55)) + (bits >> np.uint8(1) & np.uint8(0x55))
    return codes


def _windows(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return bf16 bits whose rows overlap in memory."""
    step = 7
    rows, width = shape
    sequence = generator.normal(size=(rows - 1) * step + width).astype(np.float32)
    bits = (sequence.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return np.lib.stride_tricks.sliding_window_view(bits, width)[::step]


def _tensors(config: BitNetConfig) -> Iterator[tuple[str, TensorInfo]]:
    """Yield what transformers' packed BitNet checkpoints hold."""
    hidden, ffn = config.hidden, config.intermediate
    width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield "model.embed_tokens.weight", TensorInfo("BF16", (config.vocab, hidden))
    yield "model.norm.weight", TensorInfo("F32", (hidden,))
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for name, size in (
            ("input_layernorm", hidden),
            ("self_attn.attn_sub_norm", width),
            ("post_attention_layernorm", hidden),
            ("mlp.ffn_sub_norm", ffn),
        ):
            yield f"{prefix}{name}.weight", TensorInfo("F32", (size,))
        for name, rows, k in (
            ("self_attn.q_proj", width, hidden),
            ("self_attn.k_proj", kv_width, hidden),
            ("self_attn.v_proj", kv_width, hidden),
            ("self_attn.o_proj", hidden, width),
            ("mlp.gate_proj", ffn, hidden),
            ("mlp.up_proj", ffn, hidden),
            ("mlp.down_proj", hidden, ffn),
        ):
            yield f"{prefix}{name}.weight", TensorInfo("U8", (packed_rows(rows), k))
            yield f"{prefix}{name}.weight_scale", TensorInfo("F32", (1,))
