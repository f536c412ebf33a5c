"""What a run is given, checked before anything of it is placed: one line for each mistake."""

from __future__ import annotations

import functools
import importlib
import types
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

from dbjax.evaluator import metrics
from dbjax.optim.inputs import require_floats, require_loss
from dbjax.runtime.fields import shown
from dbjax.task import Task
from dbjax.types import loss_of

_REMEDY = "give the Config of a module of dbjax.algorithms, such as downpour.Config(replicas=4)"


def algorithm_of(config: Any) -> Any:
    """The module of an algorithm, whose Config this is.

    Raises:
      TypeError: it is something else.
    """
    if isinstance(config, types.ModuleType):
        name = config.__name__.rpartition(".")[2]
        raise TypeError(f"config is the module {config.__name__}: give {name}.Config(...)")
    if isinstance(config, type):
        raise TypeError(f"config is the class {config.__qualname__}: call it")
    module = importlib.import_module(type(config).__module__)
    if not callable(getattr(module, "program", None)):
        raise TypeError(f"config={shown(config)} is no algorithm's: {_REMEDY}")
    return module


def require_sound(task: Any) -> None:
    """Raises TypeError or ValueError for what would be wrong later, when the run has begun."""
    if not isinstance(task, Task):
        call = "call the class" if isinstance(task, type) else "give dbjax.Task(params, loss, data)"
        raise TypeError(f"task={shown(task)} is no Task: {call}")
    count = len(task.examples)
    if task.batch_size > count:
        raise ValueError(
            f"Task.batch_size={task.batch_size} is more than all {count} examples; use smaller "
            "batches"
        )
    require_floats(task.shapes)
    _require_loss(task)
    if task.evaluate is not None:
        metrics(task.evaluate, task.start())


def _require_loss(task: Task) -> None:
    """Raises ValueError unless the loss is a real scalar that depends on the parameters."""
    loss = functools.partial(loss_of, task.loss)
    program, found = jax.make_jaxpr(loss, return_shape=True)(task.shapes, task.batch)
    require_loss(found, "Task.loss")
    count = len(jax.tree.leaves(task.shapes))
    if not _reads(program.jaxpr, count):
        raise ValueError(
            "Task.loss does not depend on the parameters: it must be computed from its first "
            "argument, and not from others of the same name"
        )


def _reads(program: Jaxpr, count: int) -> bool:
    """Whether the result may depend on one of the first `count` inputs.

    Every step counts as depending on all that it is given: False is certain, True is not.
    """
    depending = set(program.invars[:count])
    for step in program.eqns:
        if any(not isinstance(read, Literal) and read in depending for read in step.invars):
            depending.update(step.outvars)
    return any(not isinstance(out, Literal) and out in depending for out in program.outvars)
