# SPDX-License-Identifier: MIT
"""Hugging Face BitNet checkpoints: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from bitnet_edge.dtypes import DType
from bitnet_edge.errors import (
    MissingTensor,
    ModelError,
)
from bitnet_edge.exporters.sources.huggingface import load_huggingface
from bitnet_edge.exporters.sources.rope import Rope, inverse_frequencies
from bitnet_edge.exporters.sources.safetensors_file import SafetensorsFile
from bitnet_edge.exporters.sources.source import ModelSource
from bitnet_edge.graph import CONTEXT, Graph, Kind
from bitnet_edge.reference import ReferenceModel
from tests.checkpoints import decode, edit_checkpoint, encode, write_checkpoint
from tests.conftest import LAYOUTS, ROOT, checkpoint

GATE = "model.layers.1.mlp.gate_proj"
OFFLINE = ("packed", "packed-bitlinear")


def scales(source: ModelSource) -> dict[str, float]:
    return {
        node.name: node.attributes["scale"]
        for node in source.graph.nodes
        if node.op == "ternary_linear"
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, ModelSource]:
    return {layout: load_huggingface(checkpoint(layout)) for layout in LAYOUTS}


# -- the real model -------------------------------------------------------------------------


def test_layouts_hold_the_same_codes(golden):
    for name in scales(golden["bf16"]):
        codes = [golden[layout].weights.load(name) for layout in LAYOUTS]
        assert codes[0].dtype == np.int8
        assert set(np.unique(codes[0])) == {-1, 0, 1}
        for other in codes[1:]:
            np.testing.assert_array_equal(codes[0], other)


def test_scales_are_what_each_layout_says(golden):
    """Stored in bf16 they are within half a unit of its 8 bits; all of them multiply."""
    online = scales(golden["bf16"])
    for layout, stored in (("packed", 1), ("packed-bitlinear", -1)):
        file = SafetensorsFile(checkpoint(layout) / "model.safetensors")
        for name, scale in scales(golden[layout]).items():
            layer, proj = name.rsplit(".", 1)
            block = "self_attn" if proj[0] in "qkvo" else "mlp"
            bits = file.array(f"model.{layer}.{block}.{proj}.weight_scale")
            value = decode(bits, "BF16")[0]
            assert scale == (value if stored == 1 else np.float32(1) / value)
            assert scale == pytest.approx(online[name], rel=2**-8)
            assert scale == np.float32(scale)


def test_online_scales_equal_torchs_to_two_units(golden):
    """1 / (1 / mean|W|) of layer 0 by torch 2.13, one thread (its mean varies with threads)."""
    torch = {
        "q_proj": "0x1.e2f5680000000p-5",
        "k_proj": "0x1.d493ca0000000p-5",
        "v_proj": "0x1.4feb640000000p-5",
        "o_proj": "0x1.55a1cc0000000p-5",
        "gate_proj": "0x1.69dfc20000000p-5",
        "up_proj": "0x1.57f8400000000p-5",
        "down_proj": "0x1.7d0ab00000000p-5",
    }
    ours = scales(golden["bf16"])
    for name, expected in torch.items():
        pair = np.array([ours[f"layers.0.{name}"], float.fromhex(expected)], np.float32)
        np.testing.assert_array_max_ulp(pair[0], pair[1], maxulp=2)


def test_codes_equal_the_formula(golden):
    file = SafetensorsFile(checkpoint("bf16") / "model.safetensors")
    weights = decode(file.array("model.layers.3.mlp.down_proj.weight"), "BF16")
    scale = np.float32(1) / np.float32(np.abs(weights).mean(dtype=np.float64))
    expected = np.clip(np.rint(weights * scale), -1, 1)
    np.testing.assert_array_equal(golden["bf16"].weights.load("layers.3.down_proj"), expected)


def test_graph_of_the_real_model(golden):
    source = golden["packed"]
    graph = source.graph
    assert (graph.inputs, graph.outputs) == (("ids",), ("logits",))
    info = graph.info
    assert (info.name, info.architecture) == ("packed", "BitNetForCausalLM")
    assert (info.context_length, info.vocab_size, info.bos_id) == (512, 2048, 0)
    assert info.eos_ids == (1,)
    assert info.notes == (
        "ternary scales: stored, they multiply (autobitlinear offline)",
        "activation: relu2 (hidden_act)",
        "rotary embedding: theta 10000",
    )
    assert source.tokenizer
    assert [node.name for node in graph.nodes][:16] == [
        "embed_tokens",
        "layers.0.input_norm",
        "layers.0.q_proj",
        "layers.0.k_proj",
        "layers.0.v_proj",
        "layers.0.attention",
        "layers.0.attn_sub_norm",
        "layers.0.o_proj",
        "layers.0.attention_add",
        "layers.0.post_attention_norm",
        "layers.0.gate_proj",
        "layers.0.up_proj",
        "layers.0.activation",
        "layers.0.ffn_sub_norm",
        "layers.0.down_proj",
        "layers.0.mlp_add",
    ]
    assert [node.name for node in graph.nodes][-2:] == ["final_norm", "lm_head"]
    assert len(graph.nodes) == 3 + 6 * 15
    assert graph.nodes[-1].inputs == ("normed", "embed_tokens", "")
    assert [t.name for t in graph.states()][:2] == ["layers.0.k_cache", "layers.0.v_cache"]
    assert graph.states()[0].shape == (2, CONTEXT, 32)
    attention = dict(graph.nodes[5].attributes)
    assert attention == {
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "scale": 32**-0.5,
        "rope_scale": 1.0,
    }
    assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_constant_loads_as_the_contract_says(golden, layout):
    source = golden[layout]
    kinds = {DType.F32: np.float32, DType.BF16: np.uint16, DType.TERNARY: np.int8}
    constants = source.graph.constants()
    assert len(constants) == sum(t.kind is Kind.CONSTANT for t in source.graph.tensors.values())
    for tensor in constants:
        values = source.weights.load(tensor.name)
        assert values.shape == tensor.shape, tensor.name
        assert values.dtype == kinds[tensor.dtype], tensor.name
    with pytest.raises(MissingTensor, match="no constant 'nothing'"):
        source.weights.load("nothing")


def test_inverse_frequencies_equal_torchs():
    """Checksums of the float32 bytes by torch 2.13, ATEN_CPU_CAPABILITY=default."""
    expected = {
        (10000.0, 32): 0x617AACD4,
        (10000.0, 100): 0x96831694,
        (500000.0, 128): 0x15662B31,
        (1000000.0, 64): 0x1E8DE795,
        (16777217.0, 128): 0x5C7ADEB0,  # theta itself is rounded to float32
    }
    for (theta, head_dim), checksum in expected.items():
        assert zlib.crc32(inverse_frequencies(Rope(theta), head_dim).tobytes()) == checksum


# rope_parameters, the bits of rotary_emb.inv_freq in transformers 5.23.0 (head_dim 16, torch 2.13,
# ATEN_CPU_CAPABILITY=default) and its attention_scaling.
SCALED_ROPES = {
    "linear": (
        {"factor": 4.0},
        [0x3E800000, 0x3DA1E89B, 0x3CCCCCCD, 0x3C0186E3]
        + [0x3B23D70A, 0x3A4F3E38, 0x3983126F, 0x38A5CB60],
        1.0,
    ),
    "llama3": (
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        [0x3F800000, 0x3E7A3FF4, 0x3C55AF30, 0x3B8186E3]
        + [0x3AA3D70A, 0x39CF3E38, 0x3903126F, 0x3825CB60],
        1.0,
    ),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 64},
        [0x3F800000, 0x3E72DCE8, 0x3D4CCCCC, 0x3C0186E3]
        + [0x3B23D70A, 0x3A4F3E38, 0x3983126F, 0x38A5CB60],
        1.138629436111989,
    ),
    "yarn, all settings": (
        {
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 0.9,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        [0x3F800000, 0x3E180DD4, 0x3CCCCCCD, 0x3C0186E3]
        + [0x3B23D70A, 0x3A4F3E38, 0x3983126F, 0x38A5CB60],
        0.9,
    ),
}


@pytest.mark.parametrize("case", SCALED_ROPES)
@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_scaled_ropes_equal_transformers(case, family, tmp_path):
    settings, bits, scale = SCALED_ROPES[case]
    kind = case.split(",")[0]
    rope = {"rope_type": kind, "rope_theta": 10000.0, **settings}
    write_checkpoint(tmp_path, family=family, act="silu", config={"rope_parameters": rope})
    source = load_huggingface(tmp_path)
    assert source.weights.load("rope.inv_freq").view(np.uint32).tolist() == bits
    attention = [node for node in source.graph.nodes if node.op == "attention"]
    assert {node.attributes["rope_scale"] for node in attention} == {scale}
    assert f"{kind} scaling by" in source.graph.info.notes[2]


def test_yarn_with_an_empty_ramp():
    rope = Rope(10000.0, "yarn", 4.0, 6, 1.0, 32.0)  # every dimension turns less than once
    expected = inverse_frequencies(Rope(10000.0), 16) / np.float32(4)
    np.testing.assert_array_equal(inverse_frequencies(rope, 16)[1:], expected[1:])


def test_1bitllm_checkpoints_are_online_ones_under_other_names(tmp_path):
    """Same master weights as the "silu" variant: the same logits as transformers'."""
    write_checkpoint(
        tmp_path, family="1bitllm", act="silu", seed=1, config={"quantization_config": ...}
    )
    source = load_huggingface(tmp_path)
    assert source.graph.info.architecture == "BitnetForCausalLM"
    logits = ReferenceModel(source).run({"ids": np.array(IDS, np.int32)})["logits"]
    np.testing.assert_allclose(logits[-1, :8], EXPECTED["silu", "online"], rtol=0, atol=0.1)


