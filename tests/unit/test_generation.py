# SPDX-License-Identifier: MIT
from __future__ import annotations

from array import array

import pytest

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.errors import ArgumentError, TokenizerError
from tests.conftest import PROMPT


def test_pieces_join_to_the_decoded_text(model):
    generation = model.generate(PROMPT, max_tokens=60, ignore_eos=True)
    pieces = list(generation)
    assert len(pieces) > 10
    assert "".join(pieces) == model.tokenizer.decode(generation.token_ids)
    assert generation.finish_reason == "max_tokens"
    assert generation.statistics.new_tokens == 60
    assert generation.statistics.tokens_per_second > 0


def test_greedy_equals_the_argmax_of_logits(model):
    generation = model.generate(PROMPT, max_tokens=30, ignore_eos=True)
    generation.text()
    ids = model.tokenizer.encode(PROMPT)
    logits = model.logits(ids + generation.token_ids)
    assert logits.argmax(1)[len(ids) - 1 : -1].tolist() == generation.token_ids


SAMPLINGS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 0.0, "repetition_penalty": 1.3, "repetition_window": 16},
]


@pytest.mark.parametrize("options", SAMPLINGS)
def test_same_seed_same_text_on_any_cpu_and_thread_count(options, bte):
    texts = set()
    try:
        for isa in _engine.cpu_isas():
            _engine.set_cpu(isa)
            for threads in (1, 2):
                model = bitnet_edge.load(bte, threads=threads)
                texts.add(model.generate(PROMPT, max_tokens=50, seed=42, **options).text())
    finally:
        _engine.set_cpu(None)
    assert len(texts) == 1


def test_another_seed_another_text(model):
    texts = {model.generate(PROMPT, 40, 1.0, seed=seed).text() for seed in range(5)}
    assert len(texts) == 5


def test_stop_strings_end_the_text_before_them(model):
    whole = model.generate(PROMPT, max_tokens=80, ignore_eos=True).text()
    stop = whole[20:26]  # crosses token borders
    generation = model.generate(PROMPT, max_tokens=80, stop=stop, ignore_eos=True)
    assert generation.text() == whole[: whole.index(stop)]
    assert generation.finish_reason == "stop"


def test_the_first_of_several_stop_strings_wins_and_near_misses_are_not_lost(model):
    whole = model.generate(PROMPT, max_tokens=80, ignore_eos=True).text()
    near_miss = whole[10:14] + "\x00"
    generation = model.generate(
        PROMPT, max_tokens=80, stop=(near_miss, whole[30:33]), ignore_eos=True
    )
    assert generation.text() == whole[: whole.index(whole[30:33])]


@pytest.mark.parametrize("order", [1, -1])
def test_the_earliest_stop_string_in_the_text_wins(order, model):
    whole = model.generate(PROMPT, max_tokens=80, ignore_eos=True).text()
    early, late = whole[20:24], whole[22:28]  # one token may complete both
    generation = model.generate(PROMPT, max_tokens=80, stop=(early, late)[::order], ignore_eos=True)
    assert generation.text() == whole[: whole.index(early)]


def test_an_interrupted_generation_is_finished(model, monkeypatch):
    generation = model.generate(PROMPT, max_tokens=20)
    next(generation)

    def interrupt(token: int) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation._decoder, "push", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(generation)
    assert generation.finish_reason == "interrupted"
    with pytest.raises(StopIteration):
        next(generation)
    with pytest.raises(ArgumentError, match=r"is finished \(interrupted\)"):
        generation.advance()


def test_closing_ends_a_generation(model):
    generation = model.generate(PROMPT, max_tokens=20)
    next(generation)
    generation.close()
    assert (generation.finish_reason, list(generation)) == ("interrupted", [])
    done = model.generate(PROMPT, max_tokens=2)
    done.text()
    done.close()
    assert done.finish_reason == "max_tokens"


def test_eos_ends_the_text(model, monkeypatch):
    greedy = model.generate(PROMPT, max_tokens=10, ignore_eos=True)
    text = greedy.text()
    model.file.model["eos_ids"] = [greedy.token_ids[4]]
    generation = model.generate(PROMPT, max_tokens=10)
    assert text.startswith(generation.text())
    assert generation.finish_reason == "eos"
    assert generation.token_ids[-1] == greedy.token_ids[4]


