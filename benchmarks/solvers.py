"""L-BFGS minimisers of several libraries, to be timed on the same problem by `lbfgs`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

import dbjax
from benchmarks.networks import Network
from benchmarks.peers import torch_network
from dbjax.algorithms import sandblaster
from dbjax.data import ArrayExamples
from dbjax.optim import Lbfgs, Stops, minimise

MEMORY = 10


@dataclasses.dataclass(frozen=True)
class Problem:
    """The problem to solve: minimising a network's loss over one batch.

    Attributes:
      network: the network.
      batch: the batch, as jax arrays.
      iterations: the number of iterations to take.
    """

    network: Network
    batch: Any
    iterations: int

    @property
    def params(self) -> Any:
        """The initial parameters."""
        return self.network.task.params

    def loss(self, params: Any, batch: Any) -> Any:
        """The loss to minimise."""
        return self.network.task.loss(params, batch)


class Solved(NamedTuple):
    """The result of a solver: iterations taken, evaluations of the loss, and the final loss."""

    iterations: int
    evaluations: int
    loss: float


Solver = Callable[[Problem], Callable[[], Solved]]


def problem(network: Network, batch_size: int, iterations: int) -> Problem:
    """The problem of a network on its first mini-batch of the given size."""
    task = dataclasses.replace(network.task, batch_size=batch_size)
    return Problem(network, jax.device_put(task.batches(0, 1).at(0)), iterations)


def with_optax(given: Problem) -> Callable[[], Solved]:
    """The loop of optax's documentation, in one program with donated buffers."""
    solver = optax.lbfgs(memory_size=MEMORY)

    def step(params: Any, state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            return given.loss(params, batch)

        value, gradient = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def solve() -> Solved:
        params = jax.tree.map(jnp.copy, given.params)
        state = jax.tree.map(jnp.copy, solver.init(params))
        evaluations = 1
        for _ in range(given.iterations):
            params, state = compiled(params, state, given.batch)
            evaluations += int(optax.tree.get(state, "info").num_linesearch_steps)
        return Solved(given.iterations, evaluations, float(optax.tree.get(state, "value")))

    return solve


def with_dbjax(given: Problem) -> Callable[[], Solved]:
    """`dbjax.optim.minimise`, in one process without a parameter server."""
    compiled = jax.jit(jax.value_and_grad(given.loss))
    stops = Stops(0.0, -1.0, iterations=given.iterations)

    def solve() -> Solved:
        _, state = minimise(
            lambda params: given.loss(params, given.batch), given.params, Lbfgs(memory=MEMORY),
            stops, value_and_grad=lambda params: compiled(params, given.batch),
        )  # fmt: skip
        return Solved(state.iteration, state.evaluations, state.loss)

    return solve


def with_sandblaster(given: Problem, portions: int = 1) -> Callable[[], Solved]:
    """A whole run of Sandblaster in threads, with one replica and one shard.

    Args:
      given: the problem.
      portions: the number of portions into which the batch is split.
    """
    data = ArrayExamples(jax.tree.map(np.asarray, given.batch))
    task = dbjax.Task(given.params, given.network.task.loss, data, len(data) // portions)
    method = sandblaster.Config(
        Lbfgs(memory=MEMORY), Stops(0.0, -1.0), replicas=1, shards=1, steps=given.iterations
    )

    def solve() -> Solved:
        summary = dbjax.run(task, method, runtime="threads").summary
        return Solved(summary["iterations"], summary["evaluations"], summary["train_loss"])

    return solve


def with_four_portions(given: Problem) -> Callable[[], Solved]:
    """Sandblaster with the batch in four portions."""
    return with_sandblaster(given, 4)


def with_scipy(given: Problem) -> Callable[[], Solved]:
    """SciPy's L-BFGS-B, which needs float64; the loss is computed in float32."""
    import scipy.optimize  # type: ignore[import-untyped]

    flat, unravel = jax.flatten_util.ravel_pytree(given.params)
    compiled = jax.jit(jax.value_and_grad(lambda w, batch: given.loss(unravel(w), batch)))
    start = np.asarray(flat, np.float64)
    options = {"maxcor": MEMORY, "maxiter": given.iterations, "ftol": 0, "gtol": 0}

    def value_and_grad(w: Any) -> tuple[float, Any]:
        loss, gradient = compiled(w.astype(np.float32), given.batch)
        return float(loss), np.asarray(gradient, np.float64)

    def solve() -> Solved:
        found = scipy.optimize.minimize(
            value_and_grad, start, jac=True, method="L-BFGS-B", options=options
        )
        return Solved(found.nit, found.nfev, float(found.fun))

    return solve


def with_torch(given: Problem) -> Callable[[], Solved]:
    """`torch.optim.LBFGS`, from the same initial parameters."""
    import torch

    module = torch_network(given.network.config)
    inputs, labels = (torch.from_numpy(np.array(part)) for part in given.batch)
    linear = [layer for layer in module if isinstance(layer, torch.nn.Linear)]

    def start() -> None:
        with torch.no_grad():
            for index, layer in enumerate(linear):
                ours = given.params["layers"][str(index)]
                layer.weight.copy_(torch.from_numpy(np.array(ours["kernel"]).T))
                layer.bias.copy_(torch.from_numpy(np.array(ours["bias"])))

    def solve() -> Solved:
        start()
        rule = torch.optim.LBFGS(
            module.parameters(), max_iter=given.iterations, max_eval=10**9, history_size=MEMORY,
            tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Any:
            rule.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(inputs), labels.long())
            loss.backward()
            return loss

        rule.step(closure)
        (state,) = rule.state.values()
        return Solved(state["n_iter"], state["func_evals"], closure().item())

    return solve


def evaluating(given: Problem) -> Callable[[], Solved]:
    """Only the loss and its gradient, once per iteration."""
    compiled = jax.jit(jax.value_and_grad(given.loss))

    def solve() -> Solved:
        for _ in range(given.iterations):
            loss, _ = jax.block_until_ready(compiled(given.params, given.batch))
        return Solved(0, given.iterations, float(loss))

    return solve