# -- variants, against transformers ---------------------------------------------------------

VARIANTS = {
    "no grouping": {"kv_heads": 4},
    "one kv head": {"heads": 8, "kv_heads": 1, "hidden": 128},
    "untied": {"tied": False},
    "biases": {"biases": True},
    "silu": {"act": "silu"},
    "f16": {"dtype": "F16"},
    "f32": {"dtype": "F32"},
    "sharded": {"shards": 3, "tied": False, "biases": True, "act": "silu", "kv_heads": 1},
    "head_dim": {"heads": 2, "kv_heads": 1, "head_dim": 32},
    "dense modules": {
        "quantization": {"modules_to_not_convert": ["lm_head", "model.layers.1.mlp", "o_proj"]},
        "biases": True,
    },
    "llama": {"family": "llama", "act": "silu"},
    "llama untied": {"family": "llama", "act": "silu", "tied": False, "kv_heads": 1},
    "llama with linear norms": {"family": "llama", "act": "silu", "linear_norms": True},
}
IDS = (3, 14, 15, 92, 65, 35, 89, 79)
# logits[-1, :8] of transformers 5.23.0 in float32, loaded as tests/golden/make_reference.py does,
# on write_checkpoint(layout=layout, seed=1, **VARIANTS[variant]) and IDS. A wrong scale, bias,
# grouping or activation moves them by more than 1; an int8 rounding flipped by the order of a sum,
# by less than 0.1.
EXPECTED = {
    ("no grouping", "online"): [1.73, 9.92, 1.55, -2.36, 2.34, -8.52, 1.05, 11.15],
    ("no grouping", "packed"): [1.71, 9.92, 1.54, -2.4, 2.31, -8.5, 1.03, 11.17],
    ("no grouping", "packed-bitlinear"): [1.73, 9.91, 1.61, -2.32, 2.32, -8.57, 0.97, 11.17],
    ("one kv head", "online"): [8.02, -6.95, -3.83, 18.93, -10.66, -23.6, 3.86, -0.74],
    ("one kv head", "packed"): [8.05, -6.89, -3.83, 19.0, -10.74, -23.63, 3.79, -0.72],
    ("one kv head", "packed-bitlinear"): [8.07, -6.86, -3.88, 19.0, -10.71, -23.76, 3.93, -0.62],
    ("untied", "online"): [1.05, 3.72, 2.1, 10.42, 12.04, 5.45, -2.84, -8.23],
    ("untied", "packed"): [1.11, 3.65, 1.94, 10.43, 12.08, 5.53, -2.87, -8.21],
    ("untied", "packed-bitlinear"): [1.04, 3.71, 2.11, 10.43, 11.99, 5.43, -2.8, -8.24],
    ("biases", "online"): [-0.29, 3.5, 1.58, 0.23, 1.68, 0.8, -7.03, 12.13],
    ("biases", "packed"): [-0.41, 8.12, 4.45, -5.4, -3.16, 4.73, 0.34, 8.88],
    ("biases", "packed-bitlinear"): [-0.26, 3.46, 1.58, 0.29, 1.69, 0.8, -6.99, 12.14],
    ("silu", "online"): [2.87, 9.37, 5.6, -4.76, -6.08, 9.08, 2.17, 12.9],
    ("silu", "packed"): [2.91, 9.4, 5.63, -4.79, -6.17, 9.03, 2.07, 12.99],
    ("silu", "packed-bitlinear"): [2.88, 9.44, 5.61, -4.76, -6.1, 9.05, 2.17, 12.89],
    ("f16", "online"): [-0.55, 6.7, 4.63, -6.24, -2.61, 5.16, 0.71, 9.22],
    ("f16", "packed"): [-0.55, 6.7, 4.63, -6.24, -2.61, 5.16, 0.71, 9.22],
    ("f16", "packed-bitlinear"): [-0.55, 6.7, 4.63, -6.24, -2.61, 5.16, 0.71, 9.22],
    ("f32", "online"): [-0.54, 6.77, 4.62, -6.16, -2.62, 5.06, 0.65, 9.11],
    ("f32", "packed"): [-0.54, 6.77, 4.62, -6.16, -2.62, 5.06, 0.65, 9.11],
    ("f32", "packed-bitlinear"): [-0.54, 6.77, 4.62, -6.16, -2.62, 5.06, 0.65, 9.11],
    ("sharded", "online"): [11.36, 1.85, -5.74, 10.17, 14.42, 16.95, -4.3, -6.74],
    ("sharded", "packed"): [6.71, 0.7, -6.03, 6.99, 12.38, 5.95, -4.98, -0.88],
    ("sharded", "packed-bitlinear"): [11.36, 1.84, -5.75, 10.19, 14.41, 16.93, -4.32, -6.72],
    ("head_dim", "online"): [-1.27, 5.87, 5.09, -4.9, -1.07, -1.78, -0.02, 9.07],
    ("head_dim", "packed"): [-1.28, 5.88, 5.03, -4.85, -1.0, -1.77, 0.05, 9.14],
    ("head_dim", "packed-bitlinear"): [-1.3, 5.94, 5.11, -4.93, -1.03, -1.77, 0.09, 8.97],
    ("llama", "online"): [0.66, 5.5, 2.5, -7.23, -7.23, -1.61, 2.23, 7.29],
    ("llama", "packed"): [0.66, 5.5, 2.5, -7.23, -7.23, -1.62, 2.23, 7.29],
    ("llama", "packed-bitlinear"): [0.66, 5.5, 2.5, -7.23, -7.23, -1.61, 2.23, 7.29],
    ("llama untied", "online"): [3.62, 6.27, -2.07, 10.74, 15.62, 6.84, -4.23, -5.31],
    ("llama untied", "packed"): [3.62, 6.27, -2.07, 10.74, 15.62, 6.85, -4.23, -5.31],
    ("llama untied", "packed-bitlinear"): [3.62, 6.27, -2.07, 10.74, 15.62, 6.84, -4.23, -5.31],
    ("llama with linear norms", "online"): [2.5, 9.15, 5.74, -4.89, -5.25, 8.76, 2.13, 14.21],
    ("llama with linear norms", "packed"): [2.47, 9.15, 5.75, -4.94, -5.27, 8.74, 2.05, 14.24],
    ("llama with linear norms", "packed-bitlinear"): [
        *(2.51, 9.13, 5.77, -4.96, -5.28, 8.74, 2.09, 14.17),
    ],
    ("dense modules", "online"): [3.39, 5.83, 1.78, 2.84, 5.98, 1.62, -0.21, 6.93],
}


