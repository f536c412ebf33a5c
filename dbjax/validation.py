"""Checks the arguments of a run before anything is placed; each error is one line."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from dbjax.arguments import require_positive, short_repr
from dbjax.monitoring.evaluator import metrics
from dbjax.optim.inputs import leaf_name, require_floats, require_loss
from dbjax.runtime.trace import Row
from dbjax.task import Task
from dbjax.types import loss_of

_NAMED = 3  # how many leaves a message names
_REMEDY = "give the Config of a module of dbjax.algorithms, such as downpour.Config(replicas=4)"


def algorithm_of(config: Any) -> Any:
    """Returns the module of the algorithm that a Config belongs to.

    Raises:
      TypeError: the argument is not the Config of an algorithm.
    """
    if isinstance(config, types.ModuleType):
        name = config.__name__.rpartition(".")[2]
        raise TypeError(f"config is the module {config.__name__}: give {name}.Config(...)")
    if isinstance(config, type):
        raise TypeError(f"config is the class {config.__qualname__}: call it")
    module = importlib.import_module(type(config).__module__)
    if not callable(getattr(module, "program", None)):
        raise TypeError(f"config={short_repr(config)} is not the Config of an algorithm: {_REMEDY}")
    return module


def require_resumable(config: Any) -> None:
    """Raises ValueError if the algorithm's `program` does not take the states to begin with."""
    algorithm = algorithm_of(config)
    try:
        inspect.signature(algorithm.program).bind(None, None, None, None)
    except TypeError as error:
        raise ValueError(
            f"{algorithm.__name__}.program takes only (runtime, task, config), so its runs cannot "
            "be resumed: add a fourth argument, restore=None, and pass it to ParameterServer.serve"
        ) from error


def require_times(
    config: Any, until_s: float | None, evaluate_every_s: float | None = None
) -> None:
    """Raises ValueError unless the run ends, and times are positive."""
    if until_s is not None:
        require_positive("until_s", until_s, "; or None, with steps in the config")
    elif getattr(config, "steps", None) is None:
        raise ValueError("nothing would end this run: give until_s, or steps in the config")
    if evaluate_every_s is not None:
        require_positive("evaluate_every_s", evaluate_every_s, "; or None")


def require_task(task: Any) -> None:
    """Raises TypeError unless the argument is a `Task`."""
    if not isinstance(task, Task):
        call = "call the class" if isinstance(task, type) else "give dbjax.Task(params, loss, data)"
        raise TypeError(f"task={short_repr(task)} is not a Task: {call}")


def require_sound(task: Task) -> list[str]:
    """Checks a task for mistakes that would otherwise show only after the run has begun.

    Returns:
      Warnings about what is allowed but is probably a mistake; see `dbjax.monitoring.health`.

    Raises:
      TypeError: a leaf of the parameters is not a floating-point array.
      ValueError: a batch is larger than the data, the loss is not a real scalar that depends on
        the parameters, or `evaluate` does not return named numbers.
    """
    count = len(task.examples)
    if task.batch_size > count:
        raise ValueError(
            f"Task.batch_size={task.batch_size} is more than all {count} examples; use a smaller "
            "batch_size"
        )
    require_floats(task.shapes)
    warnings = _require_loss(task)
    if task.evaluate is not None:
        _require_metrics(task, metrics(task.evaluate, task.start()))
    return warnings


def _require_metrics(task: Task, found: Row) -> None:
    """Raises ValueError unless the metrics can be compared to `Task.most_frequent`."""
    if task.most_frequent is None:
        return
    name = task.most_frequent.metric
    if name not in found:
        raise ValueError(
            f"Task.most_frequent.metric={name!r} is not among the metrics that Task.evaluate "
            f"returns: {', '.join(found) or 'none'}"
        )
    if found[name] > 1:
        raise ValueError(
            f"Task.evaluate returns {name}={found[name]:.4g}, but Task.most_frequent needs a share "
            "from 0 to 1: divide it by 100, or by the number of examples"
        )


def _require_loss(task: Task) -> list[str]:
    """Checks that the loss is a real scalar that depends on the parameters.

    Returns:
      Warnings about parameters that the loss does not use, and about fixed random numbers.
    """
    loss = functools.partial(loss_of, task.loss)
    program, found = jax.make_jaxpr(loss, return_shape=True)(task.shapes, task.batch)
    require_loss(found, "Task.loss")
    leaves = jax.tree_util.tree_leaves_with_path(task.shapes)
    needed, inputs = dce_jaxpr(program.jaxpr, [True])  # only what the loss depends on
    read = inputs[: len(leaves)]
    if not any(read):
        raise ValueError(
            "Task.loss does not depend on the parameters: it must be computed from its first "
            "argument, and not from others of the same name"
        )
    unread = [
        leaf_name("params", path)
        for (path, leaf), of_loss in zip(leaves, read, strict=True)
        if not of_loss and leaf.size
    ]
    warnings = []
    if unread:
        more = ", ..." if len(unread) > _NAMED else ""
        warnings.append(
            f"unread parameters: the loss does not depend on {len(unread):,} of {len(leaves):,} "
            f"leaves ({', '.join(unread[:_NAMED])}{more}), so a rule can only decay them; leave "
            "out of Task.params what is not a parameter (docs/models.md)"
        )
    if _draws_from_constants(needed, [True] * len(needed.invars)):
        warnings.append(
            "fixed random numbers: Task.loss uses the same ones in every step, since it makes its "
            "own key; for dropout set Task.takes_key=True and use the key, its third argument"
        )
    return warnings


def _within(step: Any) -> Iterator[Jaxpr]:
    """Yields the jaxprs that an equation of a jaxpr calls."""
    for value in step.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, (Jaxpr, ClosedJaxpr)):
                yield part.jaxpr if isinstance(part, ClosedJaxpr) else part


def _draws_from_constants(program: Jaxpr, given: Sequence[bool]) -> bool:
    """Returns whether random numbers are drawn from a key that depends on none of the inputs.

    Args:
      program: the jaxpr to search.
      given: for each input of the jaxpr, whether it may change from step to step.
    """
    changing = {
        variable for variable, of_step in zip(program.invars, given, strict=True) if of_step
    }
    for step in program.eqns:
        reads = [not isinstance(read, Literal) and read in changing for read in step.invars]
        if step.primitive.name in ("random_bits", "threefry2x32") and not any(reads):
            return True
        for inner in _within(step):
            same = len(inner.invars) == len(reads)
            if _draws_from_constants(inner, reads if same else [any(reads)] * len(inner.invars)):
                return True
        if any(reads):
            changing.update(step.outvars)
    return False
