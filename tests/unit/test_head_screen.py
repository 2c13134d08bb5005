# SPDX-License-Identifier: MIT
"""Exact screening: the same tokens as the whole head, from a share of its rows."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

import bitnet_edge
from bitnet_edge import _engine
from bitnet_edge.api import import_model
from bitnet_edge.cli import main
from bitnet_edge.container import open_bte
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, InvalidProgram
from bitnet_edge.head_packing import SCREENED, quantise_head
from bitnet_edge.head_screen import keep_rows, row_bounds, token_errors
from bitnet_edge.planner import make_plan
from bitnet_edge.profiles import load_profile
from bitnet_edge.program import encode_program
from bitnet_edge.reference import ReferenceModel, head_product, lane_sum, quantize_wide, widen
from tests.conftest import GOLDEN, checkpoint
from tests.graphs import GraphBuilder, decoder, mlp
from tests.unit.test_program import aligned, index_of, with_record

HEADS = tuple(SCREENED)
SAMPLINGS = [
    {},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_p": 0.02},
    {"repetition_penalty": 1.3, "repetition_window": 20},
    {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.1, "repetition_window": 40},
]
WHOLE = [  # what depends on every logit
    {"temperature": 1.0},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 257},
    {"repetition_penalty": 0.9},
    {"repetition_penalty": 1.2, "repetition_window": 300},
    {"temperature": 1.0, "top_k": 65},  # a 32nd of the rows is 64
]


@pytest.fixture
def restore_cpu():
    yield
    _engine.set_cpu(None)


def lookup(x: np.ndarray, head: np.ndarray, dtype: DType = DType.F32):
    """A model whose logits are any rows times any head: token i has the activations x[i]."""
    b = GraphBuilder()
    ids = b.input("ids", dtype=DType.I32)
    b.constant("table", x.shape)
    b.weights["table"] = x
    b.constant("head", head.shape, dtype)
    b.weights["head"] = head
    rows = b.node("embedding", "embed", (ids, "table"), x.shape[1], multiplier=1.0)
    logits = b.node("linear", "head_linear", (rows, "head", ""), len(head))
    return b.source([ids], [logits], vocab_size=len(head))


def screened(model, token: int, sampler: _engine.Sampler, n_recent: int = 0) -> np.ndarray:
    model.session.step(token, 0, sampler, n_recent)
    return np.array(model.session.logits)


def whole_row(model, token: int) -> np.ndarray:
    model.session.step(token, 0)
    return np.array(model.session.logits)


def expected_rows(x, head, dtype: DType, best: int, margin: float = 0.0) -> np.ndarray:
    """Logits as the engine leaves them, by numpy alone."""
    with np.errstate(all="ignore"):
        codes = quantise_head(head, dtype)
        q, s = quantize_wide(x[None])
        exact, estimates = lane_sum(head * x), head_product(x[None], codes)[0]
        errors, bounds = token_errors(x, q[0], s[0], dtype), row_bounds(head, codes)
    return np.where(keep_rows(estimates, exact, errors, bounds, best, margin), exact, -np.inf)


# -- the engine against numpy ---------------------------------------------------------------


@pytest.mark.parametrize("isa", list(_engine.cpu_isas()))
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("table", [DType.F32, DType.F16, DType.BF16])
def test_the_rows_kept_equal_the_references(head, table, isa, tmp_path, restore_cpu):
    b = GraphBuilder(1)
    b.constant("head", (1500, 130), table)
    weights = b.weights["head"]
    x = np.random.default_rng(2).normal(size=(4, 130)).astype(np.float32)
    x[1] *= np.float32(1e-6)
    x[2, 5] = 40
    path = tmp_path / "m.bte"
    bitnet_edge.export(lookup(x, weights, table), out=path, head_dtype=head)
    wide = widen(weights, table)
    _engine.set_cpu(isa)
    for threads in (1, 2, 3, 4):
        model = bitnet_edge.load(path, threads=threads)
        for best, sampler in (
            (1, _engine.Sampler(1500)),
            (7, _engine.Sampler(1500, temperature=2.0, top_k=7)),
            (46, _engine.Sampler(1500, temperature=1e-3, top_k=46)),
        ):
            margin = {1: 0.0, 7: 2.0**-16, 46: np.float32(1e-3) * np.float32(2.0**-17)}[best]
            for token, row in enumerate(x):
                got = screened(model, token, sampler)
                expected = expected_rows(row, wide, SCREENED[head], best, margin)
                assert got.tobytes() == expected.tobytes()
                whole = whole_row(model, token)
                kept = got > -np.inf
                assert got[kept].tobytes() == whole[kept].tobytes()
                assert best <= kept.sum() < 1500
            assert sampler.screened_rows == 1500 * len(x)
            assert 0 < sampler.rescored_rows < sampler.screened_rows


def rows_of(width: int):
    """Matrices that stretch a bound: huge and tiny rows, zeros, denormals, equal rows."""
    wide = st.floats(-(2.0**100), 2.0**100, width=32)
    tiny = st.floats(-(2.0**-120), 2.0**-120, width=32)
    usual = st.floats(-4, 4, width=32)
    element = st.one_of(usual, usual, wide, tiny, st.sampled_from([0.0, -0.0, 1.0, -1.0]))
    return arrays(np.float32, st.tuples(st.integers(2, 40), st.just(width)), elements=element)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([1, 3, 32, 70]), st.sampled_from(HEADS), st.integers(1, 5))
def test_the_largest_are_never_left_out(data, k, head, best):
    """The bound holds, in the reals, and the engine's choice contains the true top."""
    weights = data.draw(rows_of(k))
    if head == "screened-int4":
        weights = np.clip(weights, -1e5, 1e5)  # beyond these float16 scales end
    weights[-1] = weights[0]  # a tie
    x = data.draw(rows_of(k))[0]
    codes = quantise_head(weights, SCREENED[head])
    q, s = quantize_wide(x[None])
    with np.errstate(all="ignore"):
        estimates, exact = head_product(x[None], codes)[0], lane_sum(weights * x)
        errors, bounds = token_errors(x, q[0], s[0], codes.dtype), row_bounds(weights, codes)
        e = bounds[0].astype(float) * errors[0] + bounds[1].astype(float) * errors[1] + errors[2]
        finite = np.isfinite(estimates) & np.isfinite(exact)
        assert (np.abs(estimates.astype(float) - exact)[finite] <= e[finite]).all()
    got = expected_rows(x, weights, codes.dtype, min(best, len(weights)))
    order = np.argsort(-exact, kind="stable")[:best]
    top = order[exact[order] > -np.inf]
    assert got[top].tobytes() == exact[top].tobytes()
    assert int(np.nan_to_num(got, nan=-np.inf).argmax()) == int(
        np.nan_to_num(exact, nan=-np.inf).argmax()
    )


