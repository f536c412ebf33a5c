"""What is written down comes back as it was; what is not known is refused."""

import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from dbjax.checkpoint.encoding import ArrayTable, decode, encode, resolve_nodes
from dbjax.checkpoint.exact.freeze import Freezer
from dbjax.checkpoint.exact.names import Names
from dbjax.checkpoint.exact.ours import add_package_of
from dbjax.checkpoint.exact.thaw import thaw
from dbjax.checkpoint.trees import Structures
from dbjax.errors import NodeDied, ServiceError
from dbjax.optim.elementwise import AbsentLeaf
from dbjax.parameter_server.shard import ShardCounts, Snapshot
from dbjax.runtime.futures import Future, all_of

PLAIN = [
    None, True, 3, 2**80, "text", 0.1, -0.0, math.inf, (1, [2.5, {"a": (None,)}]),
    {1: 2, (1, 2): 3}, {"b": {1, 2}}, collections.deque([1, 2], 5),
    collections.Counter("abca"), ShardCounts(applied=3), Snapshot(3, {}, 8), optax.EmptyState(),
]  # fmt: skip
ARRAYS = [
    jnp.arange(6.0).reshape(2, 3), np.arange(3), jnp.float32(0.1), np.float64(0.1),
    jnp.ones(3, jnp.bfloat16), jnp.zeros((0, 2)), optax.adam(0.1).init({"w": jnp.ones(3)}),
]  # fmt: skip


def through(value, structures=None):
    """Logical checkpoints: through JSON."""
    arrays = ArrayTable(structures)
    encoded = json.loads(json.dumps(encode(value, arrays), allow_nan=False))
    return resolve_nodes(decode(encoded, arrays.values), structures or Structures())


class Holder:
    """Something of ours that a program is built of."""

    def __init__(self, held=None):
        self.held = held

    def method(self):
        return self.held


add_package_of(__name__)


def again(value, structures=None, unsettled=()):
    """Exact checkpoints: from one program into the same one, built anew."""
    arrays, one, other = ArrayTable(structures), Holder(), Holder()
    names = Names(one)
    one.held = value
    nodes = Freezer(names, arrays, unsettled).table(one)
    nodes = json.loads(json.dumps(nodes, allow_nan=False))
    return thaw(nodes, arrays.values, Names(other), structures).held


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, (np.ndarray, jnp.ndarray)):
        assert a.dtype == b.dtype
        assert a.weak_type == b.weak_type if isinstance(a, jnp.ndarray) else True
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        list(map(same, a, b))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        list(map(same, a.values(), b.values()))
    else:
        assert repr(a) == repr(b)


