"""Slices: every element once, balanced to within a row, and back again bit for bit."""

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dbjax.parameter_server import partition_params

shapes = st.lists(st.integers(1, 9), max_size=3).map(tuple)
trees = st.dictionaries(st.sampled_from("abcdef"), shapes, min_size=1)


@settings(max_examples=60, deadline=None)
@given(shapes=trees, shards=st.integers(1, 5))
def test_split_and_join(shapes, shards):
    numbers = iter(range(100_000))
    tree = {
        name: np.array([next(numbers) for _ in range(int(np.prod(shape)))], np.float32).reshape(
            shape
        )
        for name, shape in shapes.items()
    }
    total = sum(leaf.nbytes for leaf in tree.values())
    try:
        partition = partition_params(tree, shards)
    except ValueError:
        assume(False)  # a shard's share fell between two rows
    slices = partition.split(tree)
    joined = partition.join(slices)
    assert all(np.array_equal(joined[name], tree[name]) for name in tree)
    held = np.concatenate([np.ravel(v) for s in slices for v in s.values()])
    assert sorted(held) == list(range(len(held)))  # every element, once
    row = max(leaf.nbytes / max(leaf.shape, default=1) for leaf in tree.values())
    for slice_ in slices:
        size = sum(np.asarray(v).nbytes for v in slice_.values())
        widest = max(leaf.nbytes / min([n for n in leaf.shape if n >= shards] or [max(
            leaf.shape, default=1)]) for leaf in tree.values())  # fmt: skip
        assert abs(size - total / shards) <= max(row, widest) + 1e-6


def test_slices_are_balanced_by_bytes_where_types_differ():
    """240 bytes: 40 numbers of 4, and 40 of 2. By numbers the first shard would have 160."""
    tree = {"a": np.zeros(40, np.float32), "b": np.zeros(40, np.float16)}
    held = [
        [np.asarray(v).nbytes for v in jax.tree.leaves(s)]
        for s in partition_params(tree, 2).split(tree)
    ]
    assert [sum(bytes_) for bytes_ in held] == [120, 120]
    other = {"a": np.zeros(40, np.float16), "b": np.zeros(40, np.float32)}
    held = [
        [np.asarray(v).nbytes for v in jax.tree.leaves(s)]
        for s in partition_params(other, 2).split(other)
    ]
    assert [sum(bytes_) for bytes_ in held] == [120, 120]


def test_leaves_that_are_not_cut_are_passed_on():
    tree = {"a": np.zeros(10), "b": np.zeros(10)}
    slices = partition_params(tree, 2).split(tree)
    assert slices[0]["a"] is tree["a"]
    assert [list(s) for s in slices] == [["a"], ["b"]]


def test_names_say_which_rows():
    tree = {"w": np.zeros((10, 3)), "b": np.zeros(3)}
    assert [list(s) for s in partition_params(tree, 2).split(tree)] == [
        ["b", "w[0:4]"],
        ["w[4:10]"],
    ]


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="shards=3 is too many"):
        partition_params({"a": np.zeros(2)}, 3)
    with pytest.raises(ValueError, match="shards=0"):
        partition_params({"a": np.zeros(2)}, 0)
    with pytest.raises(ValueError, match="params/a/b is the path of 2 leaves"):
        partition_params({"a/b": np.zeros(2), "a": {"b": np.zeros(2)}}, 1)
    with pytest.raises(ValueError, match="params/a is a float"):
        partition_params({"a": 1.0}, 1)


def test_split_and_join_are_traced():
    tree = {"w": np.arange(12.0, dtype=np.float32).reshape(6, 2)}
    partition = partition_params(tree, 3)
    again = jax.jit(lambda t: partition.join(partition.split(t)))(tree)
    assert np.array_equal(again["w"], tree["w"])
