"""Dependence analysis: finds out what each element of a traced program's values depends on.

The program (a jaxpr) is only read and never run, so arrays may have any size and the analysis
needs no tolerances. A primitive that this module does not know is assumed to mix elements.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

UNIFORM = "uniform"  # all elements are the same number, which does not depend on any parameter
SHARED = "shared"  # elements do not depend on any parameter but differ, such as random numbers
MIXED = "mixed"  # an element may depend on several elements, or on several parameters

# Each element of the result depends only on the operands' elements at the same position.
_ELEMENTWISE_NAMES = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv
    erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma
    log log1p logistic lt lt_to max min mul ne neg nextafter not or polygamma population_count
    pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
    tanh xor zeta
"""
# The results consist of elements of the first operand, moved or repeated.
_MOVES_NAMES = """
    broadcast_in_dim dynamic_slice expand_dims reshape rev slice split squeeze transpose
"""
# Primitives that call another program, which is one of their parameters.
_CALLS_NAMES = """
    checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit
    pjit remat remat2
"""

_ELEMENTWISE, _MOVES, _CALLS = (
    frozenset(names.split()) for names in (_ELEMENTWISE_NAMES, _MOVES_NAMES, _CALLS_NAMES)
)
_PASSES = frozenset({"optimization_barrier", "sharding_constraint", "pvary"})


class Reads(NamedTuple):
    """The result of the analysis for one value.

    Attributes:
      what: UNIFORM, SHARED, MIXED, or the number of a parameter. With a number, each element
        depends only on that parameter's element at the same position (of its value, gradient or
        state).
      expression: a number that identifies how the value is computed. Two values of one
        `Dependence` with equal numbers are computed in the same way, whatever their shapes.
    """

    what: str | int
    expression: int


def either(a: str | int, b: str | int) -> str | int:
    """Joins the dependences of a value that is computed in one of two ways."""
    if a == b:
        return a
    if a == UNIFORM or b == UNIFORM:
        return b if a == UNIFORM else a
    return MIXED


@final
class Dependence:
    """Analyses programs, and numbers the expressions found in them."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def expression(self, *key: Hashable) -> int:
        """Returns the number of an expression, which is the same for equal keys."""
        return self._numbers.setdefault(key, len(self._numbers))

    def of(self, program: ClosedJaxpr, arguments: Sequence[Reads]) -> list[Reads]:
        """Returns what a program's results depend on, given what its arguments depend on."""
        constants = [self._constant(value) for value in program.consts]
        return self._results(program.jaxpr, [*constants, *arguments])

    def _results(self, program: Jaxpr, inputs: Sequence[Reads]) -> list[Reads]:
        known = dict(zip([*program.constvars, *program.invars], inputs, strict=True))

        def of(variable: Any) -> Reads:
            constant = isinstance(variable, Literal)
            return self._constant(variable.val) if constant else known[variable]

        for step in program.eqns:
            found = self._step(step, [of(variable) for variable in step.invars])
            known.update(zip(step.outvars, found, strict=True))
        return [of(variable) for variable in program.outvars]

    def _constant(self, value: Any) -> Reads:
        try:
            values = np.asarray(value)
        except TypeError:  # a random key
            return Reads(SHARED, self.expression("constant", str(value)))
        uniform = values.size == 1 or (values.size > 1 and bool((values.flat[0] == values).all()))
        of = (values.reshape(-1)[:1], ()) if uniform else (values, values.shape)
        key = str(values.dtype), of[0].tobytes(), of[1]
        return Reads(UNIFORM if uniform else SHARED, self.expression("constant", *key))

    def _step(self, step: Any, inputs: list[Reads]) -> list[Reads]:
        name = step.primitive.name
        if name in _PASSES:
            return inputs
        if name in _ELEMENTWISE:
            return [self._elementwise(step, inputs)]
        if name == "cond":
            return self._branches(step, inputs)
        if name in ("while", "scan"):
            return self._loop(step, inputs)
        if name in _CALLS:
            return self._call(step.params, inputs)
        return self._other(step, inputs)

    def _call(self, params: dict[str, Any], inputs: list[Reads]) -> list[Reads]:
        names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
        called = next(params[name] for name in names if name in params)
        if isinstance(called, Jaxpr):
            return self._results(called, inputs)
        return self.of(called, inputs)

    def _elementwise(self, step: Any, inputs: list[Reads]) -> Reads:
        parameters = repr(sorted((k, v) for k, v in step.params.items() if k != "sharding"))
        key = step.primitive.name, parameters, *(i.expression for i in inputs)
        shape = _shape(step.outvars[0])
        spread = any(  # a single number that is not a constant is broadcast to many elements
            i.what != UNIFORM and _shape(v) != shape
            for i, v in zip(inputs, step.invars, strict=True)
        )
        what = MIXED if spread else _together([i.what for i in inputs])
        return Reads(what, self.expression(*key))

    def _other(self, step: Any, inputs: list[Reads]) -> list[Reads]:
        """Handles a step that moves or mixes elements; only those of parameters become MIXED."""
        name, shapes = step.primitive.name, [_shape(v) for v in step.outvars]
        if name in _MOVES and (inputs[0].what == UNIFORM or _keeps_places(step)):
            return [inputs[0]] * len(shapes)
        parameters = repr(sorted((k, str(v)) for k, v in step.params.items()))
        given = tuple((i.expression, _shape(v)) for i, v in zip(inputs, step.invars, strict=True))
        free = all(i.what in (UNIFORM, SHARED) for i in inputs) and not step.effects
        return [
            Reads(
                MIXED if not free else UNIFORM if math.prod(shape) == 1 else SHARED,
                self.expression(name, parameters, given, place, shape),
            )
            for place, shape in enumerate(shapes)
        ]

    def _branches(self, step: Any, inputs: list[Reads]) -> list[Reads]:
        chosen, *operands = inputs
        branches = [self.of(branch, operands) for branch in step.params["branches"]]
        found = []
        for results in zip(*branches, strict=True):
            what = results[0].what
            for result in results[1:]:
                what = either(what, result.what)
            if chosen.what != UNIFORM:
                what = MIXED
            expressions = (result.expression for result in results)
            found.append(Reads(what, self.expression("cond", chosen.expression, *expressions)))
        return found

    def _loop(self, step: Any, inputs: list[Reads]) -> list[Reads]:
        """Handles `while` and `scan` by iterating until the carried dependences stop growing."""
        loop = _Loop.of(step, inputs)
        carried = [i.what for i in loop.carried]
        while True:
            symbols = [Reads(what, self.expression("carried", i)) for i, what in enumerate(carried)]
            results = self.of(loop.body, [*loop.constants, *symbols, *loop.elements])
            latest = [result.what for result in results[: len(carried)]]
            after = [either(a, b) for a, b in zip(carried, latest, strict=True)]
            if after == carried:
                break
            carried = after
        if loop.condition is not None:
            (goes_on,) = self.of(loop.condition, [*loop.condition_constants, *symbols])
            if goes_on.what != UNIFORM:
                carried = [MIXED] * len(carried)
            results.append(goes_on)
        stacked = [
            SHARED if r.what in (UNIFORM, SHARED) else MIXED
            for r in results[len(carried) : len(step.outvars)]
        ]
        whole = self.expression(
            step.primitive.name,
            str(step.params.get("length")),
            str(step.params.get("reverse")),
            *(result.expression for result in results),
            *(one.expression for one in loop.carried),
        )
        return [
            Reads(what, self.expression("loop", whole, place))
            for place, what in enumerate([*carried, *stacked])
        ]


