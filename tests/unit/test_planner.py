# SPDX-License-Identifier: MIT
from __future__ import annotations

import dataclasses

import pytest

import bitnet_edge
from bitnet_edge.dtypes import DType
from bitnet_edge.errors import ArgumentError, BudgetExceeded, UnsupportedOp
from bitnet_edge.graph import Node
from bitnet_edge.head_packing import QUANTISED, STORED
from bitnet_edge.lowering import lower
from bitnet_edge.planner import LEAST_CONTEXT, Planner, make_plan
from bitnet_edge.profiles import Profile, load_profile
from tests.graphs import GraphBuilder, decoder, mlp


@pytest.fixture
def profile() -> Profile:
    return load_profile("generic-50mb")


def test_buffers_alive_together_never_overlap(profile):
    plan = make_plan(decoder(layers=3).graph, profile)
    life: dict[str, list[int]] = {}
    for index, instruction in enumerate(plan.lowered.instructions):
        for operand in instruction.operands.values():
            if operand.region == "arena":
                life.setdefault(operand.name, []).append(index)
    size = {n: plan.lowered.row_bytes[n] * plan.prefill_chunk for n in life}
    for a in life:
        assert plan.arena[a] % 64 == 0
        assert plan.arena[a] + size[a] <= plan.arena_bytes
        for b in life:
            together = min(life[a]) <= max(life[b]) and min(life[b]) <= max(life[a])
            apart = plan.arena[a] + size[a] <= plan.arena[b] or (
                plan.arena[b] + size[b] <= plan.arena[a]
            )
            assert a == b or not together or apart, (a, b)


def test_the_arena_is_reused():
    few, many = (make_plan(decoder(layers=n).graph, load_profile("generic-50mb")) for n in (2, 12))
    assert many.arena_bytes == few.arena_bytes


def test_the_budget_adds_up(profile):
    plan = make_plan(decoder().graph, profile, tokenizer_bytes=1000)
    assert plan.budget.needed == sum(plan.budget.classes.values())
    assert plan.budget.classes["arena"] == plan.arena_bytes
    assert plan.budget.classes["kv_cache"] == plan.state_bytes
    assert plan.budget.allowed == profile.private_bytes
    assert plan.budget.to_json()["needed_bytes"] == plan.budget.needed


def test_context_comes_from_profile_model_or_caller(profile):
    graph = decoder(context=100).graph
    assert make_plan(graph, profile).context == 100
    short = dataclasses.replace(profile, default_context=60)
    assert make_plan(graph, short).context == 60
    assert make_plan(graph, short, context=99).context == 99
    assert make_plan(mlp().graph, profile).context == 0


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"context": 0}, "expected context 1 .. 100, got 0"),
        ({"context": 101}, "expected context 1 .. 100, got 101"),
        ({"prefill_chunk": 5000}, "expected prefill_chunk 1 .. 4096, got 5000"),
        ({"threads": 65}, "expected threads 1 .. 64, got 65"),
        ({"kv_dtype": "int2"}, "expected kv_dtype f32, f16, int8 or int4, got 'int2'"),
    ],
)
def test_pinned_choices_are_checked(choice, message, profile):
    with pytest.raises(ArgumentError, match=message):
        make_plan(decoder().graph, profile, **choice)


def private(profile: Profile, megabytes: float) -> Profile:
    return dataclasses.replace(profile, private_mb=megabytes)


def big_cache():
    """A decoder whose f32 KV cache is 8 MB at its full context."""
    return decoder(layers=2, kv_heads=4, heads=4, head_dim=64, hidden=64, context=2048).graph


