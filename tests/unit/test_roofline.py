# SPDX-License-Identifier: MIT
"""Predicted speeds: the bytes and products of a token, counted by hand for small models."""

from __future__ import annotations

import dataclasses
import re

import pytest

from bitnet_edge import roofline
from bitnet_edge.exporters.sources.synthetic import load_synthetic
from bitnet_edge.planner import Planner, make_plan
from bitnet_edge.profiles import CoreCluster, Profile, list_profiles, load_profile
from tests.conftest import ROOT
from tests.graphs import decoder, mlp


@pytest.fixture
def profile() -> Profile:
    return dataclasses.replace(
        load_profile("generic-50mb"),
        isa=("scalar", "avx2"),
        cores=(CoreCluster("Some core", 4, 2.0),),
        memory_bandwidth_gbps=10.0,
        default_threads=1,
    )


def test_memory_binds_a_large_model(profile):
    """Every weight once a token: 2B-4T without its embedding, and half of the cache."""
    plan = make_plan(load_synthetic("bitnet-2b-4t").graph, profile, threads=4)
    read = plan.budget.weights + plan.state_bytes / 2
    assert plan.speed.decode == pytest.approx(10e9 * roofline.SHARE_OF_READ / read, rel=0.02)
    assert plan.speed.decode_bound == "memory"
    assert plan.speed.prefill_bound == "compute"
    macs = 30 * (2560 * 2560 * 2 + 2 * 2560 * 640 + 3 * 2560 * 6912)
    seconds = 128 * macs / (45 * 4 * 2e9) + 128256 * 2560 * 2 / 8e9  # the head for one row only
    assert plan.speed.prefill == pytest.approx(128 / seconds, rel=0.1)


def test_streamed_weights_come_at_the_speed_of_the_storage(profile):
    footprint = Planner(load_synthetic("bitnet-2b-4t").graph, profile).footprint("stored")
    choices = {"context": 256, "prefill_chunk": 64, "threads": 4, "state_bytes": 0}
    speed = roofline.predict(
        footprint.lowered, footprint.weights, profile, streamed=True, **choices
    )
    read = footprint.weights_bytes
    assert speed.decode == pytest.approx(profile.storage_read_mbps * 1e6 / read, rel=0.02)
    assert (speed.decode_bound, speed.prefill_bound) == ("storage", "storage")
    # a prompt of 128 tokens in two runs reads the layers twice and the head once
    head = 128256 * 2560 * 2
    assert speed.prefill == pytest.approx(
        128 * profile.storage_read_mbps * 1e6 / (2 * read - head), rel=0.1
    )


def test_a_model_in_cache_is_bound_by_its_products(profile):
    graph = decoder(hidden=256, heads=4, kv_heads=4, head_dim=64, ffn=1024).graph
    slow = dataclasses.replace(profile, memory_bandwidth_gbps=0.5)
    cached = dataclasses.replace(slow, cache_mb=8.0)
    assert make_plan(graph, slow).speed.decode_bound == "memory"
    speed = make_plan(graph, cached).speed
    assert speed.decode_bound == "compute"
    assert speed.decode > make_plan(graph, slow).speed.decode


def test_one_core_draws_no_more_than_it_can(profile):
    graph = load_synthetic("bitnet-2b-4t").graph
    half = dataclasses.replace(profile, memory_bandwidth_one_core_gbps=5.0)
    one, two, four = (make_plan(graph, half, threads=n).speed.decode for n in (1, 2, 4))
    assert two == pytest.approx(2 * one, rel=0.05)
    assert four == pytest.approx(two, rel=0.05)
    assert make_plan(graph, profile, threads=1).speed.decode == pytest.approx(four, rel=0.05)


def test_heads_of_fewer_bytes_are_faster(profile):
    graph = load_synthetic("bitnet-2b-4t").graph
    heads = ("stored", "int8", "screened-int8", "int4")
    speeds = {head: make_plan(graph, profile, head_dtype=head).speed.decode for head in heads}
    assert speeds["stored"] < speeds["screened-int8"] < speeds["int8"] < speeds["int4"]


def test_larger_chunks_read_less(profile):
    graph = load_synthetic("bitnet-2b-4t").graph
    speeds = [make_plan(graph, profile, prefill_chunk=c).speed.prefill for c in (1, 8, 64)]
    assert speeds[0] < speeds[1] < speeds[2]


def test_threads_wait_for_each_other(profile):
    graph = decoder().graph
    one, four = (make_plan(graph, profile, threads=n).speed.decode for n in (1, 4))
    assert four < one


def test_cores_are_taken_fastest_first_and_by_their_width(profile):
    graph = decoder(hidden=256, heads=4, kv_heads=4, head_dim=64, ffn=1024).graph

    def speed(*cores: CoreCluster, threads: int = 1) -> float:
        phone = dataclasses.replace(
            profile, isa=("scalar", "neon", "dotprod"), cores=cores, cache_mb=64.0
        )
        return make_plan(graph, phone, threads=threads).speed.decode

    big, small = CoreCluster("Cortex-A76", 1, 2.0), CoreCluster("Cortex-A55", 3, 2.0)
    wide = CoreCluster("Cortex-X3", 1, 2.0)
    assert speed(big, small) == speed(big)
    assert speed(big, small, threads=4) > speed(big, small)
    assert speed(wide) == pytest.approx(2 * speed(big))
    assert speed(small) == pytest.approx(0.375 * speed(big))


def test_a_model_without_a_cache(profile):
    speed = make_plan(mlp().graph, profile).speed
    assert speed.prefill > 0
    assert speed.decode > 0


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.name)
def test_every_profile_gives_a_prediction(profile):
    plan = make_plan(decoder(layers=2).graph, profile)
    data = plan.speed.to_json()
    assert data["decode_tokens_per_second"] > 0
    assert data["prefill_tokens_per_second"] > 0
    assert {data["decode_bound"], data["prefill_bound"]} <= {"memory", "storage", "compute"}


def test_every_instruction_set_has_its_rates():
    table = (ROOT / "cython_kernels/include/isa_table.def").read_text()
    assert list(roofline._RATES) == re.findall(r"^BE_ISA\((\w+),", table, re.MULTILINE)
    assert all(rate > 0 for rates in roofline._RATES.values() for rate in rates)
