# SPDX-License-Identifier: MIT
"""``config.json`` of a BitNet checkpoint, turned into facts.

What decides the numbers must be written down in the file: a missing or unknown setting is refused,
never guessed, because a wrong activation or scale direction gives fluent nonsense instead of an
error. Where a key may be absent, its default is that of transformers' ``BitNetConfig``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bitnet_edge.errors import ModelError, UnsupportedModel
from bitnet_edge.exporters.sources.json_file import read_object

__all__ = ["BitNetConfig", "Layout", "read_config"]

ARCHITECTURE = "BitNetForCausalLM"
ACTIVATIONS = ("relu2", "silu")
_MAX_SIZE = 2**31 - 1
_QUANTIZATION_KEYS = {
    "quant_method",
    "linear_class",
    "quantization_mode",
    "modules_to_not_convert",
    "use_rms_norm",
    "rms_norm_eps",  # of use_rms_norm
}
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


class Layout(str, Enum):
    """How the ternary linears are stored, and what their scale does.

    ``ONLINE``: float master weights, rounded to ternary when used, scale mean|W| computed.
    ``MULTIPLY``: ternary codes; the stored scale, mean|W|, multiplies the product (and the bias).
    ``DIVIDE``: ternary codes; the stored scale, 1 / mean|W|, divides the product.
    """

    ONLINE = "online"
    MULTIPLY = "multiply"
    DIVIDE = "divide"


# By linear_class and quantization_mode.
_LAYOUTS = {
    "autobitlinear online": Layout.ONLINE,
    "autobitlinear offline": Layout.MULTIPLY,
    "bitlinear offline": Layout.DIVIDE,
}


@dataclass(frozen=True)
class BitNetConfig:
    """The checked configuration.

    Attributes
    ----------
    layout : Layout
    dense_modules : tuple of str
        ``modules_to_not_convert``; see `is_dense`.
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, context_length : int
    eps : float
        Of every RMSNorm.
    activation : str
        One of `ACTIVATIONS`.
    rope_theta : float
    tied : bool
        The head is the embedding.
    attention_bias : bool
        q, k, v and o have biases.
    mlp_bias : bool or None
        Likewise gate, up and down; None where the config does not say, as BitNet's does not.
    bos_id : int
        -1 when there is none.
    eos_ids : tuple of int
    """

    layout: Layout
    dense_modules: tuple[str, ...]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_length: int
    eps: float
    activation: str
    rope_theta: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool | None
    bos_id: int
    eos_ids: tuple[int, ...]

    def is_dense(self, module: str) -> bool:
        """Return whether linear ``module`` is exempt from quantisation.

        transformers' rule (``should_convert_module``) for names that are not regular expressions: a
        name covers the modules that begin with it up to a dot, and those that end with it.
        """
        return any(
            module == name
            or module.startswith(name if name.endswith(".") else name + ".")
            or module.endswith(name)
            for name in self.dense_modules
        )


def read_config(directory: Path) -> BitNetConfig:
    """Read ``config.json``, and ``generation_config.json`` where there is one.

    Raises
    ------
    ModelError
        When a file cannot be read, or a setting is missing or makes no sense.
    UnsupportedModel
        When a setting is meaningful but not implemented.
    """
    path = directory / "config.json"
    config = _Settings(read_object(path), str(path))
    _check_architecture(config)
    layout, dense_modules = _quantization(config)
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    kv_heads = heads if config.null("num_key_value_heads") else config.size("num_key_value_heads")
    if heads % kv_heads:
        raise config.error(
            f"expected num_attention_heads a multiple of num_key_value_heads, got {heads} and "
            f"{kv_heads}"
        )
    if config.get("head_dim") is not None:
        head_dim = config.size("head_dim")
    elif hidden % heads:
        raise config.error(f"expected hidden_size a multiple of {heads} heads, got {hidden}")
    else:
        head_dim = hidden // heads
    if head_dim % 2:
        raise config.error(f"expected an even head_dim, got {head_dim}")
    activation = config.require("hidden_act")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise config.unsupported("hidden_act", " or ".join(ACTIVATIONS), activation)
    config.neutral("sliding_window", None)
    vocab = config.size("vocab_size")
    bos_ids, eos_ids = _special_ids(directory, config, vocab)
    return BitNetConfig(
        layout=layout,
        dense_modules=dense_modules,
        hidden=hidden,
        intermediate=config.size("intermediate_size"),
        layers=config.size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        context_length=config.size("max_position_embeddings"),
        eps=config.positive("rms_norm_eps"),
        activation=activation,
        rope_theta=_rope_theta(config),
        tied=bool(config.flag("tie_word_embeddings", False)),
        attention_bias=bool(config.flag("attention_bias", False)),
        mlp_bias=config.flag("mlp_bias", None),
        bos_id=bos_ids[0] if bos_ids else -1,
        eos_ids=eos_ids,
    )


class _Settings:
    """A JSON object whose accessors say what is wrong, and where."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data = data
        self.where = where

    def error(self, message: str) -> ModelError:
        return ModelError(f"[config] {message} ({self.where})")

    def unsupported(self, key: str, expected: str, found: object) -> UnsupportedModel:
        return UnsupportedModel(
            f"[config] {key}: expected {expected}, got {found!r:.80} ({self.where})"
        )

    def get(self, key: str) -> object:
        return self._data.get(key)

    def null(self, key: str) -> bool:
        return key in self._data and self._data[key] is None

    def require(self, key: str) -> object:
        value = self._data.get(key)
        if value is None:
            raise self.error(f"lacks {key!r}")
        return value

    def size(self, key: str) -> int:
        value = self.require(key)
        if type(value) is not int or not 0 < value <= _MAX_SIZE:
            raise self.error(f"{key}: expected an integer from 1 to {_MAX_SIZE}, got {value!r:.80}")
        return value

    def positive(self, key: str) -> float:
        value = self.require(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 1e-30 < value < 1e30  # well inside float32
        ):
            raise self.error(f"{key}: expected a positive number, got {value!r:.80}")
        return float(value)

    def flag(self, key: str, default: bool | None) -> bool | None:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{key}: expected true or false, got {value!r:.80}")
        return value

    def table(self, key: str) -> _Settings | None:
        value = self.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.error(f"{key}: expected an object, got {value!r:.80}")
        return _Settings(value, f"{key} of {self.where}")

    def neutral(self, key: str, value: object) -> None:
        """Refuse a setting that would change the computation."""
        if self.get(key) is not None and self.get(key) != value:
            raise self.unsupported(key, repr(value), self.get(key))

    def only(self, known: set[str]) -> None:
        unknown = sorted(key for key in self._data if key not in known and not self.null(key))
        if unknown:
            raise UnsupportedModel(f"[config] unknown setting {unknown[0]!r} ({self.where})")