class _Loop(NamedTuple):
    """The parts of a `while` or `scan` equation."""

    body: ClosedJaxpr
    constants: list[Reads]
    carried: list[Reads]
    elements: list[Reads]  # one for each array that a scan iterates over
    condition: ClosedJaxpr | None = None
    condition_constants: Sequence[Reads] = ()

    @classmethod
    def of(cls, step: Any, inputs: list[Reads]) -> _Loop:
        params = step.params
        if step.primitive.name == "while":
            c, b = params["cond_nconsts"], params["body_nconsts"]
            return cls(
                params["body_jaxpr"],
                inputs[c : c + b],
                inputs[c + b :],
                [],
                params["cond_jaxpr"],
                inputs[:c],
            )
        body = params["jaxpr"]
        # Arrays that a scan iterates over or stacks have one more axis outside the scan.
        inside = [*zip(step.invars, body.jaxpr.invars, strict=True)]
        along = [len(_shape(outer)) > len(_shape(inner)) for outer, inner in inside]
        outside = zip(step.outvars, body.jaxpr.outvars, strict=True)
        carried = sum(len(_shape(outer)) == len(_shape(inner)) for outer, inner in outside)
        constants = len(along) - sum(along) - carried
        elements = [
            _element(one, _shape(inner))
            for one, (_, inner), goes in zip(inputs, inside, along, strict=True)
            if goes
        ]
        return cls(body, inputs[:constants], inputs[constants : constants + carried], elements)


def _element(array: Reads, shape: tuple[int, ...]) -> Reads:
    """Returns what one element along the first axis of an array depends on."""
    if array.what == SHARED and math.prod(shape) == 1:
        return Reads(UNIFORM, array.expression)
    return array if array.what in (UNIFORM, SHARED) else Reads(MIXED, array.expression)


def _together(inputs: list[str | int]) -> str | int:
    """Returns what an elementwise function of several values depends on."""
    others = set(inputs) - {UNIFORM}
    if not others:
        return UNIFORM
    return others.pop() if len(others) == 1 else MIXED


def _keeps_places(step: Any) -> bool:
    """Returns True for a reshape or broadcast that changes nothing."""
    name, same = step.primitive.name, _shape(step.invars[0]) == _shape(step.outvars[0])
    return same and name in ("reshape", "broadcast_in_dim")


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)
