# SPDX-License-Identifier: MIT
"""Golden values for the Shakespeare checkpoints, from the real reference.

Runs ``transformers`` (``integrations/bitnet.py``) on a CPU in float32 and
writes two archives:

``reference.npz``
    ``prompts`` (texts), ``versions`` (torch, transformers) and, per layout and
    prompt ``i``: ``{layout}/{i}/ids`` int32; ``/logits`` float32
    (n_ids, vocab), teacher-forced over ``ids``; ``/greedy`` int32, ``ids`` plus
    `N_NEW` greedy tokens; ``/greedy_logits`` float32 (`N_NEW`, vocab), rows
    ``len(ids)..len(greedy)-1`` of one full-sequence pass over ``greedy``.
``layers.npz``
    For prompt `LAYER_PROMPT`, its first `MAX_ROWS` tokens, layers `LAYERS`:
    ``{layout}/layer{l}/{proj}/x`` and ``/y`` float32, input and output of each
    ternary linear; for layer 0 also ``/q`` int8 (rows, K) and ``/s_x`` float32
    (rows, 1), its quantised activations and their scale.

To reproduce::

    pip install torch==2.13.0 transformers==5.23.0 accelerate numpy
    python tests/golden/make_reference.py --checkpoints tests/golden/shakespeare \
        --out tests/golden/reference.npz

Three choices keep the result well defined:

* Everything floating is widened with ``torch.nn.Module.float`` after loading:
  asked for float32, transformers 5.23 still leaves the norms and the embedding
  of an ``autobitlinear`` *offline* checkpoint in bfloat16, and then fails in
  the first linear. Widening is exact.
* ``torch.compile`` (it decorates the quantisers) is told to stay eager, and
  attention is transformers' own ``eager`` one: no C++ compiler, no fused
  kernel, no approximate exponential.
* One thread, deterministic algorithms: two runs on one machine write the same
  bytes. Another CPU may sum float32 in another order, which flips a few int8
  roundings and moves some logits by up to about 0.2.

One thing to know when comparing: torch evaluates ``127 / t`` as ``(1 / t) * 127``,
so a quarter of the ``s_x`` are one unit in the last place off the true quotient.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.integrations.bitnet import ActQuant, AutoBitLinear, BitLinear

LAYOUTS = ("bf16", "packed", "packed-bitlinear")
PROMPTS = (
    "ROMEO:\n",
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "KING RICHARD III:\nA horse! a horse! -- my kingdom?\n\n[Exeunt 3 of 10; 'tis 1597.]\n\n",
    "JULIET:\nO gentle Romeo, if thou dost love, pronounce it faithfully:\n"
    "Or if thou think'st I am too quickly won,\nI'll frown.\n\nROMEO:\n",
)
N_NEW = 96
LAYERS = (0, 5)
LAYER_PROMPT = 1
MAX_ROWS = 24
#: Opening of Tiny Shakespeare: shows that the model is a real one.
LOSS_TEXT = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved rather to die than to famish?

All:
Resolved. resolved.

First Citizen:
First, you know Caius Marcius is chief enemy to the people.

All:
We know't, we know't.

First Citizen:
Let us kill him, and we'll have corn at our own price.
Is't a verdict?

All:
No more talking on't; let it be done: away, away!

Second Citizen:
One word, good citizens.

First Citizen:
We are accounted poor citizens, the patricians good.
What authority surfeits on would relieve us: if they
would yield us but the superfluity, while it were
wholesome, we might guess they relieved us humanely;
but they think we are too dear: the leanness that
afflicts us, the object of our misery, is as an
inventory to particularise their abundance; our
sufferance is a gain to them Let us revenge this with
our pikes, ere we become rakes: for the gods know I
speak this in hunger for bread, not in thirst for revenge.
"""


def load(path: Path) -> Any:
    """Load one checkpoint in float32.

    Parameters
    ----------
    path : Path
        Checkpoint folder.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode; every floating tensor is float32.
    """
    auto: Any = transformers.AutoModelForCausalLM
    model, info = auto.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"{path}: not loaded completely: {info}")
    torch.nn.Module.float(model)  # the subclass's own float() refuses quantised models
    return model.eval()


