"""Halos: what blocks send each other is what they need, and what they then have is right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbjax.model_parallel import halo
from dbjax.model_parallel.halo import HaloWindow, messages, window
from dbjax.model_parallel.tiles import same, valid


@st.composite
def drawn(draw, most=30):
    """Reads of every kind, also ones that no network has."""
    inputs = draw(st.integers(1, most))
    return HaloWindow(
        inputs,
        outputs=draw(st.integers(1, most)),
        width=draw(st.integers(1, 9)),
        stride=draw(st.integers(1, 4)),
        before=draw(st.integers(0, 9)),
    )


blocks_ = st.integers(1, 9)


def needed(reads, block, blocks):
    """Where a block reads, and what is there if position p has value p + 1."""
    size = -(-reads.outputs // blocks)
    begin = block * size * reads.stride - reads.before
    positions = begin + np.arange((size - 1) * reads.stride + reads.width)
    inside = (positions >= 0) & (positions < reads.inputs)
    return np.where(inside, positions + 1, 0)


def received(reads, target, blocks):
    """(position, value) of all that a block has after the messages; as `window` joins them."""
    size = -(-reads.inputs // blocks)
    found = []
    for message in messages(reads, blocks):
        sources = [source for source, to in message.pairs if to == target]
        if message.offset == 0:
            sources = [target]
        for k in range(message.begin, message.end):
            position = (target + message.offset) * size + k
            found.append((position, position + 1 if sources else 0))
    return found


@settings(max_examples=300, deadline=None)
@given(reads=drawn(), blocks=blocks_)
def test_every_block_gets_what_it_needs(reads, blocks):
    for block in range(blocks):
        has = received(reads, block, blocks)
        positions = [position for position, _ in has]
        assert positions == list(range(positions[0], positions[0] + len(has)))  # contiguous
        missing = set(needed(reads, block, blocks)) - {0} - {value for _, value in has}
        assert not missing


@settings(max_examples=300, deadline=None)
@given(reads=drawn(), blocks=blocks_)
def test_messages_are_in_range_and_to_one_target_each(reads, blocks):
    size = -(-reads.inputs // blocks)
    for message in messages(reads, blocks):
        assert 0 <= message.begin <= message.end <= size
        assert message.begin < message.end or not message.pairs
        for end in (0, 1):
            assert len({pair[end] for pair in message.pairs}) == len(message.pairs)
        for source, target in message.pairs:
            assert source - target == message.offset
            assert 0 <= source < blocks
            assert 0 <= target < blocks


@settings(max_examples=200, deadline=None)
@given(data=st.data(), blocks=blocks_, outputs_each=st.integers(1, 6), stride=st.integers(1, 4))
def test_blocks_that_divide_send_nothing_that_is_not_needed(data, blocks, outputs_each, stride):
    width = data.draw(st.integers(1, 9))
    before = data.draw(st.integers(0, width - 1))  # an output reads what lies where it does
    size = outputs_each * stride
    reads = HaloWindow(blocks * size, blocks * outputs_each, width, stride, before)
    sent = sum((m.end - m.begin) * len(m.pairs) for m in messages(reads, blocks) if m.offset)
    least = sum(
        value > 0 and (value - 1) // size != block
        for block in range(blocks)
        for value in needed(reads, block, blocks)
    )
    assert sent == least


def test_messages_of_a_neighbourhood_of_five():
    """Two positions from either side; at the ends from one."""
    first, own, last = messages(same(12, 5), 3)
    assert (first.offset, first.begin, first.end, first.pairs) == (-1, 2, 4, ((0, 1), (1, 2)))
    assert (own.offset, own.begin, own.end) == (0, 0, 4)
    assert (last.offset, last.begin, last.end, last.pairs) == (1, 0, 2, ((1, 0), (2, 1)))


def test_what_is_wider_than_a_block_comes_from_two():
    sent = {m.offset: (m.begin, m.end, len(m.pairs)) for m in messages(valid(8, 7), 4)}
    assert sent[1] == (0, 2, 3)
    assert sent[2] == (0, 2, 2)


def permuted(x, axis, pairs):
    """What `jax.lax.ppermute` is, which vmap does not know when some get nothing."""
    mine = jnp.asarray([dict(map(reversed, pairs)).get(i, -1) for i in range(9)])
    source = mine[jax.lax.axis_index(axis)]
    return jnp.where(source >= 0, jax.lax.all_gather(x, axis)[source], 0)


@settings(max_examples=20, deadline=None)
@given(reads=drawn(most=12), blocks=st.integers(2, 9))
def test_windows_of_blocks(reads, blocks):
    """Blocks along a dimension of vmap: one device is enough. Nothing is read from the padding."""
    size = -(-reads.inputs // blocks)
    x = np.arange(1, size * blocks + 1, dtype=np.float32).reshape(blocks, size)
    take = functools.partial(window, dim=0, axis="row", blocks=blocks, reads=reads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halo.jax.lax, "ppermute", permuted)
        found = jax.jit(jax.vmap(take, axis_name="row"))(x)
    assert np.array_equal(found, [needed(reads, i, blocks) for i in range(blocks)])


@settings(max_examples=25, deadline=None)
@given(reads=drawn())
def test_the_window_of_the_whole_is_a_slice(reads):
    x = np.arange(1, reads.inputs + 1, dtype=np.float32)
    wide = np.pad(x, (reads.before, reads.outputs * reads.stride + reads.width))
    length = (reads.outputs - 1) * reads.stride + reads.width
    assert np.array_equal(window(x, 0, "row", 1, reads), wide[:length])


def test_a_block_of_another_size_is_refused():
    text = "x has 5 positions along dim=0; with 8 inputs over blocks=2 it must have 4"
    with pytest.raises(ValueError, match=text):
        window(jnp.zeros(5), 0, "row", 2, same(8, 3))
