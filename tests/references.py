"""Plain, loop-written references that the library must agree with."""

import functools

import jax
import numpy as np
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


def two_loops(s, y, gradient):
    """Nocedal & Wright 2006, algorithm 7.4, as printed; pairs oldest first."""
    q, alpha = gradient.copy(), {}
    rho = [1 / (y[i] @ s[i]) for i in range(len(s))]
    for i in reversed(range(len(s))):
        alpha[i] = rho[i] * (s[i] @ q)
        q -= alpha[i] * y[i]
    r = q * (s[-1] @ y[-1]) / (y[-1] @ y[-1]) if s else q
    for i in range(len(s)):
        beta = rho[i] * (y[i] @ r)
        r += s[i] * (alpha[i] - beta)
    return -r


def dense_inverse_hessian(s, y, size):
    """Nocedal & Wright 2006, eq. 7.19: updates of the whole matrix."""
    h = np.eye(size) * (s[-1] @ y[-1]) / (y[-1] @ y[-1]) if s else np.eye(size)
    for si, yi in zip(s, y, strict=True):
        rho = 1 / (yi @ si)
        v = np.eye(size) - rho * np.outer(yi, si)
        h = v.T @ h @ v + rho * np.outer(si, si)
    return h


def conjugate_gradients(matrix, b, steps):
    """Hestenes & Stiefel 1952 on 0.5 x A x - b x, from 0; the path."""
    x = np.zeros_like(b)
    r = b - matrix @ x
    p, path = r.copy(), [x]
    for _ in range(steps):
        alpha = (r @ r) / (p @ matrix @ p)
        x, before = x + alpha * p, r
        r = r - alpha * matrix @ p
        p = r + (r @ r) / (before @ before) * p
        path.append(x)
    return path
