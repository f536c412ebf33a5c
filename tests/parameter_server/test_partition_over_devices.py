"""Slices of what is laid out over devices: they follow the devices, and balance all the same."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from dbjax.model_parallel.sharding import Layout, ModelSharding
from dbjax.parameter_server import partition_params

shapes = st.lists(st.integers(1, 9), max_size=3).map(tuple)
trees = st.dictionaries(st.sampled_from("abcdef"), shapes, min_size=1)


@st.composite
def laid_out(draw):
    """Parameters of any shapes, cut along any of the two axes of a mesh."""
    axes = (("a", draw(st.integers(1, 4))), ("b", draw(st.integers(1, 3))))
    tree, rules = {}, []
    for number, (name, shape) in enumerate(sorted(draw(trees).items())):
        size = int(np.prod(shape))
        tree[name] = (1000 * number + np.arange(size, dtype=np.float32)).reshape(shape)
        cut_along = draw(st.permutations(["a", "b", None, None]))
        both = draw(st.booleans()) and [("a", "b")]
        rules.append((name, P(*(both or cut_along)[: len(shape)])))
    return tree, Layout(ModelSharding(axes, tuple(rules), None), tree), draw(st.integers(1, 8))


def partitioned(tree, shards, layout):
    try:
        return partition_params(tree, shards, layout)
    except ValueError:
        assume(False)  # a shard's share fell between two rows


@settings(max_examples=30, deadline=None)
@given(laid_out())
def test_split_and_join_of_what_is_laid_out_over_devices(case):
    tree, layout, shards = case
    partition = partitioned(tree, shards, layout)
    slices = partition.split(tree)
    joined = partition.join(slices)
    assert all(np.array_equal(joined[name], tree[name]) for name in tree)
    held = np.concatenate([np.ravel(v) for s in slices for v in s.values()])
    assert sorted(held) == sorted(np.concatenate([np.ravel(v) for v in tree.values()]))
    names = [name for slice_ in slices for name in slice_]
    assert len(set(names)) == len(names)


@settings(max_examples=100, deadline=None)
@given(laid_out())
def test_no_piece_belongs_to_two_devices_and_they_follow_each_other(case):
    tree, layout, shards = case
    partition = partitioned(tree, shards, layout)
    pieces = [piece for of_shard in partition.shards for piece in of_shard]
    for piece in pieces:
        name = sorted(tree)[piece.leaf]
        region = piece.region or [(0, n) for n in tree[name].shape]
        assert layout.owns(name, piece.device)
        owner = layout.region(name, piece.device)
        assert all(c <= a and b <= d for (a, b), (c, d) in zip(region, owner, strict=True))
    assert [piece.device for piece in pieces] == sorted(piece.device for piece in pieces)


def size_bytes(region):
    return 4 * math.prod(end - begin for begin, end in region)


@settings(max_examples=100, deadline=None)
@given(laid_out())
def test_shards_of_a_group_of_devices_are_balanced(case):
    """To within a row of the largest block, at either end."""
    tree, layout, shards = case
    partition = partitioned(tree, shards, layout)
    of_device = [
        sum(size_bytes(layout.region(name, d)) for name in tree if layout.owns(name, d))
        for d in range(layout.devices)
    ]
    groups = math.gcd(layout.devices, shards)
    if not all(map(sum, np.array_split(of_device, groups))):  # a group would hold nothing
        groups = 1
    devices_each, shards_each = layout.devices // groups, shards // groups
    blocks = [layout.region(name, d) for name in tree for d in range(layout.devices)]
    row = max(row_bytes([end - begin for begin, end in block], shards) for block in blocks)
    leaves = [tree[name] for name in sorted(tree)]
    for shard, pieces in enumerate(partition.shards):
        group = shard // shards_each
        mine = range(group * devices_each, (group + 1) * devices_each)
        assert all(piece.device in mine for piece in pieces)
        regions = [piece.region or [(0, n) for n in leaves[piece.leaf].shape] for piece in pieces]
        share = sum(of_device[device] for device in mine) / shards_each
        assert abs(sum(map(size_bytes, regions)) - share) <= row + 1e-6


def row_bytes(block, shards):
    """Of a block as `partition_params` cuts it."""
    long = [length for length in block if length >= shards]
    return 4 * int(np.prod(block)) / max(1, long[0] if long else max(block, default=1))


def test_a_device_that_holds_nothing_leaves_its_shards_to_the_others():
    tree = {"w": np.zeros((2, 9))}
    layout = Layout(ModelSharding((("a", 2), ("b", 2)), (("w", P(("b", "a"))),), None), tree)
    partition = partition_params(tree, 4, layout)
    assert [{piece.device for piece in pieces} for pieces in partition.shards] == [
        {0},
        {0},
        {2},
        {2},
    ]


def test_names_say_which_part_of_what_a_device_holds():
    tree = {"b": np.zeros(3), "w": np.zeros((10, 8))}
    layout = Layout(ModelSharding((("a", 2),), (("w", P(None, "a")), ("b", P())), None), tree)

    def names(shards):
        return [list(slice_) for slice_ in partition_params(tree, shards, layout).split(tree)]

    assert names(1) == [["b", "w[:,0:4]", "w[:,4:8]"]]
    assert names(2) == [["b", "w[:,0:4]"], ["w[:,4:8]"]]
    assert names(4) == [["b", "w[0:5,0:4]"], ["w[5:10,0:4]"], ["w[0:5,4:8]"], ["w[5:10,4:8]"]]
    rows = Layout(ModelSharding((("a", 2),), (("w", P("a")), ("b", P())), None), tree)
    assert [list(s) for s in partition_params(tree, 2, rows).split(tree)] == [
        ["b", "w[0:5]"],
        ["w[5:10]"],
    ]


def over_two_processes(tree, rules, shards):
    sharding = ModelSharding((("a", 2), ("b", 2)), rules, None, processes=2)
    return partition_params(tree, shards, Layout(sharding, tree))


def test_each_process_has_its_own_shards():
    """Device 0 owns `b`; the first process has devices 0 and 1, the second one 2 and 3."""
    tree = {"b": np.zeros(3), "w": np.zeros((10, 8))}
    partition = over_two_processes(tree, (("w", P(None, ("a", "b"))), ("b", P())), 4)
    parts = [partition.of_process(process, 2) for process in range(2)]
    assert [*parts[0].shards, *parts[1].shards] == list(partition.shards)
    assert [{piece.device for pieces in part.shards for piece in pieces} for part in parts] == [
        {0, 1},
        {2, 3},
    ]
    assert partition.of_process(0, 1) is partition


@pytest.mark.parametrize(
    ("rules", "shards", "said"),
    [
        (P("a"), 3, "shards=3 must be a multiple of processes=2"),
        (P("b"), 2, "process 1 of a replica would hold no parameters"),
    ],
)
def test_processes_without_their_own_shards_are_refused(rules, shards, said):
    with pytest.raises(ValueError, match=said):
        over_two_processes({"w": np.zeros((4, 4))}, (("w", rules),), shards)


def test_what_is_on_no_process_is_refused():
    tree = {"w": np.zeros((4, 4)), "x": np.zeros((2, 0))}
    with pytest.raises(ValueError, match=r"params/x.* has no elements, so it is on no process"):
        over_two_processes(tree, (("w|x", P("a")),), 2)
