"""Networks cut over 1, 2, 4, 8 and 9 devices beside the whole ones; prints how far they are apart.

A process of its own: the number of devices is settled when the backend starts.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dbjax.model_parallel import halo, layers, losses
from dbjax.models import build
from tests.model_parallel.padded import apart, padded, padding

DEVICES = (1, 2, 4, 8, 9)
STEPS, BATCH, RATE = 20, 6, 0.03
# Widths, classes and sides that 8 and 9 devices leave a rest of, or some device without any.
DEEP = {"inputs": 9, "classes": 11, "width": 7, "depth": 4, "l2": 0.01}
CASES = {
    "speech, units": ("speech", "units", DEEP),
    "speech, alternating": ("speech", "alternating", DEEP),
    "mlp, alternating": ("mlp", "alternating", {"inputs": 10, "classes": 11, "widths": (15,)}),
    "softmax": ("softmax", None, {"inputs": 10, "classes": 11}),
    "vision": (
        "vision",
        "tiles",
        {"inputs": 3 * 29**2, "classes": 11, "units": 2, "patch": 5, "last_pool": 3},
    ),
    "vision of digits": (
        "vision",
        None,
        {"inputs": 64, "classes": 10, "units": 4, "channels": 1, "patch": 3, "last_pool": 2},
    ),
}


def network(case):
    """A network somewhere off its initial parameters, where some gradients are zero; a batch."""
    name, how, options = CASES[case]
    model = build(name, seed=0, **options)
    leaves, treedef = jax.tree.flatten(model.params)
    random = np.random.default_rng(1)
    moved = [p + 0.1 * random.normal(size=p.shape).astype(np.float32) for p in leaves]
    inputs = random.normal(size=(BATCH, options["inputs"])).astype(np.float32)
    labels = random.integers(options["classes"], size=BATCH).astype(np.int32)
    return model, how, treedef.unflatten(moved), (inputs, labels)


def compiled(value_and_grad, params, batch):
    """A step of gradient descent: loss, gradient, and what the parameters are then."""

    def step(params, batch):
        loss, gradient = value_and_grad(params, batch)
        return loss, gradient, jax.tree.map(lambda p, g: p - RATE * g, params, gradient)

    return jax.jit(step).lower(params, batch).compile(), params, batch


def descent(step, params, batch):
    """Losses and parameters of all steps, and the first gradient."""
    losses, path, first = [], [], None
    for _ in range(STEPS):
        loss, gradient, params = step(params, batch)
        losses.append(float(loss))
        path.append(jax.tree.map(np.asarray, params))
        first = first or jax.tree.map(np.asarray, gradient)
    return losses, path, first


def collectives(text):
    """How many results of each kind and shape, such as `all-reduce f32[6,7]`."""
    kinds = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
    lines = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
    return collections.Counter(
        f"{kind} {shape}" for shapes, kind in lines for shape in re.findall(r"\w+\[.*?\]", shapes)
    )


@functools.cache
def whole(case):
    model, _, params, batch = network(case)
    return params, *descent(*compiled(jax.value_and_grad(model.loss), params, batch))


def cut_over(case, devices):
    model, how, params, batch = network(case)
    sharding = model.sharding(devices, how)
    mesh = sharding.mesh(jax.devices())
    everywhere = jax.device_put(batch, NamedSharding(mesh, P()))
    return compiled(
        sharding.value_and_grad(params, mesh), padded(params, sharding, mesh), everywhere
    )


def compared(case, step, params, batch):
    losses, path, gradient = descent(step, params, batch)
    initial, whole_losses, whole_path, whole_gradient = whole(case)
    return {
        "loss": float(np.max(np.abs(np.divide(losses, whole_losses) - 1))),
        "gradient": apart(gradient, whole_gradient),
        "trajectory": max(map(apart, path, whole_path)),
        "padding": max(map(padding, path, whole_path)),
        "moved": apart(whole_path[-1], initial),
        "collectives": collectives(step.as_text()),
    }


def one_short(reads, blocks, messages=halo.messages):
    *others, last = messages(reads, blocks)
    return [*others, dataclasses.replace(last, end=last.end - 1)]


def all_real(*args, labels=losses._labels):
    mine, real = labels(*args)
    return mine, jnp.ones_like(real)


UNMASKED = types.SimpleNamespace(**vars(jnp) | {"where": lambda _, x, __: x})
MISTAKES = {
    "a halo one short": (halo, {"messages": one_short}, "vision of digits"),
    "units of padding count": (layers, {"jnp": UNMASKED}, "speech, alternating"),
    "classes of padding count": (losses, {"_labels": all_real}, "softmax"),
}


def mistaken(module, wrong, case):
    with mock.patch.multiple(module, **wrong):
        return case, cut_over(case, 4)


def main():
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    jax.config.update("jax_numpy_rank_promotion", "raise")
    found = {mistake: mistaken(*how) for mistake, how in MISTAKES.items()}
    runs = [(case, n) for case in CASES for n in DEVICES]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # to compile takes all the time
        list(pool.map(whole, CASES))
        programs = pool.map(lambda run: cut_over(*run), runs)
    found |= {f"{c} on {n}": (c, p) for (c, n), p in zip(runs, programs, strict=True)}
    print(json.dumps({name: compared(case, *program) for name, (case, program) in found.items()}))


if __name__ == "__main__":
    main()