def test_the_context_ends_the_text(model):
    prompt = [0] + [5] * (model.context - 3)
    generation = model.generate(prompt, max_tokens=100, ignore_eos=True)
    generation.text()
    assert generation.finish_reason == "context"
    assert len(prompt) + len(generation.token_ids) == model.context + 1
    full = model.generate([0] * model.context, ignore_eos=True)
    full.text()
    assert (full.finish_reason, len(full.token_ids)) == ("context", 1)


def test_long_prompts_are_prefilled_in_chunks(model):
    prompt = list(range(400))
    generation = model.generate(prompt, max_tokens=2, ignore_eos=True)
    generation.text()
    assert generation.token_ids[0] == int(model.logits(prompt)[-1].argmax())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "expected max_tokens 1 or more"),
        ({"temperature": -1.0}, "expected temperature 0 .. 100"),
        ({"temperature": float("nan")}, "expected temperature"),
        ({"top_k": -1}, "expected top_k 0 or more"),
        ({"top_p": 0.0}, "expected top_p above 0"),
        ({"min_p": 1.0}, "expected min_p 0 or more, below 1"),
        ({"repetition_penalty": 0.0}, "expected repetition_penalty above 0"),
        ({"top_p": 1e-50}, "expected top_p above 0, at most 1, in float32, got 1e-50"),
        ({"min_p": 1 - 1e-12}, "expected min_p 0 or more, below 1, in float32, got 0.99999"),
        ({"repetition_penalty": 1e-50}, "expected repetition_penalty above 0.*, got 1e-50"),
        ({"top_p": float("nan")}, "expected top_p above 0.*, got nan"),
        ({"top_p": 1e300}, "expected top_p above 0.*, got 1e"),
        ({"repetition_window": -1}, "expected repetition_window 0 or more"),
        ({"seed": -1}, "expected seed 0"),
        ({"stop": ("",)}, "stop strings must be non-empty text"),
    ],
)
def test_parameters_are_checked(arguments, message, model):
    with pytest.raises(ArgumentError, match=message):
        model.generate(PROMPT, **arguments)


def test_prompts_are_checked(model):
    with pytest.raises(ArgumentError, match=r"expected a prompt of 1 \.\. 512 tokens, got 0"):
        model.generate([])
    with pytest.raises(ArgumentError, match="got 513"):
        model.generate([0] * 513)
    with pytest.raises(TokenizerError):
        model.generate("lone surrogate: \ud800")
    with pytest.raises(ArgumentError, match="token id"):
        next(model.generate([5000]))


def test_sampler_and_model_must_agree(model):
    model.session.step(0, 0)
    with pytest.raises(ArgumentError, match="sampler for 5 tokens, model has 2048"):
        model.session.sample(_engine.Sampler(5))


@pytest.mark.parametrize("recent", [None, array("i", [5, 7, 5])])
def test_next_is_step_and_sample(recent, bte):
    one, two = bitnet_edge.load(bte, threads=1).session, bitnet_edge.load(bte, threads=1).session
    options = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.3}
    first, second = (_engine.Sampler(2048, 3, **options) for _ in range(2))
    token = 0
    for position in range(20):
        two.step(token, position)
        expected = two.sample(second, recent)
        assert one.next(first, token, position, recent) == expected
        assert bytes(one.logits) == bytes(two.logits)
        token = expected


def test_next_checks_its_arguments(model):
    session, sampler = model.session, _engine.Sampler(2048)
    with pytest.raises(ArgumentError, match="sampler for 5 tokens, model has 2048"):
        session.next(_engine.Sampler(5), 0, 0)
    with pytest.raises(ArgumentError, match="token id.*expected 2048, got 2048"):
        session.next(sampler, 2048, 0)
    with pytest.raises(ArgumentError, match="position"):
        session.next(sampler, 0, 1)
    with pytest.raises(TypeError):
        session.next(sampler, 0, 0, "text")
    penalising = _engine.Sampler(2048, repetition_penalty=2.0)
    with pytest.raises(ArgumentError, match="no finite logit to choose from"):
        session.next(penalising, 0, 0, array("i", [-1]))
    session.next(sampler, 0, 0)  # none of them left it busy
