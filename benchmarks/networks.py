"""The two networks that the benchmarks use, and random data of the right shape for them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

import dbjax
from dbjax.data import ArrayExamples, Labelled
from dbjax.models import DEMO, PAPER, SpeechConfig, model

BATCH = 64
_EXAMPLES = 4096


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and its training task.

    Attributes:
      name: the name in titles.
      config: the network.
      task: its training on random data.
      steps: the number of steps to measure.
    """

    name: str
    config: SpeechConfig
    task: dbjax.Task
    steps: int


def network(name: str, config: SpeechConfig, steps: int) -> Network:
    """Makes a network with random data; see `Network` for the arguments."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(_EXAMPLES, config.inputs)).astype(np.float32)
    labels = random.integers(config.states, size=_EXAMPLES).astype(np.int32)
    made = model(config, 0)
    params = jax.block_until_ready(made.params)
    task = dbjax.Task(params, made.loss, ArrayExamples(Labelled(inputs, labels)), BATCH)
    return Network(name, config, task, steps)


def small() -> Network:
    """The small network of the demo."""
    return network("440-256x4-128", DEMO, 400)


def paper() -> Network:
    """The paper's speech network of 42 M parameters."""
    return network("440-2560x4-8192 (42 M)", PAPER, 8)