@pytest.mark.parametrize(("variant", "layout"), EXPECTED)
def test_variants_equal_transformers(variant, layout, tmp_path):
    write_checkpoint(tmp_path, layout=layout, seed=1, **VARIANTS[variant])
    model = ReferenceModel(load_huggingface(tmp_path))
    logits = model.run({"ids": np.array(IDS, np.int32)})["logits"]
    np.testing.assert_allclose(logits[-1, :8], EXPECTED[variant, layout], rtol=0, atol=0.1)


@pytest.mark.parametrize("layout", ["online", *OFFLINE])
def test_rows_that_are_no_multiple_of_four(layout, tmp_path):
    shape = {"hidden": 30, "heads": 3, "kv_heads": 1, "ffn": 41, "vocab": 7}
    source = load_huggingface(write_checkpoint(tmp_path / layout, layout=layout, **shape))
    online = load_huggingface(write_checkpoint(tmp_path / "same", layout="online", **shape))
    for name in scales(source):
        codes = source.weights.load(name)
        np.testing.assert_array_equal(codes, online.weights.load(name))
    assert codes.shape == (30, 41)


def test_dense_modules_keep_their_floats(tmp_path):
    write_checkpoint(tmp_path, **VARIANTS["dense modules"])
    source = load_huggingface(tmp_path)
    ops = {node.name: node.op for node in source.graph.nodes}
    assert ops["layers.1.gate_proj"] == ops["layers.0.o_proj"] == "linear"
    assert ops["layers.0.gate_proj"] == ops["layers.1.q_proj"] == "ternary_linear"
    assert source.graph.tensors["layers.1.gate_proj"].dtype is DType.BF16
    expected = SafetensorsFile(tmp_path / "model.safetensors").array(f"{GATE}.weight")
    np.testing.assert_array_equal(source.weights.load("layers.1.gate_proj"), expected)


