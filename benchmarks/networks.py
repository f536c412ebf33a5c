"""The two networks that everything is measured on, and data of the right shape for them."""

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
    """A network's task, and how often to repeat what is measured on it."""

    name: str
    config: SpeechConfig
    task: dbjax.Task
    steps: int


def network(name: str, config: SpeechConfig, steps: int) -> Network:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(_EXAMPLES, config.inputs)).astype(np.float32)
    labels = random.integers(config.states, size=_EXAMPLES).astype(np.int32)
    made = model(config, 0)
    params = jax.block_until_ready(made.params)
    task = dbjax.Task(params, made.loss, ArrayExamples(Labelled(inputs, labels)), BATCH)
    return Network(name, config, task, steps)


def small() -> Network:
    return network("440-256x4-128", DEMO, 400)


def paper() -> Network:
    return network("440-2560x4-8192 (42 M)", PAPER, 8)
