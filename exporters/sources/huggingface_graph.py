# SPDX-License-Identifier: MIT
"""The graph of a ternary decoder, and the loaders of its constants.

The model is transformers' ``models/bitnet/modeling_bitnet.py``, or ``models/llama``, with the
linears of its ``integrations/bitnet.py``. Every tensor of the checkpoint is either used or refused,
and all of them are accounted for before the first weight is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bitnet_edge._numpy import np
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import MissingTensor, ModelError, UnsupportedModel
from bitnet_edge.exporters.sources.checkpoint import Checkpoint
from bitnet_edge.exporters.sources.huggingface_config import BitNetConfig, Layout
from bitnet_edge.exporters.sources.rope import inverse_frequencies
from bitnet_edge.exporters.sources.ternary_codes import (
    FLOAT_DTYPES,
    absmean,
    packed_rows,
    read_ternary,
    ternarise,
    to_float32,
    unpack,
)
from bitnet_edge.graph import CONTEXT, N_TOKENS, Graph, Kind, ModelInfo, Node, Tensor, Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Loader = Callable[[], NDArray[Any]]

__all__ = ["GraphBuilder"]

_GRAPH_DTYPE = {"F32": DType.F32, "F16": DType.F16, "BF16": DType.BF16}
_NOTES = {
    Layout.ONLINE: "ternary scales: mean|W| of the float master weights (autobitlinear online)",
    Layout.MULTIPLY: "ternary scales: stored, they multiply (autobitlinear offline)",
    Layout.DIVIDE: "ternary scales: stored, they divide (bitlinear)",
}


class CheckpointWeights:
    """A `WeightSource` over a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._loaders: dict[str, Loader] = {}
        self._viewed = ""

    def add(self, name: str, loader: Loader) -> None:
        self._loaders[name] = loader

    def load(self, name: str) -> NDArray[Any]:
        """See `WeightSource.load`."""
        if self._viewed:  # handed out by the previous call, and surely stored by now
            self._checkpoint.release(self._viewed)
            self._viewed = ""
        try:
            loader = self._loaders[name]
        except KeyError:
            raise MissingTensor(f"[huggingface] the model has no constant {name!r}") from None
        return loader()

    def view(self, source: str) -> NDArray[Any]:
        """Return floats as stored: float32, or the bits of f16 and bf16 in uint16."""
        self._viewed = source
        values = self._checkpoint.array(source)
        return values.view(np.uint16) if values.dtype == np.float16 else values

    def float32(self, source: str, factor: np.float32 | None = None) -> NDArray[np.float32]:
        """Return a vector widened to float32, times ``factor``; every value must be finite."""
        values = to_float32(self._checkpoint.array(source), self._checkpoint.info(source).dtype)
        self._checkpoint.release(source)
        if factor is not None:
            with np.errstate(over="ignore"):
                values *= factor
        if not np.isfinite(values).all():
            raise ModelError(
                "[huggingface] expected finite values, got an infinity or a NaN (tensor "
                f"{source!r} of {self._checkpoint.path})"
            )
        return values


