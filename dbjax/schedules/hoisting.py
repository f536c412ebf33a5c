"""Functions whose constants are arguments, so that one compiled program serves all of them.

`optax.sgd(0.1)` and `optax.sgd(0.2)` are the same program with another number in it. Traced by jax,
they are equations that differ in a constant. Compiled as a function of that constant, they are
compiled once for all rates of a sweep.

The bytes of results must not change. XLA rewrites some operations with a constant, such as a
division, merges two constants that follow each other, and computes a sum of two products in an
order of its own; such constants stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_FAMILIES = {"mul": "product", "div": "product", "add": "sum", "sub": "sum"}
_PRODUCTS = {"mul", "integer_pow", "square"}
_MOVES = {  # they change no value
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "copy",
    "convert_element_type", "neg",
}  # fmt: skip


class _Equation(NamedTuple):
    """One operation; values have numbers."""

    primitive: Any
    params: dict[str, Any]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@final
class Hoisted:
    """A function whose floating-point constants are arguments.

    Two of these are equal if they differ in their `constants` only. That the bytes are the same is
    tested for the rules of optax; for a function of one's own, a last bit may differ.

    Args:
      function: the function.
      *like: arguments of the shapes and dtypes that it will be called with.

    Attributes:
      constants: the constants of this function, an array each.
    """

    def __init__(self, function: Callable[..., Any], *like: Any) -> None:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*like)
        self._structure = jax.tree.structure(shapes)
        self._inputs = len(program.jaxpr.invars)
        self._values = self._inputs  # the number of values so far
        self._constants: dict[int, Any] = {}
        self._equations: list[_Equation] = []
        avals = [variable.aval.str_short() for variable in program.jaxpr.invars]
        self._outputs = self._flat(program, range(self._inputs))
        hoisted = _Constants(self._constants, self._equations).hoisted()
        self._hoisted = list(hoisted)
        self.constants = [jnp.asarray(self._constants.pop(at)) for at in self._hoisted]
        self._outline: Any = self._structure, "\n".join((repr(avals), *self._lines()))

    def __call__(self, constants: Sequence[Any], *args: Any) -> Any:
        """Calls the function with other constants."""
        known = dict(self._constants) | dict(zip(self._hoisted, constants, strict=True))
        known.update(enumerate(jax.tree.leaves(args)))
        for equation in self._equations:
            found = _done(equation, [known[at] for at in equation.reads])
            several = equation.primitive.multiple_results
            known.update(zip(equation.writes, found if several else [found], strict=True))
        return jax.tree.unflatten(self._structure, [known[at] for at in self._outputs])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hoisted) and other._outline == self._outline

    def __hash__(self) -> int:
        return hash(self._outline)

    def _flat(self, program: ClosedJaxpr, args: Sequence[int]) -> list[int]:
        """Appends the equations of a program and of the jitted functions that it calls."""
        number = dict(zip(program.jaxpr.invars, args, strict=True))
        for variable, value in zip(program.jaxpr.constvars, program.consts, strict=True):
            number[variable] = self._new(value)

        def read(variable: Any) -> int:
            if isinstance(variable, Literal):
                aval: Any = variable.aval
                return self._new(np.asarray(variable.val, aval.dtype))
            at: int = number[variable]
            return at

        for equation in program.jaxpr.eqns:
            reads = tuple(map(read, equation.invars))
            if equation.primitive.name in ("jit", "pjit"):
                writes = self._flat(equation.params["jaxpr"], reads)
            else:
                writes = [self._new() for _ in equation.outvars]
                made = _Equation(equation.primitive, equation.params, reads, tuple(writes))
                self._equations.append(made)
            number.update(zip(equation.outvars, writes, strict=True))
        return list(map(read, program.jaxpr.outvars))

    def _new(self, constant: Any = None) -> int:
        at = self._values
        self._values += 1
        if constant is not None:
            self._constants[at] = constant
        return at

    def _lines(self) -> Iterator[str]:
        """Yields everything but the values of the constants that are hoisted.

        What other programs hold, such as the branches of a `cond`, is not compared: a function that
        has any is equal to itself only.
        """
        if any(map(_holds_programs, self._equations)):
            yield f"only {id(self)}"
        for at, value in self._constants.items():
            array = _plain(value)
            yield f"{at} = {array.dtype} {array.shape} {array.tobytes().hex()}"
        for at, constant in zip(self._hoisted, self.constants, strict=True):
            yield f"{at} is {constant.dtype} {constant.shape}"
        for primitive, params, reads, writes in self._equations:
            yield f"{writes} = {primitive.name} {reads} {sorted(params.items())}"
        yield repr(self._outputs)


def _holds_programs(equation: _Equation) -> bool:
    """Returns whether an operation has functions among its parameters."""
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda v: isinstance(v, (Jaxpr, ClosedJaxpr))
    )
    return any(isinstance(leaf, (Jaxpr, ClosedJaxpr)) or callable(leaf) for leaf in leaves)


def _plain(value: Any) -> Any:
    """Returns a constant as an array of NumPy."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _done(equation: _Equation, given: Sequence[Any]) -> Any:
    """Does the operation of an equation."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # older and newer jax
    return equation.primitive.bind(*functions, *given, **params)


class _Constants:
    """Decides which constants of a program can be hoisted."""

    def __init__(self, constants: dict[int, Any], equations: Sequence[_Equation]) -> None:
        self._constants = constants
        self._maker = {at: one for one in equations for at in one.writes}
        self._users: dict[int, list[_Equation]] = {}
        for equation in equations:
            for at in equation.reads:
                self._users.setdefault(at, []).append(equation)

    def hoisted(self) -> Iterator[int]:
        for at, value in self._constants.items():
            if _is_plain_number(value) and self._may_vary(at):
                yield at

    def _may_vary(self, at: int) -> bool:
        """Returns whether XLA does the same with the value when it does not know it."""
        return all(
            self._may_vary(user.writes[0])
            if user.primitive.name in _MOVES
            else user.primitive.name in ("mul", "add", "sub") and not self._merges(user, at)
            for user in self._users.get(at, ())
        )

    def _merges(self, equation: _Equation, constant: int) -> bool:
        """Returns whether XLA may merge the constant with the one of another operation."""
        family = _FAMILIES[equation.primitive.name]
        others = [at for at in equation.reads if at != constant]
        if len(others) != 1 or self._is_constant(others[0]):
            return True
        before, uses = self._made_by(others[0]), list(self._uses(equation))
        if any(self._has_constant(one, family) for one in (before, *uses)):
            return True
        if family == "sum" and before is not None and before.primitive.name in _FAMILIES:
            return True
        if before is not None and before.primitive.name == "sign":  # it chooses among constants
            return any(_FAMILIES.get(use.primitive.name) == "product" for use in uses)
        return family == "product" and any(map(self._adds_products, uses))

    def _adds_products(self, equation: _Equation) -> bool:
        """Returns whether two products are added up.

        The compiler makes one multiplication and the addition a single operation, and the choice
        between the two depends on what it knows of their factors.
        """
        if _FAMILIES.get(equation.primitive.name) != "sum":
            return False
        makers = [self._made_by(at) for at in equation.reads]
        return all(maker is not None and maker.primitive.name in _PRODUCTS for maker in makers)

    def _made_by(self, at: int) -> _Equation | None:
        maker = self._maker.get(at)
        while maker is not None and maker.primitive.name in _MOVES:
            maker = self._maker.get(maker.reads[0])
        return maker

    def _uses(self, equation: _Equation) -> Iterator[_Equation]:
        for at in equation.writes:
            for user in self._users.get(at, ()):
                if user.primitive.name in _MOVES:
                    yield from self._uses(user)
                else:
                    yield user

    def _has_constant(self, equation: _Equation | None, family: str) -> bool:
        if equation is None or _FAMILIES.get(equation.primitive.name) != family:
            return False
        return any(map(self._is_constant, equation.reads))

    def _is_constant(self, at: int) -> bool:
        maker = self._made_by(at)
        if maker is not None:
            return False
        while at in self._maker:
            at = self._maker[at].reads[0]
        return at in self._constants


def _is_plain_number(value: Any) -> bool:
    """Returns whether a value is a number that XLA has no special treatment for."""
    array = _plain(value)
    if array.ndim or not jnp.issubdtype(array.dtype, np.floating):
        return False
    number = float(array)
    return math.isfinite(number) and abs(number) not in (0.0, 1.0)