@pytest.mark.parametrize("value", PLAIN, ids=repr)
@pytest.mark.parametrize("way", [through, again])
def test_plain_values_come_back(value, way):
    same(value, way(value))


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: type(value).__name__)
def test_arrays_come_back(value):
    same(value, again(value))
    for a, b in zip(*map(jax.tree.leaves, (value, through(value))), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: object
    activation: object = dataclasses.field(metadata={"static": True}, default=jax.nn.relu)


@jax.tree_util.register_pytree_node_class
class Pair:
    def __init__(self, left, right, how):
        self.left, self.right, self.how = left, right, how

    def tree_flatten(self):
        return (self.left, self.right), self.how

    @classmethod
    def tree_unflatten(cls, how, parts):
        return cls(*parts, how)


Pair.__module__ = Layer.__module__ = "elsewhere"  # not of the algorithm's package, as a user's
sys.modules["elsewhere"] = types.SimpleNamespace(Pair=Pair, Layer=Layer)
ONES = jnp.ones((2, 3))
NETWORK = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
TREES = {
    "frozen": FrozenDict({"a": {"b": ONES}}),
    "state": nnx.state(NETWORK, nnx.Param),
    "module": NETWORK,
    "dataclass": {"layers": [Layer(ONES), Layer(ONES, jnp.tanh)]},
    "custom": (Pair(ONES, None, lambda: 0), Pair(ONES, {}, {"a": (1, "x")})),
    "keys": {0: ONES, 7: {(1, "a"): ONES}},
    "dicts": collections.OrderedDict(b=ONES, a=collections.defaultdict(list, c=ONES)),
    "masked": [ONES, optax.MaskedNode(), None, (ONES, optax.MaskedNode())],
    "absent": [ONES, AbsentLeaf((3, 2), "bfloat16")],
    "random": {"w": jax.random.key(3)},
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("way", [through, again])
def test_a_rules_state_has_the_structure_of_the_users_tree(name, way):
    """What of it cannot be written down, such as functions, is that of the program that reads."""
    tree = TREES[name]
    value = {"rule": optax.trace(0.9).init(tree) if name != "random" else tree, "n": ShardCounts(1)}
    back = way(value, Structures(tree))
    assert jax.tree.structure(back["rule"]) == jax.tree.structure(value["rule"])
    for a, b in zip(*map(jax.tree.leaves, (value["rule"], back["rule"])), strict=True):
        assert a.dtype == b.dtype
        assert jnp.array_equal(a, b)


@pytest.mark.parametrize("way", [through, again])
def test_what_the_program_does_not_know_is_not_made(way):
    value = [Layer(ONES, lambda x: x)]
    with pytest.raises(TypeError, match=r"cannot hold a builtins\.function"):
        way(value, Structures(TREES["dataclass"]))
    arrays = ArrayTable(Structures(TREES["dataclass"]))
    encoded = encode(TREES["dataclass"], arrays)
    for other in (Structures(), Structures(TREES["custom"])):
        with pytest.raises(ValueError, match="this program's parameters have no such Layer"):
            resolve_nodes(decode(encoded, arrays.values), other)


@pytest.mark.parametrize("kind", ["builtins:object", "subprocess:Popen", "pathlib:Path"])
def test_what_is_no_pytree_is_not_made(kind):
    with pytest.raises(ValueError, match=r"is not a pytree node|known here"):
        decode(["tree", kind, None, 1], [])


def test_scalars_keep_that_their_type_is_weak():
    for way in (again, through):
        assert way(jnp.asarray(1.5)).weak_type
        assert not way(jnp.float32(1.5)).weak_type


def test_an_array_is_stored_once_and_shared_again():
    array = jnp.arange(4.0)
    arrays = ArrayTable()
    encode([array, array, array + 0], arrays)
    assert len(arrays.values) == 2
    back = through([array, array])
    assert back[0] is back[1]


def test_what_is_shared_stays_shared_and_circles_close():
    shared, ring = [1], Holder()
    ring.held = (ring, shared)
    first, second, back = again((shared, shared, ring))
    assert first is second is back.held[1]
    assert back.held[0] is back
    apart = again(([1], [1]))
    assert apart[0] is not apart[1]


def test_methods_closures_and_partials_come_back():
    def add(number, by=2):
        return number + by + offset

    offset, holder = 10, Holder(5)
    method, closure, partial, builtin = again(
        (holder.method, add, functools.partial(add, by=3), list)
    )
    assert (method(), closure(1), partial(1), builtin) == (5, 13, 14, list)
    assert again(all_of) is all_of


def test_futures_wait_on():
    waited = Future("a"), Future("b")
    together = all_of(waited, sum)
    (a, b), total = again((waited, together))
    a.set_result(1)
    assert not total.done()
    b.set_result(2)
    assert total.result() == 3
    assert not together.done()


def test_blank_futures_are_settled_by_somebody_else():
    future = Future("a")
    future.set_result(3)
    assert again(future).result() == 3
    assert not again(future, unsettled=[future]).done()


def test_errors_generators_and_counts_come_back():
    error = ServiceError("text")
    error.__cause__ = NodeDied("cause")
    count, draws = itertools.count(), np.random.default_rng(3)
    next(count), draws.normal(size=3)
    back, number, drawing = again((error, count, draws))
    assert repr(back) == repr(error)
    assert repr(back.__cause__) == repr(error.__cause__)
    assert next(number) == next(count) == 1
    assert drawing.normal() == draws.normal()


def test_what_the_program_was_built_of_is_found_by_its_name():
    stream = (part for part in "abc")  # of no kind that can be written down
    arrays, one, other = ArrayTable(), Holder([stream]), Holder([iter(())])
    names = Names(one)
    one.held = {"built": stream}
    thaw(Freezer(names, arrays, ()).table(one), [], Names(other))
    assert list(other.held["built"]) == []
    with pytest.raises(ValueError, match="nothing in this program"):
        thaw(Freezer(names, arrays, ()).table(one), [], Names(Holder()))


@pytest.mark.parametrize(
    ("one", "other"),
    [(lambda x: x * 0.1, lambda x: x * 0.9), (lambda x: x.sin(), lambda x: x.cos()),
     (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
     (lambda x: x in {"a", "b"}, lambda x: x in {"a", "c"})],
)  # fmt: skip
def test_functions_that_do_something_else_have_another_digest(one, other):
    from dbjax.checkpoint.exact.names import _digest

    assert _digest(one.__code__) != _digest(other.__code__)
    assert _digest(one.__code__) == _digest(one.__code__.replace(co_firstlineno=7))


def test_another_program_has_another_digest():
    def make(rate):
        return lambda: rate

    digests = [Names(Holder((make(rate), width))).digest
               for rate, width in ((0.1, np.zeros(2)), (0.1, np.ones(2)), (0.2, np.zeros(2)),
                                   (0.1, np.zeros(3)))]  # fmt: skip
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


class Elsewhere:
    pass


Elsewhere.__module__ = "elsewhere"
STRANGE = [pathlib.Path("x"), Elsewhere(), object(), print, iter(())]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: type(value).__name__)
def test_what_is_of_no_known_kind_is_not_written(value):
    with pytest.raises(TypeError, match="cannot hold a"):
        encode([value], ArrayTable())
    one = Holder()
    names = Names(one)
    one.held = value
    with pytest.raises(TypeError, match="cannot hold a"):
        Freezer(names, ArrayTable(), ()).table(one)


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:system", "builtins:object", "no:Class"])
def test_what_is_no_known_class_is_not_made(name):
    with pytest.raises(ValueError, match=r"is not a dataclass|known here"):
        decode(["of", name], [])
    for node in (["of", name], ["error", name, ["tuple"], None]):
        with pytest.raises(ValueError, match=r"is not a class|is not an error"):
            thaw([node], [], Names(Holder()))


@pytest.mark.parametrize("node", [
    ["function", "os", "system"], ["closure", ["os", "system", 1, 0], [], None, None],
    ["closure", ["dbjax.runtime.trace", "Trace.record", 1, 0], [], None, None],
    ["function", "dbjax.runtime.trace", "x"],
    ["list", ["class", "subprocess:Popen"]], ["list", ["method", ["at", 0], "append"]],
    ["list", ["named", "os:stat_result"]], ["nothing"], ["list", ["at", 7]],
    ["generator", {"bit_generator": "MT19937"}],
])  # fmt: skip
def test_no_code_comes_from_a_file(node):
    with pytest.raises(ValueError, match=r"."):
        thaw([node], [], Names(Holder()))
