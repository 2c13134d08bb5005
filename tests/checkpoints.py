# SPDX-License-Identifier: MIT
"""Small seeded BitNet checkpoints as transformers would save them, written without torch.

One seed is one model: master weights depend on the seed and the tensor's name only, so the layouts
of the same arguments hold the same ternary weights, with scales that differ by their rounding to
the stored dtype.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_edge.exporters.sources.safetensors_file import SafetensorsFile

__all__ = ["decode", "edit_checkpoint", "encode", "write_checkpoint", "write_safetensors"]

LAYOUTS = {
    "online": ("autobitlinear", "online"),
    "packed": ("autobitlinear", "offline"),
    "packed-bitlinear": ("bitlinear", "offline"),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bitnet": {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet"},
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "1bitllm": {
        "architectures": ["BitnetForCausalLM"],
        "model_type": "llama",
        "weight_bits": 1,
        "input_bits": 8,
    },
}
SUB_NORMS = {
    "bitnet": ("attn_sub_norm", "ffn_sub_norm"),
    "1bitllm": ("inner_attn_ln", "ffn_layernorm"),
}
_BLOCK = 1 << 20  # larger tensors repeat a random block: fast to make, and nothing here minds


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 to what safetensors stores as BF16 (its bits, rounded half to even), F16 or F32."""
    if dtype != "BF16":
        return values.astype({"F16": np.float16, "F32": np.float32}[dtype])
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Undo `encode`, exactly."""
    if dtype != "BF16":
        return stored.astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...], np.ndarray | Callable[[], np.ndarray]]],
) -> None:
    """Write tensors given as (dtype, shape, values or a function that makes them) one by one."""
    sizes = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, _) in tensors.items():
        end = position + int(np.prod(shape, dtype=object)) * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for dtype, shape, values in tensors.values():
            array = values() if callable(values) else values
            assert array.shape == shape and array.itemsize == sizes[dtype]
            file.write(np.ascontiguousarray(array).data)


def write_checkpoint(
    directory: Path,
    *,
    layout: str = "online",
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 96,
    vocab: int = 128,
    tied: bool = True,
    biases: bool = False,
    act: str = "relu2",
    dtype: str = "BF16",
    shards: int = 1,
    seed: int = 0,
    family: str = "bitnet",
    linear_norms: bool = False,
    config: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``config.json`` and the weights into ``directory`` and return it.

    ``layout`` is a key of `LAYOUTS`, ``dtype`` one of BF16, F16, F32; ``biases`` gives q, k, v and
    o theirs; ``family`` is a key of `FAMILIES`, ``linear_norms`` puts an RMSNorm before every
    ternary linear; ``config`` and ``quantization`` override keys of config.json (a value of ``...``
    removes the key). There is no tokenizer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    width = heads * (head_dim or hidden // heads)
    kv_width = kv_heads * (head_dim or hidden // heads)
    linear_class, mode = LAYOUTS[layout]
    settings = {
        **FAMILIES[family],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": act,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": tied,
        "attention_bias": biases,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        **({"head_dim": head_dim} if head_dim else {}),
        "quantization_config": _override(
            {
                "quant_method": "bitnet",
                "linear_class": linear_class,
                "quantization_mode": mode,
                "modules_to_not_convert": None,
                **({"use_rms_norm": True, "rms_norm_eps": 1e-6} if linear_norms else {}),
            },
            quantization,
        ),
    }
    text = json.dumps(_override(settings, config), indent=2)
    (directory / "config.json").write_text(text)

    tensors: dict[str, tuple[str, tuple[int, ...], Any]] = {}

    def random(name: str, shape: tuple[int, ...], scale: float, offset: float = 0.0) -> Any:
        # other names of the same tensors are the same model
        for other, usual in zip(SUB_NORMS["1bitllm"], SUB_NORMS["bitnet"], strict=True):
            name = name.replace(other, usual)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        count = int(np.prod(shape))
        block = rng.standard_normal(min(count, _BLOCK), np.float32) * np.float32(scale)
        return encode(np.resize(block + np.float32(offset), shape), dtype)

    def floats(name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> None:
        tensors[name] = (dtype, shape, lambda: random(name, shape, scale, offset))

    def linear(module: str, rows: int, k: int, bias: bool) -> None:
        name = f"{module}.weight"
        if linear_norms:
            floats(f"{module}.rms_norm.weight", k, scale=0.1, offset=1.0)
        if layout == "online":
            floats(name, rows, k, scale=0.05)
        else:
            codes, mean = _ternarise(decode(random(name, (rows, k), 0.05), dtype))
            packed = np.zeros((-(-rows // 4), k), np.uint8)
            for i in range(4):
                part = codes[i * len(packed) : (i + 1) * len(packed)]
                packed[: len(part)] |= part << 2 * i
            tensors[name] = ("U8", packed.shape, packed)
            scale = mean if layout == "packed" else 1 / mean
            tensors[f"{module}.weight_scale"] = (dtype, (1,), encode(scale.reshape(1), dtype))
        if bias:
            floats(f"{module}.bias", rows, scale=0.5)

    attention_norm, ffn_norm = SUB_NORMS["1bitllm" if family == "1bitllm" else "bitnet"]
    floats("model.embed_tokens.weight", vocab, hidden)
    for index in range(layers):
        layer = f"model.layers.{index}"
        floats(f"{layer}.input_layernorm.weight", hidden, scale=0.1, offset=1.0)
        linear(f"{layer}.self_attn.q_proj", width, hidden, biases)
        linear(f"{layer}.self_attn.k_proj", kv_width, hidden, biases)
        linear(f"{layer}.self_attn.v_proj", kv_width, hidden, biases)
        if family != "llama":
            floats(f"{layer}.self_attn.{attention_norm}.weight", width, scale=0.1, offset=1.0)
        linear(f"{layer}.self_attn.o_proj", hidden, width, biases)
        floats(f"{layer}.post_attention_layernorm.weight", hidden, scale=0.1, offset=1.0)
        linear(f"{layer}.mlp.gate_proj", ffn, hidden, False)
        linear(f"{layer}.mlp.up_proj", ffn, hidden, False)
        if family != "llama":
            floats(f"{layer}.mlp.{ffn_norm}.weight", ffn, scale=0.1, offset=1.0)
        linear(f"{layer}.mlp.down_proj", hidden, ffn, False)
    floats("model.norm.weight", hidden, scale=0.1, offset=1.0)
    if not tied:
        floats("lm_head.weight", vocab, hidden)
    _write_shards(directory, tensors, shards)
    return directory


def edit_checkpoint(directory: Path, change: Callable[[dict], object]) -> Path:
    """Rewrite model.safetensors after ``change`` of its {name: (dtype, shape, values)}."""
    path = directory / "model.safetensors"
    file = SafetensorsFile(path)
    tensors = {name: (*file.info(name), file.array(name).copy()) for name in file.names}
    change(tensors)
    path.unlink()  # whoever still maps the old file keeps it
    write_safetensors(path, tensors)
    return directory


def _override(settings: dict[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        key: value for key, value in {**settings, **(changes or {})}.items() if value is not ...
    }


def _ternarise(weights: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Codes 0, 1, 2 in uint8, and mean|W|; ``integrations/bitnet.py``'s formula."""
    mean = max(np.float32(np.abs(weights).mean(dtype=np.float64)), np.float32(1e-5))
    codes = np.clip(np.rint(weights * (np.float32(1) / mean)), -1, 1) + 1
    return codes.astype(np.uint8), mean


def _write_shards(directory: Path, tensors: dict[str, Any], shards: int) -> None:
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return
    names, weight_map = list(tensors), {}
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        write_safetensors(directory / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