def test_codes_saved_as_floats(tmp_path):
    """What transformers writes when it has loaded an autobitlinear offline checkpoint."""
    write_checkpoint(tmp_path / "packed", layout="packed")
    expected = load_huggingface(tmp_path / "packed")
    shutil.copytree(tmp_path / "packed", tmp_path / "floats")

    def unpacked(tensors: dict) -> None:
        name = f"{GATE}.weight"
        codes = expected.weights.load("layers.1.gate_proj").astype(np.float32)
        tensors[name] = ("BF16", codes.shape, encode(codes, "BF16"))

    source = load_huggingface(edit_checkpoint(tmp_path / "floats", unpacked))
    codes = source.weights.load("layers.1.gate_proj")
    np.testing.assert_array_equal(codes, expected.weights.load("layers.1.gate_proj"))
    assert scales(source) == scales(expected)


def test_mlp_biases(tmp_path):
    def add(tensors: dict) -> None:
        tensors[f"{GATE}.bias"] = ("BF16", (96,), encode(np.ones(96, np.float32), "BF16"))

    source = load_huggingface(edit_checkpoint(write_checkpoint(tmp_path, layout="packed"), add))
    assert "layers.1.gate_proj.bias" in source.graph.tensors
    assert "layers.0.gate_proj.bias" not in source.graph.tensors
    # AutoBitLinear offline scales its bias too
    expected = np.float32(scales(source)["layers.1.gate_proj"])
    assert set(source.weights.load("layers.1.gate_proj.bias")) == {expected}


