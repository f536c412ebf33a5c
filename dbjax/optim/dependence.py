"""What each value of a traced program depends on, element by element.

The program (a jaxpr) is read, not run: shapes can be of any size, and no tolerance is needed.
A primitive that is not known here counts as one that mixes elements.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

UNIFORM = "uniform"  # the same number in every element, and it depends on no parameter
SHARED = "shared"  # depends on no parameter, but elements differ: they are drawn, or counted
MIXED = "mixed"  # an element may depend on several elements, or on several parameters

# Each element of the result depends on the operands' elements at the same place only.
_ELEMENTWISE_NAMES = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv
    erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma
    log log1p logistic lt lt_to max min mul ne neg nextafter not or polygamma population_count
    pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
    tanh xor zeta
"""
# The results have their first operand's elements, moved or repeated, and no others.
_MOVES_NAMES = """
    broadcast_in_dim dynamic_slice expand_dims reshape rev slice split squeeze transpose
"""
# Calls of another program, which is a parameter of theirs.
_CALLS_NAMES = """
    checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit
    pjit remat remat2
"""

_ELEMENTWISE, _MOVES, _CALLS = (
    frozenset(names.split()) for names in (_ELEMENTWISE_NAMES, _MOVES_NAMES, _CALLS_NAMES)
)
_PASSES = frozenset({"optimization_barrier", "sharding_constraint", "pvary"})


class Reads(NamedTuple):
    """What a value depends on.

    Attributes:
      what: UNIFORM, SHARED, MIXED, or a parameter's number: then each element depends on that
        parameter's element at the same place (of its value, gradient, or state).
      expression: how it is computed, as a number: two values of one `Dependence` that have the
        same are computed alike, whatever their shapes.
    """

    what: str | int
    expression: int


def either(a: str | int, b: str | int) -> str | int:
    """What a value depends on that is now computed in one way and now in another."""
    if a == b:
        return a
    if a == UNIFORM or b == UNIFORM:
        return b if a == UNIFORM else a
    return MIXED


@final
class Dependence:
    """Reads programs; numbers their expressions."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def expression(self, *key: Hashable) -> int:
        """The number of an expression; equal for equal keys."""
        return self._numbers.setdefault(key, len(self._numbers))

    def of(self, program: ClosedJaxpr, arguments: Sequence[Reads]) -> list[Reads]:
        """What the results of a program depend on, given what its arguments depend on."""
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
        spread = any(  # one number, which is no constant, over many elements
            i.what != UNIFORM and _shape(v) != shape
            for i, v in zip(inputs, step.invars, strict=True)
        )
        what = MIXED if spread else _together([i.what for i in inputs])
        return Reads(what, self.expression(*key))

    def _other(self, step: Any, inputs: list[Reads]) -> list[Reads]:
        """A step that moves or mixes elements: harmless where they are no parameter's."""
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
        """While and scan: what is carried depends on all that it depends on in any round."""
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
    """The parts of a while or a scan."""

    body: ClosedJaxpr
    constants: list[Reads]
    carried: list[Reads]
    elements: list[Reads]  # of the arrays that a scan goes along
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
        # Arrays that a scan goes along, and those that it stacks, have an axis more outside of it.
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
    """What an element of an array depends on, along the array's first axis."""
    if array.what == SHARED and math.prod(shape) == 1:
        return Reads(UNIFORM, array.expression)
    return array if array.what in (UNIFORM, SHARED) else Reads(MIXED, array.expression)


def _together(inputs: list[str | int]) -> str | int:
    """What an elementwise function of values depends on."""
    others = set(inputs) - {UNIFORM}
    if not others:
        return UNIFORM
    return others.pop() if len(others) == 1 else MIXED


def _keeps_places(step: Any) -> bool:
    """Whether a reshape or a broadcast changes nothing."""
    name, same = step.primitive.name, _shape(step.invars[0]) == _shape(step.outvars[0])
    return same and name in ("reshape", "broadcast_in_dim")


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)
