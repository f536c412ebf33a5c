"""(e) Alternatives: a PyTorch training loop, and a parameter server in torch's shared memory."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import Measured, in_turn, milliseconds
from benchmarks.networks import Network, paper, small
from benchmarks.store import donated, server
from benchmarks.threads import fused_loop, replicas
from dbjax.models import PAPER, SpeechConfig, model

_RATE = 0.05
_SHARDS = 10


def torch_network(config: SpeechConfig) -> Any:
    """The speech network as a torch module."""
    import torch

    widths = [config.inputs, *[config.width] * config.depth]
    layers: list[Any] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [torch.nn.Linear(n_in, n_out), torch.nn.Sigmoid()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], config.states))


def torch_loop(network: Network) -> Callable[[], float]:
    """A case: steps per second of a plain PyTorch loop on the same mini-batches."""
    import torch

    module = torch_network(network.config)
    rule = torch.optim.SGD(module.parameters(), lr=_RATE)
    batches = network.task.batches(0, 1)

    def case() -> float:
        begin = time.perf_counter()
        for k in range(network.steps):
            inputs, labels = batches.at(k)
            logits = module(torch.from_numpy(inputs))
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
            rule.zero_grad()
            loss.backward()
            rule.step()
        return network.steps / (time.perf_counter() - begin)

    return case


def _serve(params: list[Any], gradients: list[Any], asked: Any) -> None:
    """The server process: applies the gradient of each requested shard in place, then replies."""
    import torch

    torch.set_num_threads(2)
    while (shard := asked.recv()) is not None:
        params[shard].sub_(gradients[shard], alpha=_RATE)
        asked.send(shard)


def torch_store(size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Starts a server process that shares its memory with this one.

    Args:
      size: the number of parameters.

    Returns:
      A function that pushes a gradient and fetches the parameters, and one that ends the process.
    """
    import torch

    def shared() -> list[Any]:
        return [torch.zeros(size // _SHARDS).share_memory_() for _ in range(_SHARDS)]

    params, inbox = shared(), shared()
    gradient = [torch.full((size // _SHARDS,), 1e-3) for _ in range(_SHARDS)]
    held = [torch.zeros(size // _SHARDS) for _ in range(_SHARDS)]
    context = torch.multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(params, inbox, there), daemon=True)
    process.start()

    def once() -> None:
        for shard in range(_SHARDS):
            inbox[shard].copy_(gradient[shard])
            here.send(shard)
        for _ in range(_SHARDS):
            shard = here.recv()
            held[shard].copy_(params[shard])

    def end() -> None:
        here.send(None)
        process.join()

    return once, end


def loops(network: Network, rounds: int) -> Measured:
    """Compares training loops."""
    cases = {
        "fused, donated optax loop": fused_loop(network.task, network.steps),
        "dbjax in threads, 2 replicas": replicas(network.task, 2, network.steps),
        "plain PyTorch loop": torch_loop(network),
    }
    return in_turn(f"(e) steps/s, {network.name}, batch 64", "steps/s", cases, rounds)


def stores(rounds: int) -> Measured:
    """Compares parameter servers."""
    params = jax.block_until_ready(model(PAPER, 0).params)
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    once, end = torch_store(size)
    cases = {
        "jitted, donated update": milliseconds(donated(params, gradient)),
        "dbjax, 10 shards": milliseconds(server(params, gradient, 10)),
        "torch shared memory, 10 shards": milliseconds(once),
    }
    try:
        return in_turn("(e) push + fetch of 42 M parameters", "ms", cases, 3 * rounds)
    finally:
        end()


def run(rounds: int) -> list[Measured]:
    """Measures part (e); see `benchmarks.run`. Without torch it only says so."""
    if importlib.util.find_spec("torch") is None:
        nothing = {"left out": "torch is not installed (pip install 'dbjax[bench]')"}
        return [Measured("(e) peers", "", {}, notes=nothing)]
    return [loops(small(), rounds), loops(paper(), max(3, rounds // 2)), stores(rounds)]