class GraphBuilder:
    """Builds the graph, and the loaders of its constants, layer by layer."""

    def __init__(self, config: BitNetConfig, checkpoint: Checkpoint) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.weights = CheckpointWeights(checkpoint)
        self.used: set[str] = set()
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.scales: dict[str, Callable[[], float]] = {}  # by ternary_linear node
        self.means: dict[str, np.float32] = {}  # by master weight, filled by `scales`

    def build(self, name: str) -> Graph:
        """Return the checked graph."""
        config = self.config
        if not config.is_dense("lm_head"):
            raise UnsupportedModel(
                "[huggingface] modules_to_not_convert lacks 'lm_head': a ternary head is not "
                f"supported ({self.checkpoint.path})"
            )
        self._add(Tensor("ids", (N_TOKENS,), DType.I32, Kind.INPUT))
        table = "embed_tokens"
        self._dense(table, "model.embed_tokens.weight", (config.vocab, config.hidden))
        x = self._node(
            "embedding", table, ("ids", table), "embedded", config.hidden, multiplier=1.0
        )
        self._constant("rope.inv_freq", (config.head_dim // 2,), DType.F32)
        self.weights.add(
            "rope.inv_freq", partial(inverse_frequencies, config.rope, config.head_dim)
        )
        for index in range(config.layers):
            x = self._layer(x, f"layers.{index}.")
        x = self._norm(x, "final_norm", "model.norm.weight", "normed")
        self._head(x)
        self._refuse_leftovers()
        # Now, and not earlier: the scales of an online checkpoint cost a pass over all weights.
        nodes = [
            replace(node, attributes={"scale": self.scales[node.name]()})
            if node.name in self.scales
            else node
            for node in self.nodes
        ]
        notes = (
            _NOTES[config.layout],
            f"activation: {config.activation} (hidden_act)",
            config.rope.note,
        )
        info = ModelInfo(
            name,
            config.architecture,
            config.context_length,
            config.vocab,
            config.bos_id,
            config.eos_ids,
            notes,
        )
        return Graph(info, self.tensors, tuple(nodes), ("ids",), ("logits",))

    # -- parts of the model -----------------------------------------------------------------

    def _layer(self, x: str, layer: str) -> str:
        config, source = self.config, f"model.{layer}"
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        hidden, ffn = config.hidden, config.intermediate
        bias, mlp_bias = config.attention_bias, config.mlp_bias
        attention, mlp = f"{source}self_attn.", f"{source}mlp."

        h = self._norm(x, f"{layer}input_norm", f"{source}input_layernorm.weight", f"{layer}h")
        q = self._linear(h, f"{layer}q_proj", f"{attention}q_proj", (width, hidden), bias)
        k = self._linear(h, f"{layer}k_proj", f"{attention}k_proj", (kv_width, hidden), bias)
        v = self._linear(h, f"{layer}v_proj", f"{attention}v_proj", (kv_width, hidden), bias)
        for cache in ("k_cache", "v_cache"):
            shape = (config.kv_heads, CONTEXT, config.head_dim)
            self._add(Tensor(layer + cache, shape, DType.F32, Kind.STATE))
        y = self._node(
            "attention",
            f"{layer}attention",
            (q, k, v, "rope.inv_freq", f"{layer}k_cache", f"{layer}v_cache"),
            f"{layer}attended",
            width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            scale=float(config.head_dim**-0.5),
            rope_scale=config.rope.scale,
        )
        if config.sub_norms:
            names = f"{attention}attn_sub_norm.weight", f"{attention}inner_attn_ln.weight"
            norm = self._either(*names)
            y = self._norm(y, f"{layer}attn_sub_norm", norm, f"{layer}attended_normed")
        y = self._linear(y, f"{layer}o_proj", f"{attention}o_proj", (hidden, width), bias)
        x = self._node("add", f"{layer}attention_add", (x, y), f"{layer}middle", hidden)

        name = f"{layer}post_attention_norm"
        h = self._norm(x, name, f"{source}post_attention_layernorm.weight", f"{layer}middle_normed")
        gate = self._linear(h, f"{layer}gate_proj", f"{mlp}gate_proj", (ffn, hidden), mlp_bias)
        up = self._linear(h, f"{layer}up_proj", f"{mlp}up_proj", (ffn, hidden), mlp_bias)
        y = self._node(
            "gated_activation",
            f"{layer}activation",
            (gate, up),
            f"{layer}gated",
            ffn,
            activation=config.activation,
        )
        if config.sub_norms:
            norm = self._either(f"{mlp}ffn_sub_norm.weight", f"{mlp}ffn_layernorm.weight")
            y = self._norm(y, f"{layer}ffn_sub_norm", norm, f"{layer}gated_normed")
        y = self._linear(y, f"{layer}down_proj", f"{mlp}down_proj", (hidden, ffn), mlp_bias)
        return self._node("add", f"{layer}mlp_add", (x, y), f"{layer}out", hidden)

    def _norm(self, x: str, name: str, source: str, output: str, eps: float | None = None) -> str:
        width = self.tensors[x].shape[1]
        self._vector(name, source, width)
        return self._node("rms_norm", name, (x, name), output, width, eps=eps or self.config.eps)

    def _linear(
        self, x: str, name: str, module: str, shape: tuple[int, int], has_bias: bool | None
    ) -> str:
        """Add a linear: ternary, or dense where ``modules_to_not_convert`` says so.

        ``has_bias`` is None where the checkpoint decides.
        """
        output = name.removesuffix("_proj")
        weight, bias_source = f"{module}.weight", f"{module}.bias"
        if has_bias is None:
            has_bias = bias_source in self.checkpoint
        bias = f"{name}.bias" if has_bias else ""
        if self.config.is_dense(module):
            self._dense(name, weight, shape)
            if bias:
                self._vector(bias, bias_source, shape[0])
            return self._node("linear", name, (x, name, bias), output, shape[0])
        if self.config.linear_norm_eps is not None:
            norm, eps = f"{module}.rms_norm.weight", self.config.linear_norm_eps
            x = self._norm(x, f"{name}.norm", norm, f"{output}_in", eps)
        self._ternary(name, module, shape)
        if bias:
            # AutoBitLinear offline multiplies after its bias is added; the others add it last.
            multiply = self.config.layout is Layout.MULTIPLY
            self._vector(
                bias, bias_source, shape[0], self._stored_scale(module) if multiply else None
            )
        return self._node("ternary_linear", name, (x, name, bias), output, shape[0], scale=1.0)

    def _head(self, x: str) -> None:
        config, source = self.config, "lm_head.weight"
        shape, weight = (config.vocab, config.hidden), "embed_tokens"
        if not config.tied:
            weight = "lm_head"
            self._dense(weight, source, shape)
        elif source in self.checkpoint:
            self._expect(source, FLOAT_DTYPES, shape)
            if not self._equal(source, "model.embed_tokens.weight"):
                raise ModelError(
                    "[huggingface] tie_word_embeddings is true, but 'lm_head.weight' differs from "
                    f"'model.embed_tokens.weight' ({self.checkpoint.path})"
                )
        self._node("linear", "lm_head", (x, weight, ""), "logits", config.vocab)

    # -- constants --------------------------------------------------------------------------

    def _dense(self, name: str, source: str, shape: tuple[int, ...]) -> None:
        """Add a matrix that stays as stored."""
        dtype = self._expect(source, FLOAT_DTYPES, shape)
        self._constant(name, shape, _GRAPH_DTYPE[dtype])
        self.weights.add(name, partial(self.weights.view, source))

    def _vector(self, name: str, source: str, width: int, factor: np.float32 | None = None) -> None:
        """Add a norm's weight or a bias, in float32."""
        self._expect(source, FLOAT_DTYPES, (width,))
        self._constant(name, (width,), DType.F32)
        self.weights.add(name, partial(self.weights.float32, source, factor))

    def _ternary(self, name: str, module: str, shape: tuple[int, int]) -> None:
        """Add a ternary matrix; its scale is one float32 that multiplies, whatever is stored."""
        layout, checkpoint, source = self.config.layout, self.checkpoint, f"{module}.weight"
        rows, k = shape
        self._constant(name, shape, DType.TERNARY)
        if layout is Layout.ONLINE:
            self._expect(source, FLOAT_DTYPES, shape)
            self.scales[name] = partial(self._online_scale, source)
            self.weights.add(name, lambda: ternarise(checkpoint, source, self.means[source]))
            return
        scale = self._stored_scale(module)
        if layout is Layout.DIVIDE:
            # y = acc / (s_x * w) becomes acc / s_x * (1 / w): half a unit in the last place more
            scale = np.float32(1.0) / scale
        self.scales[name] = lambda: float(scale)
        if layout is Layout.MULTIPLY and self._dtype(source) != "U8":
            # A packed checkpoint that transformers loaded and saved again: codes as floats.
            self._expect(source, FLOAT_DTYPES, shape)
            self.weights.add(name, partial(read_ternary, checkpoint, source))
            return
        self._expect(source, ("U8",), (packed_rows(rows), k))
        self.weights.add(name, partial(unpack, checkpoint, source, rows))

    def _online_scale(self, source: str) -> float:
        """Return ``1 / s``, ``s = 1 / mean|W|``, each rounded to float32 as the reference does."""
        self.means[source] = absmean(self.checkpoint, source)
        return float(np.float32(1.0) / (np.float32(1.0) / self.means[source]))

    def _stored_scale(self, module: str) -> np.float32:
        source = f"{module}.weight_scale"
        info = self.checkpoint.info(source) if source in self.checkpoint else None
        if info is not None and info.shape not in ((), (1,)):
            raise UnsupportedModel(
                f"[huggingface] expected one scale, shape (1,), got {info} (tensor {source!r} of "
                f"{self.checkpoint.path})"
            )
        dtype = self._expect(source, FLOAT_DTYPES, info.shape if info else (1,))
        scale: np.float32 = to_float32(self.checkpoint.array(source).reshape(1), dtype)[0]
        if not 1e-30 < scale < 1e30:  # so that its inverse is a normal float32 too
            raise ModelError(
                f"[huggingface] expected a positive scale, got {scale} (tensor {source!r} of "
                f"{self.checkpoint.path})"
            )
        return scale

    def _expect(self, source: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> str:
        """Account for a tensor of the checkpoint and return its dtype."""
        dtype = self._dtype(source)
        info = self.checkpoint.info(source)
        self.used.add(source)
        if dtype not in dtypes or info.shape != shape:
            raise ModelError(
                f"[huggingface] expected {' or '.join(dtypes)} {list(shape)}, got {info} "
                f"(tensor {source!r} of {self.checkpoint.path})"
            )
        return dtype

    def _dtype(self, source: str) -> str:
        if source not in self.checkpoint:
            raise MissingTensor(
                f"[huggingface] the checkpoint lacks tensor {source!r} ({self.checkpoint.path})"
            )
        return self.checkpoint.info(source).dtype

    def _either(self, name: str, older: str) -> str:
        """Return the spelling of a tensor's name that the checkpoint has."""
        return older if older in self.checkpoint and name not in self.checkpoint else name

    def _equal(self, a: str, b: str) -> bool:
        if self.checkpoint.info(a) != self.checkpoint.info(b):
            return False
        blocks = zip(self.checkpoint.row_blocks(a), self.checkpoint.row_blocks(b), strict=True)
        return all(np.array_equal(rows, others) for (_, rows), (_, others) in blocks)

    def _refuse_leftovers(self) -> None:
        # transformers moved this derived buffer out of the layers; old files still carry it
        left = [
            name
            for name in self.checkpoint.names
            if name not in self.used and not name.endswith(".rotary_emb.inv_freq")
        ]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ModelError(
                f"[huggingface] {self.config.architecture} with these settings has no tensor "
                f"{', '.join(map(repr, left[:3]))}{more} ({self.checkpoint.path})"
            )

    # -- graph ------------------------------------------------------------------------------

    def _add(self, tensor: Tensor) -> None:
        self.tensors[tensor.name] = tensor

    def _constant(self, name: str, shape: tuple[int, ...], dtype: DType) -> None:
        self._add(Tensor(name, shape, dtype, Kind.CONSTANT))

    def _node(
        self,
        op: str,
        name: str,
        inputs: tuple[str, ...],
        output: str,
        width: int,
        **attributes: Value,
    ) -> str:
        self._add(Tensor(output, (N_TOKENS, width), DType.F32))
        self.nodes.append(Node(op, name, inputs, (output,), attributes))
        return output
