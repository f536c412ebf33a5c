"""Mini-batches: parts are disjoint and cover everything, and a step is a pure function."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbjax.data import ArrayExamples, Frames, Stream


@settings(max_examples=80, deadline=None)
@given(
    examples=st.integers(1, 60),
    replicas=st.integers(1, 8),
    batch_size=st.integers(1, 17),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_parts_cover_the_data_and_epochs_cover_the_part(
    examples, replicas, batch_size, epochs, seed
):
    replicas = min(replicas, examples)
    data = ArrayExamples(np.arange(examples))
    streams = [Stream(data, batch_size, seed, r, replicas) for r in range(replicas)]
    assert sorted(np.concatenate([s.part for s in streams])) == list(range(examples))
    sizes = [len(s.part) for s in streams]
    assert max(sizes) - min(sizes) <= 1
    for stream in streams:
        seen = np.concatenate(
            [stream.at(k) for k in range(-(-epochs * len(stream.part) // batch_size))]
        )
        for epoch in range(epochs):
            begin = epoch * len(stream.part)
            one = seen[begin : begin + len(stream.part)]
            assert sorted(one) == sorted(stream.part)


def test_a_step_is_the_same_however_one_comes_to_it():
    data = ArrayExamples({"x": np.arange(50), "y": np.arange(50) * 2})
    one, other = Stream(data, 7, 3, 1, 2), Stream(data, 7, 3, 1, 2)
    in_order = [batch for _, batch in zip(range(20), one, strict=False)]
    for step in (13, 2, 19, 0):
        assert np.array_equal(other.at(step)["x"], in_order[step]["x"])
        assert np.array_equal(other.at(step)["y"], 2 * in_order[step]["x"])
    assert not np.array_equal(Stream(data, 7, 4, 1, 2).at(0)["x"], in_order[0]["x"])
    assert not np.array_equal(in_order[0]["x"], one.at(4)["x"])  # epochs are shuffled anew


def test_frames_gather_their_context_and_never_cross_an_utterance():
    lengths = [3, 1, 4]
    ends = np.cumsum(lengths)
    first = np.repeat(ends - lengths, lengths)
    last = np.repeat(ends - 1, lengths)
    features = np.arange(16, dtype=np.float32).reshape(8, 2)
    frames = Frames(features, np.arange(8, dtype=np.int32), first, last, context=2)
    batch = frames.gather(np.array([7, 0, 3]))
    rows = [[5, 6, 7, 7, 7], [0, 0, 0, 1, 2], [3, 3, 3, 3, 3]]
    assert np.array_equal(batch.inputs, features[rows].reshape(3, 10))
    assert batch.labels.tolist() == [7, 0, 3]
    assert batch.inputs.dtype == np.float32


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="same number of examples"):
        ArrayExamples({"x": np.zeros(3), "y": np.zeros(4)})
    with pytest.raises(ValueError, match="same number of examples"):
        ArrayExamples(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="2 examples cannot be dealt to replicas=3"):
        Stream(ArrayExamples(np.zeros(2)), 1, replicas=3)
    with pytest.raises(ValueError, match="replica=3 is not one of replicas=3"):
        Stream(ArrayExamples(np.zeros(9)), 1, replica=3, replicas=3)


def places(stream, epoch):
    """The order of an epoch, as places in the replica's part."""
    size = len(stream.part)
    chosen = np.concatenate([stream.at(epoch * size + k) for k in range(size)])
    return [int(np.flatnonzero(stream.part == one)[0]) for one in chosen]


def test_every_replica_and_every_epoch_has_an_order_of_its_own():
    """And none is that in which the data was dealt."""
    data = ArrayExamples(np.arange(60))
    streams = [Stream(data, 1, 0, r, 3) for r in range(3)]
    orders = [places(stream, epoch) for stream in streams for epoch in range(3)]
    orders += [places(Stream(data, 1, 1, 0, 3), 0), list(range(20))]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 11


def test_the_data_is_dealt_in_an_order_of_its_own():
    """One that was not shuffled would give replicas neighbours, such as one class each."""
    part = Stream(ArrayExamples(np.arange(60)), 1, 0, 0, 3).part
    assert part.tolist() != list(range(0, 60, 3))
    assert part.tolist() != Stream(ArrayExamples(np.arange(60)), 1, 1, 0, 3).part.tolist()
