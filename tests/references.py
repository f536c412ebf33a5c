"""Plain, loop-written references that the library must agree with."""

import functools

import jax
import optax


@functools.cache
def _compiled(loss, rule):
    @jax.jit
    def update(params, state, gradient):
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(jax.grad(loss)), update


def optax_loop(task, rule, steps):
    """The training loop of optax's own tutorials; returns the parameters."""
    gradient_fn, update = _compiled(task.loss, rule)
    params, state, batches = task.params, rule.init(task.params), task.batches(0, 1)
    for step in range(steps):
        params, state = update(params, state, gradient_fn(params, batches.at(step)))
    return params


def delayed_descent(a, tau, updates):
    """w[t + 1] = w[t] - a w[t - tau] on 0.5 w^2, from w = 1; the first ones see the start."""
    path = [1.0]
    for t in range(updates):
        path.append(path[-1] - a * path[max(0, t - tau)])
    return path[-1]
