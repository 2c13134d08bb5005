# SPDX-License-Identifier: MIT
"""Hugging Face checkpoint directories as model sources.

Read: ``BitNetForCausalLM``, ``LlamaForCausalLM`` with a bitnet quantization config, 1bitLLM's
``BitnetForCausalLM``. Refused, by name: other architectures, scales per row or group, ternary
heads, pickled weights.
"""

from __future__ import annotations

import os
from pathlib import Path

from bitnet_edge.errors import ModelError
from bitnet_edge.exporters.sources.checkpoint import open_checkpoint
from bitnet_edge.exporters.sources.huggingface_config import read_config
from bitnet_edge.exporters.sources.huggingface_graph import GraphBuilder
from bitnet_edge.exporters.sources.json_file import read_object
from bitnet_edge.exporters.sources.source import ModelSource

__all__ = ["load_huggingface"]


def load_huggingface(path: Path) -> ModelSource:
    """Import a checkpoint directory.

    Parameters
    ----------
    path : Path
        Holds ``config.json``, ``model.safetensors`` or shards with their index, and, where the
        model has them, ``generation_config.json`` and ``tokenizer.json``.

    Returns
    -------
    ModelSource
        Its graph takes ``ids`` and gives ``logits`` (n_tokens, vocab).

    Raises
    ------
    UnsupportedModel
        For an architecture or setting that is not implemented.
    MissingTensor
        When the checkpoint lacks a tensor.
    FormatError
        When a file is malformed.
    ModelError
        When settings and tensors contradict each other.
    UnsupportedTokenizer
        When ``tokenizer.json`` cannot be reproduced exactly.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelError(f"[huggingface] expected a directory, got {str(path)!r}")
    builder = GraphBuilder(read_config(path), open_checkpoint(path))
    return ModelSource(builder.build(_model_name(path)), builder.weights, _tokenizer(path))


def _model_name(path: Path) -> str:
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the user's links
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.split("--")[-1]  # a hub cache: the directory is a hash
    return path.name or "model"


def _tokenizer(path: Path) -> bytes | None:
    source = path / "tokenizer.json"
    if not source.exists():
        return None
    from bitnet_edge.exporters.sources.tokenizer_json import pack_tokenizer_json

    settings = [
        read_object(file) if file.exists() else None
        for file in (path / "tokenizer_config.json", path / "generation_config.json")
    ]
    return pack_tokenizer_json(source, *settings)
