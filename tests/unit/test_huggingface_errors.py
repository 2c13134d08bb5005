# SPDX-License-Identifier: MIT
"""What the Hugging Face importer refuses, and how it says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bitnet_edge.errors import (
    BitnetEdgeError,
    MissingTensor,
    ModelError,
    NotTernary,
    UnsupportedModel,
)
from bitnet_edge.exporters.sources.huggingface import load_huggingface
from tests.checkpoints import edit_checkpoint, encode, write_checkpoint

GATE = "model.layers.1.mlp.gate_proj"
OFFLINE = ("packed", "packed-bitlinear")

# -- config.json ----------------------------------------------------------------------------

CONFIGS = {
    "architecture": (
        {"architectures": ["LlamaForCausalLM"]},
        UnsupportedModel,
        r"architectures: expected \['BitNetForCausalLM'\], got \['LlamaForCausalLM'\]",
    ),
    "architectures is text": ({"architectures": "x"}, UnsupportedModel, "architectures: expected"),
    "llama with sub-norms": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        ModelError,
        "LlamaForCausalLM with these settings has no tensor .*attn_sub_norm.weight",
    ),
    "model_type": ({"model_type": "phi"}, UnsupportedModel, "'bitnet' or 'llama', got 'phi'"),
    "no model_type": ({"model_type": ...}, UnsupportedModel, "expected 'bitnet' .* got None"),
    "1bitLLM without bits": (
        {"architectures": ["BitnetForCausalLM"]},
        ModelError,
        "lacks 'weight_bits'",
    ),
    "1bitLLM of other bits": (
        {"architectures": ["BitnetForCausalLM"], "weight_bits": 1, "input_bits": 4},
        UnsupportedModel,
        "input_bits: expected 8, got 4",
    ),
    "no quantization": ({"quantization_config": ...}, UnsupportedModel, "lacks 'quantization_con"),
    "quantization is text": ({"quantization_config": "x"}, ModelError, "expected an object"),
    "activation": ({"hidden_act": "gelu"}, UnsupportedModel, "relu2 or silu, got 'gelu'"),
    "no activation": ({"hidden_act": ...}, ModelError, "lacks 'hidden_act'"),
    "no hidden_size": ({"hidden_size": ...}, ModelError, "lacks 'hidden_size'"),
    "negative size": ({"num_hidden_layers": -1}, ModelError, "from 1 to .* got -1"),
    "fractional size": ({"vocab_size": 128.0}, ModelError, "from 1 to .* got 128.0"),
    "boolean size": ({"num_hidden_layers": True}, ModelError, "got True"),
    "huge size": ({"intermediate_size": 2**31}, ModelError, "intermediate_size: expected"),
    "no kv heads": ({"num_key_value_heads": ...}, ModelError, "lacks 'num_key_value_heads'"),
    "kv heads": ({"num_key_value_heads": 3}, ModelError, "multiple of .* got 4 and 3"),
    "heads": ({"num_attention_heads": 6}, ModelError, "hidden_size a multiple of 6 heads, got 64"),
    "odd head_dim": ({"head_dim": 15}, ModelError, "even head_dim, got 15"),
    "no context": ({"max_position_embeddings": ...}, ModelError, "lacks 'max_position_embeddings'"),
    "no eps": ({"rms_norm_eps": ...}, ModelError, "lacks 'rms_norm_eps'"),
    "eps": ({"rms_norm_eps": 0}, ModelError, "expected a positive number, got 0"),
    "eps is text": ({"rms_norm_eps": "1e-5"}, ModelError, "positive number, got '1e-5'"),
    "eps is true": ({"rms_norm_eps": True}, ModelError, "positive number, got True"),
    "eps is NaN": ({"rms_norm_eps": float("nan")}, ModelError, "positive number, got nan"),
    "eps is huge": ({"rms_norm_eps": 10**400}, ModelError, "positive number, got 1000"),
    "tied is text": ({"tie_word_embeddings": "yes"}, ModelError, "true or false, got 'yes'"),
    "window": ({"sliding_window": 128}, UnsupportedModel, "sliding_window: expected None, got 128"),
    "rope scaling": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        UnsupportedModel,
        "rope_type: expected 'default' or .* got 'dynamic' .rope_scaling of",
    ),
    "no factor": (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
        ModelError,
        "lacks 'factor'",
    ),
    "rope factors": (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 2.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
            }
        },
        ModelError,
        "low_freq_factor below high_freq_factor, got 4.0 and 1.0",
    ),
    "rope key": (
        {"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}},
        UnsupportedModel,
        "unknown setting 'factor'",
    ),
    "partial rotation": (
        {"partial_rotary_factor": 0.5},
        UnsupportedModel,
        "partial_rotary_factor: expected 1.0, got 0.5",
    ),
    "no theta": ({"rope_parameters": None}, ModelError, "lacks 'rope_theta'"),
    "rope is a list": ({"rope_parameters": [1]}, ModelError, "rope_parameters: expected an object"),
    "eos is text": ({"eos_token_id": "</s>"}, ModelError, "below vocab_size 128, got '</s>'"),
    "eos beyond the vocabulary": ({"eos_token_id": [1, 128]}, ModelError, r"got \[1, 128\]"),
    "layer too many": ({"num_hidden_layers": 3}, MissingTensor, "lacks tensor 'model.layers.2"),
    "layer too few": (
        {"num_hidden_layers": 1},
        ModelError,
        "has no tensor 'model.layers.1.input_layernorm.weight', .* and 8 more",
    ),
    "width": (
        {"intermediate_size": 100},
        ModelError,
        r"expected F32 or F16 or BF16 \[100, 64\], got BF16\[96, 64\] .tensor '.*gate_proj",
    ),
    "vocabulary": ({"vocab_size": 100}, ModelError, r"\[100, 64\].*embed_tokens"),
    "untied": ({"tie_word_embeddings": False}, MissingTensor, "lacks tensor 'lm_head.weight'"),
    "biases": ({"attention_bias": True}, MissingTensor, "lacks tensor '.*q_proj.bias'"),
    "mlp biases": ({"mlp_bias": True}, MissingTensor, "lacks tensor '.*gate_proj.bias'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_refused_config(case, tmp_path):
    change, error, message = CONFIGS[case]
    write_checkpoint(tmp_path, config=change)
    with pytest.raises(error, match=message) as caught:
        load_huggingface(tmp_path)
    assert str(tmp_path) in str(caught.value)


QUANTIZATIONS = {
    "method": ({"quant_method": "gptq"}, "quant_method: expected 'bitnet', got 'gptq'"),
    "no method": ({"quant_method": ...}, "quant_method: expected 'bitnet', got None"),
    "class": ({"linear_class": "bitlinear2"}, "got 'bitlinear2 online'"),
    "class and mode contradict": ({"linear_class": "bitlinear"}, "got 'bitlinear online'"),
    "mode": ({"quantization_mode": "hybrid"}, "got 'autobitlinear hybrid'"),
    "mode is a list": ({"quantization_mode": ["online"]}, "linear_class and quantization_mode"),
    "unknown setting": ({"group_size": 128}, "unknown setting 'group_size'"),
    "pattern": ({"modules_to_not_convert": ["layers.*"]}, "plain module names"),
    "modules is text": ({"modules_to_not_convert": "lm_head"}, "plain module names"),
    "ternary head": ({"modules_to_not_convert": []}, "lacks 'lm_head': a ternary head"),
}


@pytest.mark.parametrize("case", QUANTIZATIONS)
def test_refused_quantization(case, tmp_path):
    change, message = QUANTIZATIONS[case]
    write_checkpoint(tmp_path, quantization=change)
    with pytest.raises(UnsupportedModel, match=message):
        load_huggingface(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "expected an object, got list"),
        ('{"hidden_size": 64, "hidden_size": 32}', "duplicate key 'hidden_size'"),
        ("[" * 100_000, "nested too deeply|Expecting"),
    ],
)
def test_malformed_config(text, message, tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        load_huggingface(tmp_path)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="expected a directory"):
        load_huggingface(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        load_huggingface(tmp_path)


# -- tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", OFFLINE)
def test_code_three_is_not_ternary(layout, tmp_path):
    def spoil(tensors: dict) -> None:
        tensors[f"{GATE}.weight"][2][5, 7] |= 0b0011_0000  # logical row 2 * 24 + 5

    source = load_huggingface(edit_checkpoint(write_checkpoint(tmp_path, layout=layout), spoil))
    message = r"got 3 at row 53, column 7 \(tensor 'model\.layers\.1\.mlp\.gate_proj\.weight' of"
    with pytest.raises(NotTernary, match=message):
        source.weights.load("layers.1.gate_proj")


def test_floats_that_are_not_ternary(tmp_path):
    def halve(tensors: dict) -> None:
        codes = np.ones((96, 64), np.float32)
        codes[3, 4] = 0.5
        tensors[f"{GATE}.weight"] = ("F32", codes.shape, codes)

    source = load_huggingface(edit_checkpoint(write_checkpoint(tmp_path, layout="packed"), halve))
    with pytest.raises(NotTernary, match=r"got 0\.5 at row 3, column 4 \(tensor '.*gate_proj"):
        source.weights.load("layers.1.gate_proj")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_master_weights_that_are_not_finite(value, tmp_path):
    def spoil(tensors: dict) -> None:
        tensors[f"{GATE}.weight"][2][0, 0] = encode(np.array([value], np.float32), "BF16")[0]

    with pytest.raises(ModelError, match=f"expected finite weights.*{GATE}"):
        load_huggingface(edit_checkpoint(write_checkpoint(tmp_path), spoil))


def test_norms_that_are_not_finite(tmp_path):
    def spoil(tensors: dict) -> None:
        tensors["model.norm.weight"][2][3] = 0x7F80

    source = load_huggingface(edit_checkpoint(write_checkpoint(tmp_path), spoil))
    with pytest.raises(ModelError, match=r"expected finite values.*'model\.norm\.weight'"):
        source.weights.load("final_norm")


SCALE = f"{GATE}.weight_scale"


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (None, MissingTensor, f"lacks tensor '{SCALE}'"),
        (np.ones(96, np.float32), UnsupportedModel, r"one scale, shape \(1,\), got F32\[96\]"),
        (np.zeros(1, np.float32), ModelError, r"positive scale, got 0\.0"),
        (-np.ones(1, np.float32), ModelError, r"positive scale, got -1\.0"),
        (np.full(1, np.nan, np.float32), ModelError, "positive scale, got nan"),
        (np.full(1, np.inf, np.float32), ModelError, "positive scale, got inf"),
        (np.full(1, 1e-40, np.float32), ModelError, "positive scale, got"),
        (np.ones(1, np.uint8), ModelError, r"expected F32 or F16 or BF16 \[1\], got U8\[1\]"),
    ],
)
@pytest.mark.parametrize("layout", OFFLINE)
def test_refused_scale(layout, scale, error, message, tmp_path):
    def change(tensors: dict) -> None:
        del tensors[SCALE]
        if scale is not None:
            dtype = "U8" if scale.dtype == np.uint8 else "F32"
            tensors[SCALE] = (dtype, scale.shape, scale)

    with pytest.raises(error, match=message):
        load_huggingface(edit_checkpoint(write_checkpoint(tmp_path, layout=layout), change))


@pytest.mark.parametrize(
    "name", ["model.norm.weight", f"{GATE}.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("layout", ["online", *OFFLINE])
def test_missing_tensor(layout, name, tmp_path):
    write_checkpoint(tmp_path, layout=layout)
    with pytest.raises(MissingTensor, match=f"lacks tensor '{name}'"):
        load_huggingface(edit_checkpoint(tmp_path, lambda tensors: tensors.pop(name)))


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("online", SCALE),
        ("packed", "lm_head.weight_scale"),
        ("packed", f"{GATE}.rms_norm.weight"),
        ("online", "model.layers.0.self_attn.q_proj.bias"),
        ("online", "model.layers.0.self_attn.q_norm.weight"),
        ("packed-bitlinear", "model.layers.2.input_layernorm.weight"),
    ],
)
def test_leftover_tensor(layout, name, tmp_path):
    def add(tensors: dict) -> None:
        tensors[name] = ("F32", (1,), np.ones(1, np.float32))

    with pytest.raises(ModelError, match=f"with these settings has no tensor '{name}'"):
        load_huggingface(edit_checkpoint(write_checkpoint(tmp_path, layout=layout), add))


@pytest.mark.parametrize(
    ("stored", "declared", "message"),
    [
        ("packed", "online", r"expected F32 or F16 or BF16 \[64, 64\], got U8\[16, 64\]"),
        ("packed-bitlinear", "online", r"got U8\[16, 64\]"),
        ("online", "packed", "lacks tensor '.*q_proj.weight_scale'"),
        ("online", "packed-bitlinear", "lacks tensor '.*q_proj.weight_scale'"),
    ],
)
def test_layout_that_the_tensors_contradict(stored, declared, message, tmp_path):
    write_checkpoint(tmp_path / "a", layout=stored)
    write_checkpoint(tmp_path / "b", layout=declared)
    shutil.copy(tmp_path / "b" / "config.json", tmp_path / "a")
    with pytest.raises(ModelError, match=message):
        load_huggingface(tmp_path / "a")


def test_random_configs_end_in_a_typed_error_or_a_graph(tmp_path):
    write_checkpoint(tmp_path, hidden=16, heads=2, ffn=16, layers=1, vocab=8)
    path = tmp_path / "config.json"
    original = json.loads(path.read_text())
    rng = np.random.default_rng(5)
    values = [None, True, 0, -1, 1, 2, 3, 8, 1e-5, 1e300, 2**40, "", "silu", [], [1], {}, {"a": 1}]
    accepted = 0
    for _ in range(1500):
        config = json.loads(json.dumps(original))
        for _ in range(rng.integers(1, 3)):
            tables = [config, config.get("quantization_config"), config.get("rope_parameters")]
            table = [t for t in tables if isinstance(t, dict) and t][rng.integers(3) % 2]
            key = list(table)[rng.integers(len(table))]
            table[key] = values[rng.integers(len(values))]
        path.write_text(json.dumps(config))
        try:
            load_huggingface(tmp_path)
            accepted += 1
        except BitnetEdgeError:
            continue
    assert 0 < accepted < 1500


def test_without_numpy_the_error_says_what_to_install():
    script = "import sys; sys.modules['numpy'] = None"
    result = subprocess.run(
        [sys.executable, "-c", f"{script}; import bitnet_edge._numpy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "MissingDependency: [numpy]" in result.stderr
    assert "pip install 'bitnet-edge[export]'" in result.stderr