def test_older_names_of_the_sub_norms_and_the_buffers_of_old_files(tmp_path):
    def rename(tensors: dict) -> None:
        for name in list(tensors):
            new = name.replace("attn_sub_norm", "inner_attn_ln")
            tensors[new.replace("ffn_sub_norm", "ffn_layernorm")] = tensors.pop(name)
        buffer = np.ones(8, np.float32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (8,), buffer)

    write_checkpoint(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    new, old = (
        load_huggingface(tmp_path / "new"),
        load_huggingface(edit_checkpoint(tmp_path / "old", rename)),
    )
    assert new.graph.nodes == old.graph.nodes
    for name in ("layers.1.attn_sub_norm", "layers.0.ffn_sub_norm"):
        np.testing.assert_array_equal(new.weights.load(name), old.weights.load(name))


def test_a_tied_head_stored_twice(tmp_path):
    def copy(tensors: dict) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    source = load_huggingface(edit_checkpoint(write_checkpoint(tmp_path), copy))
    assert "lm_head" not in source.graph.tensors

    def differ(tensors: dict) -> None:
        dtype, shape, values = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = (dtype, shape, values + 1)

    with pytest.raises(ModelError, match=r"is true, but 'lm_head\.weight' differs"):
        load_huggingface(edit_checkpoint(tmp_path, differ))

    def narrow(tensors: dict) -> None:
        values = np.zeros((128, 64), np.float32)
        tensors["lm_head.weight"] = ("F32", values.shape, values)

    with pytest.raises(ModelError, match="tie_word_embeddings is true"):
        load_huggingface(edit_checkpoint(tmp_path, narrow))


def test_code_three_past_the_last_row_is_padding(tmp_path):
    def pad(tensors: dict) -> None:
        tensors[f"{GATE}.weight"][2][-1] |= 0b1100_0000  # row 43 of 41

    source = load_huggingface(
        edit_checkpoint(write_checkpoint(tmp_path, layout="packed", ffn=41), pad)
    )
    assert set(np.unique(source.weights.load("layers.1.gate_proj"))) == {-1, 0, 1}


def test_master_weights_of_zero_and_of_the_largest_size(tmp_path):
    """mean|W| is clamped to 1e-5 from below; nothing overflows on the way to +-1."""

    def fill(tensors: dict) -> None:
        zeros, large = np.zeros((96, 64), np.float32), np.zeros((96, 64), np.float32)
        large[0, :2] = (3e38, -3e38)
        tensors[f"{GATE}.weight"] = ("F32", zeros.shape, zeros)
        tensors["model.layers.1.mlp.up_proj.weight"] = ("F32", large.shape, large)

    source = load_huggingface(edit_checkpoint(write_checkpoint(tmp_path), fill))
    assert scales(source)["layers.1.gate_proj"] == pytest.approx(1e-5, rel=1e-6)
    assert not source.weights.load("layers.1.gate_proj").any()
    codes = source.weights.load("layers.1.up_proj")
    assert codes[0, :2].tolist() == [1, -1]
    assert np.count_nonzero(codes) == 2


def test_scale_without_dimensions(tmp_path):
    def change(tensors: dict) -> None:
        tensors[f"{GATE}.weight_scale"] = ("F32", (), np.float32(0.25).reshape(()))

    source = load_huggingface(
        edit_checkpoint(write_checkpoint(tmp_path, layout="packed-bitlinear"), change)
    )
    assert scales(source)["layers.1.gate_proj"] == 4.0


# -- config.json ----------------------------------------------------------------------------


def test_generation_config_wins(tmp_path):
    write_checkpoint(tmp_path, config={"eos_token_id": [1, 2], "bos_token_id": None})
    info = load_huggingface(tmp_path).graph.info
    assert (info.bos_id, info.eos_ids) == (-1, (1, 2))
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": [5, 9, 5], "bos_token_id": 4}')
    info = load_huggingface(tmp_path).graph.info
    assert (info.bos_id, info.eos_ids) == (4, (5, 9))
    path.write_text('{"eos_token_id": null}')
    assert load_huggingface(tmp_path).graph.info.eos_ids == (1, 2)
    path.write_text('{"eos_token_id": 128}')
    with pytest.raises(ModelError, match=r"below vocab_size 128, got 128 .*generation_config"):
        load_huggingface(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": ..., "rope_theta": 5000.0},
        {"rope_parameters": ..., "rope_theta": 5000, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5000.0},
        {"rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 1.0}},
        {
            "rope_parameters": {"rope_theta": 1.0},
            "rope_scaling": {"type": "default", "rope_theta": 5e3},
        },
    ],
)
def test_spellings_of_rope(config, tmp_path):
    source = load_huggingface(write_checkpoint(tmp_path, config=config))
    expected = inverse_frequencies(Rope(5000.0), 16)
    np.testing.assert_array_equal(source.weights.load("rope.inv_freq"), expected)


def test_defaults_of_quantization_are_bitlinear_offline(tmp_path):
    removed = {"linear_class": ..., "quantization_mode": ...}
    write_checkpoint(tmp_path, layout="packed-bitlinear", quantization=removed)
    source = load_huggingface(tmp_path)
    assert source.graph.info.notes[0] == "ternary scales: stored, they divide (bitlinear)"


def test_null_kv_heads_means_no_grouping(tmp_path):
    write_checkpoint(tmp_path, kv_heads=4, config={"num_key_value_heads": None})
    assert load_huggingface(tmp_path).graph.states()[0].shape == (4, CONTEXT, 16)


def test_name_of_a_hub_cache(tmp_path):
    path = tmp_path / "models--microsoft--bitnet-b1.58-2B-4T" / "snapshots" / "04c3b9ad"
    assert load_huggingface(write_checkpoint(path)).graph.info.name == "bitnet-b1.58-2B-4T"


# -- memory ---------------------------------------------------------------------------------

_IMPORT = """
import sys, threading
from pathlib import Path
from bitnet_edge.exporters.sources.huggingface import load_huggingface
from bitnet_edge.packing import pack_p16

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

def resident(field):  # VmHWM is the kernel's own record of the peak, file pages included
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

start_private, start_resident = private(), resident("VmRSS")
peak, done = start_private, threading.Event()

def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, private())

thread = threading.Thread(target=watch)
thread.start()
source = load_huggingface(Path(sys.argv[1]))
for tensor in source.graph.constants():
    values = source.weights.load(tensor.name)
    values.max()
done.set()
thread.join()
print(max(peak, private()) - start_private, resident("VmHWM") - start_resident)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps")
def test_a_large_checkpoint_is_never_in_memory(tmp_path, capsys):
    write_checkpoint(
        tmp_path,
        hidden=2048,
        layers=6,
        heads=16,
        kv_heads=4,
        ffn=5632,
        vocab=16384,
        shards=3,
    )
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size > 600e6
    result = subprocess.run(
        [sys.executable, "-c", _IMPORT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    private, resident = (int(kilobytes) / 1024 for kilobytes in result.stdout.split())
    with capsys.disabled():
        print(
            f"\n  importing {size / 1e6:.0f} MB: private memory grew by {private:.0f} MiB at most, "
            f"resident memory by {resident:.0f} MiB"
        )
    assert private < 100
    assert resident < 120