def logits_of(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Teacher-forced logits, one pass over the whole sequence, no KV cache.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    ids : sequence of int
        Token ids, including the leading 0.

    Returns
    -------
    numpy.ndarray
        float32, (len(ids), vocab).
    """
    logits: np.ndarray = model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
    assert logits.dtype == np.float32
    return logits


def quantise(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 activations and their scale, exactly as `module` computes them.

    ``ActQuant`` only returns ``q / s``, so its operations are repeated here and
    the quotient is checked to be the same to the bit.

    Parameters
    ----------
    module : BitLinear or AutoBitLinear
        The ternary linear.
    x : torch.Tensor
        Its input, float32 (rows, K).

    Returns
    -------
    q : torch.Tensor
        int8 (rows, K).
    s_x : torch.Tensor
        float32 (rows, 1), about 127 / absmax.
    """
    if isinstance(module, BitLinear):
        q, s_x = module.activation_quant(x)
        return q, s_x
    s_x = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp_(min=1e-5)
    rounded = (x * s_x).round().clamp(-128, 127)
    act_quant: Any = ActQuant
    assert torch.equal(rounded / s_x, act_quant.apply(x))
    return rounded.to(torch.int8), s_x


def record_layers(model: Any, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Inputs and outputs of the ternary linears of `LAYERS`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    ids : sequence of int
        Token ids of the one pass that is recorded.

    Returns
    -------
    dict of str to numpy.ndarray
        ``layer{l}/{proj}/{x,y,q,s_x}``, see the module's docstring.
    """
    found: dict[str, np.ndarray] = {}
    hooks = []
    for index in LAYERS:
        for name, module in model.model.layers[index].named_modules():
            if not isinstance(module, (AutoBitLinear, BitLinear)):
                continue
            key = f"layer{index}/{name.rpartition('.')[2].removesuffix('_proj')}"

            def record(
                module: torch.nn.Module,
                inputs: tuple[torch.Tensor, ...],
                output: torch.Tensor,
                key: str = key,
            ) -> None:
                x = inputs[0][0, :MAX_ROWS].clone()
                found[f"{key}/x"] = x.numpy()
                found[f"{key}/y"] = output[0, :MAX_ROWS].numpy().copy()
                if key.startswith("layer0/"):
                    q, s_x = quantise(module, x)
                    found[f"{key}/q"], found[f"{key}/s_x"] = q.numpy(), s_x.numpy()

            hooks.append(module.register_forward_hook(record))
    logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    return found


def report_greedy(label: str, rows: np.ndarray, tokens: np.ndarray) -> None:
    """Print how often the teacher-forced argmax is the generated token.

    Generation goes token by token through the KV cache, so its float32 sums are
    ordered otherwise: a near-tie may fall the other way.

    Parameters
    ----------
    label : str
        Printed first.
    rows : numpy.ndarray
        (n, vocab) teacher-forced logits that predict `tokens`.
    tokens : numpy.ndarray
        (n,) generated ids.
    """
    best = rows.argmax(axis=1)
    wrong = np.flatnonzero(best != tokens)
    margin = [float(rows[i, best[i]] - rows[i, tokens[i]]) for i in wrong]
    print(f"{label}: greedy agrees {len(tokens) - len(wrong)}/{len(tokens)}, margins {margin}")


def report_loss(model: Any, tokenizer: Any) -> None:
    """Print the loss on `LOSS_TEXT` in nats a token.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    """
    ids = tokenizer(LOSS_TEXT)["input_ids"]
    logp = torch.from_numpy(logits_of(model, ids)).double().log_softmax(-1)
    loss = -logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean().item()
    uniform = math.log(logp.shape[1])
    print(f"  loss {loss:.3f} nats/token over {len(ids) - 1} tokens (uniform {uniform:.2f})")


@torch.no_grad()
def main() -> None:
    """Write ``reference.npz`` and ``layers.npz``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoints", type=Path, required=True, help=f"has {', '.join(LAYOUTS)}")
    parser.add_argument("--out", type=Path, required=True, help="reference.npz to write")
    parser.add_argument("--layers", type=Path, help="default: layers.npz beside --out")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.compiler.set_stance("force_eager")

    reference: dict[str, np.ndarray] = {
        "prompts": np.array(PROMPTS),
        "versions": np.array([f"{m.__name__} {m.__version__}" for m in (torch, transformers)]),
    }
    layers: dict[str, np.ndarray] = {}
    for layout in LAYOUTS:
        path = args.checkpoints / layout
        model, tokenizer = load(path), transformers.AutoTokenizer.from_pretrained(path)
        for i, prompt in enumerate(PROMPTS):
            ids = tokenizer(prompt)["input_ids"]
            n = len(ids)
            greedy = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, n, dtype=torch.long),
                do_sample=False,
                max_new_tokens=N_NEW,
                pad_token_id=tokenizer.eos_token_id,
            )[0].numpy()
            if len(greedy) != n + N_NEW:
                raise SystemExit(f"{layout}/{i}: end of text after {len(greedy) - n} tokens")
            full = logits_of(model, greedy.tolist())
            report_greedy(f"{layout}/{i} ({n} ids)", full[n - 1 : -1], greedy[n:])
            key = f"{layout}/{i}"
            reference[f"{key}/ids"] = np.array(ids, np.int32)
            reference[f"{key}/logits"] = logits_of(model, ids)
            reference[f"{key}/greedy"] = greedy.astype(np.int32)
            reference[f"{key}/greedy_logits"] = full[n:]
            if i == LAYER_PROMPT:
                layers |= {f"{layout}/{k}": v for k, v in record_layers(model, ids).items()}
        report_loss(model, tokenizer)

    layers_out = args.layers or args.out.with_name("layers.npz")
    for out, arrays in ((args.out, reference), (layers_out, layers)):
        save: Any = np.savez_compressed
        save(out, **arrays)
        print(f"{out}: {len(arrays)} arrays, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
