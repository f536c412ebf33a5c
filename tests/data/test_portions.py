"""Portions cover the data once, are kept where there is room, and are read ahead."""

import jax
import numpy as np
import pytest

from dbjax.data import ArrayExamples
from dbjax.data.portions import Portions

DATA = ArrayExamples((np.arange(22, dtype=np.float32), np.arange(22) % 5))


def test_every_example_is_in_one_portion():
    portions = Portions(DATA, 4, seed=3)
    gathered = [np.asarray(portions.gather((i,))[0]) for i in range(portions.count)]
    assert [len(part) for part in gathered] == [4, 4, 4, 4, 4, 2]
    assert sorted(np.concatenate(gathered)) == list(range(22))
    assert portions.size_of([1, 5]) == 6
    assert not np.array_equal(gathered[0], np.asarray(Portions(DATA, 4, seed=4).gather((0,))[0]))


def test_several_at_once_are_one_after_another():
    portions = Portions(DATA, 4)
    one_by_one = np.concatenate([np.asarray(portions.gather((i,))[0]) for i in (4, 1)])
    np.testing.assert_array_equal(portions.gather((4, 1))[0], one_by_one)


@pytest.mark.parametrize(("held_bytes", "again"), [(2**20, True), (40, False)])
def test_what_was_gathered_is_kept_where_there_is_room(held_bytes, again):
    portions = Portions(DATA, 4, held_bytes=held_bytes)
    first = [portions.gather((i,)) for i in range(portions.count)]
    assert (portions.gather((5,)) is first[5]) == again
    assert portions.gather((0,))[0].sum() == first[0][0].sum()


def test_what_is_read_ahead_is_the_same_and_nothing_is_beyond_the_end():
    portions, plain = Portions(DATA, 4), Portions(DATA, 4)
    for portion in (3, 5, 6, 7):
        portions.read_ahead((portion,))
    assert set(portions._coming) == {(3,), (5,)}
    for portion in (3, 5):
        ours, theirs = portions.gather((portion,)), plain.gather((portion,))
        assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs)))
    assert not portions._coming
