"""Which device holds what: every number has one owner, and blocks are equal with their padding."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from dbjax.model_parallel.sharding import Layout, ModelSharding, axes_of


def no_loss(params, batch):
    raise NotImplementedError


def layout(axes, spec, shape):
    return Layout(
        ModelSharding(axes, (("w", spec),), no_loss), {"w": jax.ShapeDtypeStruct(shape, "float32")}
    )


@st.composite
def drawn(draw):
    """A mesh of three axes, and a parameter of up to four dimensions cut along some of them."""
    axes = tuple((name, draw(st.integers(1, 4))) for name in "abc")
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=4)))
    used = draw(st.permutations("abc"))[: draw(st.integers(0, 3))] if shape else ""
    dims = [draw(st.integers(0, len(shape) - 1)) for _ in used]
    spec = [tuple(a for a, d in zip(used, dims, strict=True) if d == dim)
            for dim in range(len(shape))]  # fmt: skip
    return axes, P(*(names or None for names in spec)), shape


def area(shape, region):
    found = np.zeros(shape, int)
    found[tuple(slice(*interval) for interval in region)] = 1
    return found


@settings(max_examples=200, deadline=None)
@given(drawn())
def test_owners_tile_every_parameter_once(case):
    axes, spec, shape = case
    found = layout(*case)
    devices = range(math.prod(size for _, size in axes))
    owned = sum(area(shape, found.region("w", d)) for d in devices if found.owns("w", d))
    assert np.all(owned == 1)
    copies = math.prod(size for name, size in axes if name not in axes_of(spec))
    held = sum(area(shape, found.region("w", d)) for d in devices)
    assert np.all(held == copies)


@settings(max_examples=200, deadline=None)
@given(drawn())
def test_regions_are_the_blocks_of_the_padded_parameter_without_padding(case):
    axes, spec, shape = case
    found, sizes = layout(*case), dict(axes)
    counts = [math.prod(sizes[a] for a in names or ()) for names in spec]
    block, padded = found.block_shape("w"), found.padded_shape("w")
    assert all(p == b * n for p, b, n in zip(padded, block, counts, strict=True))
    for n, b, p in zip(shape, block, padded, strict=True):
        assert p - n < max(1, p // b) <= p  # less than one number more for each device
    places = np.ndindex(*sizes.values())
    for device, place in enumerate(places):  # row by row, as jax has its meshes
        at = dict(zip(sizes, place, strict=True))
        for names, b, n, (begin, end) in zip(
            spec, block, shape, found.region("w", device), strict=True
        ):
            names = names or ()
            index = np.ravel_multi_index(
                [at[a] for a in names] or [0], [sizes[a] for a in names] or [1]
            )
            assert (begin, end) == (min(n, index * b), min(n, (index + 1) * b))


def test_blocks_and_padding_of_a_matrix():
    """10 columns over 4 devices: 3 each, one for the last, which also has 2 of padding."""
    found = layout((("a", 4),), P(None, "a"), (3, 10))
    assert found.block_shape("w") == (3, 3)
    assert found.padded_shape("w") == (3, 12)
    columns = [found.region("w", device)[1] for device in range(4)]
    assert columns == [(0, 3), (3, 6), (6, 9), (9, 10)]


def test_some_devices_may_hold_nothing():
    found = layout((("a", 4),), P("a"), (2,))
    assert [found.region("w", device) for device in range(4)] == [
        ((0, 1),), ((1, 2),), ((2, 2),), ((2, 2),)]  # fmt: skip


def test_what_is_on_all_devices_has_one_owner():
    axes = (("a", 2), ("b", 3))
    everywhere, along_b = layout(axes, P(), (5,)), layout(axes, P("b"), (6,))
    assert [d for d in range(6) if everywhere.owns("w", d)] == [0]
    assert {everywhere.region("w", d) for d in range(6)} == {((0, 5),)}
    assert [d for d in range(6) if along_b.owns("w", d)] == [0, 1, 2]
    assert along_b.region("w", 1) == along_b.region("w", 4) == ((2, 4),)


def test_axes_of_a_rule():
    assert axes_of(P(None, ("a", "b"), "c")) == ("a", "b", "c")
    assert axes_of(P()) == ()


def test_the_first_rule_that_matches_the_whole_path_counts():
    rules = ((r"layers/\d/kernel", P("a")), (r"layers/.*", P(None, "a")))
    sharding = ModelSharding((("a", 2),), rules, no_loss)
    assert sharding.spec("layers/1/kernel") == P("a")
    assert sharding.spec("layers/12/kernel") == P(None, "a")
    with pytest.raises(ValueError, match="params/other/layers/1/kernel: no sharding rule"):
        sharding.spec("other/layers/1/kernel")
    params = {"layers": {"1": {"kernel": np.zeros((4, 4))}}}
    assert sharding.specs(params) == {"layers": {"1": {"kernel": P("a")}}}


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="params/v: no sharding rule matches it"):
        Layout(ModelSharding((("a", 2),), (("w", P()),), no_loss), {"v": np.zeros(3)})
    with pytest.raises(ValueError, match=r"params/w has 1 dimensions, but its .* rule .* has 2"):
        layout((("a", 2),), P(None, "a"), (3,))
    with pytest.raises(ValueError, match=r"rule 'w' shards along 'e', which is not .* of a, b"):
        ModelSharding((("a", 2), ("b", 2)), (("w", P("e")),), no_loss)
    with pytest.raises(ValueError, match="axis 'a' has size 0; it must be an integer of at"):
        ModelSharding((("a", 0),), (), no_loss)
    with pytest.raises(ValueError, match="processes=0 must be an integer of at least 1"):
        ModelSharding((("a", 4),), (), no_loss, processes=0)
    with pytest.raises(ValueError, match=r"4 devices .* over processes=3; use a divisor of 4"):
        ModelSharding((("a", 4),), (), no_loss, processes=3)
    sharding = ModelSharding((("a", 2), ("b", 512)), (), no_loss)
    with pytest.raises(ValueError, match=r"over 1024 .* are \d+; .*jax_num_cpu_devices"):
        sharding.mesh(jax.devices())