def test_a_tight_budget_halves_the_cache_then_the_chunk_then_gives_up(profile):
    profile = dataclasses.replace(profile, default_context=2048)
    roomy = make_plan(big_cache(), private(profile, 50))
    assert (roomy.kv_dtype, roomy.prefill_chunk) == (DType.F32, 128)
    needed = roomy.budget.needed / (1 << 20)
    half = make_plan(big_cache(), private(profile, needed - 2))
    assert half.kv_dtype is DType.F16
    small = make_plan(big_cache(), private(profile, half.budget.needed / (1 << 20) - 0.05))
    assert small.kv_dtype is DType.F16
    assert small.prefill_chunk < half.prefill_chunk
    short = make_plan(big_cache(), private(profile, 12))
    assert (short.kv_dtype, short.prefill_chunk) == (DType.I8, 8)
    assert LEAST_CONTEXT <= short.context < 2048
    assert short.budget.needed <= 12 << 20
    with pytest.raises(BudgetExceeded):
        make_plan(big_cache(), private(profile, 12), context=short.context + 1, kv_dtype="int8")


def pins(flags: str) -> dict[str, int | str]:
    words = flags.split()
    return {
        name[2:].replace("-", "_"): int(value) if value.isdigit() else value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }


def test_int4_only_where_int8_leaves_no_useful_context(profile):
    def needed(kv_dtype: str, context: int) -> float:
        plan = make_plan(big_cache(), profile, context=context, kv_dtype=kv_dtype, prefill_chunk=8)
        return plan.budget.needed / (1 << 20)

    profile = dataclasses.replace(profile, default_context=2048)
    least = make_plan(big_cache(), private(profile, needed("int8", LEAST_CONTEXT)))
    assert (least.kv_dtype, least.context) == (DType.I8, LEAST_CONTEXT)
    last = make_plan(big_cache(), private(profile, needed("int8", LEAST_CONTEXT - 1)))
    assert last.kv_dtype is DType.I4
    assert LEAST_CONTEXT < last.context < 2 * LEAST_CONTEXT
    with pytest.raises(BudgetExceeded):
        make_plan(big_cache(), private(profile, needed("int4", LEAST_CONTEXT // 2)))


@pytest.mark.parametrize(
    "pinned",
    [
        {"context": 2048},
        {"context": 2048, "kv_dtype": "f32"},
        {"context": 2048, "kv_dtype": "f32", "prefill_chunk": 64},
        {"context": 2048, "kv_dtype": "int8", "threads": 2},
    ],
)
def test_over_budget_says_by_how_much_and_offers_the_nearest_plans(pinned, profile):
    tight = private(profile, 11.5)
    with pytest.raises(BudgetExceeded) as caught:
        make_plan(big_cache(), tight, **pinned)
    error = caught.value
    assert error.needed > error.allowed == tight.private_bytes
    assert sum(error.breakdown.values()) == error.needed
    over = (error.needed - error.allowed) / (1 << 20)
    assert f"{over:.1f} MB over the allowed 11.5 MB" in str(error)
    assert len(error.nearest) == len(set(error.nearest)) == 3
    for choices in error.nearest:
        assert choices.flags in str(error)
        plan = make_plan(big_cache(), tight, **pins(choices.flags))
        assert plan.flags == choices.flags
        assert plan.budget.over == 0
        longer = dataclasses.replace(choices, context=choices.context + 1)
        if choices.context < 2048:
            assert Planner(big_cache(), tight).needed(longer) > tight.private_bytes


def test_nearest_changes_what_it_must_and_no_more(profile):
    roomy = make_plan(big_cache(), profile, context=2048, kv_dtype="f16", prefill_chunk=128)
    tight = private(profile, roomy.budget.needed / (1 << 20))
    with pytest.raises(BudgetExceeded) as caught:
        make_plan(big_cache(), tight, context=2048, kv_dtype="f32", prefill_chunk=128)
    first, second, third = caught.value.nearest
    assert (first.context, first.kv_dtype, first.prefill_chunk) == (2048, DType.F16, 128)
    assert (second.context, second.kv_dtype, second.prefill_chunk) == (2048, DType.I8, 128)
    assert (third.context, third.kv_dtype, third.prefill_chunk) == (2048, DType.I4, 128)


def test_nothing_fits(profile):
    with pytest.raises(BudgetExceeded, match="no plan fits: the model needs a device") as caught:
        make_plan(big_cache(), private(profile, 1))
    assert caught.value.nearest == ()


def test_a_model_without_a_cache_has_no_flags_for_one(profile):
    assert make_plan(mlp().graph, profile).flags == (
        "--head-dtype stored --prefill-chunk 128 --threads 1 --residency mapped"
    )


def test_the_head_shrinks_only_for_the_store(profile):
    graph = decoder(vocab=4000).graph
    sizes = {
        head: Planner(graph, profile, head_dtype=head).footprint(head).package_bytes / (1 << 20)
        for head in (STORED, *QUANTISED)
    }
    limits = {"stored": sizes["stored"], "int8": sizes["int8"], "int4": sizes["int4"]}
    for head, limit in limits.items():
        store = dataclasses.replace(profile, ota_limit_mb=limit)
        assert make_plan(graph, store).head_dtype == head
    nothing = dataclasses.replace(profile, ota_limit_mb=sizes["int4"] / 2)
    assert make_plan(graph, nothing).head_dtype == "stored"
    assert make_plan(mlp().graph, dataclasses.replace(profile, ota_limit_mb=1e-4))


def test_small_layers_stay_on_one_thread(profile):
    assert make_plan(decoder().graph, profile).threads == 1
    wide = mlp(widths=(800, 800)).graph
    assert make_plan(wide, profile).threads == profile.default_threads
    assert make_plan(decoder().graph, profile, threads=3).threads == 3


def test_plan_by_name_and_object(profile):
    assert bitnet_edge.plan(mlp(), "generic-50mb") == bitnet_edge.plan(mlp(), profile)


# -- lowering -------------------------------------------------------------------------------


def ops_of(source) -> list[str]:
    return [i.op for i in lower(source.graph).instructions]


def test_norms_fuse_with_quantisation_and_tensors_are_quantised_once():
    ops = ops_of(decoder(layers=1))
    assert ops.count("rms_norm_quantize") == 2
    assert ops.count("quantize") == 2  # attention output and gated activation
    assert ops.count("rms_norm") == 1  # before the float head
    assert ops.count("rope_angles") == 1


def test_angles_are_shared_by_layers():
    assert ops_of(decoder(layers=4)).count("rope_angles") == 1


def test_everything_after_the_last_append_is_tail():
    instructions = lower(decoder(layers=2).graph).instructions
    last = max(i for i, ins in enumerate(instructions) if ins.op == "kv_append")
    assert [ins.tail for ins in instructions] == [i > last for i in range(len(instructions))]
    assert all(ins.tail for ins in lower(mlp().graph).instructions)


def test_a_norm_with_another_reader_is_kept_in_float():
    b = GraphBuilder()
    x = b.input("x", 32)
    h = b.norm("norm", x)
    y = b.ternary("linear", h, 32)
    b.node("add", "sum", (h, y), 32)
    source = b.source(["x"], ["sum.out"])
    assert ops_of(source) == ["rms_norm", "quantize", "ternary_linear", "add"]


def test_a_rotated_query_with_another_reader_keeps_its_own_copy():
    b = GraphBuilder()
    x = b.input("x", 32)
    q, k, v = (b.ternary(n, x, 32) for n in ("q", "k", "v"))
    a = b.attention("attention", q, k, v, 2, 2, 16)
    b.node("add", "sum", (q, a), 32)
    source = b.source(["x"], ["sum.out"], context_length=16)
    rope = next(i for i in lower(source.graph).instructions if i.op == "rope")
    assert rope.operands["y"] != rope.operands["x"]


def test_an_output_that_is_also_read_is_refused():
    b = GraphBuilder()
    x = b.input("x", 32)
    h = b.ternary("first", x, 32)
    b.ternary("second", h, 32)
    with pytest.raises(UnsupportedOp, match=r"'first\.out' is an output and also read"):
        lower(b.source(["x"], ["first.out", "second.out"]).graph)


def test_an_op_without_a_lowering_is_named(monkeypatch):
    graph = mlp().graph
    node = dataclasses.replace(graph.nodes[0], op="mystery")
    object.__setattr__(graph, "nodes", (node,))
    assert isinstance(graph.nodes[0], Node)
    with pytest.raises(UnsupportedOp, match=r"\[mystery\] the engine has no lowering"):
        lower(graph)
