"""What accuracy is measured on, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from dbjax.data import ArrayExamples, load
from dbjax.data.examples import Labelled
from dbjax.models import build as network
from experiments import build
from experiments.command_line import load_config


def labelled(labels):
    """Inputs that are their own labels, one-hot: weights that are the identity know them all."""
    labels = np.array(labels, np.int32)
    return ArrayExamples(Labelled(np.eye(3, dtype=np.float32)[labels], labels))


IDENTITY = {"layers": {"0": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}}
ALWAYS_1 = {"layers": {"0": {"kernel": jnp.zeros((3, 3)), "bias": jnp.array([0.0, 1.0, 0.0])}}}
TRAIN, TEST = labelled([1, 1, 1, 0]), labelled([1, 2, 2, 0, 0])


def test_each_accuracy_is_that_of_its_own_set():
    model = network("softmax", inputs=3, classes=3, seed=0)
    evaluate = build.evaluation(model, TRAIN, TEST, 100)
    assert evaluate(ALWAYS_1) == {"train_accuracy": 3 / 4, "test_accuracy": 1 / 5}
    assert evaluate(IDENTITY) == {"train_accuracy": 1.0, "test_accuracy": 1.0}


def test_a_sample_is_of_as_many_examples_as_asked_for_and_always_the_same():
    model = network("softmax", inputs=3, classes=3, seed=0)
    many = labelled(np.arange(300) % 3)
    found = [build.evaluation(model, many, many, 50)(ALWAYS_1) for _ in range(2)]
    assert found[0] == found[1]
    # of all 300 it would be 1/3, which is no whole number of 50
    assert all(50 * share == pytest.approx(round(50 * share)) for share in found[0].values())


def test_of_a_regression_it_is_the_hold_out_loss():
    """Weights of 2 on labels that are the inputs: half the square of the inputs."""
    model = network("linear", inputs=1, classes=1, seed=0)
    train, test = (
        ArrayExamples(Labelled(values, values))
        for values in (np.full((3, 1), 5.0, np.float32), np.float32([[1.0], [3.0]]))
    )
    params = {"layer": {"kernel": jnp.full((1, 1), 2.0)}}
    assert build.evaluation(model, train, test, 9)(params) == {"test_loss": (1 + 9) / 2 / 2}


def test_a_task_is_trained_on_the_training_set_alone():
    config = load_config("configs/quickstart.py:smoke")
    task = build.task(config)
    data = dict(config.data)
    splits = load(data.pop("name"), **data)
    assert task.data is splits.train
    rows = {row.tobytes() for row in splits.train.tree.inputs}
    batch = task.batches(0, 1).at(0)
    assert all(row.tobytes() in rows for row in batch.inputs)
