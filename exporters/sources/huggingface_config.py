# SPDX-License-Identifier: MIT
"""``config.json`` of a ternary decoder's checkpoint, turned into facts.

Three families share it: ``bitnet`` (transformers' ``BitNetForCausalLM``), ``llama`` with a bitnet
quantization config (HF1BitLLM, Falcon3-1.58bit, Falcon-E), and 1bitLLM's ``BitnetForCausalLM``
(float master weights, ``weight_bits`` 1 and ``input_bits`` 8).

What decides the numbers must be written down in the file: a missing or unknown setting is refused,
never guessed, because a wrong activation or scale direction gives fluent nonsense instead of an
error. Where a key may be absent, its default is that of transformers' ``BitNetConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from bitnet_edge.errors import UnsupportedModel
from bitnet_edge.exporters.sources.json_file import read_object
from bitnet_edge.exporters.sources.rope import Rope, read_rope
from bitnet_edge.exporters.sources.settings import Settings

__all__ = ["BITNET", "BitNetConfig", "Layout", "read_config"]

BITNET, LLAMA, ONE_BIT_LLM = "BitNetForCausalLM", "LlamaForCausalLM", "BitnetForCausalLM"
ACTIVATIONS = ("relu2", "silu")
_QUANTIZATION_KEYS = {
    "quant_method",
    "linear_class",
    "quantization_mode",
    "modules_to_not_convert",
    "use_rms_norm",
    "rms_norm_eps",  # of use_rms_norm
}


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


_LINEAR_NORM_EPS = 1e-6  # transformers' BitNetQuantConfig


@dataclass(frozen=True)
class BitNetConfig:
    """The checked configuration.

    Attributes
    ----------
    architecture : str
        Class name.
    layout : Layout
    dense_modules : tuple of str
        ``modules_to_not_convert``; see `is_dense`.
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, context_length : int
    eps : float
        Of every RMSNorm.
    activation : str
        One of `ACTIVATIONS`.
    rope : Rope
    tied : bool
        The head is the embedding.
    attention_bias : bool
        q, k, v and o have biases.
    mlp_bias : bool or None
        Likewise gate, up and down; None where the config does not say, as BitNet's does not.
    sub_norms : bool
        RMSNorms before o and down.
    linear_norm_eps : float or None
        Of the RMSNorm in front of every ternary linear (``use_rms_norm``), where there are such.
    bos_id : int
        -1 when there is none.
    eos_ids : tuple of int
    """

    architecture: str
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
    rope: Rope
    tied: bool
    attention_bias: bool
    mlp_bias: bool | None
    sub_norms: bool
    linear_norm_eps: float | None
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
    config = Settings(read_object(path), str(path))
    architecture = _architecture(config)
    layout, dense_modules, linear_norm_eps = _quantization(config, architecture)
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
        architecture=architecture,
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
        rope=read_rope(config),
        tied=bool(config.flag("tie_word_embeddings", False)),
        attention_bias=bool(config.flag("attention_bias", False)),
        mlp_bias=config.flag("mlp_bias", None),
        sub_norms=architecture != LLAMA,
        linear_norm_eps=linear_norm_eps,
        bos_id=bos_ids[0] if bos_ids else -1,
        eos_ids=eos_ids,
    )


def _architecture(config: Settings) -> str:
    """Return the class that computes this model."""
    names, model_type = config.get("architectures"), config.get("model_type")
    if isinstance(names, list) and ONE_BIT_LLM in names:
        # Its model_type is llama's, whose code would leave out the sub-norms.
        for key, bits in (("weight_bits", 1), ("input_bits", 8)):
            if config.require(key) != bits:
                raise config.unsupported(key, str(bits), config.get(key))
        return ONE_BIT_LLM
    family = {"bitnet": BITNET, "llama": LLAMA}.get(str(model_type))
    if family is None:
        raise config.unsupported("model_type", "'bitnet' or 'llama'", model_type)
    if names is not None and (not isinstance(names, list) or family not in names):
        raise config.unsupported("architectures", repr([family]), names)
    return family


def _quantization(
    config: Settings, architecture: str
) -> tuple[Layout, tuple[str, ...], float | None]:
    """Return how linears are stored, which are not ternary, and the eps of norms in front of them.

    The direction of the scale follows from ``linear_class`` alone: magnitudes do not tell, both
    directions give plausible ones.
    """
    quantization = config.table("quantization_config")
    default = ("lm_head",)  # of transformers' get_keys_to_not_convert
    if quantization is None:
        if architecture == ONE_BIT_LLM:  # its code always rounds its float weights
            return Layout.ONLINE, default, None
        raise UnsupportedModel(
            "[config] lacks 'quantization_config': these weights would be dense ones; if the key "
            "was lost in a conversion, restore it (online: quant_method 'bitnet', linear_class "
            f"'autobitlinear', quantization_mode 'online') ({config.where})"
        )
    method = quantization.get("quant_method")
    if method != "bitnet":
        raise quantization.unsupported("quant_method", "'bitnet'", method)
    quantization.only(_QUANTIZATION_KEYS)
    eps = None
    if quantization.flag("use_rms_norm", False):
        given = quantization.get("rms_norm_eps") is not None
        eps = quantization.positive("rms_norm_eps") if given else _LINEAR_NORM_EPS
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
        return layout, default, eps
    if not isinstance(modules, list) or not all(map(_is_module_name, modules)):
        raise quantization.unsupported(
            "modules_to_not_convert", "plain module names (no patterns)", modules
        )
    return layout, tuple(modules), eps


def _is_module_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and f"_{value.replace('.', '_')}".isidentifier()


def _special_ids(
    directory: Path, config: Settings, vocab: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that begin and end a text; generation_config.json wins, as in transformers."""
    sources = [config]
    path = directory / "generation_config.json"
    if path.exists():
        sources.insert(0, Settings(read_object(path), str(path)))
    return _ids(sources, "bos_token_id", vocab), _ids(sources, "eos_token_id", vocab)


def _ids(sources: list[Settings], key: str, vocab: int) -> tuple[int, ...]:
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