def _check_architecture(config: _Settings) -> None:
    names = config.get("architectures")
    model_type = config.get("model_type")
    if names is not None and (not isinstance(names, list) or ARCHITECTURE not in names):
        raise config.unsupported("architectures", repr([ARCHITECTURE]), names)
    if model_type != "bitnet":
        raise config.unsupported("model_type", "'bitnet'", model_type)


def _quantization(config: _Settings) -> tuple[Layout, tuple[str, ...]]:
    """Return how linears are stored, and which are not ternary.

    The direction of the scale follows from ``linear_class`` alone: magnitudes do not tell, both
    directions give plausible ones.
    """
    quantization = config.table("quantization_config")
    if quantization is None:
        raise UnsupportedModel(
            "[config] lacks 'quantization_config': these weights would be dense ones; if the key "
            "was lost in a conversion, restore it (online: quant_method 'bitnet', linear_class "
            f"'autobitlinear', quantization_mode 'online') ({config.where})"
        )
    method = quantization.get("quant_method")
    if method != "bitnet":
        raise quantization.unsupported("quant_method", "'bitnet'", method)
    quantization.only(_QUANTIZATION_KEYS)
    if quantization.flag("use_rms_norm", False):
        raise quantization.unsupported("use_rms_norm", "false (norms inside linears)", True)
    linear_class = quantization.get("linear_class") or "bitlinear"
    mode = quantization.get("quantization_mode") or "offline"
    layout = _LAYOUTS.get(f"{linear_class} {mode}")
    if layout is None:
        raise quantization.unsupported(
            "linear_class and quantization_mode",
            " or ".join(map(repr, _LAYOUTS)),
            f"{linear_class} {mode}",
        )
    modules = quantization.get("modules_to_not_convert")
    if modules is None:
        return layout, ("lm_head",)  # the default of transformers' get_keys_to_not_convert
    if not isinstance(modules, list) or not all(map(_is_module_name, modules)):
        raise quantization.unsupported(
            "modules_to_not_convert", "plain module names (no patterns)", modules
        )
    return layout, tuple(modules)


def _is_module_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and f"_{value.replace('.', '_')}".isidentifier()


def _rope_theta(config: _Settings) -> float:
    """Return theta; ``rope_scaling`` and ``rope_theta`` are the older spelling."""
    rope = config.table("rope_scaling") or config.table("rope_parameters") or config
    if rope is not config:
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind != "default":
            raise rope.unsupported("rope_type", "'default'", kind)
        rope.only(_ROPE_KEYS)
    for table in (rope, config):
        table.neutral("partial_rotary_factor", 1.0)
    return (rope if rope.get("rope_theta") is not None else config).positive("rope_theta")


def _special_ids(
    directory: Path, config: _Settings, vocab: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that begin and end a text; generation_config.json wins, as in transformers."""
    sources = [config]
    path = directory / "generation_config.json"
    if path.exists():
        sources.insert(0, _Settings(read_object(path), str(path)))
    return _ids(sources, "bos_token_id", vocab), _ids(sources, "eos_token_id", vocab)


def _ids(sources: list[_Settings], key: str, vocab: int) -> tuple[int, ...]:
    for source in sources:
        value = source.get(key)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item < vocab for item in ids):
            raise source.error(
                f"{key}: expected an id, or a list of ids, below vocab_size {vocab}, got "
                f"{value!r:.80}"
            )
        return tuple(dict.fromkeys(ids))
    return ()
