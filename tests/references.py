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


def pairs_taken(points, gradients, memory, curvature=1e-10, damped=False):
    """The last `memory` pairs s, y along a path that are fit, oldest first, written out.

    Those of too little curvature are left out, or damped (Powell 1978, with B = |y| / |s| I).
    """
    s, y = [], []
    for i in range(len(points) - 1):
        si, yi = points[i + 1] - points[i], gradients[i + 1] - gradients[i]
        if si @ yi <= curvature * (si @ si) and damped:
            b = np.sqrt(yi @ yi / (si @ si))
            theta = 0.8 * b * (si @ si) / (b * (si @ si) - si @ yi)
            yi = theta * yi + (1 - theta) * b * si
            assert np.isclose(si @ yi, 0.2 * b * (si @ si))
        if si @ yi > curvature * (si @ si):
            s.append(si)
            y.append(yi)
    return s[-memory:], y[-memory:]


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


def locally_connected(images, kernel, bias, width):
    """Filters of their own at every position of images [batch, rows, columns, channels]."""
    rows, columns, _, units = kernel.shape
    out = np.zeros((len(images), rows, columns, units))
    for b, r, c, u in np.ndindex(out.shape):
        patch = images[b, r : r + width, c : c + width]
        out[b, r, c, u] = patch.ravel() @ kernel[r, c, :, u] + bias[r, c, u]
    return out


def l2_pooled(x, width, stride, before=0):
    """The root of the sum of squares over neighbourhoods; beyond the sides there are zeros."""
    batch, side, _, units = x.shape
    outputs = (side + 2 * before - width) // stride + 1
    out = np.zeros((batch, outputs, outputs, units))
    for b, r, c, u in np.ndindex(out.shape):
        for i, j in np.ndindex(width, width):
            row, column = r * stride + i - before, c * stride + j - before
            if 0 <= row < side and 0 <= column < side:
                out[b, r, c, u] += x[b, row, column, u] ** 2
    return np.sqrt(out)


def gaussian_mean(x, r, c, width=5):
    """The mean of x [rows, columns, units] around a position, of all units."""
    offsets = range(-(width // 2), width // 2 + 1)
    weights = {(i, j): np.exp(-0.5 * (i**2 + j**2)) for i in offsets for j in offsets}
    total = 0.0
    for (i, j), weight in weights.items():
        if 0 <= r + i < x.shape[0] and 0 <= c + j < x.shape[1]:
            total += weight * np.mean(x[r + i, c + j])
    return total / sum(weights.values())


def contrast_normalised(x, faintest):
    """Jarrett et al. 2009, section 2.1, on x [batch, rows, columns, units]."""
    out = np.zeros(x.shape)
    for b, image in enumerate(x):
        places = list(np.ndindex(image.shape[:2]))
        centred = np.zeros(image.shape)
        for r, c in places:
            centred[r, c] = image[r, c] - gaussian_mean(image, r, c)
        for r, c in places:
            deviation = np.sqrt(gaussian_mean(centred**2, r, c))
            out[b, r, c] = centred[r, c] / max(faintest, deviation)
    return out


def one_against_all(logits, labels):
    """Logistic loss of every class against all others: summed, mean over the examples."""
    total = 0.0
    for b, k in np.ndindex(logits.shape):
        probability = 1 / (1 + np.exp(-logits[b, k]))
        total -= np.log(probability if k == labels[b] else 1 - probability)
    return total / len(logits)


def synchronous_loop(task, rate, replicas, steps):
    """Synchronous SGD: each step follows the mean of the replicas' gradients at one place."""
    gradient_fn = jax.jit(jax.grad(task.loss))
    params = {name: np.asarray(value, np.float64) for name, value in task.params.items()}
    streams = [task.batches(r, replicas) for r in range(replicas)]
    for step in range(steps):
        gradients = [gradient_fn(params, stream.at(step)) for stream in streams]
        for name in params:
            mean = sum(np.asarray(g[name], np.float64) for g in gradients) / replicas
            params[name] = params[name] - rate * mean
    return params


def polak_ribiere(value_and_grad, x, steps):
    """Nocedal & Wright 2006, eq. 5.45 with algorithm 5.4, and steps that are given.

    Returns the path, and the betas; one that is not above 0, or whose direction would rise, is 0.
    """
    _, gradient = value_and_grad(x)
    direction, path, betas = -gradient, [x], []
    for step in steps:
        x = x + step * direction
        _, fresh = value_and_grad(x)
        beta = max(0.0, fresh @ (fresh - gradient) / (gradient @ gradient))
        if fresh @ (-fresh + beta * direction) >= 0:
            beta = 0.0
        direction, gradient = -fresh + beta * direction, fresh
        path.append(x)
        betas.append(beta)
    return path, betas
