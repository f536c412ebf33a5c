"""Replicas cut over devices: they end where whole ones do, and fetch only what they hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from dbjax.model_parallel.sharding import Layout, ModelSharding
from dbjax.parameter_server.gradient_fn import pieces_held
from dbjax.parameter_server.partition import partition_params
from tests.parameter_server.gradient_fn_runs import SHARDS
from tests.parameter_server.linear_task import RULES, SHAPES
from tests.processes import printed

TOLERANCE = 1e-5  # a few roundings of 6e-8, which 20 steps add to
NUMBER_BYTES = {"network": 4, "linear": 4, "few": 4, "bfloat16": 2}


@pytest.fixture(scope="module")
def runs():
    return printed("tests.parameter_server.gradient_fn_runs")


@pytest.mark.parametrize("shards", SHARDS)
def test_downpour_of_partitioned_replicas_is_that_of_whole_ones(runs, shards):
    """Two replicas of four devices each, in virtual time, where their order is the same."""
    assert runs[f"downpour, {shards} shards"] < TOLERANCE


def test_a_cut_with_another_loss_does_not_agree(runs):
    assert runs["another loss"] > 100 * TOLERANCE


def test_all_devices_of_a_replica_have_the_same_key(runs):
    """Masks, and so results, are those of the whole."""
    assert runs["keyed"] < TOLERANCE
    assert runs["keys of their own"] > 100 * TOLERANCE


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
def test_synchronous_replicas_of_four_devices(runs, runtime):
    assert runs[f"synchronous, {runtime}"] < TOLERANCE


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize("order", ["free", "fixed"])
def test_sandblaster_with_replicas_of_four_devices(runs, order, runtime):
    """Four iterations of L-BFGS: differences of gradients make more of a rounding."""
    assert runs[f"sandblaster, {order}, {runtime}"] < 10 * TOLERANCE


def test_replicas_compile_nothing_after_the_clock_has_started(runs):
    assert "MainThread" in runs["compile"]
    assert [name for name in runs["compile"] if name.startswith("replica/")] == []


def test_a_mesh_keeps_the_order_of_its_devices(runs):
    """Pieces are sent by it; `jax.make_mesh` may choose another."""
    assert runs["kept order"]


def test_a_run_has_as_many_cards_as_its_task_has_devices(runs):
    """Slices of four shards come over one card, or over four; they are not quite equal."""
    assert 2 < runs["times as fast over four cards"] <= 4


def test_one_replica_in_threads(runs):
    assert runs["downpour, threads"] < TOLERANCE


@pytest.mark.parametrize("runtime", ["virtual", "threads"])
@pytest.mark.parametrize("replicas", ["2 of 4", "3 of 4", "2 of 8"])
def test_replicas_in_any_order_on_devices_of_their_own_and_shared_ones(runs, replicas, runtime):
    """Of a loss that is linear, with numbers whose sums are exact: not a bit may differ."""
    assert runs[f"linear, {replicas}, {runtime}"] == 0


@pytest.mark.parametrize("case", NUMBER_BYTES)
def test_a_gradient_of_pieces_is_the_whole_one(runs, case):
    found = runs["moved"][case]
    assert found["fetched"]
    assert found["gradient"] < TOLERANCE


@pytest.mark.parametrize("case", NUMBER_BYTES)
def test_every_device_is_sent_what_it_holds_and_every_piece_comes_back_once(runs, case):
    found = runs["moved"][case]
    assert [sorted(names) for names in found["to_devices"]] == found["holds"]
    back = [name for names in found["from_devices"] for name in names]
    assert sorted(back) == found["pieces"]
    assert total_bytes(found["from_devices"]) == found["bytes"]


def total_bytes(moved):
    return sum(sum(names.values()) for names in moved)


def test_bytes_are_those_of_the_parameters_and_of_what_several_hold(runs):
    for case in ("network", "few"):
        assert total_bytes(runs["moved"][case]["to_devices"]) == runs["moved"][case]["bytes"]
    for case in (
        "linear",
        "bfloat16",
    ):  # `half` is on two devices of each half, `whole` and `scalar` on four
        more = (5 + 3 * (3 + 1)) * NUMBER_BYTES[case]
        found = runs["moved"][case]
        assert total_bytes(found["to_devices"]) == found["bytes"] + more


def test_one_of_four_devices_may_hold_nothing(runs):
    assert runs["moved"]["few"]["holds"][3] == []


def zeros(**shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("devices", [2, 4, 6])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_devices_talk_to_their_own_shards_where_one_number_divides_the_other(devices, factor):
    layout_cut = ModelSharding((("a", devices),), (("w", P(None, "a")), ("b", P("a"))), None)
    params = zeros(w=(18, 23), b=(23,))  # not all devices hold equally much
    layout = Layout(layout_cut, params)
    many = pieces_held(partition_params(params, devices * factor, layout), layout)
    for device, pieces in enumerate(many):
        assert {piece.shard for piece in pieces} == set(
            range(device * factor, (device + 1) * factor)
        )
    for shards in (n for n in (1, 2, 3) if devices % n == 0):
        few = pieces_held(partition_params(params, shards, layout), layout)
        own = [{piece.shard for piece in pieces} for pieces in few]
        assert own == [{device * shards // devices} for device in range(devices)]


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), shards=st.integers(1, 6))
def test_what_a_device_holds_is_its_part_of_every_parameter(rows, columns, shards):
    params = zeros(**SHAPES)
    layout = Layout(ModelSharding((("a", rows), ("b", columns)), RULES, None), params)
    partition = partition_params(params, shards, layout)
    owned = []
    for device, pieces in enumerate(pieces_held(partition, layout)):
        owned += [piece.name for piece in pieces if layout.owns(piece.leaf, device)]
        for name, shape in SHAPES.items():
            counts, expected = np.zeros(shape, int), np.zeros(shape, int)
            expected[at(layout.region(name, device))] = 1
            for piece in pieces:
                if piece.leaf == name:
                    counts[at(piece.region)] += 1
            assert np.array_equal(counts, expected)
    assert sorted(owned) == sorted(piece.name for pieces in partition.shards for piece in pieces)


def at(region):
    return tuple(slice(*interval) for interval in region)
