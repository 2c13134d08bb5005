# SPDX-License-Identifier: MIT
"""A synthetic model as GGUF, for llama.cpp: TQ2_0 weights, a Q6_K embedding that is also the head.

llama.cpp knows the architecture (``bitnet``: sub-norms, tied head); its feed-forward activation is
SiLU where ours is relu2, which changes no multiply-add. The blocks are random bytes with sane
scales: speed does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bitnet_edge._numpy import np
from bitnet_edge.errors import MissingDependency
from bitnet_edge.exporters.sources.huggingface_config import BitNetConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["write_gguf"]

_BLOCK = 256  # weights of a block of either type
_TQ2_BYTES = 66  # 64 of codes, f16 scale
_Q6K_BYTES = 210  # 128 + 64 of codes, 16 of scales, f16 scale
_CHUNK_ROWS = 4096


def write_gguf(path: Path, name: str, config: BitNetConfig) -> None:
    """Write a model of a geometry.

    Raises
    ------
    MissingDependency
        When the package ``gguf`` is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency(
            "[bench] comparing with llama.cpp needs gguf and llama-cpp-python: pip install "
            "'bitnet-edge[bench]'"
        ) from error
    writer = gguf.GGUFWriter(path, "bitnet")
    writer.add_name(name)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_vocab_size(config.vocab)
    writer.add_tokenizer_model("no_vocab")
    kinds = gguf.GGMLQuantizationType
    tensors = list(_tensors(config))
    for tensor, shape in tensors:
        kind = kinds.F32
        if len(shape) == 2:
            kind = kinds.Q6_K if tensor == "token_embd.weight" else kinds.TQ2_0
        stored = shape if kind is kinds.F32 else (shape[0], shape[1] // _BLOCK * _bytes(tensor))
        size = stored[0] * (4 if kind is kinds.F32 else stored[1])
        dtype = np.dtype(np.float32 if kind is kinds.F32 else np.uint8)
        writer.add_tensor_info(f"{tensor}", stored, dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    for tensor, shape in tensors:
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            writer.write_tensor_data(_blocks(generator, tensor, shape))
    writer.close()


def _bytes(tensor: str) -> int:
    return _Q6K_BYTES if tensor == "token_embd.weight" else _TQ2_BYTES


def _blocks(
    generator: np.random.Generator, tensor: str, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Return random blocks; the scales, f16, stand last in both types."""
    size, count = _bytes(tensor), shape[0] * shape[1] // _BLOCK
    blocks = np.frombuffer(bytearray(generator.bytes(count * size)), np.uint8).reshape(count, size)
    if size == _TQ2_BYTES:
        low, high = blocks & np.uint8(0x55), blocks >> np.uint8(1) & np.uint8(0x55)
        blocks = low + high  # codes 0, 1, 1, 2
    scale = 0.02 if size == _TQ2_BYTES else 1e-4
    blocks[:, -2:] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(shape[0], -1)


def _tensors(config: BitNetConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn = config.hidden, config.intermediate
    width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    yield "token_embd.weight", (config.vocab, hidden)
    yield "output_norm.weight", (hidden,)
    for layer in range(config.layers):
        for name, shape in (
            ("attn_norm", (hidden,)),
            ("attn_sub_norm", (width,)),
            ("attn_q", (width, hidden)),
            ("attn_k", (kv_width, hidden)),
            ("attn_v", (kv_width, hidden)),
            ("attn_output", (hidden, width)),
            ("ffn_norm", (hidden,)),
            ("ffn_sub_norm", (ffn,)),
            ("ffn_gate", (ffn, hidden)),
            ("ffn_up", (ffn, hidden)),
            ("ffn_down", (hidden, ffn)),
        ):
            yield f"blk.{layer}.{name}.weight", shape
