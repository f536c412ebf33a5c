"""Checks that an update rule is elementwise, as a rule must be that shards apply to slices."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr

from dbjax.optim.dependence import MIXED, Dependence, Reads, either
from dbjax.optim.inputs import as_rule, require_floats

_REMEDY = "use shards=1, or a rule that treats every parameter by itself"
_REMEDY_OF_MASKS = (
    "use shards=1, or give the mask or labels as a tree, or as a function that goes by path or "
    "leaf through jax.tree_util.tree_map_with_path"
)
# Sizes above every threshold of size-dependent rules, such as factored moments. They cost nothing,
# because rules are only traced.
_SHAPES = {"kernel": (1 << 15, 1 << 14), "bias": (1 << 15,), "filters": (3, 3, 512, 1024)}


@final
class AbsentLeaf(optax.MaskedNode):  # type: ignore[misc]  # optax does not export its type
    """A placeholder for a leaf that a shard does not hold.

    Like `optax.MaskedNode`, it is a node without children, so a rule does nothing with it. It has
    a shape and a dtype because a mask that does not use `jax.tree.map`, such as one made with
    `flax.traverse_util.path_aware_map`, may look at them.

    Args:
      shape: the shape of the whole leaf.
      dtype: the name of the leaf's dtype.
    """

    def __new__(cls, shape: Iterable[int], dtype: str) -> AbsentLeaf:
        return cls._make((tuple(shape), dtype))

    @classmethod
    def _make(cls, fields: Iterable[Any]) -> AbsentLeaf:
        return tuple.__new__(cls, tuple(fields))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole leaf."""
        shape: tuple[int, ...] = self[0]
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the leaf."""
        dtype: np.dtype[Any] = np.dtype(self[1])
        return dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions of the whole leaf."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements of the whole leaf."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"AbsentLeaf({self.dtype}{list(self.shape)})"


jax.tree_util.register_pytree_node(
    AbsentLeaf,
    lambda node: ((), tuple(node)),
    lambda fields, _: AbsentLeaf._make(fields),
)


def require_elementwise(
    rule: optax.GradientTransformation,
    dtype: Any = jnp.float32,
    *,
    params: Any = None,
    slices: Sequence[Any] | None = None,
) -> None:
    """Raises unless a rule gives the same updates on slices of the parameters as on the whole.

    This function traces the rule's `init` and `update` on the whole parameters and on slices, and
    reads the traced programs. An element of an update may depend only on the same element of the
    parameters and of the current and earlier gradients, and on scalars such as a step count. It
    must also be computed in the same way on a slice. Nothing is run and no tolerance is needed,
    so the size of the parameters does not matter.

    Args:
      rule: an optax gradient transformation, which will be called as on a shard: with the
        gradient, its state and the parameters.
      dtype: the floating-point type of parameters and gradients; unused if `params` is given.
      params: a pytree of arrays, or of `jax.ShapeDtypeStruct`. None stands for a few large arrays.
        A rule whose mask or labels are pytrees needs the parameters that they were made for.
      slices: what each shard would hold: pytrees like `params` in which a leaf may be smaller,
        or `optax.MaskedNode` if the shard does not hold it. None stands for two slices, each of
        which holds one half of every other leaf.

    Raises:
      ValueError: the rule is not elementwise (it uses a global norm, a norm of a layer, noise
        drawn for a shape, or factored moments), or it cannot run on a shard (it needs the loss),
        or `dtype` is not a floating-point type. The message names the innermost optax
        transformation at fault.
      TypeError: a leaf of `params` is not a floating-point array.
    """
    rule = as_rule("rule", rule)
    if params is not None:
        require_floats(params)
    params = _sample(dtype) if params is None else _shapes(params)
    slices = _halves(params) if slices is None else [_shapes(tree) for tree in slices]
    _require_runs(rule, params)
    reason = _fault(rule, params, slices)
    if reason:
        name = _culprit(rule, lambda part: _runs(part, params) and _fault(part, params, slices))
        raise ValueError(f"{name} {reason}")
    _require_same_shapes(rule, params)


def transforms_of(rule: optax.GradientTransformation) -> str:
    """Describes the transformations that a rule consists of, and their boolean settings.

    Rules with equal descriptions may still differ in learning rates, in masks, and in whatever is
    inside `optax.MultiSteps` or a compiled function, which this function does not inspect.
    """
    switches = [
        f"{name}={value}"
        for name, value in sorted(_closure(rule.update).items())
        if isinstance(value, bool)
    ]
    factory = _closure(rule.update).get("inner_factory")  # of optax.inject_hyperparams
    inner = [factory.__name__] if inspect.isfunction(factory) else []
    parts = map(transforms_of, _parts(rule))
    return f"{_name(rule)}({', '.join([*inner, *parts, *switches])})"


def is_elementwise(rule: optax.GradientTransformation, params: Any, slices: Sequence[Any]) -> bool:
    """Returns True if the rule is elementwise on these slices; see `require_elementwise`."""
    params, slices = _shapes(params), [_shapes(tree) for tree in slices]
    return _runs(rule, params) and not _fault(rule, params, slices)


def require_server_rule(rule: optax.GradientTransformation, params: Any) -> None:
    """Raises unless a rule can run when given only the gradient, its state and all parameters.

    Args:
      rule: an optax gradient transformation.
      params: a pytree of arrays, or of `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: the rule needs the loss, its mask does not match the parameters, or it changes
        the shape of a parameter or of its state. The message names the transformation at fault.
    """
    _require_runs(rule, params)
    _require_same_shapes(rule, params)


def _require_same_shapes(rule: optax.GradientTransformation, params: Any) -> None:
    reason = _trace(rule, params).reshapes
    if reason:
        name = _culprit(rule, lambda part: _runs(part, params) and _trace(part, params).reshapes)
        raise ValueError(f"{name} {reason}; use a rule that keeps every shape")


def _require_runs(rule: optax.GradientTransformation, params: Any) -> None:
    try:
        _trace(rule, params)
    except Exception as error:  # whatever the rule raises
        raise ValueError(
            f"{_culprit(rule, lambda part: not _runs(part, params))} cannot run on a shard or in a "
            "replica, where a rule is given gradient, state and parameters and nothing else: "
            f"{_first_line(error)}; use a rule that needs nothing else and whose mask or labels "
            "match the parameters"
        ) from error


class _Traced(NamedTuple):
    """A rule traced on one pytree of parameters.

    Attributes:
      params: the paths of the parameters.
      state: the paths of the leaves of the rule's state.
      init: the program that makes the initial state.
      update: the program that makes new parameters and a new state.
      reshapes: a description of the first leaf whose shape an update changes; "" if there is none.
    """

    params: list[str]
    state: list[str]
    init: ClosedJaxpr
    update: ClosedJaxpr
    reshapes: str


class _Found(NamedTuple):
    """What the values that a rule computes depend on; the keys of each dict are paths."""

    start: dict[str, Reads]  # the initial state
    new: dict[str, Reads]  # the parameters after an update
    state: dict[str, Reads]  # the state after an update


def _trace(rule: optax.GradientTransformation, params: Any) -> _Traced:
    leaves = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params))
    return _traced(rule, _structure(params), leaves)


@functools.lru_cache(maxsize=1024)  # a run traces each shard's tree several times
def _traced(
    rule: optax.GradientTransformation, structure: Any, leaves: tuple[tuple[Any, Any], ...]
) -> _Traced:
    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = structure.unflatten([jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    init, state = jax.make_jaxpr(rule.init, return_shape=True)(params)
    updating, (new, after) = jax.make_jaxpr(update, return_shape=True)(params, state, params)
    reshapes = ""
    for name, got, expected in (("parameters", new, params), ("state", after, state)):
        if _structure(got) != _structure(expected):
            raise TypeError(f"its update changes the structure of the {name}")
        reshapes = reshapes or _reshaped(name, got, expected)
    return _Traced(_paths(params), _paths(state), init, updating, reshapes)


def _reshaped(name: str, got: Any, expected: Any) -> str:
    leaves = map(jax.tree.leaves, (got, expected))
    for path, after, before in zip(_paths(expected), *leaves, strict=True):
        if after.shape != before.shape:
            return f"changes {path} of the {name} from {list(before.shape)} to {list(after.shape)}"
    return ""


def _fault(rule: optax.GradientTransformation, params: Any, slices: Sequence[Any]) -> str:
    """Says why a rule cannot be applied to slices; returns "" if it can."""
    reading = Dependence()
    numbers = {path: number for number, path in enumerate(_paths(params))}
    whole = _read(_trace(rule, params), numbers, reading)
    if any(r.what != numbers[path] for path, r in whole.new.items()):
        return f"is not elementwise: a shard would apply it to its own slice only; {_REMEDY}"
    for tree in slices:
        try:
            found = _read(_trace(rule, tree), numbers, reading)
        except Exception as error:  # whatever a mask or label function raises
            return (
                "fails on a shard, where leaves that the shard does not hold are "
                f"optax.MaskedNode, which has no leaves: {_first_line(error)}; {_REMEDY_OF_MASKS}"
            )
        if not _alike(found, whole):
            return (
                "behaves differently on a slice than on the whole: it depends on shapes, or on "
                "positions of leaves, but a shard holds only some leaves and may hold only "
                f"part of a leaf; {_REMEDY_OF_MASKS}"
            )
    return ""


def _read(traced: _Traced, numbers: dict[str, int], reading: Dependence) -> _Found:
    """Returns what a rule's updates and state depend on after any number of updates."""

    def given(kind: str) -> list[Reads]:
        return [Reads(numbers[path], reading.expression(kind, path)) for path in traced.params]

    start = reading.of(traced.init, given("parameter"))
    kept = [one.what for one in start]
    while True:
        state = [
            Reads(what, reading.expression("state", path))
            for what, path in zip(kept, traced.state, strict=True)
        ]
        results = reading.of(traced.update, [*given("gradient"), *state, *given("parameter")])
        updates, after = results[: len(traced.params)], results[len(traced.params) :]
        grown = [either(a, b.what) for a, b in zip(kept, after, strict=True)]
        if grown == kept:
            break
        kept = grown
    return _Found(
        dict(zip(traced.state, start, strict=True)),
        dict(zip(traced.params, updates, strict=True)),
        dict(zip(traced.state, after, strict=True)),
    )


def _alike(part: _Found, whole: _Found) -> bool:
    """Returns True if a slice's values are computed like those of the whole tree.

    Values that are MIXED on the whole tree are ignored, because no update uses them.
    """
    pairs = [
        (found, expected.get(path))
        for of_part, expected in zip(part, whole, strict=True)
        for path, found in of_part.items()
    ]
    return all(
        b is not None and (b.what == MIXED or a.expression == b.expression) for a, b in pairs
    )


def _sample(given: Any) -> Any:
    dtype: Any = given
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"require_elementwise: dtype={given!r} must be a floating-point type")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"require_elementwise: dtype={dtype} needs jax_enable_x64")
    return {"layer": {n: jax.ShapeDtypeStruct(shape, dtype) for n, shape in _SHAPES.items()}}


def _halves(params: Any) -> list[Any]:
    """Makes two slices: each holds one half of every other leaf and lacks the remaining leaves."""
    structure, leaves = _structure(params), jax.tree.leaves(params)
    return [
        structure.unflatten(
            [
                _half(leaf) if i % 2 == s else AbsentLeaf(leaf.shape, str(leaf.dtype))
                for i, leaf in enumerate(leaves)
            ]
        )
        for s in range(2)
    ]


def _half(leaf: Any) -> jax.ShapeDtypeStruct:
    shape = list(leaf.shape)
    if shape:
        axis = int(np.argmax(shape))
        shape[axis] -= shape[axis] // 2
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def _runs(rule: optax.GradientTransformation, params: Any) -> bool:
    try:
        _trace(rule, params)
    except Exception:  # whatever the rule raises
        return False
    return True


def _culprit(
    rule: optax.GradientTransformation, at_fault: Callable[[optax.GradientTransformation], object]
) -> str:
    """Returns the name of the innermost rule that is at fault."""
    for part in _parts(rule):
        if at_fault(part):
            return _culprit(part, at_fault)
    return _name(rule)


def _parts(rule: optax.GradientTransformation) -> Iterator[optax.GradientTransformation]:
    """Yields the rules that a combinator, such as optax.chain or optax.masked, closes over."""
    inits, updates = _closure(rule.init), _closure(rule.update)
    for init, update in zip(inits.get("init_fns", ()), updates.get("update_fns", ()), strict=False):
        yield optax.GradientTransformation(init, update)
    for value in updates.values():
        held: Any = (value,)
        if isinstance(value, dict):  # as in optax.multi_transform; sorted for a fixed order
            held = [value[key] for key in sorted(value, key=repr)]
        elif isinstance(value, (tuple, list)) and not isinstance(
            value, optax.GradientTransformation
        ):
            held = [part[-1] if type(part) is tuple and part else part for part in value]
        yield from (x for x in held if isinstance(x, optax.GradientTransformation))


def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return dict(inspect.getclosurevars(function).nonlocals)
    except (TypeError, ValueError):  # not a Python function, or a closure variable is not set yet
        return {}


def _name(rule: optax.GradientTransformation) -> str:
    """Returns the name of the factory that made the rule: the part before `.<locals>`."""
    name = getattr(rule.update, "__qualname__", type(rule.update).__qualname__)
    return str(name).split(".<locals>")[0]