def adversarial(seed: int, rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations and a head of rows that nearly tie, exactly tie, vanish or tower."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6, k)).astype(np.float32)
    x[1] = rng.choice([-1, 1], k)
    x[2] = 0
    x[3] *= np.float32(1e-30)
    x[4, 0] = 1e6
    x[5, ::2] = np.float32(1e-40)
    head = rng.normal(size=(rows, k)).astype(np.float32)
    head[rows // 2 :] = head[: rows - rows // 2]  # every logit twice
    close = head[5] + rng.normal(size=(rows // 4, k)).astype(np.float32) * np.float32(1e-6)
    head[rows // 4 : rows // 4 + len(close)] = close
    head[::17] *= np.float32(100)
    head[::13] *= np.float32(1e-39)
    head[::19] = 0
    return x, head


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("k", [1, 33, 128, 700])
def test_adversarial_heads_give_the_same_tokens(head, k, tmp_path):
    x, weights = adversarial(k, 600, k)
    path = tmp_path / "m.bte"
    bitnet_edge.export(lookup(x, weights), out=path, head_dtype=head)
    model = bitnet_edge.load(path, threads=2)
    for options in ({}, {"temperature": 1.0, "top_k": 8}, {"temperature": 90.0, "top_k": 3}):
        for penalty, recent in ((1.0, 0), (1.7, 4)):
            for token in range(len(x)):
                screen, whole = (
                    _engine.Sampler(600, 7, repetition_penalty=penalty, **options) for _ in "ab"
                )
                best = np.argsort(-whole_row(model, token), kind="stable")
                ids = np.ascontiguousarray(best[:recent], np.int32) if recent else None
                for _ in range(20):
                    model.session.step(token, 0, screen, recent)
                    got = model.session.sample(screen, ids)
                    model.session.step(token, 0)
                    assert got == model.session.sample(whole, ids)
                assert screen.screened_rows == 600 * 20
                assert whole.screened_rows == 0


def test_logits_that_differ_but_are_equally_far_from_the_largest(tmp_path):
    """Distances are rounded quotients: where they tie, the lower id counts, whatever its logit."""
    steps = np.random.default_rng(0).permutation(9000).astype(np.float32)
    logits = -(np.float32(1.5) + steps * np.float32(2.0**-23))
    logits[77] = 0
    x = np.ones((1, 1), np.float32)
    path = tmp_path / "m.bte"
    bitnet_edge.export(lookup(x, logits[:, None]), out=path, head_dtype="screened-int8")
    model = bitnet_edge.load(path)
    differ = 0
    for temperature in (0.3, 1.0, 3.0, 7.0, 99.0):
        for k in (2, 30, 256):
            distances = -logits / np.float32(temperature)
            first = np.lexsort((np.arange(9000), distances))[:k]
            differ += logits[first].min() < np.sort(logits)[-k]
            sampler = _engine.Sampler(9000, temperature=temperature, top_k=k)
            got = screened(model, 0, sampler)
            assert (got[first] == logits[first]).all()
    assert differ > 0  # the case exists


@pytest.mark.parametrize("head", HEADS)
def test_numbers_that_are_not_finite(head, tmp_path):
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    weights = np.random.default_rng(2).normal(size=(300, 64)).astype(np.float32) * np.float32(1e4)
    x[0, 3], x[1, 5], x[2, 7] = np.nan, np.inf, -np.inf
    x[3] *= np.float32(3e34)  # the larger logits overflow
    x[4] *= np.float32(1e38)
    path = tmp_path / "m.bte"
    bitnet_edge.export(lookup(x, weights), out=path, head_dtype=head)
    model = bitnet_edge.load(path)
    for token in range(len(x)):
        whole = whole_row(model, token)
        for sampler in (_engine.Sampler(300), _engine.Sampler(300, 3, temperature=1.0, top_k=9)):
            got = screened(model, token, sampler)
            valid = whole > -np.inf
            top = np.flatnonzero(valid)[np.argsort(-whole[valid], kind="stable")[:9]]
            wanted = top if sampler.rescored_rows >= 9 else top[:1]
            np.testing.assert_array_equal(got[wanted], whole[wanted])
            if not valid.any():
                with pytest.raises(bitnet_edge.errors.BitnetEdgeError, match="no finite logit"):
                    model.session.sample(sampler)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 0.0, 3e38])
def test_hostile_bounds_are_harmless(value, tmp_path):
    x, weights = adversarial(3, 200, 40)
    path = tmp_path / "m.bte"
    bitnet_edge.export(lookup(x, weights), out=path, head_dtype="screened-int4")
    file = open_bte(path)
    bounds = next(t for t in file.tensors if t.name == "head.bounds")
    at = file.sections["weights"].offset + bounds.offset
    raw = bytearray(path.read_bytes())
    raw[at : at + bounds.bytes] = np.full(400, value, np.float32).tobytes()
    path.write_bytes(raw)
    model = bitnet_edge.load(path)
    for token in range(len(x)):
        got = screened(model, token, _engine.Sampler(200))
        whole = whole_row(model, token)
        assert ((got == whole) | (got == -np.inf)).all()


# -- texts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The bundled model by head dtype."""
    folder = tmp_path_factory.mktemp("screened")
    found = {}
    for head in ("stored", *HEADS):
        found[head] = folder / f"{head}.bte"
        bitnet_edge.export(checkpoint("packed"), out=found[head], head_dtype=head)
    return found


def prompts() -> list[list[int]]:
    with np.load(GOLDEN / "reference.npz") as data:
        return [data[f"packed/{i}/greedy"][:12].tolist() for i in range(len(data["prompts"]))]


@pytest.mark.parametrize("options", SAMPLINGS)
@pytest.mark.parametrize("head", HEADS)
def test_texts_equal_those_of_the_stored_head(head, options, paths, restore_cpu):
    stored = bitnet_edge.load(paths["stored"], threads=1)
    expected = {}
    for seed in range(8):
        for i, ids in enumerate(prompts()):
            generation = stored.generate(ids, 40, seed=seed, ignore_eos=True, **options)
            generation.text()
            assert generation.statistics.rescored_share is None
            expected[seed, i] = generation.token_ids
    runs = [(isa, 1) for isa in _engine.cpu_isas()] + [(None, n) for n in (2, 3, 4)]
    for n, (isa, threads) in enumerate(runs):
        _engine.set_cpu(isa)
        model = bitnet_edge.load(paths[head], threads=threads)
        for (seed, i), token_ids in expected.items():
            if n and seed % 4 != n % 4:
                continue  # a quarter of the seeds for each further run
            generation = model.generate(prompts()[i], 40, seed=seed, ignore_eos=True, **options)
            generation.text()
            assert generation.token_ids == token_ids, (isa, threads, seed, i)
            assert 0 < generation.statistics.rescored_share < 0.4


@pytest.mark.parametrize("options", WHOLE)
def test_samplings_that_need_every_logit_get_it(options, paths):
    stored, model = (bitnet_edge.load(paths[head]) for head in ("stored", "screened-int4"))
    texts = set()
    for loaded in (stored, model):
        generation = loaded.generate([5] * 280, 10, seed=4, ignore_eos=True, **options)
        texts.add(generation.text())
        assert generation.statistics.rescored_share is None
    assert len(texts) == 1


@pytest.mark.parametrize("head", HEADS)
def test_all_logits_are_those_of_the_stored_head(head, paths):
    ids = list(range(300))
    stored, model = (bitnet_edge.load(paths[h], threads=2) for h in ("stored", head))
    model.generate(ids, 2).text()  # a screened run before
    assert np.asarray(model.logits(ids)).tobytes() == np.asarray(stored.logits(ids)).tobytes()
    source = import_model(paths[head])
    small = ids[:20]
    reference = ReferenceModel(source).logits(small)
    assert np.asarray(model.logits(small)).tobytes() == reference.tobytes()


def test_few_rows_of_the_bundled_model_are_read(paths, capsys):
    """What is measured on the golden texts, and bounds about twice that."""
    for head, options, bound in (
        ("screened-int8", {}, 0.0015),
        ("screened-int4", {}, 0.01),
        ("screened-int8", {"temperature": 0.8, "top_k": 40}, 0.045),
        ("screened-int4", {"temperature": 0.8, "top_k": 40}, 0.16),
    ):
        model = bitnet_edge.load(paths[head])
        shares = []
        for ids in prompts():
            generation = model.generate(ids, 100, ignore_eos=True, **options)
            generation.text()
            shares.append(generation.statistics.rescored_share)
        with capsys.disabled():
            print(f"\n  {head} {options or 'greedy'}: {100 * np.mean(shares):.3f} % of the rows")
        assert np.mean(shares) < bound


def test_logits_screened_for_less_are_refused(paths):
    model = bitnet_edge.load(paths["screened-int8"])
    session, greedy = model.session, _engine.Sampler(2048)
    session.step(0, 0, greedy)
    for needs, message in (
        (_engine.Sampler(2048, temperature=1.0), "for the 1 largest, this sampler needs all"),
        (_engine.Sampler(2048, temperature=1.0, top_k=3), "needs 3"),
    ):
        with pytest.raises(ArgumentError, match=message):
            session.sample(needs)
        session.step(0, 0)
        session.sample(needs)
        session.step(0, 0, greedy)
    session.sample(greedy)
    session.step(0, 0, penalising := _engine.Sampler(2048, repetition_penalty=2.0), 1)
    session.sample(penalising, np.zeros(1, np.int32))
    with pytest.raises(ArgumentError, match="for the 2 largest, this sampler needs 3"):
        session.sample(penalising, np.zeros(1, np.int64))  # whatever its items are: two ids
    with pytest.raises((TypeError, BufferError)):
        session.sample(penalising, "no buffer")
    session.sample(penalising)  # and is not left busy
    out = bytearray(2048 * 4)
    session.run((np.zeros(1, np.int32),), (out,), 1)  # always whole
    assert (np.frombuffer(out, np.float32) > -np.inf).all()


def test_what_leaves_the_logits_alone_leaves_what_they_are_good_for(paths):
    session = bitnet_edge.load(paths["screened-int8"]).session
    greedy, whole = _engine.Sampler(2048), _engine.Sampler(2048, temperature=1.0)
    session.step(0, 0, greedy)
    for sampler in (greedy, whole, None):
        with pytest.raises(ArgumentError, match="token id"):
            session.step(2048, 1, sampler)
    session.prefill(np.zeros(1, np.int32), 1, False)  # computes no logits
    assert (greedy.screened_rows, whole.screened_rows) == (2048, 0)
    with pytest.raises(ArgumentError, match="this sampler needs all"):
        session.sample(whole)
    session.step(0, 1)
    with pytest.raises(ArgumentError, match="token id"):
        session.step(2048, 2, greedy)
    session.sample(whole)


# -- the verifier ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=HEADS)
def program(request) -> tuple[bytes, int]:
    source = decoder(layers=1, tied=True, bias=False)
    plan = make_plan(
        source.graph, load_profile("generic-50mb"), context=64, head_dtype=request.param
    )
    last = plan.weights[-1]
    return encode_program(source.graph, plan), last.offset + last.bytes


def test_a_good_program_opens(program):
    assert _engine.Program(program[0], aligned(program[1])).outputs == [(0, 97)]


@pytest.mark.parametrize(
    ("op", "fields", "message"),
    [
        ("screen_linear", {"DIM2": 5}, "head: bits"),
        ("screen_linear", {"DIM1": 0}, "screen: columns .*: expected 1, got 0"),
        ("screen_linear", {"DIM1": (1 << 17) + 1}, "screen: columns .*: expected 131072"),
        ("screen_linear", {"DIM0": 96}, "port width"),
        ("screen_linear", {"OPERAND0": 2 << 56}, "operand region"),
        ("screen_linear", {"OPERAND1": 1 << 56 | 1 << 40}, "operand beyond its region"),
        ("screen_linear", {"FLAGS": 0}, "instruction for all rows after the tail"),
        ("screen_limits", {"DIM2": 7}, "head: bits"),
        ("screen_limits", {"DIM3": 3}, "screen: dtype .*: expected 2, got 3"),
        ("screen_limits", {"DIM0": 1 << 20}, "port width"),
        ("screen_limits", {"OPERAND0": 5 << 56}, "operand region"),
        ("screen_limits", {"OPERAND1": 2 << 56}, "operand region"),
        ("screen_limits", {"OPERAND1": 5 << 56 | 1 << 48}, "port index"),
        ("screen_limits", {"OPERAND5": 1 << 56 | 1 << 40}, "operand beyond its region"),
        ("screen_limits", {"OPERAND6": 2 << 56}, "operand not used by the op"),
        ("screened_linear", {"DIM2": 9}, "screen: dtype"),
        ("screened_linear", {"DIM1": 1 << 17}, "operand"),
        ("screened_linear", {"OPERAND0": 2 << 56}, "operand region"),
        ("screened_linear", {"OPERAND1": 1 << 56}, "operand region"),
        ("screened_linear", {"OPERAND3": 0}, "operand region"),
        ("screened_linear", {"OPERAND4": 1 << 56 | 1 << 40}, "operand beyond its region"),
        ("screened_linear", {"OPERAND4": 1 << 56 | 4}, "operand alignment"),
        ("screened_linear", {"OPCODE": 19}, "unknown opcode .*: expected 18, got 19"),
    ],
)
def test_broken_records_are_refused(op, fields, message, program):
    section, size = program
    broken = with_record(section, index_of(section, op), **fields)
    with pytest.raises(InvalidProgram, match=message):
        _engine.Program(broken, aligned(size))


def test_estimates_must_be_written_before_they_are_read(program):
    section, size = program
    first = index_of(section, "screen_linear")
    # the estimates' instruction becomes one that writes no output
    dead = with_record(section, first, OPCODE=17, DIM3=2)
    with pytest.raises(InvalidProgram):
        _engine.Program(dead, aligned(size))
    limits = index_of(section, "screen_limits")
    rewritten = with_record(section, first, OPCODE=0)
    with pytest.raises(InvalidProgram, match="unknown opcode"):
        _engine.Program(rewritten, aligned(size))
    from bitnet_edge.program import RECORD
    from tests.unit.test_program import FIRST

    a, b = FIRST + first * RECORD.size, FIRST + limits * RECORD.size
    swapped = section[:a] + section[b : b + RECORD.size] + section[a : a + RECORD.size]
    swapped += section[b + RECORD.size :]
    with pytest.raises(InvalidProgram, match="operand read before it is written"):
        _engine.Program(swapped, aligned(size))


# -- plans and files ------------------------------------------------------------------------


def test_a_screened_plan_keeps_the_table_and_adds_codes_and_bounds():
    source = import_model(checkpoint("packed"))
    stored = bitnet_edge.plan(source, head_dtype="stored")
    for head, codes in (("screened-int8", 2048 * 128 + 4 * 2048), ("screened-int4", 2048 * 72)):
        plan = bitnet_edge.plan(source, head_dtype=head)
        assert plan.head_dtype == head
        assert plan.budget.weights - stored.budget.weights == codes + 8 * 2048
        assert plan.weights[: len(stored.weights)] == stored.weights
        assert abs(plan.budget.needed - stored.budget.needed) < 128 * 1024
        assert {"embed", "screen_linear"} <= {i.op for i in plan.lowered.instructions}


@pytest.mark.parametrize("head", HEADS)
def test_planning_anew(head, tmp_path):
    source = decoder(7, tied=True, bias=False)
    first, second = tmp_path / "a.bte", tmp_path / "b.bte"
    bitnet_edge.export(source, out=first, head_dtype=head)
    assert "screened_head" in json.loads(header_of(first))["requires"]
    again = import_model(first)
    assert again.head_dtype == head
    assert bitnet_edge.export(again, out=second, context=50).plan.head_dtype == head
    a, b = open_bte(first), open_bte(second)
    assert bytes(a.section("weights")) == bytes(b.section("weights"))
    for other in ("stored", "int8", "screened-int8"):  # the floats are there: anything goes
        out = bitnet_edge.export(again, out=second, head_dtype=other, force=True)
        direct = bitnet_edge.export(source, out=tmp_path / "c.bte", head_dtype=other, force=True)
        assert out.plan.weights == direct.plan.weights
        files = [open_bte(p) for p in (second, tmp_path / "c.bte")]
        assert bytes(files[0].section("weights")) == bytes(files[1].section("weights"))


def header_of(path) -> bytes:
    raw = path.read_bytes()
    return raw[64 : 64 + int.from_bytes(raw[12:16], "little")]


def test_impossible_screens():
    with pytest.raises(ArgumentError, match=r"without bias .* got 'lm_head.bias'"):
        bitnet_edge.plan(decoder(), head_dtype="screened-int8")
    with pytest.raises(ArgumentError, match="float output layer for head_dtype screened-int4"):
        bitnet_edge.plan(mlp(), head_dtype="screened-int4")
    b = GraphBuilder()
    x = b.input("x", 8)
    b.constant("head", (20, 8))
    b.constant("head.bounds", (8,))
    y = b.node("rms_norm", "norm", (x, "head.bounds"), 8, eps=1e-5)
    source = b.source(["x"], [b.node("linear", "out", (y, "head", ""), 20)])
    with pytest.raises(ArgumentError, match=r"has a tensor 'head.bounds' already"):
        bitnet_edge.plan(source, head_dtype="screened-int8")


def test_command_line(tmp_path, capsys):
    out = tmp_path / "m.bte"
    source = str(checkpoint("packed"))
    assert main(["export", source, "-o", str(out), "--head-dtype", "screened-int8"]) == 0
    text = capsys.readouterr().out
    assert "bit for bit" in text
    assert "what screens the head adds" in text
    assert main(["inspect", str(out), "--verify", "--program"]) == 0
    text = capsys.readouterr().out
    assert "screened_linear" in text
    assert main(["generate", str(out), "ROMEO:\n", "--max-tokens", "8", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["rescored_share"] < 0.05
    assert main(["generate", str(out), "ROMEO:\n", "--max-tokens", "8"]) == 0
    assert "% of the head's rows exact" in capsys.readouterr().err
    assert main(["plan", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["screen_bytes"] > 2048 * 128
